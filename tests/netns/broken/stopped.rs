//! Time: processes that are stopped for seconds, and clocks that say something else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{cpu, network_pid, restarts, rests};
use crate::named::{create, member, processes};
use crate::tools::{Pattern, any, at, connect, echo_tcp, heard_udp, listen, serve, tell_udp, udp};
use crate::world::{Guest, HOST4, INET4, World};

/// How long a process is stopped. Longer than all that is repeated after a second or two.
const STOP: Duration = Duration::from_secs(5);

fn works(mut stream: &TcpStream) {
    stream.write_all(b"still there?").unwrap();
    let mut got = [0; 12];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there?");
}

/// A stream that goes on while `f` is done, compared byte for byte. Returns how many it carried.
fn under_way(guest: &Guest, f: impl FnOnce()) -> usize {
    let mut stream = connect(&guest.ns, at(INET4, 7000)).unwrap();
    let (mut writer, until) = (stream.try_clone().unwrap(), Instant::now() + STOP + Duration::from_secs(3));
    let writer = std::thread::spawn(move || {
        let (mut pattern, mut bytes) = (Pattern::new(3), vec![0; 16 * 1024]);
        while Instant::now() < until {
            pattern.fill(&mut bytes);
            writer.write_all(&bytes).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reader = std::thread::spawn(move || crate::tools::expect_pattern(&mut stream, 3));
    std::thread::sleep(Duration::from_millis(500));
    f();
    writer.join().unwrap();
    reader.join().unwrap()
}

/// A guest repeats the FIN of its answer meanwhile, and has forgotten the connection when both are acknowledged: it answers the second
/// acknowledgement with a reset, which is not the client's business.
#[test]
fn an_end_that_is_repeated_meanwhile_is_an_end_in_order() {
    World::run(|w| {
        let site = w.guest(&["--name", "site", "-p", "8000:7000"]);
        let pid = network_pid(w, "site");
        let pause = Duration::from_millis(50);
        serve(listen(&site.ns, at([0; 4], 7000)), move |mut stream, _| {
            let mut question = Vec::new();
            let _ = stream.read_to_end(&mut question);
            std::thread::sleep(pause);
            let _ = stream.write_all(&question);
        });
        for round in 0..10 {
            let mut stream = connect(&w.internet, at(HOST4, 8000)).unwrap();
            stream.write_all(b"a question").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            std::thread::sleep(pause / 2);
            w.host.sh(&format!("kill -STOP {pid}"));
            std::thread::sleep(Duration::from_millis(500));
            w.host.sh(&format!("kill -CONT {pid}"));
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            assert!(read.is_ok() && answer == b"a question", "round {round}: {read:?}, {answer:?}");
        }
    });
}

#[test]
fn a_network_process_that_is_stopped_for_seconds() {
    World::run(|w| {
        create(w, &["web"]);
        let site = w.guest(&["--name", "site", "-p", "8000:7000"]);
        let one = member(w, "web", "one", &[]);
        echo_tcp(&w.internet, at(INET4, 7000));
        echo_tcp(&site.ns, at([0; 4], 7000));
        tell_udp(&w.internet, at(INET4, 7000));
        for (guest, pid) in [(&site, network_pid(w, "site")), (&one, processes()[0])] {
            let idle = connect(&guest.ns, at(INET4, 7000)).unwrap();
            let socket = udp(&guest.ns, any(at(INET4, 7000)));
            guest.run(|| socket.connect(at(INET4, 7000))).unwrap();
            let before = heard_udp(&socket);
            let mut used = 0.0;
            let carried = under_way(guest, || {
                w.host.sh(&format!("kill -STOP {pid}"));
                std::thread::sleep(STOP);
                let at_stop = cpu(pid);
                w.host.sh(&format!("kill -CONT {pid}"));
                std::thread::sleep(Duration::from_secs(1));
                used = cpu(pid) - at_stop;
            });
            eprintln!("{carried} bytes; {used:.2} s of processor time in the second after the stop");
            assert!(used < 0.7, "what was due meanwhile came all at once: {used} s");
            works(&idle);
            assert_eq!(heard_udp(&socket), before, "the same mapping");
            rests(pid, "after it was stopped");
        }
        works(&connect(&w.internet, at(HOST4, 8000)).unwrap());
        assert_eq!(restarts(w, "site"), 0);
    });
}

#[test]
fn a_monitor_that_is_stopped_for_seconds() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        echo_tcp(&w.internet, at(INET4, 7000));
        echo_tcp(&guest.ns, at([0; 4], 7000));
        let monitor = guest.monitor.pid();
        let client = connect(&w.internet, at(HOST4, 8000)).unwrap();
        let carried = under_way(&guest, || {
            w.host.sh(&format!("kill -STOP {monitor}"));
            // A client of its socket is served afterwards.
            let info = w.tapway(&["info", "site", "--json"]).spawn();
            works(&client);
            works(&connect(&w.internet, at(HOST4, 8000)).unwrap());
            std::thread::sleep(STOP);
            w.host.sh(&format!("kill -CONT {monitor}"));
            let told = info.end(Duration::from_secs(10));
            assert_eq!(told.code, 0, "{}", told.stderr);
        });
        assert!(carried > 16 * 1024 * 200, "traffic does not wait for the monitor: {carried}");
        rests(monitor, "the monitor after it was stopped");
        assert!(guest.monitor.alive());
    });
}

/// The program inside is stopped: its windows close and open again, and the host's side waits.
#[test]
fn a_program_that_is_stopped_for_seconds() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        let script = "import socket
s = socket.create_server(('0.0.0.0', 7000))
while True:
    c, _ = s.accept()
    while True:
        b = c.recv(65536)
        if not b: break
        c.sendall(b)
    c.close()";
        let _server = guest.cmd(&["/usr/bin/python3", "-c", script]).spawn();
        guest.ns.await_listener(7000);
        let pid = guest.sh("pgrep -f create_server | head -1");
        let network = network_pid(w, "site");
        let stream = connect(&w.internet, at(HOST4, 8000)).unwrap();
        works(&stream);
        guest.sh(&format!("kill -STOP {}", pid.trim()));
        let (writer, reader) = (stream.try_clone().unwrap(), stream);
        let sent = std::thread::spawn(move || {
            crate::tools::send_pattern(&writer, 9, 24 << 20).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        std::thread::sleep(Duration::from_secs(1));
        rests(network, "its guest's program stopped, a window closed");
        std::thread::sleep(STOP.saturating_sub(Duration::from_secs(3)));
        guest.sh(&format!("kill -CONT {}", pid.trim()));
        assert_eq!(crate::tools::expect_pattern(&reader, 9), 24 << 20);
        sent.join().unwrap();
    });
}

/// Clocks since the boot are others in a time namespace: far in the future, and before they were begun.
#[test]
fn clocks_that_began_at_another_time() {
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 7000));
        for (monotonic, boottime) in [("1000000000", "2000000000"), ("-", "-")] {
            // Not below zero (clock_settime of the namespace refuses that): nearly zero then.
            let up = std::fs::read_to_string("/proc/uptime").unwrap();
            let least = format!("-{}", up.split('.').next().unwrap().parse::<u64>().unwrap().saturating_sub(1));
            let offset = |text: &str| if text == "-" { least.clone() } else { text.to_owned() };
            let script =
                "exec 3<>/dev/tcp/198.51.100.2/7000 && echo there >&3 && read -t 5 answer <&3 && echo $answer &&
                          ping -c2 -i0.3 -W2 10.0.2.2 && dig +tries=1 +time=2 localhost | grep NOERROR";
            let ended = w
                .tapway_run::<&str>(&[], &["bash", "-c", script])
                .by(&[
                    "unshare",
                    "--time",
                    "--fork",
                    &format!("--monotonic={}", offset(monotonic)),
                    &format!("--boottime={}", offset(boottime)),
                    "--",
                ])
                .end();
            assert!(ended.code == 0 && ended.stdout.contains("there"), "{}{}", ended.stdout, ended.stderr);
        }
    });
}
