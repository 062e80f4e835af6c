//! Bad input: one clear line that names the value and the remedy, the right exit code, and nothing left behind.

use std::net::{TcpListener, UdpSocket};

use crate::stage::{Ended, Stage};

fn assert_refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!((ended.stdout.as_str(), ended.stderr.lines().count()), ("", 1), "{ended:?}");
    assert!(ended.stderr.starts_with("tapway: "), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no '{part}' in {ended:?}");
    }
}

#[test]
fn usage_errors() {
    let stage = Stage::new();
    for (args, parts) in [
        (&["--subnet", "10.0.2.0/30", "true"][..], &["10.0.2.0/30", "between /8 and /25"][..]),
        (&["--subnet", "10.0.2.9/24", "true"], &["10.0.2.9/24", "did you mean 10.0.2.0/24"]),
        (&["--subnet", "127.0.0.0/8", "true"], &["127.0.0.0/8", "private range"]),
        (&["--subnet", "fd00::/64", "--ipv6=off", "true"], &["fd00::/64", "--ipv6=off"]),
        (&["--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24", "true"], &["10.2.0.0/24", "one of each"]),
        (&["--mtu", "1000", "true"], &["1000", "1280", "--ipv6=off"]),
        (&["--mtu", "99999", "true"], &["99999", "65521"]),
        (&["--mtu", "big", "true"], &["'big'", "--mtu"]),
        (&["--mac-address", "01:00:5e:00:00:01", "true"], &["01:00:5e:00:00:01", "unicast"]),
        (&["-p", "http:80", "true"], &["'http'", "1 to 65535"]),
        (&["-p", "8080:80/sctp", "true"], &["'sctp'", "/tcp or /udp"]),
        (&["-p", "8000-8002:80-81", "true"], &["8000-8002:80-81", "one length"]),
        (&["-p", "8080:80", "-p", "8080:81", "true"], &["8080:80", "8080:81"]),
        (&["-p", "::1:8080:80", "true"], &["::1:8080:80", "brackets"]),
        (&["--network", "bridge", "--subnet", "10.0.0.0/24", "true"], &["subnet and the network bridge", "private"]),
        (&["--net", "container:", "true"], &["invalid container format container:<name|id>"]),
        (
            &["--net", "container:x", "-p", "80:80", "true"],
            &["conflicting options: port publishing and the container type"],
        ),
        (&["--net", "none", "--pcap", "/tmp/x", "true"], &["conflicting options: pcap and the network mode"]),
        (&["--net", "none", "--add-host", "a:host-gateway", "true"], &["a:host-gateway", "--network none"]),
        (&["--expose", "8080:80", "true"], &["'8080:80'"]),
        (&["--network", "a", "--network", "bridge", "true"], &["both user-defined and non-user-defined"]),
        (&["--network", "a", "--network", "a", "true"], &["network \"a\" is specified multiple times"]),
        (&["--network", "name=a,ip=1.2.3", "true"], &["name=a,ip=1.2.3", "invalid IPv4 address: 1.2.3"]),
        (&["--link", "a:b:c", "true"], &["bad format for links: a:b:c"]),
        (&["--name", "../x", "true"], &["'../x'", "letters"]),
        (&["--hostname", "a b", "true"], &["'a b'"]),
        (&["--ipv6", "maybe", "true"], &["'maybe'", "on, off"]),
        (&["--dns", "ns.example", "true"], &["'ns.example'", "192.0.2.53"]),
        (&["--metrics-listen", "localhost:9100", "true"], &["'localhost:9100'", "[::1]:9100"]),
        (&["--metrics-listen", "65536", "true"], &["'65536'", "1 to 65535"]),
        (&["--metrics-listen", "::1:9100", "true"], &["'::1:9100'", "brackets"]),
        (&["--dns-search", "a b", "true"], &["'a b'"]),
        (&["--add-host", "db=there", "true"], &["'db=there'", "NAME:IP"]),
        (&["--user", "root", "true"], &["'root'", "keep"]),
        (&["--pid", "1", "true"], &["'1'", "private or host"]),
        (&["--log-format", "xml", "true"], &["'xml'", "text, json"]),
        (&["--nmae", "x", "true"], &["'--nmae'", "tapway run --help"]),
        (&["--name"], &["--name"]),
        (&[], &["COMMAND", "tapway run --help"]),
    ] {
        assert_refused(&stage.sandbox(args), 2, parts);
        stage.assert_clean();
    }
    assert_refused(&stage.run(&[]), 2, &["--help"]);
    assert_refused(&stage.run(&["frob"]), 2, &["'frob'"]);
}

#[test]
fn a_port_in_use() {
    let stage = Stage::new();
    let holder = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    for host in ["", "127.0.0.1:"] {
        let ended = stage.sandbox(&["-p", &format!("{host}{port}:80"), "true"]);
        assert_refused(&ended, 1, &[&format!("port {port}/tcp"), "already in use", "another host port"]);
    }
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let ended = stage.sandbox(&["-p", &format!("127.0.0.1:{port}:53/udp"), "true"]);
    assert_refused(&ended, 1, &[&format!("port {port}/udp"), "already in use"]);
}

#[test]
fn a_port_in_use_for_metrics() {
    let stage = Stage::new();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    // The command would leave a mark.
    let mark = stage.dir().join("mark");
    let command = format!("touch {}", mark.display());
    let ended = stage.sandbox(&["--metrics-listen", &port, "sh", "-c", &command]);
    assert_refused(&ended, 1, &["--metrics-listen", &format!("port {port}/tcp on 127.0.0.1"), "already in use"]);
    let ended = stage.sandbox(&["--metrics-listen", "192.0.2.1:0", "sh", "-c", &command]);
    assert_refused(&ended, 1, &["--metrics-listen", "192.0.2.1 is not an address of this host"]);
    assert!(!mark.exists());
    stage.assert_clean();
}

#[test]
fn one_port_in_use_releases_the_others() {
    let stage = Stage::new();
    let (free, held) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (free_port, held_port) = (free.local_addr().unwrap().port(), held.local_addr().unwrap().port());
    drop(free);
    let (a, b) = (format!("127.0.0.1:{free_port}:80"), format!("127.0.0.1:{held_port}:81"));
    assert_refused(&stage.sandbox(&["-p", &a, "-p", &b, "true"]), 1, &[&held_port.to_string()]);
    TcpListener::bind(("127.0.0.1", free_port)).unwrap();
}

#[test]
fn a_privileged_port() {
    let stage = Stage::new();
    let ended = stage.sandbox(&["-p", "81:80", "true"]);
    assert_refused(&ended, 1, &["port 81/tcp", "net.ipv4.ip_unprivileged_port_start", "choose a higher port"]);
}

#[test]
fn an_address_of_somebody_else() {
    let stage = Stage::new();
    assert_refused(&stage.sandbox(&["-p", "192.0.2.1:8080:80", "true"]), 1, &["192.0.2.1", "ip address"]);
    assert_refused(&stage.sandbox(&["--outbound-addr", "192.0.2.1", "true"]), 1, &["192.0.2.1", "ip address"]);
    assert_refused(&stage.sandbox(&["--outbound-addr", "nosuchif", "true"]), 1, &["nosuchif", "lo"]);
}

#[test]
fn a_capture_file_that_cannot_be_written() {
    let stage = Stage::new();
    let ended = stage.sandbox(&["--pcap", "/no/such/directory/file", "true"]);
    assert_refused(&ended, 1, &["/no/such/directory/file", "--pcap"]);
}

#[test]
fn no_tun_device() {
    let stage = Stage::new();
    let ended = stage.script("mount -t tmpfs none /dev/net; user tapway run true");
    assert_refused(&ended, 1, &["/dev/net/tun", "modprobe tun"]);
    let ended = stage.script("mount --bind /dev/null /dev/net/tun; user tapway run true");
    assert_refused(&ended, 1, &["/dev/net/tun"]);
}

#[test]
fn user_namespaces_disabled() {
    let stage = Stage::new();
    // In a user namespace of our own the limit is ours to set.
    let script =
        "exec unshare -Ur sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; exec $TAPWAY run --network private true'";
    let ended = stage.script(script);
    assert_refused(&ended, 1, &["user.max_user_namespaces", "is 0"]);
}

#[test]
fn an_unsafe_runtime_directory_is_not_used() {
    let stage = Stage::new();
    let dir = stage.dir().join("tapway");
    std::os::unix::fs::symlink("/tmp", &dir).unwrap();
    let ended = stage.sandbox(&["true"]);
    assert_refused(&ended, 1, &[dir.to_str().unwrap(), "XDG_RUNTIME_DIR"]);
    std::fs::remove_file(&dir).unwrap();
}
