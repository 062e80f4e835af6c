//! Sandboxes on shared networks, as people use them: `tapway network create`, `tapway run --network`, real programs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::programs::{nginx, redis_server};
use crate::tools::{ask_tcp, ask_udp, at, connect, listen, serve, tell_tcp, tell_udp};
use crate::world::{Guest, HOST4, INET4, World, need, pids, wait_for};

pub fn create(w: &World, args: &[&str]) {
    w.tapway(&[&["network", "create"], args].concat()).ok();
}

pub fn member(w: &World, network: &str, name: &str, options: &[&str]) -> Guest {
    w.guest_on(network, &[&["--name", name], options].concat())
}

fn address(guest: &Guest) -> Ipv4Addr {
    address_of(guest, "eth0")
}

pub fn address_of(guest: &Guest, device: &str) -> Ipv4Addr {
    let text = guest.sh(&format!("ip -4 -o addr show dev {device}"));
    text.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap()
}

#[track_caller]
pub fn dig(guest: &Guest, question: &str) -> Vec<String> {
    let text = guest.sh(&format!("dig +short +tries=2 +time=3 {question}"));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

pub fn pings(guest: &Guest, to: &str) -> bool {
    guest.cmd(&["ping", "-c1", "-W2", to]).end().code == 0
}

/// Processes of shared networks.
pub fn processes() -> Vec<i32> {
    let is_one = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).nth(1) == Some(b"__network")
    };
    pids().into_iter().filter(is_one).collect()
}

/// What `tapway` prints as JSON.
pub fn json(w: &World, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&w.tapway(args).ok()).unwrap()
}

#[test]
fn names_lead_to_members_and_to_nobody_else() {
    World::run(|w| {
        create(w, &["web"]);
        create(w, &["other"]);
        let site = member(w, "web", "site", &["--network-alias", "www", "-h", "box"]);
        let app = member(w, "web", "app", &["--network-alias", "www", "--link", "site:db"]);
        let stranger = member(w, "other", "stranger", &[]);
        assert_eq!(address(&site), Ipv4Addr::new(172, 18, 0, 2));
        assert_eq!(address(&app), Ipv4Addr::new(172, 18, 0, 3));
        assert_eq!(address(&stranger), Ipv4Addr::new(172, 19, 0, 2));
        assert_eq!(processes().len(), 2, "one process for each network");
        let _httpd = site.cmd(&["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"]).spawn();
        site.ns.await_listener(80);
        let id = site.sh("hostname");
        assert_eq!(id.trim(), "box");
        for name in ["site", "SITE", "site.web", "box", "db"] {
            let got = app.sh(&format!("busybox wget -q -O - http://{name}/hosts"));
            assert!(got.contains("172.18.0.2\tbox"), "{name}: {got}");
        }
        assert_eq!(dig(&app, "www"), ["172.18.0.2", "172.18.0.3"]);
        assert_eq!(dig(&app, "-x 172.18.0.2"), ["site.web."]);
        assert!(app.sh("dig site AAAA").contains("status: NOERROR"), "known, without that family");
        assert_eq!(dig(&site, "db"), Vec::<String>::new(), "a link is one way");
        // Other networks have other names, and no way here.
        assert!(!stranger.sh("dig +tries=1 +time=2 site || true").contains("172.18."));
        for to in ["172.18.0.2", "172.18.0.1"] {
            let refused = stranger.cmd(&["curl", "-sS", "-m", "3", &format!("http://{to}/hosts")]).end();
            assert_ne!(refused.code, 0, "{to}: {}", refused.stdout);
        }
        assert!(!pings(&stranger, "172.18.0.2"));
        let verbose = w.tapway(&["network", "inspect", "-v", "web"]).ok();
        let verbose: serde_json::Value = serde_json::from_str(&verbose).unwrap();
        let switch = &verbose[0]["Switch"];
        assert_eq!(switch["Members"][0]["mac"], "02:42:ac:12:00:02", "{switch}");
        assert!(switch["Members"][1]["frames_from_guest"].as_u64() > Some(0), "{switch}");
        // resolv.conf is Docker's.
        let resolv = app.sh("cat /etc/resolv.conf");
        assert!(resolv.contains("nameserver 127.0.0.11\n") && resolv.contains("options ndots:0"), "{resolv}");
        // In another's network namespace it is the same network.
        let beside = w.tapway(&[
            "run",
            "--network",
            "container:site",
            "--",
            "busybox",
            "wget",
            "-q",
            "-O",
            "-",
            "http://127.0.0.1/hosts",
        ]);
        assert!(beside.ok().contains("box"));
    });
}

#[test]
fn the_default_network_has_addresses_and_no_names() {
    World::run(|w| {
        let one = member(w, "bridge", "one", &[]);
        let two = member(w, "bridge", "two", &[]);
        assert_eq!((address(&one), address(&two)), ([172, 17, 0, 2].into(), [172, 17, 0, 3].into()));
        assert!(pings(&two, "172.17.0.2"));
        assert!(!two.sh("dig +tries=1 +time=2 one || true").contains("172.17.0.2"));
        // A link is a line of the hosts file there.
        let three = member(w, "bridge", "three", &["--link", "one:db"]);
        assert!(three.sh("cat /etc/hosts").contains("172.17.0.2\tdb"));
        assert!(pings(&three, "db"));
        for (options, text) in [
            (&["--ip", "172.17.0.9"][..], "user-specified IP address is supported on user-defined networks only"),
            (&["--network-alias", "x"], "network-scoped aliases are only supported for user-defined networks"),
            (&["--link", "nobody"], "could not get container for nobody: No such container: nobody"),
        ] {
            let ended = w.tapway_run_on("bridge", options, &["true"]).end();
            assert!(ended.code != 0 && ended.stderr.contains(text), "{options:?}: {}", ended.stderr);
        }
        let ended = w.tapway_run_on::<&str>("nowhere", &[], &["true"]).end();
        assert!(ended.code == 1 && ended.stderr.contains("network nowhere not found"), "{}", ended.stderr);
    });
}

#[test]
fn addresses_move_and_names_follow() {
    World::run(|w| {
        create(w, &["--subnet", "10.99.0.0/29", "small"]);
        let app = member(w, "small", "app", &["--ip", "10.99.0.6"]);
        let db = member(w, "small", "db", &[]);
        assert_eq!(address(&db), Ipv4Addr::new(10, 99, 0, 2));
        assert_eq!(dig(&app, "db"), ["10.99.0.2"]);
        drop(db);
        wait_for("the name to go", Duration::from_secs(2), || dig(&app, "db").is_empty());
        let _first = member(w, "small", "first", &[]);
        let db = member(w, "small", "db", &[]);
        assert_eq!(address(&db), Ipv4Addr::new(10, 99, 0, 3));
        assert_eq!(dig(&app, "db"), ["10.99.0.3"]);
        assert!(pings(&app, "db"), "no stale neighbour");
        let taken = w.tapway_run_on("small", &["--ip", "10.99.0.6"], &["true"]).end();
        assert!(taken.stderr.contains("Address already in use"), "{}", taken.stderr);
        let outside = w.tapway_run_on("small", &["--ip", "10.98.0.6"], &["true"]).end();
        assert!(outside.stderr.contains("no configured subnet contains IP address 10.98.0.6"), "{}", outside.stderr);
        let _more = [member(w, "small", "m1", &[]), member(w, "small", "m2", &[])];
        let full = w.tapway_run_on::<&str>("small", &[], &["true"]).end();
        assert!(
            full.stderr.contains("no available IPv4 addresses on this network's address pools: small"),
            "{}",
            full.stderr
        );
        let used = w.tapway(&["network", "rm", "small"]).end();
        assert!(used.stderr.contains("network small has active endpoints (name:\""), "{}", used.stderr);
    });
}

const COUNTER: &str = r#"
import http.server, os, socket
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        s = socket.create_connection((os.environ["REDIS_HOST"], 6379))
        s.sendall(b"INCR hits\r\n")
        body = s.makefile("rb").readline()[1:].strip() + b" " + self.client_address[0].encode() + b"\n"
        s.close()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer):
    request_queue_size = 128
S(("0.0.0.0", 5000), H).serve_forever()
"#;

#[test]
fn a_counter_with_redis() {
    World::run(|w| {
        need("wrk");
        create(w, &["shop"]);
        let redis = member(w, "shop", "redis", &[]);
        let _server = redis_server(w, |argv| redis.cmd(argv), &redis.ns);
        let app = member(w, "shop", "app", &["-p", "8000:5000"]);
        std::fs::write(w.path("counter.py"), COUNTER).unwrap();
        let _app = app.cmd(&["python3", "/mnt/counter.py"]).env("REDIS_HOST", "redis").spawn();
        app.ns.await_listener(5000);
        let hit = || {
            let text = w.internet.cmd(&["curl", "-sS", "--fail", &format!("http://{HOST4}:8000/")]).ok();
            let (count, client) = text.trim().split_once(' ').unwrap();
            (count.parse::<u64>().unwrap(), client.to_owned())
        };
        assert_eq!(hit(), (1, INET4.to_string()), "the server sees the client's true address");
        let wrk = format!("wrk -t2 -c16 -d2s http://{HOST4}:8000/");
        let out = w.internet.cmd(&["sh", "-c", &wrk]).limit(30).ok();
        assert!(!out.contains("Socket errors") && !out.contains("Non-2xx"), "{out}");
        let (count, _) = hit();
        let said: u64 = out.lines().find_map(|l| l.trim().split_once(" requests in")).unwrap().0.parse().unwrap();
        assert!(count > said && count < said + 64, "{count} after {said}");
    });
}

#[test]
fn published_ports_of_every_form() {
    World::run(|w| {
        create(w, &["web"]);
        let options =
            ["-p", "8080:80", "-p", "203.0.113.2:8081:80", "-p", "127.0.0.1::80", "-p", "7300", "-P", "--expose", "80"];
        let guest = member(w, "web", "site", &[&options[..], &["-p", "9000-9001:7300-7301/udp"]].concat());
        let _nginx = nginx(w, "inside", |argv| guest.cmd(argv), &guest.ns);
        for port in [8080, 8081] {
            let got = w.internet.cmd(&["curl", "-sS", "--fail", &format!("http://{HOST4}:{port}/small")]).ok();
            assert_eq!(got, "a small file\n", "{port}");
        }
        let listed = w.tapway(&["port", "site"]).ok();
        assert!(listed.contains("80/tcp -> 0.0.0.0:8080\n") && listed.contains("80/tcp -> [::]:8080\n"), "{listed}");
        let chosen = |prefix: &str| -> u16 {
            let line =
                listed.lines().find(|line| line.starts_with(prefix)).unwrap_or_else(|| panic!("{prefix} in {listed}"));
            line.rsplit(':').next().unwrap().parse().unwrap()
        };
        let loopback = chosen("80/tcp -> 127.0.0.1:");
        w.host.cmd(&["curl", "-sS", "--fail", &format!("http://127.0.0.1:{loopback}/small")]).ok();
        tell_tcp(&guest.ns, at([0; 4], 7300));
        tell_udp(&guest.ns, at([0; 4], 7300));
        let port = chosen("7300/tcp -> 0.0.0.0:");
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, port)).1.ip(), INET4);
        assert_eq!(ask_udp(&w.internet, at([0; 4], 0), at(HOST4, 9000)).1.ip(), INET4);
        let taken = w.tapway_run_on("web", &["-p", "8080:81"], &["true"]).end();
        let text = "Bind for 0.0.0.0:8080 failed: port is already allocated; sandbox site has it";
        assert!(taken.code == 1 && taken.stderr.contains(text), "{}", taken.stderr);
        // A member of another network comes by the host's address, and is seen as the host.
        create(w, &["other"]);
        let other = member(w, "other", "other", &[]);
        assert_eq!(other.sh(&format!("curl -sS --fail http://{HOST4}:8080/small")), "a small file\n");
        drop(guest);
        wait_for("the ports to be free", Duration::from_secs(5), || connect(&w.internet, at(HOST4, 8080)).is_err());
        w.host.run(|| std::net::TcpListener::bind("0.0.0.0:8080")).expect("the port is free");
    });
}

#[test]
fn internal_networks_and_those_without_talk() {
    World::run(|w| {
        create(w, &["--internal", "closed"]);
        let one = member(w, "closed", "one", &["-p", "8080:80"]);
        let two = member(w, "closed", "two", &[]);
        assert!(pings(&one, "two") && pings(&two, "one"));
        assert!(!one.sh("ip route").contains("default"));
        assert!(!pings(&one, &INET4.to_string()));
        one.sh("ip route add default via 172.18.0.1");
        for to in [INET4, HOST4] {
            assert_ne!(one.cmd(&["curl", "-sS", "-m", "3", &format!("http://{to}/")]).end().code, 0, "{to}");
            assert!(!pings(&one, &to.to_string()), "{to}");
        }
        assert!(connect(&w.internet, at(HOST4, 8080)).is_err(), "an internal network publishes nothing");
        create(w, &["-o", "com.docker.network.bridge.enable_icc=false", "apart"]);
        let a = member(w, "apart", "a", &["-p", "8081:7300"]);
        let b = member(w, "apart", "b", &[]);
        tell_tcp(&a.ns, at([0; 4], 7300));
        assert!(!pings(&b, &address(&a).to_string()));
        assert!(connect(&b.ns, SocketAddr::new(address(&a).into(), 7300)).is_err());
        assert!(pings(&b, &INET4.to_string()), "but out they may");
        let seen = ask_tcp(&b.ns, at([0; 4], 0), at(HOST4, 8081)).1.ip();
        assert_ne!(seen, std::net::IpAddr::V4(address(&b)), "by way of the host");
        let c = member(w, "apart", "c", &["--link", "a"]);
        assert!(pings(&c, "a"), "a link is an exception");
    });
}

#[test]
fn fifty_members_and_half_of_them_killed() {
    World::run(|w| {
        create(w, &["many"]);
        let names: Vec<String> = (0..50).map(|n| format!("m{n}")).collect();
        let mut guests: Vec<Guest> = names.iter().map(|name| member(w, "many", name, &[])).collect();
        let all = names.join(" ");
        let line = format!("for n in {all}; do ping -c1 -W10 $n >/dev/null || echo $n does not answer; done");
        // Five at a time, and then the neighbours are forgotten: the kernel has one table of them for all namespaces of the
        // machine (net.ipv4.neigh.default.gc_thresh3: 1024), and 2450 would leave no room for anybody else's.
        let each = |some: &[Guest], line: &str| {
            std::thread::scope(|scope| {
                let ask = |guest: &'_ Guest| guest.cmd(&["sh", "-c", line]).limit(100).ok();
                let asked: Vec<_> = some.iter().map(|guest| scope.spawn(move || ask(guest))).collect();
                for asked in asked {
                    assert_eq!(asked.join().unwrap(), "");
                }
            });
        };
        for some in guests.chunks(5) {
            each(some, &line);
            each(&guests, "ip neigh flush dev eth0");
        }
        // The last ones, whose addresses are the highest, stay.
        for guest in guests.drain(..25) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(guest.monitor.pid()), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        let last = &guests[24];
        wait_for("the names of the dead to go", Duration::from_secs(5), || {
            last.sh("dig +short +tries=1 +time=2 m0 || true").trim().is_empty()
        });
        let listed = w.tapway(&["network", "inspect", "many", "--format", "{{len .Containers}}"]).end();
        let json = w.tapway(&["network", "inspect", "many"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json[0]["Containers"].as_object().unwrap().len(), 25, "{}", listed.stderr);
        let next = member(w, "many", "m0", &[]);
        assert_eq!(address(&next), Ipv4Addr::new(172, 18, 0, 2), "what the dead held is free");
        assert!(pings(last, "m0"));
        assert_eq!(processes().len(), 1);
    });
}

/// Serves a body that ends only with the connection, slowly.
fn slow_server(w: &World) {
    serve(listen(&w.internet, at(INET4, 4000)), |mut stream, _| {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
        for _ in 0..10_000 {
            if stream.write_all(&[b'x'; 1000]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn the_death_of_a_network_process_is_survived() {
    World::run(|w| {
        create(w, &["web"]);
        slow_server(w);
        let one = member(w, "web", "one", &["-p", "8080:7300"]);
        let two = member(w, "web", "two", &[]);
        tell_tcp(&one.ns, at([0; 4], 7300));
        // A flow between members: nobody terminates it.
        serve(listen(&one.ns, at([0; 4], 7400)), |mut stream, _| {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let mut between = connect(&two.ns, SocketAddr::new(address(&one).into(), 7400)).unwrap();
        between.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let download = two.cmd(&["curl", "-sS", "-o", "/dev/null", &format!("http://{INET4}:4000/")]).limit(60).spawn();
        let ping = two.cmd(&["ping", "-i", "0.1", "-c", "60", "-W", "1", &INET4.to_string()]).limit(60).spawn();
        // One that waits for data that does not come.
        serve(listen(&w.internet, at(INET4, 4001)), |stream, _| {
            std::thread::sleep(Duration::from_mins(1));
            drop(stream);
        });
        let mut idle = connect(&two.ns, at(INET4, 4001)).unwrap();
        idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let old = processes();
        assert_eq!(old.len(), 1);
        let (before_one, before_two) = (address(&one), address(&two));
        let killed = Instant::now();
        w.host.sh(&format!("kill -KILL {}", old[0]));
        let error = idle.read(&mut [0]).expect_err("it never looks whole");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
        assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
        between.write_all(b"a").unwrap();
        let mut byte = [0];
        between.read_exact(&mut byte).expect("the flow between members goes on");
        wait_for("the ping", Duration::from_secs(2), || pings(&two, "one"));
        assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4, "the listener is the same");
        assert_eq!((address(&one), address(&two)), (before_one, before_two));
        assert_eq!(dig(&two, "one"), [before_one.to_string()]);
        let ended = download.end(Duration::from_secs(20));
        assert_ne!(ended.code, 0, "a cut body never looks whole");
        let ended = ping.end(Duration::from_secs(30));
        let lost: u32 =
            ended.stdout.split("% packet loss").next().unwrap().rsplit([' ', ',']).next().unwrap().parse().unwrap();
        assert!(lost <= 17, "pings go on within a second of the six:\n{}", ended.stdout);
        // A stopped monitor keeps its address, also from a process that has not heard of it.
        let stopped = one.monitor.pid();
        w.host.sh(&format!("kill -STOP {stopped}; kill -KILL {}", processes()[0]));
        let three = member(w, "web", "three", &[]);
        assert_eq!(address(&three), Ipv4Addr::new(172, 18, 0, 4));
        w.host.sh(&format!("kill -CONT {stopped}"));
        wait_for("the one that was stopped", Duration::from_secs(5), || pings(&three, "one"));
    });
}

/// What was set at a member's socket holds for the successor, too, and so do its records.
#[test]
fn what_was_asked_stays_asked() {
    World::run(|w| {
        create(w, &["web"]);
        let one = member(w, "web", "one", &[]);
        let ctl = |request: &str| w.tapway(&["ctl", "one", request]).ok();
        ctl(r#"{"execute":"set_log_level","arguments":{"level":"debug"}}"#);
        ctl(r#"{"execute":"add_dns_record","arguments":{"name":"x.example","type":"A","value":"192.0.2.1"}}"#);
        w.host.sh(&format!("kill -KILL {}", processes()[0]));
        wait_for("the ping", Duration::from_secs(5), || pings(&one, "172.18.0.1"));
        assert_eq!(dig(&one, "x.example"), ["192.0.2.1"]);
        ctl(r#"{"execute":"add_dns_record","arguments":{"name":"y.example","type":"A","value":"192.0.2.2"}}"#);
        assert_eq!(dig(&one, "y.example"), ["192.0.2.2"]);
        wait_for("the successor's log", Duration::from_secs(5), || {
            w.host.sh("cat /mnt/run/tapway/networks/*/log").contains("the network's names changed")
        });
    });
}

#[test]
fn nobody_inside_reaches_tapways_own_sockets() {
    World::run(|w| {
        create(w, &["web"]);
        let guest = member(w, "web", "one", &[]);
        let seen = guest.sh("ls -A /mnt/run/tapway /mnt/home/state/tapway 2>/dev/null || true");
        assert!(!seen.contains("networks") && !seen.contains("sock"), "{seen}");
        // A process of a network leaves after its last member.
        drop(guest);
        wait_for("the process to leave", Duration::from_secs(10), || processes().is_empty());
        w.tapway(&["network", "rm", "web"]).ok();
    });
}
