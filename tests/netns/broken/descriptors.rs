//! Descriptors run out: in the process that forwards, and in the monitor, while both live.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{dropped, json, network_pid, restarts, rests};
use crate::dns::dns_server;
use crate::named::{create, member, processes};
use crate::soak::is_open;
use crate::tools::{any, ask_udp, at, connect, echo_tcp, tell_tcp, tell_udp, udp};
use crate::world::{Guest, HOST4, INET4, World, wait_for};

/// Lets a living process have so many descriptors; None: as many as before.
fn allow(w: &World, pid: i32, most: Option<usize>) {
    let soft = most.map_or_else(|| "unlimited".to_owned(), |most| most.to_string());
    let hard = w.host.sh(&format!("prlimit --pid {pid} --nofile --noheadings --raw --output HARD"));
    let soft = if most.is_some() { soft } else { hard.trim().to_owned() };
    w.host.sh(&format!("prlimit --pid {pid} --nofile={soft}:"));
}

fn lowest_free(pid: i32) -> usize {
    (0..1 << 20).find(|&fd| !is_open(pid, fd)).unwrap()
}

/// A limit under which nothing more can be opened. What is open stays.
fn none_left(w: &World, pid: i32) {
    allow(w, pid, Some(lowest_free(pid)));
}

/// Bytes there and back.
fn works(stream: &mut TcpStream) {
    stream.write_all(b"still there?").unwrap();
    let mut got = [0; 12];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there?");
}

fn failed_questions(w: &World) -> u64 {
    json(w, &["stats", "site", "--json"])["counters"]["dns_failed"].as_u64().unwrap()
}

fn reaches(guest: &Guest, port: u16, within: Duration) -> bool {
    guest.run(|| TcpStream::connect_timeout(&at(INET4, port), within).is_ok())
}

#[test]
fn a_network_process_without_descriptors() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        dns_server(&w.internet, at(INET4, 53), "outside");
        echo_tcp(&w.internet, at(INET4, 7000));
        tell_udp(&w.internet, at(INET4, 7000));
        tell_tcp(&guest.ns, at([0; 4], 7000));
        let pid = network_pid(w, "site");
        let mut flow = connect(&guest.ns, at(INET4, 7000)).unwrap();
        let datagrams = udp(&guest.ns, any(at(INET4, 7000)));
        guest.run(|| datagrams.connect(at(INET4, 7000))).unwrap();
        crate::tools::heard_udp(&datagrams);
        works(&mut flow);

        none_left(w, pid);
        let before = dropped(w, "site", "host_socket");
        // Each call that makes a descriptor: socket of TCP, UDP, ping and a question; accept; what a monitor sends.
        assert!(!reaches(&guest, 7000, Duration::from_millis(1500)));
        guest.run(|| {
            let other = udp(&guest.ns, any(at(INET4, 7000)));
            for _ in 0..5 {
                other.send_to(b"x", at(INET4, 7000)).unwrap();
            }
        });
        guest.cmd(&["ping", "-c2", "-i0.2", "-W1", &INET4.to_string()]).end();
        let asked = guest.sh("dig +tries=1 +time=3 -t TXT who.test || true");
        assert!(asked.contains("SERVFAIL"), "{asked}");
        let mut waiting = connect(&w.internet, at(HOST4, 8000)).unwrap();
        let capture = w.path("none.pcapng");
        let capture = w.tapway(&["capture", "site", capture.to_str().unwrap()]).end();
        eprintln!("capture: {} {}", capture.code, capture.stderr);
        let published = w.tapway(&["publish", "site", "8100:7000"]).end();
        eprintln!("publish: {} {}", published.code, published.stderr);
        for (code, said) in [(capture.code, &capture.stderr), (published.code, &published.stderr)] {
            assert!(code == 1 && said.contains("descriptor") && said.contains("RLIMIT_NOFILE"), "{said}");
        }
        works(&mut flow);
        crate::tools::heard_udp(&datagrams);
        // TCP, five datagrams, two pings; nothing of it without a name.
        let refused = dropped(w, "site", "host_socket") - before;
        eprintln!("{refused} refusals counted");
        assert!(refused >= 8, "{refused}");
        assert!(failed_questions(w) > 0);
        rests(pid, "without descriptors, one waiting to be accepted");
        let log = guest.monitor.stderr();
        assert_eq!(log.matches("cannot make a host").count(), 1, "{log}");
        assert_eq!(log.matches("cannot make a socket for a question").count(), 1, "{log}");
        assert_eq!((network_pid(w, "site"), restarts(w, "site")), (pid, 0), "{log}");

        allow(w, pid, None);
        // Who waited is served, and so is everybody else.
        let mut said = String::new();
        waiting.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("198.51.100.2:"), "{said}");
        assert!(reaches(&guest, 7000, Duration::from_secs(5)));
        ask_udp(&guest.ns, any(at(INET4, 7000)), at(INET4, 7000));
        guest.sh(&format!("ping -c1 -W2 {INET4}"));
        assert!(guest.sh("dig +tries=2 +time=3 -t TXT who.test").contains("outside"));
        w.tapway(&["publish", "site", "8100:7000"]).ok();
        connect(&w.internet, at(HOST4, 8100)).unwrap();
        works(&mut flow);
    });
}

#[test]
fn a_monitor_without_descriptors() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        echo_tcp(&w.internet, at(INET4, 7000));
        let mut flow = connect(&guest.ns, at(INET4, 7000)).unwrap();
        let (monitor, network) = (guest.monitor.pid(), network_pid(w, "site"));
        none_left(w, monitor);
        // A client waits; traffic does not.
        let socket = crate::control::socket(w);
        let mut client = UnixStream::connect(socket).unwrap();
        client.write_all(br#"{"execute":"get_info"}"#).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(client.read(&mut [0; 1]).is_err(), "there was no descriptor for it");
        works(&mut flow);
        rests(monitor, "the monitor without descriptors");
        // The host's resolv.conf is looked at nonetheless, or at the latest afterwards.
        w.host_resolv_conf("nameserver 203.0.113.1\n");
        // Another network process cannot be started now, but it is when that is possible.
        w.host.sh(&format!("kill -KILL {network}"));
        std::thread::sleep(Duration::from_secs(1));
        assert!(guest.monitor.alive(), "{}", guest.monitor.stderr());
        rests(monitor, "the monitor without descriptors for another network process");
        allow(w, monitor, None);
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert!(said.contains("\"return\""), "{said}");
        wait_for("another network process", Duration::from_secs(10), || reaches(&guest, 7000, Duration::from_secs(1)));
        assert_eq!(json(w, &["dns", "site", "--json"])["in_use"], serde_json::json!(["203.0.113.1"]));
        let log = guest.monitor.stderr();
        eprintln!("{log}");
    });
}

#[test]
fn a_shared_network_without_descriptors() {
    World::run(|w| {
        create(w, &["web"]);
        let one = member(w, "web", "one", &[]);
        echo_tcp(&w.internet, at(INET4, 7000));
        let mut flow = connect(&one.ns, at(INET4, 7000)).unwrap();
        let pid = processes()[0];
        none_left(w, pid);
        // A member more waits for its place and does not get half of one.
        let two = w.tapway_run_on("web", &["--name", "two"], &["sh", "-c", "ping -c1 -W2 one"]).spawn();
        std::thread::sleep(Duration::from_secs(1));
        works(&mut flow);
        rests(pid, "the process of a shared network without descriptors");
        assert_eq!(processes(), [pid]);
        allow(w, pid, None);
        let ended = two.end(Duration::from_secs(20));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        works(&mut flow);
        // Enough for the connection and not for what comes with it.
        let open = |most: usize| {
            allow(w, pid, Some(most));
            let ended = w.tapway_run_on("web", &["--name", "three"], &["ping", "-c1", "-W2", "one"]).limit(20).end();
            eprintln!("{most} descriptors: {} {}", ended.code, ended.stderr);
            assert!(ended.code == 0 || ended.stderr.contains("RLIMIT_NOFILE"), "{}", ended.stderr);
            assert_eq!(processes(), [pid], "{most}");
            works(&mut flow);
            ended.code == 0
        };
        let first = lowest_free(pid);
        let fine: Vec<bool> = (first + 1..first + 6).map(open).collect();
        assert!(fine.contains(&true) && fine.contains(&false), "{fine:?}");
    });
}

/// A guest that opens all that it can takes nothing from names, ports and captures.
#[test]
fn flows_leave_some_descriptors() {
    World::run(|w| {
        dns_server(&w.internet, at(INET4, 53), "outside");
        echo_tcp(&w.internet, at(INET4, 7000));
        let few = w
            .tapway_run(&["--name", "site", "-p", "8000:7000"], &["sleep", "1000"])
            .by(&["prlimit", "--nofile=300:300"]);
        let monitor = few.spawn();
        wait_for("the sandbox", Duration::from_secs(20), || w.tapway(&["info", "site"]).end().code == 0);
        let inside = |script: &str| w.tapway(&["exec", "site", "bash", "-c", script]).limit(60).end();
        let script = "ulimit -n 1000; for ((i = 0; i < 400; i++)); do
                        exec {fd}<>/dev/udp/198.51.100.2/9 && echo x >&$fd
                      done 2>/dev/null; sleep 1; dig +tries=1 +time=3 -t TXT who.test; sleep 5";
        let greedy = w.tapway(&["exec", "site", "bash", "-c", script]).spawn();
        wait_for("flows to be refused", Duration::from_secs(10), || dropped(w, "site", "host_socket") > 0);
        let file = w.path("some.pcapng");
        let mut capture = w.tapway(&["capture", "site", file.to_str().unwrap()]).spawn();
        w.tapway(&["publish", "site", "8001:7000"]).ok();
        assert!(capture.child.try_wait().unwrap().is_none(), "{}", capture.stderr());
        let ended = greedy.end(Duration::from_secs(30));
        assert!(ended.stdout.contains("outside"), "{}", ended.stdout);
        // Mappings live for a while; who accepts waits for them.
        assert!(inside("exec 3<>/dev/udp/198.51.100.2/9").code == 0);
        drop(monitor);
    });
}
