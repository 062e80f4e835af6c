//! `tapway port NAME [PORT[/PROTO]]`: the published ports of a running sandbox, in Docker's words.
//!
//! ```text
//! tapway port site         80/tcp -> 0.0.0.0:8080      one line for each host address, ports in numeric order
//! tapway port site 80      0.0.0.0:8080                without a protocol: TCP
//! ```

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{FAILURE, Failure};
use crate::network::config::{Listener, Proto};
use crate::sandbox::state;

/// Arguments of `tapway port`.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name or id of the sandbox
    pub name: String,
    /// Only this port inside; tcp unless said otherwise
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &PortArgs) -> Result<u8, Failure> {
    let wanted = args.port.as_deref().map(parse_port).transpose()?;
    let error = |error: state::StateError| Failure::runtime(&error);
    let dir = state::runtime_dir(std::env::var_os("XDG_RUNTIME_DIR")).map_err(error)?;
    let sandbox = state::find(&dir, &args.name).map_err(error)?;
    let ports = select(sandbox.ports, wanted);
    if let (Some(port), true) = (&args.port, ports.is_empty()) {
        let line = format!("no public port '{port}' published for {}", args.name);
        return Err(Failure { code: FAILURE, line });
    }
    let text = if args.json { render_json(&ports) } else { render(&ports, wanted.is_some()) };
    // A reader that has seen enough is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(0)
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

/// Those that are asked for, in numeric order, IPv4 before IPv6.
fn select(mut ports: Vec<Listener>, wanted: Option<(u16, Proto)>) -> Vec<Listener> {
    ports.retain(|l| wanted.is_none_or(|wanted| wanted == (l.guest_port, l.proto)));
    ports.sort_by_key(|l| (l.guest_port, l.proto.name(), l.host_addr, l.host_port));
    ports
}

fn render(ports: &[Listener], hosts_only: bool) -> String {
    ports
        .iter()
        .map(|l| {
            let host = SocketAddr::new(l.host_addr, l.host_port);
            if hosts_only { format!("{host}\n") } else { format!("{}/{} -> {host}\n", l.guest_port, l.proto) }
        })
        .collect()
}

/// Docker's `NetworkSettings.Ports`.
fn render_json(ports: &[Listener]) -> String {
    let mut map = Map::new();
    for l in ports {
        let host = json!({ "HostIp": l.host_addr.to_string(), "HostPort": l.host_port.to_string() });
        let entry = map.entry(format!("{}/{}", l.guest_port, l.proto)).or_insert_with(|| json!([]));
        if let Value::Array(hosts) = entry {
            hosts.push(host);
        }
    }
    format!("{}\n", Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(guest_port: u16, proto: Proto, host: &str) -> Listener {
        let host: SocketAddr = host.parse().unwrap();
        Listener { proto, host_addr: host.ip(), host_port: host.port(), guest_addr: None, guest_port }
    }

    fn ports() -> Vec<Listener> {
        vec![
            listener(443, Proto::Tcp, "127.0.0.1:4430"),
            listener(80, Proto::Tcp, "[::]:8080"),
            listener(80, Proto::Tcp, "0.0.0.0:8080"),
            listener(9, Proto::Udp, "0.0.0.0:9000"),
        ]
    }

    #[test]
    fn all_ports_in_natural_order() {
        assert_eq!(
            render(&select(ports(), None), false),
            "9/udp -> 0.0.0.0:9000\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n443/tcp -> 127.0.0.1:4430\n"
        );
        assert_eq!(render(&[], false), "");
    }

    #[test]
    fn one_port() {
        assert_eq!(render(&select(ports(), Some((80, Proto::Tcp))), true), "0.0.0.0:8080\n[::]:8080\n");
        assert_eq!(select(ports(), Some((80, Proto::Udp))), []);
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
            render_json(&select(ports(), Some((80, Proto::Tcp)))),
            "{\"80/tcp\":[{\"HostIp\":\"0.0.0.0\",\"HostPort\":\"8080\"},{\"HostIp\":\"::\",\"HostPort\":\"8080\"}]}\n"
        );
    }
}
