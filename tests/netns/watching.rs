//! Watching a sandbox over its control socket: the log level, events and captures, and what becomes of each when the
//! network process dies.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::control::{done, kill, open, refused};
use crate::tools::{ask_udp, at, connect, echo_tcp, tell_udp};
use crate::world::{Guest, INET4, Proc, World, wait_for};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn the_log_level_outlives_the_network_process() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let info = || done(w, "get_info", json!({}));
        // What the network process says at level debug when it is told names, and the monitor at info.
        let speaks = || guest.monitor.stderr().matches("the network's names changed").count();
        let add = |value: &str| {
            done(w, "add_dns_record", json!({"name": "t.example", "type": "TXT", "value": value}));
            // Something later than that has been heard by the network process.
            done(w, "get_stats", json!({}));
        };
        assert_eq!(info()["log_level"], "warn");
        add("quiet");
        assert_eq!(speaks(), 0, "{}", guest.monitor.stderr());
        done(w, "set_log_level", json!({"level": "tapway::runtime=debug,warn"}));
        add("loud");
        wait_for("a line at level debug", Duration::from_secs(5), || speaks() == 1);
        let first = info()["network_pid"].clone();
        for killed in 1..=2 {
            kill(w, &guest);
            assert_ne!(info()["network_pid"], first);
            assert_eq!(info()["log_level"], "tapway::runtime=debug,warn", "after {killed} deaths");
            add(&format!("after {killed}"));
            wait_for("a line of the successor", Duration::from_secs(5), || speaks() == 1 + killed);
        }
        assert!(!guest.monitor.stderr().contains("name servers changed"), "{}", guest.monitor.stderr());
        done(w, "set_log_level", json!({"level": "info"}));
        w.host_resolv_conf("nameserver 198.51.100.9\n");
        wait_for("both to tell of it", Duration::from_secs(5), || {
            let log = guest.monitor.stderr();
            log.contains("the host's name servers changed") && log.contains("info: name servers changed")
        });
        done(w, "set_log_level", json!({"level": "off"}));
        assert_eq!(refused(w, "set_log_level", json!({"level": "loud"})), "bad_argument");
        assert_eq!(refused(w, "set_log_level", json!({"levels": "info"})), "unknown_field");
        assert_eq!(info()["log_level"], "off");
    });
}

/// What tshark reads in a file, which it must find whole: the given fields of each frame that passes a filter.
fn tshark(w: &World, file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut argv = vec!["tshark", "-n", "-r", file.to_str().unwrap(), "-Y", filter, "-T", "fields"];
    for field in fields {
        argv.extend(["-e", field]);
    }
    let read = w.host.cmd(&argv).limit(60).end();
    assert!(
        read.code == 0 && !read.stderr.contains("cut short") && !read.stderr.contains("damaged"),
        "{}",
        read.stderr
    );
    read.stdout.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// Ends `tapway capture` as a user does.
fn interrupt(w: &World, capture: Proc) -> (i32, String, String) {
    w.host.sh(&format!("kill -INT {}", capture.pid()));
    let ended = capture.end(PATIENCE);
    (ended.code, ended.stdout, ended.stderr)
}

fn captures(w: &World) -> Vec<Value> {
    done(w, "list_captures", json!({}))["captures"].as_array().unwrap().clone()
}

/// Waits for the only capture to have so many packets.
fn captured(w: &World, packets: u64) {
    wait_for(&format!("{packets} packets in the capture"), PATIENCE, || {
        captures(w).first().is_some_and(|one| one["packets"].as_u64() >= Some(packets))
    });
}

/// Sends so many bytes to an echo server and reads them back.
fn echo(guest: &Guest, port: u16, bytes: usize) {
    let mut stream = connect(&guest.ns, at(INET4, port)).unwrap();
    stream.write_all(&vec![7; bytes]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), bytes);
}

#[test]
fn a_capture_is_read_by_tshark() {
    const BYTES: usize = 300_000;
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 4000));
        echo_tcp(&w.internet, at(INET4, 4001));
        tell_udp(&w.internet, at(INET4, 4000));
        let guest = w.guest(&["--name", "site"]);
        let (all, some) = (w.path("all.pcapng"), w.path("some.pcapng"));
        let mut options = vec!["capture", "site", all.to_str().unwrap(), "--json"];
        let whole = w.tapway(&options).spawn();
        options[2] = some.to_str().unwrap();
        let filter = format!("{INET4}/32");
        options.extend(["--host", &filter, "--port", "4000", "--protocol", "tcp", "--snap", "96"]);
        let narrow = w.tapway(&options).spawn();
        wait_for("both captures", PATIENCE, || captures(w).len() == 2);
        echo(&guest, 4001, 1000);
        echo(&guest, 4000, BYTES);
        ask_udp(&guest.ns, at([0; 4], 0), at(INET4, 4000));
        guest.sh(&format!("ping -c2 -i0.1 {INET4}"));
        wait_for("the connections to be over", PATIENCE, || {
            done(w, "list_flows", json!({"protocol": "tcp"}))["flows"] == json!([])
        });
        let told = [narrow, whole].map(|capture| {
            let (code, stdout, stderr) = interrupt(w, capture);
            assert_eq!((code, stderr.as_str()), (0, ""));
            serde_json::from_str::<Value>(&stdout).unwrap()
        });
        assert!(captures(w).is_empty());
        let fields = ["ip.src", "tcp.port", "tcp.len", "frame.len", "frame.cap_len", "tcp.flags.syn", "tcp.flags.fin"];
        let frames = tshark(w, &some, "", &fields);
        assert_eq!(told[0]["packets"], frames.len(), "{}", told[0]);
        assert_eq!((&told[0]["dropped"], &told[0]["state"]), (&json!(0), &json!("stopped")));
        assert_eq!(told[0]["bytes"], std::fs::metadata(&some).unwrap().len());
        let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| panic!("{text:?} is no number"));
        let mut payload = [0; 2];
        for frame in &frames {
            assert!(frame[1].split(',').any(|port| port == "4000"), "{frame:?}");
            assert_eq!(number(&frame[4]), number(&frame[3]).min(96), "{frame:?}");
            payload[usize::from(frame[0] == INET4.to_string())] += number(&frame[2]);
        }
        assert_eq!(payload, [BYTES; 2], "the payload of one connection, both ways");
        assert_eq!(frames.iter().filter(|frame| frame[5] == "1").count(), 2, "SYN and SYN-ACK");
        assert_eq!(frames.iter().filter(|frame| frame[6] == "1").count(), 2, "a FIN each way");
        for (filter, count) in [("udp.port == 4000", 2), ("icmp.type == 8", 2), ("icmp.type == 0", 2)] {
            assert_eq!(tshark(w, &all, filter, &["frame.len"]).len(), count, "{filter}");
        }
        assert_eq!(tshark(w, &all, "tcp.port == 4000", &["frame.len"]).len(), frames.len());
        // Nothing follows what the file says is missing: nothing.
        assert_eq!(tshark(w, &all, "", &["frame.len"]).len() as u64, told[1]["packets"].as_u64().unwrap());
        // What makes no sense costs no file.
        let kept = std::fs::read(&all).unwrap();
        let bad = w.tapway(&["capture", "site", all.to_str().unwrap(), "--snap", "0"]).end();
        assert!(bad.code == 2 && bad.stderr.contains("snap_length 0"), "{}", bad.stderr);
        assert_eq!(std::fs::read(&all).unwrap(), kept);
    });
}

#[test]
fn a_capture_in_a_file_outlives_the_network_process() {
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 4000));
        tell_udp(&w.internet, at(INET4, 5000));
        let guest = w.guest(&["--name", "site", "--pcap", "/mnt/run/pcap"]);
        let file = w.path("x.pcapng");
        let capture = w.tapway(&["capture", "site", file.to_str().unwrap(), "--json"]).spawn();
        wait_for("the capture", PATIENCE, || captures(w).len() == 1);
        // One that has come to its end is not begun again.
        let full = File::create(w.path("full.pcapng")).unwrap();
        let small = start_capture(w, json!({"max_bytes": 400}), full.as_raw_fd())["return"]["id"].clone();
        for killed in 0..2 {
            // In the middle of frames, so that the file may end within a block.
            let bulk = format!("exec 3<>/dev/tcp/{INET4}/4000; (cat /dev/zero >&3) & timeout 20 cat <&3 >/dev/null");
            let bulk = guest.cmd(&["bash", "-c", &bulk]).limit(30).spawn();
            captured(w, 500);
            assert_eq!(captures(w)[1]["state"], "limit");
            // Again and again: beside the bulk a capture may lose frames, which it counts.
            for _ in 0..5 {
                ask_udp(&guest.ns, at([0; 4], 6000 + killed), at(INET4, 5000));
                std::thread::sleep(Duration::from_millis(20));
            }
            // The file lags behind the traffic by less than that.
            std::thread::sleep(Duration::from_millis(500));
            kill(w, &guest);
            drop(bulk);
            let list = captures(w);
            assert_eq!((&list[0]["state"], &list[0]["sections"]), (&json!("running"), &json!(2 + killed)), "{list:?}");
            assert_eq!((&list[1]["id"], &list[1]["state"], &list[1]["sections"]), (&small, &json!("limit"), &json!(1)));
        }
        ask_udp(&guest.ns, at([0; 4], 6002), at(INET4, 5000));
        let seen = |file: &Path| -> Vec<String> {
            let mut ports: Vec<String> =
                tshark(w, file, "udp.dstport == 5000", &["udp.srcport"]).into_iter().flatten().collect();
            ports.sort();
            ports.dedup();
            ports
        };
        wait_for("the last datagram in the file", PATIENCE, || seen(&file).last().is_some_and(|last| last == "6002"));
        let (code, stdout, stderr) = interrupt(w, capture);
        assert_eq!((code, stderr.as_str()), (0, ""));
        let told: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((&told["sections"], &told["state"]), (&json!(3), &json!("stopped")), "{told}");
        assert_eq!(told["bytes"], std::fs::metadata(&file).unwrap().len());
        assert_eq!(seen(&file), ["6000", "6001", "6002"]);
        // The file of --pcap is whole after the deaths as well.
        wait_for("the same in the file of --pcap", PATIENCE, || {
            seen(Path::new("/mnt/run/pcap")) == ["6000", "6001", "6002"]
        });
        assert_eq!(done(w, "stop_capture", json!({}))["id"], small);
        assert_eq!(refused(w, "stop_capture", json!({})), "not_found");
        assert!(captures(w).is_empty());
    });
}

/// Asks for a capture into a descriptor of ours.
fn start_capture(w: &World, arguments: Value, fd: RawFd) -> Value {
    let mut stream = open(w);
    let request = json!({"execute": "start_capture", "arguments": arguments}).to_string();
    let rights = [fd];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(request.as_bytes())], &message, MsgFlags::empty(), None).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap()
}

#[test]
fn a_capture_into_a_pipe_ends_with_the_network_process() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        let file = w.path("piped");
        let line = format!("{} capture site - | cat > {}", w.binary(), file.display());
        let piped = w.host.cmd(&["bash", "-o", "pipefail", "-c", &line]).unprivileged().spawn();
        wait_for("the capture", PATIENCE, || captures(w).len() == 1);
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let own = start_capture(w, json!({}), writer.as_raw_fd())["return"]["id"].clone();
        kill(w, &guest);
        let list = captures(w);
        let ours = list.iter().find(|one| one["id"] == own).unwrap_or_else(|| panic!("{list:?}"));
        assert_eq!(ours["state"], "failed", "{list:?}");
        assert!(ours["error"].as_str().unwrap().contains("the network process died"), "{list:?}");
        let ended = piped.end(PATIENCE);
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("the capture ended early: the network process died"), "{}", ended.stderr);
        assert_eq!(done(w, "stop_capture", json!({"id": own}))["state"], "failed");
        assert_eq!(refused(w, "stop_capture", json!({"id": own})), "not_found");
        // A client cannot say what only the monitor may.
        for name in ["resumed", "context", "capture"] {
            let reply = start_capture(w, json!({ name: true }), writer.as_raw_fd());
            assert_eq!(reply["error"]["code"], "unknown_field", "{name}: {reply}");
            assert_eq!(refused(w, "subscribe", json!({"events": ["dns"], name: true})), "unknown_field", "{name}");
        }
    });
}

/// `tapway events`, and what it has printed.
struct Events {
    proc: Proc,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Events {
    fn new(w: &World, kinds: &[&str]) -> Self {
        let mut argv = vec!["events", "site", "--json"];
        argv.extend(kinds);
        let mut proc = w.tapway(&argv).spawn();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, lines) = (Arc::clone(&seen), BufReader::new(proc.child.stdout.take().unwrap()).lines());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().unwrap().push(serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}")));
            }
        });
        Self { proc, seen }
    }

    /// The first event of a kind whose data is as wanted.
    fn find(&self, kind: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_for(&format!("an event {kind} among {:#?}", self.seen.lock().unwrap()), PATIENCE, || {
            let seen = self.seen.lock().unwrap();
            found = seen.iter().find(|event| event["event"] == kind && good(&event["data"])).cloned();
            found.is_some()
        });
        let event = found.unwrap();
        assert!(event["time"].as_f64().unwrap() > 1.7e9, "{event}");
        event["data"].clone()
    }
}

/// Waits until somebody is subscribed: a port that comes and goes is told.
fn until_told(w: &World, events: &Events, port: u16) {
    wait_for("an event of a port", PATIENCE, || {
        let spec = format!("127.0.0.1:{port}:80");
        done(w, "publish", json!({ "specs": [spec] }));
        done(w, "unpublish", json!({ "specs": [spec] }));
        events.seen.lock().unwrap().iter().any(|event| event["data"]["host_port"] == port)
    });
}

#[test]
fn events_tell_what_happens_before_and_after_a_death() {
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 4000));
        let guest = w.guest(&["--name", "site", "--add-host", "db.example:192.0.2.7"]);
        let events = Events::new(w, &[]);
        until_told(w, &events, 7000);
        for (round, bytes) in [(1, 100_000), (2, 54_321)] {
            echo(&guest, 4000, bytes);
            let opened = events.find("flow_opened", |data| data["id"].as_str().unwrap().starts_with("tcp-"));
            assert_eq!((&opened["peer"], &opened["direction"]), (&json!("198.51.100.2:4000"), &json!("outgoing")));
            let closed = events.find("flow_closed", |data| data["from_guest_bytes"] == bytes);
            assert_eq!(closed["to_guest_bytes"], bytes, "{closed}");
            assert_eq!((&closed["protocol"], &closed["state"]), (&json!("tcp"), &json!("closed")), "{closed}");
            assert!(closed["guest"].as_str().unwrap().starts_with("10.0.2.100:"), "{closed}");
            done(w, "publish", json!({"specs": ["8080:80"]}));
            for host in ["0.0.0.0", "::"] {
                let bound = events.find("port_bound", |data| data["host_addr"] == host);
                assert_eq!((&bound["host_port"], &bound["guest_port"]), (&json!(8080), &json!(80)), "{bound}");
            }
            done(w, "unpublish", json!({"specs": ["8080:80"]}));
            events.find("port_closed", |data| data["host_port"] == 8080 && data["host_addr"] == "0.0.0.0");
            guest.sh("dig +short db.example A");
            let dns = events.find("dns", |data| data["name"] == "db.example");
            assert_eq!(
                (&dns["source"], &dns["rcode"], &dns["addresses"]),
                (&json!("zone"), &json!(0), &json!(["192.0.2.7"]))
            );
            // Refused by policy.
            let drops = || done(w, "get_stats", json!({}))["drops"].as_object().unwrap().clone();
            let before = drops();
            guest.sh("for i in 1 2 3; do ping -c1 -W1 169.254.7.7 || true; done");
            let after = drops();
            let more = |(name, n): (&String, &Value)| (n.as_u64()? >= before[name].as_u64()? + 3).then(|| name.clone());
            let reason = after.iter().find_map(more).unwrap_or_else(|| panic!("nothing was dropped thrice: {after:?}"));
            events.find("drops", |data| data[&reason].is_u64());
            let sum = || -> u64 {
                let seen = events.seen.lock().unwrap();
                let drops = seen.iter().filter(|event| event["event"] == "drops");
                drops.filter_map(|event| event["data"][&reason].as_u64()).sum()
            };
            wait_for("all drops to be told", PATIENCE, || sum() >= 3);
            w.host_resolv_conf(&format!("nameserver 198.51.100.{}\n", 10 + round));
            events.find("host_dns", |data| data["servers"][0] == format!("198.51.100.{}:53", 10 + round));
            if round == 1 {
                kill(w, &guest);
                events.seen.lock().unwrap().clear();
                until_told(w, &events, 7001);
            }
        }
        // Everything ends with the sandbox, in order.
        w.host.sh(&format!("kill -TERM {}", guest.monitor.pid()));
        let mut proc = events.proc;
        wait_for("the end of tapway events", PATIENCE, || !proc.alive());
        assert!(proc.child.wait().unwrap().success() && proc.stderr().is_empty(), "{}", proc.stderr());
    });
}

/// Reads events over the socket, without tapway.
fn subscribe(w: &World, kinds: Value) -> BufReader<std::os::unix::net::UnixStream> {
    let mut stream = open(w);
    writeln!(stream, "{}", json!({"execute": "subscribe", "arguments": {"events": kinds}})).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "{\"return\":{}}\n");
    stream
}

#[test]
fn a_slow_reader_is_told_how_much_it_lost() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let count = |stream: &mut BufReader<_>, until: u64| -> (u64, u64) {
            let (mut seen, mut lost) = (0, 0);
            while seen + lost < until {
                let mut line = String::new();
                assert!(stream.read_line(&mut line).unwrap() > 0, "{seen} seen, {lost} lost of {until}");
                let event: Value = serde_json::from_str(&line).unwrap();
                match event["event"].as_str() {
                    Some("lost") => lost += event["data"]["count"].as_u64().unwrap(),
                    Some("port_bound" | "port_closed") => seen += 1,
                    other => panic!("{other:?}"),
                }
            }
            (seen, lost)
        };
        let mut slow = subscribe(w, json!(["port_bound", "port_closed"]));
        let mut fast = subscribe(w, json!(["port_bound", "port_closed"]));
        let reader = std::thread::spawn(move || count(&mut fast, 8000));
        let change = || {
            for _ in 0..4 {
                done(w, "publish", json!({"specs": ["127.0.0.1:20000-20999:20000-20999"]}));
                done(w, "unpublish", json!({"specs": ["127.0.0.1:20000-20999:20000-20999"]}));
            }
        };
        change();
        let (seen, lost) = count(&mut slow, 8000);
        assert!(seen >= 1024 && lost > 0, "{seen} seen, {lost} lost");
        assert_eq!(seen + lost, 8000);
        let (seen, lost) = reader.join().unwrap();
        assert_eq!(seen + lost, 8000);
        // It is as good as any other afterwards; and a successor tells it on.
        kill(w, &guest);
        change();
        let (seen, lost) = count(&mut slow, 8000);
        assert!(seen >= 1024 && lost > 0, "{seen} seen, {lost} lost by the successor");
    });
}
