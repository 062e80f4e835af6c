//! The API socket of slirp4netns mode: `api::server` with the verbs of `api::hostfwd` over the [`Forwards`].

use std::os::unix::net::UnixListener;

use tokio::sync::Mutex;

use super::forwards::Forwards;
use crate::api::hostfwd::{self, Fault, Request};
use crate::api::server::{self, Handler, Limits};

/// What requests are answered with.
#[derive(Debug)]
pub struct Legacy {
    forwards: Mutex<Forwards>,
    guest_v6: bool,
}

impl Legacy {
    /// `guest_v6`: the guest has IPv6.
    pub fn new(forwards: Forwards, guest_v6: bool) -> Self {
        Self { forwards: Mutex::new(forwards), guest_v6 }
    }

    async fn obey(&self, request: Request) -> Result<Vec<u8>, Fault> {
        let mut forwards = self.forwards.lock().await;
        match request {
            Request::Add(add) => Ok(hostfwd::added(forwards.add(add).await?)),
            Request::Remove(id) => forwards.remove(id).await.map(|()| hostfwd::removed()),
            Request::List => Ok(hostfwd::listed(&forwards.list())),
        }
    }
}

impl Handler for Legacy {
    type Request = Result<Request, Fault>;

    fn read(&self, input: &[u8], ended: bool) -> Option<Self::Request> {
        hostfwd::read(input, ended, self.guest_v6)
    }

    async fn answer(&self, request: Self::Request) -> Vec<u8> {
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
}

/// Serves `listener` for ever, on a `LocalSet`.
pub async fn serve(listener: UnixListener, handler: Legacy) {
    let error = server::serve(listener, handler, Limits::new(hostfwd::TOO_LARGE)).await;
    tracing::error!("the API socket is served no more: {error}");
}
