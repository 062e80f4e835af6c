//! iperf3 in both directions, both families, both protocols, at both MTUs, watching for stalls.
//!
//! Windows are the kernel's defaults; the receiver's own record decides, in intervals of 100 ms.

use serde_json::Value;

use crate::world::{INET4, INET6, World};

/// The longest pause that is no stall, seconds. Two silent intervals side by side are at least this.
const STALL: f64 = 0.2;

/// One measurement. `reverse`: host to guest. Returns the receiver's record.
fn iperf(w: &World, guest: &crate::world::Guest, server: &str, extra: &[&str]) -> Value {
    let mut serve = w.internet.cmd(&["iperf3", "-s", "-1", "-J", "-i", "0.1"]).limit(60).spawn();
    w.internet.await_listener(5201);
    let mut argv = vec!["iperf3", "-c", server, "-t", "3", "-i", "0.1", "-J"];
    argv.extend(extra);
    let client = guest.cmd(&argv).limit(60).end();
    assert!(client.code == 0, "{argv:?}: {}{}", client.stdout, client.stderr);
    let text = if extra.contains(&"-R") {
        let _ = serve.child.wait();
        client.stdout
    } else {
        serve.end(std::time::Duration::from_secs(20)).stdout
    };
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{argv:?}: {e}: {text}"))
}

/// The longest run of intervals in which the receiver got nothing, seconds.
fn longest_pause(record: &Value) -> f64 {
    let (mut run, mut longest) = (0.0, 0.0f64);
    let intervals = record["intervals"].as_array().expect("intervals");
    assert!(intervals.len() >= 20, "{} intervals in 3 s", intervals.len());
    for interval in intervals {
        let sum = &interval["sum"];
        run = if sum["bytes"].as_u64() == Some(0) { run + sum["seconds"].as_f64().unwrap() } else { 0.0 };
        longest = longest.max(run);
    }
    longest
}

fn tcp(w: &World, mtu: &str) {
    let guest = w.guest(&["--mtu", mtu]);
    assert_eq!(
        guest.sh("cat /proc/sys/net/ipv4/tcp_rmem"),
        w.internet.sh("cat /proc/sys/net/ipv4/tcp_rmem"),
        "the guest's buffers are not the kernel's default"
    );
    for server in [INET4.to_string(), INET6.to_string()] {
        for extra in [&[][..], &["-R"], &["-P", "4"], &["-R", "-P", "4"]] {
            let record = iperf(w, &guest, &server, extra);
            let bytes = record["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
            assert!(bytes > 10_000_000, "MTU {mtu}, {server} {extra:?}: only {bytes} bytes in 3 s");
            let pause = longest_pause(&record);
            assert!(pause < STALL, "MTU {mtu}, {server} {extra:?}: nothing arrived for {pause:.1} s");
        }
    }
}

fn udp(w: &World, mtu: &str) {
    let guest = w.guest(&["--mtu", mtu]);
    for server in [INET4.to_string(), INET6.to_string()] {
        for extra in [&["-u", "-b", "80M", "-l", "1200"][..], &["-u", "-b", "80M", "-l", "1200", "-R"]] {
            // Nothing is lost on an idle machine; a busy one with two CPUs may drop a burst, but not each time.
            let tries = (0..3).map(|_| {
                let record = iperf(w, &guest, &server, extra);
                let sum = &record["end"]["sum"];
                let lost = sum["lost_percent"].as_f64().expect("lost_percent");
                (sum["packets"].as_u64().unwrap_or(0), lost)
            });
            // 80 Mbit/s for 3 s are 25 000 datagrams.
            let mut seen = Vec::new();
            let kept = tries.inspect(|one| seen.push(*one)).any(|(packets, lost)| packets > 15_000 && lost < 10.0);
            assert!(kept, "MTU {mtu}, {server} {extra:?}: datagrams and percent lost {seen:?}");
        }
    }
}

#[test]
fn tcp_at_mtu_1500() {
    World::run(|w| tcp(w, "1500"));
}

#[test]
fn tcp_at_mtu_65520() {
    World::run(|w| tcp(w, "65520"));
}

#[test]
fn udp_at_mtu_1500() {
    World::run(|w| udp(w, "1500"));
}

#[test]
fn udp_at_mtu_65520() {
    World::run(|w| udp(w, "65520"));
}
