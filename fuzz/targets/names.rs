//! Names and DNS messages: questions of a guest, answers from anywhere, the zone, the names of a shared network.
//!
//! Input: a byte (which records the zone has), a question (length (2), bytes), then a message that claims to answer it.
//!
//! What must hold: what is read lies within the message; every answer is to that question, whole (each record that is
//! counted is there and nothing else), and no longer than the sender takes; half an answer leaves nothing behind; a name has one form.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tapway::network::config::Link;
use tapway::network::directory::{self, Directory};
use tapway::network::zone::{self, Record, Zone};
use tapway::wire::dns_build::{self, Builder};
use tapway::wire::dns_data::{self, Data};
use tapway::wire::dns_message::{self, Query, QueryError, Rcode};
use tapway::wire::dns_name::{self, Name};
use tapway_fuzz::Input;

fn zone(choice: u8) -> Zone {
    let all = [
        ("db.example", "A", "192.0.2.7"),
        ("db.example", "AAAA", "2001:db8::7"),
        ("alias.example", "CNAME", "db.example"),
        ("out.example", "CNAME", "www.example.net"),
        ("*.wild.example", "TXT", "\"one\" \"two\""),
        ("_http._tcp.example", "SRV", "10 5 80 db.example"),
        ("7.2.0.192.in-addr.arpa", "PTR", "db.example"),
        ("loop.example", "CNAME", "loop2.example"),
    ];
    let chosen = all.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 0);
    let records = chosen.filter_map(|(_, (name, kind, value))| Record::parse(name, kind, value, 60).ok()).collect();
    Zone::new(records, &zone::Limits::default()).expect("the zone is a zone")
}

fn name(bytes: &[u8]) {
    if let Some(name) = Name::from_wire(bytes) {
        assert!(name.as_wire().len() <= dns_name::MAX_NAME);
        assert_eq!(Name::from_wire(name.as_wire()).as_ref(), Some(&name));
        let text = name.to_string();
        // What people may write has the same form both ways.
        if let Ok(again) = Name::parse(&text) {
            assert_eq!(again, name, "{text}");
        }
        assert_eq!(name.tails().count(), name.labels());
        assert!(name.is_under(&name));
        if let Some(address) = name.reversed_address() {
            assert_eq!(Name::reverse(address).reversed_address(), Some(address));
        }
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut out = vec![7];
    if dns_name::append(&mut out, text) {
        assert_eq!(out[0], 7);
    } else {
        assert_eq!(out, [7], "half a name was appended");
    }
    if let Ok(name) = Name::parse(text) {
        assert_eq!(Name::parse(&name.to_string()), Ok(name.clone()));
        assert_eq!(Name::from_wire(name.as_wire()), Some(name));
    }
    for kind in ["A", "AAAA", "CNAME", "TXT", "SRV", "PTR"] {
        if let Ok(data) = Data::parse(kind, text) {
            let shown = data.to_string();
            assert_eq!(Data::parse(kind, &shown).as_ref(), Ok(&data), "{shown}");
            assert_eq!(&*dns_data::type_name(data.kind()), kind);
        }
    }
    if let Ok(number) = dns_data::type_number(text) {
        assert_eq!(dns_data::type_number(&dns_data::type_name(number)), Ok(number));
    }
}

/// Where the name at `at` ends, if its labels and pointers lie within the message.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            length @ 0xc0.. => {
                let to = usize::from(u16::from_be_bytes([length & 0x3f, *message.get(at + 1)?]));
                assert!(to >= dns_message::HEADER && to < at, "a pointer forward");
                return Some(at + 2);
            }
            _ => return None,
        }
    }
}

/// Every record that is counted lies in the message, and nothing behind them. None: it breaks off.
fn walk(message: &[u8]) -> Option<()> {
    let count = |at: usize| Some(usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])));
    let mut at = dns_message::HEADER;
    for _ in 0..count(4)? {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..count(6)? + count(8)? + count(10)? {
        at = skip_name(message, at)? + 10;
        at += count(at - 2)?;
    }
    (at == message.len()).then_some(())
}

/// An answer that leaves us: a message, about this question, whole.
fn check(query: &Query<'_>, answer: &[u8], what: &str) {
    assert!(query.is_answered_by(answer, query.id), "{what}: not an answer to the question");
    assert!(walk(answer).is_some(), "{what}: breaks off: {answer:?}");
}

fn own(query: &Query<'_>, choice: u8) {
    let addresses: Vec<IpAddr> = vec![[192, 0, 2, 1].into(), IpAddr::V6(1.into()), [192, 0, 2, 2].into()];
    for rcode in [Rcode::NoError, Rcode::ServFail, Rcode::NxDomain, Rcode::Refused] {
        let answer = query.answer(rcode);
        check(query, &answer, "empty");
        assert_eq!(dns_message::rcode(&answer), rcode as u8);
    }
    let answer = query.address_answer(&addresses, 5);
    check(query, &answer, "addresses");
    assert!(dns_build::addresses(&answer, 2).len() <= 2);
    let limit = query.max_udp();
    let fitted = query.fit(answer.clone(), limit);
    assert!(fitted.len() <= limit && limit >= dns_message::MIN_UDP);
    check(query, &fitted, "fitted");
    let cut = query.fit(answer, 0);
    assert!(dns_message::is_truncated(&cut));
    check(query, &cut, "cut");
    assert_eq!(query.with_id(77)[..2], [0, 77]);
    let _ = (query.is_under("localhost"), query.is_under("example"));
    let Some(name) = query.name() else { return };
    let about = query.about(&name);
    let again = Query::parse(&about).expect("a question about another name is one");
    assert_eq!((again.qtype, again.qclass, again.edns), (query.qtype, query.qclass, query.edns));
    assert_eq!(again.name(), Some(name.clone()));

    let mut directory = Directory::new("net", directory::Limits::default());
    let names = ["box".to_owned(), "web".to_owned()];
    directory.join(1, &names, &addresses).expect("names are free");
    let links = [Link { target: "web".into(), alias: "w".into() }];
    let aliases = directory.aliases(&links).expect("aliases are names");
    let zone = zone(choice);
    let found = [zone.lookup(&name, query.qtype, 3), directory.lookup(&name, query.qtype, &aliases, 4)];
    for found in found.into_iter().flatten() {
        let mut builder = Builder::new(query, Rcode::NoError, found.rest.is_none());
        for (owner, ttl, data) in &found.records {
            assert!(builder.record(owner, *ttl, data), "a record of the zone does not fit");
        }
        check(query, &builder.finish(query), "zone");
    }
    directory.leave(1);
    assert!(directory.is_empty());
}

fn merged(query: &Query<'_>, message: &[u8]) {
    let target = Name::parse("www.example.net").expect("it is a name");
    let mut builder = Builder::new(query, Rcode::NoError, false);
    if let Some(name) = query.name() {
        builder.record(&name, 60, &Data::Cname(target));
    }
    let before = builder.clone().finish(query);
    let appended = builder.append_answer(message);
    builder.set_rcode(Rcode::NxDomain);
    let after = builder.finish(query);
    check(query, &after, "merged");
    assert!(after.len() <= 65_535, "{} bytes", after.len());
    if !appended {
        assert_eq!(after.len(), before.len(), "half an answer was appended");
    }
    let id = u16::from_be_bytes([message.first().copied().unwrap_or(0), message.get(1).copied().unwrap_or(0)]);
    if query.is_answered_by(message, id) {
        assert_eq!(message[2] & 0x80, 0x80);
        let fitted = query.fit(message.to_vec(), query.max_udp());
        assert!(fitted.len() <= query.max_udp());
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let choice = input.byte();
    let question = input.block();
    let message = input.0;
    name(message);
    for limit in [0, 1, 64] {
        assert!(dns_build::addresses(message, limit).len() <= limit);
    }
    let _ = (dns_message::is_truncated(message), dns_message::rcode(message));
    match Query::parse(question) {
        Ok(query) => {
            assert!(query.question.len() <= question.len());
            own(&query, choice);
            merged(&query, message);
        }
        Err(error) => {
            let answer = dns_message::error_answer(question, error);
            assert_eq!(answer.is_none(), error == QueryError::NoQuestion);
            assert!(answer.is_none_or(|answer| answer.len() == dns_message::HEADER));
        }
    }
});
