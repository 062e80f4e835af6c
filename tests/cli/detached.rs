//! `tapway run --detach` and `tapway logs`: the real commands, their files, and disks that do not take them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::stage::{Ended, Stage, wait_for};

/// `tapway run -d ARGS`: the id that it prints.
fn detach(stage: &Stage, args: &[&str]) -> String {
    let mut all = vec!["run", "--network", "private", "-d"];
    all.extend(args);
    let ended = stage.run(&all);
    let id = ended.ok().trim().to_owned();
    assert!(id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{ended:?}");
    id
}

fn logs_dir(stage: &Stage) -> PathBuf {
    stage.dir().join(".local/state/tapway/logs")
}

fn wait_for_end(stage: &Stage) {
    wait_for("the end of all sandboxes", || stage.run(&["ps", "-q"]).ok().is_empty());
}

#[test]
fn up_means_up() {
    let stage = Stage::new();
    let id = detach(&stage, &["--name", "web", "sh", "-c", "echo out; echo err >&2; exec sleep 60"]);
    // It is there for everybody at once, and holds nothing of ours: the pipes of this test have ended.
    assert_eq!(stage.run(&["exec", "web", "echo", "in"]).ok(), "in\n");
    assert!(stage.run(&["ps", "--json"]).ok().contains("\"detached\":true"));
    let streams = stage.run(&["exec", "web", "sh", "-c", "readlink /proc/2/fd/0; ps -o tty= -p 2"]);
    assert_eq!(streams.ok(), "/dev/null\n?\n");
    let conflict = stage.run(&["run", "--network", "private", "-d", "--name", "web", "true"]);
    assert!(conflict.code == 1 && conflict.stdout.is_empty(), "{conflict:?}");
    assert!(conflict.stderr.starts_with(&format!(
        "tapway: Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to"
    )));
    wait_for("the lines", || stage.run(&["logs", "web"]).stderr == "err\n");
    let logs = stage.run(&["logs", "web"]);
    assert_eq!((logs.code, logs.stdout.as_str(), logs.stderr.as_str()), (0, "out\n", "err\n"));
    assert_eq!(stage.run(&["stop", "web"]).ok(), "web\n");
    stage.assert_processes_gone();
    // Its logs stay, and what became of it.
    assert_eq!(stage.run(&["logs", &id[..6]]).stdout, "out\n");
    let all = stage.run(&["ps", "-a"]);
    assert!(
        all.ok().contains("  Exited (143) Less than a second ago  ") || all.ok().contains("  Exited (143) 1 second")
    );
    assert_eq!(stage.run(&["ps", "-q"]).ok(), "");
    let inspected = stage.run(&["inspect", "web"]);
    assert!(inspected.ok().contains("\"Status\": \"exited\"") && inspected.ok().contains("\"ExitCode\": 143"));
    assert_eq!(stage.run(&["stop", "web"]).ok(), "web\n");
    let killed = stage.run(&["kill", "web"]);
    assert_eq!(killed.stderr, format!("tapway: cannot kill container: web: container {id} is not running\n"));
    assert_eq!(stage.run(&["rm", "web"]).ok(), "web\n");
    assert_eq!(fs::read_dir(logs_dir(&stage)).unwrap().count(), 0);
    assert_eq!(stage.run(&["logs", "web"]).stderr, "tapway: No such container: web\n");
}

#[test]
fn what_cannot_be_made_says_so() {
    let stage = Stage::new();
    for (args, code, word) in [
        (&["nosuchprogram"][..], 127, "cannot run 'nosuchprogram'"),
        (&["/etc/passwd"], 126, "cannot run '/etc/passwd'"),
        (&["--mtu", "1", "true"], 2, "MTU 1"),
        (&["-p", "192.0.2.1:80:80", "true"], 1, "192.0.2.1"),
        (&["--network", "container:nosuch", "true"], 1, "No such container: nosuch"),
    ] {
        let named = args.contains(&"--network");
        let mut all = vec!["run", "-d", "--name", "x"];
        all.extend(["--network", "private"].iter().filter(|_| !named));
        all.extend(args);
        let ended = stage.run(&all);
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.lines().count()), (code, "", 1), "{ended:?}");
        assert!(ended.stderr.contains(word), "{ended:?}");
        stage.assert_clean();
    }
    // Of what was never up nothing is kept.
    assert!(fs::read_dir(logs_dir(&stage)).map_or(0, Iterator::count) == 0);
    let mut command = stage.tapway(&["run", "--network", "private", "-d", "true"]);
    let ended = Ended::of(command.env("XDG_STATE_HOME", "/proc/nowhere"));
    assert!(ended.code == 1 && ended.stderr.contains("cannot keep logs in /proc/nowhere/tapway/logs"), "{ended:?}");
    assert!(ended.stderr.contains("XDG_STATE_HOME"), "{ended:?}");
    let foreground = stage.start(&["--name", "front", "sh", "-c", "echo up; exec sleep 60"]);
    wait_for("the sandbox", || stage.run(&["ps", "-q"]).ok().len() > 1);
    let logs = stage.run(&["logs", "front"]);
    assert!(logs.code == 1 && logs.stderr.contains("runs in the foreground"), "{logs:?}");
    drop(foreground);
}

#[test]
fn whose_caller_has_gone_is_not_left_behind() {
    let stage = Stage::new();
    // The caller is killed while its monitor waits for a name server's file that is a pipe nobody writes to: not up yet.
    let fifo = stage.dir().join("fifo");
    Ended::of(stage.as_user("mkfifo").arg(&fifo)).ok();
    let mut caller = stage
        .tapway(&["run", "--network", "private", "-d", "--pcap", fifo.to_str().unwrap(), "sleep", "60"])
        .spawn()
        .unwrap();
    wait_for("the monitor", || stage.processes().len() > 1);
    caller.kill().unwrap();
    caller.wait().unwrap();
    let reader = fs::File::open(&fifo).unwrap();
    stage.assert_processes_gone();
    drop(reader);
}

#[test]
fn followed_and_cut() {
    let stage = Stage::new();
    let script = "for i in 1 2 3 4 5; do echo line $i; done; read x < go; echo later; printf no-newline; exit 3";
    let go = stage.dir().join("go");
    Ended::of(stage.as_user("mkfifo").arg(&go)).ok();
    let script = script.replace("go;", &format!("{};", go.display()));
    detach(&stage, &["--name", "box", "sh", "-c", &script]);
    wait_for("the lines", || stage.run(&["logs", "box"]).stdout.ends_with("line 5\n"));
    for (args, expected) in [
        (&["-n", "2"][..], "line 4\nline 5\n"),
        (&["--tail=0"], ""),
        (&["--tail", "all"], "line 1\nline 2\nline 3\nline 4\nline 5\n"),
        (&["--since", "1h"], "line 1\nline 2\nline 3\nline 4\nline 5\n"),
        (&["--since", "2100-01-01"], ""),
    ] {
        let mut all = vec!["logs"];
        all.extend(args);
        all.push("box");
        assert_eq!(stage.run(&all).ok(), expected, "{args:?}");
    }
    let timed = stage.run(&["logs", "-t", "-n1", "box"]);
    assert!(timed.ok().len() == 38 && timed.ok().ends_with("Z line 5\n"), "{timed:?}");
    // From a time on that stands in a line.
    let since = stage.run(&["logs", "--since", &timed.ok()[..30], "box"]);
    assert_eq!(since.ok(), "line 5\n");
    for (args, word) in [(["-n", "few"], "'few'"), (["--since", "yesterday"], "'yesterday'")] {
        let mut all = vec!["logs", "box"];
        all.extend(args);
        let ended = stage.run(&all);
        assert!(ended.code == 2 && ended.stderr.contains(word), "{ended:?}");
    }
    let following = stage.tapway(&["logs", "-f", "-n", "1", "box"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs::write(&go, "x\n").unwrap();
    let output = following.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stdout).unwrap().as_str()),
        (Some(0), "line 5\nlater\nno-newline")
    );
    wait_for_end(&stage);
    assert!(stage.run(&["ps", "-a"]).ok().contains("Exited (3)"));
}

#[test]
fn rm_keeps_nothing_and_a_name_can_be_used_again() {
    let stage = Stage::new();
    detach(&stage, &["--rm", "--name", "box", "echo", "gone"]);
    wait_for_end(&stage);
    stage.assert_processes_gone();
    assert_eq!(fs::read_dir(logs_dir(&stage)).unwrap().count(), 0);
    for word in ["first", "second"] {
        detach(&stage, &["--name", "box", "echo", word]);
        wait_for_end(&stage);
    }
    // The newest of a name.
    assert_eq!(stage.run(&["logs", "box"]).ok(), "second\n");
    assert_eq!(stage.run(&["rm", "box"]).ok(), "box\n");
    assert_eq!(stage.run(&["logs", "box"]).ok(), "first\n");
}

#[test]
fn two_files_of_ten_mebibytes_while_it_is_followed() {
    let stage = Stage::new();
    let go = stage.dir().join("go");
    Ended::of(stage.as_user("mkfifo").arg(&go)).ok();
    let script = format!("read x < {}; seq -f 'line %010g of a file that becomes long' 1 300000", go.display());
    let id = detach(&stage, &["--name", "box", "sh", "-c", &script]);
    let following = stage.tapway(&["logs", "-f", "box"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs::write(&go, "x\n").unwrap();
    let followed = String::from_utf8(following.wait_with_output().unwrap().stdout).unwrap();
    wait_for_end(&stage);
    let log = logs_dir(&stage).join(format!("{id}.log"));
    let sizes = [log.clone(), log.with_extension("log.1")].map(|path| fs::metadata(path).unwrap().len());
    assert!(sizes.iter().all(|&size| size <= 10 << 20) && sizes[1] > 9 << 20, "{sizes:?}");
    let kept = stage.run(&["logs", "box"]);
    let numbers: Vec<u32> = kept.stdout.lines().map(|line| line[5..15].parse().unwrap()).collect();
    assert!(numbers.last() == Some(&300_000) && numbers.windows(2).all(|pair| pair[0] < pair[1]));
    // A machine that is busy may lose some, but says so.
    let missing = 300_001 - numbers[0] - u32::try_from(numbers.len()).unwrap();
    let told = kept.stderr.lines().map(|line| line.split(' ').nth(1).unwrap().parse::<u32>().unwrap());
    assert_eq!(told.sum::<u32>(), missing, "{}", kept.stderr);
    // Who followed has seen the last line, and none twice.
    let seen: Vec<u32> = followed.lines().map(|line| line[5..15].parse().unwrap()).collect();
    assert!(seen.last() == Some(&300_000) && seen.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn a_disk_that_hangs_holds_nothing_up() {
    let stage = Stage::new();
    let script = "seq 1 100; seq -f 'line %060g' 1 160000; echo done > finished; sleep 60"
        .replace("finished", &stage.dir().join("finished").display().to_string());
    let go = stage.dir().join("go");
    Ended::of(stage.as_user("mkfifo").arg(&go)).ok();
    let id = detach(&stage, &["--name", "box", "sh", "-c", &format!("read x < {}; {script}", go.display())]);
    // The keeper stands for the disk: a stopped one writes nothing.
    let log = logs_dir(&stage).join(format!("{id}.log"));
    let keeper = keeper(&stage);
    nix::sys::signal::kill(keeper, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    fs::write(&go, "x\n").unwrap();
    wait_for("the command to finish", || stage.dir().join("finished").exists());
    assert!(began.elapsed() < Duration::from_secs(4));
    // The control socket is served meanwhile.
    assert!(stage.run(&["info", "box"]).ok().contains("box"));
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    nix::sys::signal::kill(keeper, Signal::SIGCONT).unwrap();
    wait_for("the disk", || fs::metadata(&log).unwrap().len() > 1 << 20);
    assert_eq!(stage.run(&["exec", "box", "sh", "-c", "echo after > /proc/2/fd/1"]).ok(), "");
    wait_for("what was lost to be told", || stage.run(&["logs", "box"]).stderr.contains("the disk did not keep up"));
    let logs = stage.run(&["logs", "box"]);
    assert!(logs.stdout.starts_with("1\n2\n3\n") && logs.stdout.ends_with("after\n"), "{}", logs.stdout.len());
    let told = logs.stderr.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap();
    assert_eq!(logs.stdout.lines().count() + told, 160_101);
    assert_eq!(stage.run(&["rm", "-f", "box"]).ok(), "box\n");
}

#[test]
fn a_keeper_that_is_killed_is_replaced() {
    let stage = Stage::new();
    let script = "while :; do date +%s.%N; sleep 0.05; done";
    detach(&stage, &["--name", "box", "sh", "-c", script]);
    std::thread::sleep(Duration::from_millis(1200));
    nix::sys::signal::kill(keeper(&stage), Signal::SIGKILL).unwrap();
    let lines = || stage.run(&["logs", "box"]).stdout.lines().count();
    let before = lines();
    wait_for("lines of the new keeper", || lines() > before + 10);
    assert_eq!(stage.run(&["rm", "-f", "box"]).ok(), "box\n");
    stage.assert_processes_gone();
}

/// The keeper of the only sandbox: the only one of its processes without a socket.
fn keeper(stage: &Stage) -> nix::unistd::Pid {
    let tapways = stage.processes().into_iter().filter(|line| line.contains("tapway run --network private -d"));
    let pids = tapways.filter_map(|line| line.strip_prefix("/proc/")?.split(' ').next()?.parse::<i32>().ok());
    let has_none = |pid: &i32| {
        let fds =
            fs::read_dir(format!("/proc/{pid}/fd")).map(|fds| fds.flatten().collect::<Vec<_>>()).unwrap_or_default();
        let links = fds.iter().filter_map(|fd| fs::read_link(fd.path()).ok());
        !fds.is_empty() && !links.into_iter().any(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let found: Vec<i32> = pids.filter(has_none).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    nix::unistd::Pid::from_raw(found[0])
}

#[test]
fn a_full_disk_holds_nothing_up() {
    let stage = Stage::new();
    let dir = stage.dir().display();
    // The directory of logs is a disk of one mebibyte; the sandbox sees none of it.
    let script = format!(
        "mkdir -p {dir}/state && mount -t tmpfs -o size=1m,mode=0777 none {dir}/state
         export XDG_STATE_HOME={dir}/state
         user env XDG_STATE_HOME={dir}/state tapway run -d --name box sh -c \
           \"seq -f 'line %060g' 1 40000; echo done > {dir}/finished; sleep 20\"
         for i in $(seq 100); do [ -e {dir}/finished ] && break; sleep 0.05; done
         [ -e {dir}/finished ]
         user env XDG_STATE_HOME={dir}/state tapway exec box true
         user env XDG_STATE_HOME={dir}/state tapway logs box | grep -c line
         user env XDG_STATE_HOME={dir}/state tapway rm -f box"
    );
    let ended = stage.script(&script);
    // What is missing in the middle is told; what is missing at the end there was no room to tell.
    assert!(ended.code == 0 && ended.stderr.lines().all(|line| line.contains(" are missing here: ")), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let kept: u32 = lines[1].parse().unwrap();
    assert!(kept > 5000 && kept < 40_000, "{ended:?}");
    assert_eq!(lines[2], "box");
}
