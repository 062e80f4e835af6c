//! Rootless Docker as Debian packages it: dockerd-rootless.sh, which starts RootlessKit, which starts the helper. The
//! daemon's environment is `contrib/containers/docker.conf`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::talk::{blob, collect, first_word, offer, seen_tcp, sha256, tellers, tellers_outside};
use crate::tools::{ask_tcp, ask_udp, at};
use crate::world::{Cmd, HOST4, IDLE, Ns, OUTSIDE_NAME, OUTSIDE4, Proc, World, ns_of};

scenarios!(runs, publishes_with_the_recipe, publishes_by_itself, a_network_of_its_own, builds, stops);

/// The script that Docker tells its users to start.
const SCRIPT: &str = "/usr/share/docker.io/contrib/dockerd-rootless.sh";

/// A rootless daemon with the image `box`.
struct Docker<'w> {
    w: &'w World,
    process: Proc,
}

impl<'w> Docker<'w> {
    /// With the recipe's environment and more.
    fn new(w: &'w World, more: &[(&str, &str)]) -> Self {
        assert!(std::path::Path::new(SCRIPT).exists(), "{SCRIPT} is missing; apt-get install -y {}", crate::PACKAGES);
        let recipe = include_str!("../../contrib/containers/docker.conf");
        let recipe = recipe.lines().filter_map(|l| l.strip_prefix("Environment=")?.split_once('='));
        let mut daemon = w.user(&[SCRIPT]);
        for (name, value) in recipe.chain(more.iter().copied()) {
            daemon = daemon.env(name, value);
        }
        let docker = Self { w, process: daemon.spawn() };
        let deadline = Instant::now() + Duration::from_secs(40);
        while docker.cmd(&["version"]).end().code != 0 {
            assert!(Instant::now() < deadline && docker.process.alive(), "dockerd:\n{}", docker.process.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
        let tar = w.image_tar();
        docker.cmd(&["import", &tar.display().to_string(), "box"]).ok();
        docker
    }

    /// `docker ARGS…`
    fn cmd(&self, args: &[&str]) -> Cmd {
        let docker = ["/usr/bin/docker", "--host", "unix:///run/user/1000/docker.sock"];
        self.w.user(&[&docker[..], args].concat())
    }

    /// A container that idles, and its network namespace.
    fn container(&self, name: &str, options: &[&str]) -> Ns {
        self.cmd(&[&["run", "-d", "--name", name][..], options, &["box"], IDLE].concat()).ok();
        let pid = self.cmd(&["inspect", "-f", "{{.State.Pid}}", name]).ok();
        // Docker has no PID namespace of its own: this is the host's number.
        ns_of(pid.trim().parse().unwrap())
    }
}

/// 20 MiB each way, and names.
fn runs(w: &World) {
    let docker = Docker::new(w, &[]);
    assert_eq!(w.helpers().len(), 1);
    let c = docker.container("first", &[]);
    tellers_outside(w, 7000);
    assert_eq!(ask_tcp(&c, at([0; 4], 0), at(OUTSIDE4, 7000)).1.ip(), HOST4);
    assert_eq!(ask_udp(&c, at([0; 4], 0), at(OUTSIDE4, 7000)).1.ip(), HOST4);
    let sh = |line: &str| docker.cmd(&["exec", "first", "sh", "-ec", line]).ok();
    let made = sh("dd if=/dev/urandom of=/tmp/blob bs=1024 count=20480 2>/dev/null; sha256sum /tmp/blob");
    let (to, got) = collect(&w.outside, OUTSIDE4.into());
    sh(&format!("nc {} {} </tmp/blob", to.ip(), to.port()));
    assert_eq!(sha256(&got.join().unwrap()), first_word(&made));
    let bytes = blob(31, 20 << 20);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, OUTSIDE4.into(), bytes);
    assert_eq!(first_word(&sh(&format!("nc {} {} </dev/null | sha256sum", from.ip(), from.port()))), sum);
    let found = sh(&format!("nslookup -type=a {OUTSIDE_NAME}"));
    assert!(found.contains(&OUTSIDE4.to_string()), "{found}");
}

const PORTS: [&str; 8] =
    ["-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:81", "-p", "127.0.0.1:8081:81/udp"];

/// Through the helper, because the recipe says so: the container sees its client.
fn publishes_with_the_recipe(w: &World) {
    let docker = Docker::new(w, &[]);
    let c = docker.container("first", &PORTS);
    tellers(&c, OUTSIDE4.into(), 80);
    tellers(&c, OUTSIDE4.into(), 81);
    assert_eq!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).1.ip(), IpAddr::V4(OUTSIDE4));
    assert_eq!(ask_udp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).1.ip(), IpAddr::V4(OUTSIDE4));
    for port in [8080, 8081] {
        seen_tcp(&w.host, IpAddr::from([127, 0, 0, 1]), at([127, 0, 0, 1], port));
        // slirp4netns gives UDP clients of the loopback no answers under --disable-host-loopback.
        if w.ours() {
            ask_udp(&w.host, at([127, 0, 0, 1], 0), at([127, 0, 0, 1], port));
        }
    }
    crate::talk::expect_closed(&w.outside, at(HOST4, 8081));
}

/// Through RootlessKit, which is Docker's default.
fn publishes_by_itself(w: &World) {
    let docker = Docker::new(w, &[("DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER", "builtin")]);
    let c = docker.container("first", &PORTS);
    tellers(&c, OUTSIDE4.into(), 80);
    tellers(&c, OUTSIDE4.into(), 81);
    for (ns, to) in
        [(&w.outside, at(HOST4, 8080)), (&w.host, at([127, 0, 0, 1], 8080)), (&w.host, at([127, 0, 0, 1], 8081))]
    {
        ask_tcp(ns, at([0; 4], 0), to);
        ask_udp(ns, at([0; 4], 0), to);
    }
    docker.cmd(&["rm", "-f", "first"]).ok();
    crate::talk::expect_closed(&w.outside, at(HOST4, 8080));
}

/// Docker's own name server asks the helper's.
fn a_network_of_its_own(w: &World) {
    let docker = Docker::new(w, &[]);
    docker.cmd(&["network", "create", "n1"]).ok();
    docker.container("server", &["--network", "n1"]);
    docker.container("client", &["--network", "n1"]);
    let sh = |line: &str| docker.cmd(&["exec", "client", "sh", "-ec", line]).ok();
    sh("nslookup -type=a server");
    let found = sh(&format!("nslookup -type=a {OUTSIDE_NAME}"));
    assert!(found.contains(&OUTSIDE4.to_string()), "{found}");
    tellers_outside(w, 7000);
    sh(&format!("nc {OUTSIDE_NAME} 7000 </dev/null | grep -q '^{HOST4}:'"));
}

/// A build step uses the network.
fn builds(w: &World) {
    let docker = Docker::new(w, &[]);
    tellers_outside(w, 7000);
    let text = format!("FROM box\nRUN nc {OUTSIDE4} 7000 </dev/null | grep -q '^{HOST4}:'\n");
    std::fs::create_dir(w.path("context")).unwrap();
    std::fs::write(w.path("context/Dockerfile"), text).unwrap();
    docker.cmd(&["build", "-t", "made", "context"]).ok();
}

/// A container stops in the usual time, and so does the daemon, with everything.
fn stops(w: &World) {
    let docker = Docker::new(w, &[]);
    docker.container("first", &PORTS);
    let before = Instant::now();
    docker.cmd(&["stop", "first"]).ok();
    assert!(before.elapsed() < Duration::from_secs(4), "docker stop took {:?}", before.elapsed());
    docker.cmd(&["start", "first"]).ok();
    kill(Pid::from_raw(docker.process.pid()), Signal::SIGTERM).unwrap();
    docker.process.end(Duration::from_secs(20));
    w.expect_quiet();
}
