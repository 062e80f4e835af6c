//! One connection of a control socket (`api::session`) under anything that a client, its kernel and time may do.
//!
//! The input is what the client sends, so that a request is a seed as it stands; but 0xFF, which no JSON has, escapes:
//!
//! | bytes | what happens |
//! |---|---|
//! | first byte of all, bit 0 / 1 / 2 | slirp4netns's dialect / small limits / requests are answered late |
//! | FF 00 | what was sent before arrives by itself |
//! | FF 01 | the client sends no more |
//! | FF 02 n | 2^n milliseconds pass (n modulo 20) |
//! | FF 03 n | the client reads at most n bytes at a time from now on; 0: nothing |
//! | FF 04 b n | 256 n of the byte b |
//! | FF 05 | somebody else waits for a place |
//! | FF 06 | a late answer comes |
//! | FF, another | a byte FF |
//!
//! What must hold: no panic; memory is bounded; every reply is JSON of the protocol's shape, a line of its own after
//! `hello`; a session that is not over waits for something that can come; and time alone ends it.
#![no_main]

use std::collections::VecDeque;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tapway::api::error::{self, ApiError, Code};
use tapway::api::session::{Dialect, Limits, Request, Session};

const VERBS: &[&str] = &["get_info", "publish", "list_flows", "subscribe", "set_dns", "kill_flow"];
/// As the sandbox's socket reads.
const READ: usize = 16 * 1024;

struct Client {
    session: Session,
    limits: Limits,
    now: Duration,
    /// Sent, and not taken by the server yet.
    sent: VecDeque<u8>,
    ended: bool,
    told_end: bool,
    reads: usize,
    late: bool,
    waiting: Option<Request>,
    /// What it has read of a reply so far.
    reply: Vec<u8>,
    kept: bool,
}

impl Client {
    /// Serves it as far as that goes.
    fn serve(&mut self) {
        // Each turn takes or gives a byte, or is the last.
        loop {
            let mut moved = false;
            if let Some(request) = self.session.poll_request(self.now) {
                assert!(self.waiting.is_none(), "a request before the other is answered");
                assert!(VERBS.contains(&request.verb.as_str()) || request.verb.ends_with("_hostfwd"));
                self.waiting = Some(request);
                moved = true;
            }
            if !self.late {
                moved |= self.answer();
            }
            moved |= self.read();
            if self.session.wants_input() {
                let room = self.session.room().min(READ).min(self.sent.len());
                if room > 0 {
                    let bytes: Vec<u8> = self.sent.drain(..room).collect();
                    self.session.handle_input(&bytes, self.now);
                    moved = true;
                } else if self.ended && self.sent.is_empty() && !self.told_end {
                    self.told_end = true;
                    self.session.handle_end();
                    moved = true;
                }
            }
            // A request, its answer of the same size, and what a vector grows ahead.
            let memory = self.session.memory();
            assert!(memory <= 6 * self.limits.request + 4096, "{memory} bytes are held");
            if !moved || self.session.is_done() {
                break;
            }
        }
        let over = self.session.is_done();
        let waits = self.session.wants_input() || self.waiting.is_some() || !self.session.output().is_empty();
        assert!(over || waits || self.ended, "nothing is waited for");
        assert!(over || self.waiting.is_some() || self.session.next_timeout().is_some(), "it may last for ever");
    }

    fn answer(&mut self) -> bool {
        let Some(Request { verb, arguments }) = self.waiting.take() else { return false };
        let reply = match verb.as_str() {
            "kill_flow" => ApiError::new(Code::NotFound, "no such flow\nof many").reply(),
            _ => error::success(&json!({ "verb": verb, "arguments": arguments })),
        };
        self.session.reply(reply, self.now);
        true
    }

    fn read(&mut self) -> bool {
        let length = self.session.output().len().min(self.reads);
        if length == 0 {
            return false;
        }
        self.reply.extend_from_slice(&self.session.output()[..length]);
        self.session.handle_sent(length, self.now);
        while let Some(end) = self.reply.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.reply.drain(..=end).collect();
            self.check(&line[..end]);
        }
        true
    }

    /// One whole reply.
    fn check(&mut self, reply: &[u8]) {
        let text = String::from_utf8_lossy(reply);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let object = value.as_object().expect("a reply is an object");
        match (object.get("return"), object.get("error")) {
            (Some(value), None) => self.kept |= value.get("protocol").is_some(),
            (None, Some(error)) => {
                assert!(error["desc"].is_string(), "{text}");
                // slirp4netns's own errors have none.
                let code = &error["code"];
                assert!(code.is_null() || serde_json::from_value::<Code>(code.clone()).is_ok(), "{text}");
            }
            _ => panic!("neither return nor error, or both: {text}"),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&options, mut input)) = input.split_first() else { return };
    let dialect = if options & 1 == 0 { Dialect::Tapway } else { Dialect::Slirp4netns };
    let mut limits = Limits::default();
    if options & 2 != 0 {
        (limits.request, limits.drain) = (8192, 4096);
    }
    let mut client = Client {
        session: Session::new(dialect, VERBS, limits, Duration::ZERO),
        limits,
        now: Duration::ZERO,
        sent: VecDeque::new(),
        ended: false,
        told_end: false,
        reads: usize::MAX,
        late: options & 4 != 0,
        waiting: None,
        reply: Vec::new(),
        kept: false,
    };
    let mut next = || input.split_off_first().copied();
    while let Some(byte) = next() {
        let mut arrived = Vec::new();
        match (byte, if byte == 0xFF { next() } else { None }) {
            (0xFF, Some(0)) => {}
            (0xFF, Some(1)) => client.ended = true,
            (0xFF, Some(2)) => {
                client.now += Duration::from_millis(1 << (next().unwrap_or_default() % 20));
                client.session.handle_timeout(client.now);
            }
            (0xFF, Some(3)) => client.reads = next().unwrap_or_default().into(),
            (0xFF, Some(4)) => {
                let (byte, count) = (next().unwrap_or_default(), next().unwrap_or_default());
                arrived = vec![byte; usize::from(count) << 8];
            }
            (0xFF, Some(5)) => client.session.hurry(client.now + Duration::from_millis(200)),
            (0xFF, Some(6)) => {
                client.answer();
            }
            (byte, _) => {
                if !client.ended {
                    client.sent.push_back(byte);
                }
                continue;
            }
        }
        if !client.ended {
            client.sent.extend(arrived);
        }
        client.serve();
    }
    client.serve();
    // A client that reads what it is told gets whole replies.
    client.reads = usize::MAX;
    client.late = false;
    client.serve();
    if !client.kept || client.session.is_finished() {
        let rest = std::mem::take(&mut client.reply);
        if !rest.is_empty() {
            client.check(&rest);
        }
    }
    assert!(client.reply.is_empty(), "half a reply");
    // Whatever happened, silence ends it.
    for _ in 0..8 {
        let Some(at) = client.session.next_timeout() else { break };
        client.now = client.now.max(at);
        client.session.handle_timeout(client.now);
        client.serve();
    }
    assert!(client.session.is_done(), "silence does not end it");
});
