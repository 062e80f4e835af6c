//! What flows: TCP, UDP, ping and DNS outward, over both protocols.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::helper::{Guest, HARDENED, Helper, Target};
use crate::spaces::{Ns, Proc, wait_for};
use crate::tools::{
    Pattern, any, ask_tcp, ask_udp, at, connect, echo_udp, expect_pattern, listen, reset, send_pattern, serve,
    tell_tcp, tell_udp, udp,
};
use crate::world::{DNS4, GATEWAY4, HOST4, HOST6, INET4, INET6, World};

tests! {
    twenty_mebibytes_each_way: real ours verb;
    udp_of_every_length: real ours;
    the_gateway_is_the_hosts_loopback: real ours;
    a_refused_connection_is_refused_at_once: real ours;
    a_reset_arrives_as_a_reset: real ours;
    ping_answers: real ours;
    any_source_address_works: real ours;
    ipv6_by_router_advertisement: real ours;
    no_ipv6_unless_asked: real ours;
    without_host_loopback_udp_is_told: ours;
    without_host_loopback_ipv6_neither: real ours;
    dns_over_both_transports: real ours verb;
    dns_of_a_resolver_on_loopback: real ours;
    dns_follows_the_hosts_file: real ours;
    dns_over_ipv6: real ours;
    dns_through_a_link_that_leaves_the_sandbox: ours;
    the_outbound_address_is_for_everything: ours;
    a_link_that_goes_down_and_up: real ours;
    a_stopped_helper_goes_on_where_it_was: real ours;
    a_thousand_connections_at_once: ours;
}

const BULK: usize = 20 << 20;
/// fd00::2 and fd00::3.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

/// Each side ends its own direction: the server answers only after the end of what it was sent.
pub fn bulk(client: &Ns, server: &Ns, listener: SocketAddr, to: SocketAddr, length: usize) {
    serve(listen(server, listener), move |stream, _| {
        assert_eq!(expect_pattern(&stream, 1), length);
        send_pattern(&stream, 2, length).unwrap();
    });
    let stream = connect(client, to).unwrap_or_else(|e| panic!("cannot connect to {to}: {e}"));
    send_pattern(&stream, 1, length).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(expect_pattern(&stream, 2), length, "{to}");
}

fn twenty_mebibytes_each_way(w: &World, helper: &Helper) {
    for (port, options) in
        [(7000, &["--mtu=65520", "--enable-sandbox", "--enable-seccomp"][..]), (7010, &["--mtu=1500"])]
    {
        let guest = helper.guest(w, options);
        bulk(guest.ns(), &w.host, at([127, 0, 0, 1], port), at(GATEWAY4, port), BULK);
        bulk(guest.ns(), &w.internet, at(INET4, port + 1), at(INET4, port + 1), BULK);
        guest.forward("tcp", at([0; 4], port + 2), port + 3);
        bulk(&w.internet, guest.ns(), at([0; 4], port + 3), at(HOST4, port + 2), BULK);
    }
}

fn udp_of_every_length(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--mtu=65520"]);
    // Each sender's own kernel cuts what is too long for its link.
    for ns in [guest.ns(), &w.host, &w.router, &w.internet] {
        ns.sh("echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc");
    }
    echo_udp(&w.host, at([127, 0, 0, 1], 7200));
    echo_udp(guest.ns(), at([0; 4], 7201));
    guest.forward("udp", at([0; 4], 7202), 7201);
    echo_udp(&w.internet, at(INET4, 7203));
    for (from, to) in [
        (guest.ns(), at(GATEWAY4, 7200)),
        (guest.ns(), at(INET4, 7203)),
        (&w.host, at([127, 0, 0, 1], 7202)),
        (&w.router, at(HOST4, 7202)),
    ] {
        let socket = udp(from, any(to));
        from.run(|| socket.connect(to)).unwrap();
        let mut pattern = Pattern::new(3);
        for length in [0, 1, 7, 511, 512, 1471, 1472, 1473, 2960, 9000, 40_001, 65_506, 65_507] {
            let (mut sent, mut back) = (vec![0; length], vec![0; 65_536]);
            pattern.fill(&mut sent);
            socket.send(&sent).unwrap();
            let n = socket.recv(&mut back).unwrap_or_else(|e| panic!("{length} bytes to {to}: {e}"));
            assert!(back[..n] == sent, "{length} bytes to {to} came back as other {n}");
        }
    }
}

fn the_gateway_is_the_hosts_loopback(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    let server = at([127, 0, 0, 1], 7000);
    tell_tcp(&w.host, server);
    tell_udp(&w.host, server);
    let to = at(GATEWAY4, 7000);
    assert_eq!(ask_tcp(guest.ns(), any(to), to).1.ip(), server.ip());
    assert_eq!(ask_udp(guest.ns(), any(to), to).1.ip(), server.ip());
    // And elsewhere the host's own address is the source.
    let server = at(INET4, 7000);
    tell_tcp(&w.internet, server);
    tell_udp(&w.internet, server);
    assert_eq!(ask_tcp(guest.ns(), any(server), server).1.ip(), HOST4);
    assert_eq!(ask_udp(guest.ns(), any(server), server).1.ip(), HOST4);
}

fn a_refused_connection_is_refused_at_once(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    for to in [at(GATEWAY4, 7001), at(INET4, 7001)] {
        let begin = Instant::now();
        let error = connect(guest.ns(), to).expect_err("nothing listens there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
        assert!(begin.elapsed() < Duration::from_millis(900), "{to} took {:?}", begin.elapsed());
    }
}

fn a_reset_arrives_as_a_reset(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    serve(listen(&w.internet, at(INET4, 7000)), |mut stream, _| {
        let _ = stream.read(&mut [0; 1]);
        reset(stream);
    });
    let mut stream = connect(guest.ns(), at(INET4, 7000)).unwrap();
    std::io::Write::write_all(&mut stream, b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn ping_answers(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["-6"]);
    guest.addr6();
    guest.sh(&format!("ping -c1 -W5 10.0.2.2; ping -c1 -W5 10.0.2.3; ping -c1 -W5 {INET4}; ping -c1 -W5 {HOST4}"));
    guest.sh("ping -c1 -W5 fd00::2; ping -c1 -W5 fd00::3; ping -c1 -W5 fe80::2%tap0");
    if !helper.is_real() {
        guest.sh(&format!("ping -c1 -W5 {INET6}"));
    }
}

/// RootlessKit's children have networks of their own behind the TAP, not always with NAT.
fn any_source_address_works(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    guest.sh("ip addr add 10.0.2.77/24 dev tap0; ip addr add 172.20.0.5/16 dev tap0");
    tell_tcp(&w.internet, at(INET4, 7000));
    tell_udp(&w.internet, at(INET4, 7000));
    for source in ["10.0.2.77", "172.20.0.5", "10.0.2.100"] {
        let source = at(source.parse::<IpAddr>().unwrap(), 0);
        assert_eq!(ask_tcp(guest.ns(), source, at(INET4, 7000)).1.ip(), HOST4, "{source}");
        assert_eq!(ask_udp(guest.ns(), source, at(INET4, 7000)).1.ip(), HOST4, "{source}");
    }
}

fn ipv6_by_router_advertisement(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["-6"]);
    let address = guest.addr6();
    assert_eq!(address.segments()[..4], [0xfd00, 0, 0, 0], "{address}");
    let route = guest.sh("ip -6 route show default");
    assert!(route.contains("via fe80::2 dev tap0"), "{route}");
    // fd00::2 is ::1.
    let (local, to) = (at(Ipv6Addr::LOCALHOST, 7000), at(GATEWAY6, 7000));
    tell_tcp(&w.host, local);
    tell_udp(&w.host, local);
    assert_eq!(ask_tcp(guest.ns(), any(to), to).1.ip(), local.ip());
    assert_eq!(ask_udp(guest.ns(), any(to), to).1.ip(), local.ip());
    let server = at(INET6, 7000);
    tell_udp(&w.internet, server);
    assert_eq!(ask_udp(guest.ns(), any(server), server).1.ip(), HOST6);
    bulk(guest.ns(), &w.internet, at(INET6, 7001), at(INET6, 7001), 4 << 20);
    // IPv4 is there as ever.
    tell_tcp(&w.internet, at(INET4, 7000));
    ask_tcp(guest.ns(), at([0; 4], 0), at(INET4, 7000));
}

fn no_ipv6_unless_asked(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    // A router solicitation has been sent by then, and would have been answered.
    guest.sh("ping -c1 -W5 10.0.2.2; sleep 2.5");
    assert_eq!(guest.sh("ip -6 addr show dev tap0 scope global; ip -6 route show default"), "");
}

/// Upstream drops it without a word.
fn without_host_loopback_udp_is_told(w: &World, helper: &Helper) {
    let heard = tell_udp(&w.host, at([127, 0, 0, 1], 7000));
    let guest = helper.guest(w, &["--disable-host-loopback"]);
    let socket = udp(guest.ns(), at([0; 4], 0));
    // Else the kernel keeps a network's being unreachable to itself.
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
    guest.ns().run(|| socket.connect(at(GATEWAY4, 7000))).unwrap();
    socket.send(b"?").unwrap();
    let error = socket.recv(&mut [0; 8]).expect_err("nobody may answer");
    assert!(matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)), "{error}");
    assert_eq!(heard.load(std::sync::atomic::Ordering::Relaxed), 0);
}

fn without_host_loopback_ipv6_neither(w: &World, helper: &Helper) {
    tell_tcp(&w.host, at(Ipv6Addr::LOCALHOST, 7000));
    let guest = helper.guest(w, &["--disable-host-loopback", "-6"]);
    guest.addr6();
    guest.sh("ping -c1 -W5 fd00::2");
    let begin = Instant::now();
    let error = connect(guest.ns(), at(GATEWAY6, 7000)).expect_err("it is forbidden");
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
    // The kernel may send its SYN once more.
    assert!(begin.elapsed() < Duration::from_millis(2500), "{:?}", begin.elapsed());
}

/// A name server that answers TXT questions for `who.test` with `mark`.
fn name_server(ns: &Ns, address: IpAddr, mark: &str) -> Proc {
    let (listen, record) = (format!("--listen-address={address}"), format!("--txt-record=who.test,{mark}"));
    let options = ["dnsmasq", "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"];
    let server = ns.cmd(&[&options[..], &["--pid-file=", "--user=", &listen, &record]].concat()).spawn();
    let filter = if address.is_ipv6() { format!("src [{address}]") } else { format!("src {address}") };
    wait_for("dnsmasq", Duration::from_secs(10), || ns.sh(&format!("ss -Hltn '{filter}'")).contains(":53"));
    server
}

/// Who answers at this address: its mark, or nothing.
fn who(guest: &Guest, server: IpAddr, options: &str) -> String {
    let line = format!("dig +short +tries=1 +time=4 {options} @{server} who.test TXT || true");
    guest.sh(&line).trim().trim_matches('"').to_owned()
}

fn dns_over_both_transports(w: &World, helper: &Helper) {
    let _server = name_server(&w.internet, INET4.into(), "inet");
    let guest = helper.guest(w, HARDENED);
    assert_eq!(who(&guest, DNS4.into(), "+notcp"), "inet");
    assert_eq!(who(&guest, DNS4.into(), "+tcp"), "inet");
}

fn dns_of_a_resolver_on_loopback(w: &World, helper: &Helper) {
    let _server = name_server(&w.host, [127, 0, 0, 53].into(), "stub");
    w.host_resolv_conf("# comment\nnameserver 127.0.0.53\noptions edns0\n");
    for options in [&[][..], &["--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"]] {
        let guest = helper.guest(w, options);
        assert_eq!(who(&guest, DNS4.into(), "+notcp"), "stub", "{options:?}");
        assert_eq!(who(&guest, DNS4.into(), "+tcp"), "stub", "{options:?}");
    }
}

fn dns_follows_the_hosts_file(w: &World, helper: &Helper) {
    let _one = name_server(&w.host, [127, 0, 0, 53].into(), "one");
    let _two = name_server(&w.host, [127, 0, 0, 54].into(), "two");
    w.host_resolv_conf("nameserver 127.0.0.53\n");
    let plain = helper.guest(w, &[]);
    let hardened = helper.guest(w, HARDENED);
    for guest in [&plain, &hardened] {
        assert_eq!(who(guest, DNS4.into(), ""), "one");
    }
    let changes: [&dyn Fn(&str); 2] = [
        // Another file under the name, and the same file with other contents.
        &|text| w.host_resolv_conf(text),
        &|text| std::fs::write("/etc/resolv.conf", text).unwrap(),
    ];
    for (change, (text, mark)) in
        changes.into_iter().zip([("nameserver 127.0.0.54\n", "two"), ("# as it was\nnameserver 127.0.0.53\n", "one")])
    {
        change(text);
        // Upstream looks once a second, and only when it is asked.
        std::thread::sleep(Duration::from_millis(1500));
        for guest in [&plain, &hardened] {
            wait_for("the other name server", Duration::from_secs(5), || who(guest, DNS4.into(), "") == mark);
        }
    }
}

fn dns_over_ipv6(w: &World, helper: &Helper) {
    let _server = name_server(&w.internet, INET6.into(), "six");
    w.host_resolv_conf(&format!("nameserver {INET6}\n"));
    let guest = helper.guest(w, &["-6"]);
    guest.addr6();
    assert_eq!(who(&guest, DNS6.into(), "+notcp"), "six");
    assert_eq!(who(&guest, DNS6.into(), "+tcp"), "six");
}

/// As systemd-resolved's link does on some systems; upstream 1.2.0 only warns.
fn dns_through_a_link_that_leaves_the_sandbox(w: &World, helper: &Helper) {
    let _one = name_server(&w.host, [127, 0, 0, 53].into(), "one");
    let _two = name_server(&w.host, [127, 0, 0, 54].into(), "two");
    let elsewhere = w.path("elsewhere");
    std::fs::write(&elsewhere, "nameserver 127.0.0.53\n").unwrap();
    std::fs::remove_file("/etc/resolv.conf").unwrap();
    std::os::unix::fs::symlink(&elsewhere, "/etc/resolv.conf").unwrap();
    let guest = helper.guest(w, HARDENED);
    assert_eq!(who(&guest, DNS4.into(), ""), "one");
    std::fs::write(&elsewhere, "nameserver 127.0.0.54\n").unwrap();
    wait_for("the other name server", Duration::from_secs(5), || who(&guest, DNS4.into(), "") == "two");
}

/// Upstream gets UDP to the gateway wrong, and looks up the wrong option's interface for IPv6.
fn the_outbound_address_is_for_everything(w: &World, helper: &Helper) {
    w.host.sh("ip addr add 203.0.113.22/24 dev up0; ip addr add 2001:db8:1::22/64 dev up0 nodad");
    let (four, six) = (at(INET4, 7000), at(INET6, 7000));
    for server in [four, six] {
        tell_tcp(&w.internet, server);
        tell_udp(&w.internet, server);
    }
    let guest = helper.guest(w, &["-6", "--outbound-addr=203.0.113.22", "--outbound-addr6=2001:db8:1::22"]);
    guest.addr6();
    for (server, want) in [(four, "203.0.113.22"), (six, "2001:db8:1::22")] {
        assert_eq!(ask_tcp(guest.ns(), any(server), server).1.ip().to_string(), want);
        assert_eq!(ask_udp(guest.ns(), any(server), server).1.ip().to_string(), want);
    }
    let guest = helper.guest(w, &["-6", "--outbound-addr6=up0"]);
    guest.addr6();
    let seen = ask_tcp(guest.ns(), any(six), six).1.ip().to_string();
    assert!(seen.starts_with("2001:db8:1::"), "{seen}");
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let text = "outbound-addr has to be valid ipv4 address or i";
    helper.with(&["-c", "--outbound-addr6=nowhere0", &pid, "tap0"]).fails(text);
    helper.with(&["-c", "--outbound-addr=nowhere0", &pid, "tap0"]).fails(text);
}

fn a_link_that_goes_down_and_up(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["-6"]);
    guest.addr6();
    for _ in 0..3 {
        guest.sh("ip link set tap0 down; ip link set tap0 up; ip route replace default via 10.0.2.2");
    }
    tell_tcp(&w.internet, at(INET4, 7000));
    assert_eq!(ask_tcp(guest.ns(), at([0; 4], 0), at(INET4, 7000)).1.ip(), HOST4);
    // Its addresses went with the link; the router is asked again.
    guest.addr6();
    tell_tcp(&w.internet, at(INET6, 7000));
    assert_eq!(ask_tcp(guest.ns(), at([0u16; 8], 0), at(INET6, 7000)).1.ip(), HOST6);
}

fn a_stopped_helper_goes_on_where_it_was(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    serve(listen(&w.internet, at(INET4, 7000)), |stream, _| {
        assert_eq!(expect_pattern(&stream, 1), BULK);
        send_pattern(&stream, 2, BULK).unwrap();
    });
    let stream = connect(guest.ns(), at(INET4, 7000)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                guest.helper.signal(nix::sys::signal::Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(300));
                guest.helper.signal(nix::sys::signal::Signal::SIGCONT);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        send_pattern(&stream, 1, BULK).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(expect_pattern(&stream, 2), BULK);
    });
}

/// Upstream is bound by the soft limit of 1024 descriptors that it inherits.
fn a_thousand_connections_at_once(w: &World, helper: &Helper) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // What it inherits, and what this process needs itself.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1024, most).unwrap();
    let guest = helper.guest(w, HARDENED);
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let server = at(INET4, 7000);
    crate::tools::echo_tcp(&w.internet, server);
    let mut streams: Vec<_> =
        (0..1200).map(|n| connect(guest.ns(), server).unwrap_or_else(|e| panic!("connection {n}: {e}"))).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        std::io::Write::write_all(stream, &n.to_le_bytes()).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap_or_else(|e| panic!("connection {n}: {e}"));
        assert_eq!(usize::from_le_bytes(back), n);
    }
}
