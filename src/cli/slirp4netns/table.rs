//! The options of slirp4netns 1.3.2, what is said about them, and the same for clap.
//!
//! One table feeds the parser, `--help`, and, by way of clap, the manual page and the shell completions. Its order is the
//! one in which the candidates of an ambiguous option are named.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::getopt::Name;

/// Version of slirp4netns whose command line this is.
const SLIRP4NETNS: &str = "1.3.2";
/// libslirp's version that comes with it, and the version of its configuration: callers ask for 3 or more before they use
/// `--outbound-addr` and `--disable-dns`.
const LIBSLIRP: (&str, u32) = ("4.9.1", 6);
/// Column at which descriptions start.
const COLUMN: usize = 31;

/// What an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table below says it")]
pub enum Id {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Cidr,
    DisableHostLoopback,
    NoHostLoopback,
    NetnsType,
    UsernsPath,
    ApiSocket,
    EnableIpv6,
    EnableSandbox,
    CreateSandbox,
    EnableSeccomp,
    Help,
    Version,
    OutboundAddr,
    OutboundAddr6,
    DisableDns,
    MacAddress,
    TargetType,
}

/// One option as the user reads of it.
struct Described {
    id: Id,
    short: Option<u8>,
    long: &'static str,
    /// What stands for its value; None for a flag.
    value: Option<&'static str>,
    /// None hides it: an old name.
    help: Option<&'static str>,
}

const fn option(
    id: Id,
    short: Option<u8>,
    long: &'static str,
    value: Option<&'static str>,
    help: &'static str,
) -> Described {
    Described { id, short, long, value, help: Some(help) }
}

const fn old(id: Id, long: &'static str) -> Described {
    Described { id, short: None, long, value: None, help: None }
}

const OPTIONS: [Described; 21] = [
    option(Id::Configure, Some(b'c'), "configure", None, "give the interface its address, MTU and route, and raise it"),
    option(Id::ExitFd, Some(b'e'), "exit-fd", Some("FD"), "end when the other side of this descriptor closes"),
    option(Id::ReadyFd, Some(b'r'), "ready-fd", Some("FD"), "write a '1' to this descriptor once the network is ready"),
    option(Id::Mtu, Some(b'm'), "mtu", Some("N"), "MTU of the interface, 1 to 65521 (default 1500)"),
    option(Id::Cidr, None, "cidr", Some("CIDR"), "IPv4 network, /1 to /25 (default 10.0.2.0/24)"),
    option(
        Id::DisableHostLoopback,
        None,
        "disable-host-loopback",
        None,
        "the gateway does not lead to the host's 127.0.0.1",
    ),
    old(Id::NoHostLoopback, "no-host-loopback"),
    option(Id::NetnsType, None, "netns-type", Some("TYPE"), "what the first argument is: pid (default), path or tapfd"),
    option(Id::UsernsPath, None, "userns-path", Some("PATH"), "user namespace to join first"),
    option(
        Id::ApiSocket,
        Some(b'a'),
        "api-socket",
        Some("PATH"),
        "take requests for port forwards at this Unix socket",
    ),
    option(Id::EnableIpv6, Some(b'6'), "enable-ipv6", None, "IPv6, too: fd00::/64"),
    option(Id::EnableSandbox, None, "enable-sandbox", None, "see nothing of the file system but /etc and /run"),
    old(Id::CreateSandbox, "create-sandbox"),
    option(Id::EnableSeccomp, None, "enable-seccomp", None, "restrict system calls (always on here)"),
    option(Id::Help, Some(b'h'), "help", None, "print this and exit"),
    option(Id::Version, Some(b'v'), "version", None, "print what this is and exit"),
    option(
        Id::OutboundAddr,
        None,
        "outbound-addr",
        Some("ADDR"),
        "IPv4 source of connections to outside: address or interface",
    ),
    option(
        Id::OutboundAddr6,
        None,
        "outbound-addr6",
        Some("ADDR"),
        "IPv6 source of connections to outside: address or interface",
    ),
    option(Id::DisableDns, None, "disable-dns", None, "do not answer names at the network's third address"),
    option(Id::MacAddress, None, "macaddress", Some("MAC"), "MAC address of the interface (only with -c)"),
    option(Id::TargetType, None, "target-type", Some("TYPE"), "netns (default), or bess: frames over a Unix socket"),
];

/// The table for the parser.
pub fn names() -> Vec<Name<Id>> {
    OPTIONS.iter().map(|o| Name { long: o.long, short: o.short, valued: o.value.is_some(), id: o.id }).collect()
}

/// Those that are shown, the two that end it all last.
fn shown() -> impl Iterator<Item = (&'static Described, &'static str)> {
    let all = || OPTIONS.iter().filter_map(|o| Some((o, o.help?)));
    let last = |id| matches!(id, Id::Help | Id::Version);
    all().filter(move |(o, _)| !last(o.id)).chain(all().filter(move |(o, _)| last(o.id)))
}

/// What `--help` prints, and every error of the command line.
pub fn usage(program: &str) -> String {
    let mut text = format!(
        "Usage: {program} [OPTION]... PID|PATH|FD [TAPNAME]\n\
         A network for a namespace that exists already, in the manner of slirp4netns {SLIRP4NETNS}.\n\n"
    );
    for (o, help) in shown() {
        let short = o.short.map_or("    ".to_owned(), |letter| format!("-{}, ", char::from(letter)));
        let value = o.value.map_or(String::new(), |value| format!("={value}"));
        let _ = writeln!(text, "{:COLUMN$}{help}", format!("  {short}--{}{value}", o.long));
    }
    let _ = write!(
        text,
        "\nThe network: gateway .2 (the host), names .3, DHCP .15 to .30, recommended address .100.\n\n\
         Example:\n  \
         unshare --user --map-root-user --net sleep infinity &\n  \
         {program} --configure --mtu=65520 --disable-host-loopback $! tap0\n"
    );
    text
}

/// What `--version` prints. Callers split every line at the first lower-case word for it, so it is in one line only.
pub fn version() -> String {
    let (libslirp, config) = LIBSLIRP;
    format!(
        "slirp4netns version {SLIRP4NETNS}\n\
         commit: tapway {}\n\
         libslirp: {libslirp} (what tapway does in its place)\n\
         SLIRP_CONFIG_VERSION_MAX: {config}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The options for clap, which lists them in the manual page and the completions. It never parses them: see
/// [`super::dispatch`].
#[derive(Debug)]
pub struct Listed;

impl FromArgMatches for Listed {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

impl Args for Listed {
    fn augment_args(command: Command) -> Command {
        let options = shown().map(|(o, help)| {
            let mut arg = Arg::new(o.long).long(o.long).help(help);
            if let Some(short) = o.short {
                arg = arg.short(char::from(short));
            }
            match o.value {
                Some(value) => arg.value_name(value),
                None => arg.action(ArgAction::SetTrue),
            }
        });
        command
            .disable_help_flag(true)
            .args(options)
            .arg(Arg::new("target").value_name("PID|PATH|FD").required(true).help("The namespace, or an open TAP"))
            .arg(Arg::new("tapname").value_name("TAPNAME").help("Name of the interface"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_as_a_word() {
        let text = usage("x/slirp4netns");
        assert!(text.starts_with("Usage: x/slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]\n"));
        for o in &OPTIONS {
            let found =
                text.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|word| word == format!("--{}", o.long));
            assert_eq!(found, o.help.is_some(), "{}", o.long);
        }
        for line in text.lines() {
            assert!(line.len() <= 100, "{line}");
            // The column holds: two spaces at least before a description.
            assert!(
                !line.starts_with("  -") && !line.starts_with("      --") || line[COLUMN - 2..].starts_with("  "),
                "{line}"
            );
        }
    }

    #[test]
    fn the_version_is_what_callers_split() {
        let text = version();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "slirp4netns version 1.3.2");
        assert!(lines[1].starts_with("commit: tapway "));
        assert!(lines[1..].iter().all(|line| !line.contains("version") && line.split_once(": ").is_some()), "{text}");
        let max = lines.iter().find_map(|line| line.strip_prefix("SLIRP_CONFIG_VERSION_MAX: ")).unwrap();
        assert_eq!(max.parse::<u32>(), Ok(6));
        assert!(text.ends_with('\n'));
    }
}
