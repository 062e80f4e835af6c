//! A TAP with several queues, each served by a thread of its own (`runtime::lanes`): every kind of traffic, and everything that
//! looks at it, as if there were one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::{done, kill};
use crate::spaces::Ns;
use crate::tools::{PATIENCE, any, at, connect, echo_tcp, echo_udp, expect_pattern, send_pattern, tell_tcp, udp};
use crate::world::{Guest, HOST4, INET4, World, wait_for};

/// More than two, so that lanes are told apart, and more than this machine may have cores.
const QUEUES: usize = 3;
/// With so many flows each lane has some: one stays empty once in ten billion times.
const FLOWS: usize = 60;

fn queues() -> String {
    format!("--queues={QUEUES}")
}

/// Every flow that is listed, page by page.
fn flows(w: &World) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), Value::Null);
    loop {
        let mut arguments = json!({ "limit": 7 });
        if !after.is_null() {
            arguments["after"] = after;
        }
        let page = done(w, "list_flows", arguments);
        all.extend(page["flows"].as_array().unwrap().clone());
        after = page["next"].clone();
        if after.is_null() {
            return all;
        }
    }
}

/// Which lane a flow's id names.
fn lane(flow: &Value) -> usize {
    let id = flow["id"].as_str().unwrap();
    id.split('-').nth(1).unwrap().parse::<usize>().unwrap() >> 24
}

fn counter(w: &World, name: &str) -> u64 {
    done(w, "get_stats", json!({}))["counters"][name].as_u64().unwrap()
}

fn dropped(w: &World, name: &str) -> u64 {
    done(w, "get_stats", json!({}))["drops"][name].as_u64().unwrap()
}

/// The threads of the process that serves the guest.
fn threads(w: &World, guest: &Guest) -> Vec<String> {
    let pid = w.network_process(guest).expect("a network process");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
    tasks.map(|task| name(task).unwrap().trim().to_owned()).collect()
}

/// Flows of the guest that stay open, each having carried a pattern both ways.
fn open(ns: &Ns) -> Vec<TcpStream> {
    let make = |n: usize| {
        let mut stream = connect(ns, at(INET4, 4000)).expect("connects");
        says(&mut stream, n as u8);
        stream
    };
    (0..FLOWS).map(make).collect()
}

/// A block there and back.
#[track_caller]
fn says(stream: &mut TcpStream, mark: u8) {
    let mut back = vec![0; 3000];
    stream.write_all(&vec![mark; back.len()]).unwrap();
    stream.read_exact(&mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == mark), "the bytes of flow {mark} are another's");
}

/// A datagram there and back; asked again each second, as programs do.
#[track_caller]
fn asks(socket: &UdpSocket, text: &[u8]) {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut back = [0; 100];
    let answer = (0..15).find_map(|_| {
        socket.send(text).unwrap();
        socket.recv(&mut back).ok()
    });
    assert_eq!(&back[..answer.expect("an answer")], text);
}

/// What works on any network that a sandbox is on.
fn everything(w: &World, network: &str) {
    echo_tcp(&w.internet, at(INET4, 4000));
    echo_udp(&w.internet, at(INET4, 4000));
    let guest = w.guest_on(network, &[queues().as_str(), "-p", "203.0.113.2:8080:80", "-p", "203.0.113.2:8080:80/udp"]);
    let dirs = guest.cmd(&["ls", "/sys/class/net/eth0/queues"]).ok();
    assert_eq!(dirs.matches("tx-").count(), QUEUES, "{dirs}");
    let names = threads(w, &guest);
    assert!((1..QUEUES).all(|n| names.contains(&format!("data-{n}"))), "{names:?}");

    // Flows of the guest are in every lane, and stay there.
    let mut streams = open(&guest.ns);
    let listed = flows(w);
    let tcp: Vec<&Value> = listed.iter().filter(|flow| flow["protocol"] == "tcp").collect();
    assert_eq!(tcp.len(), FLOWS, "{tcp:?}");
    let mut ids: Vec<&str> = tcp.iter().map(|flow| flow["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), FLOWS, "each flow has a name of its own");
    for n in 0..QUEUES {
        assert!(tcp.iter().any(|flow| lane(flow) == n), "lane {n} has no flow");
    }
    assert_eq!(counter(w, "tcp_flows"), FLOWS as u64);

    // One port of the guest's is one mapping, whomever it sends to, and whichever queue that comes by.
    let sockets: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = udp(&guest.ns, any(at(INET4, 4000)));
            socket.connect(at(INET4, 4000)).unwrap();
            socket
        })
        .collect();
    sockets.iter().enumerate().for_each(|(n, socket)| asks(socket, format!("datagram {n}").as_bytes()));
    assert_eq!(counter(w, "udp_mappings"), FLOWS as u64);
    assert!(flows(w).iter().filter(|flow| flow["protocol"] != "tcp").all(|flow| lane(flow) == 0));
    guest.cmd(&["ping", "-n", "-c3", "-i0.01", &INET4.to_string()]).ok();
    if network == "private" {
        guest.cmd(&["ping", "-n", "-c3", "-i0.01", &guest.gateway6().to_string()]).ok();
    }

    // What comes in by published ports.
    tell_tcp(&guest.ns, at(Ipv4Addr::UNSPECIFIED, 80));
    echo_udp(&guest.ns, at(Ipv4Addr::UNSPECIFIED, 80));
    for _ in 0..FLOWS {
        let mut stream = connect(&w.internet, at(HOST4, 8080)).expect("the published port answers");
        let mut text = String::new();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains(&INET4.to_string()), "the client's true address: {text:?}");
    }
    let outside = udp(&w.internet, any(at(HOST4, 8080)));
    outside.connect(at(HOST4, 8080)).unwrap();
    asks(&outside, b"from outside");

    // For longer than the kernel remembers who answered (TUN_FLOW_EXPIRE: 3 s): then it goes by the hash alone.
    thread::sleep(Duration::from_secs(7));
    streams.iter_mut().enumerate().for_each(|(n, stream)| says(stream, n as u8));
    for socket in &sockets {
        asks(socket, b"again");
    }
    asks(&outside, b"again");
    assert_eq!((dropped(w, "hand_over"), dropped(w, "no_flow")), (0, 0));

    // One of each lane is ended from outside, and no other.
    let victims: Vec<Value> = (0..QUEUES)
        .map(|n| flows(w).into_iter().find(|flow| flow["protocol"] == "tcp" && lane(flow) == n).unwrap())
        .collect();
    for victim in &victims {
        done(w, "kill_flow", json!({ "id": victim["id"] }));
    }
    wait_for("the flows' end", PATIENCE, || counter(w, "tcp_flows") == (FLOWS - QUEUES) as u64);
    let alive = streams.iter_mut().filter_map(|stream| {
        stream.write_all(b"?").ok()?;
        stream.read_exact(&mut [0]).ok()
    });
    assert_eq!(alive.count(), FLOWS - QUEUES);
    drop(streams);
    wait_for("all flows to end", PATIENCE, || counter(w, "tcp_flows") == 0);
    assert_eq!(counter(w, "tcp_opened"), (2 * FLOWS) as u64);

    // Another process takes all queues over.
    if network == "private" {
        kill(w, &guest);
    } else {
        w.host.sh(&format!("kill -KILL {}", w.network_process(&guest).expect("a network process")));
        wait_for("the network", PATIENCE, || {
            guest.cmd(&["ping", "-n", "-c1", "-W1", &INET4.to_string()]).end().code == 0
        });
    }
    let mut again = open(&guest.ns);
    again.iter_mut().enumerate().for_each(|(n, stream)| says(stream, n as u8));
    asks(&sockets[0], b"after death");
}

#[test]
fn a_network_of_its_own_has_every_kind_of_traffic_over_several_queues() {
    World::run(|w| everything(w, "private"));
}

#[test]
fn a_shared_network_has_every_kind_of_traffic_over_several_queues() {
    World::run(|w| everything(w, "bridge"));
}

#[test]
fn members_reach_each_other_by_whichever_queue() {
    World::run(|w| {
        let server = w.guest_on("bridge", &[queues().as_str(), "--name", "server"]);
        let client = w.guest_on("bridge", &["--queues=2", "--name", "client"]);
        let single = w.guest_on("bridge", &["--queues=1", "--name", "single"]);
        let text = server.cmd(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).ok();
        let addr = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
        let addr: Ipv4Addr = addr.split('/').next().unwrap().parse().unwrap();
        echo_tcp(&server.ns, at(Ipv4Addr::UNSPECIFIED, 4000));
        echo_udp(&server.ns, at(Ipv4Addr::UNSPECIFIED, 4000));
        for guest in [&client, &single] {
            let mut streams: Vec<TcpStream> =
                (0..20).map(|_| connect(&guest.ns, at(addr, 4000)).expect("a member answers")).collect();
            for (n, stream) in streams.iter_mut().enumerate() {
                says(stream, n as u8);
            }
            let socket = udp(&guest.ns, any(at(addr, 4000)));
            socket.connect(at(addr, 4000)).unwrap();
            asks(&socket, b"to a member");
            // Frames between members are the switch's: no flow of any lane.
            let listed = w.tapway(&["flows", "--json", "client"]).ok();
            assert!(!listed.contains("tcp-"), "{listed}");
        }
    });
}

#[test]
fn checksummed_streams_over_all_lanes_are_whole_both_ways() {
    const BYTES: usize = 8 << 20;
    World::run(|w| {
        crate::tools::serve(crate::tools::listen(&w.internet, at(INET4, 4001)), |stream: TcpStream, _| {
            let seed = expect_pattern(&stream, 1);
            assert_eq!(seed, BYTES);
            send_pattern(&stream, 2, BYTES).unwrap();
        });
        let guest = w.guest_on("private", &[queues().as_str()]);
        let streams: Vec<TcpStream> = (0..12).map(|_| connect(&guest.ns, at(INET4, 4001)).unwrap()).collect();
        let work = streams.into_iter().map(|stream| {
            thread::spawn(move || {
                send_pattern(&stream, 1, BYTES).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                expect_pattern(&stream, 2)
            })
        });
        let work: Vec<_> = work.collect();
        assert!(work.into_iter().all(|one| one.join().unwrap() == BYTES));
    });
}

#[test]
fn captures_and_faults_are_of_all_lanes() {
    World::run(|w| {
        echo_tcp(&w.internet, at(INET4, 4000));
        let file = w.path("all.pcapng");
        let guest = w.guest_on("private", &[queues().as_str(), "--name", "site", "--pcap", file.to_str().unwrap()]);
        let mut streams = open(&guest.ns);
        // A delay is every lane's, from now on and not for longer.
        let slowest = |streams: &mut Vec<TcpStream>| {
            let times = streams.iter_mut().map(|stream| {
                let start = Instant::now();
                says(stream, 1);
                start.elapsed()
            });
            let times: Vec<Duration> = times.collect();
            (*times.iter().min().unwrap(), *times.iter().max().unwrap())
        };
        w.tapway(&["fault", "set", "--latency", "40ms", "--direction", "to-guest", "site"]).ok();
        assert!(slowest(&mut streams).0 >= Duration::from_millis(40), "a lane is not delayed");
        let shown = w.tapway(&["fault", "ls", "site"]).ok();
        let packets = done(w, "list_faults", json!({}))["faults"][0]["to_guest"]["packets"].as_u64().unwrap();
        assert!(packets >= FLOWS as u64, "what all lanes held is counted: {packets}, {shown}");
        w.tapway(&["fault", "clear", "site"]).ok();
        let least = (0..20).map(|_| slowest(&mut streams).0).min().unwrap();
        assert!(least < Duration::from_millis(40), "the delay stays: {least:?}");
        // A line of some rate is one line: four flows at once are as slow as one.
        w.tapway(&["fault", "set", "--rate", "8mbit", "--direction", "from-guest", "site"]).ok();
        let start = Instant::now();
        let work = streams.drain(..4).map(|mut stream| {
            thread::spawn(move || {
                let block = vec![9; 250_000];
                stream.write_all(&block).unwrap();
                stream.read_exact(&mut vec![0; 250_000]).unwrap();
            })
        });
        work.collect::<Vec<_>>().into_iter().for_each(|one| one.join().unwrap());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(900), "a megabyte at 8 Mbit/s took {took:?}");
        w.tapway(&["fault", "clear", "site"]).ok();
        drop(streams);
        drop(guest);
        // The file has the handshake of every flow, whichever queue it came by.
        let syns = reads(w, &file, "tcp.flags.syn == 1 && tcp.flags.ack == 0");
        let answers = reads(w, &file, "tcp.flags.syn == 1 && tcp.flags.ack == 1");
        assert_eq!((syns, answers), (FLOWS, FLOWS));
    });
}

/// How many frames of a file, which must be whole, pass a filter.
fn reads(w: &World, file: &Path, filter: &str) -> usize {
    let read = w.host.cmd(&["tshark", "-n", "-r", file.to_str().unwrap(), "-Y", filter]).limit(60).end();
    assert!(read.code == 0 && !read.stderr.contains("cut short"), "{}", read.stderr);
    read.stdout.lines().count()
}

#[test]
fn a_number_that_cannot_be_is_refused_with_what_can() {
    World::run(|w| {
        for number in ["0", "9", "many", "-1"] {
            let option = format!("--queues={number}");
            let ended = w.tapway_run_on("private", &[option.as_str()], &["true"]).end();
            assert_eq!(ended.code, 2, "{number}: {}", ended.stderr);
            assert!(
                ended.stderr.contains(&format!("'{number}'")) && ended.stderr.contains("1 to 8"),
                "{}",
                ended.stderr
            );
        }
    });
}

/// Frames that nobody wants, from a source that is not the guest's, over all queues, as fast as can be; how long that took.
fn junk(guest: &Guest, frames: u16) -> Duration {
    guest.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
        let begun = Instant::now();
        for n in 0..frames {
            // IPv4 (the kernel fills in length, identification and sum) and UDP to a port each, which the hash goes by.
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 9];
            packet.extend(INET4.octets());
            packet.extend([0x10, 0, (n >> 8) as u8, n as u8, 0, 8, 0, 0]);
            // A full queue is the guest's own.
            let _ = socket.send_to(&packet, &at(INET4, 0).into());
        }
        begun.elapsed()
    })
}

#[test]
fn junk_is_bounded_whichever_queue_it_comes_by() {
    World::run(|w| {
        let guest = w.guest_on("private", &[queues().as_str()]);
        let took = junk(&guest, 60_000).max(Duration::from_millis(1));
        thread::sleep(Duration::from_millis(100));
        // Of each queue's the rate and its burst are looked at (`Limits::junk`), and what was read before the TAP was left alone.
        let looked_at = dropped(w, "spoofed_source");
        let most = 8_000 + (25_000.0 * (took.as_secs_f64() + 0.1)) as u64;
        println!("{looked_at} of 60000 looked at, {} left, in {took:?}", dropped(w, "hand_over"));
        assert!(
            looked_at > 0 && looked_at <= most,
            "{looked_at} frames of junk in {took:?} were looked at, not {most}"
        );
        // And it goes on for whoever behaves.
        guest.cmd(&["ping", "-n", "-c1", "-W5", &INET4.to_string()]).ok();
    });
}
