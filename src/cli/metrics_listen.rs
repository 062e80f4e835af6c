//! `--metrics-listen [IP:]PORT`: what it means, and the socket there.
//!
//! Without an address it is the host's loopback: who asks for a port does not yet ask for the world to read along. Names
//! are not looked up; IPv6 is in brackets, and for IPv6 alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use super::{FAILURE, Failure};
use crate::host::published;

/// Reads it. Port 0: the kernel chooses.
pub fn parse(text: &str) -> Result<SocketAddr, Failure> {
    let wrong = |why: &str| {
        Failure::usage(format!(
            "--metrics-listen '{text}': {why}; give a port such as 9100 or :9100 (on 127.0.0.1), 192.0.2.1:9100 or [::1]:9100"
        ))
    };
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(wrong("that is no port from 1 to 65535, nor 0 for one that is free")),
    };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some((host, digits)) = text.rsplit_once(':') else {
        return match text.parse::<IpAddr>() {
            Ok(_) => Err(wrong("the port is missing")),
            Err(_) => Ok(SocketAddr::new(loopback, port(text)?)),
        };
    };
    if text.parse::<IpAddr>().is_ok() || (host.starts_with('[') && digits.ends_with(']')) {
        return Err(wrong("the port is missing, or the brackets around an IPv6 address"));
    }
    let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        _ if host.is_empty() => Some(loopback),
        Some(inner) => inner.parse().ok().filter(IpAddr::is_ipv6),
        None => host.parse().ok().filter(IpAddr::is_ipv4),
    };
    let ip = ip.ok_or_else(|| wrong("that is no IP address"))?;
    if ip.is_multicast() {
        return Err(wrong("nothing can listen at a multicast address"));
    }
    Ok(SocketAddr::new(ip, port(digits)?))
}

/// Listens; returns where.
pub fn bind(at: SocketAddr) -> Result<(SocketAddr, OwnedFd), Failure> {
    let bound = published::bind_own(at).map_err(|error| Failure {
        code: FAILURE,
        line: format!("--metrics-listen: {}", crate::telemetry::chain(&error)),
    })?;
    tracing::info!("metrics: http://{}/metrics", bound.0);
    Ok(bound)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::USAGE;

    #[test]
    fn addresses() {
        for (text, at) in [
            ("9100", "127.0.0.1:9100"),
            (":9100", "127.0.0.1:9100"),
            ("0", "127.0.0.1:0"),
            (":0", "127.0.0.1:0"),
            ("0.0.0.0:9100", "0.0.0.0:9100"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:9100", "[::1]:9100"),
            ("[::]:65535", "[::]:65535"),
        ] {
            assert_eq!(parse(text), Ok(at.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_named_with_the_remedy() {
        for (text, why) in [
            ("", "no port"),
            (":", "no port"),
            ("65536", "no port"),
            ("-1", "no port"),
            ("+80", "no port"),
            ("127.0.0.1:http", "no port"),
            ("127.0.0.1:", "no port"),
            ("127.0.0.1", "port is missing"),
            ("::1", "brackets"),
            ("::1:9100", "brackets"),
            ("[::1]", "brackets"),
            ("fe80::1%lo:9100", "no IP address"),
            ("[fe80::1%lo]:9100", "no IP address"),
            ("[127.0.0.1]:9100", "no IP address"),
            ("localhost:9100", "no IP address"),
            ("*:9100", "no IP address"),
            ("http://127.0.0.1:9100", "no IP address"),
            ("224.0.0.1:9100", "multicast"),
            ("[ff02::1]:9100", "multicast"),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.code, USAGE, "{text}");
            assert!(failure.line.contains(&format!("'{text}'")) && failure.line.contains(why), "{failure:?}");
            assert!(failure.line.contains("[::1]:9100"), "{failure:?}");
        }
    }
}
