//! The same requests to the original and to us; the replies are compared byte for byte.
//!
//! Deliberate differences, each with its reason, are [`Expect`]ed where they are asked for; anything else that differs is
//! a failure. Requests that kill the original come last, one original each.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tapway::api::server::Limits;

use crate::served::{Served, ask, fresh_path};

/// How our reply relates to the original's.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// To the byte.
    Same,
    /// Ours has the entries in `return` as well, as the original's manual says.
    BothLists,
    /// Ours is this one.
    Ours(&'static str),
}
use Expect::{BothLists, Ours, Same};

const BAD_JSON: &str = r#"{"error":{"desc":"bad request: cannot parse JSON"}}"#;
const BAD_HOST_PORT: &str = r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port"}}"#;
const BAD_PROTO: &str = r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.proto"}}"#;

/// A process of the test, killed with it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The original, in a namespace of its own.
struct Original {
    path: PathBuf,
    _helper: Killed,
    _namespace: Killed,
}

impl Drop for Original {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A command with everything that the test leaves open closed by exec, as an ordinary user where we are root.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        let ids = ordinary_user();
        command.uid(ids.0).gid(ids.1);
    }
    command
}

/// The first user of /etc/passwd that is a person.
fn ordinary_user() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    let person = ids.into_iter().find(|&(uid, _): &(u32, u32)| (1000..60_000).contains(&uid));
    person.expect("this test needs an ordinary user, or to be one")
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl Original {
    /// None where the program is not installed.
    fn start() -> Option<Self> {
        let installed = command("slirp4netns").arg("--version").status().is_ok_and(|status| status.success());
        if !installed {
            eprintln!("SKIPPED: slirp4netns is not installed, its replies are not compared");
            return None;
        }
        let namespace = Killed(command("unshare").args(["-r", "-n", "sleep", "600"]).spawn().unwrap());
        let pid = namespace.0.id();
        wait_until("a network namespace", || {
            let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            let sleeping =
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep");
            sleeping && link(&pid.to_string()) != link("self")
        });
        let path = fresh_path();
        let mut helper = command("slirp4netns");
        helper.args(["--api-socket", path.to_str()?, &pid.to_string(), "tap0"]);
        let helper = Killed(helper.spawn().unwrap());
        wait_until("the original's API socket", || UnixStream::connect(&path).is_ok());
        Some(Self { path, _helper: helper, _namespace: namespace })
    }
}

/// `add_hostfwd` with these arguments after changing `from` into `to`.
fn add(port: u16, from: &str, to: &str) -> Vec<u8> {
    let good = format!(
        r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"127.0.0.1","host_port":{port},"guest_addr":"10.0.2.100","guest_port":80}}}}"#
    );
    assert!(good.contains(from), "{from}");
    good.replacen(from, to, 1).into_bytes()
}

fn remove(id: &str) -> Vec<u8> {
    format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#).into_bytes()
}

/// Every request, in order, with `p` for ports that are free.
fn requests(p: &[u16]) -> Vec<(Vec<u8>, Expect)> {
    let list = br#"{"execute":"list_hostfwd"}"#;
    let raw = |text: &str| text.as_bytes().to_vec();
    let around = |before: &[u8], after: &[u8]| [before, list, after].concat();
    let port = p[0];
    let mut all = vec![
        // What is no request.
        (raw(" "), Same),
        (raw("\n"), Same),
        (raw("{"), Same),
        (raw("null"), Same),
        (raw("[]"), Same),
        (raw("\"x\""), Same),
        (raw("1"), Same),
        (raw("true"), Same),
        (raw("{}"), Same),
        (raw(r#"{"execute":1}"#), Same),
        (raw(r#"{"execute":null}"#), Same),
        (raw(r#"{"execute":""}"#), Same),
        (raw(r#"{"execute":"get_information"}"#), Same),
        (raw(r#"{"Execute":"list_hostfwd"}"#), Same),
        (raw("{'execute':'list_hostfwd'}"), Same),
        (raw(r#"{"execute":"list_hostfwd",}"#), Same),
        (raw(r#"{"execute":"list_hostfwd""#), Same),
        (raw(r#"{"execute":"list_hostfwd","execute":"x"}"#), Same),
        (raw(r#"{"a":1,"a":2,"execute":"list_hostfwd"}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","arguments":{"x":1,"x":2}}"#), Same),
        (raw(r#"{"execute":"\ud800"}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":01}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":1e999}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":-}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":.5}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":0x10}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":NaN}"#), Same),
        (raw(r#"{"execute":"list_hostfwd","z":+1}"#), Same),
        (raw("{\"execute\":\"list_hostfwd\",\"z\":\"\t\"}"), Same),
        (raw(r#"{"execute":"list_hostfwd","z":"a\qb"}"#), Same),
        (around(b"\0", b""), Same),
        (around(b"/*c*/", b""), Same),
        (b"\x80".to_vec(), Same),
        (vec![b'x'; 4095], Same),
        (vec![b'x'; 4096], Same),
        (around(b"", &vec![b' '; 4096 - list.len()]), Same),
        // What surrounds one.
        (around(b"", b""), BothLists),
        (around(b"\xef\xbb\xbf", b""), BothLists),
        (around(b"  ", b"\n"), BothLists),
        (around(b"", b"garbage"), BothLists),
        (around(b"", b"//c"), BothLists),
        (around(b"", list), BothLists),
        (around(b"", b"\0junk"), BothLists),
        (around(b"", &vec![b' '; 4095 - list.len()]), BothLists),
        (raw(r#"{"execute":"list_hostfw\u0064"}"#), BothLists),
        (raw(r#"{"":1,"execute":"list_hostfwd"}"#), BothLists),
        // Stricter: text that is no UTF-8, a NUL in a string, a number that ends in its point, very deep values.
        (b"{\"execute\":\"list_hostfwd\xff\"}".to_vec(), Ours(BAD_JSON)),
        (
            raw(r#"{"execute":"list_hostfwd\u0000x"}"#),
            Ours(r#"{"error":{"desc":"bad request: unknown execute","code":"unknown_verb"}}"#),
        ),
        (raw(r#"{"execute":"list_hostfwd","z":1.}"#), Ours(BAD_JSON)),
        (raw(&format!(r#"{{"execute":"list_hostfwd","z":{}{}}}"#, "[".repeat(200), "]".repeat(200))), Ours(BAD_JSON)),
        // Arguments.
        (raw(r#"{"execute":"remove_hostfwd"}"#), Same),
        (raw(r#"{"execute":"remove_hostfwd","arguments":{}}"#), Same),
        (raw(r#"{"execute":"remove_hostfwd","arguments":[]}"#), Same),
        (remove("1"), Same),
        (remove("\"1\""), Same),
        (remove("0"), Same),
        (remove("-1"), Same),
        (remove("0.5"), Same),
        (remove("99999999999"), Same),
        (raw(r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp"}}"#), Same),
    ];
    for (from, to) in [
        ("\"tcp\"", "\"TCP\""),
        ("\"tcp\"", "\"sctp\""),
        ("\"tcp\"", "\"\""),
        ("127.0.0.1", "x"),
        ("127.0.0.1", "1.2.3"),
        ("127.0.0.1", "127.1"),
        ("127.0.0.1", "01.2.3.4"),
        ("127.0.0.1", " 127.0.0.1"),
        ("10.0.2.100", "x"),
        ("10.0.2.100", "10.0.2"),
        ("\"guest_port\":80", "\"guest_port\":\"80\""),
        ("\"guest_port\":80", "\"guest_port\":0"),
        ("\"guest_port\":80", "\"guest_port\":null"),
        (",\"guest_port\":80", ""),
        ("\"host_port\":", "\"host_port\":\"x\",\"h\":"),
        ("\"host_port\":", "\"host_port\":0,\"h\":"),
        ("\"host_port\":", "\"host_port\":0.5,\"h\":"),
        ("\"host_port\":", "\"host_port\":null,\"h\":"),
        ("\"host_port\":", "\"h\":"),
        ("127.0.0.1\",\"host_port\":", "x\",\"host_port\":0,\"h\":"),
    ] {
        all.push((add(port, from, to), Same));
    }
    // Out of range: the original takes the lower 16 bits. (Port 1 is refused to it, too, so nothing is opened.)
    all.push((add(port, "\"host_port\":", "\"host_port\":65537,\"h\":"), Ours(BAD_HOST_PORT)));
    all.push((add(port, "\"host_port\":", "\"host_port\":-65535,\"h\":"), Ours(BAD_HOST_PORT)));
    // Not local.
    all.push((add(port, "127.0.0.1", "192.0.2.1"), Same));
    // Forwards.
    for (n, (from, to)) in [
        ("tcp", "tcp"),
        ("\"host_addr\":\"127.0.0.1\",", ""),
        ("\"127.0.0.1\"", "\"\""),
        ("\"127.0.0.1\"", "1"),
        ("\"127.0.0.1\"", "null"),
        ("\"10.0.2.100\"", "\"\""),
        ("\"10.0.2.100\"", "null"),
        ("\"guest_addr\":\"10.0.2.100\",", ""),
        ("10.0.2.100", "0.0.0.0"),
        ("\"10.0.2.100\"", "5"),
        ("10.0.2.100", "192.168.7.7"),
        ("\"guest_port\":80", "\"guest_port\":80.9"),
    ]
    .into_iter()
    .enumerate()
    {
        all.push((add(p[n], from, to), Same));
    }
    all.extend([
        (add(port, "tcp", "tcp"), Same),
        (add(port, "127.0.0.1", "0.0.0.0"), Same),
        (add(port, "tcp", "udp"), Same),
        (add(port, "tcp", "udp"), Same),
        (list.to_vec(), BothLists),
        (remove("1"), Same),
        (remove("1"), Same),
        (remove("2.7"), Same),
        (list.to_vec(), BothLists),
        (add(port, "tcp", "tcp"), Same),
        (list.to_vec(), BothLists),
    ]);
    all
}

/// What the original says to a verb that it does not know.
const UNKNOWN: &str = r#"{"error":{"desc":"bad request: unknown execute"}}"#;

fn compare(request: &[u8], theirs: &[u8], ours: &[u8], expect: Expect) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (request, theirs, ours) = (text(request), text(theirs), text(ours));
    if theirs == UNKNOWN && matches!(expect, Same) {
        // The same words, and a code behind them.
        assert_eq!(ours, UNKNOWN.replace("\"}}", "\",\"code\":\"unknown_verb\"}}"), "{request}");
        return;
    }
    match expect {
        Same => assert_eq!(ours, theirs, "{request}"),
        BothLists => {
            let entries = theirs.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            let entries = entries.filter(|entries| entries.starts_with("\"entries\":[")).expect("a list");
            assert_eq!(ours, format!("{{\"return\":{{{entries}}},{entries}}}"), "{request}");
        }
        Ours(reply) => {
            assert_eq!(ours, reply, "{request}");
            assert_ne!(theirs, reply, "no difference any more: {request}");
        }
    }
}

/// Asks one, reading to the end; a reset after the reply is the original's habit.
fn reply(path: &Path, request: &[u8]) -> Vec<u8> {
    ask(path, request).unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(request)))
}

/// Sixteen ports that nobody listens at, below those that the kernel gives to clients.
fn free_ports() -> Vec<u16> {
    let first = 21_000 + std::process::id() as u16 % 8000;
    let free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    (first..).filter(free).take(16).collect()
}

#[test]
fn replies_are_the_originals() {
    let Some(original) = Original::start() else { return };
    let ports = free_ports();
    let (for_them, for_us) = (requests(&ports), requests(&ports));
    assert!(for_them.len() >= 60);
    // One after the other: they want the same ports.
    let theirs: Vec<_> = for_them.iter().map(|(request, _)| reply(&original.path, request)).collect();
    drop(original);
    let served = Served::start(Limits::default(), 100);
    for ((request, expect), theirs) in for_us.iter().zip(&theirs) {
        compare(request, theirs, &reply(&served.path, request), *expect);
    }
}

#[test]
fn what_kills_the_original_is_refused() {
    let served = Served::start(Limits::default(), 100);
    for (n, arguments) in
        ["", r#","arguments":{}"#, r#","arguments":[]"#, r#","arguments":{"proto":5}"#].iter().enumerate()
    {
        let request = format!(r#"{{"execute":"add_hostfwd"{arguments}}}"#);
        assert_eq!(served.ask(&request), BAD_PROTO, "{request}");
        // That it does is worth knowing, once.
        if n == 0
            && let Some(original) = Original::start()
        {
            assert_eq!(reply(&original.path, request.as_bytes()), b"");
        }
    }
}
