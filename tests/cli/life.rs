//! Listing, entering and ending sandboxes, and the networks none, host and container:NAME: the real commands.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{Ended, Running, Stage, wait_for};
use crate::terminal::Terminal;

/// A sandbox whose command waits, and its id.
fn sandbox(stage: &Stage, options: &[&str]) -> (Running, String) {
    let mut args = options.to_vec();
    args.extend(["sh", "-c", "echo up; exec sleep 60"]);
    let mut running = stage.start(&args);
    assert_eq!(running.line(), "up");
    let name = options.iter().skip_while(|word| **word != "--name").nth(1).unwrap();
    let id = stage.run(&["ps", "-q", "--filter", &format!("name=^{name}$")]).ok().trim().to_owned();
    (running, id)
}

fn assert_fails(ended: &Ended, code: i32, stderr: &str) {
    assert_eq!((ended.code, ended.stderr.as_str()), (code, stderr), "{ended:?}");
}

#[test]
fn ps_lists_what_runs() {
    let stage = Stage::new();
    assert_eq!(stage.run(&["ps"]).ok(), "ID  NAME  COMMAND  CREATED  STATUS  NETWORK  PORTS\n");
    let (_web, web) = sandbox(&stage, &["--name", "web", "-p", "127.0.0.1::80"]);
    let (_db, db) = sandbox(&stage, &["--name", "db", "--network", "none"]);
    let text = stage.run(&["ps"]);
    let lines: Vec<&str> = text.ok().lines().collect();
    // The newest first.
    assert!(lines[1].starts_with(&format!("{db}  db    \"sh -c echo up; exec…\"  ")), "{text:?}");
    assert!(lines[1].contains(" ago  Up ") && lines[1].ends_with("  none"), "{text:?}");
    assert!(lines[2].contains("  private 10.0.2.100  127.0.0.1:") && lines[2].ends_with("->80/tcp"), "{text:?}");
    assert!(stage.run(&["ps", "--no-trunc"]).ok().contains("\"sh -c echo up; exec sleep 60\""));
    for (filter, ids) in [
        ("name=we", vec![&web]),
        ("network=none", vec![&db]),
        ("status=running", vec![&db, &web]),
        ("status=created", vec![]),
        ("name=x", vec![]),
    ] {
        let expected = ids.iter().fold(String::new(), |text, id| text + id + "\n");
        assert_eq!(stage.run(&["ps", "-q", "-f", filter]).ok(), expected, "{filter}");
    }
    let json: Value = serde_json::from_str(stage.run(&["ps", "--json", "-f", "name=web"]).ok()).unwrap();
    let one = &json["sandboxes"][0];
    assert_eq!((&one["name"], &one["state"], &one["id"]), (&"web".into(), &"running".into(), &web.into()));
    assert_eq!(one["networks"][0]["addresses"][0]["address"], "10.0.2.100");
    let formatted = stage.run(&["ps", "--format", "{{.Names}}:{{.Networks}}:{{.State}}"]);
    assert_eq!(formatted.ok(), "db:none:running\nweb:private:running\n");
    assert!(stage.run(&["ps", "--format", "table"]).ok().starts_with("CONTAINER ID   NAMES"));
    let bad = stage.run(&["ps", "--format", "{{.Nonsense"]);
    assert!(bad.code == 2 && bad.stderr.lines().count() == 1, "{bad:?}");
    let address = "{{.NetworkSettings.Networks.private.IPAddress}} {{.State.Status}}";
    assert_eq!(stage.run(&["inspect", "-f", address, "web"]).ok(), "10.0.2.100 running\n");
    let bad = stage.run(&["ps", "-f", "colour=red"]);
    assert_fails(&bad, 2, "tapway: invalid filter 'colour'; give id, name, network or status\n");
}

#[test]
fn a_state_file_of_an_older_tapway_is_listed() {
    let stage = Stage::new();
    let (running, id) = sandbox(&stage, &["--name", "old"]);
    let file = stage.dir().join("tapway/sandboxes/old.json");
    let now: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let old = serde_json::json!({ "id": id, "name": "old", "pid": now["pid"], "ports": [] });
    std::fs::write(&file, old.to_string()).unwrap();
    let text = stage.run(&["ps"]);
    assert!(text.ok().lines().nth(1).unwrap().ends_with("Up"), "{text:?}");
    assert!(stage.run(&["exec", "old", "true"]).ok().is_empty());
    drop(running);
}

#[test]
fn exec_is_in_every_namespace_of_the_sandbox() {
    let stage = Stage::new();
    for options in [&["--name", "box"][..], &["--name", "box", "--pid=host"], &["--name", "box", "--user", "keep"]] {
        let (running, _) = sandbox(&stage, options);
        let pid = stage.run(&["inspect", "box"]);
        let pid: Value = serde_json::from_str(pid.ok()).unwrap();
        let pid = pid[0]["State"]["Pid"].as_u64().unwrap();
        for kind in ["net", "mnt", "uts", "ipc", "user", "pid"] {
            let own = stage.run(&["exec", "box", "readlink", &format!("/proc/self/ns/{kind}")]);
            let mut outside = stage.as_user("readlink");
            let theirs = Ended::of(outside.arg(format!("/proc/{pid}/ns/{kind}")));
            assert_eq!(own.ok(), theirs.ok(), "{options:?} {kind}");
        }
        // Nothing but the standard streams, and the one that lists them.
        assert_eq!(stage.run(&["exec", "box", "sh", "-c", "ls /proc/self/fd | wc -l"]).ok(), "4\n", "{options:?}");
        // What is hidden from the command is hidden here.
        let hidden = stage.dir().join("tapway").display().to_string();
        assert_eq!(stage.run(&["exec", "box", "ls", "-A", &hidden]).ok(), "");
        let who = stage.run(&["exec", "box", "sh", "-c", "id -u; grep CapEff /proc/self/status"]);
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code, 143);
        let keeps = options.contains(&"keep");
        assert_eq!(who.ok().starts_with("0\n"), !keeps, "{who:?}");
        assert_eq!(who.ok().contains("0000000000000000"), keeps, "{who:?}");
    }
}

#[test]
fn exec_passes_on_what_it_is_given() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage, &["--name", "box"]);
    let exec = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        stage.run(&all)
    };
    let script = "echo $A-$B; pwd; exit 7";
    let ended = exec(&["-e", "A=1", "-e", "B=x=y", "-w", "/usr", "box", "--", "sh", "-c", script]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (7, "1-x=y\n/usr\n", ""));
    assert_eq!(exec(&["-it", "box", "sh", "-c", "kill -9 $$"]).code, 137);
    // A program is looked for in the PATH that it is given.
    assert_eq!(exec(&["-e", "PATH=/nowhere", "box", "ls"]).code, 127);
    assert_eq!(exec(&["-u", "0:0", "box", "id", "-u"]).ok(), "0\n");
    for (args, code, stderr) in [
        (&["nosuch", "ls"][..], 1, "tapway: No such container: nosuch\n"),
        (&["", "ls"], 1, "tapway: No such container: \n"),
        (&["../x", "ls"], 1, "tapway: No such container: ../x\n"),
        (
            &["box", "nosuchprogram"],
            127,
            "tapway: cannot run 'nosuchprogram': no such program; give a path, or a name found in PATH\n",
        ),
        (&["box", "/etc/passwd"], 126, "tapway: cannot run '/etc/passwd': Permission denied\n"),
        (&["-u", "root", "box", "ls"], 2, "tapway: user 'root' is not numeric; give UID, UID:GID or keep\n"),
        (&["-e", "=x", "box", "ls"], 2, "tapway: variable '=x' has no name; write NAME=VALUE\n"),
        (
            &["-u", "4000000000", "box", "ls"],
            2,
            "tapway: user 4000000000:4000000000 does not exist in sandbox box; choose another --user\n",
        ),
    ] {
        assert_fails(&exec(args), code, stderr);
    }
    let directory = exec(&["-w", "/nowhere", "box", "ls"]);
    assert!(directory.code == 126 && directory.stderr.contains("'/nowhere' of --workdir"), "{directory:?}");
    assert!(exec(&["box"]).stderr.contains("COMMAND"));
}

#[test]
fn exec_reads_stdin_and_passes_signals_on() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage, &["--name", "box"]);
    let mut command = stage.as_user("sh");
    command.args(["-c", "echo words | \"$TAPWAY\" exec -i box cat"]);
    assert_eq!(Ended::of(&mut command).ok(), "words\n");
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1] {
        let script = format!("trap 'exit 9' {}; echo up; while :; do sleep 0.05; done", &signal.as_str()[3..]);
        let mut child = stage.tapway(&["exec", "box", "sh", "-c", &script]).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "{signal}");
    }
}

#[test]
fn what_is_executed_ends_with_the_sandbox_and_with_exec() {
    let stage = Stage::new();
    for options in [&["--name", "box"][..], &["--name", "box", "--pid=host"]] {
        let (running, _) = sandbox(&stage, options);
        let start = |command: &str| {
            let mut child =
                stage.tapway(&["exec", "box", "sh", "-c", &format!("echo up; exec {command}")]).spawn().unwrap();
            let mut up = [0; 3];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
            child
        };
        let mut killed = start("sleep 71");
        let mut stays = start("sleep 72");
        killed.kill().unwrap();
        killed.wait().unwrap();
        wait_for("the end of what was executed", || !stage.processes().iter().any(|line| line.contains("sleep 71")));
        if !options.contains(&"--pid=host") {
            assert_eq!(stage.run(&["exec", "-d", "box", "sleep", "73"]).ok(), "");
        }
        running.signal(Signal::SIGKILL);
        assert_eq!(running.end().code, 137);
        assert_eq!(stays.wait().unwrap().code(), Some(137), "{options:?}");
        stage.assert_processes_gone();
    }
    let (_running, _) = sandbox(&stage, &["--name", "box", "--pid=host"]);
    let refused = stage.run(&["exec", "-d", "box", "sleep", "73"]);
    assert!(refused.code == 1 && refused.stderr.contains("shares the host's process ids"), "{refused:?}");
}

#[test]
fn a_shell_of_exec_has_job_control() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage, &["--name", "box"]);
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" exec -it -e PS1=in'$ ' box bash --norc --noprofile -i\n");
    terminal.job_control_inside();
    // The command itself is stopped, gone on with, and interrupted.
    terminal.keys("\"$TAPWAY\" exec box sh -c 'echo u\"\"p; exec sleep 60'\n");
    terminal.expect("up\r\n");
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.keys("fg\n");
    terminal.expect("sleep 60'\r\n");
    // The shell says so before it hands the terminal over.
    std::thread::sleep(Duration::from_millis(300));
    terminal.keys("\x03");
    terminal.expect("$ ");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=130\r\n");
}

#[test]
fn stop_kill_and_rm() {
    let stage = Stage::new();
    let trap = |signal: &str| format!("trap 'exit 5' {signal}; echo up; while :; do sleep 0.05; done");
    let start = |name: &str, script: &str| {
        let mut running = stage.start(&["--name", name, "sh", "-c", script]);
        assert_eq!(running.line(), "up");
        running
    };
    let polite = start("polite", &trap("TERM"));
    assert_eq!(stage.run(&["stop", "polite"]).ok(), "polite\n");
    assert_eq!(polite.end().code, 5);
    let named = start("named", &trap("INT"));
    assert_eq!(stage.run(&["stop", "-s", "INT", "named"]).ok(), "named\n");
    assert_eq!(named.end().code, 5);
    // One that does not listen has its second, then none.
    let deaf = start("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done");
    let began = Instant::now();
    assert_eq!(stage.run(&["stop", "-t", "1", "deaf"]).ok(), "deaf\n");
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(6), "{began:?}");
    assert_eq!(deaf.end().code, 137);
    let asleep = start("asleep", "echo up; kill -STOP $$");
    assert_eq!(stage.run(&["stop", "asleep"]).ok(), "asleep\n");
    assert_eq!(asleep.end().code, 143);
    let hung = start("hung", &trap("HUP"));
    assert_eq!(stage.run(&["kill", "--signal=SIGHUP", "hung"]).ok(), "hung\n");
    assert_eq!(hung.end().code, 5);
    let killed = start("killed", &trap("TERM"));
    let refused = stage.run(&["rm", "killed"]);
    assert_fails(
        &refused,
        1,
        "tapway: cannot remove container \"/killed\": container is running: stop the container before removing or force remove\n",
    );
    // When the name is printed, it is free.
    let again = stage.run(&["kill", "killed"]);
    assert_eq!(again.ok(), "killed\n");
    assert_eq!(stage.sandbox(&["--name", "killed", "true"]).code, 0);
    assert_eq!(killed.end().code, 137);
    let (one, two) = (start("one", &trap("TERM")), start("two", &trap("TERM")));
    let both = stage.run(&["rm", "-f", "one", "nosuch", "two"]);
    assert_eq!((both.code, both.stdout.as_str()), (0, "one\ntwo\n"));
    assert_eq!(both.stderr, "tapway: No such container: nosuch\n");
    assert_eq!((one.end().code, two.end().code), (137, 137));
    for (args, code, stderr) in [
        (&["stop", "nosuch"][..], 1, "tapway: No such container: nosuch\n"),
        (&["kill", "nosuch"], 1, "tapway: cannot kill container: nosuch: No such container: nosuch\n"),
        (&["rm", "nosuch"], 1, "tapway: No such container: nosuch\n"),
        (&["kill", "-s", "FOO", "nosuch"], 2, "tapway: invalid signal: FOO; give one such as TERM or 15\n"),
        (&["inspect", "nosuch"], 1, "tapway: No such container: nosuch\n"),
        (&["logs", "nosuch"], 1, "tapway: No such container: nosuch\n"),
    ] {
        assert_fails(&stage.run(args), code, stderr);
    }
}

#[test]
fn a_first_process_that_is_stopped_does_not_keep_the_sandbox() {
    let stage = Stage::new();
    let (running, _) = sandbox(&stage, &["--name", "box"]);
    let inspected: Value = serde_json::from_str(stage.run(&["inspect", "box"]).ok()).unwrap();
    let init = inspected[0]["State"]["Pid"].to_string();
    Ended::of(stage.as_user("kill").args(["-STOP", &init])).ok();
    assert_eq!(stage.run(&["kill", "box"]).ok(), "box\n");
    assert_eq!(running.end().code, 137);
}

#[test]
fn inspect_has_dockers_shape() {
    let stage = Stage::new();
    let (_running, id) = sandbox(&stage, &["--name", "web", "-h", "box", "-p", "127.0.0.1::80"]);
    let (_none, _) = sandbox(&stage, &["--name", "alone", "--network", "none"]);
    let text = stage.run(&["inspect", "web", "alone"]);
    let all: Value = serde_json::from_str(text.ok()).unwrap();
    let one = &all[0];
    assert_eq!((one["Id"].as_str(), one["Name"].as_str()), (Some(id.as_str()), Some("/web")));
    assert_eq!((&one["Config"]["Hostname"], &one["HostConfig"]["NetworkMode"]), (&"box".into(), &"private".into()));
    assert_eq!(one["State"]["Status"], "running");
    let network = &one["NetworkSettings"]["Networks"]["private"];
    assert_eq!((&network["IPAddress"], &network["Gateway"]), (&"10.0.2.100".into(), &"10.0.2.2".into()));
    assert_eq!(one["NetworkSettings"]["Ports"]["80/tcp"][0]["HostIp"], "127.0.0.1");
    // A port that is published later is there at once.
    stage.run(&["publish", "web", "127.0.0.1::81"]).ok();
    let all_now: Value = serde_json::from_str(stage.run(&["inspect", "web"]).ok()).unwrap();
    assert!(all_now[0]["NetworkSettings"]["Ports"]["81/tcp"][0]["HostPort"].is_string());
    assert_eq!(all[1]["HostConfig"]["NetworkMode"], "none");
    let some = stage.run(&["inspect", "web", "nosuch"]);
    assert_eq!((some.code, some.stderr.as_str()), (1, "tapway: No such container: nosuch\n"));
    assert_eq!(serde_json::from_str::<Value>(&some.stdout).unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn nothing_but_loopback() {
    let stage = Stage::new();
    let script =
        "ls /sys/class/net; ping -c1 -W2 127.0.0.1 >/dev/null && echo lo; cat /etc/hosts; cat /etc/resolv.conf";
    let ended = stage.sandbox(&["--network", "none", "-h", "box", "--add-host", "db:192.0.2.7", "sh", "-c", script]);
    assert!(ended.ok().starts_with("lo\nlo\n# Made by tapway"), "{ended:?}");
    assert!(ended.stdout.contains("127.0.0.1\tlocalhost\n") && ended.stdout.contains("192.0.2.7\tdb"), "{ended:?}");
    assert!(ended.stdout.ends_with(&std::fs::read_to_string("/etc/resolv.conf").unwrap()), "{ended:?}");
    let ports = stage.sandbox(&["--network", "none", "-p", "127.0.0.1:1:80", "true"]);
    assert_fails(&ports, 0, "WARNING: Published ports are discarded when using none network mode\n");
    let (_running, _) = sandbox(&stage, &["--name", "box", "--network", "none"]);
    assert_eq!(stage.run(&["port", "box"]).ok(), "");
    let refused = stage.run(&["publish", "box", "8080:80"]);
    assert_fails(&refused, 1, "tapway: publish: sandbox box has no network of its own (--network none)\n");
    assert!(stage.run(&["info", "box"]).ok().contains("--network none"));
    // One process less: there is nothing to forward.
    assert_eq!(stage.processes().iter().filter(|line| line.contains("run --name box")).count(), 2);
}

#[test]
fn the_hosts_network() {
    let stage = Stage::new();
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let script = "readlink /proc/self/ns/net; hostname; cat /etc/hosts /etc/resolv.conf";
    let mut expected = outside + "\n" + nix::unistd::gethostname().unwrap().to_str().unwrap() + "\n";
    expected +=
        &(std::fs::read_to_string("/etc/hosts").unwrap() + &std::fs::read_to_string("/etc/resolv.conf").unwrap());
    assert_eq!(stage.sandbox(&["--network", "host", "sh", "-c", script]).ok(), expected);
    let ports = stage.sandbox(&["--net=host", "-p", "80:80", "sh", "-c", "exit 3"]);
    assert_fails(&ports, 3, "WARNING: Published ports are discarded when using host network mode\n");
    let options = [
        "--net=host",
        "-h",
        "box",
        "--add-host",
        "db:192.0.2.7",
        "--add-host",
        "me:host-gateway",
        "--dns",
        "192.0.2.53",
    ];
    let mut args = options.to_vec();
    args.extend(["sh", "-c", "hostname; tail -n2 /etc/hosts; grep nameserver /etc/resolv.conf"]);
    assert_eq!(
        stage.sandbox(&args).ok(),
        "box\n192.0.2.7\tdb\t# tapway\n127.0.0.1\tme\t# tapway\nnameserver 192.0.2.53\n"
    );
}

#[test]
fn another_sandboxs_network() {
    let stage = Stage::new();
    let (donor, id) = sandbox(&stage, &["--name", "db", "-h", "dbhost", "--add-host", "x:192.0.2.7"]);
    let kinds = "for k in user net uts ipc; do readlink /proc/self/ns/$k; done; hostname; cat /etc/hosts /etc/resolv.conf; id -u";
    let inside = stage.run(&["exec", "db", "sh", "-c", kinds]);
    for pid in ["private", "host"] {
        let joined = stage.sandbox(&["--network", &format!("container:{}", &id[..5]), "--pid", pid, "sh", "-c", kinds]);
        assert_eq!(joined.ok(), inside.ok(), "{pid}");
    }
    // Its own mounts and process ids.
    let own = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid; cat /proc/sys/kernel/ns_last_pid";
    let joined = stage.sandbox(&["--network", "container:db", "sh", "-c", own]);
    let outer = stage.run(&["exec", "db", "sh", "-c", own]);
    for (a, b) in joined.ok().lines().zip(outer.ok().lines()).take(2) {
        assert_ne!(a, b);
    }
    let (second, _) = sandbox(&stage, &["--name", "web", "--network", "container:db"]);
    assert!(stage.run(&["ps", "-f", "name=web"]).ok().contains(&format!("container:{id}")));
    // The donor's host entries come later, too: it is the same file.
    stage.run(&["hosts", "db", "add", "later", "192.0.2.8"]).ok();
    assert!(stage.run(&["exec", "web", "cat", "/etc/hosts"]).ok().contains("192.0.2.8\tlater"));
    let refused = stage.run(&["dns", "web"]);
    assert!(refused.stderr.contains("it uses another sandbox's"), "{refused:?}");
    // When the first ends, the second goes on, with lo.
    assert_eq!(stage.run(&["kill", "db"]).ok(), "db\n");
    assert_eq!(donor.end().code, 137);
    wait_for("eth0 to go", || stage.run(&["exec", "web", "ls", "/sys/class/net"]).ok() == "lo\n");
    assert_eq!(stage.run(&["exec", "web", "hostname"]).ok(), "dbhost\n");
    assert_eq!(stage.run(&["stop", "web"]).ok(), "web\n");
    assert_eq!(second.end().code, 143);
    stage.assert_processes_gone();
    for (network, line) in [
        ("container:nosuch", "joining network namespace of container: No such container: nosuch"),
        ("container:me", "cannot join own network namespace"),
    ] {
        let ended = stage.sandbox(&["--name", "me", "--network", network, "true"]);
        assert_fails(&ended, 1, &format!("tapway: {line}\n"));
    }
}

#[test]
fn joining_by_other_users() {
    let stage = Stage::new();
    let (_keep, _) = sandbox(&stage, &["--name", "keep", "--user", "keep"]);
    let me = format!("{}\n", crate::stage::user());
    assert_eq!(stage.sandbox(&["--network", "container:keep", "id", "-u"]).ok(), me);
    let (_chain, _) = sandbox(&stage, &["--name", "chain", "--network", "container:keep"]);
    let both = "readlink /proc/self/ns/net";
    let last = stage.sandbox(&["--network", "container:chain", "sh", "-c", both]);
    assert_eq!(last.ok(), stage.run(&["exec", "keep", "sh", "-c", both]).ok());
    let (_host, _) = sandbox(&stage, &["--name", "hosted", "--network", "host"]);
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(stage.sandbox(&["--network", "container:hosted", "sh", "-c", both]).ok().trim(), outside);
    let nobody = stage.sandbox(&["--network", "container:keep", "--user", "4000000000", "true"]);
    assert_fails(
        &nobody,
        2,
        "tapway: user 4000000000:4000000000 does not exist in sandbox keep; choose another --user\n",
    );
}

#[test]
fn links_are_refused_in_words() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage, &["--name", "db"]);
    let refused = stage.sandbox(&["--link", "db:x", "true"]);
    assert_fails(&refused, 1, "tapway: Cannot link to /db, as it does not belong to the default network\n");
    let nobody = stage.sandbox(&["--link", "nosuch", "true"]);
    assert_fails(&nobody, 1, "tapway: could not get container for nosuch: No such container: nosuch\n");
}

#[test]
fn exposed_ports_are_published_by_a_capital_p() {
    let stage = Stage::new();
    let (_running, _) =
        sandbox(&stage, &["--name", "web", "-P", "--expose", "80", "--expose", "53/udp", "-p", "127.0.0.1::443"]);
    let text = stage.run(&["port", "web"]);
    let inside: Vec<&str> = text.ok().lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(inside, ["53/udp", "53/udp", "80/tcp", "80/tcp", "443/tcp"]);
}
