//! Requests and responses over TCP with tokio, on a `LocalSet`. One request, one response, close, and none of the clients
//! can hold up another, nor grow the process:
//!
//! | a client that | meets |
//! |---|---|
//! | sends nothing | [`Limits::silence`]; once all places are taken, [`Limits::patience`] |
//! | sends half a request | [`Limits::rest`], or [`Limits::patience`] as well; then 408 |
//! | sends too much | [`Limits::request`] bytes are looked at, [`Limits::drain`] more thrown away |
//! | does not read | [`Limits::reply`] |
//! | does not close | [`Limits::linger`] |
//! | is one too many | waits in the listener's backlog |
//!
//! A connection that is closed with input unread ends by a reset, which may overtake the response (RFC 9112, section 9.6).
//! So after the response our side is shut, and what the client still sends thrown away for a moment.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Request;
use crate::api::server::{Listen, attend};

/// Bytes read at once where nobody looks at them.
const READ: usize = 16 * 1024;

/// What is served.
pub trait Site: 'static {
    /// The response to a request.
    fn answer(&self, request: Request) -> impl Future<Output = Vec<u8>>;
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients served at a time.
    pub clients: usize,
    /// Most bytes of a request's head.
    pub request: usize,
    /// How long a client may be silent.
    pub silence: Duration,
    /// How long a client may take to say what it wants while others wait to be served.
    pub patience: Duration,
    /// From a head's first byte to its last.
    pub rest: Duration,
    /// How long a client may take to read the response.
    pub reply: Duration,
    /// How long a client may take to close after the response.
    pub linger: Duration,
    /// Bytes thrown away after the response.
    pub drain: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 64,
            request: 8 * 1024,
            silence: Duration::from_secs(10),
            patience: Duration::from_millis(200),
            rest: Duration::from_secs(5),
            reply: Duration::from_secs(10),
            linger: Duration::from_millis(200),
            drain: 256 * 1024,
        }
    }
}

impl Listen for tokio::net::TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves for ever; only a listener that fails returns. `listener` must be non-blocking.
pub async fn serve<S: Site>(listener: TcpListener, site: S, limits: Limits) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let site = Rc::new(site);
    attend(&listener, limits.clients, |stream, crowd| client(stream, Rc::clone(&site), limits, crowd)).await
}

async fn client<S: Site>(mut stream: TcpStream, site: Rc<S>, limits: Limits, crowd: watch::Receiver<bool>) {
    let Some(request) = receive(&stream, &limits, crowd).await else { return };
    let response = site.answer(request).await;
    let sent = timeout(limits.reply, async {
        stream.write_all(&response).await?;
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        let _ = timeout(limits.linger, drain(&mut stream, limits.drain)).await;
    }
}

/// The request; None where there is none to answer.
async fn receive(stream: &TcpStream, limits: &Limits, mut crowd: watch::Receiver<bool>) -> Option<Request> {
    let came = Instant::now();
    let mut deadline = came + limits.silence;
    let mut hurried = false;
    let mut input = Vec::new();
    let mut len = 0;
    loop {
        let ended = tokio::select! {
            ready = stream.readable() => {
                ready.ok()?;
                // A client that sends nothing costs no buffer.
                input.resize(limits.request, 0);
                match stream.try_read(&mut input[len..]) {
                    Ok(0) => true,
                    Ok(n) => {
                        if len == 0 && !hurried {
                            deadline = Instant::now() + limits.rest;
                        }
                        len += n;
                        len == limits.request
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(_) => return None,
                }
            }
            () = sleep_until(deadline) => true,
            // Somebody waits: whoever has had time enough goes.
            _ = crowd.wait_for(|&crowded| crowded), if !hurried => {
                hurried = true;
                deadline = deadline.min(came + limits.patience);
                continue;
            }
        };
        let request = super::read(&input[..len], ended, limits.request);
        if ended || request.is_some() {
            return request;
        }
    }
}

/// Throws input away until the client closes, or `most` bytes have come.
async fn drain(stream: &mut TcpStream, most: usize) {
    let mut waste = vec![0; READ];
    let mut left = most;
    while left > 0 {
        match stream.read(&mut waste).await {
            Ok(0) | Err(_) => return,
            Ok(n) => left = left.saturating_sub(n),
        }
    }
}
