//! What tapway is built of, held against `deny.toml`: licences, two versions of one crate, and where crates come from.
//!
//! `cargo deny` reads the same file and knows advisories as well, but takes longer to build than tapway; it runs at night.
//! Here cargo itself is asked, from what is on this machine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The texts of one list of deny.toml.
fn list(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    let start = text.find(&format!("\n{name} = [")).unwrap_or_else(|| panic!("deny.toml has no list {name}"));
    let lines = text[start..].lines().skip(1).map(|line| line.split('#').next().unwrap().to_owned());
    let mut inside = String::new();
    for line in lines {
        inside.push_str(&line);
        if line.contains(']') {
            break;
        }
    }
    inside.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every package of the build on this platform; dev-dependencies, too.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let host = if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression is met with `allowed` alone. "/" is an old way to write OR.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let bare = expression.replace(['(', ')'], " ").replace('/', " OR ");
    // The only expression with both has its OR in brackets; each part of AND must be met.
    bare.split(" AND ").all(|part| part.split(" OR ").any(|licence| allowed.contains(licence.trim())))
}

#[test]
fn licences_versions_and_sources_are_those_of_deny_toml() {
    let (allowed, skipped) = (list("allow"), list("skip"));
    let packages = packages();
    assert!(packages.len() > 50, "{} packages", packages.len());
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in &packages {
        let [name, version] = ["name", "version"].map(|field| package[field].as_str().unwrap());
        let id = format!("{name}@{version}");
        match package["license"].as_str() {
            Some(licence) if is_met(licence, &allowed) => {}
            licence => wrong.push(format!("{id}: licence {licence:?} is not allowed")),
        }
        // None is this package itself.
        if package["source"].as_str().is_some_and(|source| !source.starts_with("registry+")) {
            wrong.push(format!("{id}: comes from {}", package["source"]));
        }
        if skipped.contains(&id) {
            used.insert(id);
        } else {
            versions.entry(name).or_default().push(version.to_owned());
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        wrong.push(format!("{name}: {}", versions.join(" and ")));
    }
    // What nobody wants twice any more is no longer excused.
    wrong.extend(skipped.difference(&used).map(|id| format!("{id}: is skipped in deny.toml, and not there")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn expressions_are_read() {
    let allowed: BTreeSet<String> = ["MIT", "Unicode-3.0"].map(str::to_owned).into();
    for (expression, met) in [
        ("MIT", true),
        ("Apache-2.0 OR MIT", true),
        ("MIT/Apache-2.0", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
        ("GPL-3.0-only", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
