use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tapway-client-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn server(&self) -> Server {
        Server::at(self.0.join("s")).patience(Duration::from_millis(300))
    }

    /// Serves one connection by `serve`.
    fn serve<T: Send + 'static>(&self, serve: impl FnOnce(UnixStream) -> T + Send + 'static) -> JoinHandle<T> {
        let listener = UnixListener::bind(self.0.join("s")).unwrap();
        std::thread::spawn(move || serve(listener.accept().unwrap().0))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers `reply` to whatever is asked until the client has said all, and returns what that was.
fn once(reply: impl Into<Vec<u8>>) -> impl FnOnce(UnixStream) -> String + Send {
    let reply = reply.into();
    move |mut stream| {
        let mut request = String::new();
        stream.read_to_string(&mut request).unwrap();
        stream.write_all(&reply).unwrap();
        request
    }
}

#[test]
fn one_request_one_reply() {
    let dir = Dir::new();
    let served = dir.serve(once("{\"return\":{\"ports\":[]}}\n"));
    let reply: Value = dir.server().ask("list_ports", json!({})).unwrap();
    assert_eq!(reply, json!({ "ports": [] }));
    assert_eq!(served.join().unwrap(), "{\"arguments\":{},\"execute\":\"list_ports\"}\n");
}

#[test]
fn a_path_may_be_longer_than_an_address() {
    let dir = Dir::new();
    let deep = dir.0.join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let served = dir.serve(once("{\"return\":1}"));
    std::fs::rename(dir.0.join("s"), deep.join("s")).unwrap();
    assert_eq!(Server::at(deep.join("s")).ask::<u32>("x", json!({})).unwrap(), 1);
    served.join().unwrap();
    assert!(Server::at(deep.join("t")).ask::<u32>("x", json!({})).unwrap_err().nobody());
}

#[test]
fn no_value_is_an_answer() {
    let dir = Dir::new();
    dir.serve(once("{\"return\":null}"));
    assert_eq!(dir.server().ask::<Value>("x", json!({})).unwrap(), Value::Null);
}

#[test]
fn refusals_keep_their_code() {
    for (reply, desc, code) in [
        (r#"{"error":{"desc":"port 80 is taken","code":"port_in_use"}}"#, "port 80 is taken", Some("port_in_use")),
        (r#"{"error":{"desc":"bad request: unknown execute"}}"#, "bad request: unknown execute", None),
    ] {
        let dir = Dir::new();
        dir.serve(once(reply));
        let error = dir.server().ask::<Value>("publish", json!({})).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.code()), (desc, code));
        assert!(!error.nobody());
    }
}

#[test]
fn what_is_no_answer_is_not_understood() {
    for reply in ["hello", "{}", "[]", "{\"error\":5}", "{\"return\":{}", "{\"error\":{\"code\":\"x\"}}"] {
        let dir = Dir::new();
        dir.serve(once(reply));
        let error = dir.server().ask::<Value>("get_info", json!({})).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("to get_info is not understood"), "{reply}: {text}");
    }
    // A reply of another shape than the caller's type.
    let dir = Dir::new();
    dir.serve(once("{\"return\":[1]}"));
    assert!(matches!(dir.server().ask::<Hello>("hello", json!({})), Err(ClientError::Foreign { .. })));
}

#[test]
fn what_is_the_matter_with_the_socket_is_said() {
    let dir = Dir::new();
    let ask = || dir.server().ask::<Value>("get_info", json!({})).unwrap_err();
    let path = dir.0.join("s");
    let shown = path.display();
    let error = ask();
    assert!(error.nobody() && error.to_string() == format!("there is no socket {shown}"), "{error}");
    std::fs::write(&path, "").unwrap();
    assert_eq!(ask().to_string(), format!("{shown} is not a socket"));
    std::fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let error = ask();
    assert!(error.nobody() && error.to_string().starts_with(&format!("nobody listens at {shown}: its process")));
    for bad in ["/x/".to_owned() + &"y".repeat(300), format!("/{}", "y".repeat(120)), "a\0b".to_owned()] {
        let error = Server::at(&bad).ask::<Value>("x", json!({})).unwrap_err();
        assert!(matches!(error, ClientError::NoSocket { .. } | ClientError::TooLong { .. }), "{bad}: {error}");
    }
}

#[test]
fn a_socket_of_somebody_else_is_told() {
    if nix::unistd::geteuid().is_root() {
        // Every socket is root's; tests/cli tries it as an ordinary user.
        return;
    }
    let dir = Dir::new();
    let _listener = UnixListener::bind(dir.0.join("s")).unwrap();
    std::fs::set_permissions(dir.0.join("s"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let error = dir.server().ask::<Value>("x", json!({})).unwrap_err();
    assert!(error.to_string().contains("is not this user's but of user"), "{error}");
}

#[test]
fn silence_and_hanging_up_are_told_apart() {
    let dir = Dir::new();
    let (held, hold) = std::sync::mpsc::channel::<()>();
    dir.serve(move |stream| {
        let _ = hold.recv();
        drop(stream);
    });
    let error = dir.server().ask::<Value>("x", json!({})).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    drop(held);

    let dir = Dir::new();
    dir.serve(drop);
    let error = dir.server().ask::<Value>("x", json!({})).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
}

#[test]
fn the_answer_to_half_a_request_is_read() {
    // The server refuses a request before it is whole, and reads no more.
    let dir = Dir::new();
    dir.serve(|mut stream| {
        stream.write_all(b"{\"error\":{\"desc\":\"too large\",\"code\":\"too_large\"}}").unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        // What is left unread would reset the connection, and the answer be lost (net/unix/af_unix.c).
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = dir.server().ask::<Value>("x", json!({ "long": "x".repeat(4 << 20) })).unwrap_err();
    assert_eq!(error.code(), Some("too_large"), "{error}");
}

#[test]
fn a_session_takes_many_requests() {
    let dir = Dir::new();
    let served = dir.serve(|stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut requests = Vec::new();
        for reply in [
            r#"{"return":{"version":"0.1.0","protocol":1,"verbs":["get_info"],"more":true}}"#,
            r#"{"return":1}"#,
            r#"{"error":{"desc":"no","code":"gone"}}"#,
        ] {
            requests.push(lines.next().unwrap().unwrap());
            (&stream).write_all(format!("{reply}\n").as_bytes()).unwrap();
        }
        requests
    });
    let mut session = dir.server().session().unwrap();
    assert_eq!((session.hello().protocol, session.hello().verbs.as_slice()), (1, &["get_info".to_owned()][..]));
    assert_eq!(session.ask::<u32>("get_info", json!({})).unwrap(), 1);
    assert_eq!(session.ask::<u32>("get_info", json!({})).unwrap_err().code(), Some("gone"));
    let requests = served.join().unwrap();
    assert_eq!(requests[0], r#"{"arguments":{"keep_open":true},"execute":"hello"}"#);
    assert!(matches!(session.ask::<u32>("get_info", json!({})), Err(ClientError::Closed { .. })));
}

#[test]
fn events_come_one_by_one() {
    let dir = Dir::new();
    dir.serve(|mut stream| {
        let mut request = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
        assert!(request.contains("[\"dns\"]"), "{request}");
        stream.write_all(b"{\"return\":{}}\n{\"event\":\"dns\"}\n{\"event\":").unwrap();
        std::thread::sleep(Duration::from_millis(400));
        stream.write_all(b"\"lost\"}\n{\"half").unwrap();
    });
    let mut events = dir.server().subscribe(&["dns".to_owned()]).unwrap();
    assert_eq!(events.wait().unwrap().unwrap(), b"{\"event\":\"dns\"}\n");
    // Longer than the time-out of a reply.
    assert_eq!(events.wait().unwrap().unwrap(), b"{\"event\":\"lost\"}\n");
    assert_eq!(events.wait().unwrap(), None);
}

#[test]
fn a_refused_subscription_is_an_error() {
    let dir = Dir::new();
    dir.serve(|mut stream| {
        stream.write_all(b"{\"error\":{\"desc\":\"no event 'x'\",\"code\":\"bad_argument\"}}\n").unwrap();
        let _ = stream.read(&mut [0; 1000]);
    });
    let error = dir.server().subscribe(&["x".to_owned()]).err().unwrap();
    assert_eq!(error.code(), Some("bad_argument"));
}

#[test]
fn an_open_file_travels_beside() {
    let dir = Dir::new();
    let file = std::fs::File::create(dir.0.join("f")).unwrap();
    let served = dir.serve(|stream| {
        let mut text = [0; 1000];
        let mut control = nix::cmsg_space!([i32; 2]);
        let mut iov = [io::IoSliceMut::new(&mut text)];
        let message = nix::sys::socket::recvmsg::<()>(
            stream.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        for part in message.cmsgs().unwrap() {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = part {
                let file = std::fs::File::from(crate::sys::fd::adopt(fds[0]));
                (&file).write_all(b"written").unwrap();
            }
        }
        (&stream).write_all(b"{\"return\":{\"id\":1}}\n").unwrap();
    });
    let reply: Value = dir.server().ask_with("start_capture", json!({}), Some(file.as_fd())).unwrap();
    assert_eq!(reply["id"], 1);
    served.join().unwrap();
    assert_eq!(std::fs::read(dir.0.join("f")).unwrap(), b"written");
}

#[test]
fn a_reply_without_end_is_not_read_for_ever() {
    let dir = Dir::new();
    dir.serve(|mut stream| while stream.write_all(&[b' '; 8192]).is_ok() {});
    let error = dir.server().patience(Duration::from_secs(20)).ask::<Value>("x", json!({})).unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
}
