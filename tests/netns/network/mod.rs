//! A shared network on a real kernel: the process itself, confined, and members that attach by hand.
//!
//! [`Network::start`] runs this binary again for one test that is no test ([`the_process_itself`]), which forks and becomes
//! the network process. [`Network::join`] is what a monitor does: a namespace with a TAP, an attach connection, the words.

#![allow(unsafe_code, reason = "fork(2): the process must have one thread, and those of a test have more")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect as connect_unix, listen, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{ForkResult, Pid, fork};
use serde_json::{Value, json};
use tapway::api::attach::{self, FromNetwork, ToNetwork};
use tapway::network::config::{EndpointConfig, Link, Listener, Mac, Membership, NetworkConfig, PlanV4, PlanV6, Proto};

use crate::spaces::{Ns, Proc, SCRATCH, wait_for};
use crate::tools::{any, ask_tcp, ask_udp, at, connect, echo_tcp, tell_tcp, tell_udp};
use crate::world::{HOST4, INET4, INET6, World};

mod attacker;
mod figures;
mod hostile;

/// Tells the process what it is to be.
const CONFIG: &str = "TAPWAY_TEST_NETWORK";
/// … and how many descriptors it may have.
const DESCRIPTORS: &str = "TAPWAY_TEST_DESCRIPTORS";
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 18, 0, 0, 0, 0, 0, 1);

fn v4(member: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, member)
}

fn v6(member: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 18, 0, 0, 0, 0, 0, member.into())
}

fn config(mtu: u16) -> NetworkConfig {
    let text = json!({
        "id": "5".repeat(64), "name": "web", "mtu": mtu, "icc": true, "masquerade": true, "names": true,
        "linger_ms": 500, "first_ms": 5000,
    });
    serde_json::from_value(text).unwrap()
}

/// The network process, and where it listens.
struct Network {
    config: NetworkConfig,
    attach: PathBuf,
    reads: PathBuf,
    _helper: Proc,
}

/// A member: its namespace, and the monitor's end of its lease.
struct Member {
    ns: Ns,
    conn: Option<OwnedFd>,
    number: u8,
    /// A monitor keeps a duplicate of all that it sent.
    tap: OwnedFd,
}

/// What a member is, beside its number.
#[derive(Clone, Default)]
struct Wish {
    names: Vec<String>,
    links: Vec<Link>,
    mtu: Option<u16>,
    no_offloads: bool,
    listeners: Vec<(Listener, i32)>,
    servers: Vec<SocketAddr>,
}

fn wish(names: &[&str]) -> Wish {
    Wish { names: names.iter().map(|&name| name.to_owned()).collect(), ..Wish::default() }
}

#[test]
fn the_process_itself() {
    let Ok(text) = std::env::var(CONFIG) else { return };
    if let Ok(most) = std::env::var(DESCRIPTORS) {
        let most = most.parse().unwrap();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).unwrap();
    }
    let (config, attach, reads): (NetworkConfig, PathBuf, PathBuf) = serde_json::from_str(&text).unwrap();
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("attach socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(&attach).unwrap()).unwrap();
    listen(&listener, Backlog::new(64).unwrap()).unwrap();
    let reads = UnixListener::bind(reads).unwrap();
    // SAFETY: the child only runs code of this process, whose other threads hold no lock: they wait for this one.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = tapway::runtime::network::shared_network_process(
                listener,
                Some(reads.into()),
                config,
                tapway::runtime::network::Before::default(),
            );
            std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
        }
        ForkResult::Parent { child } => {
            drop((listener, reads));
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            eprintln!("the network process ended: {status:?}");
        }
    }
}

/// A monitor's first word, of a TAP with one queue.
fn hello(endpoint: EndpointConfig, membership: Option<Box<Membership>>) -> ToNetwork {
    ToNetwork::Attach { version: attach::VERSION, endpoint: Box::new(endpoint), pcap: false, queues: 0, membership }
}

impl Network {
    fn start(w: &World, config: NetworkConfig) -> Self {
        Self::start_within(w, config, None)
    }

    /// With so many descriptors at most.
    fn start_within(w: &World, config: NetworkConfig, descriptors: Option<usize>) -> Self {
        let [attach, reads] =
            ["attach", "reads"].map(|what| PathBuf::from(SCRATCH).join(format!("net-{}-{what}", config.name)));
        let _ = (std::fs::remove_file(&attach), std::fs::remove_file(&reads));
        let me = std::env::current_exe().unwrap();
        let text = serde_json::to_string(&(&config, &attach, &reads)).unwrap();
        let argv = [me.to_str().unwrap(), "--exact", "network::the_process_itself", "--nocapture"];
        let mut command = w.host.cmd(&argv).env(CONFIG, &text);
        if let Some(most) = descriptors {
            command = command.env(DESCRIPTORS, &most.to_string());
        }
        let helper = command.spawn();
        wait_for("the network's sockets", Duration::from_secs(20), || reads.exists() && attach.exists());
        Self { config, attach, reads, _helper: helper }
    }

    fn connect(&self) -> nix::Result<OwnedFd> {
        let conn = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect_unix(conn.as_raw_fd(), &UnixAddr::new(&self.attach)?)?;
        setsockopt(&conn, ReceiveTimeout, &TimeVal::seconds(20))?;
        Ok(conn)
    }

    fn endpoint(number: u8, mtu: u16) -> EndpointConfig {
        EndpointConfig {
            id: format!("{number:012x}"),
            mtu,
            guest_mac: Mac([0x02, 0x42, 172, 18, 0, number]),
            gateway_mac: Mac([0x02, 0x42, 172, 18, 0, 1]),
            v4: Some(PlanV4 {
                subnet: "172.18.0.0/16".parse().unwrap(),
                gateway: GATEWAY4,
                dns: GATEWAY4,
                guest: v4(number),
            }),
            v6: Some(PlanV6 {
                subnet: "fd00:12::/64".parse().unwrap(),
                gateway: GATEWAY6,
                gateway_link_local: "fe80::1".parse().unwrap(),
                dns: GATEWAY6,
                guest: v6(number),
            }),
            offloads: tapway::network::config::Offloads::default(),
            allow_host_loopback: false,
            allow_link_local: false,
            outbound_v4: None,
            outbound_v6: None,
            hostname: String::new(),
            dns_search: Vec::new(),
            slirp: None,
        }
    }

    /// A namespace with an interface, attached; or why not.
    fn try_join(&self, number: u8, wish: &Wish) -> Result<Member, String> {
        let ns = Ns::new();
        let mtu = wish.mtu.unwrap_or(self.config.mtu);
        let (tap, mut offloads) = ns.run(|| tapway::sandbox::tap::create("eth0")).expect("a TAP");
        if wish.no_offloads {
            tapway::sys::tap::set_offload(tap.as_fd(), 0).expect("TUNSETOFFLOAD");
            offloads = tapway::network::config::Offloads { vnet_hdr: true, ..Default::default() };
        }
        let mut endpoint = Self::endpoint(number, mtu);
        endpoint.offloads = offloads;
        let mac = endpoint.guest_mac;
        ns.sh(&format!(
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
             echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra
             ip link set eth0 address {mac} mtu {mtu}
             ip addr add {}/16 dev eth0; ip -6 addr add {}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via {GATEWAY4}; ip -6 route add default via {GATEWAY6}
             echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
             ip route add table local 127.0.0.11/32 via {GATEWAY4} dev eth0 src {}",
            v4(number),
            v6(number),
            v4(number)
        ));
        let conn = self.connect().map_err(|errno| errno.to_string())?;
        let say = |message: &ToNetwork, fds: &[i32]| attach::send(&conn, message, fds).map_err(|e| e.to_string());
        let membership = Some(Box::new(Membership { names: wish.names.clone(), links: wish.links.clone() }));
        let hello = hello(endpoint, membership);
        say(&hello, &[tap.as_raw_fd()])?;
        if !wish.listeners.is_empty() {
            let (listeners, fds): (Vec<_>, Vec<_>) = wish.listeners.iter().copied().unzip();
            say(&ToNetwork::Listen { listeners }, &fds)?;
            let heard = attach::recv::<FromNetwork>(&conn).map_err(|e| e.to_string())?.0;
            assert_eq!(heard, FromNetwork::Listened { error: None });
        }
        say(&ToNetwork::HostDns { servers: wish.servers.clone(), zones: Vec::new() }, &[])?;
        say(&ToNetwork::Start, &[])?;
        match attach::recv::<FromNetwork>(&conn).map_err(|e| e.to_string())?.0 {
            FromNetwork::Ready => Ok(Member { ns, conn: Some(conn), number, tap }),
            FromNetwork::Failed { desc, .. } => Err(desc),
            other => panic!("{other:?}"),
        }
    }

    fn join(&self, number: u8, wish: &Wish) -> Member {
        self.try_join(number, wish).unwrap_or_else(|why| panic!("{number}: {why}"))
    }

    fn ask(&self, request: &Value) -> Value {
        let mut stream = UnixStream::connect(&self.reads).expect("the network's socket");
        stream.write_all(request.to_string().as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        serde_json::from_str(&reply).unwrap_or_else(|e| panic!("{request}: {e}: {reply}"))
    }

    fn pid(&self) -> i32 {
        self.ask(&json!({"execute": "get_info"}))["return"]["pid"].as_i64().unwrap() as i32
    }

    /// What was dropped of this member's frames, for that reason.
    fn drops(&self, member: &Member, reason: &str) -> u64 {
        let list = self.ask(&json!({"execute": "list_members"}));
        let mac = format!("02:42:ac:12:00:{:02x}", member.number);
        let members = list["return"]["members"].as_array().unwrap();
        let one = members.iter().find(|m| m["mac"] == mac.as_str()).unwrap_or_else(|| panic!("{mac} in {list}"));
        one["drops"][reason].as_u64().unwrap_or(0)
    }
}

impl Member {
    fn sh(&self, line: &str) -> String {
        self.ns.sh(line)
    }

    fn fails(&self, line: &str) -> bool {
        self.ns.cmd(&["sh", "-c", line]).end().code != 0
    }

    /// The addresses that a name has, sorted, by `dig`.
    fn dig(&self, server: &str, name: &str, kind: &str) -> Vec<String> {
        let text = self.sh(&format!("dig +short +tries=1 +time=3 @{server} {name} {kind}"));
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn status(&self, server: &str, name: &str, kind: &str) -> String {
        let text = self.sh(&format!("dig +tries=1 +time=6 @{server} {name} {kind}"));
        let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or_else(|| panic!("{text}")).to_owned()
    }
}

#[test]
fn members_reach_each_other_the_world_and_names() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let web = network.join(2, &wish(&["site", "www", "000000000002"]));
        let redis = network.join(3, &wish(&["redis", "www", "000000000003"]));
        for (from, to) in [(&web, 3), (&redis, 2)] {
            from.sh(&format!("ping -c2 -W2 -i0.2 {}", v4(to)));
            from.sh(&format!("ping -c2 -W2 -i0.2 {}", v6(to)));
            from.sh(&format!("ping -c1 -W2 {GATEWAY4}; ping -c1 -W2 {GATEWAY6}"));
            // Larger than the MTU: fragments cross.
            from.sh(&format!("ping -c1 -W2 -s 4000 {}; ping -c1 -W2 -s 4000 {}", v4(to), v6(to)));
        }
        for server in [IpAddr::V4(INET4), IpAddr::V6(INET6)] {
            tell_tcp(&w.internet, at(server, 7000));
            tell_udp(&w.internet, at(server, 7000));
            ask_tcp(&web.ns, any(at(server, 7000)), at(server, 7000));
            ask_udp(&redis.ns, any(at(server, 7000)), at(server, 7000));
        }
        for server in [IpAddr::V4(v4(3)), IpAddr::V6(v6(3))] {
            tell_tcp(&redis.ns, at(server, 7100));
            let client: IpAddr = if server.is_ipv4() { v4(2).into() } else { v6(2).into() };
            let (_, seen) = ask_tcp(&web.ns, any(at(server, 7100)), at(server, 7100));
            assert_eq!(seen.ip(), client, "members see each other as they are");
        }
        for server in ["127.0.0.11", "172.18.0.1", "fd00:12::1"] {
            assert_eq!(web.dig(server, "redis", "A"), ["172.18.0.3"], "{server}");
            assert_eq!(web.dig(server, "REDIS.web", "AAAA"), ["fd00:12::3"]);
            assert_eq!(web.dig(server, "www", "A"), ["172.18.0.2", "172.18.0.3"]);
            assert_eq!(redis.dig(server, "000000000002", "A"), ["172.18.0.2"]);
            assert_eq!(web.dig(server, "-x 172.18.0.3", ""), ["redis.web."]);
            assert_eq!((web.status(server, "redis", "MX"), web.dig(server, "redis", "MX")), ("NOERROR".into(), vec![]));
            let tcp = web.sh(&format!("dig +short +tcp +tries=1 +time=3 @{server} redis A"));
            assert_eq!(tcp, "172.18.0.3\n", "{server} by TCP");
        }
        assert_eq!(web.status("127.0.0.11", "nobody", "A"), "SERVFAIL", "there is no server to ask");
        assert!(web.fails("ping -c1 -W1 172.18.0.9"));
        let list = network.ask(&json!({"execute": "list_members"}));
        let members = list["return"]["members"].as_array().unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((&members[0]["name"], &members[1]["v4"]), (&json!("site"), &json!("172.18.0.3")));
        assert!(members.iter().all(|m| m["frames_to_guest"].as_u64() > Some(20)), "{list}");
        let info = network.ask(&json!({"execute": "get_info"}));
        for stage in ["root", "capabilities", "memory", "seccomp"] {
            let outcome = info["return"]["confinement"][stage].as_str().unwrap();
            assert!(outcome.starts_with("done") || stage == "capabilities", "{stage}: {info}");
        }
        let stats = network.ask(&json!({"execute": "get_stats"}));
        assert!(stats["return"]["counters"]["dns_zone"].as_u64() > Some(10), "{stats}");
        let refused = network.ask(&json!({"execute": "get_stats", "arguments": {"x": 1}}));
        assert_eq!(refused["error"]["code"], "unknown_field", "{refused}");
        assert_eq!(network.ask(&json!({"execute": "no"}))["error"]["code"], "unknown_verb");
    });
}

#[test]
fn a_member_that_is_gone_is_gone_at_once() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let web = network.join(2, &wish(&["site"]));
        // A port of its own, and a client of that.
        let bound = w.host.run(|| TcpListener::bind((HOST4, 8080))).unwrap();
        bound.set_nonblocking(true).unwrap();
        let listener =
            Listener { proto: Proto::Tcp, host_addr: HOST4.into(), host_port: 8080, guest_addr: None, guest_port: 80 };
        let echoed = w.host.run(|| TcpListener::bind((HOST4, 8081))).unwrap();
        echoed.set_nonblocking(true).unwrap();
        let listeners = vec![
            (listener, bound.as_raw_fd()),
            (Listener { host_port: 8081, guest_port: 81, ..listener }, echoed.as_raw_fd()),
        ];
        let mut redis = network.join(3, &Wish { listeners, ..wish(&["redis"]) });
        tell_tcp(&redis.ns, at(v4(3), 80));
        echo_tcp(&redis.ns, at(v4(3), 81));
        let (_, seen) = ask_tcp(&w.internet, any(at(HOST4, 8080)), at(HOST4, 8080));
        assert_eq!(seen.ip(), IpAddr::V4(INET4), "the true client");
        // Through the host's address, a member is the host.
        let (_, seen) = ask_tcp(&web.ns, any(at(HOST4, 8080)), at(HOST4, 8080));
        assert_eq!(seen.ip(), IpAddr::V4(HOST4));
        let mut client = connect(&w.internet, at(HOST4, 8081)).unwrap();
        let mut buf = [0; 200];
        client.write_all(b"still there").unwrap();
        assert_eq!(client.read(&mut buf).unwrap(), 11);
        web.sh("ping -c1 -W2 172.18.0.3");
        assert_eq!(web.dig("127.0.0.11", "redis", "A"), ["172.18.0.3"]);
        redis.conn = None;
        let begun = Instant::now();
        let ended = client.read(&mut buf);
        assert!(ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(web.status("127.0.0.11", "redis", "A"), "SERVFAIL");
        assert!(web.fails("ping -c1 -W1 172.18.0.3"));
        // What the monitor holds (the port, the TAP) is watched by nobody, so nothing spins.
        let spent = cpu(network.pid());
        let _late = connect(&w.internet, at(HOST4, 8080)).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert!(cpu(network.pid()) - spent < 0.2, "the process spins");
        drop((redis, bound, echoed));
        // Its place can be had anew, under another name.
        let other = network.join(3, &wish(&["cache"]));
        web.sh("ping -c1 -W2 172.18.0.3");
        assert_eq!(web.dig("127.0.0.11", "cache", "A"), ["172.18.0.3"]);
        // A TAP that is deleted ends its member alone.
        other.sh("ip link del eth0");
        let mut word = [0; 8];
        let mut end = std::fs::File::from(other.conn.unwrap());
        assert_eq!(end.read(&mut word).unwrap(), 0, "its lease is over");
        web.sh(&format!("ping -c1 -W2 {GATEWAY4}"));
        // After the last one the process leaves.
        let pid = Pid::from_raw(network.pid());
        drop(web);
        wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());
        assert!(network.connect().is_err());
        drop(other.tap);
    });
}

/// CPU seconds of a process.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
fn a_network_that_nobody_attaches_to_leaves() {
    World::run(|w| {
        let network = Network::start(w, NetworkConfig { first_ms: 700, ..config(1500) });
        let pid = Pid::from_raw(network.pid());
        // Somebody who only connects.
        drop(network.connect().unwrap());
        wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());
    });
}

#[test]
fn who_would_be_somebody_else_is_refused_and_who_spoofs_is_dropped() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let web = network.join(2, &wish(&["site"]));
        let other = network.join(3, &wish(&["other"]));
        let refused = network.try_join(2, &wish(&["twin"])).err().expect("the address is taken");
        assert_eq!(refused, "MAC address 02:42:ac:12:00:02 is in use on this network");
        assert_eq!(
            network.try_join(4, &wish(&["no..name"])).err().unwrap(),
            "'no..name' cannot be a name of a member: it is no host name"
        );
        // Garbage instead of an endpoint ends that connection alone.
        let conn = network.connect().unwrap();
        nix::unistd::write(&conn, b"{").unwrap();
        assert!(matches!(attach::recv::<FromNetwork>(&conn), Ok((FromNetwork::Failed { .. }, _))));
        web.sh("ip addr add 172.18.0.77/16 dev eth0; ip -6 addr add fd00:12::3/64 dev eth0 nodad");
        assert!(web.fails("ping -c2 -W1 -i0.2 -I 172.18.0.77 172.18.0.3"));
        assert!(web.fails("ping -c2 -W1 -i0.2 -I 172.18.0.77 172.18.0.1"));
        assert!(web.fails("ping -c2 -W1 -i0.2 -I fd00:12::3 fd00:12::1"));
        web.sh("ip link set eth0 address 02:42:ac:12:00:03");
        assert!(web.fails("ping -c2 -W1 -i0.2 172.18.0.3"));
        let spoofed = network.drops(&web, "spoofed_source");
        assert!(spoofed >= 8, "{spoofed}");
        web.sh("ip link set eth0 address 02:42:ac:12:00:02; ip addr del 172.18.0.77/16 dev eth0");
        web.sh("ip -6 addr del fd00:12::3/64 dev eth0; ping -c2 -W2 -i0.2 172.18.0.3");
        other.sh("ping -c1 -W2 172.18.0.2");
        // Another member's loopback.
        other.sh("python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 &");
        web.sh("ip route add table local 127.9.0.1/32 via 172.18.0.3 dev eth0 src 172.18.0.2");
        assert!(web.fails("ping -c1 -W1 127.9.0.1"));
        assert_eq!(network.drops(&web, "refused"), 1);
    });
}

#[test]
fn apart_and_internal() {
    World::run(|w| {
        let network = Network::start(w, NetworkConfig { icc: false, ..config(1500) });
        let one = network.join(2, &wish(&["one"]));
        let two = network.join(3, &wish(&["two"]));
        let link = Link { target: "two".into(), alias: "db".into() };
        let three = network.join(4, &Wish { links: vec![link], ..wish(&["three"]) });
        for to in ["172.18.0.3", "fd00:12::3"] {
            assert!(one.fails(&format!("ping -c1 -W1 {to}")));
            three.sh(&format!("ping -c1 -W2 {to}"));
        }
        two.sh("ping -c1 -W2 172.18.0.4");
        assert!(network.drops(&one, "isolated") > 0);
        assert_eq!(three.dig("127.0.0.11", "db", "A"), ["172.18.0.3"]);
        assert_eq!(one.status("127.0.0.11", "db", "A"), "SERVFAIL");
        tell_tcp(&w.internet, at(INET4, 7000));
        ask_tcp(&one.ns, any(at(INET4, 7000)), at(INET4, 7000));
        drop((one, two, three));
        let pid = Pid::from_raw(network.pid());
        wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());

        let network = Network::start(w, NetworkConfig { internal: true, ..config(1500) });
        // A server that would answer.
        let dns = Wish { servers: vec![at(INET4, 53)], ..wish(&["one"]) };
        let (one, two) = (network.join(2, &dns), network.join(3, &wish(&["two"])));
        one.sh("ping -c1 -W2 172.18.0.3");
        assert_eq!(two.dig("127.0.0.11", "one", "A"), ["172.18.0.2"]);
        assert_eq!(one.status("127.0.0.11", "example.com", "A"), "SERVFAIL");
        for to in [at(INET4, 7000), at(HOST4, 7000), at(GATEWAY4, 7000)] {
            let begun = Instant::now();
            let error = connect(&one.ns, to).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{to}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(2));
        }
    });
}

#[test]
fn groups_and_broadcasts() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let members: Vec<Member> = (2..5).map(|n| network.join(n, &wish(&[&format!("m{n}")]))).collect();
        let receive = |member: &Member, group: Option<IpAddr>| {
            member.ns.run(|| {
                let socket =
                    UdpSocket::bind(if group.is_some_and(|g| g.is_ipv6()) { "[::]:6000" } else { "0.0.0.0:6000" })
                        .unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                match group {
                    Some(IpAddr::V4(group)) => {
                        socket.join_multicast_v4(&group, &v4(member.number)).unwrap();
                    }
                    Some(IpAddr::V6(group)) => {
                        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
                        socket.join_multicast_v6(&group, index).unwrap();
                    }
                    None => {}
                }
                socket
            })
        };
        for group in ["239.7.7.7", "ff05::7:7", "ff02::4321"] {
            let group: IpAddr = group.parse().unwrap();
            let joined = receive(&members[1], Some(group));
            std::thread::sleep(Duration::from_millis(1500));
            let before = network.ask(&json!({"execute": "list_members"}));
            members[0].ns.run(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(at(group, 6000)), socket2::Type::DGRAM, None)
                        .unwrap();
                match group {
                    IpAddr::V4(_) => socket.set_multicast_if_v4(&v4(2)).unwrap(),
                    IpAddr::V6(_) => {
                        socket.set_multicast_if_v6(nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
                    }
                }
                socket.send_to(b"to the group", &at(group, 6000).into()).unwrap();
            });
            let mut buf = [0; 100];
            let (len, from) = joined.recv_from(&mut buf).unwrap_or_else(|e| panic!("{group}: {e}"));
            assert_eq!(&buf[..len], b"to the group", "{from}");
            let after = network.ask(&json!({"execute": "list_members"}));
            let frames = |list: &Value| list["return"]["members"][2]["frames_to_guest"].as_u64();
            // Only what the third one's own kernel and ours say, and no datagram.
            assert!(frames(&after) <= frames(&before).map(|n| n + 1), "{group} went to who did not join");
        }
        let all: Vec<UdpSocket> = members[1..].iter().map(|member| receive(member, None)).collect();
        members[0].ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(b"to all", "172.18.255.255:6000").unwrap();
            socket.send_to(b"to all", "255.255.255.255:6000").unwrap();
        });
        for socket in &all {
            for _ in 0..2 {
                assert_eq!(socket.recv_from(&mut [0; 100]).unwrap().0, 6);
            }
        }
    });
}

/// Bits per second of the receiver.
fn iperf(from: &Member, to: &Member, server: &str, extra: &[&str]) -> f64 {
    let serve = to.ns.cmd(&["iperf3", "-s", "-1", "-J"]).limit(60).spawn();
    to.ns.await_listener(5201);
    let mut argv = vec!["iperf3", "-c", server, "-t", "2", "-J"];
    argv.extend(extra);
    let client = from.ns.cmd(&argv).limit(60).end();
    assert!(client.code == 0, "{argv:?}: {}{}", client.stdout, client.stderr);
    drop(serve);
    let record: Value = serde_json::from_str(&client.stdout).unwrap();
    let end = &record["end"];
    assert!(record.get("error").is_none(), "{argv:?}: {}", record["error"]);
    let sum = if extra.contains(&"-u") { &end["sum"] } else { &end["sum_received"] };
    sum["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{argv:?}: {record}"))
}

#[test]
fn streams_and_datagrams_between_members() {
    World::run(|w| {
        for mtu in [1500, 65520] {
            let network = Network::start(w, config(mtu));
            let (one, two) = (network.join(2, &wish(&["one"])), network.join(3, &wish(&["two"])));
            let poor = network.join(4, &Wish { no_offloads: true, ..wish(&["poor"]) });
            for server in ["172.18.0.3", "fd00:12::3"] {
                for extra in [&[][..], &["-R"], &["-u", "-b", "100M"]] {
                    let rate = iperf(&one, &two, server, extra);
                    eprintln!("MTU {mtu}, {server} {extra:?}: {:.2} Gbit/s", rate / 1e9);
                    assert!(rate > 50e6, "MTU {mtu}, {server} {extra:?}: {rate} bit/s");
                }
            }
            for server in ["172.18.0.4", "fd00:12::4"] {
                for extra in [&[][..], &["-R"], &["-u", "-b", "100M"]] {
                    let rate = iperf(&one, &poor, server, extra);
                    eprintln!("MTU {mtu}, without offloads, {server} {extra:?}: {:.2} Gbit/s", rate / 1e9);
                    assert!(rate > 50e6, "MTU {mtu}, {server} {extra:?}: {rate} bit/s");
                }
            }
            drop((one, two, poor));
            let pid = Pid::from_raw(network.pid());
            wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());
        }
    });
}

#[test]
fn its_death_is_seen_by_all_and_a_successor_serves_the_same_taps() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let (one, two) = (network.join(2, &wish(&["one"])), network.join(3, &wish(&["two"])));
        one.sh("ping -c1 -W2 172.18.0.3");
        kill(Pid::from_raw(network.pid()), Signal::SIGKILL).unwrap();
        for member in [&one, &two] {
            let ended = attach::recv::<FromNetwork>(member.conn.as_ref().unwrap());
            assert!(matches!(ended, Err(attach::AttachError::Closed)), "{ended:?}");
        }
        drop(network);
        let network = Network::start(w, config(1500));
        for (number, member, name) in [(2, &one, "one"), (3, &two, "two")] {
            let conn = network.connect().unwrap();
            let mut endpoint = Network::endpoint(number, 1500);
            endpoint.offloads =
                tapway::network::config::Offloads { vnet_hdr: true, csum: true, tso4: true, tso6: true, uso: true };
            let membership = Some(Box::new(Membership { names: vec![name.into()], links: vec![] }));
            let hello = hello(endpoint, membership);
            attach::send(&conn, &hello, &[member.tap.as_raw_fd()]).unwrap();
            attach::send(&conn, &ToNetwork::Start, &[]).unwrap();
            assert_eq!(attach::recv::<FromNetwork>(&conn).unwrap().0, FromNetwork::Ready);
            std::mem::forget(conn);
        }
        one.sh("ping -c1 -W2 172.18.0.3");
        assert_eq!(one.dig("127.0.0.11", "two", "A"), ["172.18.0.3"]);
    });
}

#[test]
fn fifty_members() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let members: Vec<Member> = (2..52).map(|n| network.join(n, &wish(&[&format!("m{n}")]))).collect();
        for member in &members {
            let other = if member.number == 51 { 2 } else { member.number + 1 };
            member.sh(&format!("ping -c1 -W2 172.18.0.{other} >&2; ping -c1 -W2 fd00:12::{other:x} >&2"));
        }
        let all = (2..52).map(|n| format!("m{n} A")).collect::<Vec<_>>().join(" ");
        let answers = members[7].sh(&format!("dig +short +tries=1 +time=3 @127.0.0.11 {all}"));
        assert_eq!(answers.lines().count(), 50, "{answers}");
        let pid = network.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
        let kib: u64 = resident.trim_end_matches(" kB").trim().parse().unwrap();
        eprintln!("50 members: {kib} KiB resident");
        assert!(kib < 40 * 1024, "{resident} resident");
        let before = cpu(pid);
        std::thread::sleep(Duration::from_secs(1));
        assert!(cpu(pid) - before < 0.1, "idle members cost time");
        drop(members);
        wait_for("the network process to leave", Duration::from_secs(10), || kill(Pid::from_raw(pid), None).is_err());
    });
}

#[test]
fn a_member_at_full_rate_does_not_starve_the_others() {
    World::run(|w| {
        let network = Network::start(w, config(1500));
        let members: Vec<Member> = (2..6).map(|n| network.join(n, &wish(&[&format!("m{n}")]))).collect();
        // Small datagrams to somebody who does not want them cost most.
        members[0].sh("python3 -c '
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.time() + 20
while time.time() < end:
    try:
        s.sendto(b\"x\" * 100, (\"172.18.0.3\", 9))
    except OSError:
        pass
' >/dev/null 2>&1 &");
        let other = &members[2];
        let ping = other.sh("sleep 0.5; ping -q -c40 -i0.05 -W2 172.18.0.5");
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        let average: f64 = ping.rsplit(" = ").next().unwrap().split('/').nth(1).unwrap().parse().unwrap();
        assert!(average < 20.0, "{ping}");
        assert_eq!(other.dig("127.0.0.11", "m5", "A"), ["172.18.0.5"]);
    });
}

#[test]
fn names_of_a_sandboxs_other_networks() {
    World::run(|w| {
        let front = Network::start(w, config(1500));
        let back = Network::start(w, NetworkConfig { name: "back".into(), ..config(1500) });
        // The sandbox's two endpoints; only the first is where it asks.
        let (web, web_behind) = (front.join(2, &wish(&["web"])), back.join(2, &wish(&["web"])));
        let redis = back.join(3, &wish(&["redis"]));
        assert_eq!(web.status("127.0.0.11", "redis", "A"), "SERVFAIL");
        let tell = |ask: Option<&str>, answer: usize| {
            let pair =
                nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
            let (one, other) = pair.unwrap();
            let say = |member: &Member, ask: Vec<String>, answer: usize, fd: &OwnedFd| {
                let fds = if ask.len() + answer > 0 { vec![fd.as_raw_fd()] } else { vec![] };
                let message = ToNetwork::OtherNetworks { ask, answer };
                attach::send(member.conn.as_ref().unwrap(), &message, &fds).unwrap();
            };
            say(&web_behind, vec![], answer, &other);
            say(&web, ask.iter().map(|&name| name.to_owned()).collect(), 0, &one);
        };
        tell(Some("back"), 1);
        wait_for("the name on the other network", Duration::from_secs(5), || {
            web.dig("127.0.0.11", "redis", "A") == ["172.18.0.3"]
        });
        assert_eq!(web.dig("127.0.0.11", "redis.back", "A"), ["172.18.0.3"]);
        assert_eq!(web.dig("127.0.0.11", "-x 172.18.0.3", ""), ["redis.back."]);
        assert_eq!(web.status("127.0.0.11", "redis.web", "A"), "SERVFAIL");
        assert_eq!(redis.dig("127.0.0.11", "web", "A"), ["172.18.0.2"]);
        drop(redis);
        wait_for("the name to go", Duration::from_secs(5), || web.status("127.0.0.11", "redis", "A") == "SERVFAIL");
        let _redis = back.join(3, &wish(&["redis"]));
        assert_eq!(web.dig("127.0.0.11", "redis", "A"), ["172.18.0.3"]);
        // Disconnected.
        tell(None, 0);
        wait_for("the name to go", Duration::from_secs(5), || web.status("127.0.0.11", "redis", "A") == "SERVFAIL");
    });
}
