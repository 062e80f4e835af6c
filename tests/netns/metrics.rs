//! `--metrics-listen`: what Prometheus meets, with curl, and Prometheus's own reader of the text.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tools::{ask_tcp, at, connect, echo_tcp, tell_tcp};
use crate::world::{GATEWAY4, Guest, HOST4, INET4, World, wait_for};

/// Samples by name and labels, as Prometheus's reader has them.
type Samples = BTreeMap<String, f64>;

fn info(w: &World) -> Value {
    serde_json::from_str(&w.tapway(&["info", "site", "--json"]).ok()).unwrap()
}

/// Where the only sandbox says that it serves metrics.
fn listens(w: &World) -> SocketAddr {
    let info = info(w);
    info["metrics_listen"].as_str().unwrap_or_else(|| panic!("{info}")).parse().unwrap()
}

fn curl(w: &World, at: SocketAddr) -> String {
    w.host.cmd(&["curl", "-sS", "--fail", "--max-time", "20", &format!("http://{at}/metrics")]).ok()
}

fn read(w: &World, text: &str) -> Samples {
    const SCRIPT: &str = "import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read
print(json.dumps({sample.name + str(sorted(sample.labels.items())): sample.value
                  for family in read(open(sys.argv[1]).read()) for sample in family.samples}))";
    let file = w.path("metrics");
    std::fs::write(&file, text).unwrap();
    // Not the first of that name: packages are the distribution's Python's.
    let json = w.host.cmd(&["/usr/bin/python3", "-c", SCRIPT, file.to_str().unwrap()]).ok();
    serde_json::from_str(&json).unwrap()
}

const OPENED: &str = "tapway_flows_opened_total[('protocol', 'tcp')]";
const CREATED: &str = "tapway_flows_opened_created[('protocol', 'tcp')]";
const SENT: &str = "tapway_payload_bytes_total[('direction', 'from_guest'), ('protocol', 'tcp')]";
const PORT: &str = "tapway_port_connections_total[('host', '0.0.0.0:8080'), ('proto', 'tcp')]";

fn site(w: &World, options: &[&str]) -> Guest {
    w.guest(&[&["--name", "site"], options].concat())
}

#[test]
fn scrapes_while_traffic_runs() {
    World::run(|w| {
        let guest = site(w, &["-p", "8080:7300", "--metrics-listen", ":0"]);
        let address = listens(w);
        assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
        tell_tcp(&guest.ns, at([0; 4], 7300));
        echo_tcp(&w.internet, at([0; 4], 7301));
        let mut stream = connect(&guest.ns, at(INET4, 7301)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        // Back and forth, for as long as somebody looks on.
        let traffic = thread::spawn(move || {
            let mut sent = 0;
            while writer.write_all(&[7; 10_000]).is_ok() {
                sent += 10_000;
                thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        let reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || std::io::copy(&mut &reader, &mut std::io::sink()));
        let mut last = read(w, &curl(w, address));
        for client in 1..=10 {
            assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
            let now = read(w, &curl(w, address));
            assert_eq!((now[PORT] as u64, now[OPENED] as u64), (client, client + 1));
            assert!(now[SENT] > last[SENT], "{} is not more than {}", now[SENT], last[SENT]);
            for (name, value) in last {
                assert!(name.contains("_flows[") || now[&name] >= value, "{name}: {} after {value}", now[&name]);
            }
            last = now;
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        let _ = stream.read(&mut [0]);
        let (sent, _) = (traffic.join().unwrap(), reading.join().unwrap());
        assert!(last[SENT] > 0.0 && last[SENT] as u64 <= sent + 1000, "{} of {sent}", last[SENT]);
        // The same as by the control socket, but for what moves.
        let by_socket = read(w, &w.tapway(&["stats", "site", "--metrics"]).ok());
        assert_eq!(by_socket.keys().collect::<Vec<_>>(), last.keys().collect::<Vec<_>>());
        // As Prometheus asks, and as a person looks.
        let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let url = format!("http://{address}/metrics");
        let head = w.host.cmd(&["curl", "-sSI", "--fail", "--compressed", "-H", accept, &url]).ok();
        assert!(
            head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{head}"
        );
        let page = w.host.cmd(&["curl", "-sS", "--fail", &format!("http://{address}/")]).ok();
        assert!(page.contains("<a href=\"/metrics\">"), "{page}");
        let code = w.host.cmd(&["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", &format!("{url}/x")]).ok();
        assert_eq!(code, "404");
    });
}

#[test]
fn the_next_scrape_after_a_death_is_answered() {
    World::run(|w| {
        let guest = site(w, &["-p", "8080:7300", "--metrics-listen", "[::1]:9100"]);
        let address = listens(w);
        assert_eq!(address, "[::1]:9100".parse().unwrap());
        tell_tcp(&guest.ns, at([0; 4], 7300));
        for _ in 0..3 {
            ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080));
        }
        let before = read(w, &curl(w, address));
        assert_eq!(before[PORT] as u64, 3);
        // A monitor that stands still replaces nobody: scrapes wait in the backlog.
        let (monitor, old) = (guest.monitor.pid(), w.network_process(&guest).expect("a network process"));
        w.host.sh(&format!("kill -STOP {monitor}; kill -KILL {old}"));
        let url = format!("http://{address}/metrics");
        let scrape = w.host.cmd(&["curl", "-sS", "--fail", "--max-time", "20", &url]).spawn();
        thread::sleep(Duration::from_millis(500));
        assert!(scrape.alive(), "{}", scrape.stderr());
        w.host.sh(&format!("kill -CONT {monitor}"));
        let ended = scrape.end(Duration::from_secs(20));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        // They are another process's, and say so.
        let after = read(w, &ended.stdout);
        assert_eq!((after[PORT] as u64, after[OPENED] as u64), (0, 0));
        assert!(after[CREATED] > before[CREATED], "{} is not after {}", after[CREATED], before[CREATED]);
        ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080));
        assert_eq!(read(w, &curl(w, address))[PORT] as u64, 1);
        assert_eq!(listens(w), address);
        // Nothing is left of it.
        drop(guest);
        wait_for("the port to be free", Duration::from_secs(5), || w.host.run(|| TcpListener::bind(address)).is_ok());
    });
}

#[test]
fn who_reaches_it() {
    World::run(|w| {
        {
            let guest = site(w, &["--metrics-listen", "9100"]);
            assert_eq!(listens(w), "127.0.0.1:9100".parse().unwrap());
            assert!(connect(&w.internet, at(HOST4, 9100)).is_err());
            assert!(connect(&guest.ns, at(GATEWAY4, 9100)).is_err());
        }
        let guest = site(w, &["--metrics-listen", "0.0.0.0:9100"]);
        for (who, to) in [(&w.internet, HOST4), (&guest.ns, GATEWAY4)] {
            let mut stream = connect(who, at(to, 9100)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("# EOF\n"), "{reply}");
        }
        drop(guest);
        let plain = site(w, &[]);
        assert_eq!(info(w)["metrics_listen"], Value::Null);
        drop(plain);
    });
}

/// Clients that do everything wrong, and one that asks as fast as it can; pings and an ordinary scrape do not mind.
#[test]
fn clients_that_misbehave_are_nobodys_problem() {
    World::run(|w| {
        let guest = site(w, &["--metrics-listen", ":9100"]);
        let address = listens(w);
        let ping = guest.cmd(&["ping", "-i", "0.01", "-c", "300", "-W", "2", "198.51.100.2"]).limit(30).spawn();
        let open = move || TcpStream::connect(address).unwrap();
        let silent: Vec<TcpStream> = (0..200).map(|_| open()).collect();
        let mut others = Vec::new();
        for input in [&b"GET /met"[..], b"\x16\x03\x01\x02\x00", b"POST /metrics HTTP/1.1\r\n\r\n"] {
            let mut stream = open();
            stream.write_all(input).unwrap();
            others.push(stream);
        }
        let flood = thread::spawn(move || {
            let mut large = open();
            let (mut sent, part) = (0, vec![b'a'; 65_536]);
            while sent < 64 << 20 && large.write_all(&part).is_ok() {
                sent += 65_536;
            }
            sent
        });
        let (begun, mut scraped) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(3) {
            let mut stream = open();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert!(reply.ends_with("# EOF\n"), "{reply}");
            scraped += 1;
        }
        assert!(scraped > 10, "{scraped} scrapes");
        assert!(flood.join().unwrap() < 64 << 20, "nobody reads all that");
        let ended = ping.end(Duration::from_secs(30));
        assert!(ended.stdout.contains(" 0% packet loss"), "{}{}", ended.stdout, ended.stderr);
        drop((silent, others));
        assert_eq!(info(w)["network_restarts"], 0);
    });
}
