//! What a monitor tells and asks while the process runs (`api::attach`, version 2).
//!
//! ```text
//! attach connection ──► HostDns, Zone ───────────► resolver, at once
//!                   ──► Listen, Unlisten ─► queue ─► data plane ──┐
//!                   ──► Ask ─► a task each ─► Answers ────────────┤
//!                   ◄──────────── one writer ◄── Listened, Answer ┘
//! ```
//!
//! Ports are changed one message after the other, in order; what is asked is answered in any order. A monitor has at most
//! one `Listen` on its way, and bounds what it asks by its clients, so the queues are short; a monitor that floods them is
//! read no faster than they are emptied.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::answers::Answers;
use super::command::DataPlane;
use super::control::Names;
use super::metrics_http;
use crate::api::attach::{self, AttachError, FromNetwork, ToNetwork};
use crate::api::error::{ApiError, Code};
use crate::host::peers::{self, Peer};
use crate::host::resolver::Resolver;
use crate::network::config::Listener;
use crate::telemetry::chain;

/// Changes of ports, and words to the monitor, that may wait.
const QUEUE: usize = 64;

/// A change of the published ports.
#[derive(Debug)]
enum Change {
    Listen(Vec<(Listener, OwnedFd)>),
    Unlisten(Vec<usize>),
}

/// The process's side of the conversation.
pub struct Told {
    conn: Rc<AsyncFd<OwnedFd>>,
    resolver: Arc<Resolver>,
    plane: DataPlane,
    answers: Rc<Answers>,
    changes: mpsc::Sender<Change>,
    words: mpsc::Sender<FromNetwork>,
    /// What was told of names so far.
    names: Names,
    /// What speaks with the sandbox's other networks; it ends with the conversation.
    networks: JoinSet<()>,
    /// Where metrics are served that came later than the rest; the same.
    metrics: JoinSet<()>,
}

impl Told {
    /// Begins to converse, on a `LocalSet`. `conn` must be non-blocking.
    pub fn start(
        conn: AsyncFd<OwnedFd>,
        (resolver, names): (Arc<Resolver>, Names),
        plane: DataPlane,
        answers: Rc<Answers>,
    ) -> Self {
        let conn = Rc::new(conn);
        let (changes, to_change) = mpsc::channel(QUEUE);
        let (words, to_say) = mpsc::channel(QUEUE);
        tokio::task::spawn_local(change(to_change, plane.clone(), words.clone()));
        tokio::task::spawn_local(say(Rc::clone(&conn), to_say));
        Self {
            conn,
            resolver,
            plane,
            answers,
            changes,
            words,
            names,
            networks: JoinSet::new(),
            metrics: JoinSet::new(),
        }
    }

    /// The connection, which closes with whoever is the last to hold it.
    pub fn connection(&self) -> Rc<AsyncFd<OwnedFd>> {
        Rc::clone(&self.conn)
    }

    /// Listens until the monitor is gone.
    pub async fn listen(mut self) {
        loop {
            let Ok(mut ready) = self.conn.readable().await else { return };
            let told = attach::recv::<ToNetwork>(self.conn.get_ref().as_fd());
            match told {
                Ok((message, fds)) => {
                    drop(ready);
                    self.heed(message, fds).await;
                }
                Err(AttachError::Socket { source: nix::Error::EAGAIN, .. }) => ready.clear_ready(),
                Err(AttachError::Closed) => return,
                Err(error) => {
                    tracing::error!("{}", chain(&error));
                    return;
                }
            }
        }
    }

    /// Asks these networks for names, and lets those behind the other sockets ask here.
    fn know_networks(&mut self, ask: &[String], fds: Vec<OwnedFd>) {
        self.networks.abort_all();
        let mut fds = fds.into_iter();
        let mut all = Vec::with_capacity(ask.len());
        for (network, fd) in ask.iter().zip(fds.by_ref()) {
            match Peer::new(fd, network) {
                Ok(peer) => {
                    let peer = Arc::new(peer);
                    all.push(Arc::clone(&peer));
                    self.networks.spawn_local(peer.listen());
                }
                Err(error) => tracing::error!(network, "cannot ask for names: {error}"),
            }
        }
        for fd in fds {
            let resolver = Arc::clone(&self.resolver);
            self.networks.spawn_local(async move {
                if let Err(error) = peers::answer(fd, resolver).await {
                    tracing::debug!("another network asks no more: {error}");
                }
            });
        }
        self.resolver.set_peers(all);
    }

    async fn heed(&mut self, message: ToNetwork, fds: Vec<OwnedFd>) {
        match message {
            ToNetwork::HostDns { servers, zones } => {
                tracing::info!(?servers, ?zones, "name servers changed");
                (self.names.servers, self.names.zones) = (servers, zones);
                self.names.tell(&self.resolver);
                self.plane.hub().host_dns(&self.names.servers);
            }
            ToNetwork::Zone { records, more } => {
                self.names.take_part(records, more);
                if !more {
                    tracing::debug!(records = self.names.zone.records().len(), "the network's names changed");
                    self.names.tell(&self.resolver);
                }
            }
            ToNetwork::Listen { listeners } if listeners.len() == fds.len() => {
                let _ = self.changes.send(Change::Listen(listeners.into_iter().zip(fds).collect())).await;
            }
            ToNetwork::Listen { listeners } => {
                // The kernel drops descriptors that do not fit into our table.
                let error = format!(
                    "of {} descriptors {} arrived: the network process has reached its limit on open files \
                     (RLIMIT_NOFILE, {}); close some connections, or raise it (ulimit -n) before tapway is started",
                    listeners.len(),
                    fds.len(),
                    descriptor_limit(),
                );
                let _ = self.words.send(FromNetwork::Listened { error: Some(error) }).await;
            }
            ToNetwork::Unlisten { numbers } => {
                let _ = self.changes.send(Change::Unlisten(numbers)).await;
            }
            ToNetwork::OtherNetworks { ask, answer } if ask.len() + answer == fds.len() => {
                self.know_networks(&ask, fds);
            }
            ToNetwork::OtherNetworks { .. } => {
                tracing::error!("the sockets of other networks did not all arrive; is RLIMIT_NOFILE reached?");
            }
            ToNetwork::Ask { id, verb, arguments, context } => {
                let (answers, words, plane) = (Rc::clone(&self.answers), self.words.clone(), self.plane.clone());
                tokio::task::spawn_local(async move {
                    let result = answers.answer_in(&verb, arguments, fds, context).await;
                    let capture = (verb == "start_capture" && result.is_ok()).then_some(context.capture);
                    let _ = words.send(FromNetwork::Answer { id, result }).await;
                    if let Some(capture) = capture
                        && let Some(report) = plane.captures().ended(capture).await
                    {
                        let _ = words.send(FromNetwork::CaptureEnded { status: report.into() }).await;
                    }
                });
            }
            ToNetwork::Metrics => {
                if let (Some(socket), Some(observer)) = (fds.into_iter().next(), self.answers.observer()) {
                    self.metrics.spawn_local(metrics_http::serve(socket.into(), observer.clone()));
                }
            }
            ToNetwork::Attach { .. } | ToNetwork::Faults { .. } | ToNetwork::Start => {
                tracing::warn!("message out of order from the monitor");
            }
        }
    }
}

/// Does one change after the other.
async fn change(mut changes: mpsc::Receiver<Change>, plane: DataPlane, words: mpsc::Sender<FromNetwork>) {
    while let Some(change) = changes.recv().await {
        let word = match change {
            Change::Listen(ports) => {
                let error = plane.listen_all(ports).await.err();
                FromNetwork::Listened { error: error.map(|error| error.to_string()) }
            }
            Change::Unlisten(numbers) => {
                for number in numbers {
                    if plane.unlisten(number).await.is_err() {
                        return;
                    }
                }
                FromNetwork::Unlistened
            }
        };
        if words.send(word).await.is_err() {
            return;
        }
    }
}

/// Says one word after the other, as fast as the monitor hears them.
async fn say(conn: Rc<AsyncFd<OwnedFd>>, mut words: mpsc::Receiver<FromNetwork>) {
    while let Some(word) = words.recv().await {
        let text = match attach::text(&word) {
            Ok(text) => text,
            Err(error) => {
                let FromNetwork::Answer { id, .. } = word else { continue };
                let desc = format!("the answer cannot be sent: {error}; ask for less at once");
                let result = Err(ApiError::new(Code::TooLarge, desc));
                let Ok(text) = attach::text(&FromNetwork::Answer { id, result }) else { continue };
                text
            }
        };
        loop {
            let Ok(mut ready) = conn.writable().await else { return };
            match attach::send_text(conn.get_ref().as_fd(), &text, &[]) {
                Ok(()) => break,
                Err(AttachError::Socket { source: nix::Error::EAGAIN, .. }) => ready.clear_ready(),
                // Whoever listens notices.
                Err(_) => return,
            }
        }
    }
}

/// How many descriptors this process may have open.
pub(super) fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}
