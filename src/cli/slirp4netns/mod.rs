//! `tapway slirp4netns`, and tapway under the name of slirp4netns: that program's command line.
//!
//! Callers probe it (`--help`, `--version`), show its messages to their users and search them, so all of it is as in
//! slirp4netns 1.3.2: the grammar of getopt_long(3) ([`getopt`]), the options ([`table`]), the order of the checks
//! ([`parse`]), what values may be ([`values`]) and every message. Complaints go to stderr, everything else to stdout;
//! the code is 0 for help and version and 1 for whatever is wrong. clap has no say in it (it would exit with 2, and knows
//! neither permutation nor prefixes that way), it only lists the options in the manual page and the completions.
//!
//! What differs, on purpose: each warning comes once; a PID or descriptor that does not fit is refused and not cut to 32 bits;
//! `--outbound-addr6` heeds an interface's name; control characters in a quoted value are escaped; `--help` has its own
//! words. An interface's name is text, so one that is not UTF-8 has U+FFFD in it.

pub mod getopt;
pub mod parse;
pub mod process;
pub mod table;
pub mod values;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use self::parse::End;
use super::printable;
use crate::sandbox::slirp::options::Options;

/// The name by which tapway is slirp4netns, and the subcommand.
const NAME: &str = "slirp4netns";

/// What is to be done after the command line.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing; all is said.
    Exit(ExitCode),
    /// To serve this.
    Run(Box<Options>),
}

/// True if the program was started under the name of slirp4netns.
pub fn invoked_as(argv0: &OsStr) -> bool {
    Path::new(argv0).file_name() == Some(OsStr::new(NAME))
}

/// Does it, if `args` (argv) ask for this mode; None otherwise.
pub fn dispatch(args: impl IntoIterator<Item = OsString>, run: impl FnOnce(Options) -> ExitCode) -> Option<ExitCode> {
    let mut args = args.into_iter();
    let argv0 = args.next()?;
    let mut program = argv0.to_string_lossy().into_owned();
    if !invoked_as(&argv0) {
        if args.next()? != NAME {
            return None;
        }
        program = format!("{program} {NAME}");
    }
    Some(match command_line(&program, args) {
        Outcome::Exit(code) => code,
        Outcome::Run(options) => run(*options),
    })
}

/// Reads `args`, the words after the program's name, and says what there is to say.
pub fn command_line(program: &str, args: impl IntoIterator<Item = OsString>) -> Outcome {
    let posix = std::env::var_os("POSIXLY_CORRECT").is_some();
    let program = printable(program);
    let end = parse::parse(&program, args, posix, &mut |warning| out(&format!("{warning}\n")));
    match end {
        End::Print(text) => {
            out(&text);
            Outcome::Exit(ExitCode::SUCCESS)
        }
        End::Usage(complaint) => {
            if let Some(complaint) = complaint {
                complain(&complaint);
            }
            out(&table::usage(&program));
            Outcome::Exit(ExitCode::FAILURE)
        }
        End::Refused(error) => {
            complain(&error.to_string());
            error.hint().into_iter().for_each(complain);
            Outcome::Exit(ExitCode::FAILURE)
        }
        End::Run(options) => Outcome::Run(options),
    }
}

/// To stdout at once. Whoever has closed it does not want it, and that is no failure.
fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// What is printed when the link is there: the network as the guest will see it.
pub fn banner(options: &Options) -> String {
    let plan = &options.plan;
    let mut text = String::from("Starting slirp\n");
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{:19}{value}", format!("* {name}:"));
    };
    line("MTU", &options.mtu);
    line("Network", &plan.subnet.network());
    line("Netmask", &plan.subnet.netmask());
    line("Gateway", &plan.gateway);
    line("DNS", &plan.dns);
    line("DHCP begin", &options.dhcp.0);
    line("DHCP end", &options.dhcp.1);
    line("Recommended IP", &plan.guest);
    if let Some(path) = &options.api_socket {
        line("API Socket", &printable(&path.to_string_lossy()));
    }
    // These two stand a column further right.
    if let Some(address) = options.outbound_v4 {
        line("Outbound IPv4", &format_args!(" {address}"));
    }
    if let Some(address) = options.outbound_v6 {
        line("Outbound IPv6", &format_args!(" {address}"));
    }
    if let Some(mac) = options.mac {
        line("MAC address", &mac.0.map(|byte| format!("{byte:02x}")).join(":"));
    }
    if !options.disable_host_loopback {
        let _ = writeln!(
            text,
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit connecting \
             to 127.0.0.1:*)",
            plan.gateway
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_program() {
        for yes in ["slirp4netns", "/usr/bin/slirp4netns", "./slirp4netns"] {
            assert!(invoked_as(OsStr::new(yes)), "{yes}");
        }
        for no in ["tapway", "/usr/libexec/slirp4netns/tapway", "xslirp4netns", "slirp4netns.old", ""] {
            assert!(!invoked_as(OsStr::new(no)), "{no}");
        }
    }

    #[test]
    fn who_asks_for_this_mode() {
        let served = |words: &[&str]| {
            let mut program = None;
            let code = dispatch(words.iter().map(OsString::from), |options| {
                program = Some(options.program);
                ExitCode::SUCCESS
            });
            (code.is_some(), program)
        };
        let name = |text: &str| (true, Some(text.to_owned()));
        assert_eq!(served(&["/bin/slirp4netns", "7", "tap0"]), name("/bin/slirp4netns"));
        assert_eq!(served(&["tapway", "slirp4netns", "7", "tap0"]), name("tapway slirp4netns"));
        for not in [&["tapway", "run", "slirp4netns"][..], &["tapway"], &["tapway", "--help"], &[]] {
            assert_eq!(served(not), (false, None), "{not:?}");
        }
    }

    #[test]
    fn the_banner() {
        let words =
            "--macaddress 2:AA -cm 1400 -a /a/b --outbound-addr 127.0.0.1 --outbound-addr6 ::1 --cidr 10.1.0.0/16 7 t";
        let parsed = |words: &str| match command_line("x", words.split(' ').map(OsString::from)) {
            Outcome::Run(options) => *options,
            Outcome::Exit(_) => panic!("{words}"),
        };
        let expected = "\
Starting slirp
* MTU:             1400
* Network:         10.1.0.0
* Netmask:         255.255.0.0
* Gateway:         10.1.0.2
* DNS:             10.1.0.3
* DHCP begin:      10.1.0.15
* DHCP end:        10.1.0.30
* Recommended IP:  10.1.0.100
* API Socket:      /a/b
* Outbound IPv4:    127.0.0.1
* Outbound IPv6:    ::1
* MAC address:     02:aa:00:00:00:00
WARNING: 127.0.0.1:* on the host is accessible as 10.1.0.2 (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)
";
        assert_eq!(banner(&parsed(words)), expected);
        let short = banner(&parsed("--disable-host-loopback 7 t"));
        assert!(short.ends_with("* Recommended IP:  10.0.2.100\n"), "{short}");
    }
}
