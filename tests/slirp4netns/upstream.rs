//! What slirp4netns's own fourteen test scripts ask of a helper, one test each.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::helper::{Helper, Target, ask, pipe};
use crate::tools::{at, tell_tcp};
use crate::world::{HOST4, World, wait_for};

tests! {
    api_socket: real ours verb;
    cidr: real ours;
    configure: real ours verb;
    dhcp: real ours;
    disable_dns: real ours;
    disable_host_loopback: real ours;
    exit_fd: real ours;
    exit_fd_that_is_not_open: real ours;
    macaddress: real ours;
    nspath: real ours;
    outbound_addr: real ours;
    ready_fd_of_a_file: real ours;
    sandbox: real ours;
    sandbox_leaves_mounts_alone: real ours;
    seccomp: real ours;
}

fn api_socket(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let long = format!("/mnt/{}", "x".repeat(110));
    let ended = helper.with(&["-c", &pid, "--api-socket", &long, "tap11"]).end();
    assert_ne!(ended.code, 0, "{}", ended.stdout);

    let path = w.path("api");
    let _running = helper.with(&["-c", &pid, "--api-socket", path.to_str().unwrap(), "tap11"]).ready();
    let bad = |request: &str, why: &str| {
        let desc = ask(&path, request)["error"]["desc"].clone();
        assert_eq!(desc, format!("bad request: {why}"), "{request}");
    };
    bad("badjson", "cannot parse JSON");
    bad("{}", "no execute found");
    bad(r#"{"execute": "bad"}"#, "unknown execute");
    let add = |arguments: &str| format!(r#"{{"execute": "add_hostfwd", "arguments": {{{arguments}}}}}"#);
    bad(&add(r#""proto": "bad""#), "add_hostfwd: bad arguments.proto");
    let forward =
        r#""proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80"#;
    assert_eq!(ask(&path, &add(forward)).to_string(), r#"{"return":{"id":1}}"#);
    bad(&add(forward), "add_hostfwd: slirp_add_hostfwd failed");
    let list = ask(&path, r#"{"execute": "list_hostfwd"}"#);
    let entry = &list["entries"][0];
    assert_eq!((&entry["id"], &entry["guest_port"], &entry["proto"]), (&1.into(), &80.into(), &"tcp".into()), "{list}");
    if !helper.is_real() {
        // The documented place, which upstream forgot.
        assert_eq!(list["return"]["entries"], list["entries"], "{list}");
    }
    let remove = r#"{"execute": "remove_hostfwd", "arguments": {"id": 1}}"#;
    assert_eq!(ask(&path, remove).to_string(), r#"{"return":{}}"#);
    bad(remove, "remove_hostfwd: bad arguments.id");
    // As the script does it: more than a request may have.
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let _ = stream.write_all(&[0; 8192]);
    let mut reply = [0; 256];
    let n = std::io::Read::read(&mut stream, &mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply[..n]);
    assert_eq!(reply, r#"{"error":{"desc":"bad request: too large message"}}"#);
}

fn cidr(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    for (cidr, why) in [
        ("24", "invalid CIDR: 24"),
        ("foo", "invalid CIDR: foo"),
        ("10.0.2.0", "invalid CIDR: 10.0.2.0"),
        ("10.0.2.100/24", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
        ("10.0.2.100/26", "prefix length needs to be 1-25"),
    ] {
        helper.with(&["-c", &pid, "--cidr", cidr, "tun11"]).fails(why);
    }
    let _running = helper.with(&["-c", &pid, "tun11", "--cidr", "10.0.135.128/25"]).ready();
    let addresses = target.sh("ip -4 -o addr show dev tun11");
    assert!(addresses.contains("inet 10.0.135.228/25 "), "{addresses}");
    assert!(target.sh("ip route").contains("default via 10.0.135.130 dev tun11"));
    target.sh("ping -c1 -W5 10.0.135.130 && ping -c1 -W5 10.0.135.131");
}

fn configure(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let _running = helper.with(&["-c", &target.pid.to_string(), "tap11"]).ready();
    let conf = target.sh("ip -a netconf");
    assert!(conf.contains("tap11"), "{conf}");
    let addresses = target.sh("ip -4 -o addr");
    assert!(addresses.contains("tap11    inet 10.0.2.100/24 "), "{addresses}");
    // Loopback too.
    target.sh("ping -c1 -W5 127.0.0.1 && ping -c1 -W5 10.0.2.2");
    let link = target.sh("ip -o link show tap11");
    assert!(link.contains(" mtu 1500 ") && link.contains("UP,LOWER_UP"), "{link}");
}

fn dhcp(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let _running = helper.with(&[&target.pid.to_string(), "tap11"]).ready();
    target.sh("ip link set tap11 up");
    let ended = target.cmd(&["udhcpc", "-i", "tap11", "-q", "-n", "-f", "-s", "/bin/true"]).end();
    let log = ended.stdout + &ended.stderr;
    assert!(ended.code == 0 && log.contains("10.0.2.15"), "{log}");
}

fn disable_dns(w: &World, helper: &Helper) {
    let version = helper.with(&["--version"]).end().stdout;
    let number = version.lines().find_map(|line| line.strip_prefix("SLIRP_CONFIG_VERSION_MAX: ")?.parse::<u32>().ok());
    assert!(number.is_some_and(|n| n >= 3), "{version}");
    // Somebody is there to answer, and is not asked.
    tell_tcp(&w.host, at([127, 0, 0, 1], 53));
    w.host_resolv_conf("nameserver 127.0.0.1\n");
    let guest = helper.guest(w, &["--disable-dns"]);
    guest.sh("ping -c1 -W5 10.0.2.2");
    let begin = Instant::now();
    let ended = guest.target.cmd(&["ncat", "-v", "-w", "4", "10.0.2.3", "53"]).end();
    let said = ended.stdout + &ended.stderr;
    assert!(said.contains("Connection timed out") || said.contains("TIMEOUT"), "{said}");
    assert!(begin.elapsed() > Duration::from_secs(3), "it was refused: {said}");
}

fn disable_host_loopback(w: &World, helper: &Helper) {
    tell_tcp(&w.host, at([127, 0, 0, 1], 12121));
    let guest = helper.guest(w, &["--disable-host-loopback"]);
    guest.sh("ping -c1 -W5 10.0.2.2");
    let begin = Instant::now();
    let ended = guest.target.cmd(&["ncat", "-v", "10.0.2.2", "12121"]).end();
    let said = ended.stdout + &ended.stderr;
    assert!(ended.code != 0 && said.contains("Network is unreachable"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(1), "at once, not after {:?}", begin.elapsed());
    // Other addresses of the host are none of its business.
    tell_tcp(&w.host, at(HOST4, 12122));
    crate::tools::ask_tcp(guest.ns(), at([0; 4], 0), at(HOST4, 12122));
}

fn exit_fd(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let mut running = helper.with(&["-c", "--exit-fd=10", &target.pid.to_string(), "tap11"]).fd(read, 10).ready();
    running.stays(Duration::from_millis(300));
    drop(write);
    assert_eq!(running.wait(Duration::from_secs(5)), 0, "{}", running.output());
}

/// The script's own line passes `10/dev/fd/63` as one argument too many, and no descriptor 10.
fn exit_fd_that_is_not_open(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let mut running = helper.with(&["-c", "--exit-fd=10", &pid, "tap11", "10/dev/fd/63"]).ready();
    assert_eq!(running.wait(Duration::from_secs(5)), 0, "{}", running.output());
    assert!(running.stdout().contains("WARNING: too many arguments"), "{}", running.output());
}

fn macaddress(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let mac = "0e:d4:18:d9:38:fb";
    let _running = helper.with(&["-c", "--macaddress", mac, &target.pid.to_string(), "tun11"]).ready();
    let link = target.sh("ip addr show tun11");
    assert!(link.contains(&format!("ether {mac}")), "{link}");
    target.sh("ping -c1 -W5 10.0.2.2");
}

fn nspath(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let (user, net) = (format!("--userns-path=/proc/{pid}/ns/user"), format!("/proc/{pid}/ns/net"));
    let outside = helper.with(&["-c", &user, "--netns-type=path", &net, "tap11"]).ready();
    target.sh("ip link show tap11; ping -c1 -W5 10.0.2.2");
    drop(outside);
    let enter = ["nsenter", "-t", &pid, "-U", "--preserve-credentials", "--"];
    let _inside = helper.with(&["-c", "--netns-type=path", &net, "tap11"]).through(&enter).ready();
    target.sh("ip link show tap11; ping -c1 -W5 10.0.2.2");
}

fn outbound_addr(w: &World, helper: &Helper) {
    let server = at([0; 4], 7000);
    tell_tcp(&w.host, server);
    for addr in [[127, 0, 0, 1], HOST4.octets()] {
        let text = std::net::Ipv4Addr::from(addr).to_string();
        let guest = helper.guest(w, &["--outbound-addr", &text]);
        let (_, seen) = crate::tools::ask_tcp(guest.ns(), server_any(), at([10, 0, 2, 2], 7000));
        assert_eq!(seen.ip().to_string(), text);
    }
    // By name: the interface's first address.
    let guest = helper.guest(w, &["--outbound-addr", "up0"]);
    let (_, seen) = crate::tools::ask_tcp(guest.ns(), server_any(), at([10, 0, 2, 2], 7000));
    assert_eq!(seen.ip(), HOST4);
}

fn server_any() -> std::net::SocketAddr {
    at([0; 4], 0)
}

fn ready_fd_of_a_file(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let path = w.path("ready");
    let file: OwnedFd = File::create(&path).unwrap().into();
    let _running = helper.with(&["-c", "-r", "10", &target.pid.to_string(), "tap11"]).fd(file, 10).spawn();
    wait_for("the ready byte", Duration::from_secs(10), || std::fs::read(&path).unwrap() == b"1");
    target.sh("ping -c1 -W5 10.0.2.2");
}

fn sandbox(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let mut running = helper.with(&["--enable-sandbox", &target.pid.to_string(), "tun11"]).ready();
    let pid = running.pid();
    // As the user who started it, without any privilege of the stage's.
    let caps = w.host.cmd(&["getpcaps", &pid.to_string()]).unprivileged().end();
    let caps = caps.stdout + &caps.stderr;
    assert!(caps.contains("cap_net_bind_service") && !caps.contains("cap_sys_admin"), "{caps}");
    let exists = |path: &str| {
        let path = format!("/proc/{pid}/root/{path}");
        w.host.cmd(&["sh", "-c", "test -e \"$0\"", &path]).unprivileged().end().code == 0
    };
    for (path, expected) in [("etc", true), ("run", true), ("home", false), ("root", false), ("var", false)] {
        assert_eq!(exists(path), expected, "/{path} in the sandbox");
    }
    let addresses = target.sh("ip -o addr show dev tun11");
    assert!(!addresses.contains("inet "), "nobody asked for an address: {addresses}");
    running.stays(Duration::from_millis(50));
}

/// As root of a user namespace with a mount below a shared /run, which must still be there afterwards.
fn sandbox_leaves_mounts_alone(w: &World, helper: &Helper) {
    w.host.sh("mkdir /mnt/sys-run; mount --rbind /mnt/sys-run /run; mkdir /run/foo");
    let target = Target::made_by(
        w,
        &[
            "unshare",
            "-r",
            "-m",
            "sh",
            "-ec",
            "mount -t tmpfs t /run/foo; mount --make-rshared /run/foo; exec \"$@\"",
            "sh",
        ],
    );
    let net = Target::made_by(
        w,
        &["nsenter", "-t", &target.pid.to_string(), "-U", "--preserve-credentials", "unshare", "-n"],
    );
    let enter = ["nsenter", "-t", &target.pid.to_string(), "-U", "-m", "--preserve-credentials", "--"];
    let path = format!("/proc/{}/ns/net", net.pid);
    let args = ["-c", "--enable-sandbox", "--netns-type=path", &path, "tun11"];
    let _running = helper.with(&args).through(&enter).ready();
    let mounted = target.mount_sh("findmnt /run/foo");
    assert!(mounted.contains("/run/foo"), "{mounted}");
    net.sh("ping -c1 -W5 10.0.2.2");
}

fn seccomp(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let user = format!("--userns-path=/proc/{pid}/ns/user");
    let running = helper.with(&["-c", "--enable-seccomp", &user, &pid, "tun11"]).ready();
    assert!(target.sh("ip -4 -o addr").contains("tun11    inet 10.0.2.100/24 "));
    target.sh("ping -c1 -W5 10.0.2.2");
    assert_eq!(running.status("Seccomp"), "2");
}
