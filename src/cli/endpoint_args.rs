//! What can be typed about the interface that a sandbox gets, and about its place on a network: the same for `tapway run`
//! and `tapway attach`. Meaning and checks are in `cli::endpoint`.

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

/// Options of every command that makes an interface.
#[derive(Debug, Args)]
pub struct EndpointArgs {
    /// Name of the sandbox [default: its id, 12 hex digits]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Network to join: 'bridge' (shared by all that name no other), one made by 'tapway network create', 'private' (one of the sandbox's
    /// own), 'none' (only lo), 'host', or 'container:NAME' (another sandbox's). Of those that you made several, each with a --network; the
    /// long form says what is asked of it: name=NET[,alias=NAME][,ip=ADDR][,ip6=ADDR][,mac-address=MAC][,gw-priority=NUMBER]
    #[arg(long, alias = "net", value_name = "NETWORK", default_value = "bridge")]
    pub network: Vec<String>,

    /// Publish a port: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90
    #[arg(short, long, value_name = "SPEC")]
    pub publish: Vec<String>,

    /// Publish every port of --expose that has no -p of its own, at a host port that is chosen
    #[arg(short = 'P', long)]
    pub publish_all: bool,

    /// Port for -P: PORT[-END][/tcp|udp]
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,

    /// Address on the first network that you made [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip: Option<String>,

    /// IPv6 address on the first network that you made [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip6: Option<String>,

    /// Further name on the first network that you made
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,

    /// Call another sandbox of the first network by a name that only this one knows
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

    /// Queues of each interface, 1 to 8, each served by a thread of its own [default: one for every two cores, up to 4; or TAPWAY_QUEUES]
    #[arg(long, value_name = "NUMBER")]
    pub queues: Option<String>,

    /// MAC address of the first interface inside [default: random, or made of the address on a shared network]
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

    /// Line in /etc/hosts; IP may be 'host-gateway'
    #[arg(long, value_name = "NAME:IP")]
    pub add_host: Vec<String>,

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
}
