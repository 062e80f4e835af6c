//! The API socket of slirp4netns mode: every verb, in a process that no monitor stands by.
//!
//! | verbs | done by |
//! |---|---|
//! | slirp4netns's three, `publish`, `unpublish`, `list_ports` | [`Forwards`] |
//! | `set_dns`, records, hosts | [`OwnNames`] |
//! | all others | [`Answers`], as for a monitor |
//!
//! The three verbs of slirp4netns keep that program's bytes and its tolerance, and what is no request is refused in its
//! words (`api::session`); all others are read strictly and refused with a code. What is changed here lives as long as
//! the process: there is nobody to tell a successor.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;

use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::answers::{Answers, PORT_TRAFFIC};
use super::forwards::Forwards;
use super::own_names::OwnNames;
use crate::api::error::{self, ApiError};
use crate::api::hostfwd::{self, Fault, Request as Legacy};
use crate::api::server::{self, Answer, Connection, Handler, Limits};
use crate::api::session::{PROTOCOL, Request};
use crate::api::verbs::observe::SUBSCRIBE;
use crate::api::verbs::ports::{ListPorts, Publish, Unpublish};
use crate::api::verbs::{self, dns};

/// What requests are answered with.
pub struct Desk {
    forwards: Mutex<Forwards>,
    guest_v6: bool,
    names: Rc<OwnNames>,
    answers: Answers,
}

impl Desk {
    /// Of one process.
    pub fn new(forwards: Forwards, names: Rc<OwnNames>, answers: Answers) -> Self {
        Self { guest_v6: forwards.guest().v6, forwards: Mutex::new(forwards), names, answers }
    }

    async fn legacy(&self, request: Result<Legacy, Fault>) -> Vec<u8> {
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

    async fn obey(&self, request: Legacy) -> Result<Vec<u8>, Fault> {
        let mut forwards = self.forwards.lock().await;
        match request {
            Legacy::Add(add) => Ok(hostfwd::added(forwards.add(add).await?)),
            Legacy::Remove(id) => forwards.remove(id).await.map(|()| hostfwd::removed()),
            Legacy::List => Ok(hostfwd::listed(&forwards.entries())),
        }
    }

    async fn other(&self, verb: &str, arguments: Map<String, Value>, fds: Vec<OwnedFd>) -> Result<Value, ApiError> {
        match verb {
            "publish" => {
                let Publish { specs } = error::arguments(verb, arguments)?;
                error::value(&self.forwards.lock().await.publish(&specs).await?)
            }
            "unpublish" => {
                let which = error::arguments::<Unpublish>(verb, arguments)?.which()?;
                error::value(&self.forwards.lock().await.unpublish(&which).await?)
            }
            "list_ports" => {
                let ListPorts {} = error::arguments(verb, arguments)?;
                let traffic = self.answers.answer(PORT_TRAFFIC, Map::new(), Vec::new()).await?;
                let traffic = serde_json::from_value(traffic).unwrap_or_default();
                error::value(&self.forwards.lock().await.list(&traffic))
            }
            "get_info" => {
                let mut info = self.answers.answer(verb, arguments, fds).await?;
                info["protocol"] = json!(PROTOCOL);
                info["mode"] = json!("slirp4netns");
                info["ports"] = json!(self.forwards.lock().await.len());
                Ok(info)
            }
            known if dns::VERBS.contains(&known) => self.names.obey(known, arguments),
            _ => self.answers.answer(verb, arguments, fds).await,
        }
    }
}

impl Handler for Desk {
    const VERBS: &'static [&'static str] = verbs::ALL;

    async fn answer(&self, request: Request, fds: Vec<OwnedFd>, connection: Connection<'_>) -> Answer {
        let Request { verb, arguments } = request;
        if let Some(request) = hostfwd::parse(&verb, &arguments, self.guest_v6) {
            return Answer::Reply(self.legacy(request).await);
        }
        if verb != SUBSCRIBE {
            return Answer::Reply(error::reply(&self.other(&verb, arguments, fds).await));
        }
        // The subscription has a descriptor of its own for the connection, and says by itself that it begins.
        match connection.duplicate() {
            Ok(fd) => match self.answers.answer(&verb, arguments, vec![fd]).await {
                Ok(_) => Answer::HandedOver,
                Err(error) => Answer::Reply(error.reply()),
            },
            Err(error) => {
                let desc = format!("cannot duplicate the connection: {error}");
                Answer::Reply(ApiError::new(error::Code::Limit, desc).reply())
            }
        }
    }
}

/// Serves `listener` for ever, on a `LocalSet`.
pub async fn serve(listener: UnixListener, desk: Desk) {
    let error = server::serve(listener, desk, Limits::default()).await;
    tracing::error!("the API socket is served no more: {error}");
}
