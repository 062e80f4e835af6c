//! The API socket: what a request is, what the replies are to the byte, and clients that do not behave.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::helper::{Guest, Helper, ask, raw};
use crate::tools::{at, connect, echo_tcp};
use crate::world::{GATEWAY4, World};

tests! {
    replies_to_the_byte: real ours verb;
    a_request_without_a_protocol: ours;
    a_reply_needs_no_half_close: real ours;
    ports_out_of_range: ours;
    one_reply_in_one_piece: real ours;
    clients_that_misbehave_stop_nothing: ours;
    a_request_in_pieces: ours;
    the_socket_works_under_a_tight_umask: real ours;
}

const LIST: &str = r#"{"execute":"list_hostfwd"}"#;

fn replies_to_the_byte(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--enable-sandbox", "--enable-seccomp"]);
    let add = |arguments: &str| format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#);
    let good = |port: u16| {
        format!(r#""proto":"tcp","host_addr":"127.0.0.1","host_port":{port},"guest_addr":"","guest_port":80"#)
    };
    let error = |why: &str| format!(r#"{{"error":{{"desc":"bad request: {why}"}}}}"#);
    let remove = |id: &str| format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#);
    for (request, reply) in [
        // No JSON, and no object.
        (String::new(), error("cannot parse JSON")),
        ("{".into(), error("cannot parse JSON")),
        ("// {}".into(), error("cannot parse JSON")),
        ("[]".into(), error("json_object() failed")),
        ("1".into(), error("json_object() failed")),
        (r#"{"execute":"list_hostfwd","execute":"list_hostfwd"}"#.into(), error("cannot parse JSON")),
        // No verb, or none of ours.
        (r#"{"arguments":{}}"#.into(), error("no execute found")),
        (r#"{"execute":1}"#.into(), error("no execute found")),
        (r#"{"execute":"List_hostfwd"}"#.into(), error("unknown execute")),
        // Arguments, in the order in which they are looked at.
        (add(r#""proto":"sctp""#), error("add_hostfwd: bad arguments.proto")),
        (add(r#""proto":"TCP""#), error("add_hostfwd: bad arguments.proto")),
        (add(r#""proto":"tcp","host_addr":"x","host_port":0"#), error("add_hostfwd: bad arguments.host_addr")),
        (add(r#""proto":"tcp","host_addr":"1.2.3.4.5""#), error("add_hostfwd: bad arguments.host_addr")),
        (add(r#""proto":"tcp","host_addr":"127.0.0.1""#), error("add_hostfwd: bad arguments.host_port")),
        (add(r#""proto":"tcp","host_port":"80""#), error("add_hostfwd: bad arguments.host_port")),
        (add(r#""proto":"tcp","host_port":0"#), error("add_hostfwd: bad arguments.host_port")),
        (add(r#""proto":"tcp","host_port":8080,"guest_addr":"x""#), error("add_hostfwd: bad arguments.guest_addr")),
        (add(r#""proto":"tcp","host_port":8080"#), error("add_hostfwd: bad arguments.guest_port")),
        (add(r#""proto":"tcp","host_port":8080,"guest_port":0"#), error("add_hostfwd: bad arguments.guest_port")),
        (remove("1"), error("remove_hostfwd: bad arguments.id")),
        (remove("0"), error("remove_hostfwd: bad arguments.id")),
        (remove(r#""1""#), error("remove_hostfwd: bad arguments.id")),
        // What is tolerated: a mark, white space, unknown keys, anything behind the object.
        (format!("\u{feff} \n{}\n", add(&good(8080))), r#"{"return":{"id":1}}"#.into()),
        (add(&(good(8081) + r#","colour":"blue""#)), r#"{"return":{"id":2}}"#.into()),
        (add(&good(8082)) + " garbage", r#"{"return":{"id":3}}"#.into()),
        (add(&good(8083)) + &add(&good(8084)), r#"{"return":{"id":4}}"#.into()),
        (add(&good(8083)), error("add_hostfwd: slirp_add_hostfwd failed")),
        (remove("2"), r#"{"return":{}}"#.into()),
        (remove("2"), error("remove_hostfwd: bad arguments.id")),
        (remove("3.7"), r#"{"return":{}}"#.into()),
    ] {
        let got = raw(&guest.api, request.as_bytes());
        // A verb that is nobody's: behind that program's words comes the code that all other verbs' errors have here.
        let code = reply.contains("unknown execute") && !helper.is_real();
        let reply = if code { reply.replace("\"}}", "\",\"code\":\"unknown_verb\"}}") } else { reply };
        assert_eq!(got, reply, "{request}");
    }
    let entry = |id: u32, port: u16| {
        format!(
            r#"{{"id":{id},"proto":"tcp","host_addr":"127.0.0.1","host_port":{port},"guest_addr":"10.0.2.100","guest_port":80}}"#
        )
    };
    let entries = format!(r#""entries":[{},{}]"#, entry(1, 8080), entry(4, 8083));
    let list = raw(&guest.api, LIST.as_bytes());
    if helper.is_real() {
        assert_eq!(list, format!("{{{entries}}}"));
    } else {
        // For those who read what it does, and for those who read what it says it does.
        assert!(list.contains(&entries), "{list}");
        let parsed = ask(&guest.api, LIST);
        assert_eq!(parsed["entries"], parsed["return"]["entries"]);
    }
    // The longest request, and one byte more.
    let padded = |length: usize| format!("{LIST}{}", " ".repeat(length - LIST.len()));
    assert_eq!(raw(&guest.api, padded(4095).as_bytes()), list);
    assert_eq!(raw(&guest.api, padded(4096).as_bytes()), error("too large message"));
}

/// Upstream dies of a segmentation fault.
fn a_request_without_a_protocol(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    for arguments in ["{}", r#"{"host_port":80}"#, r#"{"proto":null}"#, r#"{"proto":6}"#, "null", "[]", "1"] {
        let reply = ask(&guest.api, &format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#));
        assert_eq!(reply["error"]["desc"], "bad request: add_hostfwd: bad arguments.proto", "{arguments}");
    }
    let reply = ask(&guest.api, r#"{"execute":"add_hostfwd"}"#);
    assert!(reply["error"]["desc"].as_str().is_some_and(|desc| desc.starts_with("bad request: ")), "{reply}");
    guest.sh("ping -c1 -W5 10.0.2.2");
}

fn a_reply_needs_no_half_close(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    for request in [LIST.to_owned(), format!("{LIST}\n"), "{}".into(), "nonsense\n".into()] {
        let mut stream = UnixStream::connect(&guest.api).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap_or_else(|e| panic!("{request:?}: {e} after {reply:?}"));
        assert!(reply.starts_with('{') && reply.ends_with('}'), "{request:?}: {reply:?}");
    }
}

/// Upstream takes the low sixteen bits.
fn ports_out_of_range(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    for (key, port) in [("host_port", "73620"), ("host_port", "-5"), ("host_port", "1e300"), ("guest_port", "65536")] {
        let other = if key == "host_port" { "guest_port" } else { "host_port" };
        let arguments = format!(r#"{{"proto":"tcp","{key}":{port},"{other}":8080}}"#);
        let reply = ask(&guest.api, &format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#));
        assert_eq!(reply["error"]["desc"], format!("bad request: add_hostfwd: bad arguments.{key}"), "{arguments}");
    }
    assert_eq!(ask(&guest.api, LIST)["entries"].as_array().map(Vec::len), Some(0));
}

/// Podman reads once, 2048 bytes at most, and parses what it got.
fn one_reply_in_one_piece(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    for port in 1..=10u16 {
        guest.forward("tcp", at([127, 0, 0, 1], 9000 + port), port);
    }
    let mut stream = UnixStream::connect(&guest.api).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(format!("{LIST}\n").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = [0; 8192];
    let n = stream.read(&mut reply).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&reply[..n]).unwrap();
    assert_eq!(list["entries"].as_array().map(Vec::len), Some(10));
    assert_eq!(stream.read(&mut reply).unwrap(), 0);
}

/// The longest time that a small question over TCP took, of those asked one after the other for this long.
fn longest_turn(guest: &Guest, port: u16, stop: &AtomicBool) -> Duration {
    let mut stream = connect(guest.ns(), at(GATEWAY4, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        longest = longest.max(begin.elapsed());
    }
    longest
}

/// Things that a client must not do.
fn misbehave(api: &Path) -> Vec<UnixStream> {
    let open = || {
        let stream = UnixStream::connect(api).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    // Silent ones; half a request; a megabyte and more of nothing; a question whose answer nobody reads.
    let mut clients: Vec<UnixStream> = (0..5).map(|_| open()).collect();
    for text in [&b"{"[..], b"{\"execute\":", &[b'['; 4000], &[0xff; 100], &vec![b' '; 1 << 20], &vec![0; 4 << 20]] {
        let mut client = open();
        for piece in text.chunks(64 << 10) {
            let _ = client.write_all(piece);
        }
        clients.push(client);
    }
    for _ in 0..10 {
        let mut client = open();
        let _ = client.write_all(LIST.as_bytes());
        clients.push(client);
        // Gone in the middle.
        let mut client = open();
        let _ = client.write_all(b"{\"execute\":\"add_hostfwd\",");
        drop(client);
    }
    clients
}

fn clients_that_misbehave_stop_nothing(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--enable-sandbox", "--enable-seccomp"]);
    echo_tcp(&w.host, at([127, 0, 0, 1], 7000));
    for port in 0..20 {
        guest.forward("tcp", at([127, 0, 0, 1], 9000 + port), 80);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let slowest = std::thread::scope(|scope| {
        let turns = scope.spawn(|| longest_turn(&guest, 7000, &stop));
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.extend(misbehave(&guest.api));
            let begin = Instant::now();
            let reply = raw(&guest.api, LIST.as_bytes());
            assert!(reply.contains("entries"), "{reply}");
            assert!(begin.elapsed() < Duration::from_secs(2), "another client waited {:?}", begin.elapsed());
        }
        // A hundred more at once, all in good order.
        let many: Vec<_> = (0..100).map(|_| scope.spawn(|| raw(&guest.api, LIST.as_bytes()).len())).collect();
        let lengths: Vec<_> = many.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(lengths.iter().all(|&length| length == lengths[0] && length > 100), "{lengths:?}");
        stop.store(true, Ordering::Relaxed);
        turns.join().unwrap()
    });
    // Two processors, and all of this on them: a turn takes microseconds when nothing stands in the way.
    assert!(slowest < Duration::from_millis(150), "the traffic stood still for {slowest:?}");
}

/// Upstream takes the first piece for all of it.
fn a_request_in_pieces(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    let mut stream = UnixStream::connect(&guest.api).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for piece in LIST.as_bytes().chunks(1) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("entries"), "{reply}");
}

fn the_socket_works_under_a_tight_umask(w: &World, helper: &Helper) {
    let target = crate::helper::Target::new(w);
    let path = w.path("tight");
    let shell = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let args = ["-c", "-a", path.to_str().unwrap(), &target.pid.to_string(), "tap0"];
    let _running = helper.with(&args).through(&shell).ready();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    assert!(raw(&path, LIST.as_bytes()).contains("entries"));
}
