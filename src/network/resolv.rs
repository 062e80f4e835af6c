//! The text of resolv.conf(5): read as glibc reads it, and written for a guest.
//!
//! Pure text. Scopes of link-local name servers stay names (`fe80::1%eth0`): turning them into numbers needs the host.
//! An empty file means no servers; nothing here invents one.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Most name servers that are kept. glibc asks three; we can ask more in order, but a file with hundreds is a mistake.
pub const MAX_SERVERS: usize = 8;

/// A name server line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Its address.
    pub address: IpAddr,
    /// The interface behind a '%', for link-local addresses.
    pub scope: Option<String>,
}

/// What tapway uses of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In order of preference; lines that are not addresses are left out.
    pub servers: Vec<NameServer>,
    /// The last `search` or `domain` line, which is the one that counts.
    pub search: Vec<String>,
    /// All `options` in order.
    pub options: Vec<String>,
}

/// Reads the file's text. Never fails: what it does not understand does not count, as in the C library.
pub fn parse(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        // A comment starts in the first column (resolv.conf(5)).
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                if let Some(server) = words.next().and_then(parse_server)
                    && conf.servers.len() < MAX_SERVERS
                {
                    conf.servers.push(server);
                }
            }
            Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
            Some("search") => conf.search = words.map(str::to_owned).collect(),
            Some("options") => conf.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    conf
}

fn parse_server(word: &str) -> Option<NameServer> {
    let (address, scope) = match word.split_once('%') {
        Some((address, scope)) => (address, Some(scope.to_owned()).filter(|s| !s.is_empty())),
        None => (word, None),
    };
    let address = address.parse().ok()?;
    Some(NameServer { address, scope })
}

/// Writes a file for a guest.
pub fn render(servers: &[IpAddr], search: &[String], options: &[String]) -> String {
    let mut text = String::from("# Made by tapway for this sandbox.\n");
    for server in servers {
        // Writing to a String does not fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, values) in [("search", search), ("options", options)] {
        if !values.is_empty() {
            let _ = writeln!(text, "{word} {}", values.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        parse(text).servers.into_iter().map(|s| s.address.to_string()).collect()
    }

    #[test]
    fn servers_in_order() {
        let text = "# x\n;nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver\t2001:db8::1 trailing\nnameserver fe80::1%eth0\n";
        assert_eq!(addresses(text), ["127.0.0.53", "2001:db8::1", "fe80::1"]);
        assert_eq!(parse(text).servers[2].scope.as_deref(), Some("eth0"));
    }

    #[test]
    fn what_is_not_understood_does_not_count() {
        for text in [
            "",
            "\n\n",
            "nameserver",
            "nameserver dns.example",
            "nameserver 1.2.3",
            "nameservers 1.2.3.4",
            "NAMESERVER 1.2.3.4",
            "\0\u{fffd}",
        ] {
            assert_eq!(addresses(text), Vec::<String>::new(), "{text:?}");
        }
        assert_eq!(addresses("  nameserver 1.2.3.4\r\nnameserver 1.2.3.5"), ["1.2.3.4", "1.2.3.5"]);
    }

    #[test]
    fn last_search_or_domain_wins() {
        assert_eq!(parse("search a b\nsearch c").search, ["c"]);
        assert_eq!(parse("search a b\ndomain d e").search, ["d"]);
        assert_eq!(parse("domain d\nsearch a b").search, ["a", "b"]);
        assert_eq!(parse("search").search, Vec::<String>::new());
    }

    #[test]
    fn options_add_up() {
        assert_eq!(parse("options edns0 trust-ad\noptions ndots:2").options, ["edns0", "trust-ad", "ndots:2"]);
    }

    #[test]
    fn servers_are_bounded() {
        assert_eq!(parse(&"nameserver 1.2.3.4\n".repeat(100)).servers.len(), MAX_SERVERS);
    }

    #[test]
    fn what_is_written_reads_back() {
        let servers: Vec<IpAddr> = vec!["10.0.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let (search, options) = (vec!["a.example".to_owned(), "b".to_owned()], vec!["ndots:1".to_owned()]);
        let conf = parse(&render(&servers, &search, &options));
        assert_eq!(conf.servers.iter().map(|s| s.address).collect::<Vec<_>>(), servers);
        assert_eq!((conf.search, conf.options), (search, options));
        assert_eq!(parse(&render(&servers, &[], &[])).search, Vec::<String>::new());
    }
}
