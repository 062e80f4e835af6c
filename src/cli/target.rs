//! Whom a command is about: a name, an id, a process or a socket becomes somebody who can be asked.
//!
//! | typed | means |
//! |---|---|
//! | a text with a `/` | a control socket: a sandbox's, or the `--api-socket` of slirp4netns mode |
//! | a name | the running sandbox of that name |
//! | an id, or a beginning of only one | the running sandbox of that id |
//! | a number | the sandbox whose monitor has this process id, or in whose network that process is, or whose child it is |
//!
//! In this order, but that a number which means two different sandboxes as a process and as the beginning of an id is
//! refused. A process is looked for by its network namespace, which those of the monitor's children are compared with,
//! and else by its parents.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::client::{ClientError, Server};
use crate::api::verbs::life::Namespaces;
use crate::sandbox::state::{self, Sandbox};

use super::{FAILURE, Failure, USAGE};

/// Parents that are climbed at most.
const GENERATIONS: usize = 256;

/// How long a sandbox that is starting is waited for.
const STARTING: Duration = Duration::from_secs(5);

/// Somebody who can be asked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its socket.
    pub server: Server,
    /// Its state file, where it has one.
    pub sandbox: Option<Sandbox>,
    typed: String,
}

/// Finds whom `typed` means.
pub fn find(typed: &str) -> Result<Target, Failure> {
    let target = |server, sandbox| Target { server, sandbox, typed: typed.to_owned() };
    if typed.contains('/') {
        return Ok(target(Server::at(typed), None));
    }
    let dir = runtime_dir()?;
    let running = state::running(&dir);
    let found = select(typed, &running, Path::new("/proc")).map_err(|line| Failure { code: FAILURE, line })?;
    Ok(target(Server::at(state::socket(&dir, &found.id)), Some(found.clone())))
}

/// The words that a process was started with; none where /proc does not tell.
pub fn words_of(pid: i32) -> Vec<Vec<u8>> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

/// Where sandboxes are registered.
pub fn runtime_dir() -> Result<PathBuf, Failure> {
    state::runtime_dir(std::env::var_os("XDG_RUNTIME_DIR")).map_err(|error| Failure::runtime(&error))
}

/// The running sandbox of this name or id, in Docker's words where there is none.
pub fn container(typed: &str) -> Result<Target, Failure> {
    let dir = runtime_dir()?;
    match state::find(&dir, typed) {
        Ok(sandbox) => Ok(Target::of(&dir, &sandbox)),
        Err(_) => Err(Failure { code: FAILURE, line: format!("No such container: {typed}") }),
    }
}

impl Target {
    /// The sandbox of this state file.
    pub fn of(dir: &Path, sandbox: &Sandbox) -> Self {
        let server = Server::at(state::socket(dir, &sandbox.id));
        Self { server, sandbox: Some(sandbox.clone()), typed: sandbox.name.clone() }
    }

    /// Its namespaces and, last, its first process.
    pub fn namespaces(&self) -> Result<(Namespaces, Vec<OwnedFd>), Failure> {
        const VERB: &str = "get_namespaces";
        let deadline = Instant::now() + STARTING;
        loop {
            let (namespaces, fds): (Namespaces, Vec<OwnedFd>) = match self.server.ask_for_descriptors(VERB, json!({})) {
                Err(error) if error.code() == Some("busy") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                result => result.map_err(|error| self.failure(VERB, &error))?,
            };
            if fds.len() == namespaces.namespaces.len() + 1 {
                return Ok((namespaces, fds));
            }
            let line = format!("sandbox {} did not hand out all of its namespaces", self.name());
            return Err(Failure { code: FAILURE, line });
        }
    }

    /// A short name for headings.
    pub fn name(&self) -> &str {
        self.sandbox.as_ref().map_or(&self.typed, |sandbox| &sandbox.name)
    }

    /// The same, asked about this one of its networks.
    #[must_use]
    pub fn on(self, network: Option<&String>) -> Self {
        Self { server: self.server.on(network), ..self }
    }

    /// What `error` means for whoever typed the command.
    pub fn failure(&self, verb: &str, error: &ClientError) -> Failure {
        let unknown = match error {
            // slirp4netns, which has no codes.
            ClientError::Refused { desc, code: None } => desc == "bad request: unknown execute",
            error => error.code() == Some("unknown_verb"),
        };
        if unknown {
            let line = format!("{} does not know {verb}: what serves it is older, or slirp4netns", self.typed);
            return Failure { code: FAILURE, line };
        }
        match error.code() {
            Some("bad_argument" | "unknown_field") => Failure { code: USAGE, ..Failure::runtime(error) },
            Some("gone") => Failure {
                code: FAILURE,
                line: format!("{error}; the sandbox's network process was being replaced, try again"),
            },
            _ if error.nobody() && self.sandbox.is_some() => {
                Failure { code: FAILURE, line: format!("sandbox {} has no control socket: {error}", self.name()) }
            }
            _ => Failure::runtime(error),
        }
    }

    /// Asks one thing.
    pub fn ask<T: serde::de::DeserializeOwned>(
        &self,
        verb: &str,
        arguments: impl serde::Serialize,
    ) -> Result<T, Failure> {
        self.server.ask(verb, arguments).map_err(|error| self.failure(verb, &error))
    }
}

fn select<'a>(typed: &str, running: &'a [Sandbox], proc: &Path) -> Result<&'a Sandbox, String> {
    let exact = |s: &&Sandbox| s.name == typed || s.id == typed;
    if let Some(found) = running.iter().find(|s| s.name == typed).or_else(|| running.iter().find(exact)) {
        return Ok(found);
    }
    let by_id: Vec<&Sandbox> = running.iter().filter(|s| !typed.is_empty() && s.id.starts_with(typed)).collect();
    let digits = !typed.is_empty() && typed.bytes().all(|b| b.is_ascii_digit());
    let pid: Option<u32> = if digits { typed.parse().ok().filter(|&pid| pid != 0) } else { None };
    let by_pid = pid.and_then(|pid| by_process(pid, running, proc));
    match (by_pid, by_id.as_slice()) {
        (Some(process), [id, ..]) if process.id != id.id => Err(format!(
            "'{typed}' is a process of sandbox {} and the beginning of the id {}; write a name or a whole id",
            process.name, id.id
        )),
        (Some(process), _) => Ok(process),
        (None, [only]) => Ok(only),
        (None, []) => {
            let what = match pid {
                Some(pid) if proc.join(pid.to_string()).exists() => {
                    format!("process {pid} is in no running sandbox, and none is named so")
                }
                Some(pid) => format!("there is no process {pid}, and no running sandbox named so"),
                None => format!("there is no running sandbox '{typed}'"),
            };
            Err(format!("{what}; {}", those_that_run(running)))
        }
        (None, several) => {
            let ids: Vec<String> = several.iter().map(|s| format!("{} ({})", s.id, s.name)).collect();
            Err(format!("'{typed}' is the beginning of several ids: {}", ids.join(", ")))
        }
    }
}

/// Most names that an error lists.
const LISTED: usize = 20;

fn those_that_run(running: &[Sandbox]) -> String {
    if running.is_empty() {
        return "none is running".to_owned();
    }
    let mut names: Vec<&str> = running.iter().take(LISTED).map(|s| s.name.as_str()).collect();
    if running.len() > LISTED {
        names.push("…");
    }
    format!("running: {}", names.join(", "))
}

/// The sandbox that has to do with the process `pid`.
fn by_process<'a>(pid: u32, running: &'a [Sandbox], proc: &Path) -> Option<&'a Sandbox> {
    if let Some(monitor) = running.iter().find(|s| s.pid == pid) {
        return Some(monitor);
    }
    let process = Process { proc };
    let namespace = process.network(pid);
    let in_network = |s: &&Sandbox| {
        let outside = process.network(s.pid);
        // Of what was attached nothing is the monitor's child.
        let attached = s.about.init.filter(|_| s.about.attached.is_some());
        let mut children = process.children(s.pid).into_iter().chain(attached).map(|child| process.network(child));
        namespace.is_some() && namespace != outside && children.any(|network| network == namespace)
    };
    if let Some(found) = running.iter().find(in_network) {
        return Some(found);
    }
    let mut next = process.parent(pid);
    for _ in 0..GENERATIONS {
        let parent = next.filter(|&parent| parent > 1)?;
        if let Some(monitor) = running.iter().find(|s| s.pid == parent) {
            return Some(monitor);
        }
        next = process.parent(parent);
    }
    None
}

/// What proc(5) says of processes. None where it says nothing, or nothing to us.
struct Process<'a> {
    proc: &'a Path,
}

impl Process<'_> {
    fn file(&self, pid: u32, name: &str) -> PathBuf {
        self.proc.join(pid.to_string()).join(name)
    }

    fn network(&self, pid: u32) -> Option<PathBuf> {
        std::fs::read_link(self.file(pid, "ns/net")).ok()
    }

    fn children(&self, pid: u32) -> Vec<u32> {
        let Ok(tasks) = std::fs::read_dir(self.file(pid, "task")) else { return Vec::new() };
        let lists = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        // "PID (NAME) STATE PARENT …", where the name may have anything in it.
        let stat = std::fs::read(self.file(pid, "stat")).ok()?;
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
        rest.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A tree like /proc.
    struct Proc(PathBuf);

    impl Proc {
        fn new(tag: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tapway-target-{}-{tag}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn add(&self, pid: u32, parent: u32, network: Option<&str>, children: &str) -> &Self {
            let dir = self.0.join(pid.to_string());
            fs::create_dir_all(dir.join(format!("task/{pid}"))).unwrap();
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::write(dir.join("stat"), format!("{pid} (a) b (c) S {parent} 1 1\n")).unwrap();
            fs::write(dir.join(format!("task/{pid}/children")), children).unwrap();
            if let Some(network) = network {
                symlink(format!("net:[{network}]"), dir.join("ns/net")).unwrap();
            }
            self
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sandbox(name: &str, id: &str, pid: u32) -> Sandbox {
        Sandbox { id: id.to_owned(), name: name.to_owned(), pid, ports: Vec::new(), about: state::About::default() }
    }

    fn running() -> Vec<Sandbox> {
        vec![
            sandbox("db", "0123456789ab", 100),
            sandbox("web", "0199456789ab", 200),
            sandbox("77", "aa0000000000", 300),
        ]
    }

    /// 100 and 200 are monitors with a network process (…1) and an init (…2).
    fn proc(tag: &str) -> Proc {
        let proc = Proc::new(tag);
        proc.add(100, 50, Some("1"), "101 102 ")
            .add(101, 100, Some("1"), "")
            .add(102, 100, Some("5"), "103")
            .add(103, 102, Some("5"), "")
            .add(200, 50, Some("1"), "201 202 ")
            .add(201, 200, Some("1"), "")
            .add(202, 200, Some("6"), "")
            .add(204, 202, Some("7"), "")
            .add(300, 50, None, "")
            .add(50, 1, Some("1"), "100 200 300")
            .add(900, 50, Some("6"), "")
            .add(901, 901, Some("9"), "");
        proc
    }

    #[test]
    fn by_name_id_and_beginning_of_an_id() {
        let (running, proc) = (running(), Proc::new("id"));
        for (typed, name) in [("web", "web"), ("0123456789ab", "db"), ("019", "web"), ("aa", "77"), ("77", "77")] {
            assert_eq!(select(typed, &running, &proc.0).map(|s| s.name.as_str()), Ok(name), "{typed}");
        }
        let error = select("01", &running, &proc.0).unwrap_err();
        assert_eq!(error, "'01' is the beginning of several ids: 0123456789ab (db), 0199456789ab (web)");
        for typed in ["", "x", "webs", "0123456789abc"] {
            let error = select(typed, &running, &proc.0).unwrap_err();
            assert_eq!(error, format!("there is no running sandbox '{typed}'; running: db, web, 77"));
        }
        assert_eq!(select("x", &[], &proc.0).unwrap_err(), "there is no running sandbox 'x'; none is running");
    }

    #[test]
    fn by_process() {
        let (running, proc) = (running(), proc("process"));
        for (typed, name) in [
            ("100", "db"),
            ("101", "db"),
            ("102", "db"),
            ("103", "db"),
            ("204", "web"),
            // Somebody else's child that entered the network.
            ("900", "web"),
            ("300", "77"),
        ] {
            assert_eq!(select(typed, &running, &proc.0).map(|s| s.name.as_str()), Ok(name), "{typed}");
        }
        let error = select("50", &running, &proc.0).unwrap_err();
        assert!(error.starts_with("process 50 is in no running sandbox, and none is named so; running: db"), "{error}");
        assert!(select("901", &running, &proc.0).is_err());
        let mut running = running.clone();
        (running[0].about.init, running[0].about.attached) = (Some(901), Some("901".to_owned()));
        proc.add(902, 50, Some("9"), "");
        for typed in ["901", "902"] {
            assert_eq!(select(typed, &running, &proc.0).map(|s| s.name.as_str()), Ok("db"), "{typed}");
        }
        let error = select("903", &running, &proc.0).unwrap_err();
        assert!(error.starts_with("there is no process 903, and no running sandbox named so"), "{error}");
        assert!(select("4294967296", &running, &proc.0).unwrap_err().starts_with("there is no running sandbox"));
    }

    #[test]
    fn a_number_that_means_two_is_refused() {
        let running = [sandbox("db", "100456789abc", 900), sandbox("web", "0199456789ab", 100)];
        let proc = Proc::new("two");
        let error = select("100", &running, &proc.0).unwrap_err();
        assert_eq!(
            error,
            "'100' is a process of sandbox web and the beginning of the id 100456789abc; write a name or a whole id"
        );
        assert_eq!(select("1004", &running, &proc.0).unwrap().name, "db");
    }

    #[test]
    fn many_names_are_not_all_listed() {
        let many: Vec<Sandbox> = (0..30).map(|n| sandbox(&format!("s{n}"), "0", n)).collect();
        let text = those_that_run(&many);
        assert!(text.ends_with("s18, s19, …") && !text.contains("s20"), "{text}");
    }

    #[test]
    fn what_an_error_means() {
        let target = Target { server: Server::at("/s"), sandbox: None, typed: "/s".to_owned() };
        let refused = |desc: &str, code: Option<&str>| {
            let error = ClientError::Refused { desc: desc.to_owned(), code: code.map(str::to_owned) };
            target.failure("get_info", &error)
        };
        let old = "/s does not know get_info: what serves it is older, or slirp4netns";
        assert_eq!(refused("no verb", Some("unknown_verb")), Failure { code: FAILURE, line: old.to_owned() });
        assert_eq!(refused("bad request: unknown execute", None).line, old);
        assert_eq!(refused("bad spec", Some("bad_argument")), Failure::usage("bad spec"));
        assert_eq!(refused("taken", Some("port_in_use")), Failure { code: FAILURE, line: "taken".to_owned() });
    }
}
