//! Shell completions and manual pages in `contrib/` are those of the command line as it is.
//!
//! They are files, so that packagers need nothing but a copy; this test fails when they are stale and, with
//! `TAPWAY_WRITE_CONTRIB=1`, writes them.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use tapway::cli::Cli;

/// Path below `contrib/` and contents of every generated file.
fn generated() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (shell, name) in [(Shell::Bash, "tapway.bash"), (Shell::Zsh, "_tapway"), (Shell::Fish, "tapway.fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "tapway", &mut text);
        files.push((format!("completions/{name}"), text));
    }
    let mut command = Cli::command();
    command.build();
    let pages = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
    for page in std::iter::once(command.clone()).chain(pages) {
        // A subcommand's page is named after both words, as git's are.
        let name = page.get_display_name().unwrap_or(page.get_name()).to_owned();
        let mut text = Vec::new();
        clap_mangen::Man::new(page)
            .title(name.clone())
            .source("tapway")
            .manual("User commands")
            .render(&mut text)
            .unwrap();
        files.push((format!("man/{name}.1"), text));
    }
    files
}

#[test]
fn contrib_is_what_the_command_line_generates() {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    let write = std::env::var_os("TAPWAY_WRITE_CONTRIB").is_some();
    let mut stale = Vec::new();
    for (name, text) in generated() {
        let path = contrib.join(&name);
        if write {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read(&path).ok().as_ref() != Some(&text) {
            stale.push(name);
        }
    }
    assert!(stale.is_empty(), "stale in contrib/: {stale:?}; TAPWAY_WRITE_CONTRIB=1 cargo test --test contrib");
}

#[test]
fn the_pages_and_completions_name_the_options() {
    let files = generated();
    let text = |name: &str| {
        let (_, text) = files.iter().find(|(path, _)| path == name).unwrap_or_else(|| panic!("no {name}"));
        String::from_utf8(text.clone()).unwrap()
    };
    for (file, words) in [
        ("man/tapway.1", &["tapway\\-run", "tapway\\-doctor"][..]),
        ("man/tapway-run.1", &["\\-\\-publish", "\\-\\-allow\\-host\\-loopback", "python3 \\-m http.server"]),
        ("man/tapway-doctor.1", &["\\-\\-json"]),
        ("man/tapway-slirp4netns.1", &["\\-\\-netns\\-type", "TAPNAME"]),
        ("completions/tapway.bash", &["--allow-link-local", "doctor", "--netns-type"]),
        ("completions/_tapway", &["--allow-link-local", "doctor"]),
        ("completions/tapway.fish", &["allow-link-local", "doctor"]),
    ] {
        for word in words {
            assert!(text(file).contains(word), "{file} does not name {word}:\n{}", text(file));
        }
    }
}
