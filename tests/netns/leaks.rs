//! Descriptors: whatever state a flow is in when its ends go away, its sockets go too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::tools::{PATIENCE, any, ask_udp, at, connect, listen, reset, tell_tcp, tell_udp, udp};
use crate::world::{HOST4, INET4, INET6, Ns, World, wait_for};

/// Connections in each state.
const MANY: usize = 40;

/// Waits until no more sockets are open than before. TIME-WAIT inside the helper lasts 10 s (smoltcp).
fn settle(w: &World, before: usize, what: &str) {
    let mut now = 0;
    let fine = |now: &mut usize| {
        *now = w.sockets();
        *now <= before
    };
    let give_up = std::time::Instant::now() + Duration::from_secs(40);
    while !fine(&mut now) {
        assert!(std::time::Instant::now() < give_up, "{what}: {now} sockets, {before} before");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Connected pairs: (the client's end, the server's end).
fn pairs(near: &Ns, server: SocketAddr, listener: &TcpListener) -> Vec<(TcpStream, TcpStream)> {
    let pair = |_| {
        let client = connect(near, server).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        (client, accepted)
    };
    (0..MANY).map(pair).collect()
}

/// Brings a pair into a state and lets both ends go; the name says in which state they went.
type Ending = (&'static str, fn(TcpStream, TcpStream));

const ENDINGS: [Ending; 9] = [
    ("established, client closes first", |client, mut server| {
        drop(client);
        assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    }),
    ("established, server closes first", |mut client, server| {
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    }),
    ("both close at once", |client, server| {
        drop((client, server));
    }),
    ("client half-closed, then both go", |client, mut server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
        drop(server);
        drop(client);
    }),
    ("server half-closed, then both go", |mut client, server| {
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        drop(client);
        drop(server);
    }),
    ("client resets", |client, mut server| {
        reset(client);
        assert!(server.read(&mut [0; 8]).is_err());
    }),
    ("server resets", |mut client, server| {
        reset(server);
        assert!(client.read(&mut [0; 8]).is_err());
    }),
    ("data unread on both sides", |mut client, mut server| {
        client.write_all(&[1; 50_000]).unwrap();
        server.write_all(&[1; 50_000]).unwrap();
        drop(client);
        drop(server);
    }),
    ("a closed window, then the reader goes", |client, server| {
        client.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while (&client).write(&[1; 65_536]).is_ok() {}
        drop(server);
        drop(client);
    }),
];

fn endings(w: &World, near: &Ns, server: SocketAddr, listener: &TcpListener) {
    // One connection first: buffers and tables that are kept for the next one are no leak.
    drop(pairs(near, server, listener));
    std::thread::sleep(Duration::from_secs(12));
    let before = w.sockets();
    for (_, end) in ENDINGS {
        for (client, accepted) in pairs(near, server, listener) {
            end(client, accepted);
        }
    }
    settle(w, before, "after every ending");
    // And one by one, so that a leak is named.
    if crate::world::long() {
        for (what, end) in ENDINGS {
            for (client, accepted) in pairs(near, server, listener) {
                end(client, accepted);
            }
            settle(w, before, what);
        }
    }
}

#[test]
fn outward_flows_leave_nothing() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let listener = listen(&w.internet, at(INET4, 7100));
        endings(w, &guest.ns, at(INET4, 7100), &listener);
    });
}

#[test]
fn outward_flows_leave_nothing_v6() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let listener = listen(&w.internet, at(INET6, 7100));
        endings(w, &guest.ns, at(INET6, 7100), &listener);
    });
}

#[test]
fn inward_flows_leave_nothing() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        let listener = listen(&guest.ns, at([0; 4], 7100));
        endings(w, &w.internet, at(HOST4, 7100), &listener);
    });
}

/// Connections that never come about: refused, unreachable, and given up while the host is still trying.
#[test]
fn unborn_flows_leave_nothing() {
    World::run(|w| {
        w.router.sh("ip route add unreachable 198.51.100.66/32; ip route add blackhole 198.51.100.67/32");
        // The host gives a silent peer up after 1 + 2 s here instead of two minutes.
        w.host.sh("echo 1 > /proc/sys/net/ipv4/tcp_syn_retries");
        let guest = w.guest(&["-p", "7100:7100"]);
        tell_tcp(&w.internet, at(INET4, 7000));
        drop(connect(&guest.ns, at(INET4, 7000)));
        std::thread::sleep(Duration::from_secs(12));
        let before = w.sockets();
        for _ in 0..MANY {
            assert!(connect(&guest.ns, at(INET4, 7001)).is_err());
            assert!(connect(&guest.ns, at([198, 51, 100, 66], 80)).is_err());
            // Published, but nobody is there inside.
            drop(connect(&w.internet, at(HOST4, 7100)));
            guest.run(|| {
                let silent = at([198, 51, 100, 67], 80);
                assert!(TcpStream::connect_timeout(&silent, Duration::from_millis(20)).is_err());
            });
        }
        assert!(w.sockets() > before, "the silent connects hold no socket, so this test shows nothing");
        settle(w, before, "after flows that were never born");
    });
}

/// The guest's programs die without a word: its kernel resets what they left, and nothing stays.
#[test]
fn a_killed_program_leaves_nothing() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7100);
        crate::tools::echo_tcp(&w.internet, server);
        drop(connect(&guest.ns, server));
        std::thread::sleep(Duration::from_secs(12));
        let before = w.sockets();
        let script = format!(
            "import socket,time
s = [socket.create_connection(('{}', {})) for _ in range(100)]
[c.sendall(b'x' * 100000) for c in s]
print('ready', flush=True)
time.sleep(1000)",
            server.ip(),
            server.port()
        );
        let mut program = guest.cmd(&["/usr/bin/python3", "-c", &script]).spawn();
        let mut word = [0; 5];
        program.child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        assert!(w.sockets() >= before + 100, "100 connections have no sockets");
        // nsenter forked into the PID namespace: the program itself is its child.
        w.host.sh(&format!("pkill -KILL -P {} || kill -KILL {}", program.pid(), program.pid()));
        drop(program);
        settle(w, before, "after a program that was killed");
    });
}

/// UDP mappings go when they have been idle. A single question is forgotten soon; the test is about that, so it asks
/// once per socket.
#[test]
fn idle_datagrams_leave_nothing() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7200);
        tell_udp(&w.internet, server);
        ask_udp(&guest.ns, any(server), server);
        let sockets: Vec<_> = (0..MANY).map(|_| udp(&guest.ns, any(server))).collect();
        let before = w.sockets();
        for socket in &sockets {
            guest.run(|| socket.connect(server)).unwrap();
            crate::tools::heard_udp(socket);
        }
        assert!(w.sockets() >= before + MANY, "the mappings hold no sockets, so this test shows nothing");
        drop(sockets);
        wait_for("the mappings to be forgotten", Duration::from_secs(200), || w.sockets() <= before);
    });
}

/// Everything that one sandbox made is gone when its command ends: processes, files, mounts.
#[test]
fn the_end_leaves_nothing_behind() {
    World::run(|w| {
        assert_eq!(w.tapway_pids(), [0i32; 0]);
        let files = || w.host.sh("find /mnt/run /mnt/home | sort");
        let mounts = || w.host.sh("wc -l < /proc/self/mounts");
        // State that is kept on purpose (a directory, a lock file) is there after the first run.
        w.tapway_run(&["-p", "8080:80"], &["true"]).ok();
        wait_for("the first sandbox's end", Duration::from_secs(10), || w.tapway_pids().is_empty());
        let (files_before, mounts_before) = (files(), mounts());
        for _ in 0..3 {
            let ended = w.tapway_run(&["-p", "8080:80"], &["sh", "-c", "exit 42"]).end();
            assert_eq!(ended.code, 42, "{}", ended.stderr);
            wait_for("the sandbox's end", Duration::from_secs(10), || w.tapway_pids().is_empty());
        }
        assert_eq!(files(), files_before);
        assert_eq!(mounts(), mounts_before);
        w.host.sh("! ss -Hltn 'sport = :8080' | grep .");
    });
}

/// The monitor killed without a chance to tidy up takes the network process and the command with it.
#[test]
fn a_killed_monitor_leaves_nothing_running() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:80"]);
        let command = guest.pid;
        w.host.sh(&format!("kill -KILL {}", w.tapway_pids().into_iter().min().expect("a monitor")));
        wait_for("all of tapway to go", Duration::from_secs(15), || w.tapway_pids().is_empty());
        wait_for("the command to go", Duration::from_secs(15), || {
            let stat = std::fs::read_to_string(format!("/proc/{command}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    });
}
