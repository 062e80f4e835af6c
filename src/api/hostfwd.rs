//! The verbs of slirp4netns's API socket, to the byte.
//!
//! | verb | reply |
//! |---|---|
//! | `add_hostfwd` | `{"return":{"id":1}}` |
//! | `list_hostfwd` | `{"return":{"entries":[…]},"entries":[…]}` |
//! | `remove_hostfwd` | `{"return":{}}` |
//! | any, refused | `{"error":{"desc":"bad request: …"}}` |
//!
//! Values and bytes only; `runtime::forwards` does what is asked. That program's manual has the entries in `return`, the
//! program itself has them beside it: here they are in both places. Arguments are checked in its order, and its leniency
//! is kept: an address that is no string is as good as none, a number is cut at its point.
//!
//! More than that program: `tcp4`, `tcp6`, `udp4`, `udp6`, and IPv6 addresses, in brackets or not. A port's family is its
//! host address's; without one it is the protocol's, IPv4 where that names none. Less: a port below 1 or above 65535 is
//! refused, where that program takes its lower 16 bits. Why a forward cannot be had is for the log: the reply is that
//! program's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};

use super::envelope::EnvelopeFault;
use crate::network::config::Proto;

/// Bytes that make a request too large.
pub const TOO_LARGE: usize = 4096;

/// The protocol of a forward, as it was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardProto {
    /// TCP, of the host address's family.
    Tcp,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, of the host address's family.
    Udp,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl ForwardProto {
    const ALL: [Self; 6] = [Self::Tcp, Self::Tcp4, Self::Tcp6, Self::Udp, Self::Udp4, Self::Udp6];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp => "udp",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|proto| proto.name() == name)
    }

    /// The transport.
    pub const fn transport(self) -> Proto {
        match self {
            Self::Tcp | Self::Tcp4 | Self::Tcp6 => Proto::Tcp,
            Self::Udp | Self::Udp4 | Self::Udp6 => Proto::Udp,
        }
    }

    /// Whether it is IPv6; None where the host address decides.
    const fn is_v6(self) -> Option<bool> {
        match self {
            Self::Tcp | Self::Udp => None,
            Self::Tcp4 | Self::Udp4 => Some(false),
            Self::Tcp6 | Self::Udp6 => Some(true),
        }
    }
}

/// A forward that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    /// Protocol.
    pub proto: ForwardProto,
    /// Address to bind.
    pub host_addr: IpAddr,
    /// Port to bind.
    pub host_port: u16,
    /// The guest's address; None is the recommended one.
    pub guest_addr: Option<IpAddr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Open a port.
    Add(Add),
    /// Tell the ports.
    List,
    /// Close the port with this id.
    Remove(u64),
}

/// One forward, as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: 1 for the first, and never given again.
    pub id: u64,
    /// Protocol.
    pub proto: ForwardProto,
    /// The bound address.
    pub host_addr: IpAddr,
    /// The bound port.
    pub host_port: u16,
    /// The guest's address.
    pub guest_addr: IpAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// Why a request is refused. The texts are what clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// 4096 bytes or more.
    #[error("bad request: too large message")]
    TooLarge,
    /// Not JSON.
    #[error("bad request: cannot parse JSON")]
    Parse,
    /// JSON, but no object.
    #[error("bad request: json_object() failed")]
    NotObject,
    /// No verb.
    #[error("bad request: no execute found")]
    NoExecute,
    /// Another verb.
    #[error("bad request: unknown execute")]
    Unknown,
    /// An argument of `add_hostfwd` is missing or bad.
    #[error("bad request: add_hostfwd: bad arguments.{0}")]
    AddArgument(&'static str),
    /// It cannot be bound.
    #[error("bad request: add_hostfwd: slirp_add_hostfwd failed")]
    AddFailed {
        /// Why.
        reason: String,
    },
    /// No forward has that id, or it is none.
    #[error("bad request: remove_hostfwd: bad arguments.id")]
    RemoveId,
    /// It cannot be removed.
    #[error("bad request: remove_hostfwd: slirp_remove_hostfwd failed")]
    RemoveFailed,
}

impl From<EnvelopeFault> for Fault {
    fn from(fault: EnvelopeFault) -> Self {
        match fault {
            EnvelopeFault::Parse => Self::Parse,
            EnvelopeFault::NotObject => Self::NotObject,
            EnvelopeFault::NoExecute => Self::NoExecute,
        }
    }
}

/// One of the three verbs; None if it is another.
pub fn parse(verb: &str, arguments: &Map<String, Value>, guest_v6: bool) -> Option<Result<Request, Fault>> {
    match verb {
        "add_hostfwd" => Some(parse_add(arguments, guest_v6).map(Request::Add).map_err(Fault::AddArgument)),
        "list_hostfwd" => Some(Ok(Request::List)),
        "remove_hostfwd" => {
            let id = number(arguments, "id").filter(|&id| id >= 1);
            Some(id.map(|id| Request::Remove(id.cast_unsigned())).ok_or(Fault::RemoveId))
        }
        _ => None,
    }
}

fn parse_add(arguments: &Map<String, Value>, guest_v6: bool) -> Result<Add, &'static str> {
    let text = |name| arguments.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let port = |name| number(arguments, name).and_then(|n| u16::try_from(n).ok()).filter(|&n| n != 0).ok_or(name);
    let proto = text("proto").and_then(ForwardProto::parse).ok_or("proto")?;
    let host_addr = match text("host_addr") {
        Some(text) => address(text).ok_or("host_addr")?,
        None if proto.is_v6() == Some(true) => Ipv6Addr::UNSPECIFIED.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    if proto.is_v6().is_some_and(|v6| v6 != host_addr.is_ipv6()) {
        return Err("host_addr");
    }
    let host_port = port("host_port")?;
    let guest_addr = text("guest_addr").map(|text| address(text).ok_or("guest_addr")).transpose()?;
    // 0.0.0.0 has a meaning, :: has none.
    if guest_addr.is_some_and(|addr| addr.is_ipv6() && (addr.is_unspecified() || !guest_v6)) {
        return Err("guest_addr");
    }
    let guest_port = port("guest_port")?;
    Ok(Add { proto, host_addr, host_port, guest_addr, guest_port })
}

/// An address: IPv4, IPv6, IPv6 in brackets. IPv4 in IPv6's clothes is neither.
fn address(text: &str) -> Option<IpAddr> {
    let v6 = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse(),
        None => match text.parse() {
            Ok(IpAddr::V4(v4)) => return Some(IpAddr::V4(v4)),
            Ok(IpAddr::V6(v6)) => Ok(v6),
            Err(_) => return None,
        },
    };
    v6.ok().filter(|v6: &Ipv6Addr| v6.to_ipv4_mapped().is_none()).map(IpAddr::V6)
}

/// A number, cut at its point.
fn number(arguments: &Map<String, Value>, name: &str) -> Option<i64> {
    // Beyond 2^63 the cast saturates, and no port or id is there.
    arguments.get(name)?.as_f64().map(|number| number as i64)
}

/// The reply to a forward that was made.
pub fn added(id: u64) -> Vec<u8> {
    json!({ "return": { "id": id } }).to_string().into_bytes()
}

/// The reply to a forward that was removed.
pub fn removed() -> Vec<u8> {
    br#"{"return":{}}"#.to_vec()
}

/// The reply with all forwards.
pub fn listed(entries: &[Entry]) -> Vec<u8> {
    let entries: Vec<String> = entries.iter().map(Entry::to_string).collect();
    let entries = entries.join(",");
    format!(r#"{{"return":{{"entries":[{entries}]}},"entries":[{entries}]}}"#).into_bytes()
}

/// JSON, its keys in the order that clients have seen; no name, number or address needs escaping.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, proto, host_addr, host_port, guest_addr, guest_port } = self;
        let proto = proto.name();
        write!(f, r#"{{"id":{id},"proto":"{proto}","host_addr":"{host_addr}","host_port":{host_port},"#)?;
        write!(f, r#""guest_addr":"{guest_addr}","guest_port":{guest_port}}}"#)
    }
}

/// The reply to a request that is refused. A verb that is nobody's has the code behind that program's words that all other
/// verbs' refusals have here.
pub fn refused(fault: &Fault) -> Vec<u8> {
    if *fault == Fault::Unknown {
        return br#"{"error":{"desc":"bad request: unknown execute","code":"unknown_verb"}}"#.to_vec();
    }
    json!({ "error": { "desc": fault.to_string() } }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::envelope;

    fn read(input: &[u8], ended: bool, guest_v6: bool) -> Option<Result<Request, Fault>> {
        let envelope = envelope::read(input, ended)?;
        Some(envelope.map_err(Fault::from).and_then(|envelope| {
            parse(&envelope.execute, &envelope.arguments, guest_v6).unwrap_or(Err(Fault::Unknown))
        }))
    }

    fn ask(input: &str) -> Result<Request, Fault> {
        read(input.as_bytes(), true, true).expect("ended")
    }

    /// `add_hostfwd` of a good forward with some arguments changed; None takes one away.
    fn changed(changes: &[(&str, Option<Value>)]) -> String {
        let mut arguments = json!({
            "proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80
        });
        for (name, value) in changes {
            match value {
                Some(value) => arguments[name] = value.clone(),
                None => drop(arguments.as_object_mut().unwrap().remove(*name)),
            }
        }
        json!({ "execute": "add_hostfwd", "arguments": arguments }).to_string()
    }

    fn add(changes: &[(&str, Option<Value>)]) -> Result<Add, String> {
        match ask(&changed(changes)) {
            Ok(Request::Add(add)) => Ok(add),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.to_string()),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn replies_to_the_byte() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(added(1)), r#"{"return":{"id":1}}"#);
        assert_eq!(text(removed()), r#"{"return":{}}"#);
        assert_eq!(text(listed(&[])), r#"{"return":{"entries":[]},"entries":[]}"#);
        let entry = Entry {
            id: 1,
            proto: ForwardProto::Tcp,
            host_addr: ip("0.0.0.0"),
            host_port: 8080,
            guest_addr: ip("10.0.2.100"),
            guest_port: 80,
        };
        let v6 =
            Entry { id: 12, proto: ForwardProto::Udp6, host_addr: ip("::1"), guest_addr: ip("fd00::100"), ..entry };
        let one = concat!(
            r#"{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}"#,
            r#",{"id":12,"proto":"udp6","host_addr":"::1","host_port":8080,"guest_addr":"fd00::100","guest_port":80}"#
        );
        let expected = format!(r#"{{"return":{{"entries":[{one}]}},"entries":[{one}]}}"#);
        assert_eq!(text(listed(&[entry, v6])), expected);
    }

    #[test]
    fn refusals_to_the_byte() {
        let failed = Fault::AddFailed { reason: "it is \"taken\"".into() };
        for (fault, desc) in [
            (Fault::TooLarge, r#""bad request: too large message""#),
            (Fault::Parse, r#""bad request: cannot parse JSON""#),
            (Fault::NotObject, r#""bad request: json_object() failed""#),
            (Fault::NoExecute, r#""bad request: no execute found""#),
            (Fault::Unknown, r#""bad request: unknown execute","code":"unknown_verb""#),
            (Fault::AddArgument("proto"), r#""bad request: add_hostfwd: bad arguments.proto""#),
            (failed, r#""bad request: add_hostfwd: slirp_add_hostfwd failed""#),
            (Fault::RemoveId, r#""bad request: remove_hostfwd: bad arguments.id""#),
            (Fault::RemoveFailed, r#""bad request: remove_hostfwd: slirp_remove_hostfwd failed""#),
        ] {
            let expected = format!(r#"{{"error":{{"desc":{desc}}}}}"#);
            assert_eq!(String::from_utf8(refused(&fault)).unwrap(), expected);
        }
    }

    #[test]
    fn verbs() {
        assert_eq!(ask(r#"{"execute":"list_hostfwd"}"#), Ok(Request::List));
        assert_eq!(ask(r#"{"execute":"list_hostfwd","arguments":5}"#), Ok(Request::List));
        for verb in ["", "get_info", "LIST_HOSTFWD", "list_hostfwd ", "list_hostfwd\\u0000x"] {
            assert_eq!(ask(&format!(r#"{{"execute":"{verb}"}}"#)), Err(Fault::Unknown), "{verb}");
        }
        assert_eq!(ask("{}"), Err(Fault::NoExecute));
        assert_eq!(ask("[]"), Err(Fault::NotObject));
        assert_eq!(ask("["), Err(Fault::Parse));
    }

    #[test]
    fn a_forward() {
        let good = Add {
            proto: ForwardProto::Tcp,
            host_addr: ip("127.0.0.1"),
            host_port: 8080,
            guest_addr: Some(ip("10.0.2.100")),
            guest_port: 80,
        };
        assert_eq!(add(&[]), Ok(good));
        assert_eq!(add(&[("proto", Some("udp".into()))]), Ok(Add { proto: ForwardProto::Udp, ..good }));
        assert_eq!(add(&[("unknown", Some(1.into()))]), Ok(good));
        // What podman sends.
        let podman = concat!(
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"#,
            r#""guest_addr":"","guest_port":80}}"#,
            "\n"
        );
        let expected = Add { host_addr: ip("0.0.0.0"), guest_addr: None, ..good };
        assert_eq!(ask(podman), Ok(Request::Add(expected)));
    }

    #[test]
    fn addresses_that_are_none_mean_the_usual_ones() {
        for none in [None, Some("".into()), Some(Value::Null), Some(5.into()), Some(json!({}))] {
            assert_eq!(add(&[("host_addr", none.clone())]).unwrap().host_addr, ip("0.0.0.0"));
            assert_eq!(add(&[("guest_addr", none)]).unwrap().guest_addr, None);
        }
    }

    #[test]
    fn families() {
        let host = |proto: &str, addr: Value| {
            add(&[("proto", Some(proto.into())), ("host_addr", Some(addr))]).map(|add| add.host_addr)
        };
        let bad = || Err("bad request: add_hostfwd: bad arguments.host_addr".to_owned());
        for transport in ["tcp", "udp"] {
            let (v4, v6) = (format!("{transport}4"), format!("{transport}6"));
            assert_eq!(host(&v6, Value::Null), Ok(ip("::")));
            assert_eq!(host(&v4, Value::Null), Ok(ip("0.0.0.0")));
            assert_eq!(host(&v6, "[::1]".into()), Ok(ip("::1")));
            assert_eq!(host(&v6, "::1".into()), Ok(ip("::1")));
            assert_eq!(host(transport, "::1".into()), Ok(ip("::1")));
            assert_eq!(host(transport, "[::]".into()), Ok(ip("::")));
            assert_eq!(host(&v4, "127.0.0.1".into()), Ok(ip("127.0.0.1")));
            assert_eq!(host(&v4, "::1".into()), bad());
            assert_eq!(host(&v6, "127.0.0.1".into()), bad());
        }
        for text in [
            "x",
            "1.2.3",
            "127.1",
            " 127.0.0.1",
            "127.0.0.1 ",
            "01.2.3.4",
            "localhost",
            "[::1",
            "::1]",
            "[]",
            "[127.0.0.1]",
            "fe80::1%lo",
            "::ffff:127.0.0.1",
            "127.0.0.1:80",
        ] {
            assert_eq!(host("tcp", text.into()), bad(), "{text}");
        }
        let guest = |text: &str| add(&[("guest_addr", Some(text.into()))]).map(|add| add.guest_addr);
        assert_eq!(guest("fd00::100"), Ok(Some(ip("fd00::100"))));
        assert_eq!(guest("[fd00::100]"), Ok(Some(ip("fd00::100"))));
        assert_eq!(guest("0.0.0.0"), Ok(Some(ip("0.0.0.0"))));
        assert!(guest("::ffff:10.0.2.100").is_err());
        assert!(guest("::").is_err());
        let v6 = changed(&[("guest_addr", Some("fd00::100".into()))]);
        assert_eq!(read(v6.as_bytes(), true, false), Some(Err(Fault::AddArgument("guest_addr"))));
    }

    #[test]
    fn ports() {
        for name in ["host_port", "guest_port"] {
            let port = |value| {
                add(&[(name, value)]).map(|add| if name == "host_port" { add.host_port } else { add.guest_port })
            };
            assert_eq!(port(Some(1.into())), Ok(1));
            assert_eq!(port(Some(65535.into())), Ok(65535));
            assert_eq!(port(Some(json!(80.9))), Ok(80));
            assert_eq!(port(Some(json!(8e1))), Ok(80));
            for bad in [
                None,
                Some(Value::Null),
                Some("80".into()),
                Some(json!([80])),
                Some(0.into()),
                Some(json!(0.5)),
                Some((-5).into()),
                Some(65536.into()),
                Some(73620.into()),
                Some(json!(1e300)),
                Some(json!(-1e300)),
            ] {
                assert_eq!(port(bad), Err(format!("bad request: add_hostfwd: bad arguments.{name}")));
            }
        }
    }

    #[test]
    fn arguments_are_checked_in_order() {
        let names = ["proto", "host_addr", "host_port", "guest_addr", "guest_port"];
        for first in 0..names.len() {
            let bad: Vec<_> = names[first..].iter().map(|name| (*name, Some(Value::from("?")))).collect();
            assert_eq!(add(&bad), Err(format!("bad request: add_hostfwd: bad arguments.{}", names[first])));
        }
        for arguments in ["", r#","arguments":{}"#, r#","arguments":[]"#, r#","arguments":"x""#] {
            let error = ask(&format!(r#"{{"execute":"add_hostfwd"{arguments}}}"#));
            assert_eq!(error, Err(Fault::AddArgument("proto")), "{arguments}");
        }
        for proto in ["", "TCP", "sctp", "tcp5", "tcp "] {
            assert_eq!(
                add(&[("proto", Some(proto.into()))]).unwrap_err(),
                "bad request: add_hostfwd: bad arguments.proto"
            );
        }
    }

    #[test]
    fn ids() {
        let remove = |id: &str| ask(&format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#));
        assert_eq!(remove("1"), Ok(Request::Remove(1)));
        assert_eq!(remove("2.7"), Ok(Request::Remove(2)));
        for bad in ["0", "-1", "0.5", "\"1\"", "null", "[1]", "true"] {
            assert_eq!(remove(bad), Err(Fault::RemoveId), "{bad}");
        }
        assert_eq!(ask(r#"{"execute":"remove_hostfwd"}"#), Err(Fault::RemoveId));
        // Nobody has it.
        assert_eq!(remove("1e300"), Ok(Request::Remove(i64::MAX.cast_unsigned())));
    }
}
