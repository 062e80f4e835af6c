//! `--pcap`: the file is whole and true, and nothing that becomes of it harms the traffic.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::tools::{at, listen, serve};
use crate::world::{Guest, INET4, Ns, World, wait_for};

/// Bytes of a bulk transfer: seconds of it would show if anybody waited for the file.
const BULK: usize = 256 << 20;
/// What a ping beside it may take, milliseconds. The machine is busy with the transfer; a stall would be seconds.
const PING: f64 = 200.0;

/// Serves BULK bytes to each client.
fn bulk_server(ns: &Ns) {
    serve(listen(ns, at(INET4, 4000)), |mut stream, _| {
        let block = vec![0x5A; 1 << 20];
        for _ in 0..BULK / block.len() {
            if stream.write_all(&block).is_err() {
                return;
            }
        }
    });
}

/// Fetches them, for bash; says how many.
fn fetch_line() -> String {
    format!("exec 3<>/dev/tcp/{INET4}/4000; head -c {BULK} <&3 | wc -c")
}

/// Fetches BULK bytes while a ping runs; how long both took at most: seconds, milliseconds.
fn fetch(guest: &Guest) -> (f64, f64) {
    let ping = guest.cmd(&["ping", "-i", "0.05", "-c", "40", "-W", "2", &INET4.to_string()]).limit(60).spawn();
    let start = Instant::now();
    let got = guest.cmd(&["bash", "-ec", &fetch_line()]).limit(60).ok();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(got.trim(), BULK.to_string());
    let text = ping.end(Duration::from_mins(1)).stdout;
    assert!(text.contains(" 0% packet loss"), "{text}");
    // rtt min/avg/max/mdev = 0.1/0.2/0.3/0.4 ms
    let longest = text.rsplit_once("= ").and_then(|(_, rest)| rest.split('/').nth(2)?.parse().ok());
    (seconds, longest.unwrap_or_else(|| panic!("no round trip time in {text:?}")))
}

/// The lines that tcpdump makes of a file, which it must find whole.
fn tcpdump(w: &World, path: &str, arguments: &[&str]) -> Vec<String> {
    let mut argv = vec!["tcpdump", "-n", "-r", path];
    argv.extend(arguments);
    let read = w.host.cmd(&argv).limit(60).end();
    assert!(read.code == 0 && !read.stderr.contains("truncated"), "{}", read.stderr);
    read.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn the_file_of_a_short_run_is_whole() {
    World::run(|w| {
        let (file, ping) = (w.path("short.pcapng"), format!("ping -c3 -i0.01 {INET4}"));
        let path = file.to_str().unwrap();
        w.tapway_run(&["--pcap", path], &["sh", "-c", &ping]).ok();
        let lines = tcpdump(w, path, &["icmp"]);
        let requests = lines.iter().filter(|line| line.contains("echo request")).count();
        let replies = lines.iter().filter(|line| line.contains("echo reply")).count();
        assert_eq!((requests, replies), (3, 3), "{lines:#?}");
    });
}

#[test]
fn the_file_can_be_followed_while_it_grows() {
    World::run(|w| {
        let file = w.path("follow.pcapng");
        let path = file.to_str().unwrap();
        let guest = w.guest(&["--pcap", path]);
        guest.sh(&format!("ping -c1 {INET4}"));
        wait_for("the reply in the file", Duration::from_secs(10), || {
            tcpdump(w, path, &["icmp[icmptype] == icmp-echoreply"]).len() == 1
        });
    });
}

#[test]
fn a_reader_that_stalls_stalls_nothing() {
    World::run(|w| {
        bulk_server(&w.internet);
        let (free, _) = fetch(&w.guest::<&str>(&[]));
        // A pipe that is open for reading, and that nobody reads.
        let fifo = w.path("fifo");
        w.host.cmd(&["mkfifo", "-m", "666", fifo.to_str().unwrap()]).ok();
        let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let guest = w.guest(&["--pcap", fifo.to_str().unwrap()]);
        let (stalled, ping) = fetch(&guest);
        assert!(
            stalled < 3.0 * free + 1.0,
            "{BULK} bytes took {stalled:.2} s beside a stalled capture, {free:.2} s without"
        );
        assert!(ping < PING, "a ping beside a stalled capture took {ping} ms");
        // The end waits for the reader, but not for ever.
        w.host.cmd(&["kill", "-TERM", &guest.monitor.pid().to_string()]).ok();
        wait_for("the end of the run", Duration::from_secs(10), || !guest.monitor.alive());
        assert_eq!(w.tapway_pids(), [0; 0], "something of it is left");
        drop(reader);
    });
}

#[test]
fn a_file_size_limit_ends_the_capture_only() {
    World::run(|w| {
        bulk_server(&w.internet);
        let file = w.path("limited.pcapng");
        let path = file.to_str().unwrap();
        let run = format!("ulimit -f 2048; exec {} run --network private --pcap {path} -- bash -ec", w.binary());
        let script = format!("{run} '{}'", fetch_line());
        let ended = w.host.cmd(&["bash", "-c", &script]).unprivileged().limit(60).end();
        assert_eq!((ended.code, ended.stdout.trim()), (0, BULK.to_string().as_str()), "{}", ended.stderr);
        assert!(ended.stderr.contains("the capture ends here"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("the network process died"), "{}", ended.stderr);
    });
}
