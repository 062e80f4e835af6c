//! A server with a registry of forwards and a stand-in for the data plane, which holds the sockets and serves nobody.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tapway::api::server::{Limits, bind_legacy, serve};
use tapway::host::resolver::{self, Resolver};
use tapway::network::config::Listener;
use tapway::runtime::answers::Answers;
use tapway::runtime::api::Desk;
use tapway::runtime::command::{Command, DataPlane, Order};
use tapway::runtime::forwards::{Forwards, Guest};
use tapway::runtime::own_names::OwnNames;

/// A server on a socket of its own.
pub struct Served {
    pub path: PathBuf,
    /// What the data plane serves, by number.
    pub listeners: Arc<Mutex<Vec<(usize, Listener)>>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A path that no other test has.
pub fn fresh_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tapway-api-{}-{n}.sock", std::process::id()))
}

impl Served {
    /// Starts one; its threads end with the test's process.
    pub fn start(limits: Limits, max_forwards: usize) -> Self {
        let path = fresh_path();
        let listener = bind_legacy(path.as_os_str()).unwrap();
        let listeners = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&listeners);
        // Ports told at attach have the numbers before.
        let (plane, mut commands) = DataPlane::new(Arc::new(EventFd::new().unwrap()), 7);
        thread::spawn(move || {
            let mut sockets = Vec::new();
            let mut seen = BTreeSet::new();
            while let Some(command) = commands.blocking_recv() {
                let Order::Endpoint(_, command) = command else { panic!("only commands are asked for") };
                match command {
                    Command::Listen { number, listener, fd, done } => {
                        assert!(number >= 7 && seen.insert(number), "the number {number} was given twice");
                        sockets.push((number, fd));
                        told.lock().unwrap().push((number, listener));
                        done.send(Ok(())).unwrap();
                    }
                    Command::Unlisten { number, done } => {
                        let known = sockets.len();
                        sockets.retain(|(n, _)| *n != number);
                        told.lock().unwrap().retain(|(n, _)| *n != number);
                        done.send(sockets.len() < known).unwrap();
                    }
                    other => panic!("no forward asks for {other:?}"),
                }
            }
        });
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let guest = Guest { recommended: [10, 0, 2, 100].into(), dhcp: [10, 0, 2, 15].into(), v6: true };
            let resolver = Arc::new(Resolver::new(resolver::Limits::default()));
            let names = Rc::new(OwnNames::new(resolver, plane.hub().clone(), Vec::new(), None));
            let handler =
                Desk::new(Forwards::new(plane.clone(), guest, max_forwards), names, Answers::new(plane, None));
            let error = tokio::task::LocalSet::new().block_on(&runtime, serve(listener, handler, limits));
            panic!("the server ended: {error}");
        });
        Self { path, listeners }
    }

    pub fn connect(&self) -> UnixStream {
        connect(&self.path)
    }

    /// One request, one reply.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> String {
        String::from_utf8(ask(&self.path, request.as_ref()).unwrap()).unwrap()
    }
}

pub fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends, says that it was all, and reads to the end.
pub fn ask(path: &std::path::Path, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(path);
    stream.write_all(request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply)
}
