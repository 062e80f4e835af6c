//! `tapway port`, and names.

use std::net::TcpListener;

use crate::stage::{Stage, wait_for};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn ports_are_listed_as_docker_does() {
    let stage = Stage::new();
    let (a, b) = (free_port(), free_port());
    let (spec_a, spec_b) = (format!("{a}:80"), format!("127.0.0.1:{b}:443"));
    let mut running = stage.start(&[
        "--name",
        "site",
        "-p",
        &spec_a,
        "-p",
        &spec_b,
        "-p",
        "[::1]::9/udp",
        "sh",
        "-c",
        "echo up; sleep 60",
    ]);
    assert_eq!(running.line(), "up");
    let all = stage.run(&["port", "site"]);
    let lines: Vec<&str> = all.ok().lines().collect();
    assert!(lines[0].starts_with("9/udp -> [::1]:"), "{lines:?}");
    let expected =
        [format!("80/tcp -> 0.0.0.0:{a}"), format!("80/tcp -> [::]:{a}"), format!("443/tcp -> 127.0.0.1:{b}")];
    assert_eq!(lines[1..], expected);
    assert_eq!(stage.run(&["port", "site", "80"]).ok(), format!("0.0.0.0:{a}\n[::]:{a}\n"));
    assert_eq!(stage.run(&["port", "site", "443/tcp"]).ok(), format!("127.0.0.1:{b}\n"));
    let none = stage.run(&["port", "site", "81"]);
    assert_eq!((none.code, none.stderr.as_str()), (1, "tapway: no public port '81' published for site\n"));
    let bad = stage.run(&["port", "site", "eighty"]);
    assert!(bad.code == 2 && bad.stderr.contains("'eighty'"), "{bad:?}");
    let json: serde_json::Value = serde_json::from_str(stage.run(&["port", "site", "--json"]).ok()).unwrap();
    assert_eq!(json["443/tcp"][0]["HostPort"], b.to_string());
    assert_eq!(json["80/tcp"][1]["HostIp"], "::");
    drop(running);
}

#[test]
fn a_chosen_port_is_one_number_in_both_families() {
    let stage = Stage::new();
    let mut running = stage.start(&["--name", "any", "-p", "80", "sh", "-c", "echo up; sleep 60"]);
    assert_eq!(running.line(), "up");
    let listed = stage.run(&["port", "any", "80"]);
    let ports: Vec<&str> = listed.ok().lines().filter_map(|line| line.rsplit(':').next()).collect();
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0], ports[1]);
    // And there is a listener behind each.
    for host in ["127.0.0.1", "::1"] {
        std::net::TcpStream::connect((host, ports[0].parse().unwrap())).unwrap();
    }
}

#[test]
fn names_are_unique_among_the_living() {
    let stage = Stage::new();
    let mut running = stage.start(&["--name", "web", "sh", "-c", "hostname; sleep 60"]);
    let id = running.line();
    assert!(id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let second = stage.sandbox(&["--name", "web", "true"]);
    assert_eq!(second.code, 1);
    let conflict = format!(
        "tapway: Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name."
    );
    assert!(second.stderr.starts_with(&conflict) && second.stderr.contains("tapway rm -f web"), "{second:?}");
    // Found by its id, too.
    assert_eq!(stage.run(&["port", &id[..6]]).ok(), "");
    // The dead hold no name, however they died.
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.end();
    let gone = stage.run(&["port", "web"]);
    assert_eq!((gone.code, gone.stderr.as_str()), (1, "tapway: there is no running sandbox 'web'; none is running\n"));
    assert_eq!(stage.sandbox(&["--name", "web", "true"]).code, 0);
}

#[test]
fn a_port_is_free_again_at_the_end() {
    let stage = Stage::new();
    let port = free_port();
    let spec = format!("{port}:80");
    for _ in 0..3 {
        assert_eq!(stage.sandbox(&["-p", &spec, "true"]).code, 0);
    }
    wait_for("the port", || TcpListener::bind(("0.0.0.0", port)).is_ok());
}

#[test]
fn more_ports_than_the_soft_limit_has_descriptors() {
    let stage = Stage::new();
    let mut command = stage.as_user("sh");
    // 600 ports in two families; the command has the caller's limit all the same.
    command.args(["-c", "ulimit -Sn 1024; exec \"$TAPWAY\" run -p 1-600 sh -c 'ulimit -Sn; ulimit -Hn'"]);
    let output = command.output().unwrap();
    let hard = stage.as_user("sh").args(["-c", "ulimit -Hn"]).output().unwrap().stdout;
    let expected = format!("1024\n{}", String::from_utf8(hard).unwrap());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
}
