//! A guest whose frames end the network process is put aside after the third time, and nobody else.

use std::io::Write as _;
use std::time::Duration;

use crate::named::{create, json, processes};
use crate::spaces::wait_for;
use crate::tools::{at, listen, serve};
use crate::world::{INET4, World};

/// How long it may take until somebody is put aside.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends what is lethal in debug builds, again and again.
const POISON: &str = "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(12):
    try: s.sendto(b'lethal-frame-4711', ('198.51.100.2', 9))
    except OSError: pass
    time.sleep(0.3)";

#[test]
fn who_kills_the_process_is_put_aside() {
    World::run(|w| {
        let lethal = |args: &[&str]| w.tapway(args).env("TAPWAY_DEBUG_LETHAL", "lethal-frame-4711");
        let start = |name: &str, more: &[&str]| {
            let args = [&["run", "-d", "--network", "web", "--name", name], more, &["--", "sleep", "1000"]].concat();
            lethal(&args).ok().trim().to_owned()
        };
        create(w, &["web"]);
        start("good", &["-p", "8080:7301"]);
        let bad = start("bad", &[]);
        lethal(&["exec", "bad", "python3", "-c", POISON]).ok();
        let listed = w.tapway(&["ps"]).ok();
        let of = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{listed}"));
        assert!(of("bad").contains("(put aside by web)") && !of("good").contains("aside"), "{listed}");
        let seen = json(w, &["inspect", "bad"]);
        assert_eq!(seen[0]["NetworkSettings"]["Aside"][0]["Network"], "web", "{seen}");
        assert!(seen[0]["NetworkSettings"]["Networks"].get("web").is_none(), "{seen}");
        let network = json(w, &["network", "inspect", "web"]);
        assert_eq!(network[0]["Aside"], serde_json::json!([bad]), "{network}");
        assert_eq!(network[0]["Containers"].as_object().unwrap().len(), 1, "{network}");
        // It does not come back, and says why.
        let again = lethal(&["network", "connect", "web", "bad"]).end();
        assert!(again.code != 0 && again.stderr.contains("put aside"), "{}", again.stderr);
        // The others live on, and more can come.
        w.tapway(&["exec", "good", "ping", "-c1", "-W2", "198.51.100.2"]).ok();
        lethal(&["run", "--network", "web", "--", "ping", "-c1", "-W2", "good"]).ok();
        assert_eq!(processes().len(), 1);
        // One with a process of its own: its monitor stops, and says why.
        let args = ["run", "--network", "private", "--", "python3", "-c", POISON];
        let ended = lethal(&args).end();
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(ended.code == 1 && last.contains("while it served the sandbox's frames"), "{}", ended.stderr);
    });
}

#[test]
fn who_kills_it_is_known_though_others_are_at_their_turn_in_another_lane() {
    World::run(|w| {
        let lethal =
            |args: &[&str]| w.tapway(args).env("TAPWAY_DEBUG_LETHAL", "lethal-frame-4711").env("TAPWAY_QUEUES", "2");
        serve(listen(&w.internet, at(INET4, 7400)), |mut stream, _| {
            let block = vec![7; 65_536];
            while stream.write_all(&block).is_ok() {}
        });
        create(w, &["web"]);
        // Two at least of its streams are in the two lanes, and the lanes have little else to do.
        let busy =
            "for n in 1 2 3 4; do (while :; do nc -d 198.51.100.2 7400 > /dev/null; sleep 0.1; done) & done; wait";
        lethal(&["run", "-d", "--network", "web", "--name", "good", "--", "sh", "-c", busy]).ok();
        lethal(&["run", "-d", "--network", "web", "--name", "bad", "--", "sleep", "1000"]).ok();
        lethal(&["exec", "bad", "python3", "-c", POISON]).ok();
        wait_for("the one that kills is put aside", PATIENCE, || {
            w.tapway(&["ps"]).ok().lines().any(|line| line.contains("bad") && line.contains("(put aside by web)"))
        });
        let listed = w.tapway(&["ps"]).ok();
        assert!(!listed.lines().any(|line| line.contains("good") && line.contains("aside")), "{listed}");
        w.tapway(&["exec", "good", "ping", "-c1", "-W2", "198.51.100.2"]).ok();
    });
}
