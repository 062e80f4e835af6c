//! What can be typed after `tapway run`. Meaning and checks are in `cli::run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::telemetry::LogFormat;

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

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

    /// Name of the sandbox [default: its id, 12 hex digits]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Host name inside [default: the id]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Network to join: 'bridge' (shared by all that name no other), one made by 'tapway network create', 'private' (one of the sandbox's
    /// own), 'none' (only lo), 'host', or 'container:NAME' (another sandbox's)
    #[arg(long, alias = "net", value_name = "NETWORK", default_value = "bridge")]
    pub network: String,

    /// Publish a port: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90
    #[arg(short, long, value_name = "SPEC")]
    pub publish: Vec<String>,

    /// Publish every port of --expose that has no -p of its own, at a host port that is chosen
    #[arg(short = 'P', long)]
    pub publish_all: bool,

    /// Port for -P: PORT[-END][/tcp|udp]
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,

    /// Address on a network that you made [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip: Option<String>,

    /// IPv6 address on a network that you made [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip6: Option<String>,

    /// Further name on a network that you made
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,

    /// Call another sandbox of the network by a name that only this one knows
    #[arg(long, value_name = "NAME[:ALIAS]")]
    pub link: Vec<String>,

    /// MTU of the interface inside, in bytes (68 to 65521; 1280 or more with IPv6); a shared network has its own
    /// [default: 65520]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,

    /// Subnet inside, IPv4 or an IPv6 /64; once for each family [default: 10.0.2.0/24 and a random fd…/64]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Vec<String>,

    /// IPv6 inside
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub ipv6: Switch,

    /// MAC address of the interface inside [default: random]
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,

    /// Let the gateway address reach servers that listen on the host's 127.0.0.1 and ::1 only
    #[arg(long)]
    pub allow_host_loopback: bool,

    /// Let 169.254.0.0/16 be reached (metadata services of clouds live there)
    #[arg(long)]
    pub allow_link_local: bool,

    /// Source of outgoing connections: an address of the host, or the name of an interface
    #[arg(long, value_name = "ADDR|INTERFACE")]
    pub outbound_addr: Vec<String>,

    /// Name server to forward queries to, ADDRESS or ADDRESS:PORT [default: those of the host, as they change]
    #[arg(long, value_name = "ADDR")]
    pub dns: Vec<String>,

    /// Search domain in /etc/resolv.conf; '.' for none [default: the host's]
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,

    /// Option in /etc/resolv.conf, such as ndots:1 [default: the host's]
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,

    /// Line in /etc/hosts; IP may be 'host-gateway'
    #[arg(long, value_name = "NAME:IP")]
    pub add_host: Vec<String>,

    /// User inside: UID[:GID], or 'keep' for your own ids [default: root]
    #[arg(long, value_name = "UID[:GID]|keep")]
    pub user: Option<String>,

    /// Process ids: 'private', or 'host' to share the host's
    #[arg(long, value_name = "private|host", default_value = "private")]
    pub pid: String,

    /// Serve metrics there by HTTP, for Prometheus; without IP on 127.0.0.1, and port 0 is one that is free
    #[arg(long, value_name = "[IP:]PORT")]
    pub metrics_listen: Option<String>,

    /// Write every frame to this file (pcapng)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Tell more; repeat for more still
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Form of log lines
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,

    /// Run in the background: print the id when the sandbox is up; 'tapway logs' shows its output
    #[arg(short, long)]
    pub detach: bool,

    /// With --detach: remove the logs when it ends. Nothing else is ever left behind
    #[arg(long)]
    pub rm: bool,

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
