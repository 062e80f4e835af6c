//! tapway's own verbs on the API socket: what they change holds for real traffic, under that program's confinement.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::helper::{Guest, HARDENED, Helper, ask, raw};
use crate::tools::{ask_tcp, ask_udp, at, connect, tell_tcp, tell_udp};
use crate::world::{HOST4, INET4, World};

tests! {
    ports_come_and_go: ours verb;
    names_of_ones_own: ours;
    what_a_container_runtime_owns_is_refused: ours;
    captures_and_events: ours;
    many_requests_after_hello: ours;
    misbehaviour_after_hello: ours;
}

const INSIDE: u16 = 7300;

fn done(guest: &Guest, verb: &str, arguments: Value) -> Value {
    let mut reply = ask(&guest.api, &json!({ "execute": verb, "arguments": arguments }).to_string());
    assert!(reply.get("error").is_none(), "{verb}: {reply}");
    reply["return"].take()
}

fn refused(guest: &Guest, verb: &str, arguments: Value) -> String {
    let reply = ask(&guest.api, &json!({ "execute": verb, "arguments": arguments }).to_string());
    reply["error"]["code"].as_str().unwrap_or_else(|| panic!("{verb}: {reply}")).to_owned()
}

fn open(path: &Path) -> (UnixStream, BufReader<UnixStream>) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let reader = BufReader::new(stream.try_clone().unwrap());
    (stream, reader)
}

fn line(reader: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
}

fn ports_come_and_go(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    tell_tcp(guest.ns(), at([0; 4], INSIDE));
    tell_udp(guest.ns(), at([0; 4], INSIDE));
    let legacy = guest.forward("tcp", at([0; 4], 8080), INSIDE);
    let made = done(&guest, "publish", json!({"specs": ["8081:7300", "203.0.113.2:8082:7300/udp"]}));
    let ids: Vec<u64> = made["ports"].as_array().unwrap().iter().map(|port| port["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [legacy + 1, legacy + 2, legacy + 3], "{made}");
    let client = at([0; 4], 0);
    for port in [8080, 8081] {
        assert_eq!(ask_tcp(&w.internet, client, at(HOST4, port)).1.ip(), INET4);
    }
    assert_eq!(ask_udp(&w.internet, client, at(HOST4, 8082)).1.ip(), INET4);
    // Both ways of asking know all of them.
    let listed = done(&guest, "list_ports", json!({}));
    assert_eq!(listed["ports"].as_array().unwrap().len(), 4);
    assert_eq!(listed["ports"][1]["connections"], 1, "{listed}");
    let entries = ask(&guest.api, r#"{"execute":"list_hostfwd"}"#);
    assert_eq!(entries["entries"].as_array().unwrap().len(), 4, "{entries}");
    assert_eq!(entries["entries"][2]["proto"], "tcp6");
    // All or nothing.
    assert_eq!(refused(&guest, "publish", json!({"specs": ["8090:7300", "8081:7301"]})), "port_in_use");
    assert!(connect(&w.internet, at(HOST4, 8090)).is_err());
    assert_eq!(refused(&guest, "publish", json!({"specs": ["192.0.2.1:8090:7300"]})), "address_not_local");
    done(&guest, "unpublish", json!({"specs": ["8081:7300"]}));
    assert!(connect(&w.internet, at(HOST4, 8081)).is_err());
    // Either verb closes what the other has opened.
    done(&guest, "unpublish", json!({"ids": [legacy]}));
    done(&guest, "remove_hostfwd", json!({"id": ids[2]}));
    assert_eq!(done(&guest, "list_ports", json!({})), json!({"ports": []}));
    assert_eq!(refused(&guest, "unpublish", json!({"ids": [legacy]})), "not_found");
}

fn names_of_ones_own(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    let dig = |name: &str, kind: &str| {
        let text = guest.sh(&format!("dig +short +tries=2 +time=3 @10.0.2.3 {name} {kind}"));
        text.trim().to_owned()
    };
    done(&guest, "add_dns_record", json!({"name": "*.apps.example", "type": "A", "value": "10.0.2.2"}));
    done(&guest, "add_host", json!({"name": "db.example", "address": "192.0.2.7"}));
    assert_eq!(dig("x.apps.example", "A"), "10.0.2.2");
    assert_eq!(dig("db.example", "A"), "192.0.2.7");
    assert_eq!(dig("-x 192.0.2.7", ""), "db.example.");
    assert_eq!(done(&guest, "list_hosts", json!({}))["hosts"][0]["name"], "db.example");
    assert_eq!(refused(&guest, "add_host", json!({"name": "db.example", "address": "192.0.2.7"})), "exists");
    let set = done(&guest, "set_dns", json!({"servers": ["198.51.100.2:5399"]}));
    assert_eq!(set["in_use"], json!(["198.51.100.2:5399"]));
    let set = done(
        &guest,
        "set_dns",
        json!({"servers": null, "zones": [{"domain": "corp.example", "servers": ["198.51.100.2"]}]}),
    );
    assert_eq!(set["servers"], Value::Null);
    assert_eq!(set["zones"][0]["domain"], "corp.example");
    done(&guest, "remove_dns_record", json!({"name": "*.apps.example"}));
    done(&guest, "remove_host", json!({"name": "db.example"}));
    assert_eq!(done(&guest, "list_dns_records", json!({})), json!({"records": []}));
    let gone = guest.sh("dig +tries=1 +time=2 @10.0.2.3 db.example A || true");
    assert!(!gone.contains("192.0.2.7"), "{gone}");
}

fn what_a_container_runtime_owns_is_refused(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    assert_eq!(refused(&guest, "set_dns", json!({"search": ["a.example"]})), "unsupported");
    assert_eq!(refused(&guest, "set_dns", json!({"options": ["ndots:1"], "servers": []})), "unsupported");
    assert_eq!(done(&guest, "get_dns", json!({}))["servers"], Value::Null);
    assert_eq!(refused(&guest, "set_dns", json!({"serves": []})), "unknown_field");
    assert_eq!(refused(&guest, "start_capture", json!({})), "bad_argument");
    // What is read strictly is refused by name, and that program's verbs are not.
    let reply = ask(&guest.api, r#"{"execute":"list_ports","also":1}"#);
    assert_eq!(reply["error"]["code"], "unknown_field", "{reply}");
    let reply = ask(&guest.api, r#"{"execute":"list_ports"} and more"#);
    assert_eq!(reply["error"]["code"], "bad_request", "{reply}");
    assert!(raw(&guest.api, br#"{"execute":"list_hostfwd","also":1} and more"#).contains("entries"));
}

fn captures_and_events(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    let (mut subscriber, mut events) = open(&guest.api);
    subscriber
        .write_all(br#"{"execute":"subscribe","arguments":{"events":["port_bound","dns","flow_closed"]}}"#)
        .unwrap();
    assert_eq!(line(&mut events), json!({"return": {}}));
    // The file is the client's: the process itself could open none.
    let path = w.path("x.pcapng");
    let file = File::create(&path).unwrap();
    let (stream, mut reader) = open(&guest.api);
    let request = br#"{"execute":"start_capture","arguments":{"protocol":"icmp"}}"#;
    let rights = [file.as_raw_fd()];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(request)],
        &[ControlMessage::ScmRights(&rights)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    let mut reply = String::new();
    reader.read_to_string(&mut reply).unwrap();
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let id = reply["return"]["id"].as_u64().unwrap_or_else(|| panic!("{reply}"));
    guest.sh("ping -c2 -i0.05 10.0.2.2");
    done(&guest, "publish", json!({"specs": ["203.0.113.2:8080:80"]}));
    let event = line(&mut events);
    assert_eq!((&event["event"], &event["data"]["host_port"]), (&json!("port_bound"), &json!(8080)), "{event}");
    guest.sh("dig +tries=1 +time=2 @10.0.2.3 localhost A");
    assert_eq!(line(&mut events)["data"]["name"], "localhost");
    let stopped = done(&guest, "stop_capture", json!({ "id": id }));
    assert_eq!((&stopped["packets"], &stopped["dropped"]), (&json!(4), &json!(0)), "{stopped}");
    let read = w.host.cmd(&["tcpdump", "-n", "-r", path.to_str().unwrap()]).end();
    assert_eq!(
        read.stdout.lines().filter(|line| line.contains("ICMP echo")).count(),
        4,
        "{}{}",
        read.stdout,
        read.stderr
    );
}

fn many_requests_after_hello(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    let (mut stream, mut reader) = open(&guest.api);
    // All in one packet, the second larger than that program's buffer.
    let specs: Vec<String> = (0..500).map(|n| format!("127.0.0.1:{}:80", 20_000 + n)).collect();
    let publish = json!({"execute": "publish", "arguments": {"specs": specs}}).to_string();
    assert!(publish.len() > 4096);
    let text =
        format!("{{\"execute\":\"hello\",\"arguments\":{{\"keep_open\":true}}}}\n{publish}\n{{\"execute\":\"no\"}}\n");
    stream.write_all(text.as_bytes()).unwrap();
    let hello = line(&mut reader);
    assert!(hello["return"]["verbs"].as_array().unwrap().contains(&json!("set_dns")), "{hello}");
    assert_eq!(line(&mut reader)["return"]["ports"].as_array().unwrap().len(), 500);
    assert_eq!(line(&mut reader)["error"]["code"], "unknown_verb");
    stream.write_all(b"nonsense\n{\"execute\":\"get_info\"}\n").unwrap();
    assert_eq!(line(&mut reader)["error"]["code"], "bad_json");
    let info = line(&mut reader);
    assert_eq!((&info["return"]["mode"], &info["return"]["ports"]), (&json!("slirp4netns"), &json!(500)), "{info}");
    stream
        .write_all(b"{\"execute\":\"unpublish\",\"arguments\":{\"specs\":[\"127.0.0.1:20000-20499:80-579\"]}}\n")
        .unwrap();
    assert_eq!(line(&mut reader)["error"]["code"], "not_found");
    let specs: Vec<String> = (0..500).map(|n| format!("127.0.0.1:{}:80", 20_000 + n)).collect();
    let unpublish = json!({"execute": "unpublish", "arguments": {"specs": specs}}).to_string();
    stream.write_all(format!("{unpublish}\n").as_bytes()).unwrap();
    assert_eq!(line(&mut reader)["return"]["ports"].as_array().unwrap().len(), 500);
    drop((stream, reader));
    assert_eq!(done(&guest, "list_ports", json!({})), json!({"ports": []}));
}

/// Long requests of kept connections, never finished, are bounded together, and others go on.
fn misbehaviour_after_hello(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    let before: u64 = guest.helper.status("RssAnon").trim_end_matches(" kB").trim().parse().unwrap();
    let mut stuck = Vec::new();
    for _ in 0..100 {
        let (mut stream, mut reader) = open(&guest.api);
        stream.write_all(b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n").unwrap();
        line(&mut reader);
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(&[b"{\"execute\":\"".to_vec(), vec![b'x'; 60_000]].concat());
        stuck.push((stream, reader));
    }
    for _ in 0..20 {
        assert_eq!(done(&guest, "get_info", json!({}))["mode"], "slirp4netns");
    }
    let after: u64 = guest.helper.status("RssAnon").trim_end_matches(" kB").trim().parse().unwrap();
    assert!(after < before + 4096, "{before} kB became {after} kB");
    guest.sh("ping -c1 -W5 10.0.2.2");
    drop(stuck);
    assert_eq!(done(&guest, "get_info", json!({}))["mode"], "slirp4netns");
}
