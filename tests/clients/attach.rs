//! `tapway attach`: a container that podman runs without a network becomes a member of one of tapway's.

use std::time::Duration;

use crate::world::{World, wait_for};

mod tapway {
    scenarios!(@test Tapway a_podman_container);
}

fn a_podman_container(w: &World) {
    w.user_sh("tapway network create web; echo nameserver 127.0.0.11 > resolv.conf");
    let resolv = "/mnt/home/resolv.conf:/etc/resolv.conf:ro";
    let db = w.container("db", &["--network", "none", "--cap-add", "net_raw", "-v", resolv]);
    let pid = w.podman(&["inspect", "-f", "{{.State.Pid}}", "db"]).ok();
    w.user(&["tapway", "attach", "-d", "--network", "web", "--name", "db", "-p", "8080:80", pid.trim()]).ok();
    w.user_sh("mkdir www; echo from the member > www/index.html");
    let server = ["busybox", "httpd", "-f", "-p", "80", "-h", "/mnt/home/www"];
    let command = [&["tapway", "run", "--network", "web", "--name", "member", "--"][..], &server].concat();
    let member = w.user(&command).spawn();
    wait_for("the member", Duration::from_secs(20), || {
        w.user_sh("tapway ps -q --filter status=running").lines().count() == 2 || !member.alive()
    });
    assert!(member.alive(), "{}", member.stderr());

    // By name, both ways: from a sandbox that tapway made, and from the container's own programs.
    let found = w.user(&["tapway", "exec", "member", "--", "getent", "ahostsv4", "db"]).ok();
    assert!(found.starts_with("172.18.0.2 "), "{found}");
    w.user(&["tapway", "exec", "member", "--", "ping", "-c1", "-W5", "db"]).ok();
    let pinged = db.sh("ping -c1 -W5 member");
    assert!(pinged.contains("172.18.0.3"), "{pinged}");
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc";
    let got = db.sh(&format!("{ask} member 80"));
    assert!(got.ends_with("from the member\n"), "{got}");
    // A published port of a container that podman gave no network.
    db.sh("mkdir /www; echo served > /www/index.html; httpd -p 80 -h /www");
    let got = w.user_sh(&format!("{ask} 127.0.0.1 8080"));
    assert!(got.ends_with("served\n"), "{got}");
    let on_network = w.user_sh("tapway network inspect -f '{{range .Containers}}{{.Name}} {{end}}' web");
    assert!(on_network.contains("db ") && on_network.contains("member "), "{on_network}");

    // podman ends it, and the attachment ends with it: the name is gone for the others.
    w.podman(&["stop", "-t", "0", "db"]).ok();
    // This test holds the namespace as well.
    drop(db);
    wait_for("the end of the attachment", Duration::from_secs(20), || w.user_sh("tapway ps -q").lines().count() == 1);
    let lost = w.user(&["tapway", "exec", "member", "--", "getent", "hosts", "db"]).end();
    assert!(lost.code != 0 && lost.stdout.is_empty(), "{}", lost.stdout);
}
