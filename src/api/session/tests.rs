//! Bad input of every kind, in single bytes and in packets of any size.

use super::*;

const VERBS: &[&str] = &["get_info", "publish"];
const ZERO: Duration = Duration::ZERO;

fn session() -> Session {
    Session::new(Dialect::Tapway, VERBS, Limits::default(), ZERO)
}

/// Answers every request with its verb; returns all that was sent.
fn pump(session: &mut Session, now: Duration) -> String {
    let mut sent = Vec::new();
    loop {
        let request = session.poll_request(now);
        if let Some(request) = &request {
            session.reply(error::success(&json!(request.verb)), now);
        }
        let output = session.output().to_vec();
        if request.is_none() && output.is_empty() {
            return String::from_utf8(sent).unwrap();
        }
        session.handle_sent(output.len(), now);
        sent.extend(output);
    }
}

/// Gives `input` in pieces of `size`, and all that is answered.
fn give(session: &mut Session, input: &[u8], size: usize) -> String {
    let mut sent = String::new();
    for piece in input.chunks(size) {
        if session.is_done() {
            break;
        }
        assert!(session.wants_input(), "{:?}", session.phase);
        session.handle_input(&piece[..piece.len().min(session.room())], ZERO);
        sent += &pump(session, ZERO);
    }
    sent
}

/// The code of a lone request's refusal.
fn refused(input: &[u8]) -> String {
    let mut codes = Vec::new();
    // What follows a request is seen only if it is there when the request ends.
    let sizes = if input.ends_with(b"after") { vec![input.len()] } else { vec![1, 2, 7, 65_536] };
    for size in sizes {
        let mut session = session();
        let mut sent = give(&mut session, input, size);
        if sent.is_empty() {
            session.handle_end();
            sent = pump(&mut session, ZERO);
        }
        assert!(session.is_finished(), "{input:?}");
        let reply: Value = serde_json::from_str(&sent).unwrap_or_else(|_| panic!("{sent:?} to {input:?}"));
        assert!(!reply["error"]["desc"].as_str().unwrap().is_empty());
        codes.push(reply["error"]["code"].as_str().unwrap().to_owned());
    }
    codes.dedup();
    assert_eq!(codes.len(), 1, "{codes:?}");
    codes.remove(0)
}

#[test]
fn one_request_one_reply_close() {
    for size in [1, 3, 1000] {
        for input in [
            "{\"execute\":\"get_info\"}",
            "{\"execute\":\"get_info\",\"arguments\":{}}\n",
            " \r\n{\n  \"execute\": \"get_info\",\n  \"arguments\": {\"a\": [1, {\"}\": \"\\\"}\"}]}\n}\n",
            "\u{feff}{\"execute\":\"get_info\"}",
        ] {
            let mut session = session();
            assert_eq!(give(&mut session, input.as_bytes(), size), r#"{"return":"get_info"}"#, "{input}");
            assert!(session.is_finished() && !session.is_done());
            session.handle_end();
            assert!(session.is_done());
        }
    }
}

#[test]
fn what_is_refused() {
    let deep = format!("{{\"execute\":\"get_info\",\"arguments\":{}", "[".repeat(10_000) + &"]".repeat(10_000) + "}");
    for (input, code) in [
        (&b"{\"execute\":\"get_in"[..], "bad_json"),
        (b"x", "bad_json"),
        (b"}", "bad_json"),
        (b"{]", "bad_json"),
        (b"{\"execute\":\"get_info\xff\"}", "bad_json"),
        (b"{\"execute\":\"get_info\",\"execute\":\"get_info\"}", "bad_json"),
        (b"{\"execute\":\"get_info\",\"arguments\":{\"a\":1e999}}", "bad_json"),
        (b"{\"execute\":\"get_info\",\"arguments\":{\"a\":1,\"a\":1}}", "bad_json"),
        (b"{\"execute\":\"get_info\0\"}", "bad_json"),
        (deep.as_bytes(), "bad_json"),
        (b"{}", "bad_request"),
        (b"{\"execute\":7}", "bad_request"),
        (b"{\"execute\":\"get_info\",\"arguments\":[]}", "bad_request"),
        (b"{\"execute\":\"get_info\",\"arguments\":null}", "bad_request"),
        (b"{\"execute\":\"get_info\"} after", "bad_request"),
        (b"{\"execute\":\"get_info\"}{\"execute\":\"publish\"}after", "bad_request"),
        (b"{\"execute\":\"nothing\"}", "unknown_verb"),
        (b"{\"execute\":\"get_info\",\"id\":1}", "unknown_field"),
        (b"{\"execute\":\"hello\",\"arguments\":{\"keep\":true}}", "unknown_field"),
        (b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":1}}", "bad_argument"),
    ] {
        assert_eq!(refused(input), code, "{}", String::from_utf8_lossy(&input[..input.len().min(80)]));
    }
    // No object: the first byte tells.
    for input in [&b"["[..], b"\"x\"", b"5", b"null"] {
        let code = refused(input);
        assert!(code == "bad_json" || code == "bad_request", "{input:?}: {code}");
    }
}

#[test]
fn too_much_is_refused_at_the_limit_and_costs_no_more_memory() {
    for start in ["{\"a\":[", "{\"a\":\"", "{"] {
        let mut session = session();
        let mut sent = give(&mut session, start.as_bytes(), 100);
        let mut given = 0;
        while sent.is_empty() {
            sent += &give(&mut session, &[b'['; 16 * 1024], 16 * 1024);
            given += 16 * 1024;
            assert!(given < 100_000);
            assert!(session.memory() < 200 * 1024, "{}", session.memory());
        }
        assert!(sent.contains("\"code\":\"too_large\""), "{sent}");
        // 64 MiB more: thrown away up to a bound, then the connection is closed.
        let mut wasted = 0;
        while !session.is_done() {
            session.handle_input(&[b'['; 16 * 1024], ZERO);
            wasted += 16 * 1024;
            assert!(session.memory() < 1024);
        }
        assert_eq!(wasted, Limits::default().drain);
    }
    let fits = format!("{{\"execute\":\"get_info\",\"arguments\":{{\"a\":\"{}\"}}}}", "x".repeat(65_536 - 46));
    assert!(fits.len() <= 65_536);
    assert_eq!(give(&mut session(), fits.as_bytes(), 16 * 1024), r#"{"return":"get_info"}"#);
}

#[test]
fn single_bytes_cost_no_more_than_one_look_each() {
    let input = format!("{{\"execute\":\"get_info\",\"arguments\":{{\"a\":\"{}\"}}}}", "x".repeat(60_000));
    let mut session = session();
    for (n, byte) in input.as_bytes().iter().enumerate() {
        session.handle_input(&[*byte], ZERO);
        let request = session.poll_request(ZERO);
        assert_eq!(request.is_some(), n + 1 == input.len());
        assert!(request.is_some() || session.scan.at == n + 1);
    }
}

#[test]
fn after_hello_many_requests_one_a_line() {
    let hello = b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n";
    let rest = b"{\"execute\":\"get_info\"}\n\n \n{\"execute\":\"list_hostfwd\"}\r\nnonsense\n[1]\n{\"execute\":\n\
                 {\"execute\":\"publish\"}{\"execute\":\"get_info\"}\n{\"execute\":\"none\"}\n";
    for size in [1, 2, 5, 1000] {
        let mut session = session();
        let welcome = give(&mut session, hello, size);
        let welcome: Value = serde_json::from_str(welcome.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(welcome["return"]["protocol"], PROTOCOL);
        let verbs = ["add_hostfwd", "get_info", "hello", "list_hostfwd", "publish", "remove_hostfwd"];
        assert_eq!(welcome["return"]["verbs"], json!(verbs));
        let sent = give(&mut session, rest, size);
        let replies: Vec<Value> = sent.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let short = |reply: &Value| reply["return"].as_str().or(reply["error"]["code"].as_str()).map(str::to_owned);
        let got: Vec<String> = replies.iter().map(|reply| short(reply).unwrap()).collect();
        let expected =
            ["get_info", "list_hostfwd", "bad_json", "bad_request", "bad_json", "publish", "get_info", "unknown_verb"];
        assert_eq!(got, expected, "in pieces of {size}");
        assert!(!session.is_finished());
        session.handle_end();
        assert_eq!(pump(&mut session, ZERO), "");
        assert!(session.is_done());
    }
}

#[test]
fn half_a_line_at_the_end_is_answered() {
    let mut session = session();
    give(&mut session, b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}", 100);
    give(&mut session, b"{\"execute\":", 100);
    session.handle_end();
    assert!(pump(&mut session, ZERO).contains("bad_json"));
    assert!(session.is_done());
}

#[test]
fn requests_behind_one_that_is_answered_wait() {
    let mut session = session();
    let input = b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n{\"execute\":\"publish\"}\n\
                  {\"execute\":\"get_info\"}\n";
    session.handle_input(input, ZERO);
    assert_eq!(session.poll_request(ZERO), None);
    let welcome = session.output().len();
    assert!(!session.wants_input(), "whoever does not read is not read");
    session.handle_sent(welcome - 1, ZERO);
    assert_eq!(session.poll_request(ZERO), None);
    session.handle_sent(1, ZERO);
    assert_eq!(session.poll_request(ZERO).unwrap().verb, "publish");
    assert_eq!(session.poll_request(ZERO), None);
    assert!(!session.wants_input() && session.is_answering() && session.next_timeout().is_none());
    session.reply(b"{}".to_vec(), ZERO);
    assert_eq!(session.output(), b"{}\n");
    session.handle_sent(3, ZERO);
    assert_eq!(session.poll_request(ZERO).unwrap().verb, "get_info");
}

#[test]
fn silence_is_bounded() {
    let limits = Limits::default();
    let mut idle = session();
    assert_eq!(idle.next_timeout(), Some(limits.idle));
    idle.hurry(Duration::from_millis(5));
    idle.handle_timeout(Duration::from_millis(4));
    assert!(!idle.is_done());
    idle.handle_timeout(Duration::from_millis(5));
    assert!(idle.is_done() && idle.output().is_empty());

    let mut half = session();
    give(&mut half, b"{", 1);
    assert_eq!(half.next_timeout(), Some(limits.rest));
    half.handle_timeout(limits.rest);
    assert!(pump(&mut half, limits.rest).contains("\"code\":\"timed_out\""));
    assert_eq!(half.next_timeout(), Some(limits.rest + limits.linger));
    half.handle_timeout(limits.rest + limits.linger);
    assert!(half.is_done());

    // While others wait half a request is no better than none, whether it began before or begins now.
    let soon = Duration::from_millis(200);
    let mut late = session();
    late.hurry(soon);
    late.hurry(soon * 2);
    give(&mut late, b"{", 1);
    assert_eq!(late.next_timeout(), Some(soon));
    late.handle_timeout(soon);
    assert!(pump(&mut late, soon).contains("others wait"));

    let mut kept = session();
    give(&mut kept, b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n  \n", 1000);
    kept.hurry(ZERO);
    assert_eq!(kept.next_timeout(), Some(limits.kept_idle));
    assert_eq!(kept.memory(), 0, "one that waits costs nothing");

    let mut deaf = session();
    give(&mut deaf, b"", 1);
    deaf.handle_input(b"{\"execute\":\"get_info\"}", ZERO);
    assert!(deaf.poll_request(ZERO).is_some());
    deaf.reply(vec![b'x'; 1000], ZERO);
    deaf.handle_sent(999, Duration::from_secs(4));
    deaf.handle_timeout(limits.reply);
    assert!(deaf.is_done(), "a slow reader has no more time than another");
}

#[test]
fn slirp4netns_to_the_byte_until_hello() {
    let session = || Session::new(Dialect::Slirp4netns, VERBS, Limits::default(), ZERO);
    let answer = |input: &[u8]| {
        let mut session = session();
        let mut sent = give(&mut session, input, usize::MAX);
        if sent.is_empty() {
            session.handle_end();
            sent = pump(&mut session, ZERO);
        }
        sent
    };
    let bad = |desc: &str| format!(r#"{{"error":{{"desc":"bad request: {desc}"}}}}"#);
    assert_eq!(answer(b"{\"execute\":\"list_hostfwd\"}{\"more\""), r#"{"return":"list_hostfwd"}"#);
    assert_eq!(answer(b"{\"execute\":\"list_hostfwd\",\"id\":1,\"arguments\":5}"), r#"{"return":"list_hostfwd"}"#);
    assert_eq!(answer(b"x"), bad("cannot parse JSON"));
    assert_eq!(answer(b"{\"execute\":"), bad("cannot parse JSON"));
    assert_eq!(answer(b"[]"), bad("json_object() failed"));
    assert_eq!(answer(b"{}"), bad("no execute found"));
    let unknown = r#"{"error":{"desc":"bad request: unknown execute","code":"unknown_verb"}}"#;
    assert_eq!(answer(b"{\"execute\":\"none\"}"), unknown);
    assert_eq!(answer(b""), bad("cannot parse JSON"), "as that program says it");
    // Its buffer; what is behind `hello` is not meant for it.
    let padded = |len: usize| format!("{:len$}", "{\"execute\":\"list_hostfwd\"}");
    assert_eq!(answer(padded(4095).as_bytes()), r#"{"return":"list_hostfwd"}"#);
    assert_eq!(answer(padded(4096).as_bytes()), bad("too large message"));
    let mut long = session();
    let input = format!("{{\"execute\":\"hello\",\"arguments\":{{\"keep_open\":true}}}}\n{}\n", "x".repeat(5000));
    let sent = give(&mut long, input.as_bytes(), usize::MAX);
    assert!(sent.starts_with("{\"return\"") && sent.contains("\n{\"error\":{\"code\":\"bad_json\""), "{sent}");
    let large = [&b"{\"a\":\""[..], &[b'x'; 4090]].concat();
    assert_eq!(answer(&large), bad("too large message"));
    assert_eq!(answer(b"{\"execute\":\"get_info\"}"), r#"{"return":"get_info"}"#, "new verbs are known");
    assert!(answer(b"{\"execute\":\"get_info\",\"id\":1}").contains("unknown_field"));
    let mut kept = session();
    give(&mut kept, b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n", 1000);
    assert!(give(&mut kept, b"x\n", 1000).contains("\"code\":\"bad_json\""));
}

proptest::proptest! {
    /// However input is cut, the answers are the same; and every line is answered once.
    #[test]
    fn cuts_do_not_matter(
        lines in proptest::collection::vec("[ -~]{0,30}|\\{\"execute\":\"get_info\"\\}|\\{\"execute\":", 0..8),
        cuts in proptest::collection::vec(1usize..40, 1..8),
    ) {
        let mut input = b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n".to_vec();
        for line in &lines {
            input.extend_from_slice(line.as_bytes());
            input.push(b'\n');
        }
        let whole = give(&mut session(), &input, usize::MAX);
        let mut pieces = session();
        let mut sent = String::new();
        let mut rest = &input[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            sent += &give(&mut pieces, piece, usize::MAX);
            rest = more;
        }
        proptest::prop_assert_eq!(whole, sent);
    }

    #[test]
    fn any_bytes_are_answered_or_waited_for(input: Vec<u8>, size in 1usize..20, legacy: bool) {
        let dialect = if legacy { Dialect::Slirp4netns } else { Dialect::Tapway };
        let mut session = Session::new(dialect, VERBS, Limits::default(), ZERO);
        for piece in input.chunks(size) {
            if !session.wants_input() {
                break;
            }
            session.handle_input(piece, ZERO);
            pump(&mut session, ZERO);
        }
        session.handle_end();
        pump(&mut session, ZERO);
        proptest::prop_assert!(session.is_done());
    }
}
