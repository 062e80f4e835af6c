//! Ways to the namespace and to the TAP in it: a persistent TAP that the caller made, user namespaces of every
//! relation, and namespaces that are entered by path.

use std::time::Duration;

use crate::data::bulk;
use crate::helper::{HARDENED, Helper, Target, pipe};
use crate::tools::{ask_tcp, at, tell_tcp};
use crate::world::{HOST4, INET4, World};

tests! {
    a_tap_that_the_caller_made_and_raised: real ours verb;
    a_persistent_tap_stays_for_the_next_helper: real ours;
    a_tap_with_other_flags: real ours;
    a_tap_with_many_queues: real ours;
    a_device_that_is_no_tap: real ours;
    from_inside_the_user_namespace: real ours;
    as_podman_starts_it: real ours verb;
    as_rootlesskit_starts_it: real ours;
    a_user_namespace_in_a_user_namespace: real ours;
    a_process_in_a_deeper_user_namespace: ours;
    two_helpers_in_one_namespace: real ours;
    without_configuration_nothing_is_touched: real ours;
}

/// What RootlessKit does after the helper is ready.
fn configure_by_hand(target: &Target, mtu: u32) {
    target.sh(&format!(
        "ip link set lo up; ip link set dev tap0 mtu {mtu}; ip addr add 10.0.2.100/24 dev tap0
         ip route add default via 10.0.2.2 dev tap0"
    ));
}

fn a_tap_that_the_caller_made_and_raised(w: &World, helper: &Helper) {
    for (port, mtu) in [(7000, 65_520), (7010, 1500)] {
        let target = Target::new(w);
        target.sh("ip tuntap add name tap0 mode tap; ip link set tap0 up");
        let _running = helper.with(&["--mtu", &mtu.to_string(), &target.pid.to_string(), "tap0"]).ready();
        configure_by_hand(&target, mtu);
        bulk(&target.ns, &w.internet, at(INET4, port), at(INET4, port), 8 << 20);
        bulk(&target.ns, &w.host, at([127, 0, 0, 1], port), at([10, 0, 2, 2], port), 8 << 20);
    }
}

fn a_persistent_tap_stays_for_the_next_helper(w: &World, helper: &Helper) {
    let target = Target::new(w);
    target.sh("ip tuntap add name tap0 mode tap; ip link set tap0 up");
    configure_by_hand(&target, 65_520);
    let index = target.sh("ip -o link show tap0 | cut -d: -f1");
    for round in 0..3 {
        let args = ["--mtu=65520", &target.pid.to_string(), "tap0"];
        let mut running = helper.with(&args).and(if round == 1 { HARDENED } else { &[] }).ready();
        let server = at(INET4, 7000 + round);
        bulk(&target.ns, &w.internet, server, server, 1 << 20);
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.wait(Duration::from_secs(5));
        target.sh("ip link show tap0");
    }
    assert_eq!(target.sh("ip -o link show tap0 | cut -d: -f1"), index);
}

fn a_tap_with_other_flags(w: &World, helper: &Helper) {
    for (n, flags) in ["pi", "vnet_hdr", "one_queue", "pi vnet_hdr"].into_iter().enumerate() {
        let target = Target::new(w);
        target.sh(&format!("ip tuntap add name tap0 mode tap {flags}; ip link set tap0 up"));
        let _running = helper.with(&["--mtu=9000", &target.pid.to_string(), "tap0"]).ready();
        configure_by_hand(&target, 9000);
        let server = at(INET4, 7000 + u16::try_from(n).unwrap());
        bulk(&target.ns, &w.internet, server, server, 2 << 20);
    }
}

fn a_tap_with_many_queues(w: &World, helper: &Helper) {
    let target = Target::new(w);
    target.sh("ip tuntap add name tap0 mode tap multi_queue; ip link set tap0 up");
    helper.with(&[&target.pid.to_string(), "tap0"]).fails("ioctl(TUNSETIFF): Invalid argument");
}

fn a_device_that_is_no_tap(w: &World, helper: &Helper) {
    let target = Target::new(w);
    target.sh("ip tuntap add name tun0 mode tun; ip link add dummy0 type dummy || true");
    helper.with(&[&target.pid.to_string(), "tun0"]).fails("ioctl(TUNSETIFF): Invalid argument");
    helper.with(&["-c", &target.pid.to_string(), "lo"]).fails("ioctl(TUNSETIFF): Invalid argument");
    target.sh("ip link show tun0");
}

/// As buildah is: setns(2) into one's own user namespace is an error that is none.
fn from_inside_the_user_namespace(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let enter = ["nsenter", "-t", &pid, "-U", "--preserve-credentials", "--"];
    for options in [&["--mtu", "65520"][..], HARDENED] {
        let _running = helper.with(&["-c", &pid, "tap0"]).and(options).through(&enter).ready();
        target.sh("ping -c1 -W5 10.0.2.2");
    }
}

fn as_podman_starts_it(w: &World, helper: &Helper) {
    // Podman's own user namespace, with the network namespace bound to a file.
    let podman = Target::made_by(w, &["unshare", "-r"]);
    let enter = ["nsenter", "-t", &podman.pid.to_string(), "-U", "--preserve-credentials", "unshare", "-m", "--"];
    let container = Target::made_by(
        w,
        &["nsenter", "-t", &podman.pid.to_string(), "-U", "--preserve-credentials", "unshare", "-n", "--"],
    );
    let path = w.path("netns-8f4f");
    std::fs::write(&path, "").unwrap();
    w.host.sh(&format!("mount --bind /proc/{}/ns/net {}", container.pid, path.display()));
    container.sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
    let (exit, held) = pipe();
    let options = ["--disable-host-loopback", "--mtu=65520", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6"];
    let mut running = helper
        .with(&options)
        .and(&["-c", "-e", "4", "--netns-type=path", path.to_str().unwrap(), "tap0"])
        .through(&enter)
        .fd(exit, 4)
        .ready();
    container.sh("echo 1 > /proc/sys/net/ipv6/conf/default/accept_dad");
    assert!(container.sh("ip -4 -o addr show dev tap0").contains("10.0.2.100/24"));
    assert!(container.sh("ip link show tap0").contains("mtu 65520"));
    bulk(&container.ns, &w.internet, at(INET4, 7000), at(INET4, 7000), 8 << 20);
    tell_tcp(&w.host, at(HOST4, 7001));
    ask_tcp(&container.ns, at([0; 4], 0), at(HOST4, 7001));
    // conmon ends.
    drop(held);
    assert_eq!(running.wait(Duration::from_secs(5)), 0, "{}", running.output());
}

fn as_rootlesskit_starts_it(w: &World, helper: &Helper) {
    // Attached: the caller is the unprivileged user, the target a process.
    let target = Target::new(w);
    target.sh("ip tuntap add name tap0 mode tap; ip link set tap0 up");
    let socket = w.path(".s4nn.sock");
    let mut options = vec!["--mtu", "65520", "--disable-host-loopback", "--api-socket", socket.to_str().unwrap()];
    options.extend(["--enable-sandbox", "--enable-seccomp", "--enable-ipv6"]);
    let _attached = helper.with(&options).and(&[&target.pid.to_string(), "tap0"]).ready();
    configure_by_hand(&target, 65_520);
    bulk(&target.ns, &w.internet, at(INET4, 7000), at(INET4, 7000), 8 << 20);
    let request = crate::helper::add("tcp", at([0; 4], 8085), "10.0.2.100", 85);
    assert_eq!(crate::helper::ask(&socket, &(request + "\n"))["return"]["id"], 1);
    tell_tcp(&target.ns, at([0; 4], 85));
    assert_eq!(ask_tcp(&w.internet, at(INET4, 0), at(HOST4, 8085)).1.ip(), INET4);
    // Detached: only the user namespace has a process, the network namespace is a file in its view.
    let child = Target::made_by(w, &["unshare", "-r", "-m"]);
    let net = Target::made_by(
        w,
        &["nsenter", "-t", &child.pid.to_string(), "-U", "-m", "--preserve-credentials", "unshare", "-n", "--"],
    );
    net.sh("ip tuntap add name tap0 mode tap; ip link set tap0 up");
    let view = child.pid.to_string();
    let pid = net.pid;
    child.mount_sh(&format!("mount -t tmpfs t /tmp; : > /tmp/netns; mount --bind /proc/{pid}/ns/net /tmp/netns"));
    let (user, file) = (format!("--userns-path=/proc/{view}/ns/user"), format!("/proc/{view}/root/tmp/netns"));
    let args =
        ["--mtu", "65520", "--disable-host-loopback", "--enable-seccomp", &user, "--netns-type=path", &file, "tap0"];
    let _detached = helper.with(&args).ready();
    configure_by_hand(&net, 65_520);
    bulk(&net.ns, &w.internet, at(INET4, 7002), at(INET4, 7002), 8 << 20);
}

/// `--userns=keep-id`: the container's user namespace lies in podman's, and owns the network namespace.
fn a_user_namespace_in_a_user_namespace(w: &World, helper: &Helper) {
    let podman = Target::made_by(w, &["unshare", "-r"]);
    let inside = ["nsenter", "-t", &podman.pid.to_string(), "-U", "--preserve-credentials", "--"];
    let container = Target::made_by(w, &[&inside[..], &["unshare", "-r", "-n"]].concat());
    let pid = container.pid.to_string();
    let (exit, _held) = pipe();
    let from_podman = helper.with(&["-c", "-e", "4", &pid, "tap0"]).and(HARDENED).through(&inside).fd(exit, 4).ready();
    container.sh("ping -c1 -W5 10.0.2.2");
    drop(from_podman);
    // And from where podman was started.
    for options in [&[][..], HARDENED] {
        let _running = helper.with(&["-c", &pid, "tap0"]).and(options).ready();
        container.sh("ping -c1 -W5 10.0.2.2");
    }
}

/// As bubblewrap has it. Upstream joins the process's user namespace, from which it may not enter the network's.
fn a_process_in_a_deeper_user_namespace(w: &World, helper: &Helper) {
    let target = Target::made_by(w, &["unshare", "-r", "-n", "unshare", "-r", "--"]);
    for options in [&[][..], HARDENED] {
        let _running = helper.with(&["-c", &target.pid.to_string(), "tap0"]).and(options).ready();
        target.ns.sh("ping -c1 -W5 10.0.2.2");
    }
}

fn two_helpers_in_one_namespace(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let _one = helper.with(&["-c", &pid, "tap0"]).ready();
    let two = helper.with(&["-c", "--cidr=10.0.3.0/24", &pid, "tap1"]).ready();
    target.sh("ping -c1 -W5 10.0.2.2; ping -c1 -W5 10.0.3.2");
    drop(two);
    target.sh("ping -c1 -W5 10.0.2.2");
}

fn without_configuration_nothing_is_touched(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let before = target.sh("cat /proc/sys/net/ipv4/conf/all/* 2>/dev/null | sha256sum; ip -o link show lo");
    let _running = helper.with(&["-6", &target.pid.to_string(), "tap0"]).ready();
    let link = target.sh("ip -o link show tap0");
    assert!(!link.contains("UP"), "{link}");
    assert_eq!(target.sh("ip -o addr show dev tap0; ip route; ip -6 route"), "");
    assert_eq!(target.sh("cat /proc/sys/net/ipv4/conf/all/* 2>/dev/null | sha256sum; ip -o link show lo"), before);
}
