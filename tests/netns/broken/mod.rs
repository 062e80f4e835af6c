//! Broken hosts: what a sandbox is like while the machine around it is short of something, loses its way to the world, stops or
//! changes under it. What can go on goes on, what cannot comes back by itself, and nothing spins meanwhile.

mod descriptors;
mod disk;
mod memory;
mod stopped;
mod uplink;

use serde_json::Value;

use crate::world::World;

/// Processor time of a process so far, seconds.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|e| panic!("{pid} is gone: {e}"));
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime, fields 14 and 15 (proc_pid_stat(5)), of USER_HZ, which is 100.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Fails if a process uses more than a tenth of a processor for two seconds.
#[track_caller]
fn rests(pid: i32, when: &str) {
    let before = cpu(pid);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let used = cpu(pid) - before;
    eprintln!("{when}: {used:.2} s of processor time in 2 s");
    assert!(used < 0.2, "{when}: {used} s of processor time in 2 s");
}

fn json(w: &World, words: &[&str]) -> Value {
    let text = w.tapway(words).ok();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?}: {e} in {text}"))
}

/// The process that forwards for a sandbox.
fn network_pid(w: &World, sandbox: &str) -> i32 {
    i32::try_from(json(w, &["info", sandbox, "--json"])["network_pid"].as_i64().unwrap()).unwrap()
}

fn restarts(w: &World, sandbox: &str) -> u64 {
    json(w, &["info", sandbox, "--json"])["network_restarts"].as_u64().unwrap()
}

/// How often something was dropped for a reason.
fn dropped(w: &World, sandbox: &str, reason: &str) -> u64 {
    json(w, &["stats", sandbox, "--json"])["drops"][reason].as_u64().unwrap_or(0)
}
