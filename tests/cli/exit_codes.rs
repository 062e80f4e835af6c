//! The command's exit code, streams, arguments and environment.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::stage::Stage;

#[test]
fn the_commands_exit_code_is_ours() {
    let stage = Stage::new();
    for (script, code) in [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255)] {
        let ended = stage.sandbox(&["sh", "-c", script]);
        assert_eq!((ended.code, ended.stderr.as_str()), (code, ""), "{script}");
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    let stage = Stage::new();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139), ("HUP", 129), ("PIPE", 141)] {
        let ended = stage.sandbox(&["sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!((ended.code, ended.stderr.as_str()), (code, ""), "{signal}");
    }
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_cannot_be_executed_126() {
    let stage = Stage::new();
    for (program, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let ended = stage.sandbox(&["--", program]);
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("tapway: cannot run '{program}': ")), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        stage.assert_clean();
    }
}

#[test]
fn a_closed_directory_in_path_hides_nothing_and_finds_nothing() {
    let stage = Stage::new();
    let closed = stage.dir().join("closed");
    std::fs::create_dir(&closed).unwrap();
    // Searchable by nobody, not even by its owner inside (who is root there, but owns no directory of root's).
    if crate::stage::is_root() {
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", closed.display());
    let mut command = stage.tapway(&["run", "--network", "private", "--user", "keep", "no-such-program"]);
    assert_eq!(command.env("PATH", &path).output().unwrap().status.code(), Some(127));
    let mut command = stage.tapway(&["run", "--network", "private", "--user", "keep", "true"]);
    assert_eq!(command.env("PATH", &path).output().unwrap().status.code(), Some(0));
}

#[test]
fn a_script_without_an_interpreter_line_is_run_by_the_shell() {
    let stage = Stage::new();
    let script = stage.dir().join("script");
    std::fs::write(&script, "exit 9\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(stage.sandbox(&[script.to_str().unwrap()]).code, 9);
}

#[test]
fn streams_arguments_and_environment_pass_through() {
    let stage = Stage::new();
    let script = "cat; printf '%s|' \"$@\"; echo \"$VALUE\"; echo to-stderr >&2";
    let mut command =
        stage.tapway(&["run", "--network", "private", "--", "sh", "-c", script, "sh", "a b", "", "--name", "-p"]);
    let mut child = command.env("VALUE", "v w").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "from stdin\na b||--name|-p|v w\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "to-stderr\n");
}

#[test]
fn options_end_at_the_command() {
    let stage = Stage::new();
    assert_eq!(stage.sandbox(&["echo", "--mtu", "x", "-h"]).ok(), "--mtu x -h\n");
    assert_eq!(stage.sandbox(&["--", "echo", "--", "-p"]).ok(), "-- -p\n");
}

#[test]
fn habits_are_accepted() {
    let stage = Stage::new();
    assert_eq!(stage.sandbox(&["-it", "--rm", "--net", "private", "-h", "box", "hostname"]).ok(), "box\n");
}

#[test]
fn only_the_three_streams_are_inherited() {
    let stage = Stage::new();
    // The shell opens 7 and 12 and hands them to tapway, which hands them to nobody.
    let mut command = stage.as_user("sh");
    command.args([
        "-c",
        "exec 7</dev/null; exec \"$TAPWAY\" run sh -c 'for fd in /proc/self/fd/*; do echo ${fd##*/}; done'",
    ]);
    let output = command.output().unwrap();
    // 3 is the shell's own, open on the directory while it expands the pattern.
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(listed.starts_with("0\n1\n2\n") && !listed.contains('7') && listed.lines().count() <= 4, "{listed}");
}

#[test]
fn sigpipe_is_as_it_should_be() {
    let stage = Stage::new();
    // With SIGPIPE ignored `yes` would complain of a broken pipe and exit 1.
    let ended = stage.sandbox(&["sh", "-c", "(yes; echo $? >&2) | head -1"]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.trim()), ("y\n", "141"));
}

#[test]
fn help_and_version() {
    let stage = Stage::new();
    let help = stage.run(&["run", "--help"]);
    let text = help.ok();
    for option in [
        "--name",
        "-h, --hostname",
        "--network",
        "--mtu",
        "--subnet",
        "--ipv6",
        "--mac-address",
        "-p, --publish",
        "--allow-host-loopback",
        "--allow-link-local",
        "--outbound-addr",
        "--dns",
        "--dns-search",
        "--dns-option",
        "--add-host",
        "--user",
        "--pid",
        "--pcap",
        "-v, --verbose",
        "--log-format",
        "Examples:",
    ] {
        assert!(text.contains(option), "{option} is missing in:\n{text}");
    }
    assert!(stage.run(&["--help"]).ok().contains("run"));
    assert_eq!(stage.run(&["--version"]).ok(), format!("tapway {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn log_lines_in_json() {
    let stage = Stage::new();
    let ended = stage.sandbox(&["-v", "--log-format", "json", "true"]);
    assert_eq!(ended.code, 0);
    assert!(!ended.stderr.is_empty());
    for line in ended.stderr.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value["level"].is_string(), "{line}");
    }
}
