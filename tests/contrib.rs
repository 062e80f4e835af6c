//! Shell completions and manual pages in `contrib/` are those of the command line as it is.
//!
//! They are files, so that packagers need nothing but a copy; this test fails when they are stale and, with
//! `TAPWAY_WRITE_CONTRIB=1`, writes them.
//!
//! What clap generates knows words that are fixed; where a command is about a sandbox, the scripts are altered to ask
//! `tapway __complete sandboxes` for the names of those that run.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use clap::{ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use tapway::cli::Cli;

/// The command line without what is hidden, which the generators of some shells do not know.
fn shown() -> Command {
    let all = Cli::command();
    let (hidden, shown): (Vec<_>, Vec<_>) = all.get_subcommands().cloned().partition(Command::is_hide_set);
    assert!(hidden.iter().any(|sub| sub.get_name() == "__complete"));
    let mut command = Command::new("tapway").disable_help_subcommand(true).version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = all.get_about() {
        command = command.about(about.clone());
    }
    command.subcommand_required(true).subcommands(shown)
}

/// Names of the commands that are about a sandbox, and whether they take several.
fn about_a_sandbox() -> Vec<(String, bool)> {
    let first = |sub: &Command| {
        let arg = sub.get_positionals().next().filter(|arg| arg.get_id() == "sandbox")?;
        Some((sub.get_name().to_owned(), matches!(arg.get_action(), ArgAction::Append)))
    };
    Cli::command().get_subcommands().filter_map(first).collect()
}

/// Names of the commands of `tapway fault`, all of which are about a sandbox.
fn about_faults() -> Vec<String> {
    let all = Cli::command();
    let fault = all.find_subcommand("fault").unwrap();
    assert!(fault.get_subcommands().all(|sub| sub.get_positionals().any(|arg| arg.get_id() == "sandbox")));
    fault.get_subcommands().map(|sub| sub.get_name().to_owned()).collect()
}

/// Names of the commands of `tapway network` that are about networks that exist.
fn about_networks() -> Vec<String> {
    let all = Cli::command();
    let network = all.find_subcommand("network").unwrap();
    let first = |sub: &&Command| sub.get_positionals().any(|arg| arg.get_id() == "network");
    network.get_subcommands().filter(first).map(|sub| sub.get_name().to_owned()).collect()
}

/// Whether one of these is about a sandbox as well.
fn is_about_both(name: &str) -> bool {
    let all = Cli::command();
    let sub = all.find_subcommand("network").and_then(|network| network.find_subcommand(name)).unwrap();
    sub.get_positionals().any(|arg| arg.get_id() == "sandbox")
}

/// Puts names of networks where they belong, and of sandboxes behind them.
fn with_networks(shell: Shell, mut text: String) -> String {
    match shell {
        Shell::Bash => {
            for name in about_networks() {
                let head = format!("        tapway__subcmd__network__subcmd__{name})\n");
                let at = text.find(&head).unwrap() + head.len();
                let first = "            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then\n";
                let at = at + text[at..].find(first).unwrap();
                let more = if is_about_both(&name) { "; \"$1\" __complete sandboxes 2>/dev/null" } else { "" };
                let names = format!(
                    "            if [[ ${{cur}} != -* && ${{prev}} != -* ]] ; then\n                \
                    COMPREPLY=( $(compgen -W \"$(\"$1\" __complete networks 2>/dev/null{more})\" -- \"${{cur}}\") )\n                \
                    return 0\n            fi\n"
                );
                text.insert_str(at, &names);
            }
        }
        Shell::Zsh => {
            let about = ":network -- Name or id of a network, or the beginning of an id:";
            // Aliases are commands of their own there.
            assert!(text.matches(about).count() >= about_networks().len());
            text = text.replace(&format!("{about}_default"), &format!("{about}_tapway_networks"));
            let behind = ":sandbox -- Name or id of a running sandbox:";
            assert_eq!(
                text.matches(behind).count(),
                about_networks().iter().filter(|name| is_about_both(name)).count()
            );
            text = text.replace(&format!("{behind}_default"), &format!("{behind}_tapway_sandboxes"));
            let helper = "(( $+functions[_tapway_networks] )) ||\n_tapway_networks() {\n    local -a names\n    \
                names=(${(f)\"$(_call_program networks tapway __complete networks 2>/dev/null)\"})\n    \
                compadd -a names\n}\n\n";
            let at = text.find("(( $+functions[_tapway_commands] )) ||").unwrap();
            text.insert_str(at, helper);
        }
        _ => {
            let names = "-f -a \"(tapway __complete networks 2>/dev/null)\" -d 'Network'";
            let sandboxes = "-f -a \"(tapway __complete sandboxes 2>/dev/null)\" -d 'Sandbox'";
            let line = |name: String| {
                let here = "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from";
                let line = |what| format!("complete -c tapway -n \"{here} {name}\" {what}");
                if is_about_both(&name) { line(names) + "\n" + &line(sandboxes) } else { line(names) }
            };
            text += &(about_networks().into_iter().map(line).collect::<Vec<_>>().join("\n") + "\n");
        }
    }
    text
}

/// Puts names of sandboxes where they belong.
fn with_sandboxes(shell: Shell, mut text: String) -> String {
    match shell {
        Shell::Bash => {
            for (name, several) in about_a_sandbox() {
                let place = if several { "-ge" } else { "-eq" };
                let head = format!("        tapway__subcmd__{name})\n");
                let at = text.find(&head).unwrap() + head.len();
                let first = "            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then\n";
                let at = at + text[at..].find(first).unwrap();
                let names = format!(
                    "            if [[ ${{cur}} != -* && ${{COMP_CWORD}} {place} 2 ]] ; then\n                \
                    COMPREPLY=( $(compgen -W \"$(\"$1\" __complete sandboxes 2>/dev/null)\" -- \"${{cur}}\") )\n                \
                    return 0\n            fi\n"
                );
                text.insert_str(at, &names);
            }
            for name in about_faults() {
                let head = format!("        tapway__subcmd__fault__subcmd__{name})\n");
                let at = text.find(&head).unwrap() + head.len();
                let first = "            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then\n";
                let at = at + text[at..].find(first).unwrap();
                let names = "            if [[ ${cur} != -* && ${prev} != -* ]] ; then\n                \
                    COMPREPLY=( $(compgen -W \"$(\"$1\" __complete sandboxes 2>/dev/null)\" -- \"${cur}\") )\n                \
                    return 0\n            fi\n";
                text.insert_str(at, names);
            }
        }
        Shell::Zsh => {
            let mut count = 0;
            for about in [
                ":sandbox -- Name or id of the sandbox, a process in it, or a socket:",
                ":sandbox -- Name or id of the sandbox:",
                ":sandbox -- Names or ids of sandboxes:",
            ] {
                count += text.matches(about).count();
                text = text.replace(&format!("{about}_default"), &format!("{about}_tapway_sandboxes"));
            }
            assert_eq!(count, about_a_sandbox().len() + about_faults().len());
            let helper = "(( $+functions[_tapway_sandboxes] )) ||\n_tapway_sandboxes() {\n    local -a names\n    \
                names=(${(f)\"$(_call_program sandboxes tapway __complete sandboxes 2>/dev/null)\"})\n    \
                _alternative 'sandboxes:sandbox:compadd -a names' 'sockets:socket:_files'\n}\n\n";
            let at = text.find("(( $+functions[_tapway_commands] )) ||").unwrap();
            text.insert_str(at, helper);
        }
        _ => {
            let names = "-a \"(tapway __complete sandboxes 2>/dev/null)\" -d 'Sandbox'";
            let line = |(name, _)| format!("complete -c tapway -n \"__fish_tapway_using_subcommand {name}\" {names}");
            text += &(about_a_sandbox().into_iter().map(line).collect::<Vec<_>>().join("\n") + "\n");
            let here = "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from";
            let line = |name| format!("complete -c tapway -n \"{here} {name}\" -f {names}");
            text += &(about_faults().into_iter().map(line).collect::<Vec<_>>().join("\n") + "\n");
        }
    }
    text
}

/// Path below `contrib/` and contents of every generated file.
fn generated() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (shell, name) in [(Shell::Bash, "tapway.bash"), (Shell::Zsh, "_tapway"), (Shell::Fish, "tapway.fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut shown(), "tapway", &mut text);
        let text = with_networks(shell, with_sandboxes(shell, String::from_utf8(text).unwrap()));
        files.push((format!("completions/{name}"), text.into_bytes()));
    }
    let mut command = shown();
    command.build();
    let visible = |command: &Command| -> Vec<Command> {
        command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect()
    };
    let mut pages = vec![command.clone()];
    for sub in visible(&command) {
        // `tapway network create` has as much to say as a command of its own.
        let below = if ["network", "fault"].contains(&sub.get_name()) { visible(&sub) } else { Vec::new() };
        pages.push(sub);
        pages.extend(below);
    }
    for page in pages {
        // A subcommand's page is named after all its words, as git's are.
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
        ("man/tapway-network.1", &["tapway\\-network\\-create"]),
        ("man/tapway-network-create.1", &["\\-\\-aux\\-address", "any free /24"]),
        ("completions/tapway.bash", &["--allow-link-local", "doctor", "--netns-type", "__complete networks"]),
        (
            "completions/_tapway",
            &["--allow-link-local", "doctor", ":_tapway_sandboxes", "_tapway_sandboxes() {", ":_tapway_networks"],
        ),
        (
            "completions/tapway.fish",
            &["allow-link-local", "doctor", "(tapway __complete sandboxes 2>/dev/null)", "__complete networks"],
        ),
    ] {
        for word in words {
            assert!(text(file).contains(word), "{file} does not name {word}:\n{}", text(file));
        }
    }
    for (file, text) in &files {
        let text = String::from_utf8_lossy(text);
        assert!(!text.contains("__complete)") && !text.contains("\"__complete"), "{file} offers what is hidden");
    }
}
