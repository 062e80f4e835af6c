//! Disks: full, and so slow that writing to them does not end.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;

use super::{network_pid, rests};
use crate::control::done;
use crate::named::create;
use crate::tools::{at, connect, echo_tcp};
use crate::world::{Guest, INET4, World, wait_for};

fn works(guest: &Guest) {
    let mut stream = connect(&guest.ns, at(INET4, 7000)).unwrap();
    stream.write_all(b"still there?").unwrap();
    let mut got = [0; 12];
    stream.read_exact(&mut got).unwrap();
}

/// Fills what is left of a file system.
fn fill(w: &World, dir: &str) {
    w.host.sh(&format!("cat /dev/zero > {dir}/filler 2>/dev/null || true; df {dir} >&2"));
}

#[test]
fn a_full_runtime_directory() {
    World::run(|w| {
        w.host.sh("mount -t tmpfs -o size=256k,mode=700 tmpfs /mnt/run");
        echo_tcp(&w.internet, at(INET4, 7000));
        let guest = w.guest(&["--name", "site"]);
        fill(w, "/mnt/run");
        works(&guest);
        // What is there goes on, and changes whose record cannot be written hold all the same.
        w.tapway(&["publish", "site", "127.0.0.1:8000:7000"]).ok();
        assert_eq!(done(w, "list_ports", json!({}))["ports"].as_array().unwrap().len(), 1);
        works(&guest);
        // The network process dies, and comes back without the disk.
        let pid = network_pid(w, "site");
        w.host.sh(&format!("kill -KILL {pid}"));
        wait_for("another network process", Duration::from_secs(10), || network_pid(w, "site") != pid);
        works(&guest);
        // Nothing new begins by mistake: it says which file and why.
        for words in [
            &["run", "--network", "private", "--name", "two", "--", "true"][..],
            &["run", "--network", "bridge", "--name", "two", "--", "true"],
        ] {
            let ended = w.tapway(words).end();
            assert!(
                ended.code == 1 && ended.stderr.contains("No space left"),
                "{words:?}: {} {}",
                ended.code,
                ended.stderr
            );
            assert!(ended.stderr.contains("/mnt/run/"), "{}", ended.stderr);
        }
        w.host.sh("rm /mnt/run/filler");
        w.tapway(&["run", "--network", "bridge", "--name", "two", "--", "true"]).ok();
        w.tapway(&["stop", "site"]).ok();
        let left = w.host.sh("find /mnt/run/tapway/sandboxes -type f -o -type s");
        assert_eq!(left, "", "half a file is left behind");
    });
}

#[test]
fn a_full_state_directory() {
    World::run(|w| {
        w.host.sh("mkdir -p /mnt/home/state; mount -t tmpfs -o size=512k,mode=700 tmpfs /mnt/home/state");
        echo_tcp(&w.internet, at(INET4, 7000));
        create(w, &["kept"]);
        fill(w, "/mnt/home/state");
        let refused = w.tapway(&["network", "create", "late"]).end();
        assert!(refused.code != 0 && refused.stderr.contains("No space left"), "{}", refused.stderr);
        let known = w.tapway(&["network", "ls"]).ok();
        assert!(known.contains("kept") && !known.contains("late"), "{known}");
        // A detached sandbox, whose log cannot be written: it says so and does not begin, or it goes on without.
        let begun = w
            .tapway(&[
                "run",
                "--detach",
                "--network",
                "private",
                "--name",
                "quiet",
                "--",
                "sh",
                "-c",
                "while :; do echo x; sleep 0.01; done",
            ])
            .end();
        eprintln!("detached on a full disk: {} {}", begun.code, begun.stderr);
        if begun.code == 0 {
            std::thread::sleep(Duration::from_secs(1));
            assert!(w.tapway(&["ps"]).ok().contains("quiet"));
            w.tapway(&["stop", "--time", "1", "quiet"]).end();
        } else {
            assert!(begun.stderr.contains("No space left"), "{}", begun.stderr);
        }
        w.host.sh("rm /mnt/home/state/filler");
        create(w, &["late"]);
    });
}

/// A capture whose disk is full ends with a word that says so; frames do not notice.
#[test]
fn a_capture_on_a_full_disk() {
    World::run(|w| {
        w.host.sh("mkdir /mnt/small; mount -t tmpfs -o size=64k,mode=777 tmpfs /mnt/small");
        echo_tcp(&w.internet, at(INET4, 7000));
        let guest = w.guest(&["--name", "site"]);
        let capture = w.tapway(&["capture", "site", "/mnt/small/all.pcapng"]).spawn();
        wait_for("the capture", Duration::from_secs(5), || {
            !done(w, "list_captures", json!({}))["captures"].as_array().unwrap().is_empty()
        });
        for _ in 0..5 {
            let mut stream = connect(&guest.ns, at(INET4, 7000)).unwrap();
            stream.write_all(&vec![7; 60_000]).unwrap();
            stream.read_exact(&mut vec![0; 60_000]).unwrap();
        }
        let ended = capture.end(Duration::from_secs(10));
        assert!(ended.code == 1 && ended.stderr.contains("No space left"), "{} {}", ended.code, ended.stderr);
        works(&guest);
        // What is there can be read up to where it ends.
        w.host.sh("tcpdump -r /mnt/small/all.pcapng -c 3 >/dev/null");
    });
}

/// Standard error of everything leads to a reader that has stopped reading: the log waits, traffic does not.
#[test]
fn a_log_that_nobody_reads() {
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 7000));
        w.host.sh("mkfifo -m 666 /mnt/log");
        // Opened for both, so that it has a reader, who never reads.
        let held = std::fs::OpenOptions::new().read(true).write(true).open("/mnt/log").unwrap();
        assert!(held.as_raw_fd() > 2);
        let line = "exec 2>/mnt/log; exec \"$0\" run -vvvv --network private --name loud -- sleep 1000";
        let monitor = w.host.cmd(&["sh", "-c", line, w.binary()]).unprivileged().spawn();
        wait_for("the sandbox", Duration::from_secs(20), || w.tapway(&["ps"]).end().stdout.contains("loud"));
        let enter = |command: &str| w.tapway(&["exec", "loud", "sh", "-c", command]).limit(60).end();
        // Nothing more fits.
        fcntl(&held, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        for size in [4096, 1] {
            while (&held).write(&vec![b'.'; size]).is_ok() {}
        }
        fcntl(&held, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let full = waiting_bytes(&held);
        assert!(full >= 60_000, "{full}");
        // The monitor and both threads of the network process have something to say.
        for number in 1..4 {
            w.host_resolv_conf(&format!("nameserver 203.0.113.{number}\n"));
            let ended = enter("ping -q -c3 -i0.01 -W2 10.0.2.2; dig +tries=1 +time=3 @10.0.2.3 localhost");
            assert!(
                ended.stdout.contains("3 received") && ended.stdout.contains("NOERROR"),
                "{number}: {}",
                ended.stdout
            );
        }
        assert!(waiting_bytes(&held) >= full);
        rests(network_pid(w, "loud"), "with a log that nobody reads");
        // When it is read again, it says that something is missing.
        let mut log = String::new();
        let mut bytes = vec![0; 128 * 1024];
        wait_for("the number of lines that are missing", Duration::from_secs(10), || {
            if waiting_bytes(&held) > 0 {
                let read = (&held).read(&mut bytes).unwrap();
                log.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            w.tapway(&["ctl", "loud", r#"{"execute":"set_log_level","arguments":{"level":"trace"}}"#]).ok();
            w.host_resolv_conf(&format!("nameserver 203.0.113.{}\n", log.len() % 250 + 1));
            log.contains("lines of the log are missing here")
        });
        w.tapway(&["stop", "--time", "1", "loud"]).ok();
        drop(monitor);
    });
}

#[allow(unsafe_code, reason = "FIONREAD has no safe wrapper")]
fn waiting_bytes(pipe: &std::fs::File) -> i32 {
    let mut waiting = 0;
    // SAFETY: FIONREAD writes one int.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) }, 0);
    waiting
}
