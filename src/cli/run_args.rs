//! What can be typed after `tapway run`. Meaning and checks are in `cli::run`.

use std::ffi::OsString;

use clap::{ArgAction, Args};

use super::endpoint_args::EndpointArgs;

const EXAMPLES: &str = "\
Examples:
  tapway run -- curl https://example.com/
      one command, on the network that sandboxes share by default
  tapway run --name site -p 8080:80 -- python3 -m http.server 80
      a server inside, reached at port 8080 of the host; 'tapway port site' shows it
  tapway run -d --name site -p 8080:80 -- python3 -m http.server 80
      the same in the background: tapway logs -f site, tapway exec site …, tapway stop site
  tapway run --network container:site -- curl http://127.0.0.1/
      a command in the network of another sandbox
  tapway run -p 127.0.0.1::53/udp --add-host db:host-gateway --user keep -- bash
      a shell under your own user id; the host is 'db' inside
  tapway run --name site -p 8080:80 --metrics-listen 9100 -- python3 -m http.server 80
      counters of its traffic at http://127.0.0.1:9100/metrics

Ports: -p [HOSTIP:]HOSTPORT:PORT[/tcp|udp], -p PORT and -p HOSTIP::PORT (a host port is chosen),
  -p 8000-8010:80-90 (ranges), IPv6 addresses in brackets. Without HOSTIP: 0.0.0.0 and [::].

Exit code: the command's own; 128+N if signal N ended it; 127 if it was not found, 126 if it could not be
  executed; 2 for a wrong command line; 1 if the sandbox could not be made.";

/// Arguments of `tapway run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, args_override_self = true, after_long_help = EXAMPLES)]
pub struct RunArgs {
    /// Program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// Its place on a network
    #[command(flatten)]
    pub endpoint: EndpointArgs,

    /// Host name inside [default: the id]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Search domain in /etc/resolv.conf; '.' for none [default: the host's]
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,

    /// Option in /etc/resolv.conf, such as ndots:1 [default: the host's]
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,

    /// User inside: UID[:GID], or 'keep' for your own ids [default: root]
    #[arg(long, value_name = "UID[:GID]|keep")]
    pub user: Option<String>,

    /// Process ids: 'private', or 'host' to share the host's
    #[arg(long, value_name = "private|host", default_value = "private")]
    pub pid: String,

    /// Accepted out of habit; stdin is always the caller's
    #[arg(short, long, hide = true)]
    pub interactive: bool,

    /// Accepted out of habit; the terminal is always the caller's
    #[arg(short, long, hide = true)]
    pub tty: bool,

    /// Print help
    #[arg(long, action = ArgAction::HelpLong)]
    pub help: Option<bool>,
}
