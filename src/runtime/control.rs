//! The control plane thread: a tokio current-thread runtime for what is slow.
//!
//! It reads the attach connection (the lease: when it closes, the process ends; new name servers are told here) and
//! answers the guest's DNS queries by asking upstream. Queries come over a bounded channel; answers go back over another,
//! with an eventfd that wakes the data plane. Both drop when full.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;

use crate::api::attach::{self, AttachError, ToNetwork};
use crate::host::resolver::{Limits, Resolver, Transport, serve_tcp};

/// Queries and answers that may wait. A resolver that is this far behind has lost its guests' patience.
pub const QUEUE: usize = 1024;

/// What the data plane asks for.
#[derive(Debug)]
pub enum DnsQuery {
    /// One query over UDP.
    Udp {
        /// Who asks.
        guest: SocketAddr,
        /// Which of our addresses.
        server: SocketAddr,
        /// The message.
        query: Vec<u8>,
    },
    /// A TCP connection of the guest to port 53, joined to this end.
    Stream {
        /// Non-blocking.
        stream: UnixStream,
    },
}

/// One answer over UDP.
#[derive(Debug)]
pub struct DnsAnswer {
    /// Who asked.
    pub guest: SocketAddr,
    /// Which of our addresses.
    pub server: SocketAddr,
    /// The message.
    pub answer: Vec<u8>,
}

/// Everything that the thread owns.
pub struct Control {
    /// The attach connection.
    pub conn: OwnedFd,
    /// Upstream servers told so far.
    pub dns: Vec<SocketAddr>,
    /// From the data plane.
    pub queries: mpsc::Receiver<DnsQuery>,
    /// To the data plane.
    pub answers: mpsc::Sender<DnsAnswer>,
    /// Wakes the data plane.
    pub wake: Arc<EventFd>,
}

impl Control {
    /// Runs until the monitor is gone.
    pub fn run(self, runtime: &tokio::runtime::Runtime) {
        let local = tokio::task::LocalSet::new();
        local.block_on(runtime, self.serve());
    }

    async fn serve(self) {
        let Self { conn, dns, mut queries, answers, wake } = self;
        let resolver = Arc::new(Resolver::new(Limits::default()));
        resolver.set_servers(dns);
        let conn = match crate::sys::fd::watch(conn) {
            Ok(conn) => conn,
            Err(error) => {
                tracing::error!("cannot watch the attach connection: {error}");
                return;
            }
        };
        loop {
            tokio::select! {
                ready = conn.readable() => {
                    let Ok(mut ready) = ready else { return };
                    match attach::recv::<ToNetwork>(conn.get_ref().as_fd()) {
                        Ok((ToNetwork::HostDns { servers }, _)) => {
                            tracing::info!(?servers, "name servers changed");
                            resolver.set_servers(servers);
                        }
                        Ok((message, _)) => tracing::warn!(?message, "message out of order from the monitor"),
                        Err(AttachError::Socket { source: nix::Error::EAGAIN, .. }) => ready.clear_ready(),
                        Err(AttachError::Closed) => return,
                        Err(error) => {
                            tracing::error!("{}", crate::telemetry::chain(&error));
                            return;
                        }
                    }
                }
                query = queries.recv() => match query {
                    Some(DnsQuery::Udp { guest, server, query }) => {
                        let (resolver, answers, wake) = (Arc::clone(&resolver), answers.clone(), Arc::clone(&wake));
                        // The resolver bounds how many are in flight.
                        tokio::task::spawn_local(async move {
                            if let Some(answer) = resolver.resolve(&query, Transport::Udp).await
                                && answers.try_send(DnsAnswer { guest, server, answer }).is_ok()
                            {
                                let _ = wake.write(1);
                            }
                        });
                    }
                    Some(DnsQuery::Stream { stream }) => match tokio::net::UnixStream::from_std(stream) {
                        Ok(stream) => {
                            let resolver = Arc::clone(&resolver);
                            tokio::task::spawn_local(async move { serve_tcp(stream, resolver).await });
                        }
                        Err(error) => tracing::warn!("cannot serve DNS over TCP: {error}"),
                    },
                    None => return,
                },
            }
        }
    }
}
