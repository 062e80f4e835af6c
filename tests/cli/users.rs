//! Who the command is, inside and outside.

use std::os::unix::fs::MetadataExt;

use crate::stage::{Stage, has_subordinate_ids, is_root, user};

#[test]
fn root_inside_is_the_caller_outside() {
    let stage = Stage::new();
    let file = stage.dir().join("made");
    let script = format!("id -u; id -g; touch {}", file.display());
    assert_eq!(stage.sandbox(&["sh", "-c", &script]).ok(), "0\n0\n");
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), user());
}

#[test]
fn keep_is_the_caller_inside_too_and_has_no_capabilities() {
    let stage = Stage::new();
    let file = stage.dir().join("made");
    let script = format!("id -u; id -g; grep CapEff /proc/self/status; touch {}", file.display());
    let expected = format!("{0}\n{0}\nCapEff:\t0000000000000000\n", user());
    assert_eq!(stage.sandbox(&["--user", "keep", "sh", "-c", &script]).ok(), expected);
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), user());
}

#[test]
fn any_number_is_the_caller_outside() {
    let stage = Stage::new();
    for (choice, expected) in [("1234:77", "1234\n77\n"), ("5", "5\n5\n"), ("70000", "70000\n70000\n")] {
        let file = stage.dir().join(format!("made-{}", expected.len()));
        let script = format!("id -u; id -g; touch {}", file.display());
        assert_eq!(stage.sandbox(&["--user", choice, "sh", "-c", &script]).ok(), expected);
        assert_eq!(std::fs::metadata(&file).unwrap().uid(), user());
    }
}

#[test]
fn a_full_range_where_there_are_subordinate_ids() {
    if !has_subordinate_ids() {
        // Nothing to test on this machine; `.ci/run` makes a user with subordinate ids, and there this is an error.
        assert!(std::env::var_os("CI").is_none(), "no user with subordinate ids");
        return;
    }
    let stage = Stage::new();
    let script = "wc -l < /proc/self/uid_map; touch $HOME/f; chown 33:33 $HOME/f; stat -c %u:%g $HOME/f; rm $HOME/f";
    assert_eq!(stage.sandbox(&["sh", "-c", script]).ok(), "2\n33:33\n");
}

#[test]
fn without_the_helpers_there_is_one_user() {
    let stage = Stage::new();
    // No newuidmap in PATH: still a sandbox, with the caller alone in it.
    let bin = stage.dir().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["sh", "cat", "id"] {
        let real = ["/usr/bin", "/bin"]
            .map(|dir| format!("{dir}/{program}"))
            .into_iter()
            .find(|p| std::fs::exists(p).unwrap());
        std::os::unix::fs::symlink(real.unwrap(), bin.join(program)).unwrap();
    }
    let mut command = stage.tapway(&[
        "run",
        "--network",
        "private",
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map /proc/self/setgroups",
    ]);
    let output = command.env("PATH", &bin).output().unwrap();
    let words: Vec<String> =
        String::from_utf8(output.stdout).unwrap().split_ascii_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["0", "0", &user().to_string(), "1", "deny"], "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ping_and_low_ports_for_everybody() {
    let stage = Stage::new();
    // A datagram ICMP socket and port 80, both without any capability.
    let script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); \
                  socket.create_server(('', 80)); print('both')";
    assert_eq!(stage.sandbox(&["--user", "keep", "python3", "-c", script]).ok(), "both\n");
}

#[test]
fn real_root_keeps_every_user() {
    if !is_root() {
        // Needs real root; the unprivileged half is tested above.
        return;
    }
    let stage = Stage::new();
    let tapway = |args: &str| stage.script(&format!("\"$TAPWAY\" run {args}"));
    // The runtime directory of this stage is the ordinary user's, so root falls back to its own.
    let map: Vec<String> =
        std::fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().map(str::to_owned).collect();
    let inside = tapway("cat /proc/self/uid_map");
    let words: Vec<&str> = inside.ok().split_ascii_whitespace().collect();
    assert_eq!((words[0], words[2]), (map[0].as_str(), map[2].as_str()));
    let who = tapway("--user 65534:65534 sh -c 'id -u; id -G; grep CapEff /proc/self/status'");
    assert_eq!(who.ok(), "65534\n65534\nCapEff:\t0000000000000000\n");
}
