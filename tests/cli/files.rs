//! What the command finds in /etc, /proc and /sys, whatever the host has there.

use crate::stage::Stage;

/// A shell line that replaces /etc by a writable copy.
const OWN_ETC: &str = "mount -t tmpfs none /mnt; cp -dR /etc/. /mnt/ 2>/dev/null || true; mount --bind /mnt /etc; ";

fn assert_ours(text: &str, stage: &str) {
    assert!(text.contains("nameserver 10.0.2.3\n"), "{stage}: {text}");
    assert!(text.contains("nameserver fd"), "{stage}: {text}");
    assert!(!text.contains("192.0.2.1"), "{stage}: the host's: {text}");
}

#[test]
fn resolv_conf_is_ours_whatever_the_host_has() {
    let stage = Stage::new();
    for (name, host) in [
        ("a file", "echo nameserver 192.0.2.1 > /etc/resolv.conf"),
        ("an empty file", ": > /etc/resolv.conf"),
        ("a link", "echo nameserver 192.0.2.1 > /etc/real; ln -s real /etc/resolv.conf"),
        ("a chain of links", "echo nameserver 192.0.2.1 > /etc/c; ln -s c /etc/b; ln -s /etc/b /etc/resolv.conf"),
        ("a dangling link", "ln -s ../run/nowhere/resolv.conf /etc/resolv.conf"),
        ("a link to itself", "ln -s resolv.conf /etc/resolv.conf"),
        ("nothing", "true"),
    ] {
        let script =
            format!("{OWN_ETC} rm -f /etc/resolv.conf; {host}; user tapway run --network private cat /etc/resolv.conf");
        assert_ours(stage.script(&script).ok(), name);
    }
}

#[test]
fn hosts_is_ours_whatever_the_host_has() {
    let stage = Stage::new();
    for host in ["echo 192.0.2.1 x > /etc/hosts", "ln -s /nowhere /etc/hosts", "true", "rm -f /etc/resolv.conf"] {
        let script = format!(
            "{OWN_ETC} rm -f /etc/hosts; {host}; user tapway run --network private -h box --add-host db:192.0.2.9 --add-host me:host-gateway \
             cat /etc/hosts /etc/resolv.conf"
        );
        let ended = stage.script(&script);
        let text = ended.ok();
        for line in
            ["127.0.0.1\tlocalhost\n", "10.0.2.100\tbox\n", "192.0.2.9\tdb\t# tapway\n", "10.0.2.2\tme\t# tapway\n"]
        {
            assert!(text.contains(line), "{host}: {text}");
        }
        assert_ours(&text.replace("192.0.2.9", ""), host);
    }
}

#[test]
fn the_rest_of_etc_is_as_it_was_and_the_host_sees_nothing() {
    let stage = Stage::new();
    let script = format!(
        "{OWN_ETC} rm -f /etc/resolv.conf; ls /etc > /tmp/before.$$; user tapway run --network private sh -c 'ls /etc; cat /etc/passwd' > /tmp/inside.$$; \
         ls /etc | diff /tmp/before.$$ - ; (echo resolv.conf; cat /tmp/before.$$) | LC_ALL=C sort > /tmp/want.$$; \
         cat /etc/passwd > /tmp/passwd.$$; lines=$(wc -l < /tmp/want.$$); \
         head -n $lines /tmp/inside.$$ | LC_ALL=C sort | diff /tmp/want.$$ -; \
         tail -n +$((lines + 1)) /tmp/inside.$$ | diff /tmp/passwd.$$ -; \
         grep -c tapway /proc/self/mountinfo || true; rm -f /tmp/*.$$"
    );
    assert_eq!(stage.script(&script).ok(), "0\n");
}

#[test]
fn a_rename_over_the_hosts_file_does_not_show_inside() {
    let stage = Stage::new();
    // The rename takes the mount away; it is put back, here 3 times, also when the file goes altogether.
    let script = format!(
        "{OWN_ETC} rm -f /etc/resolv.conf; echo nameserver 192.0.2.1 > /etc/resolv.conf; \
         mkfifo /tmp/go.$$ /tmp/done.$$; chmod 666 /tmp/go.$$ /tmp/done.$$; \
         user tapway run --network private sh -c 'for i in 1 2 3; do read x < /tmp/go.'$$'; for t in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; \
           cat /etc/resolv.conf; head -c0 /etc/hosts; echo > /tmp/done.'$$'; done' & \
         sleep 0.7; \
         echo nameserver 192.0.2.1 > /etc/new; mv /etc/new /etc/resolv.conf; echo > /tmp/go.$$; read x < /tmp/done.$$; \
         rm /etc/resolv.conf; ln -s new /etc/resolv.conf; echo > /tmp/go.$$; read x < /tmp/done.$$; \
         rm /etc/resolv.conf; echo > /tmp/go.$$; read x < /tmp/done.$$; \
         wait; rm -f /tmp/go.$$ /tmp/done.$$"
    );
    let ended = stage.script(&script);
    assert_eq!(ended.ok().matches("nameserver 10.0.2.3\n").count(), 3, "{ended:?}");
    assert_ours(ended.ok(), "renamed");
}

#[test]
fn a_change_before_the_watch_begins_is_noticed() {
    let stage = Stage::new();
    let script = format!(
        "{OWN_ETC} rm -f /etc/resolv.conf; echo nameserver 192.0.2.1 > /etc/resolv.conf; \
         user tapway run --network private sh -c 'sleep 1.2; cat /etc/resolv.conf' & \
         sleep 0.2; echo nameserver 192.0.2.1 > /etc/new; mv /etc/new /etc/resolv.conf; wait"
    );
    assert_ours(stage.script(&script).ok(), "early");
}

#[test]
fn search_and_options() {
    let stage = Stage::new();
    let host = "printf 'search corp.example\\noptions ndots:3 edns0\\nnameserver 192.0.2.1\\n' > /etc/resolv.conf";
    let cat = |options: &str| {
        let script = format!(
            "{OWN_ETC} rm -f /etc/resolv.conf; {host}; user tapway run --network private {options} cat /etc/resolv.conf"
        );
        stage.script(&script).ok().to_owned()
    };
    let text = cat("");
    assert!(text.contains("search corp.example\n") && text.contains("options ndots:3 edns0\n"), "{text}");
    let text = cat("--dns-search a.example --dns-search b --dns-option ndots:1");
    assert!(text.contains("search a.example b\n") && text.contains("options ndots:1\n"), "{text}");
    let text = cat("--dns-search . --dns-option .");
    assert!(!text.contains("search") && !text.contains("options"), "{text}");
    let text = cat("--ipv6=off --subnet 192.168.7.0/24");
    let servers: Vec<&str> = text.lines().filter(|line| line.starts_with("nameserver")).collect();
    assert_eq!(servers, ["nameserver 192.168.7.3"]);
}

#[test]
fn proc_and_sys_are_of_the_sandbox() {
    let stage = Stage::new();
    let ended = stage.sandbox(&["-h", "box", "sh", "-c", "echo $$; ls /sys/class/net; hostname; ls -d /sys/fs/cgroup"]);
    assert_eq!(ended.ok(), "2\neth0\nlo\nbox\n/sys/fs/cgroup\n");
}

#[test]
fn where_the_kernel_keeps_proc_and_sys_from_us_the_old_ones_stay() {
    let stage = Stage::new();
    // As in a container: parts of both are covered, so neither may be mounted anew, and the sysctls are read-only.
    let mask = "mount -t tmpfs none /proc/bus; mount -t tmpfs none /sys/firmware; \
                mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys;";
    let command = "sh -c 'echo $$; ip -br link show eth0 | cut -d\" \" -f1; cat /etc/resolv.conf; ping -c1 -W5 10.0.2.2 >/dev/null'";
    let ended = stage.script(&format!("{mask} user tapway run --network private {command}"));
    assert!(ended.ok().starts_with("2\neth0\n"), "{ended:?}");
    assert_ours(&ended.stdout, "masked");
    let ended = stage.script(&format!("{mask} user tapway run --network private -v true"));
    for note in ["/proc inside is the host's", "/sys inside still shows", "net.ipv4.ping_group_range inside"] {
        assert!(ended.code == 0 && ended.stderr.contains(note), "{note}: {ended:?}");
    }
}

#[test]
fn tapways_own_directories_are_hidden() {
    let stage = Stage::new();
    let state = stage.dir().join(".local/state/tapway");
    std::fs::create_dir_all(state.join("networks")).unwrap();
    if crate::stage::is_root() {
        for path in [".local", ".local/state", ".local/state/tapway"] {
            let user = crate::stage::user();
            std::os::unix::fs::chown(stage.dir().join(path), Some(user), Some(user)).unwrap();
        }
    }
    let script = "ls -A $XDG_RUNTIME_DIR/tapway $HOME/.local/state/tapway; touch $XDG_RUNTIME_DIR/tapway/x";
    let ended = stage.sandbox(&["--name", "secret", "sh", "-c", script]);
    assert!(!ended.ok().contains("sandboxes") && !ended.stdout.contains("networks"), "{ended:?}");
    assert!(!stage.dir().join("tapway/x").exists());
    assert!(state.join("networks").exists());
}

#[test]
fn a_sandbox_in_a_sandbox() {
    let stage = Stage::new();
    let script = "\"$TAPWAY\" run --network private sh -c 'id -u; ls /sys/class/net'";
    assert_eq!(stage.sandbox(&["sh", "-c", script]).ok(), "0\neth0\nlo\n");
}
