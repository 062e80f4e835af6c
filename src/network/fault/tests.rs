#![allow(clippy::unwrap_used)]
#![allow(clippy::unnecessary_wraps, reason = "as the arguments that they make are")]

use proptest::prelude::*;

use super::*;

fn span(text: &str) -> Option<Span> {
    Some(text.parse().unwrap())
}

fn share(text: &str) -> Option<Share> {
    Some(text.parse().unwrap())
}

fn known(text: &str) -> Option<Target> {
    match Wanted::parse(text).unwrap() {
        Wanted::Known(target) => Some(target),
        Wanted::Name(name) => panic!("{name} is a name"),
    }
}

fn of_name(text: &str) -> Option<Target> {
    let Wanted::Name(name) = Wanted::parse(text).unwrap() else { panic!("{text} is no name") };
    let addresses = vec!["192.0.2.9".parse().unwrap(), "192.0.2.7".parse().unwrap(), "192.0.2.7".parse().unwrap()];
    Some(Target::of_name(&name, addresses, 16).unwrap())
}

#[test]
fn amounts_are_read_and_shown() {
    for (text, micros, shown) in [
        ("50ms", 50_000, "50ms"),
        ("0", 0, "0"),
        ("0ms", 0, "0"),
        ("1.5ms", 1500, "1.5ms"),
        ("250us", 250, "250us"),
        ("1s", 1_000_000, "1s"),
        ("1.000001s", 1_000_001, "1000.001ms"),
        ("60s", 60_000_000, "60s"),
        ("00.50s", 500_000, "500ms"),
    ] {
        let span: Span = text.parse().unwrap();
        assert_eq!((span.micros(), span.to_string().as_str()), (micros, shown), "{text}");
    }
    for (text, parts, shown) in [
        ("1%", 10_000, "1%"),
        ("0.1%", 1000, "0.1%"),
        ("100%", 1_000_000, "100%"),
        ("0.0001%", 1, "0.0001%"),
        ("0", 0, "0"),
    ] {
        let share: Share = text.parse().unwrap();
        assert_eq!((share.parts(), share.to_string().as_str()), (parts, shown), "{text}");
    }
    for (text, bits, shown) in [
        ("10mbit", 10_000_000, "10mbit"),
        ("1.5gbit", 1_500_000_000, "1.5gbit"),
        ("1kbit", 1000, "1kbit"),
        ("1.234567mbit", 1_234_567, "1234.567kbit"),
    ] {
        let rate = Rate::parse(text).unwrap().unwrap();
        assert_eq!((rate.bits(), rate.to_string().as_str()), (bits, shown), "{text}");
    }
    assert_eq!(Rate::parse("0"), Ok(None));
}

#[test]
fn what_is_no_amount_is_named_with_a_remedy() {
    for (text, why) in [
        ("50", "'50' is no time; write a number and us, ms or s, such as 50ms"),
        ("", "'' is no time"),
        ("50 ms", "'50 ms' is no time"),
        ("50MS", "'50MS' is no time"),
        ("-5ms", "'-5ms' is no time"),
        ("1.2.3s", "'1.2.3s' is no time"),
        (".5s", "'.5s' is no time"),
        ("5.s", "'5.s' is no time"),
        ("ms", "'ms' is no time"),
        ("1\u{1b}ms", "'1\\u{1b}ms' is no time"),
        ("0.5us", "'0.5us' is finer than 1us; round it"),
        ("61s", "'61s' is more than 60s; give a time within bounds"),
        ("99999999999999999s", "more than 60s"),
        ("9999999999999999999999999999s", "is no time"),
    ] {
        let error = text.parse::<Span>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    for (text, why) in [
        ("1", "'1' is no share; write a number and %, such as 1% or 0.1%"),
        ("101%", "'101%' is more than 100%"),
        ("100.0001%", "more than 100%"),
        ("0.00001%", "finer than 0.0001%"),
    ] {
        let error = text.parse::<Share>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    for (text, why) in [
        ("10Mbit", "'10Mbit' is no rate; write a number and kbit, mbit or gbit, such as 10mbit"),
        ("10", "is no rate"),
        ("0.5kbit", "'0.5kbit' is less than 1kbit"),
        ("101gbit", "'101gbit' is more than 100gbit"),
        ("1.0001kbit", "finer than 1 bit a second"),
    ] {
        let error = Rate::parse(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

proptest! {
    /// What is shown is read as the same; whatever is typed, nothing panics.
    #[test]
    fn shown_is_read(micros in 0_u64..=60_000_000, parts in 0_u64..=1_000_000, bits in 1000_u64..=100_000_000_000, junk in ".*") {
        let span: Span = format!("{micros}us").parse().unwrap();
        prop_assert_eq!(span.to_string().parse::<Span>().unwrap().micros(), micros);
        let share: Share = format!("{}.{:04}%", parts / 10_000, parts % 10_000).parse().unwrap();
        prop_assert_eq!(share.to_string().parse::<Share>().unwrap().parts(), parts);
        let rate = Rate::parse(&format!("{}.{:03}kbit", bits / 1000, bits % 1000)).unwrap().unwrap();
        prop_assert_eq!(Rate::parse(&rate.to_string()).unwrap().unwrap().bits(), bits);
        let _ = (junk.parse::<Span>(), junk.parse::<Share>(), Rate::parse(&junk), Wanted::parse(&junk));
    }

    #[test]
    fn digits_of_any_length(digits in "[0-9.]{0,60}", unit in "(us|ms|s|%|kbit|gbit)?") {
        let text = digits + &unit;
        let _ = (text.parse::<Span>(), text.parse::<Share>(), Rate::parse(&text));
    }
}

#[test]
fn targets_have_their_usual_form() {
    for (typed, text) in [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("192.0.2.7/24", "192.0.2.0/24"),
        ("2001:DB8::1/64", "2001:db8::/64"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ] {
        assert_eq!(known(typed).unwrap().text, text, "{typed}");
    }
    assert_eq!(Wanted::parse("DB.example").unwrap().key(), "db.example");
    let two = of_name("db").unwrap();
    assert_eq!((two.text.as_str(), two.nets.len()), ("db", 2));
    assert!(Wanted::parse("192.0.2.0/33").unwrap_err().to_string().starts_with("'192.0.2.0/33' is neither"));
    assert!(matches!(Wanted::parse("*.example"), Err(FaultError::Wildcard(_))));
    let Wanted::Name(name) = Wanted::parse("db").unwrap() else { unreachable!() };
    assert_eq!(Target::of_name(&name, Vec::new(), 16), Err(FaultError::Unknown("db".to_owned())));
}

#[test]
fn what_is_not_named_stays() {
    let (mut rules, limits) = (Rules::default(), Limits::default());
    let both = Change { latency: span("50ms"), jitter: span("5ms"), loss: share("1%"), ..Change::default() };
    rules.set(None, &both, 77, &limits).unwrap();
    let one = Change { direction: Some(Direction::ToGuest), latency: span("10ms"), ..Change::default() };
    rules.set(None, &one, 78, &limits).unwrap();
    let [rule] = rules.all() else { panic!("{rules:?}") };
    assert_eq!((rule.from_guest.latency, rule.to_guest.latency), (span("50ms").unwrap(), span("10ms").unwrap()));
    assert_eq!((rule.to_guest.loss, rule.seed, rule.restarts), (share("1%").unwrap(), 77, 0));
    // Checked whole: the other direction stays as well.
    let before = rules.clone();
    let bad = Change { latency: span("7ms"), jitter: span("8ms"), ..Change::default() };
    let error = rules.set(None, &bad, 79, &limits).unwrap_err().to_string();
    assert!(error.starts_with("a jitter of 8ms is more than the latency of 7ms"), "{error}");
    assert_eq!(rules, before);
    rules.set(None, &Change { seed: Some(5), ..Change::default() }, 80, &limits).unwrap();
    assert_eq!((rules.all()[0].seed, rules.all()[0].restarts), (5, 1));
    // Nothing left of it: gone.
    let off = Change { latency: span("0"), jitter: span("0"), loss: share("0"), ..Change::default() };
    rules.set(None, &off, 81, &limits).unwrap();
    assert!(rules.all().is_empty());
    assert_eq!(rules.set(None, &Change::default(), 1, &limits), Err(FaultError::Nothing));
    assert_eq!(rules.set(None, &Change { seed: Some(1), ..Change::default() }, 1, &limits), Err(FaultError::Nothing));
}

#[test]
fn rules_are_told_apart_and_cleared() {
    let (mut rules, limits) = (Rules::default(), Limits { rules: 3, ..Limits::default() });
    let slow = Change { latency: span("1ms"), ..Change::default() };
    rules.set(None, &slow, 1, &limits).unwrap();
    rules.set(known("192.0.2.0/24"), &slow, 2, &limits).unwrap();
    rules.set(of_name("db"), &slow, 3, &limits).unwrap();
    assert_eq!(rules.set(known("192.0.2.1"), &slow, 4, &limits), Err(FaultError::TooMany(3)));
    // The same again is no further one.
    rules.set(known("192.0.2.9/24"), &slow, 5, &limits).unwrap();
    assert_eq!(rules.all().len(), 3);
    let dns = Change { dns_fail: share("5%"), ..Change::default() };
    assert_eq!(rules.set(known("192.0.2.0/24"), &dns, 6, &limits), Err(FaultError::DnsOfPeer));
    rules.set(None, &dns, 7, &limits).unwrap();
    assert_eq!(rules.dns_fail(), (share("5%").unwrap(), 1, 0));
    let wanted = |text| Wanted::parse(text).unwrap();
    assert_eq!(rules.clear(Some(&wanted("192.0.2.0/25")), None), Err(FaultError::NoRule("192.0.2.0/25".to_owned())));
    assert_eq!(rules.clear(Some(&wanted("DB")), Some(Direction::FromGuest)), Ok(1));
    assert_eq!(rules.all().len(), 3);
    assert_eq!(rules.clear(Some(&wanted("db")), Some(Direction::ToGuest)), Ok(1));
    assert_eq!(rules.all().len(), 2);
    assert_eq!(rules.clear(None, None), Ok(2));
    assert!(rules.all().is_empty());
    assert_eq!(rules.clear(None, None), Ok(0));
}

#[test]
fn chance_is_even_and_repeats() {
    let draw = |seed, stream| {
        let mut draws = Draws::new(seed, stream);
        (0..4).map(|_| draws.draw()).collect::<Vec<_>>()
    };
    assert_eq!(draw(7, 1), draw(7, 1));
    assert_ne!(draw(7, 1), draw(7, 0));
    assert_ne!(draw(7, 1), draw(8, 1));
    let mut draws = Draws::new(1, 0);
    let mut tenths = [0_u32; 10];
    for _ in 0..100_000 {
        tenths[draws.below(10) as usize] += 1;
    }
    // 10 000 each, four standard deviations of 95.
    assert!(tenths.iter().all(|n| n.abs_diff(10_000) < 380), "{tenths:?}");
    assert!(!draws.hits(Share::default()) && draws.hits("100%".parse().unwrap()));
}
