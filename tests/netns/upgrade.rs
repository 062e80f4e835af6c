//! A network process of another tapway takes over from the one that runs.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::named::{create, json, member, processes};
use crate::spaces::wait_for;
use crate::tools::{at, connect, echo_tcp};
use crate::world::{HOST4, World};

/// How long the next process may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A sandbox with a process of its own, whose monitor was started from a file that is replaced since.
#[test]
fn a_sandbox_is_upgraded_to_what_is_installed() {
    World::run(|w| {
        let installed = w.path("installed-tapway");
        let path = installed.to_str().unwrap();
        let install = |write: &dyn Fn(&str)| {
            let new = format!("{path}.new");
            write(&new);
            std::fs::rename(new, path).unwrap();
        };
        let copy = |new: &str| _ = std::fs::copy(&w.tapway, new).unwrap();
        let go = |args: &[&str]| w.host.cmd(&[&[path], args].concat()).unprivileged();
        install(&copy);
        let args = [
            "run",
            "-d",
            "--network",
            "private",
            "--name",
            "one",
            "-p",
            "8080:80",
            "--",
            "busybox",
            "nc",
            "-ll",
            "-p",
            "80",
        ];
        go(&[&args[..], &["-e", "busybox", "cat"]].concat()).ok();
        let info = || json(w, &["info", "one", "--json"]);
        let words = || std::fs::read_to_string(format!("/proc/{}/cmdline", info()["network_pid"])).unwrap();
        wait_for("the server", PATIENCE, || connect(&w.internet, at(HOST4, 8080)).is_ok_and(answers));
        // The same file: forked, as ever.
        let told: serde_json::Value = serde_json::from_str(&go(&["upgrade", "one", "--json"]).ok()).unwrap();
        assert_eq!(told["upgraded"], true, "{told}");
        assert!(!words().contains("__endpoint"), "{}", words());
        // Another, while a client connects again and again.
        install(&copy);
        let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut ended = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Nobody is refused; a connection may be of the old process, and end with it.
                    let answered = match connect(&w.internet, at(HOST4, 8080)) {
                        Ok(stream) => answers(stream),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
                        Err(error) => panic!("a connection: {error}"),
                    };
                    if answered {
                        done.fetch_add(1, Ordering::Relaxed);
                    } else {
                        ended += 1;
                    }
                }
                ended
            });
            thread::sleep(Duration::from_millis(200));
            let told: serde_json::Value = serde_json::from_str(&go(&["upgrade", "one", "--json"]).ok()).unwrap();
            assert_eq!((&told["upgraded"], &told["sandbox"]), (&true.into(), &"one".into()), "{told}");
            assert!(words().starts_with("tapway\0__endpoint\0"), "{}", words());
            let before = done.load(Ordering::Relaxed);
            wait_for("answers of the new process", PATIENCE, || done.load(Ordering::Relaxed) > before + 3);
            stop.store(true, Ordering::Relaxed);
            let ended = client.join().unwrap();
            assert!(ended <= 2, "{ended} connections were reset");
        });
        let confined = &info()["confinement"];
        assert!(["seccomp", "landlock"].iter().all(|part| confined[part] == "done"), "{confined}");
        // Deaths are held against a sandbox within ten seconds.
        thread::sleep(Duration::from_secs(11));
        // A program that does not come to serve: what the monitor runs goes on, and that is said.
        install(&|new| {
            std::fs::write(new, "#!/bin/sh\nexit 3\n").unwrap();
            std::fs::set_permissions(new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        });
        let told = w.tapway(&["upgrade", "one"]).ok();
        assert!(told.contains("went on with its own program"), "{told}");
        assert!(!words().contains("__endpoint"), "{}", words());
        assert!(answers(connect(&w.internet, at(HOST4, 8080)).unwrap()));
        let log = w.tapway(&["logs", "one"]).end();
        assert!((log.stdout + &log.stderr).contains("does not come to serve"), "not in the log");
        // One of a shared network has no process of its own.
        create(w, &["web"]);
        w.tapway(&["run", "-d", "--network", "web", "--name", "two", "--", "sleep", "1000"]).ok();
        let refused = w.tapway(&["upgrade", "two"]).end();
        assert!(refused.code == 1 && refused.stderr.contains("tapway network upgrade"), "{}", refused.stderr);
        w.tapway(&["rm", "-f", "one", "two"]).ok();
    });
}

/// Whether a byte comes back.
fn answers(mut stream: TcpStream) -> bool {
    stream.write_all(b"x").is_ok() && stream.read(&mut [0]).is_ok_and(|n| n == 1)
}

#[test]
fn an_upgrade_refuses_nobody() {
    World::run(|w| {
        create(w, &["web"]);
        assert!(w.tapway(&["network", "upgrade", "web"]).ok().contains("no process"));
        let one = member(w, "web", "one", &["-p", "8080:7301"]);
        let two = member(w, "web", "two", &[]);
        echo_tcp(&one.ns, at([0; 4], 7301));
        let stop = AtomicBool::new(false);
        let old = processes();
        let (answered, reset) = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let (mut answered, mut reset) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    // Nobody is refused, and nobody waits for ever.
                    let answer = connect(&w.internet, at(HOST4, 8080)).and_then(|mut stream| {
                        stream.write_all(b"x")?;
                        stream.read(&mut [0])
                    });
                    match answer {
                        Ok(1) => answered += 1,
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => reset += 1,
                        other => panic!("{other:?}"),
                    }
                }
                (answered, reset)
            });
            // As often as you like: that is nobody's death.
            for _ in 0..5 {
                thread::sleep(Duration::from_millis(200));
                let told = json(w, &["network", "upgrade", "web", "--json"]);
                assert_eq!((&told["upgraded"], &told["members"]), (&true.into(), &2.into()), "{told}");
            }
            thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap()
        });
        eprintln!("upgrades: {answered} answered, {reset} reset");
        assert!(answered > 20 && reset <= 10, "{answered} answered, {reset} reset");
        assert!(processes().len() == 1 && processes() != old);
        assert_eq!(crate::named::dig(&two, "one"), ["172.18.0.2"]);
        two.sh("ping -c1 -W2 one");
    });
}

/// A process of a version that knows nothing of faults, nor of this monitor's words.
#[test]
fn an_older_process_is_said_to_be_one() {
    World::run(|w| {
        use tapway::api::attach::{self, FromNetwork};
        create(w, &["web"]);
        w.tapway_run_on::<&str>("web", &[], &["true"]).ok();
        crate::world::wait_for("the process to leave", Duration::from_secs(10), || processes().is_empty());
        let path = w.host.sh("echo /mnt/run/tapway/networks/*/attach");
        let path = path.trim();
        std::fs::remove_file(path).unwrap();
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(8).unwrap();
        thread::spawn(move || {
            while let Ok((conn, _)) = listener.accept() {
                let mut bytes = vec![std::mem::MaybeUninit::uninit(); 65_536];
                let _ = conn.recv(&mut bytes);
                let desc = "attach connection: the monitor is newer than this network process".to_owned();
                let _ = attach::send(&conn, &FromNetwork::Failed { desc, aside: false }, &[]);
            }
        });
        let ended = w.tapway_run_on::<&str>("web", &[], &["true"]).end();
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("newer than this network process"), "{}", ended.stderr);
    });
}
