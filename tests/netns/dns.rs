//! DNS at the DNS address: sizes, transports, several upstreams, and following the host's resolv.conf.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::tools::{at, listen, serve, udp};
use crate::world::{DNS4, Guest, INET4, INET6, Ns, World, wait_for};

/// How often a [`dns_server`] was asked.
pub struct Asked {
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
}

/// An authoritative server for everything. `sizeN.test` is answered with a message of exactly N bytes, any other name
/// with the text `mark`; what does not fit the client's buffer is cut with TC set, as RFC 1035 and 6891 say.
pub fn dns_server(ns: &Ns, addr: SocketAddr, mark: &'static str) -> Asked {
    let socket = udp(ns, addr);
    socket.set_read_timeout(None).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    thread::spawn(move || {
        let mut query = [0; 4096];
        loop {
            let Ok((n, peer)) = socket.recv_from(&mut query) else { continue };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(answer) = answer(&query[..n], mark, true) {
                let _ = socket.send_to(&answer, peer);
            }
        }
    });
    let tcp = serve(listen(ns, addr), move |mut stream, _| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut query).is_err() {
                return;
            }
            let Some(answer) = answer(&query, mark, false) else { return };
            let mut message = u16::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
            message.extend(answer);
            if stream.write_all(&message).is_err() {
                return;
            }
        }
    });
    Asked { udp: asked, tcp }
}

fn answer(query: &[u8], mark: &str, datagram: bool) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut at = 12;
    loop {
        let n = usize::from(*query.get(at)?);
        at += 1;
        if n == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(query.get(at..at + n)?).to_ascii_lowercase());
        at += n;
    }
    let question = query.get(12..at + 4)?;
    // An OPT record is the only thing that follows a question here: its class is the client's buffer.
    let edns = u16::from_be_bytes(query[10..12].try_into().ok()?) > 0;
    let buffer = if edns { usize::from(u16::from_be_bytes(query.get(at + 7..at + 9)?.try_into().ok()?)) } else { 512 };
    let opt: &[u8] = if edns { &[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
    let header = |tc: bool, answers: u16| {
        let flags: u16 = 0x8580 | if tc { 0x0200 } else { 0 };
        let mut m = query[..2].to_vec();
        m.extend(flags.to_be_bytes());
        for count in [1, answers, 0, u16::from(edns)] {
            m.extend(u16::to_be_bytes(count));
        }
        m.extend(question);
        m
    };
    let text = match name[0].strip_prefix("size").and_then(|n| n.parse::<usize>().ok()) {
        Some(size) => {
            let mut left = size.checked_sub(12 + question.len() + 12 + opt.len())?;
            let mut text = Vec::new();
            while left > 0 {
                let piece = left.min(256);
                text.push(u8::try_from(piece - 1).unwrap());
                text.extend((1..piece).map(|i| b'a' + (i % 26) as u8));
                left -= piece;
            }
            text
        }
        None => [&[u8::try_from(mark.len()).unwrap()][..], mark.as_bytes()].concat(),
    };
    let mut message = header(false, 1);
    message.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0]);
    message.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    message.extend(text);
    message.extend(opt);
    if datagram && message.len() > buffer {
        message = header(true, 0);
        message.extend(opt);
    }
    Some(message)
}

/// What dig printed, with its exit code.
fn dig(guest: &Guest, args: &[&str]) -> (i32, String) {
    let ended = guest.cmd(&[&["dig", "+tries=1", "+time=12", "-t", "TXT"], args].concat()).end();
    (ended.code, ended.stdout)
}

/// What the name `who.test` is: the mark of the server that was asked, or nothing.
fn who(guest: &Guest) -> String {
    let (_, out) = dig(guest, &["+short", "who.test"]);
    out.trim().trim_matches('"').to_owned()
}

fn received(out: &str) -> usize {
    let size = out.lines().find_map(|l| l.split_once("rcvd: ")?.1.trim().parse().ok());
    size.unwrap_or_else(|| panic!("dig printed\n{out}"))
}

#[test]
fn answers_of_every_size() {
    World::run(|w| {
        let asked = dns_server(&w.internet, at(INET4, 53), "outside");
        let guest = w.guest::<&str>(&[]);
        let dns6 = format!("@{}", guest.dns6());
        for server in ["@10.0.2.3", &dns6] {
            for size in [100, 1400, 4000] {
                let name = format!("size{size}.test");
                let (code, out) = dig(&guest, &[server, &name, "+bufsize=4096", "+nocookie"]);
                assert_eq!((code, received(&out)), (0, size), "{out}");
                let (code, out) = dig(&guest, &[server, &name, "+tcp", "+nocookie"]);
                assert_eq!((code, received(&out)), (0, size), "{out}");
                assert!(out.contains("(TCP)"), "{out}");
                // A small buffer: first "truncated", and dig itself comes again by TCP.
                let (code, out) = dig(&guest, &[server, &name, "+bufsize=512", "+nocookie"]);
                assert_eq!((code, received(&out)), (0, size), "{out}");
                let (code, out) = dig(&guest, &[server, &name, "+bufsize=512", "+ignore", "+nocookie"]);
                let flags = out.lines().find(|l| l.starts_with(";; flags:")).unwrap_or_default();
                assert_eq!(code, 0, "{out}");
                assert_eq!(flags.split(';').nth(2).unwrap_or_default().contains(" tc"), size > 512, "{out}");
                // Without EDNS at all.
                let (code, out) = dig(&guest, &[server, &name, "+noedns", "+nocookie"]);
                // The server leaves its OPT record out too, and fills the 11 bytes with text.
                assert_eq!((code, received(&out)), (0, size), "{out}");
            }
        }
        assert!(asked.udp.load(Ordering::Relaxed) > 0 && asked.tcp.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn names_resolve_without_being_told_how() {
    World::run(|w| {
        dns_server(&w.internet, at(INET4, 53), "outside");
        let guest = w.guest::<&str>(&[]);
        let conf = guest.sh("cat /etc/resolv.conf");
        assert!(conf.contains(&format!("nameserver {DNS4}")), "{conf}");
        assert_eq!(who(&guest), "outside");
    });
}

#[test]
fn dns_option_names_the_upstream() {
    World::run(|w| {
        dns_server(&w.internet, at(INET4, 53), "the host's");
        w.internet.sh("ip addr add 198.51.100.53/24 dev up0");
        dns_server(&w.internet, "198.51.100.53:53".parse().unwrap(), "chosen");
        let guest = w.guest(&["--dns", "198.51.100.53"]);
        assert_eq!(who(&guest), "chosen");
    });
}

#[test]
fn an_ipv6_upstream() {
    World::run(|w| {
        dns_server(&w.internet, at(INET6, 53), "six");
        w.host_resolv_conf(&format!("nameserver {INET6}\n"));
        let guest = w.guest::<&str>(&[]);
        assert_eq!(who(&guest), "six");
    });
}

/// systemd-resolved and friends listen on the host's loopback only; the DNS address reaches them although the
/// guest itself must not.
#[test]
fn a_stub_on_the_hosts_loopback() {
    World::run(|w| {
        dns_server(&w.host, "127.0.0.53:53".parse().unwrap(), "stub");
        w.host_resolv_conf("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n");
        let guest = w.guest::<&str>(&[]);
        assert_eq!(who(&guest), "stub");
        let (_, out) = dig(&guest, &["+short", "+tcp", "who.test"]);
        assert_eq!(out.trim(), "\"stub\"");
    });
}

/// The first server that answers is taken, in order: a silent one and a closed one cost time, not the answer.
#[test]
fn several_upstreams_in_order() {
    World::run(|w| {
        w.router.sh("ip route add blackhole 198.51.100.66/32");
        let last = dns_server(&w.internet, at(INET4, 53), "last");
        w.internet.sh("ip addr add 198.51.100.53/24 dev up0");
        w.host_resolv_conf("nameserver 198.51.100.66\nnameserver 198.51.100.53\nnameserver 198.51.100.2\n");
        let guest = w.guest::<&str>(&[]);
        // .66 is silent, nothing listens on .53.
        assert_eq!(who(&guest), "last");
        let (_, out) = dig(&guest, &["+short", "+tcp", "who.test"]);
        assert_eq!(out.trim(), "\"last\"", "over TCP");
        // When the second one is there, the third has nothing to do.
        dns_server(&w.internet, "198.51.100.53:53".parse().unwrap(), "second");
        let before = last.udp.load(Ordering::Relaxed);
        assert_eq!(who(&guest), "second");
        assert_eq!(last.udp.load(Ordering::Relaxed), before, "the third server was asked before the second had failed");
    });
}

/// Every change of the host's resolv.conf is followed within this time, a run of dig included.
const SOON: Duration = Duration::from_secs(1);

fn two_servers(w: &World) {
    dns_server(&w.internet, at(INET4, 53), "one");
    w.internet.sh("ip addr add 198.51.100.53/24 dev up0");
    dns_server(&w.internet, "198.51.100.53:53".parse().unwrap(), "two");
}

const ONE: &str = "nameserver 198.51.100.2\n";
const TWO: &str = "nameserver 198.51.100.53\n";

#[test]
fn follows_a_rename_over() {
    World::run(|w| {
        two_servers(w);
        w.host_resolv_conf(ONE);
        let guest = w.guest::<&str>(&[]);
        assert_eq!(who(&guest), "one");
        w.host_resolv_conf(TWO);
        wait_for("the second server", SOON, || who(&guest) == "two");
        // Written in place, too.
        fs::write("/etc/resolv.conf", ONE).unwrap();
        wait_for("the first server again", SOON, || who(&guest) == "one");
        // And a second rename: the watch must not stick to the first inode.
        w.host_resolv_conf(TWO);
        wait_for("the second server again", SOON, || who(&guest) == "two");
    });
}

#[test]
fn follows_a_retargeted_symlink() {
    World::run(|w| {
        two_servers(w);
        let dir = w.path("res");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), ONE).unwrap();
        fs::write(dir.join("b"), TWO).unwrap();
        // Two links: /etc/resolv.conf -> res/link -> a.
        symlink("a", dir.join("link")).unwrap();
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink(dir.join("link"), "/etc/resolv.conf").unwrap();
        let guest = w.guest::<&str>(&[]);
        assert_eq!(who(&guest), "one");
        symlink("b", dir.join("new")).unwrap();
        fs::rename(dir.join("new"), dir.join("link")).unwrap();
        wait_for("the second server", SOON, || who(&guest) == "two");
        // The first link of the chain.
        symlink(dir.join("a"), "/etc/resolv.conf.new").unwrap();
        fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").unwrap();
        wait_for("the first server again", SOON, || who(&guest) == "one");
    });
}

#[test]
fn follows_a_swapped_directory() {
    World::run(|w| {
        two_servers(w);
        for (dir, text) in [("current", ONE), ("next", TWO)] {
            fs::create_dir(w.path(dir)).unwrap();
            fs::write(w.path(dir).join("resolv.conf"), text).unwrap();
        }
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink(w.path("current/resolv.conf"), "/etc/resolv.conf").unwrap();
        let guest = w.guest::<&str>(&[]);
        assert_eq!(who(&guest), "one");
        fs::rename(w.path("current"), w.path("old")).unwrap();
        fs::rename(w.path("next"), w.path("current")).unwrap();
        wait_for("the second server", SOON, || who(&guest) == "two");
        // A file in the new directory counts from now on.
        fs::write(w.path("current/resolv.conf.new"), ONE).unwrap();
        fs::rename(w.path("current/resolv.conf.new"), w.path("current/resolv.conf")).unwrap();
        wait_for("the first server again", SOON, || who(&guest) == "one");
    });
}

/// A laptop before its network is up. No public server is invented: the answer is SERVFAIL until there is a file.
#[test]
fn absent_at_start() {
    World::run(|w| {
        two_servers(w);
        fs::remove_file("/etc/resolv.conf").unwrap();
        let guest = w.guest::<&str>(&[]);
        let (_, out) = dig(&guest, &["who.test"]);
        assert!(out.contains("status: SERVFAIL"), "{out}");
        w.host_resolv_conf(ONE);
        wait_for("the first server", SOON, || who(&guest) == "one");
        fs::remove_file("/etc/resolv.conf").unwrap();
        w.host_resolv_conf(TWO);
        wait_for("the second server", SOON, || who(&guest) == "two");
    });
}

#[test]
fn a_dangling_symlink_at_start() {
    World::run(|w| {
        two_servers(w);
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink(w.path("later/resolv.conf"), "/etc/resolv.conf").unwrap();
        let guest = w.guest::<&str>(&[]);
        let conf = guest.sh("cat /etc/resolv.conf");
        assert!(conf.contains(&format!("nameserver {DNS4}")), "{conf}");
        fs::create_dir(w.path("later")).unwrap();
        fs::write(w.path("later/resolv.conf"), ONE).unwrap();
        wait_for("the first server", SOON, || who(&guest) == "one");
    });
}

/// Two hundred names at once, over UDP: none may be lost or mixed up.
#[test]
fn many_at_once() {
    World::run(|w| {
        dns_server(&w.internet, at(INET4, 53), "outside");
        let guest = w.guest::<&str>(&[]);
        let socket = udp(&guest.ns, at(Ipv4Addr::UNSPECIFIED, 0));
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        let query = |id: u16| {
            let mut m = id.to_be_bytes().to_vec();
            m.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            let label = format!("name{id}");
            m.push(u8::try_from(label.len()).unwrap());
            m.extend(label.as_bytes());
            m.extend(b"\x04test\x00\x00\x10\x00\x01");
            m
        };
        for id in 0..200 {
            socket.send_to(&query(id), at(DNS4, 53)).unwrap();
        }
        let mut missing: std::collections::BTreeSet<u16> = (0..200).collect();
        let mut bytes = [0; 1024];
        while !missing.is_empty() {
            let Ok((n, _)) = socket.recv_from(&mut bytes) else { break };
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            let sent = query(id);
            assert_eq!(bytes[12..sent.len()], sent[12..], "the answer to {id} has another question");
            assert!(n > sent.len(), "the answer to {id} is empty: rcode {}", bytes[3] & 15);
            missing.remove(&id);
        }
        assert!(missing.is_empty(), "no answer to {missing:?}");
    });
}
