//! Domain names in the uncompressed form of DNS (RFC 1035 §3.1): as DHCP and router advertisements carry them
//! ([`append`]), and as keys and contents of records ([`Name`]).
//!
//! A [`Name`] is the bytes of the wire, in lower case (RFC 4343: ASCII letters compare without case), so equal names are
//! equal bytes and the names that one is under are its tails. Names come from two sides: from people, who get letters,
//! digits, `-`, `_` and `*` as a first label alone ([`Name::parse`]); and from questions, whose labels hold any byte
//! ([`Name::from_wire`]) and are shown with escapes.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest label, bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Longest name on the wire, length bytes and root included (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;

/// Appends `name` ("example.net", with or without a final dot) as labels and the root. False, with nothing appended,
/// where it is no name: empty, the root alone, an empty or too long label, too long in all, or not ASCII.
pub fn append(out: &mut Vec<u8>, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = |label: &str| !label.is_empty() && label.len() <= MAX_LABEL && label.is_ascii();
    // One length byte more than dots, and the root.
    if name.len() + 2 > MAX_NAME || !name.split('.').all(valid) {
        return false;
    }
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    true
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or the root alone.
    #[error("the name is empty; give one such as db.example")]
    Empty,
    /// Two dots in a row, or one in front.
    #[error("name '{0}' has an empty part; write single dots between its parts")]
    EmptyLabel(String),
    /// A label beyond 63 bytes.
    #[error("name '{0}' has a part of more than {MAX_LABEL} bytes; shorten it")]
    LongLabel(String),
    /// More than 255 bytes on the wire.
    #[error("name '{0}…' takes more than {MAX_NAME} bytes; shorten it")]
    Long(String),
    /// A byte that host names do not have.
    #[error(
        "name '{name}' has {bad:?} in it; use letters, digits, '-', '_' (other scripts in their xn-- form, '*' only as a \
         first part of its own)"
    )]
    Letter {
        /// The text.
        name: String,
        /// Its first unusable character.
        bad: char,
    },
    /// An address where a name belongs.
    #[error("'{0}' is an address, not a name; give a name such as db.example")]
    Address(IpAddr),
}

/// A domain name other than the root. See the module.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(Box<[u8]>);

impl Name {
    /// Reads `db.example` or `*.db.example`, with or without a final dot, letters in any case.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if let Ok(address) = name.parse() {
            return Err(NameError::Address(address));
        }
        if name.len() + 2 > MAX_NAME {
            // Characters, not bytes: a cut in the middle of one would be none.
            return Err(NameError::Long(name.chars().take(MAX_LABEL).collect()));
        }
        for (at, label) in name.split('.').enumerate() {
            if label.is_empty() {
                return Err(NameError::EmptyLabel(text.to_owned()));
            }
            if label.len() > MAX_LABEL {
                return Err(NameError::LongLabel(text.to_owned()));
            }
            let wildcard = at == 0 && label == "*";
            let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if let Some(bad) = label.chars().find(|&c| !usable(c))
                && !wildcard
            {
                return Err(NameError::Letter { name: text.to_owned(), bad });
            }
        }
        let mut wire = Vec::with_capacity(name.len() + 2);
        append(&mut wire, name);
        wire.make_ascii_lowercase();
        Ok(Self(wire.into()))
    }

    /// The name whose wire form, uncompressed and with its root, is all of `wire`; None where it is none, or the root.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        if wire.len() < 2 || wire.len() > MAX_NAME {
            return None;
        }
        let mut at = 0;
        while wire[at] != 0 {
            if usize::from(wire[at]) > MAX_LABEL {
                return None;
            }
            at += 1 + usize::from(wire[at]);
            if at >= wire.len() {
                return None;
            }
        }
        // Length bytes are at most 63, no letters.
        (at + 1 == wire.len()).then(|| Self(wire.to_ascii_lowercase().into()))
    }

    /// The name under which the name of `address` is asked for (RFC 1035 §3.5, RFC 3596 §2.5).
    pub fn reverse(address: IpAddr) -> Self {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(72);
        // Writing to a String does not fail.
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                let _ = write!(text, "{d}.{c}.{b}.{a}.in-addr.arpa");
            }
            IpAddr::V6(address) => {
                for byte in address.octets().iter().rev() {
                    let _ = write!(text, "{:x}.{:x}.", byte & 15, byte >> 4);
                }
                text.push_str("ip6.arpa");
            }
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        append(&mut wire, &text);
        Self(wire.into())
    }

    /// The address whose reverse name this is.
    pub fn reversed_address(&self) -> Option<IpAddr> {
        let text = self.to_string();
        let address = if let Some(digits) = text.strip_suffix(".in-addr.arpa") {
            let forward: Vec<&str> = digits.split('.').rev().collect();
            IpAddr::V4(forward.join(".").parse::<Ipv4Addr>().ok()?)
        } else {
            let nibbles = text.strip_suffix(".ip6.arpa")?;
            let digits: String = nibbles.split('.').rev().collect();
            IpAddr::V6(Ipv6Addr::from(u128::from_str_radix(&digits, 16).ok()?))
        };
        // Only the one spelling counts.
        (Self::reverse(address) == *self).then_some(address)
    }

    /// Its bytes on the wire, root included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Its wire form and those of the names that it is under, itself first, without the root.
    pub fn tails(&self) -> impl Iterator<Item = &[u8]> {
        tails(&self.0)
    }

    /// True for `suffix` itself and every name under it.
    pub fn is_under(&self, suffix: &Name) -> bool {
        self.tails().any(|tail| tail == suffix.as_wire())
    }

    /// True where the first label is `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }

    /// Number of its labels.
    pub fn labels(&self) -> usize {
        self.tails().count()
    }
}

/// The tails of a valid wire form; see [`Name::tails`].
fn tails(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let here = rest;
        let length = usize::from(*here.first()?);
        if length == 0 {
            return None;
        }
        rest = here.get(1 + length..).unwrap_or(&[]);
        Some(here)
    })
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    /// Without a final dot; what is no letter, digit or such is escaped (RFC 1035 §5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, tail) in self.tails().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            for &byte in &tail[1..=usize::from(tail[0])] {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        let mut out = vec![9];
        assert!(append(&mut out, "example.net"));
        assert_eq!(out, b"\x09\x07example\x03net\x00");
        let mut dotted = Vec::new();
        assert!(append(&mut dotted, "example.net."));
        assert_eq!(dotted, out[1..]);
        assert!(append(&mut out, "lan"));
        assert!(out.ends_with(b"\x00\x03lan\x00"));
    }

    #[test]
    fn limits() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let mut out = Vec::new();
        assert!(append(&mut out, &longest));
        assert_eq!(out.len(), 255);
        assert_eq!(Name::parse(&longest).expect("a name").as_wire(), out);
        let before = out.clone();
        for name in ["", ".", "a..b", ".a", "a..", &"a".repeat(64), &format!("{longest}a"), "müller.de"] {
            assert!(!append(&mut out, name), "{name:?}");
            assert!(Name::parse(name).is_err(), "{name:?}");
        }
        assert_eq!(out, before);
    }

    #[test]
    fn texts_of_people() {
        for (text, shown) in
            [("DB.Example.", "db.example"), ("*.a_b.c-d", "*.a_b.c-d"), ("_http._tcp.x", "_http._tcp.x"), ("7", "7")]
        {
            let name: Name = text.parse().expect("a name");
            assert_eq!(name.to_string(), shown);
            assert_eq!(Name::from_wire(name.as_wire()), Some(name));
        }
        for (text, said) in [
            ("", "the name is empty"),
            (".", "the name is empty"),
            ("a..b", "'a..b' has an empty part"),
            ("a.*.b", "'a.*.b' has '*' in it"),
            ("*a.b", "'*a.b' has '*' in it"),
            ("a b", "'a b' has ' ' in it"),
            ("ä.b", "'ä.b' has 'ä' in it"),
            ("10.0.2.9", "'10.0.2.9' is an address"),
            ("fd00::1", "'fd00::1' is an address"),
            (&format!("{}.b", "a".repeat(64)), "a part of more than 63 bytes"),
            (&"ä.".repeat(200), "takes more than 255 bytes"),
        ] {
            let error = Name::parse(text).expect_err("no name").to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn wire_forms() {
        assert_eq!(Name::from_wire(b"\x01A\x02bC\x00").map(|name| name.to_string()), Some("a.bc".to_owned()));
        assert_eq!(Name::from_wire(b"\x04a.\\\xff\x00").map(|name| name.to_string()), Some("a\\.\\\\\\255".to_owned()));
        for bad in [&b""[..], b"\0", b"\x01", b"\x01a", b"\x01a\0\0", b"\x02a\0", b"\xc0\x0c", b"\x40a\0", b"\0\0"] {
            assert_eq!(Name::from_wire(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn reverse_names() {
        let v4 = Name::reverse("192.0.2.10".parse().expect("address"));
        assert_eq!(v4.to_string(), "10.2.0.192.in-addr.arpa");
        let v6 = Name::reverse("fd00::12".parse().expect("address"));
        assert_eq!(v6.to_string(), format!("2.1.{}0.0.d.f.ip6.arpa", "0.".repeat(26)));
        for text in ["1.2.0.192", "010.2.0.192.in-addr.arpa", "2.0.192.in-addr.arpa", "1.ip6.arpa", "a.in-addr.arpa"] {
            let name = Name::parse(text).or_else(|_| Name::parse(&format!("{text}.x"))).expect("a name");
            assert_eq!(name.reversed_address(), None, "{text}");
        }
    }

    #[test]
    fn what_is_under_what() {
        let name = |text: &str| Name::parse(text).expect("a name");
        assert!(name("a.b.example").is_under(&name("example")));
        assert!(name("b.example").is_under(&name("B.example")));
        assert!(!name("xb.example").is_under(&name("b.example")));
        assert!(!name("example").is_under(&name("b.example")));
        // The bytes of a label that look like a name are none.
        let tricky = Name::from_wire(b"\x04x\x01b\x00\x00");
        assert!(tricky.is_none_or(|tricky| !tricky.is_under(&name("b"))));
        assert!(name("*.b").is_wildcard() && !name("a.b").is_wildcard());
        assert_eq!(name("a.b.c").labels(), 3);
    }

    proptest! {
        #[test]
        fn any_wire(bytes in proptest::collection::vec(any::<u8>(), 0..40), shaped in proptest::collection::vec("[a-zA-Z0-9_-]{1,8}", 1..5)) {
            if let Some(name) = Name::from_wire(&bytes) {
                prop_assert_eq!(name.as_wire(), bytes.to_ascii_lowercase());
                let _ = (name.to_string(), name.reversed_address());
            }
            if let Ok(name) = Name::parse(&shaped.join(".")) {
                prop_assert_eq!(name.to_string(), shaped.join(".").to_ascii_lowercase());
                prop_assert_eq!(Name::parse(&name.to_string()), Ok(name.clone()));
                prop_assert_eq!(name.labels(), shaped.len());
            }
        }

        #[test]
        fn any_address(address in any::<IpAddr>()) {
            prop_assert_eq!(Name::reverse(address).reversed_address(), Some(address));
        }
    }
}
