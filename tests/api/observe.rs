//! What the network process tells of itself, asked over its API socket: a whole one, whose TAP is a socket pair and whose
//! guest sends frames made by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tapway::api::server::bind_legacy;
use tapway::network::config::{EndpointConfig, Mac, Membership, Offloads, PlanV4};
use tapway::runtime::Attached;
use tapway::runtime::control::{Names, Supervisor};
use tapway::runtime::engine;
use tapway::wire::csum;

use crate::openmetrics;
use crate::served::{ask, connect, fresh_path};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A network process in two threads, which end with its exit descriptor.
struct World {
    path: PathBuf,
    guest: UnixDatagram,
    exit: Option<UnixStream>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.exit = None;
        let _ = std::fs::remove_file(&self.path);
    }
}

impl World {
    fn new() -> Self {
        let path = fresh_path();
        let listener = bind_legacy(path.as_os_str()).unwrap();
        let (tap, guest) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        guest.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (exit, theirs) = UnixStream::pair().unwrap();
        let endpoint = EndpointConfig {
            id: "0123456789ab".into(),
            mtu: 1500,
            guest_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_mac: Mac([2, 0, 0, 0, 0, 2]),
            v4: Some(PlanV4 {
                subnet: "10.0.2.0/24".parse().unwrap(),
                gateway: GATEWAY,
                dns: [10, 0, 2, 3].into(),
                guest: GUEST,
            }),
            v6: None,
            offloads: Offloads::default(),
            allow_host_loopback: true,
            allow_link_local: false,
            outbound_v4: None,
            outbound_v6: None,
            hostname: "box".into(),
            dns_search: Vec::new(),
            slirp: None,
        };
        let attached = Attached {
            endpoint,
            tap: tap.into(),
            queues: Vec::new(),
            pcap: None,
            listeners: Vec::new(),
            dns: Names::default(),
            metrics: None,
            api: Some(listener),
            exit: Some(theirs.into()),
            membership: Membership::default(),
            faults: tapway::network::fault::Rules::default(),
        };
        let supervisor = Supervisor::Caller { host_dns: Box::new(|| None) };
        let (engine, mut control) = engine::build(attached, supervisor, None).unwrap();
        control.set_confinement([("seccomp".to_owned(), "done".to_owned())].into());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            control.run(&runtime);
        });
        thread::spawn(move || engine.run().unwrap());
        Self { path, guest, exit: Some(exit) }
    }

    fn ask(&self, request: &str) -> Value {
        reply(&self.path, request)
    }

    /// What a verb returns.
    fn returned(&self, verb: &str, arguments: Value) -> Value {
        let mut reply = self.ask(&json!({ "execute": verb, "arguments": arguments }).to_string());
        assert!(reply.get("error").is_none(), "{verb}: {reply}");
        reply["return"].take()
    }

    /// A datagram of the guest to the gateway's `port`.
    fn send(&self, from: u16, port: u16, payload: &[u8]) {
        let mut udp = Vec::new();
        udp.extend(from.to_be_bytes());
        udp.extend(port.to_be_bytes());
        udp.extend((8 + payload.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(GUEST.octets());
        ip.extend(GATEWAY.octets());
        let sum = csum::plain(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend(ip);
        frame.extend(udp);
        self.guest.send(&frame).unwrap();
    }

    /// Asks until `good` is content.
    fn until(&self, verb: &str, arguments: Value, good: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let reply = self.returned(verb, arguments.clone());
            if good(&reply) {
                return reply;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{verb}: {reply}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A UDP flow from the guest's `from` that was answered once; returns the host's end.
    fn flow(&self, from: u16) -> UdpSocket {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.send(from, server.local_addr().unwrap().port(), b"question");
        let (length, client) = server.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(length, 8);
        server.send_to(b"answer", client).unwrap();
        let guest = format!("{GUEST}:{from}");
        self.until("list_flows", json!({ "guest": guest, "state": "open" }), |reply| {
            reply["flows"].as_array().is_some_and(|flows| flows.len() == 1)
        });
        server
    }
}

fn reply(path: &Path, request: &str) -> Value {
    let reply = ask(path, request.as_bytes()).unwrap();
    serde_json::from_slice(&reply)
        .unwrap_or_else(|error| panic!("{request}: {error}: {}", String::from_utf8_lossy(&reply)))
}

/// A connection that is subscribed.
struct Subscriber(BufReader<UnixStream>);

impl Subscriber {
    fn new(world: &World, events: Value) -> Self {
        let mut stream = connect(&world.path);
        let request = json!({ "execute": "subscribe", "arguments": { "events": events } });
        stream.write_all(request.to_string().as_bytes()).unwrap();
        let mut subscriber = Self(BufReader::new(stream));
        assert_eq!(subscriber.next(), json!({ "return": {} }));
        subscriber
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

#[test]
fn flows_are_listed_and_killed() {
    let world = World::new();
    assert_eq!(world.returned("list_flows", json!({})), json!({ "flows": [], "total": 0 }));
    let server = world.flow(5000);
    let list = world.returned("list_flows", json!({ "protocol": "udp" }));
    let flow = &list["flows"][0];
    let port = server.local_addr().unwrap().port();
    assert_eq!(flow["guest"], "10.0.2.100:5000");
    assert_eq!(
        (&flow["peer"], &flow["target"]),
        (&json!(format!("{GATEWAY}:{port}")), &json!(format!("127.0.0.1:{port}")))
    );
    assert_eq!((&flow["direction"], &flow["state"]), (&json!("outgoing"), &json!("open")));
    assert_eq!((&flow["from_guest_bytes"], &flow["to_guest_bytes"]), (&json!(8), &json!(6)));
    assert_eq!((&flow["from_guest_packets"], &flow["to_guest_packets"]), (&json!(1), &json!(1)));
    let age = flow["age_seconds"].as_f64().unwrap();
    assert!((0.0..10.0).contains(&age) && flow["idle_seconds"].as_f64().unwrap() <= age);
    // Pages by one.
    let _second = world.flow(5001);
    let first = world.returned("list_flows", json!({ "limit": 1 }));
    assert_eq!((first["flows"].as_array().unwrap().len(), &first["total"]), (1, &json!(2)));
    let second = world.returned("list_flows", json!({ "limit": 1, "after": first["next"] }));
    assert_ne!(first["flows"][0]["id"], second["flows"][0]["id"]);
    let id = json!({ "id": flow["id"] });
    assert_eq!(world.returned("kill_flow", id.clone()), json!({}));
    let again = world.ask(&json!({ "execute": "kill_flow", "arguments": id }).to_string());
    assert_eq!(again["error"]["code"], "not_found");
    // Its socket is closed: the host's answer finds nobody.
    assert_eq!(world.returned("list_flows", json!({ "guest": ":5000" }))["flows"], json!([]));
    assert_eq!(world.returned("list_flows", json!({}))["total"], 1);
}

#[test]
fn what_is_wrong_is_named_with_a_code() {
    let world = World::new();
    for (verb, arguments, code, word) in [
        ("list_flows", json!({ "protocol": "sctp" }), "bad_argument", "sctp"),
        ("list_flows", json!({ "state": "x" }), "bad_argument", "x"),
        ("list_flows", json!({ "guest": "here" }), "bad_argument", "here"),
        ("list_flows", json!({ "peer": "1.2.3.4:99999" }), "bad_argument", "1.2.3.4:99999"),
        ("list_flows", json!({ "limit": 0 }), "bad_argument", "limit"),
        ("list_flows", json!({ "limit": 257 }), "bad_argument", "257"),
        ("list_flows", json!({ "limit": -1 }), "bad_argument", "-1"),
        ("list_flows", json!({ "after": "udp" }), "bad_argument", "udp"),
        ("list_flows", json!({ "limits": 1 }), "unknown_field", "limits"),
        ("kill_flow", json!({}), "bad_argument", "id"),
        ("kill_flow", json!({ "id": 5 }), "bad_argument", "5"),
        ("kill_flow", json!({ "id": "nobody" }), "bad_argument", "nobody"),
        ("kill_flow", json!({ "id": "tcp-0-1" }), "not_found", "tcp-0-1"),
        ("get_stats", json!({ "x": 1 }), "unknown_field", "x"),
        ("get_info", json!({ "x": 1 }), "unknown_field", "x"),
        ("get_metrics", json!({ "x": 1 }), "unknown_field", "x"),
        ("set_log_level", json!({ "level": "loud" }), "bad_argument", "loud"),
        ("subscribe", json!({}), "bad_argument", "events"),
        ("subscribe", json!({ "events": [] }), "bad_argument", "events"),
        ("subscribe", json!({ "events": ["flow"] }), "bad_argument", "flow"),
        ("nothing", json!({}), "unknown_verb", "unknown execute"),
    ] {
        let reply = world.ask(&json!({ "execute": verb, "arguments": arguments }).to_string());
        assert_eq!(reply["error"]["code"], code, "{verb} {arguments}: {reply}");
        assert!(reply["error"]["desc"].as_str().unwrap().contains(word), "{verb} {arguments}: {reply}");
    }
}

#[test]
fn numbers_and_metrics_agree() {
    let world = World::new();
    let _server = world.flow(5000);
    // Too short for anything.
    world.guest.send(&[0; 14]).unwrap();
    let stats = world.until("get_stats", json!({}), |stats| stats["counters"]["frames_from_guest"] == 2);
    let counters = &stats["counters"];
    assert_eq!(
        (&counters["udp_mappings"], &counters["udp_opened"], &counters["udp_closed"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert_eq!((&counters["udp_from_guest_bytes"], &counters["udp_to_guest_bytes"]), (&json!(8), &json!(6)));
    assert_eq!(stats["drops"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 1, "{stats}");
    let metrics = world.returned("get_metrics", json!({}));
    let text = metrics["text"].as_str().unwrap();
    let samples = openmetrics::read(text);
    let sample = |name: &str| samples.get(name).copied().unwrap_or_else(|| panic!("no {name} in\n{text}"));
    assert!(sample("tapway_uptime_seconds[]") > 0.0);
    assert!(sample(r#"tapway_frames_total[("direction", "from_guest")]"#) >= 2.0);
    let whole = |name: &str| sample(name) as u64;
    assert_eq!(whole(r#"tapway_flows[("kind", "udp")]"#), 1);
    assert_eq!(whole(r#"tapway_payload_bytes_total[("protocol", "udp"), ("direction", "from_guest")]"#), 8);
    let drops: f64 = samples.iter().filter(|(name, _)| name.starts_with("tapway_drops_total")).map(|(_, n)| n).sum();
    assert_eq!(drops as u64, 1);
    another_reader(text);
}

/// Prometheus's own reader, where Debian's Python has it.
fn another_reader(text: &str) {
    // Not the first of that name: packages are the distribution's Python's.
    const PYTHON: &str = "/usr/bin/python3";
    let script = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as read\n\
                  print(len(list(read(sys.stdin.read()))))";
    let has = Command::new(PYTHON).args(["-c", "import prometheus_client"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("TAPWAY_NO_SKIP").is_none(), "python3-prometheus-client is missing");
        eprintln!("SKIPPED: python3-prometheus-client is missing; only our own reader has seen the metrics");
        return;
    }
    let mut python =
        Command::new(PYTHON).args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let families: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(families > 10);
}

#[test]
fn events_come_to_those_who_want_them() {
    let world = World::new();
    let mut flows = Subscriber::new(&world, json!(["flow_opened", "flow_closed"]));
    let mut ports = Subscriber::new(&world, json!(["port_bound", "port_closed", "port_closed"]));
    let mut drops = Subscriber::new(&world, json!(["drops"]));
    // Both have to reach the data plane, which nothing tells: wait until a flow is seen.
    thread::sleep(Duration::from_millis(200));
    let _server = world.flow(5000);
    let opened = flows.next();
    assert_eq!((&opened["event"], &opened["data"]["guest"]), (&json!("flow_opened"), &json!("10.0.2.100:5000")));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 30.0..now + 30.0).contains(&opened["time"].as_f64().unwrap()));
    world.returned("kill_flow", json!({ "id": opened["data"]["id"] }));
    let closed = flows.next();
    assert_eq!((&closed["event"], &closed["data"]["id"]), (&json!("flow_closed"), &opened["data"]["id"]));
    assert_eq!((&closed["data"]["from_guest_bytes"], &closed["data"]["to_guest_bytes"]), (&json!(8), &json!(6)));
    assert_eq!(closed["data"]["state"], "closed");
    // A port comes and goes.
    let port = { UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let add = json!({ "proto": "udp", "host_addr": "127.0.0.1", "host_port": port, "guest_port": 53 });
    let id = world.returned("add_hostfwd", add);
    world.returned("remove_hostfwd", id);
    for event in ["port_bound", "port_closed"] {
        let told = ports.next();
        assert_eq!((&told["event"], &told["data"]["host_port"]), (&json!(event), &json!(port)));
        assert_eq!((&told["data"]["proto"], &told["data"]["host_addr"]), (&json!("udp"), &json!("127.0.0.1")));
    }
    // Drops are summed, and only what is new.
    for _ in 0..5 {
        world.guest.send(&[0; 14]).unwrap();
    }
    let mut sum = 0;
    while sum < 5 {
        let told = drops.next();
        assert_eq!(told["event"], "drops");
        sum += told["data"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
    }
    assert_eq!(sum, 5);
}

#[test]
fn a_subscriber_that_does_not_read_loses_events_and_holds_nobody_up() {
    // Each flow has a socket.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let world = World::new();
    let mut slow = Subscriber::new(&world, json!(["flow_opened"]));
    thread::sleep(Duration::from_millis(200));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    // More than the queue and the socket's buffer hold.
    let flows = 2500u64;
    for from in 0..flows {
        world.send(1000 + from as u16, port, b"x");
        // As fast as they are served, so that none is lost before the subscriber's queue.
        if from % 100 == 99 {
            world.until("get_stats", json!({}), |stats| stats["counters"]["udp_opened"].as_u64() == Some(from + 1));
        }
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < flows {
        let event = slow.next();
        if event["event"] == "lost" {
            lost += event["data"]["count"].as_u64().unwrap();
        } else {
            seen += 1;
        }
    }
    assert!(seen >= 1024 && lost > 0, "{seen} {lost}");
    assert_eq!(seen + lost, flows);
}

#[test]
fn subscribers_leave_their_places() {
    let world = World::new();
    let one_more = || {
        let mut stream = connect(&world.path);
        stream.write_all(br#"{"execute":"subscribe","arguments":{"events":["dns"]}}"#).unwrap();
        let mut subscriber = Subscriber(BufReader::new(stream));
        let reply = subscriber.next();
        (subscriber, reply)
    };
    // Those of the round before leave when the server notices.
    let in_time = || {
        let begun = Instant::now();
        loop {
            let (subscriber, reply) = one_more();
            if reply.get("return").is_some() {
                return subscriber;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{reply}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    for _ in 0..3 {
        let all: Vec<_> = (0..64).map(|_| in_time()).collect();
        assert_eq!(one_more().1["error"]["code"], "limit");
        drop(all);
    }
}

/// Same keys, same types; a list's first entry stands for all.
fn alike(there: &Value, here: &Value) -> bool {
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| alike(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => match (a.first(), b.first()) {
            (Some(a), Some(b)) => alike(a, b),
            // What depends on this host and this process may be fewer than in the document, or more.
            _ => true,
        },
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => true,
        _ => false,
    }
}

/// A file without a name.
fn tempfile() -> std::fs::File {
    let path = fresh_path();
    let file = std::fs::File::create_new(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// One request that a descriptor comes along with.
fn with_descriptor(path: &Path, request: &str, file: &std::fs::File) -> Value {
    let mut stream = connect(path);
    let (bytes, fds) = ([std::io::IoSlice::new(request.as_bytes())], [file.as_raw_fd()]);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap()
}

#[test]
fn the_documents_examples_are_true() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/control-socket.md")).unwrap();
    // Ports that others on this machine may have.
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let text = text.replace("18080", &free()).replace("18081", &free()).replace("18053", &free());
    let world = World::new();
    let _server = world.flow(5000);
    let mut request = None;
    let mut replayed = 0;
    for line in text.lines() {
        // What a sandbox's socket answers (`>>`), this one does, too, with the same bytes.
        if let Some(asked) = line.strip_prefix(">> ").or_else(|| line.strip_prefix("> ")) {
            assert!(request.replace(asked).is_none(), "no reply above {line}");
        } else if let Some(told) = line.strip_prefix("<< ").or_else(|| line.strip_prefix("< ")) {
            let asked = request.take().unwrap_or_else(|| panic!("no request above {line}"));
            // Long maps of numbers are cut short with an ellipsis, which no JSON is.
            let told: Value = serde_json::from_str(told).unwrap_or_else(|error| panic!("{line}: {error}"));
            let verb = asked.split('"').nth(3).unwrap();
            let verbs = tapway::api::verbs::life::VERBS.iter().chain(&tapway::api::verbs::connect::VERBS);
            if verbs.into_iter().any(|known| *known == verb) {
                // There is no command here that it could be about, and no other network.
                assert_eq!(world.ask(asked)["error"]["code"], "unknown_verb");
                continue;
            }
            if asked.contains("\"network\"") {
                assert_eq!(world.ask(asked)["error"]["code"], "unknown_field");
                continue;
            }
            let reply = if asked.contains("\"start_capture\"") {
                with_descriptor(&world.path, asked, &tempfile())
            } else if asked.contains("\"subscribe\"") {
                let mut stream = BufReader::new(connect(&world.path));
                stream.get_mut().write_all(asked.as_bytes()).unwrap();
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                serde_json::from_str(&line).unwrap()
            } else {
                world.ask(asked)
            };
            let (told, reply) = match asked {
                // Every counter and reason is there, the document shows some.
                _ if asked.contains("get_stats") => {
                    for group in ["counters", "drops"] {
                        for (name, value) in told["return"][group].as_object().unwrap() {
                            assert!(value.is_u64() && reply["return"][group][name].is_u64(), "{group} {name}");
                        }
                    }
                    (Value::Null, Value::Null)
                }
                _ => (told, reply),
            };
            assert!(alike(&told, &reply), "{asked}\nis said to be {told}\nand is        {reply}");
            replayed += 1;
        }
    }
    for verb in ["list_flows", "kill_flow", "get_stats", "get_metrics", "set_log_level", "get_info", "subscribe"] {
        assert!(text.contains(&format!("> {{\"execute\":\"{verb}\"")), "{verb} has no example");
    }
    assert!(replayed >= 25 && request.is_none());
}

#[test]
fn a_subscriber_may_send_anything_and_half_close() {
    let world = World::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    for (n, garbage) in [&b""[..], b"\n", b"{}", &vec![0; 100_000]].into_iter().enumerate() {
        let mut subscriber = Subscriber::new(&world, json!(["flow_opened"]));
        subscriber.0.get_mut().write_all(garbage).unwrap();
        subscriber.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        thread::sleep(Duration::from_millis(100));
        world.send(1000 + n as u16, port, b"x");
        assert_eq!(subscriber.next()["data"]["guest"], format!("{GUEST}:{}", 1000 + n));
    }
}
