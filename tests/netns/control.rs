//! The control socket of a sandbox: what is changed there holds at once and outlives the network process, and no client
//! of it is felt by traffic.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::programs::{big_file, nginx};
use crate::tools::{ask_tcp, ask_udp, at, connect, tell_tcp, tell_udp};
use crate::world::{Guest, HOST4, INET4, World, wait_for};

/// The control socket of the only sandbox.
pub fn socket(w: &World) -> PathBuf {
    let dir = w.path("run/tapway/sandboxes");
    let all = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let mut sockets: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    sockets.remove(0)
}

pub fn open(w: &World) -> UnixStream {
    let stream = UnixStream::connect(socket(w)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// One request on a connection of its own.
pub fn raw(w: &World, request: &[u8]) -> Value {
    let mut stream = open(w);
    stream.write_all(request).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap_or_else(|_| panic!("{reply:?} is the answer to {request:?}"))
}

pub fn ask(w: &World, verb: &str, arguments: Value) -> Value {
    raw(w, json!({ "execute": verb, "arguments": arguments }).to_string().as_bytes())
}

/// What a verb returns.
pub fn done(w: &World, verb: &str, arguments: Value) -> Value {
    let reply = ask(w, verb, arguments);
    assert!(reply.get("return").is_some(), "{verb}: {reply}");
    reply["return"].clone()
}

/// The code of a verb's refusal.
pub fn refused(w: &World, verb: &str, arguments: Value) -> String {
    let reply = ask(w, verb, arguments);
    reply["error"]["code"].as_str().unwrap_or_else(|| panic!("{verb}: {reply}")).to_owned()
}

/// Kills the network process and waits for its successor.
pub fn kill(w: &World, guest: &Guest) {
    let info = done(w, "get_info", json!({}));
    let (old, restarts) = (&info["network_pid"], info["network_restarts"].as_u64().unwrap());
    w.host.sh(&format!("kill -KILL {old}"));
    wait_for("another network process", Duration::from_secs(10), || {
        done(w, "get_info", json!({}))["network_restarts"].as_u64() > Some(restarts)
    });
    wait_for("the network", Duration::from_secs(10), || guest.cmd(&["ping", "-c1", "-W1", "10.0.2.2"]).end().code == 0);
}

fn resolves(guest: &Guest, name: &str, kind: &str) -> String {
    guest.sh(&format!("dig +short +tries=2 +time=3 {name} {kind}")).trim().to_owned()
}

#[test]
fn what_is_changed_outlives_the_network_process() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8000:7300", "--add-host", "born:192.0.2.1"]);
        for port in [7300, 7301] {
            tell_tcp(&guest.ns, at([0; 4], port));
            tell_udp(&guest.ns, at([0; 4], port));
        }
        let client = at([0; 4], 0);
        let mode = std::fs::metadata(socket(w)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // What the container writes there is the container's.
        guest.sh("printf '192.0.2.99\\tmine\\n' >> /etc/hosts; echo '# mine' >> /etc/resolv.conf");

        let made = done(w, "publish", json!({"specs": ["8001:7301", "203.0.113.2:8002:7301/udp"]}));
        assert_eq!(made["ports"].as_array().unwrap().len(), 3, "{made}");
        assert_eq!(made["ports"][0]["guest_addr"], "10.0.2.100");
        let udp = made["ports"][2]["id"].as_u64().unwrap();
        let legacy = done(
            w,
            "add_hostfwd",
            json!({"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8003, "guest_addr": "", "guest_port": 7300}),
        );
        done(w, "add_dns_record", json!({"name": "*.apps.example", "type": "A", "value": "10.0.2.2"}));
        done(w, "add_host", json!({"name": "db.example", "address": "192.0.2.7"}));
        done(
            w,
            "set_dns",
            json!({"search": ["a.example", "b.example"], "options": ["ndots:3"], "servers": ["198.51.100.2"],
                   "zones": [{"domain": "corp.example", "servers": ["198.51.100.2:5399"]}]}),
        );
        let holds = |when: &str| {
            for port in [8000, 8001, 8003] {
                assert_eq!(ask_tcp(&w.internet, client, at(HOST4, port)).1.ip(), INET4, "{port} {when}");
            }
            assert_eq!(ask_udp(&w.internet, client, at(HOST4, 8002)).1.ip(), INET4, "{when}");
            assert_eq!(resolves(&guest, "x.apps.example", "A"), "10.0.2.2", "{when}");
            assert_eq!(resolves(&guest, "db.example", "A"), "192.0.2.7", "{when}");
            assert_eq!(resolves(&guest, "born", "A"), "192.0.2.1", "{when}");
            let hosts = guest.sh("cat /etc/hosts");
            for line in ["192.0.2.1\tborn\t# tapway", "192.0.2.7\tdb.example\t# tapway", "192.0.2.99\tmine"] {
                assert!(hosts.lines().any(|l| l == line), "{line:?} is missing {when} in\n{hosts}");
            }
            let resolv = guest.sh("cat /etc/resolv.conf");
            for line in ["nameserver 10.0.2.3", "search a.example b.example", "options ndots:3", "# mine"] {
                assert!(resolv.lines().any(|l| l == line), "{line:?} is missing {when} in\n{resolv}");
            }
            let dns = done(w, "get_dns", json!({}));
            assert_eq!(dns["servers"], json!(["198.51.100.2"]), "{when}");
            assert_eq!(dns["zones"][0]["domain"], "corp.example", "{when}");
            assert_eq!(done(w, "list_ports", json!({}))["ports"].as_array().unwrap().len(), 6, "{when}");
        };
        holds("at once");
        kill(w, &guest);
        holds("after the network process's death");

        done(w, "unpublish", json!({"specs": ["8001:7301"]}));
        done(w, "unpublish", json!({"ids": [udp]}));
        done(w, "remove_hostfwd", json!({"id": legacy["id"]}));
        done(w, "remove_dns_record", json!({"name": "*.apps.example"}));
        done(w, "remove_host", json!({"name": "db.example"}));
        done(w, "remove_host", json!({"name": "born"}));
        done(w, "set_dns", json!({"search": [], "options": [], "servers": null, "zones": []}));
        let gone = |when: &str| {
            assert_eq!(ask_tcp(&w.internet, client, at(HOST4, 8000)).1.ip(), INET4, "{when}");
            for port in [8001, 8003] {
                assert!(connect(&w.internet, at(HOST4, port)).is_err(), "{port} is open {when}");
            }
            // Nobody answers at the host's server here, so what is not known fails.
            assert_eq!(done(w, "list_dns_records", json!({}))["records"], json!([]), "{when}");
            let listed = guest.sh("dig +tries=1 +time=2 db.example A || true");
            assert!(!listed.contains("192.0.2.7"), "{when}\n{listed}");
            let hosts = guest.sh("cat /etc/hosts");
            assert!(hosts.contains("mine") && !hosts.contains("db.example") && !hosts.contains("born"), "{hosts}");
            let resolv = guest.sh("cat /etc/resolv.conf");
            assert!(resolv.contains("# mine") && !resolv.contains("search") && !resolv.contains("options"), "{resolv}");
            assert_eq!(done(w, "get_dns", json!({}))["servers"], Value::Null, "{when}");
        };
        gone("at once");
        // The port is free from the very moment of the answer.
        let holder = w.host.run(|| std::net::TcpListener::bind("0.0.0.0:8001"));
        drop(holder.expect("the port is free"));
        kill(w, &guest);
        gone("after the network process's death");
        // `tapway port` is kept true.
        let info = done(w, "get_info", json!({}));
        let ports = w.tapway(&["port", info["name"].as_str().unwrap()]).ok();
        assert_eq!(ports, "7300/tcp -> 0.0.0.0:8000\n7300/tcp -> [::]:8000\n");
        let path = socket(w);
        w.host.sh(&format!("kill -TERM {}", guest.monitor.pid()));
        wait_for("the socket to go", Duration::from_secs(5), || !path.exists());
    });
}

#[test]
fn all_or_nothing() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        tell_tcp(&guest.ns, at([0; 4], 7300));
        let _holder = w.host.run(|| std::net::TcpListener::bind("0.0.0.0:9005")).unwrap();
        let reply = ask(w, "publish", json!({"specs": ["8100:7300", "9000-9010:7300-7310"]}));
        assert_eq!(reply["error"]["code"], "port_in_use", "{reply}");
        let desc = reply["error"]["desc"].as_str().unwrap();
        assert!(desc.contains("'9000-9010:7300-7310'") && desc.contains("port 9005/tcp"), "{desc}");
        assert!(connect(&w.internet, at(HOST4, 8100)).is_err());
        assert_eq!(done(w, "list_ports", json!({})), json!({"ports": []}));
        for (specs, code) in [
            (json!(["80:80"]), "port_privileged"),
            (json!(["192.0.2.1:8080:80"]), "address_not_local"),
            (json!(["8080:80", "8080:81"]), "bad_argument"),
            (json!(["http"]), "bad_argument"),
            (json!([]), "bad_argument"),
            (json!("8080:80"), "bad_argument"),
        ] {
            assert_eq!(refused(w, "publish", json!({ "specs": specs })), code, "{specs}");
        }
        assert_eq!(refused(w, "unpublish", json!({"ids": [7]})), "not_found");
        assert_eq!(refused(w, "unpublish", json!({"specs": ["8080:80"]})), "not_found");
        assert_eq!(refused(w, "publish", json!({"spec": []})), "unknown_field");
        done(w, "publish", json!({"specs": ["8100:7300"]}));
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8100)).1.ip(), INET4);
    });
}

#[test]
fn five_thousand_ports_in_a_call_and_one_in_a_millisecond() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        tell_tcp(&guest.ns, at([0; 4], 24_999));
        let limit = done(w, "get_info", json!({}))["limits"]["descriptors"].as_u64().unwrap();
        if limit < 6000 {
            assert_eq!(refused(w, "publish", json!({"specs": ["127.0.0.1:20000-24999:20000-24999"]})), "limit");
            return;
        }
        let processes = || {
            let info = done(w, "get_info", json!({}));
            ["pid", "network_pid"].map(|key| user_memory(&info[key]))
        };
        let before = processes();
        let begun = Instant::now();
        let made = done(w, "publish", json!({"specs": ["203.0.113.2:20000-24999:20000-24999"]}));
        let took = begun.elapsed();
        let after = processes();
        let each = [0, 1].map(|process| after[process].saturating_sub(before[process]) / 5000);
        eprintln!("a port costs {} bytes of user memory in the monitor, {} in the network process", each[0], each[1]);
        assert!(each[0] + each[1] <= 4096, "{each:?}: {before:?}, {after:?}");
        assert_eq!(made["ports"].as_array().unwrap().len(), 5000);
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 24_999)).1.ip(), INET4);
        kill(w, &guest);
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 24_999)).1.ip(), INET4, "after a restart");
        let begun = Instant::now();
        done(w, "unpublish", json!({"specs": ["203.0.113.2:20000-24999:20000-24999"]}));
        eprintln!("5000 ports: published in {took:?}, unpublished in {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(connect(&w.internet, at(HOST4, 24_999)).is_err());

        let mut stream = open(w);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = |request: &str| {
            stream.write_all(request.as_bytes()).unwrap();
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.contains("return"), "{line}");
        };
        line("{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n");
        let mut times = Vec::new();
        for _ in 0..101 {
            let begun = Instant::now();
            line("{\"execute\":\"publish\",\"arguments\":{\"specs\":[\"127.0.0.1:20000:80\"]}}\n");
            line("{\"execute\":\"unpublish\",\"arguments\":{\"specs\":[\"127.0.0.1:20000:80\"]}}\n");
            times.push(begun.elapsed() / 2);
        }
        times.sort();
        eprintln!("one port added or removed: median {:?}", times[50]);
        assert!(times[50] < Duration::from_millis(1), "{:?}", times[50]);
    });
}

/// Memory of a process that no file stands behind, in bytes.
fn user_memory(pid: &Value) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (field("RssAnon:") + field("RssShmem:")) * 1024
}

/// A port comes, is used and goes while a gibibyte comes through another one.
#[test]
fn a_port_comes_and_goes_beside_a_download() {
    World::run(|w| {
        let sum = big_file(w);
        let guest = w.guest(&["-p", "8080:80"]);
        let _nginx = nginx(w, "inside", |argv| guest.cmd(argv), &guest.ns);
        let line = format!("curl -sS --fail --limit-rate 200M --max-time 150 http://{HOST4}:8080/big | sha256sum");
        let download = w.internet.cmd(&["bash", "-o", "pipefail", "-ec", &line]).limit(160).spawn();
        for round in 0..20 {
            done(w, "publish", json!({"specs": ["8081:80"]}));
            let small = w.internet.cmd(&["curl", "-sS", "--fail", &format!("http://{HOST4}:8081/small")]).ok();
            assert_eq!(small, "a small file\n", "{round}");
            done(w, "unpublish", json!({"specs": ["8081:80"]}));
            assert!(connect(&w.internet, at(HOST4, 8081)).is_err());
        }
        assert!(download.alive(), "the download was over before the ports were");
        let ended = download.end(Duration::from_secs(160));
        assert_eq!(ended.stdout.split_whitespace().next(), Some(sum.as_str()), "{}{}", ended.stdout, ended.stderr);
    });
}

/// Clients that do everything wrong, all at once, and a ping that does not mind.
#[test]
fn clients_that_misbehave_are_nobodys_problem() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:7300"]);
        tell_tcp(&guest.ns, at([0; 4], 7300));
        let ping = guest.cmd(&["ping", "-i", "0.01", "-c", "300", "-W", "2", "198.51.100.2"]).limit(30).spawn();
        // A thousand who say nothing; those that are not served wait in the backlog.
        let idle: Vec<UnixStream> = (0..1000).map(|_| UnixStream::connect(socket(w)).unwrap()).collect();
        let mut others = Vec::new();
        for input in [
            &b"{\"execute\":"[..],
            b"\xff\xfe\xfd",
            b"{\"execute\":\"get_info\"}{\"execute\":\"get_info\"}",
            b"{\"execute\":\"get_info\",\"execute\":\"get_info\"}",
            b"{\"execute\":\"unpublish\",\"arguments\":{\"ids\":[99999999999999999999999]}}",
        ] {
            let mut stream = open(w);
            stream.write_all(input).unwrap();
            others.push(stream);
        }
        // One that sends 64 MiB of brackets, one that never reads, one in single bytes, one that leaves in the middle.
        let mut large = open(w);
        let flood = std::thread::spawn(move || {
            large.write_all(b"{\"execute\":").unwrap();
            let (mut sent, brackets) = (0usize, vec![b'['; 65_536]);
            while sent < 64 << 20 && large.write_all(&brackets).is_ok() {
                sent += 65_536;
            }
            sent
        });
        let mut deaf = open(w);
        deaf.write_all(b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n").unwrap();
        deaf.set_nonblocking(true).unwrap();
        while deaf.write(b"{\"execute\":\"get_info\"}\n").is_ok() {}
        let mut bytes = open(w);
        for byte in b"{\"execute\":\"get_info\"}" {
            bytes.write_all(&[*byte]).unwrap();
        }
        let mut leaving = open(w);
        leaving.write_all(b"{\"execute\":\"publish\",\"arguments\":{\"specs\":[\"8099:7300\"]}}").unwrap();
        drop(leaving);
        // An ordinary client gets its turn, though a thousand stand before it.
        let begun = Instant::now();
        assert_eq!(done(w, "get_info", json!({}))["mode"], "run");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        let mut reply = String::new();
        bytes.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("\"mode\":\"run\""), "{reply}");
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
        let ended = ping.end(Duration::from_secs(30));
        assert!(ended.stdout.contains(" 0% packet loss"), "{}{}", ended.stdout, ended.stderr);
        assert!(flood.join().unwrap() < 64 << 20, "nobody reads all that");
        // Requests held are bounded by 1 MiB together, whoever sends them.
        let memory = user_memory(&json!(guest.monitor.pid()));
        assert!(memory < 4 << 20, "the monitor has {memory} bytes");
        drop((idle, others, deaf));
    });
}

/// What is sent on a connection of its own, and nothing after it.
fn sent(w: &World, input: &[u8]) -> String {
    let mut stream = open(w);
    // One who is refused early may be cut off.
    let _ = stream.write_all(input);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn bad_input_has_a_stable_code() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let before = user_memory(&done(w, "get_info", json!({}))["pid"]);
        let brackets = [&b"{\"execute\":"[..], &vec![b'['; 64 << 20]].concat();
        let flows = |arguments: &str| format!("{{\"execute\":\"list_flows\",\"arguments\":{arguments}}}").into_bytes();
        for (what, input, code) in [
            ("half a request", b"{\"execute\":\"get_in".to_vec(), "bad_json"),
            ("two in one packet", b"{\"execute\":\"get_info\"}{\"execute\":\"get_info\"}".to_vec(), "bad_request"),
            ("64 MiB of [", brackets[11..].to_vec(), "bad_json"),
            ("64 MiB of [ within a request", brackets, "too_large"),
            ("invalid UTF-8", b"{\"execute\":\"get_info\xff\"}".to_vec(), "bad_json"),
            ("a key twice", b"{\"execute\":\"get_info\",\"execute\":\"get_info\"}".to_vec(), "bad_json"),
            ("an argument twice", flows("{\"limit\":1,\"limit\":2}"), "bad_json"),
            ("a number beyond a double", flows("{\"limit\":1e999}"), "bad_json"),
            ("a number beyond 64 bits", flows("{\"limit\":99999999999999999999999}"), "bad_argument"),
            ("a number beyond its field", flows("{\"limit\":65536}"), "bad_argument"),
            ("a number beyond its bound", flows("{\"limit\":257}"), "bad_argument"),
            ("a negative number", flows("{\"limit\":-1}"), "bad_argument"),
            ("a fraction", flows("{\"limit\":1.5}"), "bad_argument"),
        ] {
            let reply = sent(w, &input);
            let reply: Value = serde_json::from_str(&reply).unwrap_or_else(|_| panic!("{what}: {reply:?}"));
            assert_eq!(reply["error"]["code"], code, "{what}: {reply}");
            assert!(!reply["error"]["desc"].as_str().unwrap().is_empty(), "{what}");
        }
        for (verb, arguments) in [
            ("unpublish", json!({"ids": [-1]})),
            ("kill_flow", json!({"id": 7})),
            ("stop_capture", json!({"id": 4_294_967_296u64})),
            ("start_capture", json!({"port": 65_536})),
            ("add_dns_record", json!({"name": "a.example", "type": "A", "value": "192.0.2.1", "ttl": -1})),
        ] {
            assert_eq!(refused(w, verb, arguments), "bad_argument", "{verb}");
        }
        let mut bytes = open(w);
        for byte in b"{\"execute\":\"get_info\"}" {
            bytes.write_all(&[*byte]).unwrap();
        }
        let mut reply = String::new();
        bytes.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("\"mode\":\"run\""), "{reply}");
        // One who leaves within a request has asked nothing; within the reply, it is done all the same.
        for (port, end) in [(8098, ""), (8099, "}")] {
            let arguments = json!({"specs": [format!("127.0.0.1:{port}:7300")]});
            let request = format!("{{\"execute\":\"publish\",\"arguments\":{arguments}{end}");
            open(w).write_all(request.as_bytes()).unwrap();
        }
        wait_for("the port", Duration::from_secs(5), || {
            let ports = done(w, "list_ports", json!({}))["ports"].clone();
            assert!(ports.as_array().unwrap().iter().all(|port| port["host_port"] == 8099), "{ports}");
            ports.as_array().unwrap().len() == 1
        });
        // Half a request and then silence; a client that never reads: 5 s each, at once.
        let mut half = open(w);
        half.write_all(b"{\"execute\":").unwrap();
        let mut deaf = open(w);
        deaf.write_all(b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n").unwrap();
        deaf.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            let _ = deaf.write(b"{\"execute\":\"get_stats\"}\n");
        }
        let mut reply = String::new();
        half.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("\"code\":\"timed_out\""), "{reply}");
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
        wait_for("the end of the one that never reads", Duration::from_secs(10), || {
            deaf.write(b"{\"execute\":\"get_stats\"}\n")
                .is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
        });
        let after = user_memory(&done(w, "get_info", json!({}))["pid"]);
        assert!(after < before + (1 << 20), "the monitor has grown from {before} to {after} bytes");
        assert!(guest.monitor.alive());
    });
}

/// As somebody writes it who has a shell and nothing of ours.
#[test]
fn a_script_of_nc_and_jq_drives_it() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        tell_tcp(&guest.ns, at([0; 4], 7300));
        let path = socket(w);
        let script = r#"
            ask() { echo "$1" | nc -NU "$SOCKET" | jq -ce .return; }
            ask '{"execute":"hello"}' | jq -e '.protocol == 1 and (.verbs | index("publish") != null)' >/dev/null
            id=$(ask '{"execute":"publish","arguments":{"specs":["127.0.0.1:8080:7300"]}}' | jq '.ports[0].id')
            ask '{"execute":"list_ports"}' | jq -e '.ports[0].host_port == 8080' >/dev/null
            ask '{"execute":"list_hostfwd"}' | jq -e '.entries | length == 1' >/dev/null
            ask '{"execute":"add_host","arguments":{"name":"db","address":"192.0.2.7"}}' >/dev/null
            ask '{"execute":"list_hosts"}' | jq -e '.hosts[0].source == "socket"' >/dev/null
            ask '{"execute":"add_dns_record","arguments":{"name":"t.example","type":"TXT","value":"hi"}}' >/dev/null
            ask '{"execute":"get_info"}' | jq -e '.name == "site" and .v4.guest == "10.0.2.100"' >/dev/null
            ask "{\"execute\":\"unpublish\",\"arguments\":{\"ids\":[$id]}}" >/dev/null
            echo nonsense | socat - "UNIX-CONNECT:$SOCKET" | jq -e '.error.code == "bad_json"' >/dev/null
            printf '%s\n' '{"execute":"hello","arguments":{"keep_open":true}}' '{"execute":"list_ports"}' '{"execute":"no"}' |
                socat -t 5 - "UNIX-CONNECT:$SOCKET" | jq -ce '.return.ports // .error.code // .return.protocol'
        "#;
        let cmd = w.host.cmd(&["bash", "-o", "pipefail", "-ec", script]).env("SOCKET", path.to_str().unwrap());
        assert_eq!(cmd.limit(60).ok(), "1\n[]\n\"unknown_verb\"\n");
    });
}

/// A socket whose monitor was killed is in nobody's way, and the next sandbox removes it.
#[test]
fn the_socket_of_a_dead_monitor_is_removed() {
    World::run(|w| {
        let guest = w.guest(&["--name", "one"]);
        let path = socket(w);
        w.host.sh(&format!("kill -KILL {}", w.tapway_pids().into_iter().min().expect("a monitor")));
        drop(guest);
        assert!(path.exists() && UnixStream::connect(&path).is_err());
        let text = path.to_str().unwrap();
        let line = format!("tapway: nobody listens at {text}: its process is gone, and the file can be removed\n");
        for words in [
            &["info"][..],
            &["publish", "8080:80"],
            &["unpublish", "8080:80"],
            &["port"],
            &["dns"],
            &["hosts"],
            &["flows"],
            &["stats"],
            &["events"],
            &["ctl", "{\"execute\":\"get_info\"}"],
            &["capture", "/mnt/run/none.pcapng"],
            &["top", "--once"],
        ] {
            let (command, rest) = words.split_first().unwrap();
            let ended = w.tapway(&[&[*command, text], rest].concat()).end();
            assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (1, line.as_str(), ""), "{words:?}");
        }
        assert!(!std::path::Path::new("/mnt/run/none.pcapng").exists(), "no file of a capture that is none");
        let _next = w.guest(&["--name", "two"]);
        assert_ne!(socket(w), path);
    });
}
