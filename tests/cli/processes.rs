//! Signals, deaths, and what lives how long.

use nix::sys::signal::Signal;

use crate::stage::{Stage, wait_for};

#[test]
fn signals_are_passed_on_once() {
    let stage = Stage::new();
    for signal in ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"] {
        let script = format!(
            "n=0; trap 'n=$((n+1))' {signal}; echo up; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.2; exit $n"
        );
        let mut running = stage.start(&["sh", "-c", &script]);
        assert_eq!(running.line(), "up");
        running.signal(format!("SIG{signal}").parse().unwrap());
        let ended = running.end();
        assert_eq!((ended.code, ended.stderr.as_str()), (1, ""), "{signal}");
    }
}

#[test]
fn an_unhandled_signal_ends_the_command_and_is_the_exit_code() {
    let stage = Stage::new();
    for (options, signal, code) in [(&[][..], Signal::SIGTERM, 143), (&["--pid=host"], Signal::SIGINT, 130)] {
        let mut args = options.to_vec();
        args.extend(["sh", "-c", "echo up; exec sleep 60"]);
        let mut running = stage.start(&args);
        assert_eq!(running.line(), "up");
        running.signal(signal);
        let ended = running.end();
        assert_eq!((ended.code, ended.stderr.as_str()), (code, ""));
    }
}

#[test]
fn a_killed_monitor_takes_everything_along() {
    let stage = Stage::new();
    for options in [&[][..], &["--pid=host"]] {
        let mut args = options.to_vec();
        // A grandchild in a session of its own, which no terminal or process group would reach.
        args.extend(["sh", "-c", "setsid sleep 61 & sleep 62 & echo up; exec sleep 63"]);
        let mut running = stage.start(&args);
        assert_eq!(running.line(), "up");
        wait_for("the grandchild", || stage.processes().iter().any(|p| p.contains("sleep 61")));
        running.signal(Signal::SIGKILL);
        assert_eq!(running.end().code, 137);
        stage.assert_processes_gone();
    }
    // The name is a dead one's, and goes with the next sandbox.
    assert_eq!(stage.sandbox(&["true"]).code, 0);
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    let stage = Stage::new();
    for options in [&[][..], &["--pid=host"]] {
        let mut args = options.to_vec();
        args.extend([
            "sh",
            "-c",
            "(setsid sleep 64 >/dev/null 2>&1 &) ; (trap '' TERM HUP; sleep 65) >/dev/null 2>&1 & exit 5",
        ]);
        assert_eq!(stage.sandbox(&args).code, 5, "{options:?}");
        assert_eq!(stage.processes(), Vec::<String>::new(), "{options:?}");
    }
}

#[test]
fn orphans_are_reaped() {
    let stage = Stage::new();
    let script = "for i in 1 2 3 4 5; do (sh -c 'true &' ); done; sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(stage.sandbox(&["sh", "-c", script]).ok(), "0\n");
}

#[test]
fn pid_namespaces() {
    let stage = Stage::new();
    let outside = std::fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let script = ["readlink", "/proc/self/ns/pid"];
    assert_ne!(stage.sandbox(&script).ok().trim(), outside);
    let shared = stage.sandbox(&["--pid=host", script[0], script[1]]);
    assert_eq!(shared.ok().trim(), outside);
    // Every other namespace is the sandbox's own in both.
    for kind in ["net", "mnt", "uts", "ipc", "user"] {
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        for pid in ["--pid=private", "--pid=host"] {
            let inside = stage.sandbox(&[pid, "readlink", &format!("/proc/self/ns/{kind}")]);
            assert_ne!(inside.ok().trim(), outside, "{kind} {pid}");
        }
    }
}

#[test]
fn a_network_process_that_dies_is_replaced() {
    let stage = Stage::new();
    let mut command = stage.tapway(&[
        "run",
        "--network",
        "private",
        "sh",
        "-c",
        "echo up; read x; ping -c1 -W5 10.0.2.2 >/dev/null && echo alive",
    ]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    wait_for("the network process", || network_process(pid).is_some());
    let mut line = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let first = network_process(pid).unwrap();
    nix::sys::signal::kill(first, Signal::SIGKILL).unwrap();
    wait_for("a successor", || network_process(pid).is_some_and(|next| next != first));
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "alive\n", "{stderr}");
    assert!(stderr.contains("the network process died (SIGKILL)"), "{stderr}");
}

#[test]
fn a_network_process_that_keeps_dying_ends_the_sandbox() {
    let stage = Stage::new();
    let mut running = stage.start(&["sh", "-c", "echo up; sleep 60"]);
    assert_eq!(running.line(), "up");
    let monitor = u32::try_from(running.pid().as_raw()).unwrap();
    let mut killed = Vec::new();
    for _ in 0..3 {
        wait_for("a network process", || network_process(monitor).is_some_and(|pid| !killed.contains(&pid)));
        let pid = network_process(monitor).unwrap();
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        killed.push(pid);
    }
    let ended = running.end();
    assert_eq!(ended.code, 1);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("tapway: the network process died 3 times in 10 seconds"), "{ended:?}");
}

/// The child of a monitor that leads a session of its own.
fn network_process(monitor: u32) -> Option<nix::unistd::Pid> {
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).ok()?;
    children.split_ascii_whitespace().find_map(|child| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        // After the name in brackets: state, parent, group, session.
        let session = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.to_owned();
        (session == child).then(|| nix::unistd::Pid::from_raw(child.parse().unwrap()))
    })
}
