//! docs/control-socket.md against a real sandbox: every request of its own socket (`>>`) is sent, and what comes has the
//! shape of the reply (`<<`); the script at its end is run as it stands.

use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::{Value, json};
use tapway::api::client::Server;

use crate::stage::{Ended, Running, Stage, is_root};

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/control-socket.md")).unwrap()
}

/// A sandbox that waits, and its socket.
fn sandbox(stage: &Stage) -> (Running, PathBuf) {
    let mut running = stage.start(&["--name", "site", "sh", "-c", "hostname; sleep 60"]);
    let id = running.line();
    let socket = stage.dir().join("tapway/sandboxes").join(format!("{id}.sock"));
    (running, socket)
}

/// Same keys, same types; a list's first entry stands for all; a word that is no sentence is the same.
fn alike(told: &Value, real: &Value, key: &str) -> bool {
    match (told, real) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|real| alike(value, real, key)))
        }
        (Value::Array(a), Value::Array(b)) => match (a.first(), b.first()) {
            (Some(a), Some(b)) => alike(a, b, key),
            // What depends on this host may be more than in the document.
            (None, _) => key == "in_use" || b.is_empty(),
            (Some(_), None) => false,
        },
        (Value::String(a), Value::String(b)) => {
            !["code", "type", "state", "proto", "name", "value", "source"].contains(&key) || a == b
        }
        (Value::Number(_), Value::Number(_)) | (Value::Bool(_), Value::Bool(_)) | (Value::Null, Value::Null) => true,
        _ => false,
    }
}

#[test]
fn its_examples_are_true() {
    let stage = Stage::new();
    let (_running, socket) = sandbox(&stage);
    let server = Server::at(&socket);
    // What is about networks is asked of one that is on some.
    for network in ["web", "db"] {
        stage.run(&["network", "create", network]).ok();
    }
    let mut app = stage.start(&["--network", "web", "--name", "app", "sh", "-c", "hostname; sleep 60"]);
    let member = Server::at(stage.dir().join("tapway/sandboxes").join(format!("{}.sock", app.line())));
    // Ports that others on this machine may have.
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let text = document().replace("18080", &free()).replace("18081", &free()).replace("18053", &free());
    let file = std::fs::File::create(stage.dir().join("capture")).unwrap();
    let (mut request, mut replayed) = (None, 0);
    for line in text.lines() {
        if let Some(asked) = line.strip_prefix(">> ") {
            assert!(request.replace(asked).is_none(), "no reply above {line}");
        } else if let Some(told) = line.strip_prefix("<< ") {
            let asked = request.take().unwrap_or_else(|| panic!("no request above {line}"));
            let told: Value = serde_json::from_str(told).unwrap_or_else(|error| panic!("{line}: {error}"));
            let about_networks = asked.contains("_network\"") || asked.contains("\"network\"");
            let real = ask(&stage, if about_networks { &member } else { &server }, asked, &file);
            assert!(alike(&told, &real, ""), "{asked}\ntold {told}\nreal {real}");
            replayed += 1;
        }
    }
    assert!(replayed > 15 && request.is_none(), "{replayed}");
}

/// The server serves its own user only: where we are root, an ordinary user asks through tapway.
fn ask(stage: &Stage, server: &Server, asked: &str, file: &std::fs::File) -> Value {
    let request: Value = serde_json::from_str(asked).unwrap_or_else(|error| panic!("{asked}: {error}"));
    if request["execute"] == "start_capture" {
        let arguments = request["arguments"].clone();
        return if is_root() {
            start_capture_as_user(stage, server, &arguments)
        } else {
            let reply: Value = server.ask_with("start_capture", arguments, Some(file.as_fd())).unwrap();
            json!({ "return": reply })
        };
    }
    let ended = stage.run(&["ctl", server.path().to_str().unwrap(), asked]);
    assert_eq!(ended.stderr, "", "{asked}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{asked}: {error}: {ended:?}"))
}

/// By a script that can send a descriptor.
fn start_capture_as_user(stage: &Stage, server: &Server, arguments: &Value) -> Value {
    let script = "import array, socket, sys, os\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
        fd = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT, 0o600)\n\
        s.sendmsg([sys.argv[2].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\n\
        print(s.recv(65536).decode())";
    let request = json!({ "execute": "start_capture", "arguments": arguments }).to_string();
    let mut command = stage.as_user("python3");
    let file = stage.dir().join("capture-of-user");
    command.args(["-c", script]).arg(server.path()).arg(request).arg(file);
    let ended = Ended::of(&mut command);
    serde_json::from_str(ended.ok()).unwrap()
}

#[test]
fn its_script_runs() {
    let stage = Stage::new();
    let (_running, socket) = sandbox(&stage);
    let text = document();
    let script = text.split("## In a script").nth(1).unwrap().split("```sh\n").nth(1).unwrap();
    let script = script.split("```").next().unwrap();
    let mut command = stage.as_user("sh");
    command.args(["-euc", script]).env("SOCKET", &socket);
    Ended::of(&mut command).ok();
}

#[test]
fn commands_are_understood_by_a_real_sandbox() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage);
    let published = stage.run(&["publish", "site", "127.0.0.1::80", "--json"]);
    let published: Value = serde_json::from_str(published.ok()).unwrap();
    let (id, port) = (&published["ports"][0]["id"], &published["ports"][0]["host_port"]);
    assert_eq!(stage.run(&["port", "site"]).ok(), format!("80/tcp -> 127.0.0.1:{port}\n"));
    assert!(stage.run(&["port", "site", "--stats"]).ok().contains(":80/tcp"));
    let taken = stage.run(&["publish", "site", &format!("127.0.0.1:{port}:81")]);
    assert!(taken.code == 1 && taken.stderr.contains("in use"), "{taken:?}");
    let bad = stage.run(&["publish", "site", "eighty"]);
    assert!(bad.code == 2 && bad.stderr.contains("eighty"), "{bad:?}");
    assert!(stage.run(&["unpublish", "site", "--id", &id.to_string()]).ok().starts_with("80/tcp -> 127.0.0.1:"));
    assert_eq!(stage.run(&["port", "site"]).ok(), "");
    stage.run(&["dns", "site", "add", "*.dev.example", "A", "10.0.2.100"]).ok();
    assert!(stage.run(&["dns", "site"]).ok().contains("*.dev.example   60  A     10.0.2.100\n"));
    let set = stage.run(&["dns", "site", "set", "--server", "192.0.2.53", "--zone", "corp.example=10.9.9.9"]);
    assert!(set.ok().contains("servers  192.0.2.53\n") && set.ok().contains("zone     corp.example = 10.9.9.9\n"));
    stage.run(&["dns", "site", "rm", "*.dev.example"]).ok();
    stage.run(&["hosts", "site", "add", "db", "192.0.2.7"]).ok();
    assert!(stage.run(&["hosts", "site"]).ok().contains("db    192.0.2.7  socket\n"));
    stage.run(&["hosts", "site", "rm", "db"]).ok();
    assert_eq!(stage.run(&["hosts", "site", "rm", "db"]).code, 1);
    assert!(stage.run(&["info", "site"]).ok().contains("10.0.2.100"));
    assert!(stage.run(&["flows", "site"]).ok().starts_with("ID  PROTO"));
    assert!(stage.run(&["stats", "site", "--all"]).ok().contains("frames_from_guest"));
    assert!(stage.run(&["stats", "site", "--metrics"]).ok().ends_with("# EOF\n"));
    assert!(stage.run(&["top", "site", "--once", "--interval", "0.1"]).ok().starts_with("tapway top: site"));
    let unknown = stage.run(&["events", "site", "nonsense"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("nonsense"), "{unknown:?}");
}

#[test]
fn events_and_captures_of_a_real_sandbox() {
    let stage = Stage::new();
    let (_running, _) = sandbox(&stage);
    let mut events = stage.tapway(&["events", "site", "port_bound", "-n", "1", "--json"]).spawn().unwrap();
    let file = stage.dir().join("x.pcapng");
    let capture = stage.tapway(&["capture", "site", file.to_str().unwrap()]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let published = stage.run(&["publish", "site", "127.0.0.1::80"]);
    let host = published.ok().split("-> ").nth(1).unwrap().trim();
    // A connection crosses the TAP, though nobody listens inside.
    let _ = std::net::TcpStream::connect(host);
    let status = events.wait().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut events.stdout.take().unwrap(), &mut told).unwrap();
    assert!(status.success() && told.contains("\"port_bound\""), "{told}");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let pid = nix::unistd::Pid::from_raw(capture.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = capture.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains(" packets, ") && !told.contains(" 0 packets"), "{told}");
    // A section header block of pcapng.
    assert_eq!(std::fs::read(&file).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
}
