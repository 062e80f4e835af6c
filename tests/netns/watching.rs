//! Watching a sandbox over its control socket: the log level, events and captures, and what becomes of each when the
//! network process dies.

use std::time::Duration;

use serde_json::json;

use crate::control::{done, kill, refused};
use crate::world::{World, wait_for};

#[test]
fn the_log_level_outlives_the_network_process() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let info = || done(w, "get_info", json!({}));
        // What the network process says at level debug when it is told names, and the monitor at info.
        let speaks = || guest.monitor.stderr().matches("the network's names changed").count();
        let add = |value: &str| {
            done(w, "add_dns_record", json!({"name": "t.example", "type": "TXT", "value": value}));
            // Something later than that has been heard by the network process.
            done(w, "get_stats", json!({}));
        };
        assert_eq!(info()["log_level"], "warn");
        add("quiet");
        assert_eq!(speaks(), 0, "{}", guest.monitor.stderr());
        done(w, "set_log_level", json!({"level": "tapway::runtime=debug,warn"}));
        add("loud");
        wait_for("a line at level debug", Duration::from_secs(5), || speaks() == 1);
        let first = info()["network_pid"].clone();
        for killed in 1..=2 {
            kill(w, &guest);
            assert_ne!(info()["network_pid"], first);
            assert_eq!(info()["log_level"], "tapway::runtime=debug,warn", "after {killed} deaths");
            add(&format!("after {killed}"));
            wait_for("a line of the successor", Duration::from_secs(5), || speaks() == 1 + killed);
        }
        assert!(!guest.monitor.stderr().contains("name servers changed"), "{}", guest.monitor.stderr());
        done(w, "set_log_level", json!({"level": "info"}));
        w.host_resolv_conf("nameserver 198.51.100.9\n");
        wait_for("both to tell of it", Duration::from_secs(5), || {
            let log = guest.monitor.stderr();
            log.contains("the host's name servers changed") && log.contains("info: name servers changed")
        });
        done(w, "set_log_level", json!({"level": "off"}));
        assert_eq!(refused(w, "set_log_level", json!({"level": "loud"})), "bad_argument");
        assert_eq!(refused(w, "set_log_level", json!({"levels": "info"})), "unknown_field");
        assert_eq!(info()["log_level"], "off");
    });
}
