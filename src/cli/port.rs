//! `tapway port NAME [PORT[/PROTO]]`: the published ports of a running sandbox, in Docker's words.
//!
//! ```text
//! tapway port site         80/tcp -> 0.0.0.0:8080      one line for each host address, ports in numeric order
//! tapway port site 80      0.0.0.0:8080                without a protocol: TCP
//! tapway port --stats site                             a table, with what went through each
//! ```
//!
//! The control socket is asked. Where nobody serves one (a monitor that is older), the state file says what was published
//! when the sandbox began.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::table::{Side, Table, bytes, line, output};
use super::target::{self, Target};
use super::{FAILURE, Failure};
use crate::api::client::ClientError;
use crate::network::config::{Listener, Proto};

const EXAMPLES: &str = "\
Examples:
  tapway port site
      80/tcp -> 0.0.0.0:8080
  tapway port site 80
      0.0.0.0:8080
  tapway port --stats site
      a table with numbers, connections and bytes";

/// Arguments of `tapway port`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PortArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Only this port inside; tcp unless said otherwise
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: Option<String>,
    /// What went through each port
    #[arg(long)]
    pub stats: bool,
    /// Print JSON: Docker's object, or with --stats the protocol's
    #[arg(long)]
    pub json: bool,
}

/// One published port of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Port {
    #[serde(default)]
    id: Value,
    proto: Proto,
    host_addr: IpAddr,
    host_port: u16,
    #[serde(default)]
    guest_addr: Option<IpAddr>,
    guest_port: u16,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Counts {
    connections: u64,
    from_guest_bytes: u64,
    to_guest_bytes: u64,
    from_guest_packets: u64,
    to_guest_packets: u64,
}

/// Published ports, in numeric order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ports {
    ports: Vec<Port>,
}

impl Ports {
    /// Those of a reply to `verb`.
    pub fn read(target: &Target, verb: &str, reply: Value) -> Result<Self, Failure> {
        let foreign =
            |source| ClientError::Foreign { path: target.server.path().to_owned(), verb: verb.to_owned(), source };
        let mut ports = Self::deserialize(reply).map_err(|error| target.failure(verb, &foreign(error)))?;
        ports.sort();
        Ok(ports)
    }

    /// Those of a state file.
    pub fn of_state(listeners: Vec<Listener>) -> Self {
        let port = |l: Listener| Port {
            id: Value::Null,
            proto: l.proto,
            host_addr: l.host_addr,
            host_port: l.host_port,
            guest_addr: l.guest_addr,
            guest_port: l.guest_port,
            counts: Counts::default(),
        };
        let mut ports = Self { ports: listeners.into_iter().map(port).collect() };
        ports.sort();
        ports
    }

    /// IPv4 before IPv6.
    fn sort(&mut self) {
        self.ports.sort_by_key(|p| (p.guest_port, p.proto.name(), p.host_addr, p.host_port));
    }

    /// Only those that are asked for.
    fn select(mut self, wanted: Option<(u16, Proto)>) -> Self {
        self.ports.retain(|p| wanted.is_none_or(|wanted| wanted == (p.guest_port, p.proto)));
        self
    }

    /// A line for each; `hosts_only`: without the port inside.
    pub fn render(&self, hosts_only: bool) -> String {
        let line = |p: &Port| {
            let host = SocketAddr::new(p.host_addr, p.host_port);
            if hosts_only { format!("{host}\n") } else { format!("{}/{} -> {host}\n", p.guest_port, p.proto) }
        };
        self.ports.iter().map(line).collect()
    }

    /// Docker's `NetworkSettings.Ports`.
    pub fn docker(&self) -> Value {
        let mut map = Map::new();
        for p in &self.ports {
            let host = json!({ "HostIp": p.host_addr.to_string(), "HostPort": p.host_port.to_string() });
            let entry = map.entry(format!("{}/{}", p.guest_port, p.proto)).or_insert_with(|| json!([]));
            if let Value::Array(hosts) = entry {
                hosts.push(host);
            }
        }
        Value::Object(map)
    }

    fn render_stats(&self) -> String {
        let mut table = Table::new(&[
            ("ID", Side::Right),
            ("INSIDE", Side::Left),
            ("HOST", Side::Left),
            ("CONNECTIONS", Side::Right),
            ("FROM GUEST", Side::Right),
            ("TO GUEST", Side::Right),
        ]);
        for p in &self.ports {
            let guest =
                p.guest_addr.map_or_else(|| p.guest_port.to_string(), |a| SocketAddr::new(a, p.guest_port).to_string());
            table.row([
                super::table::cell(&p.id),
                format!("{guest}/{}", p.proto),
                SocketAddr::new(p.host_addr, p.host_port).to_string(),
                p.counts.connections.to_string(),
                bytes(p.counts.from_guest_bytes),
                bytes(p.counts.to_guest_bytes),
            ]);
        }
        table.render()
    }
}

/// Does it.
pub fn main(args: &PortArgs) -> Result<u8, Failure> {
    let wanted = args.port.as_deref().map(parse_port).transpose()?;
    let target = target::find(&args.sandbox)?;
    let reply = match (target.server.ask::<Value>("list_ports", json!({})), &target.sandbox) {
        (Err(error), Some(sandbox)) if error.nobody() && !args.stats => Err(sandbox.ports.clone()),
        (Err(error), _) => return Err(target.failure("list_ports", &error)),
        (Ok(reply), _) => Ok(reply),
    };
    let all = match &reply {
        Ok(reply) => Ports::read(&target, "list_ports", reply.clone())?,
        Err(state) => Ports::of_state(state.clone()),
    };
    let ports = all.select(wanted);
    if let (Some(port), true) = (&args.port, ports.ports.is_empty()) {
        let line = format!("no public port '{port}' published for {}", args.sandbox);
        return Err(Failure { code: FAILURE, line });
    }
    match (args.stats, args.json, reply) {
        (true, true, Ok(mut reply)) => {
            if let (Some((port, proto)), Some(Value::Array(items))) = (wanted, reply.get_mut("ports")) {
                items.retain(|item| item["guest_port"] == port && item["proto"] == proto.name());
            }
            output(&line(&reply))
        }
        (true, ..) => output(&ports.render_stats()),
        (false, true, _) => output(&line(&ports.docker())),
        (false, false, _) => output(&ports.render(wanted.is_some())),
    }
}

fn parse_port(text: &str) -> Result<(u16, Proto), Failure> {
    let bad = || Failure::usage(format!("port '{text}' is not a port; write PORT, PORT/tcp or PORT/udp"));
    let (port, proto) = match text.split_once('/') {
        None => (text, Proto::Tcp),
        Some((port, proto)) if proto.eq_ignore_ascii_case("tcp") => (port, Proto::Tcp),
        Some((port, proto)) if proto.eq_ignore_ascii_case("udp") => (port, Proto::Udp),
        Some(_) => return Err(bad()),
    };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|&port| port != 0 && digits).ok_or_else(bad)?;
    Ok((port, proto))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(guest_port: u16, proto: Proto, host: &str) -> Listener {
        let host: SocketAddr = host.parse().unwrap();
        Listener { proto, host_addr: host.ip(), host_port: host.port(), guest_addr: None, guest_port }
    }

    fn ports() -> Ports {
        Ports::of_state(vec![
            listener(443, Proto::Tcp, "127.0.0.1:4430"),
            listener(80, Proto::Tcp, "[::]:8080"),
            listener(80, Proto::Tcp, "0.0.0.0:8080"),
            listener(9, Proto::Udp, "0.0.0.0:9000"),
        ])
    }

    #[test]
    fn all_ports_in_natural_order() {
        assert_eq!(
            ports().render(false),
            "9/udp -> 0.0.0.0:9000\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n443/tcp -> 127.0.0.1:4430\n"
        );
        assert_eq!(Ports::of_state(Vec::new()).render(false), "");
    }

    #[test]
    fn one_port() {
        assert_eq!(ports().select(Some((80, Proto::Tcp))).render(true), "0.0.0.0:8080\n[::]:8080\n");
        assert_eq!(ports().select(Some((80, Proto::Udp))).ports, []);
        assert_eq!(parse_port("80"), Ok((80, Proto::Tcp)));
        assert_eq!(parse_port("53/UDP"), Ok((53, Proto::Udp)));
        for bad in ["", "x", "0", "65536", "80/sctp", "+80", "80/"] {
            let failure = parse_port(bad).unwrap_err();
            assert!(failure.code == super::super::USAGE && failure.line.contains(&format!("'{bad}'")));
        }
    }

    #[test]
    fn json() {
        assert_eq!(
            line(&ports().select(Some((80, Proto::Tcp))).docker()),
            "{\"80/tcp\":[{\"HostIp\":\"0.0.0.0\",\"HostPort\":\"8080\"},{\"HostIp\":\"::\",\"HostPort\":\"8080\"}]}\n"
        );
    }

    #[test]
    fn a_reply_with_counters() {
        let reply = json!({ "ports": [
            { "id": 4, "proto": "udp", "host_addr": "::1", "host_port": 53, "guest_addr": "10.0.2.7", "guest_port": 53,
              "connections": 2, "from_guest_bytes": 2048, "to_guest_bytes": 5, "from_guest_packets": 3,
              "to_guest_packets": 4, "something_new": {} },
            { "id": 3, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": null, "guest_port": 80 },
        ] });
        let ports: Ports = serde_json::from_value(reply).unwrap();
        assert_eq!(
            ports.render_stats(),
            "ID  INSIDE           HOST          CONNECTIONS  FROM GUEST  TO GUEST\n \
             4  10.0.2.7:53/udp  [::1]:53                2     2.0 KiB       5 B\n \
             3  80/tcp           0.0.0.0:8080            0         0 B       0 B\n"
        );
    }
}
