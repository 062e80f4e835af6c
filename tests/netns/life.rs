//! Several commands in one sandbox's network, and sandboxes in the background, with traffic.

use std::time::Duration;

use crate::world::{HOST4, World, wait_for};

/// A sandbox in the background that serves one file on port 80; its TCP port on the host.
fn served(w: &World, options: &[&str]) {
    let root = w.path("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("small"), "a small file\n").unwrap();
    let mut args = vec!["run", "--network", "private", "-d"];
    args.extend(options);
    let root = root.display().to_string();
    args.extend(["--", "busybox", "httpd", "-f", "-p", "80", "-h", &root]);
    let id = w.tapway(&args).ok();
    assert_eq!(id.trim().len(), 12, "{id}");
}

fn fetch(w: &World, command: &[&str], url: &str) -> String {
    let mut args = command.to_vec();
    args.extend(["--", "curl", "-sS", "--max-time", "5", "--retry", "5", "--retry-connrefused", url]);
    w.tapway(&args).ok()
}

#[test]
fn loopback_is_shared_by_those_that_join() {
    World::run(|w| {
        served(w, &["--name", "web", "-p", "8080:80"]);
        let url = "http://127.0.0.1/small";
        assert_eq!(fetch(w, &["exec", "web"], url), "a small file\n");
        assert_eq!(fetch(w, &["run", "--network", "container:web"], url), "a small file\n");
        // Not by one that has a network of its own.
        let other = w.tapway(&["run", "--network", "private", "--", "curl", "-sS", "--max-time", "2", url]).end();
        assert_eq!(other.code, 7, "{}", other.stderr);
        // The world outside is the same for both, under one address; and the published port leads to the first.
        let host = format!("http://{HOST4}:8080/small");
        let outside = w.internet.cmd(&["curl", "-sS", "--max-time", "5", &host]).ok();
        assert_eq!(outside, "a small file\n");
        let address = "ip -4 -o addr show dev eth0 | awk '{print $4}'";
        let joined = w.tapway(&["run", "--network", "container:web", "--", "sh", "-c", address]).ok();
        assert_eq!(joined, "10.0.2.100/24\n");
        // A server of the second is on the first's published port, too, once its own is gone.
        let mut args = vec!["run", "-d", "--name", "second", "--network", "container:web", "--"];
        let root = w.path("www").display().to_string();
        args.extend(["busybox", "httpd", "-f", "-p", "127.0.0.1:81", "-h", &root]);
        w.tapway(&args).ok();
        assert_eq!(fetch(w, &["exec", "web"], "http://127.0.0.1:81/small"), "a small file\n");
        assert_eq!(w.tapway(&["stop", "-t", "0", "web"]).ok(), "web\n");
        // Only lo is left to it, and the port of the host is free.
        wait_for("eth0 to go", Duration::from_secs(5), || {
            w.tapway(&["exec", "second", "ls", "/sys/class/net"]).ok() == "lo\n"
        });
        assert_eq!(fetch(w, &["exec", "second"], "http://127.0.0.1:81/small"), "a small file\n");
        let refused = w.internet.cmd(&["curl", "-sS", "--max-time", "5", &host]).end();
        assert_eq!(refused.code, 7, "{}", refused.stderr);
        assert_eq!(w.tapway(&["rm", "-f", "second"]).ok(), "second\n");
        wait_for("every process to go", Duration::from_secs(5), || w.tapway_pids().is_empty());
    });
}

#[test]
fn the_hosts_network_is_the_hosts() {
    World::run(|w| {
        let _server = w.internet.cmd(&["python3", "-m", "http.server", "8000"]).spawn();
        w.internet.await_listener(8000);
        let url = "http://198.51.100.2:8000/";
        assert!(fetch(w, &["run", "--network", "host"], url).contains("Directory listing"));
        let none = w.tapway(&["run", "--network", "none", "--", "curl", "-sS", "--max-time", "2", url]).end();
        assert_eq!(none.code, 7, "{}", none.stderr);
        let address = w.tapway(&["run", "--network", "host", "--", "sh", "-c", "ip -4 -o addr show dev up0"]).ok();
        assert!(address.contains(&HOST4.to_string()), "{address}");
    });
}
