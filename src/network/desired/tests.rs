use proptest::prelude::*;

use super::*;
use crate::wire::dns_message::{TYPE_A, TYPE_AAAA};

const LIMITS: Limits = Limits {
    servers: 2,
    zones: 2,
    search: 2,
    options: 2,
    search_bytes: 20,
    hosts: 3,
    zone: zone::Limits { records: 5, name_bytes: 200, text: 20, chain: 4 },
};

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn zones(of: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    of.iter().map(|(domain, servers)| ((*domain).to_owned(), strings(servers))).collect()
}

/// Changes that are refused leave everything as it was.
fn refused(desired: &mut Desired, change: impl FnOnce(&mut Desired) -> Result<(), DesiredError>) -> (Fault, String) {
    let before = desired.clone();
    let error = change(desired).expect_err("refused");
    assert_eq!(*desired, before);
    (error.fault(), error.to_string())
}

#[test]
fn servers_as_people_write_them() {
    for (text, server) in [
        ("192.0.2.53", "192.0.2.53:53"),
        ("192.0.2.53:5353", "192.0.2.53:5353"),
        ("::1", "[::1]:53"),
        ("[::1]:5353", "[::1]:5353"),
        ("fe80::1%7", "[fe80::1%7]:53"),
        ("[fe80::1%7]:99", "[fe80::1%7]:99"),
    ] {
        assert_eq!(parse_server(text).map(|server| server.to_string()).as_deref(), Ok(server));
    }
    for text in ["", "dns.example", "1.2.3", "1.2.3.4:x", "1.2.3.4:70000", "[::1]", "fe80::1%eth0", "1.2.3.4%1"] {
        assert_eq!(parse_server(text), Err(DesiredError::Server(text.to_owned())), "{text}");
    }
    for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "1.2.3.4:0"] {
        assert_eq!(parse_server(text), Err(DesiredError::Unaskable(text.to_owned())), "{text}");
    }
}

#[test]
fn settings_change_in_part() {
    let mut desired = Desired::default();
    let all = SetDns {
        servers: Some(Some(strings(&["1.2.3.4", "[::1]:5353"]))),
        search: Some(strings(&["a.example", "b"])),
        options: Some(strings(&["ndots:2"])),
        zones: Some(zones(&[("Corp.example.", &["10.9.9.9"])])),
    };
    desired.set_dns(&all, &LIMITS).expect("fine");
    let dns = desired.dns().clone();
    assert_eq!(dns.servers.as_ref().map(Vec::len), Some(2));
    assert_eq!((dns.zones[0].domain.to_string(), dns.zones[0].servers[0].port()), ("corp.example".to_owned(), 53));
    assert_eq!(
        dns.resolv_conf(&["10.0.2.3".parse().expect("address")]),
        "# Made by tapway for this sandbox.\nnameserver 10.0.2.3\nsearch a.example b\noptions ndots:2\n"
    );
    // What is not named stays.
    desired.set_dns(&SetDns::default(), &LIMITS).expect("fine");
    assert_eq!(*desired.dns(), dns);
    desired.set_dns(&SetDns { search: Some(vec![]), ..SetDns::default() }, &LIMITS).expect("fine");
    desired.set_dns(&SetDns { servers: Some(None), ..SetDns::default() }, &LIMITS).expect("fine");
    assert_eq!(*desired.dns(), DnsSettings { servers: None, search: vec![], ..dns.clone() });
    // Nobody is to be asked: another thing than following the host.
    desired.set_dns(&SetDns { servers: Some(Some(vec![])), ..SetDns::default() }, &LIMITS).expect("fine");
    assert_eq!(desired.dns().servers, Some(vec![]));
}

#[test]
fn settings_that_are_refused() {
    let mut desired = Desired::default();
    let servers = |servers: &[&str]| SetDns { servers: Some(Some(strings(servers))), ..SetDns::default() };
    let with_zones = |of: &[(&str, &[&str])]| SetDns { zones: Some(zones(of)), ..SetDns::default() };
    let search = |words: &[&str]| SetDns { search: Some(strings(words)), ..SetDns::default() };
    let options = |words: &[&str]| SetDns { options: Some(strings(words)), ..SetDns::default() };
    let good: &[&str] = &["1.2.3.4"];
    for (change, fault, said) in [
        (servers(&["1.2.3.4", "x"]), Fault::BadArgument, "name server 'x' is not an address"),
        (servers(&["0.0.0.0"]), Fault::BadArgument, "name server '0.0.0.0' cannot be asked"),
        (servers(&["1.2.3.4", "1.2.3.4:53"]), Fault::BadArgument, "name server '1.2.3.4:53' is given twice"),
        (servers(&["1.1.1.1", "1.1.1.2", "1.1.1.3"]), Fault::Limit, "3 name servers are more than the 2 that are kept"),
        (with_zones(&[("a", good), ("b", good), ("c", good)]), Fault::Limit, "3 zones are more than the 2"),
        (with_zones(&[("a", good), ("A.", good)]), Fault::BadArgument, "zone 'a' is given twice"),
        (with_zones(&[("a", &[])]), Fault::BadArgument, "zone 'a' has no servers"),
        (with_zones(&[("*.a", good)]), Fault::BadArgument, "zone '*.a' has a '*'"),
        (with_zones(&[("", good)]), Fault::BadArgument, "zone: the name is empty"),
        (with_zones(&[("a", &["b"])]), Fault::BadArgument, "name server 'b'"),
        (search(&["a b"]), Fault::BadArgument, "search domain: name 'a b' has ' ' in it"),
        (search(&["a", "b", "c"]), Fault::Limit, "3 search domains"),
        (search(&["aaaaaaaaaa", "bbbbbbbbbbb"]), Fault::Limit, "21 bytes of search domains"),
        (options(&["ndots:1", "a\nnameserver 6.6.6.6"]), Fault::BadArgument, "resolver option 'a\nnameserver"),
        (options(&[""]), Fault::BadArgument, "resolver option ''"),
    ] {
        // What is good in the same change is not kept either.
        let change = SetDns { search: change.search.or(Some(strings(&["kept"]))), ..change };
        let (got, text) = refused(&mut desired, |desired| desired.set_dns(&change, &LIMITS).map(drop));
        assert!(got == fault && text.contains(said), "{got:?} {text}");
    }
}

#[test]
fn records_and_hosts_become_a_zone() {
    let mut desired =
        Desired::new(DnsSettings::default(), &[("db".to_owned(), "10.0.2.9".parse().expect("address"))], &LIMITS)
            .expect("fine");
    desired.add_host("DB", "fd00::9", &LIMITS).expect("fine");
    desired.add_dns_record("www.db", "cname", "db", 5, &LIMITS).expect("fine");
    // Said twice, by a record and by a host: once in the zone, with the record's life.
    desired.add_dns_record("db", "A", "10.0.2.9", 7, &LIMITS).expect("fine");
    let zone = desired.zone(&LIMITS).expect("sound");
    assert_eq!(zone.records().len(), 3);
    let name = |text: &str| Name::parse(text).expect("a name");
    let ask = |text: &str, qtype| zone.lookup(&name(text), qtype, 0).expect("ours").records;
    assert_eq!(ask("db", TYPE_A), [(name("db"), 7, Data::A("10.0.2.9".parse().expect("address")))]);
    assert_eq!(ask("www.db", TYPE_AAAA)[1], (name("db"), DEFAULT_TTL, Data::Aaaa("fd00::9".parse().expect("address"))));
    let sources: Vec<HostSource> = desired.hosts().iter().map(|host| host.source).collect();
    assert_eq!(sources, [HostSource::Run, HostSource::Socket]);
    // It is kept as JSON and comes back whole.
    let json = serde_json::to_string(&desired).expect("JSON");
    assert_eq!(serde_json::from_str::<Desired>(&json).expect("desired"), desired);
    assert_eq!(serde_json::from_str::<Desired>("{}").expect("desired"), Desired::default());
}

#[test]
fn changes_that_are_refused() {
    let mut desired = Desired::default();
    desired.add_host("db", "10.0.2.9", &LIMITS).expect("fine");
    desired.add_dns_record("t", "TXT", "x", 60, &LIMITS).expect("fine");
    let mut record = |name: &str, kind: &str, value: &str| {
        refused(&mut desired, |desired| desired.add_dns_record(name, kind, value, 60, &LIMITS))
    };
    let (exists, bad, limit) = (Fault::Exists, Fault::BadArgument, Fault::Limit);
    assert_eq!(record("t", "txt", "x"), (exists, "record t TXT 'x' exists already; remove it first".to_owned()));
    assert_eq!(record("db", "CNAME", "x").0, bad, "a host is there");
    assert_eq!(record("c", "CNAME", "c").0, bad);
    assert_eq!(record("c", "MX", "1 c").0, bad);
    assert_eq!(record("c", "TXT", &"x".repeat(21)).0, limit);
    let mut host =
        |name: &str, address: &str| refused(&mut desired, |desired| desired.add_host(name, address, &LIMITS));
    assert_eq!(host("Db", "10.0.2.9"), (exists, "host 'db' has the address 10.0.2.9 already".to_owned()));
    assert_eq!(host("*.db", "10.0.2.9").0, bad);
    assert_eq!(
        host("db", "gateway"),
        (bad, "'gateway' is not an IP address; give one such as 192.0.2.7 or 2001:db8::7".to_owned())
    );
    assert_eq!(host("localhost", "10.0.2.9").0, bad);
    assert_eq!(host("10.0.2.9", "10.0.2.9").0, bad);
    for address in ["10.0.2.10", "10.0.2.11"] {
        desired.add_host("db", address, &LIMITS).expect("fine");
    }
    let full = refused(&mut desired, |desired| desired.add_host("x", "10.0.2.9", &LIMITS));
    assert_eq!(full, (limit, "4 hosts are more than the 3 that are kept; give fewer".to_owned()));
    // Hosts count among the records of the zone.
    desired.add_dns_record("u", "TXT", "x", 60, &LIMITS).expect("fine");
    let full = refused(&mut desired, |desired| desired.add_dns_record("v", "TXT", "x", 60, &LIMITS));
    assert_eq!(full, (limit, "more than 5 records; remove some first".to_owned()));
}

#[test]
fn removing() {
    let mut desired = Desired::default();
    for (name, kind, value) in
        [("a", "A", "10.0.0.1"), ("a", "A", "10.0.0.2"), ("a", "TXT", "x"), ("10.0.0.9", "PTR", "b")]
    {
        desired.add_dns_record(name, kind, value, 60, &LIMITS).expect("fine");
    }
    let before = desired.clone();
    let mut remove = |name: &str, kind, value| desired.remove_dns_record(name, kind, value, &LIMITS);
    assert_eq!(remove("A.", Some("a"), Some("10.0.0.2")), Ok(1));
    assert_eq!(remove("a", None, None), Ok(2));
    assert_eq!(remove("10.0.0.9", Some("PTR"), None), Ok(1));
    desired = before;
    for (name, kind, value, fault, said) in [
        ("b", None, None, Fault::NotFound, "there is no record b; see list_dns_records"),
        ("a", Some("aaaa"), None, Fault::NotFound, "there is no record a AAAA; see list_dns_records"),
        ("a", Some("A"), Some("10.0.0.3"), Fault::NotFound, "there is no record a A '10.0.0.3'; see list_dns_records"),
        ("a", None, Some("x"), Fault::BadArgument, "the value 'x' needs its type; give both, or the name alone"),
        (
            "a",
            Some("MX"),
            None,
            Fault::BadArgument,
            "record type 'MX' is not known; use A, AAAA, CNAME, TXT, SRV or PTR",
        ),
    ] {
        let got = refused(&mut desired, |desired| desired.remove_dns_record(name, kind, value, &LIMITS).map(drop));
        assert_eq!(got, (fault, said.to_owned()));
    }
    for address in ["10.0.0.1", "fd00::1"] {
        desired.add_host("h", address, &Limits::default()).expect("fine");
    }
    assert_eq!(desired.remove_host("h", Some("fd00:0::1"), &LIMITS), Ok(1));
    let got = refused(&mut desired, |desired| desired.remove_host("h", Some("fd00::1"), &LIMITS).map(drop));
    assert_eq!(got, (Fault::NotFound, "there is no host h fd00::1; see list_hosts".to_owned()));
    assert_eq!(desired.remove_host("H", None, &LIMITS), Ok(1));
    assert_eq!(desired.hosts(), []);
}

#[test]
fn removing_a_name_may_bare_a_wildcard() {
    let mut desired = Desired::default();
    for (name, kind, value) in [("x.b", "CNAME", "y.b"), ("y.b", "A", "10.0.0.1"), ("*.b", "CNAME", "x.b")] {
        desired.add_dns_record(name, kind, value, 60, &LIMITS).expect("fine");
    }
    // y.b would then be what the wildcard says, which is x.b, which is y.b.
    let (fault, text) =
        refused(&mut desired, |desired| desired.remove_dns_record("y.b", None, None, &LIMITS).map(drop));
    assert!(fault == Fault::BadArgument && text.contains("following the CNAME of"), "{text}");
}

proptest! {
    #[test]
    fn any_changes(changes in proptest::collection::vec((0u8..5, "(\\*\\.)?[ab](\\.[ab])?", prop_oneof![Just("A"), Just("CNAME"), Just("TXT")], "([ab]|10\\.0\\.0\\.[12])"), 0..30)) {
        let mut desired = Desired::default();
        for (what, name, kind, value) in changes {
            let before = desired.clone();
            let done = match what {
                0 | 1 => desired.add_dns_record(&name, kind, &value, 60, &LIMITS),
                2 => desired.remove_dns_record(&name, Some(kind), None, &LIMITS).map(drop),
                3 => desired.add_host(&name, &value, &LIMITS),
                _ => desired.remove_host(&name, None, &LIMITS).map(drop),
            };
            prop_assert_eq!(done.is_err(), desired == before);
            prop_assert!(desired.zone(&LIMITS).is_ok());
            let json = serde_json::to_string(&desired).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<Desired>(&json).expect("desired"), &desired);
        }
    }
}
