//! Commands that ask a control socket: what they ask, what they make of the answers, and what they say when there are
//! none. The server is a fake one, so that every answer can be had; that real ones are understood is tests/netns's.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::stage::{Ended, Stage, is_root, user, wait_for};

/// Answers every verb with what a function says of it.
struct Fake {
    path: PathBuf,
    asked: Arc<Mutex<Vec<Value>>>,
}

type Answer = fn(&str, &Value) -> Vec<Value>;

impl Fake {
    /// At `s` in the stage's directory. More than one answer is a stream, then the connection ends.
    fn start(stage: &Stage, answer: Answer) -> Self {
        let path = stage.dir().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&path, Some(user()), Some(user())).unwrap();
        }
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || Self::serve(&stream, answer, &log));
            }
        });
        Self { path, asked }
    }

    fn serve(stream: &UnixStream, answer: Answer, log: &Mutex<Vec<Value>>) {
        let mut keep_open = false;
        for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
            let request: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            let (verb, arguments) = (request["execute"].as_str().unwrap_or_default(), &request["arguments"]);
            let answers = if verb == "hello" {
                keep_open = true;
                vec![json!({ "return": { "version": "0.1.0", "protocol": 1, "verbs": [] } })]
            } else {
                log.lock().unwrap().push(request.clone());
                answer(verb, arguments)
            };
            let mut writer = stream;
            for answer in &answers {
                if writeln!(writer, "{answer}").is_err() {
                    return;
                }
            }
            if !keep_open || answers.len() > 1 {
                return;
            }
        }
    }

    /// The one request that was made.
    fn request(&self) -> Value {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

fn request(verb: &str, arguments: Value) -> Value {
    json!({ "execute": verb, "arguments": arguments })
}

/// Every verb, done.
fn everything(verb: &str, arguments: &Value) -> Vec<Value> {
    let port = json!({ "id": 1, "proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.100",
        "guest_port": 80, "connections": 3, "from_guest_bytes": 2048, "to_guest_bytes": 1, "from_guest_packets": 2,
        "to_guest_packets": 1 });
    let flow = |id: &str| {
        json!({ "id": id, "protocol": "tcp", "guest": "10.0.2.100:4000", "peer": "192.0.2.1:443",
        "target": "192.0.2.1:443", "direction": "outgoing", "state": "open\u{1b}[2J", "from_guest_bytes": 1000,
        "to_guest_bytes": 5, "from_guest_packets": 9, "to_guest_packets": 9, "age_seconds": 3.5, "idle_seconds": 0.0 })
    };
    let value = match verb {
        "publish" | "unpublish" | "list_ports" => json!({ "ports": [port] }),
        "get_dns" | "set_dns" => {
            json!({ "servers": null, "in_use": ["192.0.2.53"], "search": ["corp.example"], "options": [],
                "zones": [{ "domain": "vpn.example", "servers": ["10.9.9.9"] }] })
        }
        "list_dns_records" => json!({ "records": [{ "name": "db", "type": "A", "value": "192.0.2.7", "ttl": 60 }] }),
        "list_hosts" => json!({ "hosts": [{ "name": "db", "address": "192.0.2.7", "source": "socket" }] }),
        "remove_dns_record" | "remove_host" => json!({ "removed": 1 }),
        "get_info" => json!({ "name": "site", "v4": { "guest": "10.0.2.100" } }),
        "list_flows" if arguments["after"].is_null() => json!({ "flows": [flow("tcp-1-1")], "next": "c", "total": 2 }),
        "list_flows" => json!({ "flows": [flow("tcp-2-1")], "total": 2 }),
        "get_stats" => json!({ "counters": { "frames": 5, "none": 0 }, "drops": { "policy": 2 } }),
        "get_metrics" => json!({ "text": "# EOF\n" }),
        "subscribe" => {
            return vec![
                json!({ "return": {} }),
                json!({ "event": "dns", "time": 1.5, "data": { "name": "a\u{7}b", "addresses": ["192.0.2.1"] } }),
                json!({ "event": "lost", "time": 2.0, "data": { "count": 5 } }),
            ];
        }
        _ => json!({}),
    };
    vec![json!({ "return": value })]
}

#[test]
fn what_is_typed_is_what_is_asked() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let s = fake.path();
    for (args, verb, arguments) in [
        (&["publish", s, "8080:80", "53/udp"][..], "publish", json!({ "specs": ["8080:80", "53/udp"] })),
        (&["unpublish", s, "8080:80"], "unpublish", json!({ "specs": ["8080:80"] })),
        (&["unpublish", s, "--id", "1", "--id", "2"], "unpublish", json!({ "ids": [1, 2] })),
        (&["port", s], "list_ports", json!({})),
        (
            &["dns", s, "set", "--server", "1.1.1.1", "--search", "."],
            "set_dns",
            json!({ "servers": ["1.1.1.1"], "search": [] }),
        ),
        (&["dns", s, "set", "--follow-host"], "set_dns", json!({ "servers": null })),
        (
            &["dns", s, "set", "--zone", "a.example=1.1.1.1,2.2.2.2", "--option", "ndots:2"],
            "set_dns",
            json!({ "zones": [{ "domain": "a.example", "servers": ["1.1.1.1", "2.2.2.2"] }], "options": ["ndots:2"] }),
        ),
        (
            &["dns", s, "add", "*.dev.example", "A", "10.0.2.100", "--ttl", "5"],
            "add_dns_record",
            json!({ "name": "*.dev.example", "type": "A", "value": "10.0.2.100", "ttl": 5 }),
        ),
        (&["dns", s, "rm", "db", "A"], "remove_dns_record", json!({ "name": "db", "type": "A" })),
        (&["hosts", s, "add", "db", "::1"], "add_host", json!({ "name": "db", "address": "::1" })),
        (&["hosts", s, "rm", "db"], "remove_host", json!({ "name": "db" })),
        (&["hosts", s], "list_hosts", json!({})),
        (&["info", s], "get_info", json!({})),
        (
            &["flows", s, "--limit", "1", "--protocol", "tcp", "--peer", "192.0.2.0/24"],
            "list_flows",
            json!({ "limit": 1, "protocol": "tcp", "peer": "192.0.2.0/24" }),
        ),
        (&["flows", s, "--kill", "tcp-1-1"], "kill_flow", json!({ "id": "tcp-1-1" })),
        (&["stats", s], "get_stats", json!({})),
        (&["stats", s, "--metrics"], "get_metrics", json!({})),
        (&["events", s, "dns", "drops"], "subscribe", json!({ "events": ["dns", "drops"] })),
        (&["ctl", s, "{\"execute\":\"x\",\"arguments\":{\"a\":1}}"], "x", json!({ "a": 1 })),
    ] {
        let ended = stage.run(args);
        ended.ok();
        assert_eq!(fake.request(), request(verb, arguments), "{args:?}");
    }
}

#[test]
fn people_get_tables() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let s = fake.path();
    for (args, text) in [
        (&["publish", s, "8080:80"][..], "80/tcp -> 127.0.0.1:8080\n"),
        (&["port", s, "80"], "127.0.0.1:8080\n"),
        (
            &["port", s, "--stats"],
            "ID  INSIDE             HOST            CONNECTIONS  FROM GUEST  TO GUEST\n \
             1  10.0.2.100:80/tcp  127.0.0.1:8080            3     2.0 KiB       1 B\n",
        ),
        (
            &["dns", s],
            "servers  192.0.2.53 (the host's)\nsearch   corp.example\noptions  -\nzone     vpn.example = 10.9.9.9\n\n\
             NAME  TTL  TYPE  VALUE\ndb     60  A     192.0.2.7\n",
        ),
        (&["dns", s, "add", "db", "A", "192.0.2.7"], ""),
        (&["hosts", s, "ls"], "NAME  ADDRESS    SOURCE\ndb    192.0.2.7  socket\n"),
        (&["info", s], "name      site\nv4 guest  10.0.2.100\n"),
        (&["stats", s], "COUNTER  COUNT\nframes       5\n\nDROPPED BECAUSE  COUNT\npolicy               2\n"),
        (&["stats", s, "--metrics"], "# EOF\n"),
        (
            &["events", s],
            "00:00:01.500  dns          addresses=[\"192.0.2.1\"]  name=a\\u{7}b\n00:00:02.000  lost         count=5\n",
        ),
        (&["events", s, "-n", "1"], "00:00:01.500  dns          addresses=[\"192.0.2.1\"]  name=a\\u{7}b\n"),
    ] {
        assert_eq!(stage.run(args).ok(), text, "{args:?}");
    }
    let flows = stage.run(&["flows", s]);
    let lines: Vec<&str> = flows.ok().lines().collect();
    assert!(lines[0].starts_with("ID       PROTO  STATE") && lines.len() == 3, "{lines:?}");
    assert!(lines[1].starts_with("tcp-1-1  tcp    open\\u{1b}[2J  10.0.2.100:4000  ->  192.0.2.1:443"), "{lines:?}");
    assert!(lines[2].starts_with("tcp-2-1"), "{lines:?}");
}

#[test]
fn programs_get_json() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let s = fake.path();
    let json = |args: &[&str]| -> Value { serde_json::from_str(stage.run(args).ok()).unwrap() };
    assert_eq!(json(&["publish", s, "80", "--json"])["ports"][0]["host_port"], 8080);
    assert_eq!(json(&["port", s, "--json"]), json!({ "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8080" }] }));
    assert_eq!(json(&["port", s, "--stats", "--json"])["ports"][0]["connections"], 3);
    assert_eq!(json(&["port", s, "80/tcp", "--stats", "--json"])["ports"][0]["id"], 1);
    let dns = json(&["dns", s, "--json"]);
    assert_eq!((&dns["in_use"][0], &dns["records"][0]["name"]), (&json!("192.0.2.53"), &json!("db")));
    assert_eq!(json(&["dns", s, "rm", "db", "--json"]), json!({ "removed": 1 }));
    assert_eq!(json(&["hosts", s, "--json"])["hosts"][0]["source"], "socket");
    assert_eq!(json(&["info", s, "--json"])["name"], "site");
    let flows = json(&["flows", s, "--json"]);
    assert_eq!((flows["flows"].as_array().unwrap().len(), &flows["total"]), (2, &json!(2)));
    assert_eq!(json(&["stats", s, "--json"])["drops"]["policy"], 2);
    let events = stage.run(&["events", s, "--json"]);
    let events: Vec<Value> = events.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((events.len(), &events[1]["data"]["count"]), (2, &json!(5)));
}

#[test]
fn refusals_have_their_exit_code() {
    let stage = Stage::new();
    let refused = |verb: &str, _: &Value| {
        let (code, desc) = match verb {
            "publish" => ("port_in_use", "port 80 is\ntaken"),
            "add_host" => ("bad_argument", "'x' is not an IP address"),
            "get_stats" => ("unknown_verb", "no verb 'get_stats'"),
            "kill_flow" => ("not_found", "there is no flow 'x'"),
            "get_info" => ("gone", "the network process ended"),
            "remove_host" => return vec![json!({ "return": { "removed": 0 } })],
            _ => ("internal", "why"),
        };
        vec![json!({ "error": { "desc": desc, "code": code } })]
    };
    let fake = Fake::start(&stage, refused);
    let s = fake.path();
    let old = format!("tapway: {s} does not know get_stats: what serves it is older, or slirp4netns\n");
    for (args, code, text) in [
        (&["publish", s, "80"][..], 1, "tapway: port 80 is\\ntaken\n"),
        (&["hosts", s, "add", "db", "x"], 2, "tapway: 'x' is not an IP address\n"),
        (&["hosts", s, "rm", "db"], 1, "tapway: no such host is named 'db'\n"),
        (&["stats", s], 1, &old),
        (&["flows", s, "--kill", "x"], 1, "tapway: there is no flow 'x'\n"),
        (
            &["info", s],
            1,
            "tapway: the network process ended; the sandbox's network process was being replaced, try again\n",
        ),
        (&["events", s], 1, "tapway: why\n"),
        (&["dns", s, "set"], 2, "tapway: the following required arguments were not provided"),
        (&["dns", s, "set", "--zone", "x"], 2, "tapway: zone 'x' is not DOMAIN=ADDR, such as corp.example=10.9.9.9\n"),
        (&["flows", s, "--limit", "0"], 2, "tapway: --limit 0 shows nothing; write 1 or more\n"),
        (&["top", s], 2, "tapway: stdout is not a terminal; --once prints one frame\n"),
        (&["top", s, "--interval", "0"], 2, "tapway: --interval 0 is not from 0.1 to 60 seconds\n"),
    ] {
        let ended = stage.run(args);
        assert!(ended.code == code && ended.stderr.starts_with(text) && ended.stdout.is_empty(), "{args:?}: {ended:?}");
    }
    // One's own request: the answer is the output, whatever it says.
    let ended = stage.run(&["ctl", s, "{\"execute\":\"get_info\"}"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""));
    assert_eq!(ended.stdout, "{\"error\":{\"code\":\"gone\",\"desc\":\"the network process ended\"}}\n");
}

#[test]
fn nobody_to_ask() {
    let stage = Stage::new();
    let dead = stage.dir().join("dead");
    let ask = |path: &str| stage.run(&["info", path]);
    let told = |ended: &Ended, text: &str| assert_eq!((ended.code, ended.stderr.as_str()), (1, text));
    let s = dead.to_str().unwrap();
    told(&ask(s), &format!("tapway: there is no socket {s}\n"));
    drop(UnixListener::bind(&dead).unwrap());
    if is_root() {
        std::os::unix::fs::chown(&dead, Some(user()), Some(user())).unwrap();
    }
    told(&ask(s), &format!("tapway: nobody listens at {s}: its process is gone, and the file can be removed\n"));
    std::fs::set_permissions(&dead, std::fs::Permissions::from_mode(0o400)).unwrap();
    told(&ask(s), &format!("tapway: the socket {s} is not this user's but of user {}\n", user()));
    std::fs::remove_file(&dead).unwrap();
    std::fs::write(&dead, "").unwrap();
    if is_root() {
        std::os::unix::fs::chown(&dead, Some(user()), Some(user())).unwrap();
    }
    told(&ask(s), &format!("tapway: {s} is not a socket\n"));
    told(&ask("site"), "tapway: there is no running sandbox 'site'; none is running\n");
}

#[test]
fn names_of_sandboxes_for_errors_and_shells() {
    let stage = Stage::new();
    let mut running = stage.start(&["--name", "site", "sh", "-c", "echo up; sleep 60"]);
    assert_eq!(running.line(), "up");
    let ended = stage.run(&["info", "sight"]);
    assert_eq!(ended.stderr, "tapway: there is no running sandbox 'sight'; running: site\n");
    assert_eq!(stage.run(&["__complete", "sandboxes"]).ok(), "site\n");
    // By the process id of its monitor, of a process inside, and not by that of a stranger.
    let monitor = running.pid().to_string();
    assert_eq!(stage.run(&["port", &monitor]).ok(), "");
    let children = format!("/proc/{monitor}/task/{monitor}/children");
    for child in std::fs::read_to_string(children).unwrap().split_whitespace() {
        assert_eq!(stage.run(&["port", child]).ok(), "", "{child}");
    }
    let stranger = std::process::id().to_string();
    let ended = stage.run(&["port", &stranger]);
    let expected =
        format!("tapway: process {stranger} is in no running sandbox, and none is named so; running: site\n");
    assert_eq!((ended.code, ended.stderr), (1, expected));
}

#[test]
fn shells_complete_names() {
    let stage = Stage::new();
    let mut running = stage.start(&["--name", "site-1", "sh", "-c", "echo up; sleep 60"]);
    assert_eq!(running.line(), "up");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/completions/tapway.bash");
    let text = std::fs::read_to_string(script).unwrap();
    let complete = |words: &[&str]| {
        let (last, before) = words.split_last().unwrap();
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let call = format!(
            "{text}\nCOMP_WORDS=({}); COMP_CWORD={}; _tapway \"$TAPWAY\" '{last}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            before.len(),
            before.last().unwrap(),
        );
        let mut command = stage.as_user("bash");
        // As it is typed, the first word is what was called.
        command.args(["-c", &call.replace("'tapway'", "\"$TAPWAY\"")]);
        Ended::of(&mut command).ok().trim().to_owned()
    };
    assert_eq!(complete(&["tapway", "port", ""]), "site-1");
    assert_eq!(complete(&["tapway", "port", "s"]), "site-1");
    assert_eq!(complete(&["tapway", "port", "x"]), "");
    assert!(complete(&["tapway", "port", "--"]).contains("--json"));
    assert_eq!(complete(&["tapway", "po"]), "port");
    assert!(!complete(&["tapway", ""]).contains("__complete"));
    assert!(!complete(&["tapway", "run", ""]).contains("site-1"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    for args in
        [&["flows", fake.path()][..], &["events", fake.path()], &["dns", fake.path()], &["top", "--once", fake.path()]]
    {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop::<OwnedFd>(reader);
        let mut command = stage.tapway(args);
        command.stdout(Stdio::from(writer));
        let ended = Ended::of(&mut command);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let mut command = stage.tapway(&["stats", fake.path()]);
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let ended = Ended::of(&mut command);
    assert!(ended.code == 1 && ended.stderr.starts_with("tapway: cannot write the output: No space"), "{ended:?}");
}

#[test]
fn top_once() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let ended = stage.run(&["top", fake.path(), "--once", "--interval", "0.1"]);
    let lines: Vec<&str> = ended.ok().lines().collect();
    assert!(lines[0].starts_with(&format!("tapway top: {}", &fake.path()[..20])), "{lines:?}");
    assert!(lines[2].starts_with("FROM GUEST  TO GUEST"), "{lines:?}");
    // What the sandbox looked up names the peer; of what a fake says twice the rate is nothing.
    let flow = "         -         -  1005 B  tcp    open\\u{1b}[2J  10.0.2.100:4000  ->  a\\u{7}b:443";
    assert!(lines[3].starts_with(&flow[..79]), "{lines:?}");
    assert_eq!(lines.last(), Some(&"drops: policy 2"), "{lines:?}");
    assert!(!ended.stdout.contains('\u{1b}'));
}

#[test]
fn top_gives_the_terminal_back() {
    let stage = Stage::new();
    let fake = Fake::start(&stage, everything);
    let path = fake.path().to_owned();
    for end in ["q", "\u{3}"] {
        let mut terminal = crate::terminal::Terminal::new(&stage);
        terminal.keys("stty -a | md5sum\n");
        terminal.expect("  -\r\n");
        terminal.keys(&format!(
            "before=$(stty -g); \"$TAPWAY\" top --interval 0.1 {path}; echo code $?, \
            $([ \"$before\" = \"$(stty -g)\" ] && echo same)\n"
        ));
        terminal.expect("\u{1b}[?1049h\u{1b}[?25l");
        terminal.expect("2 flows");
        // And again: it goes on by itself.
        terminal.expect("2 flows");
        terminal.keys(end);
        terminal.expect("\u{1b}[?25h\u{1b}[?1049l");
        terminal.expect("code 0, same");
    }
    wait_for("the clients to be gone", || stage.processes().iter().all(|process| !process.contains(" top ")));
}
