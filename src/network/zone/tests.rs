use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::wire::dns_data::{TYPE_SRV, TYPE_TXT};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn record(line: &str) -> Record {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().expect("name ttl type value");
    let (name, ttl, kind) = (word(), word().parse().expect("seconds"), word());
    Record::parse(name, kind, word(), ttl).expect(line)
}

fn try_zone(lines: &[&str]) -> Result<Zone, ZoneError> {
    Zone::new(lines.iter().map(|line| record(line)).collect(), &Limits::default())
}

fn zone(lines: &[&str]) -> Zone {
    try_zone(lines).expect("a zone")
}

/// What is answered, one line a record, then where the rest is; None where the name is not ours.
fn ask(zone: &Zone, text: &str, qtype: u16) -> Option<String> {
    let answer = zone.lookup(&name(text), qtype, 7)?;
    let mut lines: Vec<String> = answer
        .records
        .iter()
        .map(|(owner, ttl, data)| format!("{owner} {ttl} {} {data}", type_name(data.kind())))
        .collect();
    lines.extend(answer.rest.map(|rest| format!("? {rest}")));
    Some(lines.join("\n"))
}

#[test]
fn names_and_types() {
    let zone = zone(&[
        "db.example 30 A 10.0.2.9",
        "db.example 30 TXT hello world",
        "_pg._tcp.example 60 SRV 1 2 5432 db.example",
        "v6.example 60 AAAA fd00::9",
    ]);
    assert_eq!(ask(&zone, "db.example", TYPE_A).as_deref(), Some("db.example 30 A 10.0.2.9"));
    assert_eq!(ask(&zone, "DB.EXAMPLE.", TYPE_TXT).as_deref(), Some("db.example 30 TXT hello world"));
    assert_eq!(
        ask(&zone, "_pg._tcp.example", TYPE_SRV).as_deref(),
        Some("_pg._tcp.example 60 SRV 1 2 5432 db.example")
    );
    // A name without that family, or that type: empty. MX, HTTPS.
    for qtype in [TYPE_AAAA, TYPE_CNAME, TYPE_PTR, 15, 65] {
        assert_eq!(ask(&zone, "db.example", qtype).as_deref(), Some(""), "{qtype}");
    }
    assert_eq!(ask(&zone, "v6.example", TYPE_A).as_deref(), Some(""));
    assert_eq!(
        ask(&zone, "db.example", TYPE_ANY).as_deref(),
        Some("db.example 30 A 10.0.2.9\ndb.example 30 TXT hello world")
    );
    // Above, below, beside, and between the parts of a name: not ours.
    for other in ["example", "x.db.example", "xdb.example", "db", "_tcp.example", "db.example.net"] {
        assert_eq!(ask(&zone, other, TYPE_A), None, "{other}");
    }
    assert_eq!(Zone::default().lookup(&name("a"), TYPE_A, 0), None);
}

#[test]
fn reverse() {
    let zone = zone(&[
        "db.example 30 A 10.0.2.9",
        "alias.example 60 A 10.0.2.9",
        "db.example 60 AAAA fd00::9",
        "said.example 60 A 10.0.2.10",
        "10.0.2.10 90 PTR other.example",
        "*.wild.example 60 A 10.0.2.11",
    ]);
    let back = |address: &str| {
        let name = Name::reverse(address.parse().expect("address")).to_string();
        ask(&zone, &name, TYPE_PTR).map(|text| text.replace(&format!("{name} "), ""))
    };
    assert_eq!(back("10.0.2.9").as_deref(), Some("30 PTR db.example\n30 PTR alias.example"), "one time to live");
    assert_eq!(back("fd00::9").as_deref(), Some("60 PTR db.example"));
    assert_eq!(back("10.0.2.10").as_deref(), Some("90 PTR other.example"), "what a record says counts");
    assert_eq!(back("10.0.2.11"), None, "a wildcard is nothing's name");
    assert_eq!(back("10.0.2.12"), None);
    assert_eq!(ask(&zone, "9.2.0.10.in-addr.arpa", TYPE_A).as_deref(), Some(""));
    assert_eq!(
        ask(&zone, "9.2.0.10.in-addr.arpa", TYPE_ANY).map(|text| text.lines().count()),
        Some(2),
        "any type has it too"
    );
}

#[test]
fn an_address_of_a_thousand_names() {
    let lines: Vec<String> = (0..1000).map(|n| format!("ad{n}.example 60 A 0.0.0.0")).collect();
    let zone = zone(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let names = zone.lookup(&Name::reverse(IpAddr::from([0, 0, 0, 0])), TYPE_PTR, 0).expect("ours");
    assert_eq!(names.records.len(), MAX_NAMES_OF_ADDRESS);
}

#[test]
fn aliases() {
    let zone = zone(&[
        "www.example 10 CNAME web.example",
        "web.example 20 CNAME host.example",
        "host.example 30 A 10.0.2.9",
        "out.example 40 CNAME www.far.test",
        "to-out.example 50 CNAME out.example",
        "*.many.example 60 CNAME host.example",
    ]);
    let chain = "www.example 10 CNAME web.example\nweb.example 20 CNAME host.example";
    assert_eq!(ask(&zone, "www.example", TYPE_A), Some(format!("{chain}\nhost.example 30 A 10.0.2.9")));
    assert_eq!(ask(&zone, "www.example", TYPE_AAAA).as_deref(), Some(chain), "the last name has no such type");
    assert_eq!(ask(&zone, "www.example", TYPE_CNAME).as_deref(), Some("www.example 10 CNAME web.example"));
    assert_eq!(
        ask(&zone, "to-out.example", TYPE_A).as_deref(),
        Some("to-out.example 50 CNAME out.example\nout.example 40 CNAME www.far.test\n? www.far.test")
    );
    assert_eq!(ask(&zone, "out.example", TYPE_CNAME).as_deref(), Some("out.example 40 CNAME www.far.test"));
    assert_eq!(
        ask(&zone, "x.many.example", TYPE_A).as_deref(),
        Some("x.many.example 60 CNAME host.example\nhost.example 30 A 10.0.2.9")
    );
}

#[test]
fn aliases_that_are_refused() {
    let chain = |length: usize| -> Vec<String> { (0..length).map(|n| format!("c{n} 60 CNAME c{}", n + 1)).collect() };
    let try_lines = |lines: Vec<String>| try_zone(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ask(&try_lines(chain(8)).expect("eight steps"), "c0", TYPE_A).map(|text| text.lines().count()), Some(9));
    assert_eq!(try_lines(chain(9)).err(), Some(ZoneError::Chain { name: name("c0"), limit: 8 }));
    for lines in [
        &["a 60 CNAME a"][..],
        &["a 60 CNAME b", "b 60 CNAME a"],
        &["x.b 60 CNAME b.b", "*.b 60 CNAME x.b"],
        &["*.a 60 CNAME b.a"],
    ] {
        assert!(matches!(try_zone(lines), Err(ZoneError::Chain { .. })), "{lines:?}");
    }
    for lines in [
        &["a 60 CNAME b", "a 60 A 10.0.0.1"][..],
        &["a 60 A 10.0.0.1", "A. 60 CNAME b"],
        &["a 60 CNAME b", "a 60 CNAME c"],
    ] {
        assert_eq!(try_zone(lines).err(), Some(ZoneError::CnameAndOthers(name("a"))), "{lines:?}");
    }
    assert!(matches!(try_zone(&["a 60 CNAME b", "a 9 CNAME b"]), Err(ZoneError::Exists(_))));
}

#[test]
fn wildcards() {
    // The example of RFC 4592 §2.2.1, as far as its types are ours, and what it says about it.
    let zone = zone(&[
        "*.example 3600 TXT this is a wildcard",
        "host1.example 3600 A 192.0.2.1",
        "_ssh._tcp.host1.example 3600 SRV 0 0 22 host1.example",
        "_ssh._tcp.host2.example 3600 SRV 0 0 22 host2.example",
    ]);
    for covered in ["host3.example", "foo.bar.example", "a.b.c.d.example"] {
        assert_eq!(ask(&zone, covered, TYPE_TXT), Some(format!("{covered} 3600 TXT this is a wildcard")));
        assert_eq!(ask(&zone, covered, TYPE_A).as_deref(), Some(""), "{covered}: the name is ours now");
    }
    assert_eq!(ask(&zone, "host1.example", TYPE_TXT).as_deref(), Some(""), "a name with records of its own");
    for not_covered in
        ["sub.host1.example", "_telnet._tcp.host1.example", "host2.example", "x.host2.example", "example"]
    {
        assert_eq!(ask(&zone, not_covered, TYPE_TXT), None, "{not_covered}");
    }
    assert_eq!(ask(&zone, "*.example", TYPE_TXT).as_deref(), Some("*.example 3600 TXT this is a wildcard"));
    // The wildcard is itself a name that there is, with no wildcard below it.
    let below = Name::from_wire(b"\x05ghost\x01*\x07example\x00").expect("a name");
    assert_eq!(zone.lookup(&below, TYPE_TXT, 0), None);
}

#[test]
fn the_longest_wildcard_counts() {
    let zone = zone(&["*.example 60 A 10.0.0.1", "*.b.example 60 A 10.0.0.2"]);
    assert_eq!(ask(&zone, "x.example", TYPE_A).as_deref(), Some("x.example 60 A 10.0.0.1"));
    assert_eq!(ask(&zone, "x.b.example", TYPE_A).as_deref(), Some("x.b.example 60 A 10.0.0.2"));
    assert_eq!(ask(&zone, "y.x.b.example", TYPE_A).as_deref(), Some("y.x.b.example 60 A 10.0.0.2"));
}

#[test]
fn addresses_are_shuffled() {
    let lines: Vec<String> = (1..=4).map(|n| format!("web {} A 10.0.0.{n}", 60 + n)).collect();
    let zone = zone(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let mut orders: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut first = [0; 4];
    for random in 0..2400 {
        let answer = zone.lookup(&name("web"), TYPE_A, random).expect("ours");
        assert!(answer.records.iter().all(|&(_, ttl, _)| ttl == 61), "one time to live, the shortest");
        let order: Vec<String> = answer.records.iter().map(|(_, _, data)| data.to_string()).collect();
        first[usize::from(order[0].as_bytes()[7] - b'1')] += 1;
        orders.insert(order);
        assert_eq!(zone.lookup(&name("web"), TYPE_A, random), Some(answer), "drawn by the caller alone");
    }
    assert_eq!(orders.len(), 24, "every order");
    assert!(first.iter().all(|&count| (500..700).contains(&count)), "{first:?}");
}

#[test]
fn bounds() {
    let limits = Limits { records: 3, name_bytes: 60, text: 20, ..Limits::default() };
    let make = |lines: &[&str]| Zone::new(lines.iter().map(|line| record(line)).collect(), &limits).map(drop);
    let four = ["a 60 A 10.0.0.1", "b 60 A 10.0.0.1", "c 60 A 10.0.0.1", "d 60 A 10.0.0.1"];
    assert_eq!(make(&four[..3]), Ok(()));
    assert_eq!(make(&four), Err(ZoneError::Records { limit: 3 }));
    assert_eq!(make(&["a 60 TXT 12345678901234567890"]), Ok(()));
    let text = make(&["a 60 TXT 123456789012345678901"]);
    assert_eq!(text, Err(ZoneError::Text { name: name("a"), length: 21, limit: 20 }));
    // 28 bytes each.
    assert_eq!(make(&["a 60 AAAA fd00::1", "a 60 AAAA fd00::2"]), Ok(()));
    let bytes = make(&["a 60 AAAA fd00::1", "a 60 AAAA fd00::2", "a 60 A 10.0.0.1"]);
    assert_eq!(bytes, Err(ZoneError::NameBytes { name: name("a"), limit: 60 }));
    let messages: Vec<String> =
        [text, bytes, make(&four)].into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    assert_eq!(
        messages,
        [
            "the text of 'a' is 21 bytes long; give at most 20",
            "the records of 'a' take more than 60 bytes together; remove some first",
            "more than 3 records; remove some first"
        ]
    );
}

#[test]
fn records_that_are_refused() {
    for (name, kind, value, ttl, said) in [
        ("a b", "A", "10.0.0.1", 60, "'a b' has ' ' in it"),
        ("10.0.0.1", "A", "10.0.0.1", 60, "'10.0.0.1' is an address, not a name"),
        ("a", "A", "b", 60, "record 'a': 'b' is not an IPv4 address"),
        ("a", "A", "10.0.0.1", 1 << 31, "time to live 2147483648 s of 'a' is too long; give at most 2147483647"),
        ("LOCALHOST", "A", "10.0.0.1", 60, "'localhost' always means this host itself"),
        ("a.localhost.", "A", "10.0.0.1", 60, "'a.localhost' always means this host itself"),
        ("10.0.0.1", "PTR", "*.a", 60, "record '10.0.0.1': '*.a' stands for many names"),
    ] {
        let error = Record::parse(name, kind, value, ttl).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = try_zone(&["a 60 A 10.0.0.1", "a 90 A 10.0.0.1"]).expect_err("twice").to_string();
    assert_eq!(error, "record a A '10.0.0.1' exists already; remove it first");
}

#[test]
fn records_travel_as_text() {
    let record = record("*.Db.example 30 SRV 1 2 3 web.example");
    let json = serde_json::to_string(&record).expect("JSON");
    assert_eq!(json, r#"{"name":"*.db.example","type":"SRV","value":"1 2 3 web.example","ttl":30}"#);
    assert_eq!(serde_json::from_str::<Record>(&json).expect("a record"), record);
    let bad =
        serde_json::from_str::<Record>(r#"{"name":"a","type":"A","value":"x","ttl":30}"#).expect_err("no address");
    assert!(bad.to_string().contains("'x' is not an IPv4 address"), "{bad}");
}

fn any_record() -> impl Strategy<Value = Record> {
    let label = "[abc]";
    let name = (any::<bool>(), proptest::collection::vec(label, 1..4))
        .prop_map(|(wild, labels)| format!("{}{}", if wild { "*." } else { "" }, labels.join(".")));
    let target = proptest::collection::vec(label, 1..4).prop_map(|labels| labels.join("."));
    (name, target, 0u8..5, 0u32..100).prop_map(|(name, target, kind, ttl)| {
        let (kind, value) = match kind {
            0 => ("A", format!("10.0.0.{ttl}")),
            1 => ("AAAA", format!("fd00::{ttl}")),
            2 | 3 => ("CNAME", target),
            _ => ("TXT", target),
        };
        Record::parse(&name, kind, &value, ttl).expect("valid")
    })
}

proptest! {
    #[test]
    fn any_zone(records in proptest::collection::vec(any_record(), 0..12), asked in proptest::collection::vec("[abc*]", 1..5), qtype in prop_oneof![Just(1u16), Just(5), Just(16), Just(28), Just(255)], random in any::<u64>()) {
        // What is refused is left out, as a supervisor would.
        let mut kept: Vec<Record> = Vec::new();
        let mut zone = Zone::default();
        for record in records {
            let mut next = kept.clone();
            next.push(record);
            if let Ok(made) = Zone::new(next.clone(), &Limits::default()) {
                (kept, zone) = (next, made);
            }
        }
        let Ok(asked) = Name::parse(&asked.join(".")) else { return Ok(()) };
        let exact = kept.iter().any(|record| record.name == asked);
        let answer = zone.lookup(&asked, qtype, random);
        prop_assert!(!exact || answer.is_some());
        let Some(answer) = answer else { return Ok(()) };
        let mut owner = asked;
        let mut left = answer.records.iter().peekable();
        if qtype != 5 && qtype != 255 {
            while let Some((name, _, Data::Cname(target))) = left.peek() {
                prop_assert_eq!(name, &owner);
                owner = target.clone();
                left.next();
            }
        }
        for (name, _, data) in left {
            prop_assert_eq!(name, &owner);
            prop_assert!(qtype == 255 || data.kind() == qtype);
        }
        if let Some(rest) = answer.rest {
            prop_assert_eq!(&rest, &owner);
            prop_assert!(zone.lookup(&rest, qtype, random).is_none());
        }
        let json = serde_json::to_string(zone.records()).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Vec<Record>>(&json).expect("records"), kept);
    }
}
