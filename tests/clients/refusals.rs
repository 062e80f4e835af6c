//! What podman's user reads when the helper cannot do its work: the helper's own words, and 126.

use crate::talk::expect_closed;
use crate::tools::{at, listen};
use crate::world::{Ended, HOST4, IDLE, World};

scenarios!(no_tun, ataken_port, a_privileged_port, a_foreign_cidr, an_interface_without_address, a_long_socket_path);

/// `podman run` with these options, which must fail with 126 and leave nothing.
fn refused(w: &World, options: &[&str]) -> Ended {
    w.podman_image();
    let started = w.podman(&[&["run", "-d", "--name", "c"][..], options, &["box"], IDLE].concat()).end();
    assert_eq!(started.code, 126, "{}", started.stderr);
    w.expect_quiet();
    started
}

/// /dev/net/tun cannot be opened. podman's pause process keeps the mount namespace of the first call.
fn no_tun(w: &World) {
    w.host.sh("touch /mnt/closed; chmod 0 /mnt/closed; mount --bind /mnt/closed /dev/net/tun");
    let said = refused(w, &[]).stderr;
    assert!(said.contains("/usr/local/bin/slirp4netns failed"), "{said}");
    assert!(said.contains("/dev/net/tun") && said.contains("Permission denied"), "{said}");
}

fn ataken_port(w: &World) {
    let taken = listen(&w.host, at([0; 4], 8080));
    let said = refused(w, &["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80"]).stderr;
    assert!(said.contains("setting up port redirection") && said.contains("add_hostfwd"), "{said}");
    // Free again, it can be published: nothing of the refused container is in the way.
    drop(taken);
    w.podman(&["rm", "-f", "c"]).end();
    w.container("c", &["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80"]);
}

fn a_privileged_port(w: &World) {
    let said = refused(w, &["--network", "slirp4netns:port_handler=slirp4netns", "-p", "80:80"]).stderr;
    assert!(said.contains("setting up port redirection") && said.contains("add_hostfwd"), "{said}");
    expect_closed(&w.outside, at(HOST4, 80));
}

/// podman takes any network; the helper takes those with room for its addresses.
fn a_foreign_cidr(w: &World) {
    let said = refused(w, &["--network", "slirp4netns:cidr=10.0.2.0/26"]).stderr;
    assert!(said.contains("prefix length needs to be 1-25"), "{said}");
}

fn an_interface_without_address(w: &World) {
    w.host.sh("ip link add bare type veth peer name far");
    let said = refused(w, &["--network", "slirp4netns:outbound_addr=bare"]).stderr;
    assert!(said.contains("outbound-addr has to be valid ipv4 address or interface name"), "{said}");
}

/// podman's path of the API socket is 80 bytes longer than the runtime directory; a UNIX socket's has at most 107.
fn a_long_socket_path(w: &World) {
    w.podman_image();
    for (length, code) in [(27, 0), (28, 126)] {
        let directory = format!("/run/user/{:x<width$}", "", width = length - "/run/user/".len());
        w.host.sh(&format!("mkdir -m 700 {directory}; chown 1000:1000 {directory}"));
        let network = "slirp4netns:port_handler=slirp4netns";
        let options = ["run", "-d", "--network", network, "-p", "8080:80", "box"];
        // Another runtime directory is another podman: with a storage of its own.
        let home = format!("/mnt/home/{length}");
        w.user_sh(&format!(
            "mkdir -p {home}/.config/containers; cp .config/containers/*.conf {home}/.config/containers"
        ));
        let (storage, state) = (format!("--root={home}/storage"), format!("--runroot={directory}/storage"));
        let podman = |args: &[&str]| {
            let all = [&[&*storage, &*state][..], args].concat();
            w.podman(&all).env("XDG_RUNTIME_DIR", &directory).env("HOME", &home).end()
        };
        assert_eq!(podman(&["import", "-q", "/mnt/home/box.tar", "box"]).code, 0);
        let started = podman(&[&options[..], IDLE].concat());
        assert_eq!(started.code, code, "{length}: {}", started.stderr);
        assert_eq!(podman(&["rm", "-a", "-f", "-t", "0"]).code, 0);
    }
}
