//! The metrics for whoever scrapes them by HTTP (`tapway run --metrics-listen`).
//!
//! ```text
//! listening socket, bound by the monitor ─► api::http (who is served, for how long, and what he asks)
//!                                              └─► /metrics ─► one `Stats` of the data plane
//! ```
//!
//! The socket outlives this process: the monitor keeps a duplicate, and scrapes that come while there is no network
//! process wait in its backlog. The counters are the process's, and begin anew with the next; their `_created` samples
//! tell.
//!
//! Whoever reaches the address may ask, as fast as he likes, so a text is made at most every [`PACE`]: all who have asked
//! by the time it is begun get the same. Nobody gets one that was begun before he asked.

use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::observe::Observer;
use crate::api::error::ApiError;
use crate::api::http::server::{self, Limits, Site};
use crate::api::http::{Request, Response, Status};

/// Shortest time between two questions to the data plane.
const PACE: Duration = Duration::from_millis(10);

/// Where the metrics are.
const PATH: &str = "/metrics";

/// OpenMetrics 1.0, "Content Type".
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

const INDEX: &str =
    "<!DOCTYPE html>\n<title>tapway</title>\n<p>tapway: <a href=\"/metrics\">metrics</a> (OpenMetrics 1.0)\n";

/// Serves `listener` for ever, on a `LocalSet`. It must be non-blocking.
pub async fn serve(listener: TcpListener, observer: Observer) {
    let limits = Limits::default();
    let pages = Pages::new(async move || observer.metrics().await, limits.request, PACE);
    let error = server::serve(listener, pages, limits).await;
    tracing::error!("metrics are served no more: {error}");
}

/// A text, and when it was begun.
struct Taken {
    begun: Instant,
    text: Rc<str>,
}

/// What is served; `metrics` makes the text.
struct Pages<F> {
    metrics: F,
    last: Mutex<Option<Taken>>,
    most: usize,
    pace: Duration,
}

impl<F: AsyncFn() -> Result<String, ApiError> + 'static> Pages<F> {
    /// `most`: bytes of a request's head, as clients are told.
    fn new(metrics: F, most: usize, pace: Duration) -> Self {
        Self { metrics, last: Mutex::new(None), most, pace }
    }

    async fn text(&self) -> Result<Rc<str>, ApiError> {
        let came = Instant::now();
        // In turn; one asks for all who wait.
        let mut last = self.last.lock().await;
        if let Some(Taken { begun, text }) = &*last {
            if *begun > came {
                return Ok(Rc::clone(text));
            }
            sleep_until(*begun + self.pace).await;
        }
        let begun = Instant::now();
        let text: Rc<str> = (self.metrics)().await?.into();
        *last = Some(Taken { begun, text: Rc::clone(&text) });
        Ok(text)
    }
}

impl<F: AsyncFn() -> Result<String, ApiError> + 'static> Site for Pages<F> {
    async fn answer(&self, Request { path, head_only }: Request) -> Vec<u8> {
        let say = |status, content_type, body: &str| {
            Response { status, content_type, body }.bytes(head_only, SystemTime::now())
        };
        match path.as_deref() {
            Ok(PATH) => match self.text().await {
                Ok(text) => say(Status::Ok, OPENMETRICS, &text),
                Err(error) => say(Status::Unavailable, PLAIN, &format!("{error}\n")),
            },
            Ok("/") => say(Status::Ok, HTML, INDEX),
            Ok(_) => say(Status::NotFound, PLAIN, "there is nothing here but /metrics\n"),
            Err(&status) => say(status, PLAIN, why(status, self.most).as_str()),
        }
    }
}

fn why(status: Status, most: usize) -> String {
    match status {
        Status::MethodNotAllowed => "only GET and HEAD are answered\n".to_owned(),
        Status::RequestTimeout => "the request did not come whole\n".to_owned(),
        Status::HeadTooLarge => format!("the request's head is larger than {most} bytes or has too many fields\n"),
        Status::Version => "only HTTP/1.0 and HTTP/1.1 are spoken\n".to_owned(),
        _ => "this is no request of HTTP/1.0 or HTTP/1.1\n".to_owned(),
    }
}

#[cfg(test)]
mod tests;
