//! What `-p/--publish` means: `[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]`, ports singly or as ranges.
//!
//! ```text
//! 8080:80            every host address, port 8080           → guest port 80, TCP
//! 127.0.0.1:8080:80  one host address ([::1] in brackets)
//! 80                 every host address, a port is chosen    (also :80)
//! 127.0.0.1::80      one host address, a port is chosen
//! 8000-8010:80-90    as many ports on each side, in order
//! 8000-8010:80       the first of these host ports that is free
//! ```
//!
//! Text in, values out; binding is `host::ports`'s. Deliberately not here: host names as addresses,
//! SCTP, IPv6 scopes.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::config::Proto;

/// Most ports that are published by one command or one request: each costs a host descriptor or two in two processes.
pub const MAX_PORTS: usize = 16_384;

/// Which host port stands for a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPort {
    /// The kernel chooses.
    Chosen,
    /// This one.
    Fixed(u16),
    /// The first of these, inclusive, that is free.
    FirstOf(u16, u16),
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Host address; None is every one of both families.
    pub host: Option<IpAddr>,
    /// Host port.
    pub host_port: HostPort,
    /// Guest port.
    pub guest_port: u16,
    /// Transport.
    pub proto: Proto,
}

/// Why a `-p` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("published port '{spec}': {fault}")]
pub struct PublishError {
    spec: String,
    fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("'{0}' is not a port; give a number from 1 to 65535 or a range such as 8000-8010")]
    Port(String),
    #[error("the range {0}-{1} runs backwards; write {1}-{0}")]
    Backwards(u16, u16),
    #[error("protocol '{0}' is not known; use /tcp or /udp")]
    Proto(String),
    #[error("'{0}' is not a host address; give an IPv4 address, or IPv6 in brackets such as [::1]")]
    Address(String),
    #[error("too many colons; write [HOSTIP:]HOSTPORT:PORT, with IPv6 in brackets such as [::1]:8080:80")]
    Colons,
    #[error("{0} host ports do not fit {1} guest ports; give two ranges of one length")]
    Lengths(usize, usize),
    #[error("the guest port is missing; write [HOSTIP:]HOSTPORT:PORT")]
    NoGuestPort,
    #[error("more than {MAX_PORTS} published ports; publish fewer")]
    TooMany,
    #[error("clashes with the published port '{0}' on the same host port; give each its own")]
    Clash(String),
}

/// Reads one `-p`.
pub fn parse(spec: &str) -> Result<Vec<Publish>, PublishError> {
    parse_spec(spec).map_err(|fault| PublishError { spec: spec.to_owned(), fault })
}

/// Reads all `-p` of a command and refuses two that want the same host port.
pub fn parse_all<S: AsRef<str>>(specs: &[S]) -> Result<Vec<Publish>, PublishError> {
    let mut all: Vec<Publish> = Vec::new();
    // Only the same fixed host port can clash.
    let mut by_port: HashMap<(Proto, u16), Vec<(Publish, &str)>> = HashMap::new();
    for spec in specs {
        let spec = spec.as_ref();
        let fail = |fault| PublishError { spec: spec.to_owned(), fault };
        for port in parse(spec)? {
            if let HostPort::Fixed(number) = port.host_port {
                let same = by_port.entry((port.proto, number)).or_default();
                if let Some((_, other)) = same.iter().find(|(other, _)| clash(other, &port)) {
                    return Err(fail(Fault::Clash((*other).to_owned())));
                }
                same.push((port, spec));
            }
            if all.len() == MAX_PORTS {
                return Err(fail(Fault::TooMany));
            }
            all.push(port);
        }
    }
    Ok(all)
}

/// Reads all `--expose` of a command: `PORT[-END][/tcp|udp]`, each a port whose host port is chosen.
pub fn parse_exposed<S: AsRef<str>>(specs: &[S]) -> Result<Vec<Publish>, PublishError> {
    let mut all = Vec::new();
    for spec in specs {
        let spec = spec.as_ref();
        if spec.contains(':') {
            return Err(PublishError { spec: spec.to_owned(), fault: Fault::Port(spec.to_owned()) });
        }
        all.extend(parse(spec)?);
    }
    Ok(all)
}

/// `-P`: publishes every exposed port that is not published already.
pub fn publish_exposed(published: &mut Vec<Publish>, exposed: Vec<Publish>) {
    for port in exposed {
        if !published.iter().any(|other| (other.guest_port, other.proto) == (port.guest_port, port.proto)) {
            published.push(port);
        }
    }
}

/// True if two of one transport and one fixed port can never both be bound: their addresses overlap.
fn clash(a: &Publish, b: &Publish) -> bool {
    let covers = |wide: Option<IpAddr>, other: Option<IpAddr>| match (wide, other) {
        (None, _) | (_, None) => true,
        (Some(x), Some(y)) => x == y || (x.is_unspecified() && x.is_ipv4() == y.is_ipv4()),
    };
    covers(a.host, b.host) || covers(b.host, a.host)
}

fn parse_spec(spec: &str) -> Result<Vec<Publish>, Fault> {
    let (rest, proto) = match spec.rsplit_once('/') {
        None => (spec, Proto::Tcp),
        Some((rest, proto)) if proto.eq_ignore_ascii_case("tcp") => (rest, Proto::Tcp),
        Some((rest, proto)) if proto.eq_ignore_ascii_case("udp") => (rest, Proto::Udp),
        Some((_, proto)) => return Err(Fault::Proto(proto.to_owned())),
    };
    let (host, ports) = split_host(rest)?;
    let (host_ports, guest_ports) = match ports.rsplit_once(':') {
        None if host.is_some() => return Err(Fault::NoGuestPort),
        None => (None, ports),
        Some(("", guest)) => (None, guest),
        Some((host_ports, _)) if host_ports.contains(':') => return Err(Fault::Colons),
        Some((host_ports, guest)) => (Some(parse_range(host_ports)?), guest),
    };
    if guest_ports.is_empty() {
        return Err(Fault::NoGuestPort);
    }
    let guest_ports = parse_range(guest_ports)?;
    let one = |host_port, guest_port| Publish { host, host_port, guest_port, proto };
    let count = guest_ports.len();
    if count > MAX_PORTS {
        return Err(Fault::TooMany);
    }
    Ok(match host_ports {
        None => guest_ports.map(|port| one(HostPort::Chosen, port)).collect(),
        Some(range) if range.len() == count => {
            range.zip(guest_ports).map(|(host_port, port)| one(HostPort::Fixed(host_port), port)).collect()
        }
        Some(range) if count == 1 => {
            vec![one(HostPort::FirstOf(*range.start(), *range.end()), *guest_ports.start())]
        }
        Some(range) => return Err(Fault::Lengths(range.len(), count)),
    })
}

/// Splits `HOSTIP:` off; what is left is `HOSTPORT:PORT`, `:PORT` or `PORT`.
fn split_host(text: &str) -> Result<(Option<IpAddr>, &str), Fault> {
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or_else(|| Fault::Address(text.to_owned()))?;
        let address: Ipv6Addr = address.parse().map_err(|_| Fault::Address(address.to_owned()))?;
        let ports = rest.strip_prefix(':').ok_or(Fault::NoGuestPort)?;
        return Ok((Some(IpAddr::V6(address)), ports));
    }
    match text.split_once(':') {
        Some((host, ports)) if ports.contains(':') && !host.is_empty() => {
            if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 2 {
                return Err(Fault::Colons);
            }
            let address: Ipv4Addr = host.parse().map_err(|_| Fault::Address(host.to_owned()))?;
            Ok((Some(IpAddr::V4(address)), ports))
        }
        _ => Ok((None, text)),
    }
}

fn parse_port(text: &str) -> Result<u16, Fault> {
    let bad = || Fault::Port(text.to_owned());
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    text.parse().ok().filter(|&port| port != 0).ok_or_else(bad)
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>, Fault> {
    match text.split_once('-') {
        None => parse_port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (parse_port(first)?, parse_port(last)?);
            if first > last { Err(Fault::Backwards(first, last)) } else { Ok(first..=last) }
        }
    }
}

impl Proto {
    /// `tcp` or `udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(spec: &str) -> Publish {
        let all = parse(spec).unwrap();
        assert_eq!(all.len(), 1, "{spec}");
        all[0]
    }

    fn tcp(host: Option<&str>, host_port: HostPort, guest_port: u16) -> Publish {
        Publish { host: host.map(|h| h.parse().unwrap()), host_port, guest_port, proto: Proto::Tcp }
    }

    #[test]
    fn exposed_ports() {
        let mut published = parse_all(&["8080:80"]).unwrap();
        publish_exposed(&mut published, parse_exposed(&["80", "443", "80/udp", "7-8", "443"]).unwrap());
        let ports: Vec<String> = published.iter().map(|p| format!("{}/{}", p.guest_port, p.proto)).collect();
        assert_eq!(ports, ["80/tcp", "443/tcp", "80/udp", "7/tcp", "8/tcp"]);
        assert!(published[1..].iter().all(|p| p.host.is_none() && p.host_port == HostPort::Chosen));
        for bad in ["8080:80", "http", "", "80/sctp"] {
            let error = parse_exposed(&[bad]).unwrap_err().to_string();
            assert!(error.contains(&format!("'{bad}'")), "{error}");
        }
    }

    #[test]
    fn single_ports() {
        use HostPort::{Chosen, Fixed};
        assert_eq!(one("8080:80"), tcp(None, Fixed(8080), 80));
        assert_eq!(one("80"), tcp(None, Chosen, 80));
        assert_eq!(one(":80"), tcp(None, Chosen, 80));
        assert_eq!(one("127.0.0.1:8080:80"), tcp(Some("127.0.0.1"), Fixed(8080), 80));
        assert_eq!(one("127.0.0.1::80"), tcp(Some("127.0.0.1"), Chosen, 80));
        assert_eq!(one("0.0.0.0:1:65535"), tcp(Some("0.0.0.0"), Fixed(1), 65535));
        assert_eq!(one("[::1]:8080:80"), tcp(Some("::1"), Fixed(8080), 80));
        assert_eq!(one("[::]::80"), tcp(Some("::"), Chosen, 80));
    }

    #[test]
    fn protocols() {
        assert_eq!(one("53:53/udp").proto, Proto::Udp);
        assert_eq!(one("53:53/UDP").proto, Proto::Udp);
        assert_eq!(one("80/tcp").proto, Proto::Tcp);
        assert_eq!(one("[::1]:5:5/udp").proto, Proto::Udp);
    }

    #[test]
    fn ranges() {
        let all = parse("8000-8010:80-90").unwrap();
        assert_eq!(all.len(), 11);
        assert_eq!(all[0], tcp(None, HostPort::Fixed(8000), 80));
        assert_eq!(all[10], tcp(None, HostPort::Fixed(8010), 90));
        assert_eq!(one("8000-8010:80"), tcp(None, HostPort::FirstOf(8000, 8010), 80));
        assert_eq!(parse("80-82").unwrap()[2], tcp(None, HostPort::Chosen, 82));
        assert_eq!(parse("127.0.0.1::80-81").unwrap()[1], tcp(Some("127.0.0.1"), HostPort::Chosen, 81));
        assert_eq!(one("8000-8000:80-80"), tcp(None, HostPort::Fixed(8000), 80));
        assert_eq!(parse("65535-65535:1").unwrap().len(), 1);
    }

    #[test]
    fn bad_specs_name_the_fault() {
        for (spec, part) in [
            ("", "guest port is missing"),
            (":", "guest port is missing"),
            ("8080:", "guest port is missing"),
            ("127.0.0.1:8080:", "guest port is missing"),
            ("[::1]", "guest port is missing"),
            ("[::1]:80", "guest port is missing"),
            ("0:80", "'0' is not a port"),
            ("80:0", "'0' is not a port"),
            ("65536", "'65536' is not a port"),
            ("99999999999999999999:80", "is not a port"),
            ("http", "'http' is not a port"),
            ("-1:80", "'' is not a port"),
            ("+80", "'+80' is not a port"),
            ("80-", "'' is not a port"),
            ("1-2-3:80", "'2-3' is not a port"),
            (" 80", "' 80' is not a port"),
            ("90-80", "write 80-90"),
            ("8000-8002:80-81", "3 host ports do not fit 2 guest ports"),
            ("8000:80-81", "1 host ports do not fit 2 guest ports"),
            ("80/sctp", "protocol 'sctp'"),
            ("80/", "protocol ''"),
            ("80/tcp/udp", "is not a port"),
            ("localhost:8080:80", "'localhost' is not a host address"),
            ("300.0.0.1:80:80", "'300.0.0.1' is not a host address"),
            ("::1:8080:80", "not a host address|brackets|colons"),
            ("fe80::1:8080:80", "too many colons"),
            ("1:2:3:4", "too many colons"),
            ("[::1]:1:2:3", "too many colons"),
            ("[::1:8080:80", "is not a host address"),
            ("[127.0.0.1]:8080:80", "is not a host address"),
            ("[fe80::1%eth0]:8080:80", "is not a host address"),
            ("1-65535", "more than"),
        ] {
            let error = parse(spec).unwrap_err().to_string();
            assert!(error.starts_with(&format!("published port '{spec}': ")), "{error}");
            assert!(part.split('|').any(|p| error.contains(p)), "{spec}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn contradictions() {
        for pair in [
            ["8080:80", "8080:81"],
            ["8080:80", "127.0.0.1:8080:81"],
            ["127.0.0.1:8080:80", "0.0.0.0:8080:81"],
            ["[::]:8080:80", "[::1]:8080:80"],
            ["8000-8010:80-90", "8005:1"],
        ] {
            let error = parse_all(&pair).unwrap_err().to_string();
            assert!(error.contains("clashes with the published port"), "{error}");
        }
        for pair in [
            ["8080:80", "8080:80/udp"],
            ["8080:80", "8081:80"],
            ["127.0.0.1:8080:80", "127.0.0.2:8080:80"],
            ["0.0.0.0:8080:80", "[::]:8080:80"],
            ["80", "80"],
            ["8000-8010:80", "8000-8010:81"],
        ] {
            assert_eq!(parse_all(&pair).unwrap().len(), 2, "{pair:?}");
        }
    }

    #[test]
    fn the_number_of_ports_is_bounded() {
        assert_eq!(parse("1001-17384:1-16384").unwrap().len(), MAX_PORTS);
        assert!(parse_all(&["1001-17384:1-16384", "80"]).unwrap_err().to_string().contains("more than 16384"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(spec in "[\\[\\]0-9a-f:./%-]{0,40}") {
            let _ = parse(&spec);
        }
    }
}
