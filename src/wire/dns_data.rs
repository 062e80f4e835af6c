//! Contents of resource records: the six types that a network has records of its own for, as values, on the wire, and as
//! text in the manner of a zone file.
//!
//! Types are numbers everywhere else; here are their names too ([`type_name`]), of those that guests ask for.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dns_message::{TYPE_A, TYPE_AAAA, TYPE_ANY};
use super::dns_name::{Name, NameError};

/// CNAME, PTR, TXT (RFC 1035 §3.2.2) and SRV (RFC 2782).
pub const TYPE_CNAME: u16 = 5;
/// See [`TYPE_CNAME`].
pub const TYPE_PTR: u16 = 12;
/// See [`TYPE_CNAME`].
pub const TYPE_TXT: u16 = 16;
/// See [`TYPE_CNAME`].
pub const TYPE_SRV: u16 = 33;
/// Longest character string, bytes (RFC 1035 §3.3).
const MAX_STRING: usize = 255;

/// Numbers and names of types: what records are made of, and what else guests ask for (IANA, DNS Parameters).
const TYPES: [(u16, &str); 16] = [
    (TYPE_A, "A"),
    (TYPE_AAAA, "AAAA"),
    (TYPE_CNAME, "CNAME"),
    (TYPE_TXT, "TXT"),
    (TYPE_SRV, "SRV"),
    (TYPE_PTR, "PTR"),
    (2, "NS"),
    (6, "SOA"),
    (15, "MX"),
    (35, "NAPTR"),
    (43, "DS"),
    (48, "DNSKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (TYPE_ANY, "ANY"),
    (257, "CAA"),
];

/// How many of [`TYPES`], from the start, records can be made of.
const OURS: usize = 6;

/// The name of a type; `TYPE123` for one that we have no name for (RFC 3597 §5).
pub fn type_name(number: u16) -> Cow<'static, str> {
    match TYPES.iter().find(|&&(known, _)| known == number) {
        Some(&(_, name)) => name.into(),
        None => format!("TYPE{number}").into(),
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name is another's.
    Cname(Name),
    /// Texts, each of at most 255 bytes; at least one.
    Txt(Vec<String>),
    /// A service (RFC 2782).
    Srv {
        /// Lower ones are tried first.
        priority: u16,
        /// Share among those of one priority.
        weight: u16,
        /// Port of the service.
        port: u16,
        /// Name of its host.
        target: Name,
    },
    /// The name of an address.
    Ptr(Name),
}

/// Why a value is none of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A type that records cannot have.
    #[error("record type '{0}' is not known; use A, AAAA, CNAME, TXT, SRV or PTR")]
    Type(String),
    /// No IPv4 address.
    #[error("'{0}' is not an IPv4 address; an A record has one such as 192.0.2.7 (IPv6 goes into AAAA)")]
    V4(String),
    /// No IPv6 address.
    #[error("'{0}' is not an IPv6 address; an AAAA record has one such as 2001:db8::7 (IPv4 goes into A)")]
    V6(String),
    /// No service.
    #[error(
        "'{0}' is not a service; an SRV record has priority, weight, port and host, such as '10 5 443 web.example'"
    )]
    Srv(String),
    /// A wildcard where a host belongs.
    #[error("'{0}' stands for many names; give a single one")]
    Wildcard(Name),
    /// No name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Quotes that do not match.
    #[error("text {0:?} begins with a quote and is not a row of quoted strings; write \\\" for a quote in a text")]
    Quotes(String),
    /// A character that terminals obey.
    #[error("text {0:?} has a control character in it; leave it out")]
    Control(String),
}

impl Data {
    /// Reads a record's value: an address, a name, `priority weight port host`, or text. A text in quotes is a row of
    /// strings, `"a=1" "b=2"`, with `\"` and `\\` inside; another is one string, cut where it passes 255 bytes.
    pub fn parse(kind: &str, value: &str) -> Result<Self, DataError> {
        let host = |text: &str| match Name::parse(text)? {
            name if name.is_wildcard() => Err(DataError::Wildcard(name)),
            name => Ok(name),
        };
        match type_number(kind)? {
            TYPE_A => value.parse().map(Self::A).map_err(|_| DataError::V4(value.to_owned())),
            TYPE_AAAA => value.parse().map(Self::Aaaa).map_err(|_| DataError::V6(value.to_owned())),
            TYPE_CNAME => host(value).map(Self::Cname),
            TYPE_PTR => host(value).map(Self::Ptr),
            TYPE_SRV => {
                let words: Vec<&str> = value.split_ascii_whitespace().collect();
                let number = |word: &str| word.parse().map_err(|_| DataError::Srv(value.to_owned()));
                let &[priority, weight, port, target] = &words[..] else {
                    return Err(DataError::Srv(value.to_owned()));
                };
                Ok(Self::Srv {
                    priority: number(priority)?,
                    weight: number(weight)?,
                    port: number(port)?,
                    target: host(target)?,
                })
            }
            _ => parse_texts(value).map(Self::Txt),
        }
    }

    /// The number of its type.
    pub fn kind(&self) -> u16 {
        match self {
            Self::A(_) => TYPE_A,
            Self::Aaaa(_) => TYPE_AAAA,
            Self::Cname(_) => TYPE_CNAME,
            Self::Txt(_) => TYPE_TXT,
            Self::Srv { .. } => TYPE_SRV,
            Self::Ptr(_) => TYPE_PTR,
        }
    }

    /// The address that it holds.
    pub fn address(&self) -> Option<IpAddr> {
        match *self {
            Self::A(address) => Some(address.into()),
            Self::Aaaa(address) => Some(address.into()),
            _ => None,
        }
    }

    /// Bytes on the wire, nothing compressed.
    pub fn wire_length(&self) -> usize {
        match self {
            Self::A(_) => 4,
            Self::Aaaa(_) => 16,
            Self::Cname(name) | Self::Ptr(name) => name.as_wire().len(),
            Self::Txt(texts) => texts.iter().map(|text| 1 + text.len()).sum(),
            Self::Srv { target, .. } => 6 + target.as_wire().len(),
        }
    }
}

impl From<IpAddr> for Data {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// The number of a type that records can be made of, its name in any case.
pub fn type_number(name: &str) -> Result<u16, DataError> {
    let known = TYPES[..OURS].iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
    known.map(|&(number, _)| number).ok_or_else(|| DataError::Type(name.to_owned()))
}

fn parse_texts(value: &str) -> Result<Vec<String>, DataError> {
    if value.chars().any(char::is_control) {
        return Err(DataError::Control(value.to_owned()));
    }
    let mut texts = Vec::new();
    if !value.starts_with('"') {
        append_text(&mut texts, value);
        return Ok(texts);
    }
    let quotes = || DataError::Quotes(value.to_owned());
    let mut rest = value.chars().peekable();
    while let Some(first) = rest.next() {
        if first == ' ' {
            continue;
        }
        if first != '"' {
            return Err(quotes());
        }
        let mut text = String::new();
        loop {
            match rest.next().ok_or_else(quotes)? {
                '"' => break,
                '\\' => text.push(rest.next_if(|&c| matches!(c, '"' | '\\')).ok_or_else(quotes)?),
                other => text.push(other),
            }
        }
        if rest.peek().is_some_and(|&next| next != ' ') {
            return Err(quotes());
        }
        append_text(&mut texts, &text);
    }
    Ok(texts)
}

/// Appends `text`, cut into pieces of at most 255 bytes at the ends of characters.
fn append_text(texts: &mut Vec<String>, mut text: &str) {
    while text.len() > MAX_STRING {
        let (piece, rest) = text.split_at(text.floor_char_boundary(MAX_STRING));
        texts.push(piece.to_owned());
        text = rest;
    }
    texts.push(text.to_owned());
}

impl fmt::Display for Data {
    /// The value as [`Data::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => address.fmt(f),
            Self::Aaaa(address) => address.fmt(f),
            Self::Cname(name) | Self::Ptr(name) => name.fmt(f),
            Self::Srv { priority, weight, port, target } => write!(f, "{priority} {weight} {port} {target}"),
            Self::Txt(texts) => match &texts[..] {
                [text] if !text.starts_with('"') => f.write_str(text),
                _ => {
                    for (at, text) in texts.iter().enumerate() {
                        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
                        write!(f, "{}\"{text}\"", if at > 0 { " " } else { "" })?;
                    }
                    Ok(())
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(value: &str) -> Vec<String> {
        match Data::parse("TXT", value).expect("a text") {
            Data::Txt(texts) => texts,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_of_each_type() {
        for (kind, value, shown, number, length) in [
            ("A", "192.0.2.7", "192.0.2.7", 1, 4),
            ("aaaa", "2001:DB8::7", "2001:db8::7", 28, 16),
            ("Cname", "Web.Example.", "web.example", 5, 13),
            ("PTR", "web.example", "web.example", 12, 13),
            ("TXT", "v=spf1 -all", "v=spf1 -all", 16, 12),
            ("TXT", "", "", 16, 1),
            ("SRV", " 10  5 443 web.example", "10 5 443 web.example", 33, 19),
        ] {
            let data = Data::parse(kind, value).expect("a value");
            assert_eq!(
                (data.to_string().as_str(), data.kind(), data.wire_length()),
                (shown, number, length),
                "{value}"
            );
            assert_eq!(type_name(number).to_lowercase(), kind.to_lowercase());
        }
        assert_eq!((type_name(65), type_name(9999)), ("HTTPS".into(), "TYPE9999".into()));
    }

    #[test]
    fn what_is_no_value() {
        for (kind, value, said) in [
            ("MX", "10 mail.example", "'MX' is not known"),
            ("", "", "'' is not known"),
            ("A", "::1", "'::1' is not an IPv4 address"),
            ("A", "192.0.2", "'192.0.2' is not an IPv4 address"),
            ("AAAA", "192.0.2.7", "'192.0.2.7' is not an IPv6 address"),
            ("CNAME", "192.0.2.7", "is an address, not a name"),
            ("CNAME", "*.example", "stands for many names"),
            ("PTR", "", "the name is empty"),
            ("SRV", "10 5 443", "'10 5 443' is not a service"),
            ("SRV", "10 5 65536 a", "is not a service"),
            ("SRV", "10 5 -1 a", "is not a service"),
            ("SRV", "10 5 443 a b", "is not a service"),
            ("TXT", "\"open", "not a row of quoted strings"),
            ("TXT", "\"a\"b", "not a row of quoted strings"),
            ("TXT", "\"a\"\"b\"", "not a row of quoted strings"),
            ("TXT", "\"a\\n\"", "not a row of quoted strings"),
            ("TXT", "a\nb", "control character"),
        ] {
            let error = Data::parse(kind, value).expect_err("no value").to_string();
            assert!(error.contains(said), "{kind} {value:?}: {error}");
        }
    }

    #[test]
    fn texts_in_strings() {
        assert_eq!(texts("say \"hi\""), ["say \"hi\""]);
        assert_eq!(texts("\"a=1\"   \"b=\\\"2\\\\\" \"\""), ["a=1", "b=\"2\\", ""]);
        let long = texts(&"ä".repeat(200));
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [254, 146], "cut between characters");
        assert_eq!(long.concat(), "ä".repeat(200));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(parts in proptest::collection::vec("[ -~äö]{0,300}", 1..4), raw in "[ -~]{0,600}", four in any::<[u16; 3]>()) {
            let quoted: Vec<_> = parts.iter().map(|p| format!("\"{}\"", p.replace('\\', "\\\\").replace('"', "\\\""))).collect();
            for value in [quoted.join(" "), raw] {
                if let Ok(data) = Data::parse("TXT", &value) {
                    prop_assert_eq!(Data::parse("TXT", &data.to_string()), Ok(data));
                }
            }
            let srv = Data::parse("SRV", &format!("{} {} {} a.b", four[0], four[1], four[2])).expect("a service");
            prop_assert_eq!(Data::parse("SRV", &srv.to_string()), Ok(srv));
        }

        #[test]
        fn any_text_is_read_or_refused(kind in "(A|AAAA|CNAME|TXT|SRV|PTR)", value in any::<String>()) {
            if let Ok(data) = Data::parse(&kind, &value) {
                prop_assert_eq!(Data::parse(&kind, &data.to_string()), Ok(data));
            }
        }
    }
}
