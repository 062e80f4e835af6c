//! `tapway attach`: namespaces that `unshare` and bubblewrap made, as members of a network; and that nothing of it stays.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::spaces::{Cmd, Ended, Ns, Proc, need, wait_for};
use crate::tools::{any, ask_tcp, at, connect, listen, serve, tell_tcp};
use crate::world::{HOST4, INET4, World};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const SOON: Duration = Duration::from_secs(20);

/// A namespace that somebody else made.
struct Foreign {
    process: Proc,
    pid: i32,
}

impl Foreign {
    /// By `unshare -Urn`.
    fn unshare(w: &World) -> Self {
        let process = w.host.cmd(&["unshare", "-Urn", "sleep", "1000000"]).unprivileged().spawn();
        let pid = process.pid();
        wait_for("unshare", SOON, || cmdline(pid).starts_with("sleep"));
        Self { process, pid }
    }

    /// By bubblewrap; its resolv.conf names 127.0.0.11.
    fn bubblewrap(w: &World) -> Self {
        need("bwrap");
        std::fs::write(w.path("resolv.conf"), "nameserver 127.0.0.11\noptions ndots:0\n").unwrap();
        let line = "exec bwrap --unshare-all --die-with-parent --ro-bind / / --dev /dev --proc /proc \
                    --ro-bind /mnt/resolv.conf /etc/resolv.conf --info-fd 5 sleep 1000000 5> /mnt/home/info";
        let process = w.host.cmd(&["sh", "-c", line]).unprivileged().spawn();
        let mut pid = 0;
        wait_for("bubblewrap", SOON, || {
            let info = std::fs::read_to_string("/mnt/home/info").unwrap_or_default();
            pid =
                serde_json::from_str(&info).ok().and_then(|info: Value| info["child-pid"].as_i64()).unwrap_or(0) as i32;
            assert!(process.alive(), "{}", process.stderr());
            pid != 0
        });
        Self { process, pid }
    }

    fn target(&self) -> String {
        self.pid.to_string()
    }

    /// A program in its user and network namespace.
    fn cmd(&self, argv: &[&str]) -> Cmd {
        need(argv[0]);
        let pid = self.target();
        Cmd::new(None, argv).by(&["nsenter", "-t", &pid, "-U", "-n", "--preserve-credentials", "--"])
    }

    fn sh(&self, line: &str) -> String {
        self.cmd(&["sh", "-ec", line]).ok()
    }

    fn ns(&self) -> Ns {
        std::fs::File::open(format!("/proc/{}/ns/net", self.pid)).unwrap().into()
    }

    /// All that a namespace has, but for what traffic does.
    fn inventory(&self) -> String {
        self.sh("ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; ip neigh")
    }
}

fn cmdline(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `tapway attach OPTIONS TARGET` in the background of its own accord: its id.
fn attach(w: &World, options: &str, target: &str) -> String {
    let mut argv = vec!["attach", "-d"];
    argv.extend(options.split_whitespace());
    argv.push(target);
    w.tapway(&argv).ok().trim().to_owned()
}

/// The same in the foreground, up.
fn attach_here(w: &World, options: &str, target: &str) -> Proc {
    let mut argv = vec!["attach"];
    argv.extend(options.split_whitespace());
    argv.push(target);
    let attached = w.tapway(&argv).spawn();
    let up = || w.tapway(&["ps", "-q", "--filter", "status=running"]).ok();
    wait_for("tapway attach", SOON, || !up().is_empty() || !attached.alive());
    assert!(attached.alive(), "{}", attached.stderr());
    attached
}

fn refused(w: &World, options: &str, target: &str) -> Ended {
    let mut argv = vec!["attach"];
    argv.extend(options.split_whitespace());
    argv.push(target);
    let ended = w.tapway(&argv).end();
    assert!(ended.code != 0 && ended.stdout.is_empty(), "{options} {target}: {}", ended.code);
    // Docker's text about addresses has a line for the kind of fault, too.
    let lines = if ended.stderr.starts_with("tapway: invalid endpoint settings:\n") { 2 } else { 1 };
    assert_eq!(ended.stderr.trim_end().lines().count(), lines, "{}", ended.stderr);
    ended
}

fn info(w: &World, name: &str) -> Value {
    serde_json::from_str(&w.tapway(&["info", "--json", name]).ok()).unwrap()
}

fn ps(w: &World) -> Value {
    let all: Value = serde_json::from_str(&w.tapway(&["ps", "--json"]).ok()).unwrap();
    all["sandboxes"].clone()
}

fn network(w: &World, options: &[&str]) {
    let mut argv = vec!["network", "create"];
    argv.extend(options);
    argv.push("web");
    w.tapway(&argv).ok();
}

fn end(process: &Proc, signal: Signal) {
    kill(Pid::from_raw(process.pid()), signal).unwrap();
}

#[test]
fn two_namespaces_made_by_hand() {
    World::run(|w| {
        network(w, &["--ipv6"]);
        let (a, b) = (Foreign::unshare(w), Foreign::unshare(w));
        let lo_up = "ip link set lo up";
        for one in [&a, &b] {
            one.sh(lo_up);
        }
        let before = a.inventory();
        let id = attach(w, "--network web --name one", &a.target());
        attach(
            w,
            "--network web --name two -p 8080:80 --network-alias second --mac-address 02:00:00:00:00:22",
            &b.target(),
        );

        // By address and by name, both families.
        let addresses = |name: &str| {
            let one = ps(w).as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap();
            let of = |at: usize| one["networks"][0]["addresses"][at]["address"].as_str().unwrap().to_owned();
            (of(0), of(1))
        };
        assert_eq!(addresses("one").0, "172.18.0.2");
        let (v4, v6) = addresses("two");
        assert_eq!(v4, "172.18.0.3");
        a.sh(&format!("ping -c1 -W5 {v4} && ping -c1 -W5 {v6}"));
        assert!(b.sh("ip -br link show eth0").contains("02:00:00:00:00:22"));
        for server in ["172.18.0.1", "127.0.0.11"] {
            for name in ["two", "second"] {
                assert_eq!(a.sh(&format!("dig +short +tries=1 @{server} {name}")).trim(), v4);
            }
            assert_eq!(b.sh(&format!("dig +short +tries=1 @{server} one")).trim(), "172.18.0.2");
        }
        // The world outside, and the host by a published port.
        a.sh(&format!("ping -c1 -W5 {INET4}"));
        tell_tcp(&b.ns(), at(Ipv4Addr::UNSPECIFIED, 80));
        ask_tcp(&w.host, any(at(HOST4, 8080)), at(HOST4, 8080));
        assert!(w.tapway(&["port", "two"]).ok().contains("80/tcp -> 0.0.0.0:8080"));
        // By its process id, too, as the name of a sandbox.
        assert!(w.tapway(&["port", &b.target()]).ok().contains("8080"));
        assert_eq!(w.tapway(&["network", "inspect", "-f", "{{len .Containers}}", "web"]).ok().trim(), "2");

        // It is what it is: nothing inside is ours.
        let one = ps(w).as_array().unwrap().iter().find(|one| one["id"] == id.as_str()).cloned().unwrap();
        assert_eq!((&one["state"], &one["network_mode"]), (&"running".into(), &"web".into()));
        assert!(w.tapway(&["ps"]).ok().contains(&format!("\"attached {}\"", a.pid)));
        assert_eq!(info(w, "one")["mode"], "attach");
        for command in [&["exec", "one", "--", "true"][..], &["kill", "-s", "HUP", "one"]] {
            let ended = w.tapway(command).end();
            assert!(ended.code == 1 && ended.stderr.contains("was attached"), "{command:?}: {}", ended.stderr);
        }

        // Detached, it is as it was, and everything is free.
        assert_eq!(w.tapway(&["detach", "one", "two"]).ok(), "one\ntwo\n");
        wait_for("the interface to go", SOON, || a.inventory() == before);
        assert_eq!(ps(w), Value::Array(vec![]));
        assert!(TcpListener::bind("127.0.0.1:8080").is_ok());
        assert!(a.process.alive() && b.process.alive());
        attach(w, "--network web --name one --ip 172.18.0.3 -p 8080:80", &a.target());
        assert_eq!(w.tapway(&["stop", "one"]).ok(), "one\n");
        assert!(a.process.alive());
        wait_for("the network's process to leave", SOON, || w.tapway_pids().is_empty());
    });
}

#[test]
fn a_bubblewrap_sandbox() {
    World::run(|w| {
        network(w, &[]);
        let cage = Foreign::bubblewrap(w);
        attach(w, "--network web --name cage", &cage.target());
        let member = w.guest_on("web", &["--name", "member"]);
        assert!(member.sh("getent ahostsv4 cage").starts_with("172.18.0.2 "));
        member.sh("ping -c1 -W5 cage");
        // Its own programs find others as their resolv.conf tells them.
        let pid = cage.target();
        let inside = ["nsenter", "-t", &pid, "-U", "-n", "-m", "--preserve-credentials", "--"];
        let found = Cmd::new(None, &["getent", "ahostsv4", "member"]).by(&inside).directory("/").ok();
        assert!(found.starts_with("172.18.0.3 "), "{found}");
        drop(cage);
        wait_for("the end of the attachment", SOON, || w.tapway(&["ps", "-q"]).ok().lines().count() == 1);
        assert!(member.cmd(&["getent", "hosts", "cage"]).end().code != 0);
        let listed = w.tapway(&["ps", "-a", "--filter", "name=cage"]).ok();
        assert!(listed.contains("Exited (0)"), "{listed}");
    });
}

#[test]
fn a_network_process_that_is_killed() {
    World::run(|w| {
        network(w, &[]);
        let (a, b) = (Foreign::unshare(w), Foreign::unshare(w));
        attach(w, "--network web --name one", &a.target());
        attach(w, "--network web --name two -p 8080:80", &b.target());
        tell_tcp(&b.ns(), at(Ipv4Addr::UNSPECIFIED, 80));
        // Those that wait for data that do not come, by tapway's interface and by the namespace's own.
        serve(listen(&w.internet, at(INET4, 4001)), |stream, _| {
            std::thread::sleep(std::time::Duration::from_mins(1));
            drop(stream);
        });
        a.sh("ip addr add 192.0.2.77/32 dev lo");
        let own = listen(&a.ns(), at([192, 0, 2, 77], 4002));
        let beside = connect(&a.ns(), at([192, 0, 2, 77], 4002)).unwrap();
        for name in ["two", "one"] {
            let mut idle = connect(&a.ns(), at(INET4, 4001)).unwrap();
            idle.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            let first = info(w, name)["network_pid"].as_i64().unwrap();
            kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGKILL).unwrap();
            let error = idle.read(&mut [0]).expect_err("it never looks whole");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
            wait_for("ping by another process", SOON, || a.cmd(&["ping", "-c1", "-W1", "172.18.0.3"]).end().code == 0);
            wait_for("names", SOON, || {
                b.cmd(&["dig", "+short", "+tries=1", &format!("@{GATEWAY}"), "one"]).end().stdout == "172.18.0.2\n"
            });
            ask_tcp(&w.host, any(at(HOST4, 8080)), at(HOST4, 8080));
            assert_ne!(info(w, name)["network_pid"].as_i64(), Some(first));
        }
        assert!(own.accept().is_ok());
        (&beside).write_all(b"x").expect("what is not tapway's goes on");
    });
}

#[test]
fn it_ends_with_the_namespace() {
    World::run(|w| {
        network(w, &[]);
        for options in ["--network web --name x", "--network private --name x"] {
            let a = Foreign::unshare(w);
            let attached = attach_here(w, options, &a.target());
            let began = Instant::now();
            drop(a);
            let ended = attached.end(SOON);
            assert!(ended.code == 0 && ended.stderr.is_empty(), "{options}: {} {}", ended.code, ended.stderr);
            assert_eq!(ended.stdout.trim().len(), 12, "the id: {}", ended.stdout);
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
        // A file holds the namespace beyond the process.
        let a = Foreign::unshare(w);
        let file = w.path("blue");
        std::fs::write(&file, "").unwrap();
        w.host.sh(&format!("mount --bind /proc/{}/ns/net {}", a.pid, file.display()));
        let attached = attach_here(w, "--network web --name x", file.to_str().unwrap());
        drop(a);
        std::thread::sleep(Duration::from_millis(300));
        assert!(attached.alive(), "{}", attached.stderr());
        w.host.sh(&format!("umount {}", file.display()));
        assert_eq!(attached.end(SOON).code, 0);
        assert_eq!(ps(w), Value::Array(vec![]));
    });
}

#[test]
fn signals_end_it_and_a_deleted_interface_is_an_error() {
    World::run(|w| {
        network(w, &[]);
        let a = Foreign::unshare(w);
        a.sh("ip link set lo up");
        let before = a.inventory();
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let attached = attach_here(w, "--network web --name x --interface net7", &a.target());
            assert!(a.inventory().contains("net7"));
            end(&attached, signal);
            assert_eq!(attached.end(SOON).code, 0, "{signal}");
            wait_for("the interface to go", SOON, || a.inventory() == before);
        }
        // Killed: the last descriptors of the TAP go as well.
        let attached = attach_here(w, "--network web --name x", &a.target());
        end(&attached, Signal::SIGKILL);
        wait_for("the interface to go", SOON, || a.inventory() == before);
        let attached = attach_here(w, "--network web --name x", &a.target());
        a.sh("ip link delete eth0");
        let ended = attached.end(SOON);
        assert_eq!(ended.code, 1);
        assert_eq!(
            ended.stderr.trim_end(),
            format!("tapway: interface eth0 of process {} is gone: it was deleted there", a.pid)
        );
    });
}

#[test]
fn what_is_there_stays() {
    World::run(|w| {
        network(w, &[]);
        let a = Foreign::unshare(w);
        a.sh("ip link set lo up; ip link add own0 type veth peer name own1; ip link set own1 up; ip addr add 10.9.0.1/24 dev own0; ip link set own0 up
              ip route add default via 10.9.0.2");
        let before = a.inventory();
        let attached = attach_here(w, "--network web --name x", &a.target());
        let note = "the namespace has a default route of IPv4 already, which stays";
        assert!(attached.stderr().contains(note), "{}", attached.stderr());
        // A second one, on a network of its own.
        attach(w, "--network private --name y --interface eth1", &a.target());
        let routes = a.sh("ip route");
        assert!(routes.contains("default via 10.9.0.2 dev own0") && !routes.contains("default via 172"), "{routes}");
        assert!(routes.contains("172.18.0.0/16 dev eth0") && routes.contains("10.0.2.0/24 dev eth1"), "{routes}");
        a.sh("dig +short +tries=1 @127.0.0.11 x | grep -qx 172.18.0.2");
        w.tapway(&["detach", "x", "y"]).ok();
        wait_for("the interfaces to go", SOON, || a.inventory() == before);
        assert_eq!(attached.end(SOON).code, 0);
    });
}

#[test]
fn what_cannot_be_attached() {
    World::run(|w| {
        network(w, &[]);
        let a = Foreign::unshare(w);
        a.sh("ip link add eth0 type veth peer name eth9");
        let before = a.inventory();
        let own = std::process::id().to_string();
        // It belongs to the user namespace that the host is: nobody without capabilities there gets in.
        let theirs = Ns::new();
        let file: PathBuf = w.path("theirs");
        std::fs::write(&file, "").unwrap();
        w.host.sh(&format!("mount --bind {} {}", theirs.path(), file.display()));
        let theirs = file.to_str().unwrap();
        let pid = a.target();
        for (options, target, code, text) in [
            ("", "999999", 1, "no such process: 999999"),
            ("", "/proc/self/ns/net", 1, "is in the same network as you are"),
            // This very process has more power than the user.
            ("", own.as_str(), 1, "is not yours: its network namespace cannot be opened: Permission denied"),
            ("", "/mnt/nowhere", 1, "cannot open /mnt/nowhere: No such file"),
            ("", "/dev/null", 1, "/dev/null is not a network namespace"),
            ("", "/proc/self/ns/user", 1, "is not a network namespace"),
            (
                "",
                theirs,
                1,
                "/mnt/theirs cannot be entered: Operation not permitted; its network belongs to a user namespace",
            ),
            ("", "blue", 2, "'blue' is neither a process id nor the path"),
            (
                "",
                pid.as_str(),
                1,
                &format!("interface eth0 exists in process {pid} already; choose another --interface"),
            ),
            ("--interface lo", &pid, 1, "interface lo exists"),
            ("--interface a/b", &pid, 2, "interface name 'a/b'"),
            ("--network nowhere", &pid, 1, "network nowhere not found"),
            ("--network host", &pid, 2, "conflicting options: attach and the network mode host"),
            ("--network container:x", &pid, 2, "attach and the network mode container:x"),
            ("--network web --mtu 1500", &pid, 2, "conflicting options: mtu and the network web"),
            ("--network web --ip 10.0.0.1 --interface e1", &pid, 1, "10.0.0.1"),
            ("-p nonsense", &pid, 2, "'nonsense'"),
        ] {
            let ended = refused(w, options, target);
            assert!(ended.code == code && ended.stderr.contains(text), "{options} {target}: {}", ended.stderr);
        }
        assert_eq!(refused(w, "-d --name x", &pid).stderr, refused(w, "--name x", &pid).stderr);
        // Nothing is left of all that.
        assert_eq!(a.inventory(), before);
        assert_eq!(ps(w), Value::Array(vec![]));
        assert_eq!(w.tapway(&["ps", "-aq"]).ok(), "");
        wait_for("the network's process to leave", SOON, || w.tapway_pids().is_empty());

        attach(w, "--name taken --interface e1", &pid);
        let ended = refused(w, "--name taken --interface e2", &pid);
        assert!(ended.stderr.contains("The container name \"/taken\" is already in use"), "{}", ended.stderr);
        // What run made is not detached, and what is not there neither.
        let _guest = w.guest(&["--name", "made"]);
        let ended = w.tapway(&["detach", "made", "nobody", "taken"]).end();
        assert_eq!((ended.code, ended.stdout.as_str()), (1, "taken\n"));
        assert!(ended.stderr.contains("made was not attached") && ended.stderr.contains("'tapway stop made'"));
        assert!(ended.stderr.contains("No such container: nobody"), "{}", ended.stderr);
    });
}
