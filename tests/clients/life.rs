//! Beginnings and ends: restarts, pods, stops, deaths. A helper lives as long as its container, and a stopped container
//! leaves nothing.

use std::net::{IpAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::talk::{expect_true, tellers, tellers_outside};
use crate::tools::{ask_tcp, at, listen, serve};
use crate::world::{HOST4, OUTSIDE4, World, alive, wait_for};

scenarios!(
    stop_in_the_usual_time,
    remove_by_force,
    stop_and_start,
    restart_policy,
    restart_policy_with_ports,
    pods,
    conmon_dies,
    helper_dies,
    many_in_a_row,
    many_at_once,
    the_same_port_again,
    information,
);

/// Long enough for a loaded machine, far below podman's ten seconds for what does not obey.
const USUAL: Duration = Duration::from_secs(4);
const PORTS: [&str; 6] = ["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80", "-p", "8080:80/udp"];

fn stop_in_the_usual_time(w: &World) {
    for options in [&[][..], &PORTS, &["-p", "8080:80"]] {
        let c = w.container("c", options);
        let helpers = w.helpers();
        assert_eq!(helpers.len(), 1);
        let before = Instant::now();
        w.podman(&["stop", &c.name]).ok();
        assert!(before.elapsed() < USUAL, "podman stop took {:?}", before.elapsed());
        w.expect_quiet();
        assert!(!alive(helpers[0]));
        w.podman(&["rm", &c.name]).ok();
    }
    // What podman keeps per network namespace is gone too.
    let left = w.user_sh("ls $XDG_RUNTIME_DIR/netns");
    assert_eq!(left.trim(), "");
}

fn remove_by_force(w: &World) {
    let c = w.container("c", &PORTS);
    // A conversation is going on.
    tellers_outside(w, 7000);
    tellers(&c.ns, OUTSIDE4.into(), 80);
    serve(listen(&w.outside, at(OUTSIDE4, 7001)), |stream, _| hold(&stream));
    let inside = crate::tools::connect(&c.ns, at(OUTSIDE4, 7001)).unwrap();
    let before = Instant::now();
    w.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    assert!(before.elapsed() < USUAL, "podman rm -f took {:?}", before.elapsed());
    drop((inside, c));
    w.expect_quiet();
}

/// Until the other end closes.
fn hold(mut stream: &TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// A new helper in a new namespace each time.
fn stop_and_start(w: &World) {
    w.container("c", &PORTS);
    tellers_outside(w, 7000);
    for verb in ["start", "start", "restart"] {
        if verb == "start" {
            w.podman(&["stop", "c"]).ok();
        }
        w.podman(&[verb, "c"]).ok();
        let c = w.running("c");
        c.addr6();
        ask_tcp(&c.ns, at([0; 4], 0), at(OUTSIDE4, 7000));
        tellers(&c.ns, OUTSIDE4.into(), 80);
        expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
        wait_for("one helper", Duration::from_secs(3), || w.helpers().len() == 1);
    }
}

/// podman starts the next helper in the same namespace at once when the container ended: the TAP must be free by then.
fn restart_policy(w: &World) {
    w.podman_image();
    let accepted = serve(listen(&w.outside, at(OUTSIDE4, 7000)), |stream, _| hold(&stream));
    let script = format!("nc {OUTSIDE4} 7000 </dev/null && ip addr show tap0 || exec sleep 1000000; exit 1");
    for (policy, runs) in [("--restart=always", 5), ("--restart=on-failure:3", 4)] {
        let before = accepted.load(Ordering::Relaxed);
        w.podman(&["run", "-d", "--name", "c", policy, "box", "sh", "-c", &script]).ok();
        wait_for("all runs of the container", Duration::from_secs(30), || {
            accepted.load(Ordering::Relaxed) - before >= runs
        });
        remove_between_runs(w);
        w.expect_quiet();
    }
}

/// podman gives up if the container ends by itself just when it is to be killed.
fn remove_between_runs(w: &World) {
    wait_for("podman rm", Duration::from_secs(10), || w.podman(&["rm", "-f", "-t", "0", "c"]).end().code == 0);
}

/// The same with published ports: the next helper listens where the last one did.
fn restart_policy_with_ports(w: &World) {
    w.container_with("c", &[&PORTS[..], &["--restart=always"]].concat(), &["sh", "-c", "nc -l -p 80 -e hostname"]);
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut served = 0;
    while served < 4 {
        assert!(Instant::now() < deadline, "only {served} runs of the container served anybody");
        // Between two runs nobody listens, or nobody is behind it.
        let Ok(mut stream) = crate::tools::connect(&w.outside, at(HOST4, 8080)) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let mut said = String::new();
        if std::io::Read::read_to_string(&mut stream, &mut said).is_ok() && !said.is_empty() {
            served += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    remove_between_runs(w);
    w.expect_quiet();
}

/// The pod's first container has the network, the others join it.
fn pods(w: &World) {
    w.podman_image();
    let options = ["pod", "create", "--name", "p", "--network", "slirp4netns:port_handler=slirp4netns"];
    // Where podman would build an image from its own catatonit, give it ours.
    w.podman(
        &[&options[..], &["--infra-image", "localhost/box", "--infra-command", "sleep 1000000"], &PORTS[2..]].concat(),
    )
    .ok();
    for name in ["a", "b"] {
        let options = ["run", "-d", "--pod", "p", "--name", name, "box"];
        w.podman(&[&options[..], crate::world::IDLE].concat()).ok();
    }
    assert_eq!(w.helpers().len(), 1);
    let (a, b) = (w.running("a"), w.running("b"));
    tellers_outside(w, 7000);
    for c in [&a, &b] {
        ask_tcp(&c.ns, at([0; 4], 0), at(OUTSIDE4, 7000));
    }
    tellers(&b.ns, OUTSIDE4.into(), 80);
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
    assert_eq!(ask_tcp(&a.ns, at([0; 4], 0), at([127, 0, 0, 1], 80)).1.ip(), IpAddr::from([127, 0, 0, 1]));
    w.podman(&["pod", "rm", "-f", "-t", "1", "p"]).ok();
    w.expect_quiet();
}

/// conmon holds the other end of the helper's exit descriptor.
fn conmon_dies(w: &World) {
    w.container("c", &PORTS);
    let conmon = w.podman(&["inspect", "-f", "{{.State.ConmonPid}}", "c"]).ok();
    kill(Pid::from_raw(conmon.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    wait_for("the helper's end", Duration::from_secs(3), || w.helpers().is_empty());
}

/// The container loses its network, and nothing else: podman stops and removes it as ever.
fn helper_dies(w: &World) {
    let c = w.container("c", &PORTS);
    kill(Pid::from_raw(w.helpers()[0]), Signal::SIGKILL).unwrap();
    wait_for("the helper's end", Duration::from_secs(3), || w.helpers().is_empty());
    wait_for("the end of its TAP", Duration::from_secs(3), || {
        c.ns.cmd(&["ip", "link", "show", "tap0"]).end().code != 0
    });
    let before = Instant::now();
    w.podman(&["stop", "c"]).ok();
    w.podman(&["rm", "c"]).ok();
    assert!(before.elapsed() < USUAL, "podman took {:?}", before.elapsed());
    w.expect_quiet();
}

/// Short containers, one after the other: none leaves anything behind.
fn many_in_a_row(w: &World) {
    w.podman_image();
    tellers_outside(w, 7000);
    for _ in 0..10 {
        let line = format!("nc {OUTSIDE4} 7000 </dev/null");
        let said = w.podman(&["run", "--rm", "box", "sh", "-c", &line]).ok();
        assert!(said.starts_with(&HOST4.to_string()), "{said}");
    }
    w.expect_quiet();
}

/// Each with a helper of its own, and all of them work.
fn many_at_once(w: &World) {
    w.podman_image();
    tellers_outside(w, 7000);
    let names: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
    std::thread::scope(|scope| {
        for (n, name) in names.iter().enumerate() {
            let port = format!("{}:80", 8080 + n);
            scope.spawn(move || {
                let options = ["run", "-d", "--name", name, "--network", PORTS[1], "-p", &port, "box"];
                w.podman(&[&options[..], crate::world::IDLE].concat()).ok();
            });
        }
    });
    assert_eq!(w.helpers().len(), names.len());
    for (n, name) in names.iter().enumerate() {
        let c = w.running(name);
        ask_tcp(&c.ns, at([0; 4], 0), at(OUTSIDE4, 7000));
        tellers(&c.ns, OUTSIDE4.into(), 80);
        let (mine, seen) = ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080 + n as u16));
        assert_eq!(seen, mine);
    }
    w.podman(&["rm", "-a", "-f", "-t", "1"]).ok();
    w.expect_quiet();
}

/// The next container has the port of the last one at once, though connections of that one are hardly over.
fn the_same_port_again(w: &World) {
    for n in 0..5 {
        let name = format!("c{n}");
        let c = w.container(&name, &PORTS);
        tellers(&c.ns, OUTSIDE4.into(), 80);
        // Closed by the server's side first, and one more that is open.
        expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
        let _open = crate::tools::connect(&w.outside, at(HOST4, 8080)).unwrap();
        w.podman(&["rm", "-f", "-t", "0", &name]).ok();
    }
    w.expect_quiet();
}

/// `podman info` shows what the helper says of itself.
fn information(w: &World) {
    let info = w.podman(&["info", "--format", "json"]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let helper = &info["host"]["slirp4netns"];
    assert_eq!(helper["executable"], crate::world::INSTALLED);
    let version = helper["version"].as_str().unwrap();
    assert!(version.starts_with("slirp4netns version "), "{version}");
    assert_eq!(version.trim(), w.user(&[crate::world::INSTALLED, "--version"]).ok().trim());
}
