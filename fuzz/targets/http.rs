//! A request of who scrapes metrics (`api::http`).
//!
//! Input: a byte (how much of it comes first), the request.
//!
//! What must hold: a request is taken or refused once its head is whole or too long, and then stays that; a path is one;
//! every answer has a head that `httparse` reads and as much body as it says.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tapway::api::http::{self, Response, Status};

const MOST: usize = 8192;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, request)) = input.split_first() else { return };
    let early = &request[..request.len() * usize::from(cut) / 255];
    let first = http::read(early, false, MOST);
    let whole = http::read(request, true, MOST);
    if let (Some(first), Some(whole)) = (&first, &whole)
        && first.path != Err(Status::HeadTooLarge)
    {
        assert_eq!(first.path.is_ok(), whole.path.is_ok(), "what was decided did not stay");
        assert!(first.path.is_err() || first == whole);
    }
    assert!(whole.is_some() || request.is_empty(), "a client that is silent for ever is waited for");
    let Some(whole) = whole else { return };
    if let Ok(path) = &whole.path {
        assert!(path.starts_with('/') && !path.contains('?'), "{path}");
    }
    let status = whole.path.as_ref().err().copied().unwrap_or(Status::Ok);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(cut) << 24);
    let body = format!("{cut}\n");
    let response = Response { status, content_type: "text/plain", body: &body }.bytes(whole.head_only, now);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = head.parse(&response) else { panic!("the answer is no HTTP") };
    let said = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let said: usize =
        said.and_then(|field| str::from_utf8(field.value).ok()?.parse().ok()).expect("it says its length");
    assert_eq!(said, body.len());
    assert_eq!(response.len() - length, if whole.head_only { 0 } else { said });
});
