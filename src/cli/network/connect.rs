//! `tapway network connect` and `disconnect`: asked of the sandbox's monitor, which does it (`sandbox::monitor::networks`).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::api::verbs::connect::{ConnectNetwork, DisconnectNetwork};
use crate::cli::table::{line, output};
use crate::cli::target::{self, Target};
use crate::cli::{FAILURE, Failure};

const CONNECT_EXAMPLES: &str = "\
Examples:
  tapway network connect db web
      the sandbox 'web' gets one more interface, on the network 'db', and is found there by its name
  tapway network connect --alias cache --ip 172.19.0.9 db web
  tapway network connect --gw-priority 1 uplink web
      what leaves 'web' for the world leaves by 'uplink' from now on, and its published ports come in there

Of a sandbox's networks the one with the highest --gw-priority has the default route and the published ports; among equals
one that is not internal, then one with IPv6, then the first by name. Connections that there are go on where they are.";

const DISCONNECT_EXAMPLES: &str = "\
Examples:
  tapway network disconnect db web
      the interface goes, and with it the connections that it has; the address is free
  tapway network disconnect -f db web
      no error if 'web' is not running or not there";

/// How long somebody else's change is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether that one is over.
const PAUSE: Duration = Duration::from_millis(20);

/// Arguments of `tapway network connect`.
#[derive(Debug, Args)]
#[command(after_long_help = CONNECT_EXAMPLES)]
pub struct ConnectArgs {
    /// Further name of the sandbox on the network
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// Not supported: there are no such options
    #[arg(long, value_name = "KEY=VALUE", hide = true)]
    pub driver_opt: Vec<String>,
    /// The highest of a sandbox's networks is its gateway
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    pub gw_priority: i32,
    /// Address [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address [default: the lowest that is free]
    #[arg(long, value_name = "ADDR")]
    pub ip6: Option<Ipv6Addr>,
    /// Call another sandbox of the network by a name that only this one knows
    #[arg(long, value_name = "NAME[:ALIAS]")]
    pub link: Vec<String>,
    /// Not supported: the kernel makes these addresses
    #[arg(long, value_name = "ADDR", hide = true)]
    pub link_local_ip: Vec<String>,
    /// MAC address [default: made of the address]
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,
    /// Print JSON: what the sandbox got
    #[arg(long)]
    pub json: bool,
    /// Name or id of a network, or the beginning of an id
    #[arg(value_name = "NETWORK")]
    pub network: String,
    /// Name or id of a running sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

/// Arguments of `tapway network disconnect`.
#[derive(Debug, Args)]
#[command(after_long_help = DISCONNECT_EXAMPLES)]
pub struct DisconnectArgs {
    /// No error if the sandbox is not there
    #[arg(short, long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Name or id of a network, or the beginning of an id
    #[arg(value_name = "NETWORK")]
    pub network: String,
    /// Name or id of a running sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

/// Does it.
pub fn connect(args: &ConnectArgs) -> Result<u8, Failure> {
    for (given, option) in [(&args.driver_opt, "driver-opt"), (&args.link_local_ip, "link-local-ip")] {
        if let Some(value) = given.first() {
            return Err(Failure::usage(format!("--{option} '{value}' is not supported by tapway; leave it out")));
        }
    }
    let target = target::container(&args.sandbox)?;
    let wanted = ConnectNetwork {
        network: args.network.clone(),
        ip: args.ip,
        ip6: args.ip6,
        mac_address: args.mac_address.clone(),
        aliases: args.alias.clone(),
        links: args.link.clone(),
        gw_priority: args.gw_priority,
    };
    let connected = ask(&target, "connect_network", &wanted)?;
    if args.json { output(&line(&connected)) } else { Ok(0) }
}

/// Does it.
pub fn disconnect(args: &DisconnectArgs) -> Result<u8, Failure> {
    let target = match target::container(&args.sandbox) {
        Err(_) if args.force => return Ok(0),
        found => found?,
    };
    let reply = ask(&target, "disconnect_network", &DisconnectNetwork { network: args.network.clone() })?;
    if args.json { output(&line(&reply)) } else { Ok(0) }
}

/// Asks until nobody else's change is in the way.
fn ask(target: &Target, verb: &str, arguments: &impl Serialize) -> Result<Value, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        match target.server.ask(verb, arguments) {
            Err(error) if error.code() == Some("busy") && Instant::now() < end => std::thread::sleep(PAUSE),
            // Docker has 1 for these.
            Err(error) => return Err(Failure { code: FAILURE, ..target.failure(verb, &error) }),
            Ok(reply) => return Ok(reply),
        }
    }
}
