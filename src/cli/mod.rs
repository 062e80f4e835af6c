//! The command line: what was typed, what it means, and how a failure is told.
//!
//! Each subcommand has a file that turns its arguments into a plan or an answer. A failure is one line on stderr,
//! `tapway: what: why`, with exit code 2 when the command line is at fault and 1 when the machine is; `run` has its
//! command's exit code otherwise.

pub mod attach;
pub mod capture;
pub mod complete;
pub mod ctl;
pub mod detach;
pub mod dns;
pub mod doctor;
pub mod endpoint;
pub mod endpoint_args;
pub mod events;
pub mod exec;
pub mod fault;
pub mod flows;
pub mod format;
pub mod hosts;
pub mod info;
pub mod inspect;
pub mod logs;
pub mod metrics_listen;
pub mod network;
pub mod network_process;
pub mod port;
pub mod ps;
pub mod publish;
pub mod run;
pub mod run_args;
pub mod run_named;
pub mod run_network;
pub mod slirp4netns;
pub mod stats;
pub mod stop;
pub mod table;
pub mod target;
pub mod top;
pub mod unpublish;
pub mod upgrade;

use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory as _, Parser, Subcommand};

/// Exit code for a command line that cannot be obeyed.
pub const USAGE: u8 = 2;
/// Exit code for everything else that fails.
pub const FAILURE: u8 = 1;

/// A network for an unprivileged container.
#[derive(Debug, Parser)]
#[command(name = "tapway", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Action,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Run a command in a sandbox with a network of its own.
    Run(Box<run_args::RunArgs>),
    /// Attach a network namespace that somebody else made to a network: of podman, bubblewrap, unshare.
    Attach(Box<attach::AttachArgs>),
    /// Take what was attached off its network again.
    Detach(attach::DetachArgs),
    /// List the sandboxes that run.
    Ps(ps::PsArgs),
    /// Run a further command in a running sandbox.
    Exec(exec::ExecArgs),
    /// Show what is known of sandboxes, as `docker inspect` does.
    Inspect(inspect::InspectArgs),
    /// Show what a detached sandbox prints.
    Logs(logs::LogsArgs),
    /// End sandboxes: TERM to their commands, and KILL after a while.
    Stop(stop::StopArgs),
    /// End sandboxes at once, or send their commands a signal.
    Kill(stop::KillArgs),
    /// Remove sandboxes.
    Rm(stop::RmArgs),
    /// Make, show and remove networks that sandboxes share.
    Network(network::NetworkArgs),
    /// Show the published ports of a running sandbox.
    Port(port::PortArgs),
    /// Publish ports of a running sandbox.
    Publish(publish::PublishArgs),
    /// Close published ports of a running sandbox.
    Unpublish(unpublish::UnpublishArgs),
    /// Show or change the name servers and DNS records of a running sandbox.
    Dns(dns::DnsArgs),
    /// Show or change the hosts that a running sandbox knows by name.
    Hosts(hosts::HostsArgs),
    /// Show what a running sandbox is: addresses, offloads, limits, confinement.
    Info(info::InfoArgs),
    /// Show what a running sandbox is connected to, or end a connection.
    Flows(flows::FlowsArgs),
    /// Show the counters of a running sandbox.
    Stats(stats::StatsArgs),
    /// Tell what happens in a running sandbox, as it happens.
    Events(events::EventsArgs),
    /// Write frames of a running sandbox into a pcapng file.
    Capture(capture::CaptureArgs),
    /// Give a running sandbox a bad network on purpose: delay, loss, a slow line, names that fail.
    Fault(fault::FaultArgs),
    /// Watch a running sandbox: flows by rate, names, drops.
    Top(top::TopArgs),
    /// Have a running sandbox served by the tapway that is installed now.
    Upgrade(upgrade::UpgradeArgs),
    /// Send a request to a control socket.
    Ctl(ctl::CtlArgs),
    /// Try what this machine can do, line by line, and say what to do about the rest.
    Doctor(doctor::DoctorArgs),
    /// Be slirp4netns for callers that know only that one, e.g. podman and RootlessKit; the same as a link of that name.
    Slirp4netns(slirp4netns::table::Listed),
    /// Print the version.
    Version,
    /// Be the process of one sandbox.
    #[command(name = "__endpoint", hide = true)]
    EndpointProcess(network_process::EndpointProcessArgs),
    /// Be the process of a shared network.
    #[command(name = "__network", hide = true)]
    NetworkProcess(network_process::NetworkProcessArgs),
    /// Print words for shells to complete with.
    #[command(name = "__complete", hide = true)]
    Complete(complete::CompleteArgs),
}

/// A failure as the user sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One line, without a full stop; more than one only where Docker's text has them.
    pub line: String,
}

impl Failure {
    /// The command line is at fault.
    pub fn usage(line: impl Into<String>) -> Self {
        Self { code: USAGE, line: line.into() }
    }

    /// The machine is.
    pub fn runtime(error: &dyn std::error::Error) -> Self {
        Self { code: FAILURE, line: crate::telemetry::chain(error) }
    }
}

/// Parses the command line, does what it says and reports.
pub fn main() -> ExitCode {
    crate::sandbox::program::note();
    if let Some(code) = slirp4netns::dispatch(std::env::args_os(), slirp4netns::process::run) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let outcome = match cli.command {
        Action::Run(args) => run::main(*args),
        Action::Attach(args) => attach::attach(&args),
        Action::Detach(args) => attach::detach(&args),
        Action::Ps(args) => ps::main(&args),
        Action::Exec(args) => exec::main(args),
        Action::Inspect(args) => inspect::main(&args),
        Action::Logs(args) => logs::main(&args),
        Action::Stop(args) => stop::stop(&args),
        Action::Kill(args) => stop::kill(&args),
        Action::Rm(args) => stop::rm(&args),
        Action::Network(args) => network::main(&args),
        Action::Port(args) => port::main(&args),
        Action::Publish(args) => publish::main(&args),
        Action::Unpublish(args) => unpublish::main(&args),
        Action::Dns(args) => dns::main(&args),
        Action::Hosts(args) => hosts::main(&args),
        Action::Info(args) => info::main(&args),
        Action::Flows(args) => flows::main(&args),
        Action::Stats(args) => stats::main(&args),
        Action::Events(args) => events::main(&args),
        Action::Capture(args) => capture::main(&args),
        Action::Fault(args) => fault::main(&args),
        Action::Top(args) => top::main(&args),
        Action::Upgrade(args) => upgrade::main(&args),
        Action::Ctl(args) => ctl::main(&args),
        Action::Complete(args) => complete::main(&args),
        Action::EndpointProcess(args) => network_process::endpoint(&args),
        Action::NetworkProcess(args) => network_process::main(&args),
        Action::Doctor(args) => doctor::main(&args),
        // Reached only behind something, such as `--`, that kept the dispatch above from seeing it.
        Action::Slirp4netns(_) => Err(Failure::usage("slirp4netns must be the first word; see 'tapway --help'")),
        Action::Version => {
            println!("tapway {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Docker's texts about a network have a line for the kind of fault and one for each.
            let lines = ["invalid endpoint settings:\n", "invalid network config:\n"];
            let of_docker = lines.iter().any(|first| failure.line.starts_with(first));
            let text = if of_docker { printable_lines(&failure.line) } else { printable(&failure.line) };
            eprintln!("tapway: {text}");
            ExitCode::from(failure.code)
        }
    }
}

/// Control characters escaped: a value on the command line must not drive the terminal, nor break the one line.
fn printable(line: &str) -> String {
    let mut safe = String::with_capacity(line.len());
    for c in line.chars() {
        if c.is_control() { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// As [`printable`], but that lines stay lines: for texts that escape what was typed themselves.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Help and version as clap has them; errors in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed stdout is the reader's choice.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("tapway: {}", printable(&usage_line(error)));
            ExitCode::from(USAGE)
        }
    }
}

/// clap's message without its layout: what is wrong, its tips, and where help is.
fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut parts: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        parts.push(line.strip_prefix("error: ").unwrap_or(line));
    }
    // Where it is only in the text, that is help, which has it as a line.
    let in_text = || text.lines().find(|line| line.starts_with("Usage:")).unwrap_or_default().to_owned();
    let usage = error.get(ContextKind::Usage).map_or_else(in_text, ToString::to_string);
    // The words of the usage that name a command, and a command of that command.
    let all = Cli::command();
    let mut command = &all;
    let mut help = "tapway".to_owned();
    for word in usage.split("tapway ").nth(1).unwrap_or_default().split_whitespace() {
        let Some(sub) = command.find_subcommand(word).filter(|sub| !sub.is_hide_set()) else { break };
        command = sub;
        help = format!("{help} {word}");
    }
    let help = format!("{help} --help");
    let what = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "nothing to do was given".to_owned()
    } else {
        parts.join(" ")
    };
    format!("{what}; see '{help}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> String {
        usage_line(&Cli::try_parse_from(args).unwrap_err())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn clap_errors_become_one_line() {
        for (args, expected) in [
            (&["tapway"][..], "nothing to do was given; see 'tapway --help'"),
            (&["tapway", "run", "--nmae", "x", "true"], "unexpected argument '--nmae' found"),
            (&["tapway", "run"], "the following required arguments were not provided: <COMMAND>"),
            (&["tapway", "run", "--mtu", "big", "true"], "invalid value 'big' for '--mtu"),
            (&["tapway", "run", "--ipv6", "maybe", "true"], "[possible values: on, off]"),
            (&["tapway", "flows", "x", "--frob"], "see 'tapway flows --help'"),
            (&["tapway", "dns", "x", "add", "y"], "see 'tapway dns --help'"),
            (&["tapway", "dns", "x", "set"], "see 'tapway dns --help'"),
            (&["tapway", "network"], "see 'tapway network --help'"),
            (&["tapway", "network", "create"], "see 'tapway network create --help'"),
            (&["tapway", "network", "frob"], "see 'tapway network --help'"),
            (&["tapway", "unpublish", "x"], "required arguments were not provided: <SPEC>"),
            (&["tapway", "frob"], "unrecognized subcommand 'frob'"),
        ] {
            let line = line(args);
            assert!(line.contains(expected), "{args:?}: {line}");
            assert!(!line.contains('\n') && line.contains("--help'"), "{line}");
        }
    }

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(printable("a\x1b[31m\nb é"), "a\\u{1b}[31m\\nb é");
    }
}
