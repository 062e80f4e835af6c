//! Definitions as files.

use super::*;
use crate::network::creation::assemble;
use crate::network::timestamp::Timestamp;
use std::os::unix::fs::PermissionsExt as _;

pub(crate) struct Temp(pub PathBuf);

impl Temp {
    pub(crate) fn new(tag: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tapway-networks-{}-{tag}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(Some(&self.0))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join("networks").join(format!("{name}.json"))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn make(store: &Store, name: &str) -> Result<Network, StoreError> {
    make_in(store, name, &[])
}

pub(crate) fn make_in(store: &Store, name: &str, subnets: &[&str]) -> Result<Network, StoreError> {
    let texts: Vec<String> = subnets.iter().map(|&text| text.to_owned()).collect();
    let subnets = assemble(&texts, &[], &[], &[]).unwrap();
    let mut id = [0; 32];
    crate::sys::random::fill(&mut id).unwrap();
    let fresh = Fresh { id, ula: [1; 7], now: Timestamp::default() };
    store.create(Request { name: name.to_owned(), subnets, ..Request::default() }, &[], fresh)
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().networks.into_iter().map(|network| network.name).collect()
}

#[test]
fn made_found_and_removed() {
    let temp = Temp::new("made");
    let store = temp.store();
    assert_eq!(names(&store), ["bridge", "host", "none"]);
    assert!(!temp.0.join("networks").exists(), "looking makes nothing");
    let foo = make(&store, "foo").unwrap();
    assert_eq!(foo.v4().unwrap().1.to_string(), "172.18.0.0/16");
    assert_eq!(make(&store, "bar").unwrap().v4().unwrap().1.to_string(), "172.19.0.0/16");
    assert_eq!(names(&store), ["bridge", "host", "none", "bar", "foo"]);
    // Another process, and another boot.
    let store = temp.store();
    for typed in ["foo", &foo.id, &foo.id[..20]] {
        assert_eq!(store.find(typed).unwrap(), foo, "{typed}");
    }
    assert!(store.holds(&foo));
    assert_eq!(make(&store, "foo").unwrap_err().to_string(), "network with name foo already exists");
    store.remove(&foo).unwrap();
    assert!(!store.holds(&foo));
    for gone in [store.find("foo").unwrap_err(), store.remove(&foo).unwrap_err()] {
        assert_eq!(gone.to_string(), "network foo not found");
    }
    // The lowest is given again; and the old one is not the new one.
    let again = make(&store, "foo").unwrap();
    assert_eq!(again.v4().unwrap().1.to_string(), "172.18.0.0/16");
    assert!(!store.holds(&foo) && store.holds(&again));
    assert_eq!(store.remove(&foo).unwrap_err().to_string(), "network foo not found");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&temp.0.join("networks")), mode(&temp.file("foo"))), (0o700, 0o600));
}

#[test]
fn by_beginning_of_an_id() {
    let temp = Temp::new("prefix");
    let store = temp.store();
    let mut made: Vec<Network> =
        (0..17).map(|n| make_in(&store, &format!("n{n}"), &[&format!("10.{n}.0.0/16")]).unwrap()).collect();
    // Of 17 ids two begin with the same digit.
    made.sort_by(|a, b| a.id.cmp(&b.id));
    let pair = made.windows(2).find(|pair| pair[0].id[..1] == pair[1].id[..1]).unwrap();
    let digit = &pair[0].id[..1];
    let (predefined, mine) = (Network::predefined(store.user), &made);
    let count = predefined.iter().chain(mine).filter(|network| network.id.starts_with(digit)).count();
    let text = store.find(digit).unwrap_err().to_string();
    assert_eq!(text, format!("network {digit} is ambiguous ({count} matches found based on ID prefix)"));
    // A name counts before the beginning of an id.
    let named = make_in(&store, digit, &["10.99.0.0/16"]).unwrap();
    assert_eq!(store.find(digit).unwrap(), named);
    assert_eq!(store.find("").unwrap_err().to_string(), "network  not found");
}

#[test]
fn a_broken_file_concerns_its_own_network_only() {
    let temp = Temp::new("broken");
    let store = temp.store();
    make(&store, "foo").unwrap();
    let text = std::fs::read_to_string(temp.file("foo")).unwrap();
    make(&store, "ok").unwrap();
    let id_of_ok = store.find("ok").unwrap().id;
    let cases: [(&str, String, &str); 8] = [
        ("cut", text[..text.find("\"gateway\"").unwrap() + 3].to_owned(), "EOF"),
        ("cut-in-it", text[..text.find("/16").unwrap() + 2].to_owned(), "EOF"),
        ("empty", String::new(), "EOF"),
        (
            "typo",
            text.replace("\"internal\"", "\"internel\"").replace("\"foo\"", "\"typo\""),
            "unknown field `internel`",
        ),
        ("named", text.clone(), "its name is foo"),
        ("host", text.replace("\"foo\"", "\"host\""), "predefined host network"),
        (
            "gateway",
            text.replace("172.18.0.1\"", "10.0.0.1\"").replace("\"foo\"", "\"gateway\""),
            "invalid gateway 10.0.0.1",
        ),
        (
            "zz",
            text.replace("\"foo\"", "\"zz\"").replace(&store.find("foo").unwrap().id, &id_of_ok),
            "the id of another",
        ),
    ];
    store.remove(&store.find("foo").unwrap()).unwrap();
    for (name, text, why) in cases {
        std::fs::write(temp.file(name), text).unwrap();
        let listing = store.list().unwrap();
        let broken = &listing.broken[0];
        assert!(listing.broken.len() == 1 && broken.name == name && broken.why.contains(why), "{listing:?}");
        assert_eq!(names(&store), ["bridge", "host", "none", "ok"]);
        if name != "host" {
            let error = store.find(name).unwrap_err().to_string();
            let path = temp.file(name);
            assert!(
                error.contains(path.to_str().unwrap()) && error.ends_with("correct the file or remove it"),
                "{error}"
            );
            assert_eq!(make(&store, name).unwrap_err().to_string(), error);
        }
        // The subnet that can still be read in it is not given to another.
        let expected = if ["empty", "cut-in-it"].contains(&name) { "172.18.0.0/16" } else { "172.20.0.0/16" };
        let other = make(&store, "other").unwrap();
        assert_eq!(other.v4().unwrap().1.to_string(), expected, "{name}");
        store.remove(&other).unwrap();
        std::fs::remove_file(temp.file(name)).unwrap();
    }
    nix::unistd::mkfifo(&temp.file("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(store.list().unwrap().broken[0].why, "it is not a file");
}

#[test]
fn what_was_being_written_when_the_machine_stopped_is_nothing() {
    let temp = Temp::new("half");
    let store = temp.store();
    make(&store, "foo").unwrap();
    std::fs::write(temp.0.join("networks/.new"), "{ \"id\":").unwrap();
    assert_eq!(store.list().unwrap().broken, []);
    make(&store, "bar").unwrap();
    assert!(!temp.0.join("networks/.new").exists());
}

#[test]
fn directories_that_cannot_be_used() {
    assert_eq!(
        make(&Store::new(None), "foo").unwrap_err().to_string(),
        "networks have no place to be kept in: set HOME or XDG_STATE_HOME to an absolute path"
    );
    assert_eq!(Store::new(None).list().unwrap().networks.len(), 3);
    let temp = Temp::new("unsafe");
    let store = temp.store();
    make(&store, "foo").unwrap();
    let dir = temp.0.join("networks");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    for error in [make(&store, "bar").unwrap_err(), store.list().unwrap_err()] {
        let text = error.to_string();
        assert!(text.starts_with(dir.to_str().unwrap()) && text.contains("XDG_STATE_HOME"), "{text}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "").unwrap();
    assert!(make(&store, "bar").is_err() && store.list().is_err());
}

#[test]
fn many_at_once_get_names_and_subnets_of_their_own() {
    let temp = Temp::new("many");
    let store = temp.store();
    let results: Vec<Vec<Result<Network, StoreError>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    ["same".to_owned(), format!("own-{thread}")].iter().map(|name| make(store, name)).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all: Vec<_> = results.into_iter().flatten().collect();
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 9, "eight of their own, and one of eight");
    for error in refused {
        assert_eq!(error.unwrap_err().to_string(), "network with name same already exists");
    }
    let mut subnets: Vec<String> = made.iter().map(|n| n.as_ref().unwrap().v4().unwrap().1.to_string()).collect();
    subnets.sort();
    assert_eq!(subnets, (18..27).map(|n| format!("172.{n}.0.0/16")).collect::<Vec<_>>());
}

#[test]
fn a_lock_that_is_not_released_is_named() {
    let temp = Temp::new("lock");
    let path = temp.0.join(LOCK);
    let held = locked::wait(&path, Duration::ZERO).unwrap();
    let error = locked::wait(&path, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(held);
    locked::wait(&path, Duration::ZERO).unwrap();
}
