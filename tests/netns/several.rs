//! Sandboxes on several networks, and networks that come and go while a sandbox runs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::named::{address_of, create, dig, member, pings, processes};
use crate::tools::{ask_tcp, ask_udp, at, connect, expect_pattern, listen, send_pattern, serve, tell_tcp, tell_udp};
use crate::world::{Guest, HOST4, INET4, World, wait_for};

fn on(guest: &Guest, device: &str) -> Ipv4Addr {
    address_of(guest, device)
}

/// Whether nobody is known by this name. The world's servers are asked then, of whom there are none.
fn is_unknown(guest: &Guest, name: &str) -> bool {
    !guest.sh(&format!("dig +short +tries=1 +time=1 {name} || true")).lines().any(|line| line.starts_with("172."))
}

fn default_device(guest: &Guest) -> String {
    guest.sh("ip -4 route show default").split_whitespace().nth(4).unwrap_or("none").to_owned()
}

/// Echoes, one byte after the other.
fn echo(guest: &Guest, port: u16) {
    serve(listen(&guest.ns, at([0; 4], port)), |mut stream, _| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
}

fn says(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"a").is_ok() && stream.read_exact(&mut byte).is_ok() && byte == *b"a"
}

/// A connection that was opened and is still asked now and then.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

#[test]
fn two_networks_and_no_way_between_them() {
    World::run(|w| {
        create(w, &["front"]);
        create(w, &["--internal", "back"]);
        let web = member(w, "front", "web", &[]);
        let db = member(w, "back", "db", &["--network-alias", "store"]);
        let app = member(w, "back", "app", &["--network", "name=front,alias=api,ip=172.18.0.77"]);
        assert_eq!((on(&app, "eth0"), on(&app, "eth1")), ([172, 19, 0, 3].into(), [172, 18, 0, 77].into()));
        // An internal network is nobody's gateway.
        assert_eq!(default_device(&app), "eth1");
        assert!(pings(&app, &INET4.to_string()));
        for name in ["web", "db", "store", "db.back", "web.front"] {
            assert!(pings(&app, name), "{name}");
        }
        assert_eq!(dig(&app, "-x 172.19.0.2"), ["db.back."]);
        assert_eq!(
            (dig(&web, "api"), dig(&db, "app")),
            (vec!["172.18.0.77".to_owned()], vec!["172.19.0.3".to_owned()])
        );
        assert!(is_unknown(&db, "api"), "an alias is its network's");
        // Whoever asks somebody on two networks to route gets nowhere, though that one would.
        app.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter");
        web.sh("ip route add 172.19.0.0/16 via 172.18.0.77");
        db.sh("ip route add 172.18.0.0/16 via 172.19.0.3");
        assert!(!pings(&web, "172.19.0.2") && !pings(&db, "172.18.0.2"));
        db.sh("ip route add default via 172.19.0.3");
        assert!(!pings(&db, &INET4.to_string()), "an internal network has no way out by a member either");
        let json = w.tapway(&["network", "inspect", "-v", "front"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let members = json[0]["Switch"]["Members"].as_array().unwrap();
        let spoofed = |m: &serde_json::Value| {
            m["drops"].as_object().map_or(0, |d| d.values().filter_map(serde_json::Value::as_u64).sum())
        };
        assert!(members.iter().map(spoofed).sum::<u64>() > 0, "{json}");
        // What it is on is told everywhere.
        let format = "{{range $n, $e := .NetworkSettings.Networks}}{{$n}}={{$e.IPAddress}} {{end}}";
        assert_eq!(w.tapway(&["inspect", "-f", format, "app"]).ok(), "back=172.19.0.3 front=172.18.0.77 \n");
        assert!(w.tapway(&["ps", "--no-trunc"]).ok().contains("back 172.19.0.3, front 172.18.0.77"));
        let hosts = app.sh("cat /etc/hosts");
        assert!(hosts.contains("172.18.0.77\t") && hosts.contains("172.19.0.3\t"), "{hosts}");
        // What is asked of one network is asked of that one.
        connect(&app.ns, SocketAddr::from((INET4, 9))).unwrap_err();
        let flows = |network: &[&str]| w.tapway(&[&["stats", "app", "--json"], network].concat()).ok();
        let (front, back) = (flows(&[]), flows(&["--network", "back"]));
        assert_ne!(front, back);
        let refused = w.tapway(&["flows", "app", "--network", "nowhere"]).end();
        assert!(refused.stderr.contains("is not on network \"nowhere\", but on: back, front"), "{}", refused.stderr);
        drop(app);
        wait_for("both addresses to be free", Duration::from_secs(5), || {
            w.tapway(&["network", "inspect", "-f", "{{len .Containers}}", "front", "back"]).ok() == "1\n1\n"
        });
    });
}

/// Asks a published port again and again: refusals are counted, and so are connections that are cut off before they have said
/// anything.
struct Asking {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    cut: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Asking {
    fn begin(w: &World, to: SocketAddr) -> Self {
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let cut = Arc::new(AtomicUsize::new(0));
        let (ended, counted, cut_off) = (Arc::clone(&stop), Arc::clone(&refused), Arc::clone(&cut));
        let thread = w.internet.spawn(move || {
            let mut asked = 0;
            while !ended.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
                    Ok(mut stream) => {
                        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                        // It says who we are.
                        if stream.read(&mut [0; 64]).is_ok_and(|len| len > 0) {
                            asked += 1;
                        } else {
                            cut_off.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            asked
        });
        Self { stop, refused, cut, thread: Some(thread) }
    }

    /// How often it was answered, refused, and cut off.
    fn end(mut self) -> (usize, usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let asked = self.thread.take().unwrap().join().unwrap();
        (asked, self.refused.load(Ordering::Relaxed), self.cut.load(Ordering::Relaxed))
    }
}

/// Bytes of the download.
const SIZE: usize = 48 << 20;

#[test]
fn networks_come_and_go_under_traffic() {
    World::run(|w| {
        for name in ["m", "a", "z"] {
            create(w, &[name]);
        }
        let peer = member(w, "m", "peer", &[]);
        echo(&peer, 7400);
        let far = member(w, "a", "far", &[]);
        echo(&far, 7400);
        let box_ = member(w, "m", "box", &["-p", "8080:7300", "-p", "8081:7301/udp"]);
        tell_tcp(&box_.ns, at([0; 4], 7300));
        tell_udp(&box_.ns, at([0; 4], 7301));
        // A download that takes as long as all of this, and whose every byte is looked at.
        serve(listen(&w.internet, at(INET4, 4000)), |stream, _| {
            let _ = send_pattern(&stream, 7, SIZE);
        });
        let download = patient(connect(&box_.ns, at(INET4, 4000)).unwrap());
        let slow = std::thread::spawn(move || expect_pattern(Throttled(&download), 7));
        let between = patient(connect(&box_.ns, at(on(&peer, "eth0"), 7400)).unwrap());
        let ping = box_.cmd(&["ping", "-i", "0.02", "-c", "200", "-W", "1", "peer"]).limit(60).spawn();
        let asking = Asking::begin(w, at(HOST4, 8080));
        std::thread::sleep(Duration::from_millis(300));
        let connected = w.tapway(&["network", "connect", "--json", "--alias", "other", "a", "box"]).ok();
        let connected: serde_json::Value = serde_json::from_str(&connected).unwrap();
        assert_eq!((&connected["interface"], &connected["gateway"]), (&"eth1".into(), &true.into()), "{connected}");
        // Everything is true when it is answered: the name, the way out, the published ports.
        assert_eq!(dig(&far, "other"), [on(&box_, "eth1").to_string()]);
        assert_eq!(dig(&box_, "far"), [on(&far, "eth0").to_string()]);
        assert_eq!(dig(&box_, "peer"), [on(&peer, "eth0").to_string()]);
        assert_eq!(default_device(&box_), "eth1");
        let seen = connect(&box_.ns, at(INET4, 4000)).unwrap();
        assert_eq!(seen.local_addr().unwrap().ip(), std::net::IpAddr::V4(on(&box_, "eth1")));
        drop(seen);
        let (own, client) = ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080));
        assert_eq!(client, own, "by the new gateway, with the client's true address");
        assert_eq!(ask_udp(&w.internet, at([0; 4], 0), at(HOST4, 8081)).1.ip(), INET4);
        let farther = patient(connect(&box_.ns, at(on(&far, "eth0"), 7400)).unwrap());
        assert!(says(&between) && says(&farther));
        assert!(w.tapway(&["port", "box"]).ok().contains("7300/tcp -> 0.0.0.0:8080"));
        // One more that is not the gateway, then the gateway goes.
        w.tapway(&["network", "connect", "z", "box"]).ok();
        assert_eq!(default_device(&box_), "eth1");
        let by_gateway = patient(connect(&box_.ns, at(INET4, 4000)).unwrap());
        w.tapway(&["network", "disconnect", "a", "box"]).ok();
        assert_eq!(default_device(&box_), "eth0");
        let mut rest = Vec::new();
        let ended = (&by_gateway).read_to_end(&mut rest);
        assert!(ended.is_err(), "what was cut never looks whole: {} bytes", rest.len());
        assert!(!says(&farther), "and is over");
        assert!(is_unknown(&far, "other"));
        assert!(is_unknown(&box_, "far"));
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
        assert!(says(&between), "what has nothing to do with it goes on");
        // The lowest free name, the address free at once, and the alias is not kept.
        let again = w.tapway(&["network", "connect", "--json", "a", "box"]).ok();
        assert!(again.contains("\"interface\":\"eth1\"") && again.contains("\"v4\":\"172.19.0.3\""), "{again}");
        w.tapway(&["network", "disconnect", "a", "box"]).ok();
        let (asked, refused, cut) = asking.end();
        // Nobody was refused; cut off were at most those whom a network that went had just let in.
        assert!(asked > 20 && refused == 0 && cut <= 2, "{asked} answered, {refused} refused, {cut} cut off");
        let ended = ping.end(Duration::from_secs(30));
        assert!(ended.stdout.contains(" 0% packet loss"), "{}", ended.stdout);
        assert_eq!(slow.join().unwrap(), SIZE, "the download of before goes on by the way that it has");
    });
}

/// Reads slowly.
#[derive(Debug)]
struct Throttled<'a>(&'a TcpStream);

impl Read for Throttled<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(2));
        let room = buf.len().min(32 << 10);
        self.0.read(&mut buf[..room])
    }
}

#[test]
fn from_the_default_network_to_none_and_back() {
    World::run(|w| {
        create(w, &["web"]);
        let www = member(w, "web", "www", &[]);
        let box_ = member(w, "bridge", "box", &["-p", "8080:7300"]);
        tell_tcp(&box_.ns, at([0; 4], 7300));
        let resolv = || box_.sh("cat /etc/resolv.conf");
        assert!(resolv().contains("nameserver 172.17.0.1\n"), "{}", resolv());
        box_.sh("echo '# mine' >> /etc/resolv.conf; echo '192.0.2.9 mine' >> /etc/hosts");
        w.tapway(&["network", "connect", "web", "box"]).ok();
        assert!(resolv().contains("nameserver 127.0.0.11\n") && resolv().contains("# mine\n"), "{}", resolv());
        assert_eq!(dig(&box_, "www"), [on(&www, "eth0").to_string()]);
        // `bridge` comes before `web`.
        assert_eq!(default_device(&box_), "eth0");
        w.tapway(&["network", "disconnect", "bridge", "box"]).ok();
        assert_eq!(default_device(&box_), "eth1");
        assert_eq!(dig(&box_, "www"), [on(&www, "eth0").to_string()]);
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
        w.tapway(&["network", "disconnect", "web", "box"]).ok();
        assert_eq!(box_.sh("ip -o link show | wc -l").trim(), "1", "only lo is left");
        let hosts = box_.sh("cat /etc/hosts");
        assert!(!hosts.contains("172.1") && hosts.contains("192.0.2.9 mine"), "{hosts}");
        assert!(w.tapway(&["info", "box"]).ok().contains("it is on none"));
        let refused = w.tapway(&["flows", "box"]).end();
        assert!(refused.code == 1 && refused.stderr.contains("tapway network connect"), "{}", refused.stderr);
        // A client that comes meanwhile waits in the backlog.
        let early = connect(&w.internet, at(HOST4, 8080)).unwrap();
        w.tapway(&["network", "connect", "bridge", "box"]).ok();
        early.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!((&early).read(&mut [0; 64]).unwrap() > 0);
        assert!(pings(&box_, &INET4.to_string()));
    });
}

#[test]
fn the_death_of_one_of_two_network_processes() {
    World::run(|w| {
        create(w, &["a"]);
        create(w, &["b"]);
        let (near, far) = (member(w, "a", "near", &[]), member(w, "b", "far", &[]));
        echo(&near, 7400);
        echo(&far, 7400);
        serve(listen(&w.internet, at(INET4, 4001)), |stream, _| {
            std::thread::sleep(Duration::from_mins(1));
            drop(stream);
        });
        let box_ = member(w, "a", "box", &["--network", "b", "-p", "8080:7300"]);
        tell_tcp(&box_.ns, at([0; 4], 7300));
        let streams = [
            patient(connect(&box_.ns, at(on(&near, "eth0"), 7400)).unwrap()),
            patient(connect(&box_.ns, at(on(&far, "eth0"), 7400)).unwrap()),
        ];
        let id = w.tapway(&["network", "inspect", "-f", "{{.Id}}", "a"]).ok();
        let process_of = |network: &str| {
            let is_it = |pid: &i32| {
                let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split(|&byte| byte == 0).nth(2) == Some(network.as_bytes())
            };
            processes().into_iter().find(is_it)
        };
        assert_eq!(id.trim().len(), 64);
        for network in ["b", "a"] {
            let mut idle = patient(connect(&box_.ns, at(INET4, 4001)).unwrap());
            w.host.sh(&format!("kill -KILL {}", process_of(network).unwrap()));
            wait_for("the names", Duration::from_secs(5), || {
                dig(&box_, "near") == ["172.18.0.2"] && dig(&box_, "far") == ["172.19.0.2"]
            });
            assert!(streams.iter().all(says), "connections between members go on");
            idle.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let error = idle.read(&mut [0]).unwrap_err().kind();
            let ended = error == std::io::ErrorKind::ConnectionAborted;
            assert_eq!(ended, network == "a", "only what the dead one carried is over: {error}");
            assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
        }
        // Disconnected right after a death.
        w.host.sh(&format!("kill -KILL {}", process_of("a").unwrap()));
        w.tapway(&["network", "disconnect", "a", "box"]).ok();
        assert_eq!(default_device(&box_), "eth1");
        assert_eq!(ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8080)).1.ip(), INET4);
    });
}

#[test]
fn refusals_in_dockers_words() {
    World::run(|w| {
        create(w, &["web"]);
        create(w, &["--subnet", "10.99.0.0/30", "tiny"]);
        let _full = member(w, "tiny", "full", &[]);
        let _box = member(w, "web", "box", &[]);
        let _own = member(w, "private", "own", &[]);
        let _none = w.tapway_run_on("none", &["--name", "alone"], &["sleep", "60"]).spawn();
        let _host = w.tapway_run_on("host", &["--name", "outside"], &["sleep", "60"]).spawn();
        let _inside = w.tapway_run_on("container:box", &["--name", "guest"], &["sleep", "60"]).spawn();
        let running = || w.tapway(&["ps", "--format", "{{.Names}} {{.Status}}"]).ok();
        wait_for("all of them", Duration::from_secs(10), || running().matches(" Up ").count() == 6);
        let apart = "container sharing network namespace with another container or host cannot be connected to any other network";
        let none = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
        for (words, text) in [
            ("connect web box", "endpoint with name box already exists in network web"),
            ("connect nowhere box", "network nowhere not found"),
            ("connect web nobody", "No such container: nobody"),
            ("connect tiny box", "no available IPv4 addresses on this network's address pools: tiny ("),
            ("connect --ip 172.30.0.9 tiny box", "no configured subnet contains IP address 172.30.0.9"),
            ("connect --ip 10.99.0.2 tiny box", "Address already in use"),
            (
                "connect --ip 172.17.0.9 bridge box",
                "user-specified IP address is supported on user-defined networks only",
            ),
            ("connect --alias x bridge box", "network-scoped aliases are only supported for user-defined networks"),
            ("connect --link nobody:x bridge box", "could not get container for nobody: No such container: nobody"),
            ("connect --link :x bridge box", "bad format for links: :x"),
            ("connect --mac-address xx bridge box", "'xx'"),
            ("connect --driver-opt a=b bridge box", "--driver-opt 'a=b' is not supported"),
            (
                "connect host box",
                "cannot connect container to host network - container must be created in host network mode",
            ),
            ("connect none box", none),
            ("connect web alone", none),
            ("connect web outside", apart),
            ("connect web guest", apart),
            ("connect web own", "--network private"),
            ("disconnect bridge box", "is not connected to network bridge"),
            ("disconnect nowhere box", "network nowhere not found"),
            (
                "disconnect web outside",
                "cannot disconnect container from host network - container was created in host network mode",
            ),
        ] {
            let ended = w.tapway(&[&["network"], &words.split(' ').collect::<Vec<_>>()[..]].concat()).end();
            assert!(ended.code != 0 && ended.stderr.contains(text), "{words}: {} {}", ended.code, ended.stderr);
        }
        w.tapway(&["network", "disconnect", "-f", "web", "nobody"]).ok();
        for (networks, text) in [
            (&["web", "bridge"][..], "cannot attach both user-defined and non-user-defined network-modes"),
            (&["web", "web"], "network \"web\" is specified multiple times"),
            (&["web", "name=tiny,ip=10.98.0.2"], "no configured subnet contains IP address 10.98.0.2"),
            (&["web", "name=tiny,colour=red"], "invalid field key colour"),
        ] {
            let words: Vec<&str> = networks.iter().flat_map(|network| ["--network", *network]).collect();
            let ended = w.tapway(&[&["run"], &words[..], &["true"]].concat()).end();
            assert!(ended.code != 0 && ended.stderr.contains(text), "{networks:?}: {}", ended.stderr);
        }
        let left = w.tapway(&["network", "inspect", "-f", "{{len .Containers}}", "web", "tiny"]).ok();
        assert_eq!(left, "1\n1\n", "nothing is left of what was refused");
        // A network whose name is how the id of another begins is not that one.
        let id = w.tapway(&["network", "inspect", "-f", "{{.Id}}", "web"]).ok();
        create(w, &[&id[..2]]);
        let other = w.tapway(&["network", "disconnect", &id[..2], "box"]).end();
        assert!(other.code == 1 && other.stderr.contains("is not connected to network"), "{}", other.stderr);
        // Nothing is published where nothing leads out.
        create(w, &["--internal", "closed"]);
        let _shut = member(w, "closed", "shut", &[]);
        let refused = w.tapway(&["publish", "shut", "8080:80"]).end();
        assert!(refused.code == 1 && refused.stderr.contains("internal networks alone"), "{}", refused.stderr);
        w.tapway(&["network", "connect", "web", "shut"]).ok();
        w.tapway(&["publish", "shut", "8080:80"]).ok();
        // Two changes at once, and a network that goes while it is joined: one of them has its way.
        create(w, &["short"]);
        for round in 0..20 {
            let joining = w.tapway(&["network", "connect", "short", "box"]).spawn();
            let removing = w.tapway(&["network", "rm", "short"]).spawn();
            let (joined, removed) = (joining.end(Duration::from_secs(20)), removing.end(Duration::from_secs(20)));
            assert!((joined.code == 0) != (removed.code == 0), "{round}: {} {}", joined.stderr, removed.stderr);
            if joined.code == 0 {
                w.tapway(&["network", "disconnect", "short", "box"]).ok();
            } else {
                create(w, &["short"]);
            }
        }
    });
}
