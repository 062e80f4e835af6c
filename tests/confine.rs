//! The confinement of the network process, tried from inside: each act runs in a process of its own after
//! `confine::enter`, and is killed, refused or succeeds.
//!
//! See `apart` for how.
#![allow(unsafe_code)] // fork(2), and forbidden calls have no safe wrapper.
#![allow(clippy::unwrap_used)]

#[path = "confine/acts.rs"]
mod acts;
mod apart;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::unistd::Pid;
use tapway::confine::{self, Options, Outcome, Report, standalone};

use acts::{FORBIDDEN, KILLED};
use apart::{run, run_watched};

fn enter() -> Report {
    let report = confine::enter(Options::default()).unwrap();
    eprintln!("entered");
    report
}

/// Tries all of them, each in a process of its own that has been confined by `enter`.
fn try_all(test: &str, enter: fn(), expected: impl Fn(&str, i32) -> Option<i32>) {
    let mut tried = 0;
    for &(label, code, act) in FORBIDDEN {
        let Some(expected) = expected(label, code) else { continue };
        let Some(out) = run(test, label, || {
            enter();
            act()
        }) else {
            continue;
        };
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(err.contains("entered"), "{label}: did not get as far as the act: {err}");
        assert_eq!(out.status.code(), Some(expected), "{label}: {err}");
        tried += 1;
    }
    eprintln!("{test}: {tried} acts tried, all stopped");
}

#[test]
fn forbidden_acts_are_killed_or_refused() {
    try_all("forbidden_acts_are_killed_or_refused", || drop(enter()), |_, code| Some(code));
}

/// The process of a shared network keeps its user's number and nothing else more.
#[test]
fn forbidden_acts_of_the_process_of_a_shared_network() {
    let enter = || {
        confine::enter(Options { keep_user: true, ..Options::default() }).unwrap();
        eprintln!("entered");
    };
    try_all("forbidden_acts_of_the_process_of_a_shared_network", enter, |_, code| Some(code));
}

/// Threads that are made afterwards are as confined as the first.
#[test]
fn forbidden_acts_of_another_thread() {
    for &(label, expected, act) in FORBIDDEN {
        let Some(out) = run("forbidden_acts_of_another_thread", label, || {
            enter();
            std::thread::spawn(act).join().unwrap()
        }) else {
            continue;
        };
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), err.contains("entered")), (Some(expected), true), "{label}: {err}");
    }
}

fn enter_standalone(options: standalone::Options) -> standalone::Confined {
    let confined = standalone::enter(options).unwrap();
    eprintln!("entered");
    confined
}

/// What stands alone opens files and makes listeners; the rest of the table holds for it, too, with its tree and without.
#[test]
fn forbidden_acts_of_a_process_that_stands_alone() {
    let expected = |label: &str, code: i32| match label {
        "create a file" | "open for writing" => Some(KILLED),
        // Looking at a file that may not be opened gives nothing away; listening, and for root a low port, are its work.
        "stat" | "listen" | "a port below 1024" => None,
        _ => Some(code),
    };
    let test = "forbidden_acts_of_a_process_that_stands_alone";
    try_all(test, || drop(enter_standalone(standalone::Options::default())), expected);
}

#[test]
fn forbidden_acts_in_the_tree() {
    let enter = || drop(enter_standalone(standalone::Options { tree: true, ..standalone::Options::default() }));
    try_all("forbidden_acts_in_the_tree", enter, |label, code| match label {
        "create a file" | "open for writing" => Some(KILLED),
        "stat" | "listen" | "a port below 1024" => None,
        _ => Some(code),
    });
}

/// With the tree and without it: the work goes on, files are read where resolv.conf may be and nowhere else, the API
/// socket's name can be removed and no other.
#[test]
fn a_process_that_stands_alone_does_its_work() {
    for (label, tree) in [("plain", false), ("tree", true)] {
        let base = |pid: Pid| std::env::temp_dir().join(format!("tapway-alone-{pid}"));
        let act = || {
            let base = base(Pid::this());
            let (ours, other) = (base.join("ours"), base.join("other"));
            for dir in [&ours, &other] {
                std::fs::create_dir_all(dir).unwrap();
                std::fs::write(dir.join("s"), "").unwrap();
            }
            let hold = |path| std::os::fd::OwnedFd::from(std::fs::File::open(path).unwrap());
            let (ours_fd, other_fd) = (hold(&ours), hold(&other));
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let confined = enter_standalone(standalone::Options {
                tree,
                readable: vec!["/etc".into(), "/run".into()],
                socket_dir: Some(ours_fd),
                ..standalone::Options::default()
            });
            tokio_work();
            data_plane_work(&listener);
            memory_and_threads();
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            assert!(!std::fs::read("/etc/passwd").unwrap().is_empty());
            assert!(std::fs::metadata("/etc/resolv.conf").is_ok());
            if confined.landlock == Outcome::Done {
                let dir = confined.socket_dir.unwrap();
                nix::unistd::unlinkat(&dir, "s", nix::unistd::UnlinkatFlags::NoRemoveDir).unwrap();
                let refused = nix::unistd::unlinkat(&other_fd, "s", nix::unistd::UnlinkatFlags::NoRemoveDir);
                assert_eq!(refused, Err(nix::Error::EACCES));
                let read = |path: &std::path::Path| std::fs::read(path).unwrap_err().raw_os_error().unwrap();
                let expected = if tree { libc::ENOENT } else { libc::EACCES };
                assert_eq!(read(&other.join("s")), expected);
            } else {
                eprintln!("SKIPPED in part: no Landlock here ({})", confined.landlock);
            }
            if tree {
                for gone in ["/home", "/root", "/var", "/tmp", "/proc"] {
                    assert_eq!(std::fs::metadata(gone).unwrap_err().kind(), std::io::ErrorKind::NotFound, "{gone}");
                }
            }
            42
        };
        let tidy = |child: Pid| {
            use nix::sys::wait::{Id, WaitPidFlag, waitid};
            waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
            let _ = std::fs::remove_dir_all(base(child));
        };
        let Some(out) = run_watched("a_process_that_stands_alone_does_its_work", label, act, tidy) else { continue };
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(42), "{label}: {err}");
    }
}

#[test]
fn the_work_of_the_network_process_survives() {
    let name = "the_work_of_the_network_process_survives";
    let Some(out) = run(name, "", || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let report = enter();
        for (stage, outcome) in [
            ("root", &report.root),
            ("capabilities", &report.capabilities),
            ("landlock", &report.landlock),
            ("memory", &report.memory),
            ("seccomp", &report.seccomp),
        ] {
            eprintln!("{stage}: {outcome}");
        }
        tokio_work();
        data_plane_work(&listener);
        memory_and_threads();
        42
    }) else {
        return;
    };
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(42), "{err}");
    assert!(err.contains("root: done") && err.contains("capabilities: done") && err.contains("seccomp: done"), "{err}");
    assert!(err.contains("a message of a dying thread"), "{err}");
}

/// What the control plane does: UDP and TCP clients with time-outs on a current-thread runtime, beside a thread.
fn tokio_work() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (one, two) = (local_udp().await, local_udp().await);
        one.send_to(b"query", two.local_addr().unwrap()).await.unwrap();
        let mut buffer = [0; 16];
        let (length, from) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"query"[..], one.local_addr().unwrap()));
        let silence = tokio::time::timeout(Duration::from_millis(5), one.recv_from(&mut buffer)).await;
        assert!(silence.is_err());
        // Refused: nobody listens on a UDP socket's number.
        let refused = tokio::net::TcpStream::connect(two.local_addr().unwrap()).await;
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        let (mut left, mut right) = tokio::net::UnixStream::pair().unwrap();
        left.write_all(b"x").await.unwrap();
        assert_eq!(right.read_u8().await.unwrap(), b'x');
    });
}

async fn local_udp() -> tokio::net::UdpSocket {
    tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// What the data plane does with descriptors that it was given and sockets that it makes.
fn data_plane_work(listener: &TcpListener) {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, sendmsg, setsockopt, socket, sockopt,
    };

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 7)).unwrap();
    let mut events = [EpollEvent::empty(); 4];
    assert_eq!(epoll.wait(&mut events, EpollTimeout::from(1u16)), Ok(0));
    event.write(1).unwrap();
    assert_eq!(epoll.wait(&mut events, EpollTimeout::from(1000u16)), Ok(1));
    assert_eq!(events[0].data(), 7);

    // A connection through a listener of before; both ends reset rather than end.
    let mut to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut from, peer) = listener.accept().unwrap();
    assert_eq!(peer, to.local_addr().unwrap());
    to.set_nonblocking(true).unwrap();
    to.set_nodelay(true).unwrap();
    setsockopt(&to, sockopt::KeepAlive, &true).unwrap();
    setsockopt(&to, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    to.write_all(b"bytes").unwrap();
    let mut buffer = [0; 5];
    from.read_exact(&mut buffer).unwrap();
    to.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(from.read(&mut buffer).unwrap(), 0);
    assert!(to.take_error().unwrap().is_none());

    // UDP with segmentation, and what comes with it.
    let socket_v4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = socket_v4.local_addr().unwrap();
    setsockopt(&socket_v4, sockopt::UdpGroSegment, &true).unwrap();
    setsockopt(&socket_v4, sockopt::Ipv4PacketInfo, &true).unwrap();
    let payload = [std::io::IoSlice::new(&[1; 300])];
    let to = nix::sys::socket::SockaddrStorage::from(address);
    let cut = [ControlMessage::UdpGsoSegments(&100)];
    assert_eq!(sendmsg(socket_v4.as_raw_fd(), &payload, &cut, MsgFlags::empty(), Some(&to)), Ok(300));
    assert!(socket_v4.recv(&mut [0; 1000]).unwrap() >= 100);

    // Ping sockets may be refused by the host's ping_group_range, but the call itself is ours to make.
    for (family, protocol) in [(AddressFamily::Inet, SockProtocol::Icmp), (AddressFamily::Inet6, SockProtocol::IcmpV6)]
    {
        let made = socket(family, SockType::Datagram, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol);
        assert!(matches!(made, Ok(_) | Err(nix::Error::EACCES | nix::Error::EAFNOSUPPORT)), "{made:?}");
    }
    // Descriptors over the attach connection.
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    tapway::api::attach::send(left.as_fd(), &1u32, &[socket_v4.as_raw_fd()]).unwrap();
    let (one, fds): (u32, _) = tapway::api::attach::recv(right.as_fd()).unwrap();
    assert_eq!((one, fds.len()), (1, 1));
}

/// Allocations that map, grow and go; threads, one of which panics and says so with a backtrace.
fn memory_and_threads() {
    let mut big = vec![0u8; 256 << 20];
    big[200 << 20] = 1;
    big.truncate(1 << 20);
    big.shrink_to_fit();
    big.resize(64 << 20, 2);
    drop(big);
    let threads: Vec<_> =
        (0..4).map(|i| std::thread::Builder::new().name(format!("worker {i}")).spawn(move || i).unwrap()).collect();
    assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<i32>(), 6);
    assert!(std::thread::available_parallelism().is_ok());
    let died = std::thread::spawn(|| panic!("a message of a dying thread")).join();
    assert!(died.is_err());
    tracing::warn!("logging goes on");
}

#[test]
fn an_abort_ends_as_an_abort() {
    let Some(out) = run("an_abort_ends_as_an_abort", "", || {
        enter();
        std::process::abort()
    }) else {
        return;
    };
    assert_eq!(out.status.code(), Some(128 + libc::SIGABRT), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn from_outside_the_process_has_nothing_left() {
    let name = "from_outside_the_process_has_nothing_left";
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut there_too = there.try_clone().unwrap();
    let act = || {
        enter();
        there_too.write_all(b"r").unwrap();
        // Stay until looked at.
        let _ = there_too.read(&mut [0]);
        0
    };
    let watch = |child: Pid| {
        here.read_exact(&mut [0]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        let field = |name: &str| {
            let line =
                status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {status}"));
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
        let limits = std::fs::read_to_string(format!("/proc/{child}/limits")).unwrap();
        let core: Vec<_> = limits.lines().find(|line| line.contains("core file")).unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{limits}");
        let files: Vec<_> =
            limits.lines().find(|line| line.contains("open files")).unwrap().split_whitespace().collect();
        assert_eq!(files[3], files[4], "soft and hard descriptor limit");
        if !nix::unistd::getuid().is_root() {
            let mem = std::fs::File::open(format!("/proc/{child}/mem")).unwrap_err();
            assert_eq!(mem.kind(), std::io::ErrorKind::PermissionDenied);
        }
        here.write_all(b"g").unwrap();
    };
    let Some(out) = run_watched(name, "", act, watch) else { return };
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_root_is_empty_and_the_network_the_hosts() {
    let name = "the_root_is_empty_and_the_network_the_hosts";
    let Some(out) = run(name, "", || {
        let ns = |kind: &str| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        let proc = std::fs::File::open("/proc/thread-self/ns").unwrap();
        let before = (ns("net"), ns("mnt"), ns("user"));
        assert_eq!(confine::empty_root(false), Outcome::Done);
        let after = |kind: &str| nix::fcntl::readlinkat(&proc, kind).unwrap();
        assert_eq!(before.0.as_os_str(), after("net"));
        assert_ne!(before.1.as_os_str(), after("mnt"));
        assert_ne!(before.2.as_os_str(), after("user"));
        for path in ["/", "/..", "."] {
            assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "{path}");
        }
        let refused = std::fs::write("/file", "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{refused}");
        0
    }) else {
        return;
    };
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn landlock_alone_refuses_files_that_are_there() {
    let name = "landlock_alone_refuses_files_that_are_there";
    let Some(out) = run(name, "", || {
        std::fs::read("/etc/passwd").unwrap();
        confine::no_new_privileges().unwrap();
        // Kernels without Landlock say so; the file then stays readable.
        let landlock = confine::landlock_nothing();
        let refused = std::fs::read("/etc/passwd").is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        assert_eq!(refused, !matches!(landlock, Outcome::Refused(_)), "{landlock}");
        0
    }) else {
        return;
    };
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn without_namespaces_it_warns_and_goes_on() {
    let name = "without_namespaces_it_warns_and_goes_on";
    let Some(out) = run(name, "", || {
        tapway::telemetry::init(0, tapway::telemetry::LogFormat::Text);
        // A namespace in which no further one may be made: as a nested container or AppArmor would have it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).unwrap();
        std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
        let report = enter();
        assert!(matches!(report.root, Outcome::Refused(_)), "{report:?}");
        assert_eq!(report.seccomp, Outcome::Done);
        FORBIDDEN.iter().find(|(label, ..)| *label == "open for reading").unwrap().2()
    }) else {
        return;
    };
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(libc::EACCES), "{err}");
    assert!(err.contains("tapway: warn: the network process keeps the file system in view"), "{err}");
}

#[test]
fn stages_can_be_left_out() {
    let Some(out) = run("stages_can_be_left_out", "", || {
        let options = Options { root: false, keep_user: false, landlock: false, hide_memory: false, seccomp: false };
        let report = confine::enter(options).unwrap();
        assert_eq!([report.root, report.landlock, report.memory, report.seccomp], [const { Outcome::NotAsked }; 4]);
        i32::from(std::fs::read("/etc/passwd").is_err() || !nix::sys::prctl::get_no_new_privs().unwrap())
    }) else {
        return;
    };
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}
