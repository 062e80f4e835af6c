//! What the issue asks to be measured: members of one network against a bare relay between the same two TAPs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{GATEWAY4, Member, Network, config, iperf, v4, wish};
use crate::spaces::wait_for;
use crate::tools::{any, at, connect, echo_tcp};
use crate::world::World;

/// Frames go from one TAP to the other as they are: the least that any switch must do.
fn bare_relay(taps: [OwnedFd; 2], stop: std::sync::Arc<std::sync::atomic::AtomicBool>) {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    for (at, tap) in taps.iter().enumerate() {
        epoll.add(tap, EpollEvent::new(EpollFlags::EPOLLIN, at as u64)).unwrap();
    }
    let mut frame = vec![0; 70_000];
    let mut events = [EpollEvent::empty(); 4];
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let ready = epoll.wait(&mut events, 100_u16).unwrap();
        for event in &events[..ready] {
            let from = event.data() as usize;
            for _ in 0..64 {
                let Ok(len) = nix::unistd::read(&taps[from], &mut frame) else { break };
                let _ = nix::unistd::write(&taps[1 - from], &frame[..len]);
            }
        }
    }
}

/// Answers a second: `window` questions are on their way at any time.
fn dns_rate(member: &Member, server: SocketAddr, window: usize) -> f64 {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x05redis\x00\x00\x01\x00\x01");
    member.ns.run(|| {
        let socket = UdpSocket::bind(any(server)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buf = [0; 512];
        let (begun, mut answers, mut on_the_way) = (Instant::now(), 0_u32, 0);
        while begun.elapsed() < Duration::from_secs(2) {
            while on_the_way < window {
                let _ = socket.send(&query);
                on_the_way += 1;
            }
            match socket.recv(&mut buf) {
                Ok(_) => {
                    answers += 1;
                    on_the_way -= 1;
                }
                Err(_) => on_the_way = 0,
            }
        }
        f64::from(answers) / begun.elapsed().as_secs_f64()
    })
}

/// Round trips of one byte by TCP, median microseconds.
fn round_trip(from: &Member, to: &Member) -> f64 {
    let server = at(v4(to.number), 7300);
    echo_tcp(&to.ns, server);
    let mut stream = connect(&from.ns, server).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut times: Vec<f64> = (0..5000)
        .map(|_| {
            let begun = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// `cargo test --test netns network::figures:: -- --ignored --nocapture`: what the issue asks to be measured.
#[test]
#[ignore = "measures, and says nothing on a busy machine"]
fn against_a_bare_relay() {
    World::run(|w| {
        for mtu in [1500, 65520] {
            let network = Network::start(w, config(mtu));
            let (one, two) = (network.join(2, &wish(&["one"])), network.join(3, &wish(&["redis"])));
            for round in 0..3 {
                let (there, back) = (iperf(&one, &two, "172.18.0.3", &[]), iperf(&one, &two, "172.18.0.3", &["-R"]));
                eprintln!("MTU {mtu}, network {round}: {:.2} and {:.2} Gbit/s", there / 1e9, back / 1e9);
            }
            eprintln!("MTU {mtu}, network: {:.1} us there and back", round_trip(&one, &two));
            for server in [at(GATEWAY4, 53), at(Ipv4Addr::new(127, 0, 0, 11), 53)] {
                for window in [1, 64] {
                    let rate = dns_rate(&one, server, window);
                    eprintln!("MTU {mtu}, {server}, {window} at a time: {rate:.0} answers a second");
                }
            }
            drop((one, two));
            let pid = Pid::from_raw(network.pid());
            wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());
            // The same namespaces with nothing but a relay between them.
            let network = Network::start(w, config(mtu));
            let (mut one, mut two) = (network.join(2, &wish(&["one"])), network.join(3, &wish(&["redis"])));
            (one.conn, two.conn) = (None, None);
            let pid = Pid::from_raw(network.pid());
            wait_for("the network process to leave", Duration::from_secs(5), || kill(pid, None).is_err());
            let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let taps = [one.tap.try_clone().unwrap(), two.tap.try_clone().unwrap()];
            let relay = std::thread::spawn({
                let stop = stop.clone();
                move || bare_relay(taps, stop)
            });
            for round in 0..3 {
                let (there, back) = (iperf(&one, &two, "172.18.0.3", &[]), iperf(&one, &two, "172.18.0.3", &["-R"]));
                eprintln!("MTU {mtu}, bare relay {round}: {:.2} and {:.2} Gbit/s", there / 1e9, back / 1e9);
            }
            eprintln!("MTU {mtu}, bare relay: {:.1} us there and back", round_trip(&one, &two));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            relay.join().unwrap();
        }
    });
}
