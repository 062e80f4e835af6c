//! The layers of `docs/architecture.md`, read off the sources: arrows point down only.
//!
//! cli → runtime, api, sandbox, confine → host, link → stack → network → wire → sys. Everything may use `telemetry` but
//! the sans-I/O core (`stack`, `wire`, `network`), which also knows no socket, no tokio and no clock. `unsafe` lives in
//! `sys` alone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the bottom up. Those on one line are peers: they may use each other one way, not both.
const LAYERS: [&[&str]; 8] = [
    &["sys"],
    &["wire"],
    &["network"],
    &["stack"],
    &["telemetry"],
    &["host", "link"],
    &["runtime", "api", "sandbox", "confine"],
    &["cli"],
];

/// The sans-I/O core.
const CORE: [&str; 3] = ["stack", "wire", "network"];

/// What the core may not name, and why.
const FORBIDDEN: [(&str, &str); 13] = [
    ("tokio", "an async runtime"),
    ("socket2", "sockets"),
    ("std::net::Tcp", "sockets"),
    ("std::net::Udp", "sockets"),
    ("TcpStream", "sockets"),
    ("UdpSocket", "sockets"),
    ("std::os::fd", "descriptors"),
    ("std::fs", "files"),
    ("std::thread", "threads"),
    ("nix::", "system calls"),
    ("libc::", "system calls"),
    ("Instant::now", "the clock"),
    ("SystemTime", "the clock"),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// One module's source without comments and without its tests, which may be an item anywhere.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut rest = text.lines();
    while let Some(line) = rest.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start().starts_with("#[cfg(test)]") {
            // What follows, attributes of its and all, to its end: a semicolon, or the brace below its beginning.
            for line in rest.by_ref() {
                let own = line.strip_prefix(indent).unwrap_or_default();
                if line.trim_end().ends_with([';', ',']) && !own.starts_with(' ') || own.starts_with('}') {
                    break;
                }
            }
            continue;
        }
        lines.push(line.split_once("//").map_or(line, |(code, _)| code));
    }
    lines.join("\n")
}

/// Modules that `code` names with `crate::NAME` or `crate::{NAME…, NAME…}`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        let rest = &code[at + word.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // Only the names at depth one are modules.
            let (mut depth, mut start) = (1, true);
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => start = true,
                    c if start && depth == 1 && (c.is_alphabetic() || c == '_') => {
                        start = false;
                        found.insert(name(&group[i..]));
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.insert(name(rest));
        }
    }
    found
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What is wrong with `code` as part of `module`.
fn complaints(module: &str, code: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(mine) = layer(module) else {
        return vec![format!("module {module} has no layer; add it to tests/architecture.rs and docs/architecture.md")];
    };
    for used in uses(code) {
        let Some(theirs) = layer(&used) else { continue };
        if theirs > mine {
            wrong.push(format!("{module} uses {used}, which is above it"));
        }
    }
    if CORE.contains(&module) {
        for (word, what) in FORBIDDEN {
            if code.contains(word) {
                wrong.push(format!("{module} names {word}: the core knows nothing of {what}"));
            }
        }
        if code.contains("tracing::") {
            wrong.push(format!("{module} logs: the core returns verdicts and counts"));
        }
    }
    if module != "sys" && code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe") {
        wrong.push(format!("{module} has unsafe code, which belongs to sys"));
    }
    wrong
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "tests.rs") {
            found.push(path);
        }
    }
}

/// (module, path, code) of every source but the crate's two roots.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let module = |path: &Path| {
        let first = path.strip_prefix(&root).ok()?.components().next()?;
        let first = Path::new(first.as_os_str()).file_stem()?.to_str()?.to_owned();
        (first != "lib" && first != "main").then_some(first)
    };
    files.into_iter().filter_map(|p| Some((module(&p)?, p.clone(), code(&fs::read_to_string(&p).unwrap())))).collect()
}

#[test]
fn arrows_point_down() {
    let all = modules();
    assert!(all.len() > 5, "the sources were not found");
    let wrong: Vec<String> = all
        .iter()
        .flat_map(|(module, path, code)| {
            complaints(module, code).into_iter().map(move |c| format!("{}: {c}", path.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Where the wall clock is read, and for what. It can jump; nothing that waits or measures may go by it.
const DATES: &[&str] = &[
    "api/http.rs",               // the Date of a reply
    "cli/top.rs",                // the time of day in its first line
    "runtime/capture/mod.rs",    // dates of packets
    "runtime/capture/writer.rs", // dates of counts
    "runtime/command.rs",        // since when something is counted
    "runtime/events.rs",         // dates of events
    "runtime/metrics_http.rs",   // the Date of a reply
    "runtime/observe.rs",        // since when something is counted
    "sandbox/state.rs",          // when a sandbox began; deaths (`sandbox::blame`), which are forgotten when it jumps
    "telemetry/mod.rs",          // dates of lines
    "telemetry/time.rs",         // dates of lines
];

#[test]
fn the_wall_clock_is_for_dates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let uses = |(_, path, code): (String, PathBuf, String)| {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (code.contains("SystemTime") || code.contains("CLOCK_REALTIME")).then_some(file)
    };
    let mut found: Vec<String> = modules().into_iter().filter_map(uses).collect();
    found.sort();
    assert_eq!(found, DATES, "what reads the wall clock");
}

#[test]
fn peers_do_not_use_each_other_both_ways() {
    let mut arrows = BTreeSet::new();
    for (module, _, code) in modules() {
        for used in uses(&code) {
            if used != module && layer(&used).is_some() && layer(&used) == layer(&module) {
                arrows.insert((module.clone(), used));
            }
        }
    }
    for (a, b) in &arrows {
        assert!(!arrows.contains(&(b.clone(), a.clone())), "{a} and {b} use each other");
    }
}

#[test]
fn the_reader_sees_what_is_wrong() {
    assert_eq!(complaints("stack", "use crate::wire::tcp;\nuse crate::network::config::Plan;"), [""; 0]);
    assert_eq!(complaints("wire", "use crate::stack::verdict::DropReason;"), ["wire uses stack, which is above it"]);
    let grouped = "use crate::{wire::{arp, tcp}, host::udp};";
    assert_eq!(uses(grouped), ["host", "wire"].map(str::to_owned).into());
    assert_eq!(complaints("stack", grouped), ["stack uses host, which is above it"]);
    assert_eq!(complaints("network", "let now = std::time::Instant::now();").len(), 1);
    assert_eq!(complaints("stack", "tracing::info!(x)").len(), 1);
    assert_eq!(complaints("host", "unsafe { f() }"), ["host has unsafe code, which belongs to sys"]);
    assert_eq!(complaints("host", "#![deny(unsafe_code)]"), [""; 0]);
    assert_eq!(complaints("extra", "").len(), 1);
    assert_eq!(code("a // crate::host\n#[cfg(test)]\nmod tests {\n    use crate::host;\n}"), "a ");
    assert_eq!(code("#[cfg(test)]\nmod tests;\nmod writer;"), "mod writer;");
    assert_eq!(code("{\n    #[cfg(test)]\n    fn a() {\n        b;\n    }\n    c\n}"), "{\n    c\n}");
}
