//! Names of the network's own, domains with servers of their own, and what is told of questions.

use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag, RCODE};

use super::*;
use crate::network::zone::{self, Record};
use crate::wire::dns_message::TYPE_AAAA;

fn zone(records: &[(&str, &str, &str)]) -> Zone {
    let records = records.iter().map(|(name, kind, value)| Record::parse(name, kind, value, 30).expect("a record"));
    Zone::new(records.collect(), &zone::Limits::default()).expect("a zone")
}

fn domain(name: &str, servers: &[SocketAddr]) -> DnsZone {
    DnsZone { domain: Name::parse(name).expect("a name"), servers: servers.to_vec() }
}

/// Owner, and address or name, of each record of the answer section.
fn records(answer: &[u8]) -> Vec<(String, String)> {
    let packet = Packet::parse(answer).expect("DNS");
    let value = |data: &RData<'_>| match data {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
        RData::CNAME(name) => name.0.to_string(),
        RData::PTR(name) => name.0.to_string(),
        other => format!("{other:?}"),
    };
    packet.answers.iter().map(|record| (record.name.to_string(), value(&record.rdata))).collect()
}

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(owner, value)| ((*owner).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_zone_is_asked_first() {
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let resolver = resolver(&[server.address]);
    resolver.set_zone(zone(&[("db.example.net", "A", "10.0.2.9"), ("db.example.net", "AAAA", "fd00::9")]));
    let got = udp(&resolver, &question("DB.example.net", TYPE_A, Some(1232))).await;
    assert_eq!(records(&got), texts(&[("DB.example.net", "10.0.2.9")]));
    let packet = Packet::parse(&got).expect("DNS");
    assert!(
        packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE) && packet.opt().is_some()
    );
    assert_eq!(packet.answers[0].ttl, 30);
    // A type that the name has not: no error and no records, and nobody else is asked.
    let got = udp(&resolver, &question("db.example.net", 16, None)).await;
    assert_eq!((rcode(&got), records(&got)), (0, vec![]));
    let got = udp(&resolver, &question("9.2.0.10.in-addr.arpa", 12, None)).await;
    assert_eq!(records(&got)[0].1, "db.example.net");
    assert_eq!(server.count(), 0);
    // Another name, another class: forwarded.
    assert_eq!(mark_of(&udp(&resolver, &question("example.net", TYPE_A, None)).await), 7);
    let mut chaos = question("db.example.net", TYPE_A, None);
    *chaos.last_mut().expect("class") = 3;
    udp(&resolver, &chaos).await;
    assert_eq!(server.count(), 2);
    assert_eq!(resolver.stats(), Stats { zone: 2, zone_empty: 1, forwarded: 2, ..Stats::default() });
    // Gone at once when the zone goes.
    resolver.set_zone(Zone::default());
    assert_eq!(mark_of(&udp(&resolver, &question("db.example.net", TYPE_A, None)).await), 7);
}

#[tokio::test]
async fn the_zone_needs_no_server_and_no_place() {
    let resolver = Resolver::new(Limits { in_flight: 0, ..Limits::default() });
    resolver.set_zone(zone(&[("db", "A", "10.0.2.9")]));
    assert_eq!(records(&udp(&resolver, &question("db", TYPE_A, None)).await), texts(&[("db", "10.0.2.9")]));
    assert_eq!(rcode(&udp(&resolver, &question("other", TYPE_A, None)).await), 2);
}

#[tokio::test(start_paused = true)]
async fn questions_fail_on_purpose_and_repeat_it() {
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let resolver = resolver(&[server.address]);
    resolver.set_zone(zone(&[("db", "A", "10.0.2.9"), ("db", "AAAA", "fd00::9")]));
    let failures = async || {
        let mut all = Vec::new();
        for _ in 0..200 {
            all.push(rcode(&udp(&resolver, &question("db", TYPE_A, Some(1232))).await) == 2);
        }
        all
    };
    let share = |text: &str| text.parse().expect("a share");
    assert!(!failures().await.contains(&true));
    resolver.set_failing((share("25%"), 7, 0));
    let first = failures().await;
    let count = first.iter().filter(|&&failed| failed).count();
    // 50 of 200, four standard deviations of 6.1.
    assert!(count.abs_diff(50) < 25, "{count}");
    assert_eq!(resolver.stats(), Stats { zone: 400 - count as u64, fault: count as u64, ..Stats::default() });
    // Chance goes on where only the share is given again; a seed given again begins it anew.
    resolver.set_failing((share("25%"), 7, 0));
    assert_ne!(failures().await, first);
    resolver.set_failing((share("25%"), 7, 1));
    assert_eq!(failures().await, first);
    // Whatever would know the name: nobody is asked.
    resolver.set_failing((share("100%"), 7, 1));
    assert_eq!(rcode(&udp(&resolver, &question("example.net", TYPE_A, None)).await), 2);
    assert_eq!(rcode(&udp(&resolver, &question("localhost", TYPE_A, None)).await), 2);
    assert_eq!(server.count(), 0);
    // But for who sets rules for names.
    let name = |text: &str| Name::parse(text).expect("a name");
    let addresses: Vec<IpAddr> = ["10.0.2.9", "fd00::9"].map(|text| text.parse().expect("an address")).to_vec();
    assert_eq!(resolver.addresses(&name("db")).await, addresses);
    assert!(!resolver.addresses(&name("example.net")).await.is_empty());
    resolver.set_failing((share("0"), 7, 1));
    assert_eq!(mark_of(&udp(&resolver, &question("example.net", TYPE_A, None)).await), 7);
}

#[tokio::test]
async fn several_addresses_change_places() {
    let resolver = resolver(&[]);
    resolver.set_zone(zone(&[("web", "A", "10.0.2.1"), ("web", "A", "10.0.2.2"), ("web", "A", "10.0.2.3")]));
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let got = records(&udp(&resolver, &question("web", TYPE_A, None)).await);
        assert_eq!(got.len(), 3);
        firsts.insert(got[0].1.clone());
    }
    assert_eq!(firsts.len(), 3);
}

#[tokio::test]
async fn zone_answers_of_many_records() {
    let resolver = resolver(&[]);
    let addresses: Vec<String> = (0..100).map(|n| format!("10.0.3.{n}")).collect();
    resolver.set_zone(zone(&addresses.iter().map(|a| ("web", "A", a.as_str())).collect::<Vec<_>>()));
    for (edns, whole) in [(None, false), (Some(1232), false), (Some(4096), true)] {
        let query = question("web", TYPE_A, edns);
        let got = udp(&resolver, &query).await;
        assert_eq!(dns_message::is_truncated(&got), !whole, "{edns:?}");
        assert_eq!(records(&got).len(), if whole { 100 } else { 0 });
        let got = resolver.resolve(&query, Transport::Tcp).await.expect("answered");
        assert_eq!(records(&got).len(), 100);
    }
}

#[tokio::test(start_paused = true)]
async fn an_alias_out_of_the_zone_is_followed() {
    let server = Server::both(
        |q| match q[HEADER_END] {
            3 => vec![(0, answer(q, 2, 7))],
            // Long names have long answers.
            _ => vec![(0, truncated(q))],
        },
        |q| answer(q, 60, 7),
    )
    .await;
    let resolver = resolver(&[server.address]);
    resolver.set_zone(zone(&[
        ("a.local", "CNAME", "b.local"),
        ("b.local", "CNAME", "www.far.example"),
        ("long.local", "CNAME", "long-name.far.example"),
    ]));
    let got = udp(&resolver, &question("a.local", TYPE_A, Some(1232))).await;
    assert_eq!(
        records(&got),
        texts(&[
            ("a.local", "b.local"),
            ("b.local", "www.far.example"),
            ("www.far.example", "192.0.2.7"),
            ("www.far.example", "192.0.2.7"),
        ])
    );
    let packet = Packet::parse(&got).expect("DNS");
    assert_eq!((packet.id(), packet.questions[0].qname.to_string()), (0x1234, "a.local".to_owned()));
    assert!(!packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
    let asked = server.asked.lock().expect("lock")[0].1.clone();
    assert_eq!(asked[2..], question("www.far.example", TYPE_A, Some(1232))[2..]);
    // The alias itself is known here.
    let got = udp(&resolver, &question("b.local", 5, None)).await;
    assert_eq!(records(&got), texts(&[("b.local", "www.far.example")]));
    // An answer too long for the guest's datagram, and whole over TCP.
    let got = udp(&resolver, &question("long.local", TYPE_A, None)).await;
    assert!(dns_message::is_truncated(&got) && got.len() <= 512);
    let got = resolver.resolve(&question("long.local", TYPE_A, None), Transport::Tcp).await.expect("answered");
    assert_eq!((records(&got).len(), dns_message::is_truncated(&got)), (61, false));
    assert_eq!(resolver.stats(), Stats { forwarded: 3, followed: 3, zone: 1, ..Stats::default() });
}

/// Where the question's name begins.
const HEADER_END: usize = dns_message::HEADER;

#[tokio::test(start_paused = true)]
async fn an_alias_whose_target_has_no_answer() {
    for (code, expected) in [
        (Rcode::NxDomain, RCODE::NameError),
        (Rcode::ServFail, RCODE::ServerFailure),
        (Rcode::Refused, RCODE::Refused),
        (Rcode::NotImp, RCODE::ServerFailure),
    ] {
        let server = Server::udp(move |q| vec![(0, failure(q, code))]).await;
        let resolver = resolver(&[server.address]);
        resolver.set_zone(zone(&[("a.local", "CNAME", "www.far.example")]));
        let got = udp(&resolver, &question("a.local", TYPE_A, None)).await;
        assert_eq!(Packet::parse(&got).expect("DNS").rcode(), expected);
        // RFC 6604: that the last name does not exist is said together with the alias.
        assert_eq!(records(&got).len(), usize::from(code == Rcode::NxDomain), "{code:?}");
    }
    // A server that talks nonsense behind the question.
    let server = Server::udp(|q| {
        let mut bad = answer(q, 1, 7);
        let end = bad.len();
        bad[end - 16] = 0xff;
        vec![(0, bad)]
    })
    .await;
    for servers in [&[server.address][..], &[]] {
        let resolver = resolver(servers);
        resolver.set_zone(zone(&[("a.local", "CNAME", "www.far.example")]));
        let got = udp(&resolver, &question("a.local", TYPE_A, None)).await;
        assert_eq!((rcode(&got), records(&got).len()), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn domains_with_servers_of_their_own() {
    let host = Server::udp(|q| vec![(0, answer(q, 1, 1))]).await;
    let corp = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
    let lab = Server::udp(|q| vec![(0, answer(q, 1, 3))]).await;
    let resolver = resolver(&[host.address]);
    resolver.set_zones(&[
        domain("Corp.example", &[corp.address]),
        domain("lab.corp.example", &[lab.address]),
        domain("gone.example", &[nobody().await]),
        domain("none.example", &[]),
    ]);
    resolver.set_zone(zone(&[("alias.local", "CNAME", "www.corp.example"), ("here.corp.example", "A", "10.0.2.9")]));
    for (name, mark) in [
        ("www.corp.example", 2),
        ("CORP.example", 2),
        ("lab.corp.example", 3),
        ("a.b.lab.corp.example", 3),
        ("xlab.corp.example", 2),
        ("xcorp.example", 1),
        ("example", 1),
        ("corp.example.net", 1),
        ("alias.local", 2),
        ("here.corp.example", 9),
    ] {
        assert_eq!(mark_of(&udp(&resolver, &question(name, TYPE_A, None)).await), mark, "{name}");
    }
    assert_eq!(resolver.stats().forwarded_by_domain, 6);
    // Such names never go to other servers, whatever theirs do.
    let before = host.count();
    assert_eq!(rcode(&udp(&resolver, &question("www.gone.example", TYPE_A, None)).await), 2);
    assert_eq!(rcode(&udp(&resolver, &question("www.none.example", TYPE_A, None)).await), 2);
    assert_eq!(host.count(), before);
    // The root has no domain; and all of it ends when it is told so.
    let mut root = question("x", TYPE_A, None);
    root.drain(12..14);
    assert_eq!(mark_of(&udp(&resolver, &root).await), 1);
    resolver.set_zones(&[]);
    assert_eq!(mark_of(&udp(&resolver, &question("www.corp.example", TYPE_A, None)).await), 1);
}

#[tokio::test(start_paused = true)]
async fn localhost_stays() {
    // A zone refuses such names; the domains of a VPN may claim them.
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let resolver = resolver(&[server.address]);
    resolver.set_zones(&[domain("localhost", &[server.address])]);
    let got = udp(&resolver, &question("a.localhost", TYPE_A, None)).await;
    assert_eq!(records(&got), texts(&[("a.localhost", "127.0.0.1")]));
    assert_eq!(server.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn questions_are_told_of() {
    let server = Server::udp(|q| vec![(1500, answer(q, 10, 7))]).await;
    let resolver = resolver(&[server.address]);
    resolver.set_zone(zone(&[("db.local", "AAAA", "fd00::9")]));
    let (observer, mut events) = mpsc::channel(4);
    udp(&resolver, &question("db.local", TYPE_AAAA, None)).await;
    resolver.observe(Some(observer));
    udp(&resolver, &question("DB.local", TYPE_AAAA, None)).await;
    udp(&resolver, &question("www.far.example", TYPE_A, None)).await;
    resolver.set_servers(vec![]);
    resolver.resolve(&question("www.far.example", 65, None), Transport::Tcp).await;
    udp(&resolver, &question("localhost", TYPE_A, None)).await;
    assert_eq!(resolver.stats().lost_events, 0);
    udp(&resolver, &question("localhost", TYPE_A, None)).await;
    assert_eq!(resolver.stats().lost_events, 1, "nobody waits for a slow observer");
    resolver.observe(None);
    udp(&resolver, &question("localhost", TYPE_A, None)).await;
    assert_eq!(resolver.stats().lost_events, 1);
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        told.push(event);
    }
    let event = |name: &str, qtype, transport, rcode, source, addresses| Event {
        name: name.to_owned(),
        qtype,
        transport,
        rcode,
        source,
        addresses,
        took: Duration::ZERO,
    };
    let took = told[1].took;
    assert!((1500..1600).contains(&took.as_millis()), "{took:?}");
    told[1].took = Duration::ZERO;
    let far = vec![IpAddr::from([192, 0, 2, 7]); EVENT_ADDRESSES];
    assert_eq!(
        told,
        [
            event("db.local", TYPE_AAAA, Transport::Udp, 0, Source::Zone, vec!["fd00::9".parse().expect("address")]),
            event("www.far.example", TYPE_A, Transport::Udp, 0, Source::Server(server.address), far),
            event("www.far.example", 65, Transport::Tcp, 2, Source::Nobody, vec![]),
            event("localhost", TYPE_A, Transport::Udp, 0, Source::Local, vec![Ipv4Addr::LOCALHOST.into()]),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_counted() {
    let server = Server::udp(|q| {
        let code = match q[HEADER_END + 1] {
            b'n' => Rcode::NxDomain,
            b's' => Rcode::ServFail,
            _ => Rcode::NoError,
        };
        vec![(0, failure(q, code))]
    })
    .await;
    let resolver = resolver(&[server.address]);
    for name in ["n.example", "nn.example", "s.example", "ok.example"] {
        udp(&resolver, &question(name, TYPE_A, None)).await;
    }
    let expected = Stats { forwarded: 4, no_such_name: 2, unwilling: 1, ..Stats::default() };
    assert_eq!(resolver.stats(), expected);
    let named: std::collections::BTreeMap<_, _> = expected.named().into();
    assert_eq!((named.len(), named["dns_no_such_name"], named["dns_forwarded"]), (13, 2, 4));
}

proptest! {
    #[test]
    fn any_question_about_the_zone(bytes in proptest::collection::vec(any::<u8>(), 0..60), labels in proptest::collection::vec("(a|b|\\*|local)", 1..5), qtype in 0u16..260, edns in proptest::option::of(any::<u16>())) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let resolver = resolver(&[]);
        resolver.set_zone(zone(&[("a.local", "A", "10.0.0.1"), ("*.local", "TXT", "x"), ("b.local", "CNAME", "a.local"), ("*.b.local", "CNAME", "far")]));
        let mut spoilt = question(&labels.join("."), qtype, edns);
        let at = spoilt.len().min(bytes.len());
        let good = spoilt.clone();
        if at > 20 {
            spoilt[20..at].copy_from_slice(&bytes[20..at]);
        }
        for (query, transport) in [(&spoilt, Transport::Udp), (&good, Transport::Udp), (&good, Transport::Tcp)] {
            if let Some(answer) = runtime.block_on(resolver.resolve(query, transport)) {
                prop_assert_eq!(&answer[..2], &query[..2]);
                if let Ok(asked) = Query::parse(query) {
                    prop_assert!(asked.is_answered_by(&answer, asked.id));
                }
                // simple-dns does not know every type.
                prop_assert!(query == &spoilt || ![1, 5, 16, 28].contains(&qtype) || Packet::parse(&answer).is_ok());
            }
        }
    }
}
