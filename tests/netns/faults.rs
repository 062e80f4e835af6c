//! Faults on purpose (`tapway fault`) as programs in the sandbox meet them: pings, datagrams, real TCP, real questions.

use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::{ask, done, kill, refused};
use crate::named::{address_of, create, dig, member};
use crate::spaces::Ns;
use crate::tools::{any, at, connect, echo_udp, expect_pattern, listen, send_pattern, serve, udp};
use crate::world::{GATEWAY4, Guest, HOST4, INET4, World, wait_for};

/// Round trips, in order of their lengths.
struct Trips(Vec<f64>);

impl Trips {
    /// `count` of them, `gap` seconds apart, in milliseconds. None may be lost.
    #[track_caller]
    fn measure(guest: &Guest, to: &str, count: usize, gap: &str) -> Self {
        let text = guest.cmd(&["ping", "-n", "-W5", "-i", gap, "-c", &count.to_string(), to]).limit(60).ok();
        let mut all = times(&text);
        assert_eq!(all.len(), count, "{text}");
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn p99(&self) -> f64 {
        self.0[self.0.len() * 99 / 100]
    }
}

/// What `ping` says each took, in the order in which it says so.
fn times(text: &str) -> Vec<f64> {
    text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok()).collect()
}

#[track_caller]
fn set(w: &World, options: &str) -> String {
    let words: Vec<&str> = ["fault", "set"].into_iter().chain(options.split(' ')).collect();
    w.tapway(&words).ok()
}

/// Off by a millisecond at most from what it is without a fault and the fault together.
#[track_caller]
fn is_late(got: &Trips, plain: &Trips, by: f64) {
    let late = got.median() - plain.median().min(1.0);
    assert!((late - by).abs() <= 1.0, "{by} ms more are {late} ms: {:?}", got.0);
}

#[test]
fn delay_is_exact_each_way_and_live() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        for to in [GATEWAY4.to_string(), INET4.to_string(), guest.gateway6().to_string()] {
            let plain = Trips::measure(&guest, &to, 41, "0.01");
            let shown = set(w, "--latency 50ms --direction from-guest site");
            assert!(shown.contains("from-guest  50ms") && !shown.contains("to-guest"), "{shown}");
            is_late(&Trips::measure(&guest, &to, 41, "0.01"), &plain, 50.0);
            // One way and the other are two things.
            set(w, "--latency 20ms --direction to-guest site");
            is_late(&Trips::measure(&guest, &to, 41, "0.01"), &plain, 70.0);
            set(w, "--latency 0 --direction from-guest site");
            is_late(&Trips::measure(&guest, &to, 41, "0.01"), &plain, 20.0);
            w.tapway(&["fault", "clear", "site"]).ok();
            is_late(&Trips::measure(&guest, &to, 41, "0.01"), &plain, 0.0);
        }
        assert_eq!(w.tapway(&["fault", "ls", "site"]).ok(), "");
        // Under a ping that goes on.
        let running = guest.cmd(&["ping", "-n", "-W5", "-i", "0.1", "-c", "30", "10.0.2.2"]).spawn();
        std::thread::sleep(Duration::from_millis(900));
        set(w, "--latency 30ms site");
        std::thread::sleep(Duration::from_secs(1));
        w.tapway(&["fault", "clear", "site"]).ok();
        let ended = running.end(Duration::from_secs(20));
        let all = times(&ended.stdout);
        assert_eq!(all.len(), 30, "none is lost by a change: {}", ended.stdout);
        let late = all.iter().filter(|&&time| (59.0..64.0).contains(&time)).count();
        assert!((7..=12).contains(&late) && all[0] < 20.0 && all[29] < 20.0, "{all:?}");
    });
}

#[test]
fn jitter_stays_within_its_bounds() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        set(w, "--latency 40ms --jitter 20ms --direction to-guest --seed 1 site");
        let trips = Trips::measure(&guest, "10.0.2.2", 100, "0.05");
        let (least, most) = (trips.0[0], trips.0[99]);
        assert!(least >= 20.0 && most < 66.0, "{:?}", trips.0);
        assert!(least < 25.0 && most > 55.0, "it uses them: {:?}", trips.0);
        assert!((trips.median() - 40.0).abs() < 6.0, "{:?}", trips.0);
    });
}

/// Sends `count` datagrams and returns the numbers of those that came back. No more are on their way than every socket buffer
/// holds while somebody else has the processor.
fn survivors(ns: &Ns, to: SocketAddr, count: u32) -> Vec<u32> {
    let socket: UdpSocket = udp(ns, any(to));
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let (reader, last) = (socket.try_clone().unwrap(), Arc::new(AtomicU32::new(0)));
    let seen = Arc::clone(&last);
    let reader = std::thread::spawn(move || {
        let (mut came, mut bytes) = (Vec::new(), [0; 16]);
        while let Ok(4) = reader.recv(&mut bytes) {
            let number = u32::from_be_bytes(bytes[..4].try_into().unwrap());
            seen.store(number, Ordering::Relaxed);
            came.push(number);
        }
        came
    });
    for number in 0..count {
        socket.send_to(&number.to_be_bytes(), to).unwrap();
        if number % 50 == 49 {
            // Of twenty in a row one comes, unless none does.
            let until = Instant::now() + Duration::from_millis(300);
            while last.load(Ordering::Relaxed) + 20 < number && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
    reader.join().unwrap()
}

#[test]
fn loss_is_a_share_and_a_seed_repeats_it() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        echo_udp(&w.internet, at(INET4, 7000));
        let to = at(INET4, 7000);
        assert_eq!(survivors(&guest.ns, to, 500).len(), 500, "the stage itself loses nothing");
        let options = format!("--loss 10% --direction from-guest --to {INET4} --seed 42 site");
        set(w, &options);
        let first = survivors(&guest.ns, to, 2000);
        // 200 lost, four standard deviations of 13.4.
        assert!((2000 - first.len()).abs_diff(200) < 54, "{}", first.len());
        let listed = done(w, "list_faults", json!({}));
        let counts = &listed["faults"][0]["from_guest"];
        assert_eq!(counts["lost"], 2000 - first.len(), "{listed}");
        assert_eq!(counts["packets"], 2000);
        let stats = done(w, "get_stats", json!({}));
        assert_eq!(stats["drops"]["fault_loss"], 2000 - first.len());
        // Chance goes on, unless it is begun anew.
        let second = survivors(&guest.ns, to, 500);
        assert_ne!(second, first.iter().copied().filter(|&number| number < 500).collect::<Vec<_>>());
        set(w, &options);
        let again = survivors(&guest.ns, to, 2000);
        let listed = done(w, "list_faults", json!({}));
        let differ: Vec<_> = again.iter().zip(&first).find(|(a, b)| a != b).into_iter().collect();
        assert_eq!(again, first, "the same packets and the same seed are the same faults: {differ:?}, {listed}");
        // Nobody else is touched.
        assert_eq!(Trips::measure(&guest, "10.0.2.2", 50, "0.005").0.len(), 50);
        // All of it: silence, as of a network that is gone. But the narrower rule counts while it is there.
        set(w, &format!("--loss 100% --direction from-guest --to {INET4}/16 site"));
        assert!(survivors(&guest.ns, to, 200).len() > 100);
        w.tapway(&["fault", "clear", "--to", &INET4.to_string(), "site"]).ok();
        assert_eq!(survivors(&guest.ns, to, 200).len(), 0);
    });
}

#[test]
fn a_rate_holds_for_a_download_and_an_upload() {
    World::run(|w| {
        const TOTAL: usize = 2_500_000;
        let guest = w.guest(&["--name", "site", "--mtu", "1500"]);
        serve(listen(&w.internet, at(INET4, 7001)), |stream, _| {
            let _ = send_pattern(&stream, 5, TOTAL);
        });
        serve(listen(&w.internet, at(INET4, 7002)), |mut stream, _| {
            let length = expect_pattern(&stream, 6);
            let _ = std::io::Write::write_all(&mut stream, &(length as u64).to_be_bytes());
        });
        let download = || {
            let stream = connect(&guest.ns, at(INET4, 7001)).unwrap();
            let begun = Instant::now();
            assert_eq!(expect_pattern(&stream, 5), TOTAL);
            begun.elapsed().as_secs_f64()
        };
        let upload = || {
            let mut stream = connect(&guest.ns, at(INET4, 7002)).unwrap();
            let begun = Instant::now();
            send_pattern(&stream, 6, TOTAL).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut length = [0; 8];
            std::io::Read::read_exact(&mut stream, &mut length).unwrap();
            assert_eq!(u64::from_be_bytes(length), TOTAL as u64);
            begun.elapsed().as_secs_f64()
        };
        assert!(download() < 1.0 && upload() < 1.0);
        set(w, "--rate 10mbit site");
        // Ethernet frames of 1514 bytes carry 1460, or 1448 with timestamps.
        let (fast, slow) = (2.5e6 / 1460.0 * 1514.0 * 8.0 / 10e6, 2.5e6 / 1448.0 * 1514.0 * 8.0 / 10e6);
        for took in [download(), upload()] {
            assert!(took > fast * 0.99 && took < slow * 1.1, "{took} s, for {fast} to {slow}");
        }
        set(w, "--rate 0 --latency 5ms --loss 0.5% --seed 3 site");
        // Lossy and late, every byte comes.
        download();
        upload();
        let listed = done(w, "list_faults", json!({}));
        assert!(listed["faults"][0]["to_guest"]["lost"].as_u64().unwrap() > 0, "{listed}");
    });
}

#[test]
fn faults_outlive_the_network_process() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        let plain = Trips::measure(&guest, "10.0.2.2", 21, "0.01");
        done(w, "add_host", json!({ "name": "gate", "address": "10.0.2.2" }));
        let asked = json!({ "to": "gate", "latency": "25ms", "direction": "to_guest", "seed": 11 });
        let told = done(w, "set_fault", asked);
        assert_eq!((&told["faults"][0]["addresses"], &told["faults"][0]["seed"]), (&json!(["10.0.2.2"]), &json!(11)));
        done(w, "set_fault", json!({ "dns_fail": "100%" }));
        // The name is not looked up again.
        done(w, "remove_host", json!({ "name": "gate" }));
        for life in 0..2 {
            is_late(&Trips::measure(&guest, "10.0.2.2", 21, "0.01"), &plain, 25.0);
            assert_eq!(done(w, "get_info", json!({}))["faults"], 2);
            assert!(guest.sh("dig +tries=1 +time=3 localhost").contains("status: SERVFAIL"));
            let format = "{{json .NetworkSettings.Networks.private.Faults}}";
            let inspected: Value = serde_json::from_str(&w.tapway(&["inspect", "-f", format, "site"]).ok()).unwrap();
            assert_eq!((&inspected[0]["to"], &inspected[1]["dns_fail"]), (&json!("gate"), &json!("100%")));
            // A third death within ten seconds would be the last.
            if life == 0 {
                kill(w, &guest);
            }
        }
        assert_eq!(done(w, "clear_fault", json!({ "to": "GATE" }))["cleared"], 1);
        done(w, "clear_fault", json!({}));
        kill(w, &guest);
        is_late(&Trips::measure(&guest, "10.0.2.2", 21, "0.01"), &plain, 0.0);
        assert_eq!(done(w, "list_faults", json!({})), json!({ "faults": [] }));
        assert_eq!(
            w.tapway(&["inspect", "-f", "{{json .NetworkSettings.Networks.private.Faults}}", "site"]).ok(),
            "null\n"
        );
    });
}

#[test]
fn one_members_fault_is_nobody_elses() {
    World::run(|w| {
        create(w, &["web"]);
        let (bad, near, far) =
            (member(w, "web", "bad", &[]), member(w, "web", "near", &[]), member(w, "web", "far", &[]));
        echo_udp(&bad.ns, at([0; 4], 7000));
        let plain: Vec<Trips> = (0..3).map(|_| Trips::measure(&near, "far", 200, "0.005")).collect();
        let of_bad = Trips::measure(&near, "bad", 21, "0.01");
        set(w, "--latency 20ms --rate 2mbit --loss 1% --seed 1 bad");
        // Its line is full all the while.
        let address = address_of(&bad, "eth0").to_string();
        let flood = || near.cmd(&["ping", "-q", "-f", "-s", "1400", "-w", "8", &address]).spawn();
        let flood = [flood(), flood()];
        std::thread::sleep(Duration::from_millis(300));
        let beside: Vec<Trips> = (0..3).map(|_| Trips::measure(&near, "far", 200, "0.005")).collect();
        let listed = w.tapway(&["fault", "ls", "--json", "bad"]).ok();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert!(listed["faults"][0]["to_guest"]["delayed"].as_u64().unwrap() > 100, "{listed}");
        for one in flood {
            one.end(Duration::from_secs(20));
        }
        // The better of several: this machine does other things, too.
        let best = |all: &[Trips]| all.iter().map(Trips::p99).fold(f64::INFINITY, f64::min);
        assert!(best(&beside) < best(&plain) + 1.0, "{} ms, before {} ms", best(&beside), best(&plain));
        set(w, "--rate 0 --loss 0 bad");
        is_late(&Trips::measure(&near, "bad", 21, "0.01"), &of_bad, 40.0);
        is_late(&Trips::measure(&bad, "far", 21, "0.01"), &of_bad, 40.0);
        // Of one peer, by name, on the way between two members.
        w.tapway(&["fault", "clear", "bad"]).ok();
        set(w, "--latency 15ms --to near bad");
        is_late(&Trips::measure(&near, "bad", 21, "0.01"), &of_bad, 30.0);
        is_late(&Trips::measure(&far, "bad", 21, "0.01"), &of_bad, 0.0);
        is_late(&Trips::measure(&bad, &HOST4.to_string(), 21, "0.01"), &of_bad, 0.0);
        // The death of the network's process, which all share.
        let process = crate::named::processes();
        w.host.sh(&format!("kill -KILL {}", process[0]));
        wait_for("the members", Duration::from_secs(10), || crate::named::pings(&near, "far"));
        wait_for("the one with faults", Duration::from_secs(10), || crate::named::pings(&near, "bad"));
        is_late(&Trips::measure(&near, "bad", 21, "0.01"), &of_bad, 30.0);
    });
}

#[test]
fn of_one_network_of_several() {
    World::run(|w| {
        create(w, &["front"]);
        create(w, &["back"]);
        let (_web, _db) = (member(w, "front", "web", &[]), member(w, "back", "db", &[]));
        let app = member(w, "front", "app", &["--network", "back"]);
        let plain = Trips::measure(&app, "db", 21, "0.01");
        set(w, "--latency 10ms --network back app");
        is_late(&Trips::measure(&app, "db", 21, "0.01"), &plain, 20.0);
        is_late(&Trips::measure(&app, "web", 21, "0.01"), &plain, 0.0);
        let shown = |network: &str| w.tapway(&["fault", "ls", "--network", network, "app"]).ok();
        assert!(shown("back").contains("10ms") && !shown("front").contains("10ms"));
        let refused = w.tapway(&["fault", "set", "--latency", "1ms", "--network", "nowhere", "app"]).end();
        assert!(refused.code == 2 && refused.stderr.contains("is not on network"), "{}", refused.stderr);
    });
}

#[test]
fn names_fail_on_purpose() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        done(w, "add_host", json!({ "name": "db", "address": "192.0.2.7" }));
        let round = |options: &str| {
            let line =
                format!("for i in $(seq 40); do dig {options} +tries=1 +time=3 db | grep -o 'status: [A-Z]*'; done");
            let text = guest.sh(&line);
            assert_eq!(text.lines().count(), 40, "{text}");
            text.lines().map(|line| line.ends_with("SERVFAIL")).collect::<Vec<_>>()
        };
        set(w, "--dns-fail 30% --seed 9 site");
        let first = round("");
        let failed = first.iter().filter(|&&failed| failed).count();
        // 12 of 40, four standard deviations of 2.9.
        assert!((1..=23).contains(&failed), "{first:?}");
        assert_eq!(done(w, "get_stats", json!({}))["counters"]["dns_fault"], failed);
        set(w, "--seed 9 site");
        assert_eq!(round("+tcp"), first);
        set(w, "--dns-fail 0 site");
        assert_eq!(dig(&guest, "db"), ["192.0.2.7"]);
        assert_eq!(w.tapway(&["fault", "ls", "site"]).ok(), "");
        // A rule is set for a name although names fail for the guest.
        set(w, "--dns-fail 100% site");
        assert!(set(w, "--latency 1ms --to db site").contains("db"));
    });
}

#[test]
fn what_cannot_be_is_refused() {
    World::run(|w| {
        let _guest = w.guest(&["--name", "site"]);
        for (arguments, code) in [
            (json!({}), "bad_argument"),
            (json!({ "latency": 50 }), "bad_argument"),
            (json!({ "latency": "50" }), "bad_argument"),
            (json!({ "latency": "10ms", "jitter": "11ms" }), "bad_argument"),
            (json!({ "loss": "1%", "to": "192.0.2.0/33" }), "bad_argument"),
            (json!({ "loss": "1%", "to": "nobody.invalid" }), "not_found"),
            (json!({ "dns_fail": "1%", "to": "192.0.2.1" }), "bad_argument"),
            (json!({ "loss": "1%", "frob": 1 }), "unknown_field"),
            (json!({ "loss": "1%", "direction": "up" }), "bad_argument"),
        ] {
            assert_eq!(refused(w, "set_fault", arguments.clone()), code, "{arguments}");
        }
        assert_eq!(refused(w, "clear_fault", json!({ "to": "192.0.2.1" })), "not_found");
        for number in 0..64 {
            done(w, "set_fault", json!({ "loss": "1%", "to": format!("192.0.2.{number}") }));
        }
        assert_eq!(refused(w, "set_fault", json!({ "loss": "1%", "to": "192.0.2.64" })), "limit");
        assert!(ask(w, "set_fault", json!({ "loss": "2%", "to": "192.0.2.63" }))["return"].is_object());
        assert_eq!(done(w, "clear_fault", json!({}))["cleared"], 64);
        for (args, why) in [
            (&["fault", "set", "--latency", "50", "site"][..], "'50' is no time; write a number and us, ms or s"),
            (&["fault", "set", "site"], "nothing is to be changed"),
            (&["fault", "set", "--loss", "1%", "nobody"], "there is no running sandbox 'nobody'"),
            (&["fault", "clear", "--to", "db", "site"], "there is no fault for 'db'"),
        ] {
            let ended = w.tapway(args).end();
            assert!(ended.code != 0 && ended.stderr.contains(why), "{args:?}: {}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        }
    });
}
