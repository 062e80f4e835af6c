//! The API socket of slirp4netns mode: `api::server`, with the verbs of `api::hostfwd` over the [`Forwards`] and those of
//! `api::verbs::observe` by the [`Observer`].
//!
//! The three verbs of slirp4netns keep that program's bytes and its tolerance; all others are read strictly and refused
//! with a code. A verb that nobody knows is refused in that program's words, with a code.

use std::os::unix::net::UnixListener;

use serde_json::json;
use tokio::sync::Mutex;

use super::events;
use super::forwards::Forwards;
use super::observe::Observer;
use crate::api::envelope::{self, Envelope};
use crate::api::error;
use crate::api::hostfwd::{self, Fault, Request};
use crate::api::server::{self, Answer, Handler, Limits};
use crate::api::verbs::observe::SUBSCRIBE;

/// What is said to a verb that nobody knows: that program's words, and a code behind them.
const UNKNOWN: &[u8] = br#"{"error":{"desc":"bad request: unknown execute","code":"unknown_verb"}}"#;

/// What requests are answered with.
pub struct Legacy {
    forwards: Mutex<Forwards>,
    guest_v6: bool,
    observer: Option<Observer>,
}

/// What was understood of a request.
#[derive(Debug)]
pub enum Asked {
    /// A verb of slirp4netns's, or what that program refuses.
    Legacy(Result<Request, Fault>),
    /// Another verb.
    Other(Envelope),
}

impl Legacy {
    /// `guest_v6`: the guest has IPv6.
    pub fn new(forwards: Forwards, guest_v6: bool) -> Self {
        Self { forwards: Mutex::new(forwards), guest_v6, observer: None }
    }

    /// Also answers what the process tells of itself.
    pub fn observe_with(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    async fn obey(&self, request: Request) -> Result<Vec<u8>, Fault> {
        let mut forwards = self.forwards.lock().await;
        match request {
            Request::Add(add) => Ok(hostfwd::added(forwards.add(add).await?)),
            Request::Remove(id) => forwards.remove(id).await.map(|()| hostfwd::removed()),
            Request::List => Ok(hostfwd::listed(&forwards.list())),
        }
    }

    async fn legacy(&self, request: Result<Request, Fault>) -> Vec<u8> {
        let reply = match request {
            Ok(request) => self.obey(request).await,
            Err(fault) => Err(fault),
        };
        reply.unwrap_or_else(|fault| {
            if let Fault::AddFailed { reason } = &fault {
                tracing::warn!("{fault}: {reason}");
            }
            hostfwd::refused(&fault)
        })
    }

    async fn other(&self, Envelope { execute, arguments, .. }: Envelope) -> Answer {
        match &self.observer {
            Some(observer) if execute == SUBSCRIBE => match observer.subscribe(arguments) {
                Ok(subscription) => Answer {
                    reply: [error::success(&json!({})), b"\n".to_vec()].concat(),
                    then: Some(Box::new(|stream| Box::pin(events::serve(stream, subscription)))),
                },
                Err(error) => error.reply().into(),
            },
            Some(observer) if Observer::knows(&execute) => {
                error::reply(&observer.answer(&execute, arguments).await).into()
            }
            _ => UNKNOWN.to_vec().into(),
        }
    }
}

impl Handler for Legacy {
    type Request = Asked;

    fn read(&self, input: &[u8], ended: bool) -> Option<Asked> {
        if input.len() >= hostfwd::TOO_LARGE {
            return Some(Asked::Legacy(Err(Fault::TooLarge)));
        }
        Some(match envelope::read(input, ended)? {
            Err(fault) => Asked::Legacy(Err(fault.into())),
            Ok(envelope) => match hostfwd::parse(&envelope.execute, &envelope.arguments, self.guest_v6) {
                Some(request) => Asked::Legacy(request),
                None => Asked::Other(envelope),
            },
        })
    }

    async fn answer(&self, request: Asked) -> Answer {
        match request {
            Asked::Legacy(request) => self.legacy(request).await.into(),
            Asked::Other(envelope) => self.other(envelope).await,
        }
    }
}

/// Serves `listener` for ever, on a `LocalSet`.
pub async fn serve(listener: UnixListener, handler: Legacy) {
    let error = server::serve(listener, handler, Limits::new(hostfwd::TOO_LARGE)).await;
    tracing::error!("the API socket is served no more: {error}");
}
