//! HTTP/1.0 and 1.1 (RFC 9110, RFC 9112) as far as somebody needs who reads a page: one request, one response, without I/O.
//!
//! [`read`] looks at what has come; [`Response::bytes`] is what goes back. Every response says `Connection: close` and the
//! connection is closed behind it, so nothing has to be known of where a request's body ends; of requests that were sent
//! ahead (pipelined) the first is answered, and the client knows that the others were not (RFC 9112, section 9.3.2).
//!
//! [`server`] does the I/O. Heads are parsed by `httparse`. Not here: bodies of requests, other methods than GET and HEAD, ranges, conditions,
//! compression, negotiation, TLS.

pub mod server;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most header fields of a request; browsers send some twenty.
const FIELDS: usize = 64;

/// A request, as far as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The path that is asked for, without a query, or why there is no answer but this status.
    pub path: Result<String, Status>,
    /// The head of the response alone is wanted (HEAD).
    pub head_only: bool,
}

/// How a response begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 400.
    BadRequest,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 408: the client did not say the whole in time, or stopped in the middle.
    RequestTimeout,
    /// 431.
    HeadTooLarge,
    /// 503.
    Unavailable,
    /// 505.
    Version,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable => "503 Service Unavailable",
            Status::Version => "505 HTTP Version Not Supported",
        }
    }
}

/// Looks at what has come so far; None waits for more. `ended`: there will be no more. `most`: bytes that a head may have;
/// no more of them need be shown.
pub fn read(input: &[u8], ended: bool, most: usize) -> Option<Request> {
    let refused = |status| Some(Request { path: Err(status), head_only: false });
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(input) {
        Ok(httparse::Status::Complete(_)) => {
            Some(Request { path: path(&request), head_only: request.method == Some("HEAD") })
        }
        Ok(httparse::Status::Partial) if input.len() >= most => refused(Status::HeadTooLarge),
        Ok(httparse::Status::Partial) if ended && !input.is_empty() => refused(Status::RequestTimeout),
        Ok(httparse::Status::Partial) => None,
        Err(httparse::Error::TooManyHeaders) => refused(Status::HeadTooLarge),
        Err(httparse::Error::Version) => refused(Status::Version),
        Err(_) => refused(Status::BadRequest),
    }
}

/// The path of a request whose head is there.
fn path(request: &httparse::Request<'_, '_>) -> Result<String, Status> {
    let hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host")).count();
    // RFC 9112, section 3.2.
    if hosts > 1 || (hosts == 0 && request.version == Some(1)) {
        return Err(Status::BadRequest);
    }
    if !matches!(request.method, Some("GET" | "HEAD")) {
        return Err(Status::MethodNotAllowed);
    }
    let target = request.path.unwrap_or_default();
    // A request to a proxy names the server, too, and must be understood (RFC 9112, section 3.2.2).
    let target = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    let path = target.split('?').next().unwrap_or_default();
    match path {
        "" => Ok("/".to_owned()),
        _ if path.starts_with('/') => Ok(path.to_owned()),
        _ => Err(Status::BadRequest),
    }
}

/// A response.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// How it begins.
    pub status: Status,
    /// Media type of the body.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a str,
}

impl Response<'_> {
    /// As it travels, at the time `now`.
    pub fn bytes(&self, head_only: bool, now: SystemTime) -> Vec<u8> {
        let Response { status, content_type, body } = self;
        let (line, length, date) = (status.line(), body.len(), date(now));
        // RFC 9110, section 15.5.6.
        let allow = if *status == Status::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 {line}\r\nDate: {date}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{allow}\
             Connection: close\r\n\r\n"
        )
        .into_bytes();
        if !head_only {
            bytes.extend_from_slice(body.as_bytes());
        }
        bytes
    }
}

/// A time as a `Date` field has it (IMF-fixdate; RFC 9110, section 5.6.7).
fn date(time: SystemTime) -> String {
    const DAY: u64 = 86_400;
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let weekday = WEEKDAYS[(seconds / DAY % 7) as usize];
    let (mut year, mut day) = (1970, seconds / DAY);
    // A clock that says otherwise is not worth more than this many turns.
    while year < 9999 && day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while month < 11 && day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (day, month, of_day) = (day.min(30) + 1, MONTHS[month], seconds % DAY);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 8192;

    fn asked(text: &str) -> Result<String, Status> {
        read(text.as_bytes(), true, MOST).expect("a verdict").path
    }

    #[test]
    fn paths() {
        for (target, path) in [
            ("/metrics", "/metrics"),
            ("/metrics?x=/y?z", "/metrics"),
            ("/", "/"),
            ("/?", "/"),
            ("http://127.0.0.1:9100/metrics", "/metrics"),
            ("HTTP://h/metrics?q", "/metrics"),
            ("http://h", "/"),
            ("http://h?q", "/"),
            ("/a://b", "/a://b"),
            ("//metrics", "//metrics"),
        ] {
            assert_eq!(asked(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")), Ok(path.to_owned()), "{target}");
        }
        for target in ["*", "metrics", "https://h/metrics", "h:80"] {
            assert_eq!(
                asked(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")),
                Err(Status::BadRequest),
                "{target}"
            );
        }
    }

    #[test]
    fn versions_and_hosts() {
        let ok = Ok("/".to_owned());
        assert_eq!(asked("GET / HTTP/1.0\r\n\r\n"), ok);
        assert_eq!(asked("GET / HTTP/1.0\n\n"), ok);
        assert_eq!(asked("\r\nGET / HTTP/1.1\r\nhOsT:\r\n\r\n"), ok);
        assert_eq!(asked("GET / HTTP/1.1\r\n\r\n"), Err(Status::BadRequest));
        for version in ["1.0", "1.1"] {
            let two = format!("GET / HTTP/{version}\r\nHost: a\r\nHost: a\r\n\r\n");
            assert_eq!(asked(&two), Err(Status::BadRequest));
        }
        assert_eq!(asked("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Err(Status::Version));
        assert_eq!(asked("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Err(Status::Version));
        assert_eq!(asked("GET / FTP/1.1\r\n\r\n"), Err(Status::Version));
        for nonsense in ["GET /\r\n", "\x16\x03\x01\x02", "{\"execute\":\"get_metrics\"}", "GET  /"] {
            assert_eq!(asked(nonsense), Err(Status::BadRequest), "{nonsense:?}");
        }
    }

    #[test]
    fn methods() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "FROB"] {
            let request = read(format!("{method} /metrics HTTP/1.0\r\n\r\n").as_bytes(), false, MOST);
            assert_eq!(request, Some(Request { path: Err(Status::MethodNotAllowed), head_only: false }));
        }
        let head = read(b"HEAD /metrics HTTP/1.0\r\n\r\n", false, MOST);
        assert_eq!(head, Some(Request { path: Ok("/metrics".to_owned()), head_only: true }));
    }

    #[test]
    fn a_head_comes_whole_or_is_waited_for() {
        let whole = b"GET /metrics HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end], false, MOST), None, "{end}");
            let cut = read(&whole[..end], true, MOST);
            assert_eq!(cut.map(|request| request.path), (end > 0).then_some(Err(Status::RequestTimeout)), "{end}");
        }
        let two = [whole.as_slice(), b"GET /other HTTP/1.1\r\n"].concat();
        assert_eq!(read(&two, false, MOST).map(|request| request.path), Some(Ok("/metrics".to_owned())));
    }

    #[test]
    fn a_head_has_a_bound() {
        let long = [b"GET /".as_slice(), &[b'a'; MOST]].concat();
        assert_eq!(read(&long[..MOST - 1], false, MOST), None);
        assert_eq!(read(&long[..MOST], true, MOST).map(|r| r.path), Some(Err(Status::HeadTooLarge)));
        let many = format!("GET / HTTP/1.0\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert_eq!(asked(&many), Err(Status::HeadTooLarge));
        assert!(asked(&many.replacen("a: b\r\n", "", 1)).is_ok());
    }

    #[test]
    fn responses() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let response = Response { status: Status::Ok, content_type: "text/plain", body: "é\n" };
        let head = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\n\
                    Content-Length: 3\r\nConnection: close\r\n\r\n";
        assert_eq!(response.bytes(true, now), head.as_bytes());
        assert_eq!(response.bytes(false, now), format!("{head}é\n").as_bytes());
        let refused = Response { status: Status::MethodNotAllowed, ..response };
        assert!(
            String::from_utf8(refused.bytes(true, now)).is_ok_and(|text| text.contains("\r\nAllow: GET, HEAD\r\n"))
        );
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        // What no clock shows must not hold us up.
        assert!(date(UNIX_EPOCH + Duration::from_secs(i64::MAX as u64)).ends_with(" GMT"));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(input in proptest::collection::vec(any::<u8>(), 0..256), ended: bool) {
            let _ = read(&input, ended, 128);
        }

        #[test]
        fn nor_anything_like_a_request(
            method in "[A-Z]{0,5}", target in "[/a-z:?*%]{0,12}", version in "HTTP/[0-2]\\.[0-9]", rest in "[a-z:\\r\\n ]{0,40}"
        ) {
            let text = format!("{method} {target} {version}\r\n{rest}");
            if let Some(Request { path: Ok(path), .. }) = read(text.as_bytes(), true, MOST) {
                prop_assert!(path.starts_with('/') && !path.contains('?'));
            }
        }
    }
}
