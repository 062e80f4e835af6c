//! Events, from where they happen to the clients that subscribed.
//!
//! ```text
//! data plane ── flows, bounded channel ──► [watch] ──┐
//! resolver ──── questions, the same ────────────────►├─► [Hub] ─► a bounded queue for each subscriber ─► [serve] ─► socket
//! control plane: ports, name servers ───────────────►┘
//! ```
//!
//! An event becomes text once, if anybody wants it at all, and is shared by the queues. Nobody ever waits for a
//! subscriber: a queue holds [`QUEUE`] events, and what finds it full is counted and told as `lost` when the client reads
//! again. What was lost before it came here (a channel that was full) is told the same way, to those who wanted it.
//!
//! What nobody wants is not made: the data plane keeps flow events, and the resolver tells of questions, only while
//! somebody is subscribed to them; drops are asked for once a second, only then as well.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::json;
use smoltcp::time::Instant;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::command::DataPlane;
use super::observe;
use crate::api::verbs::observe::{Dns, EventKind, HostDns, Port, Protocol};
use crate::host::resolver::{Event as Question, Resolver, Source, Transport};
use crate::network::config::{Listener, Proto};
use crate::stack::ledger::FlowEvent;
use crate::wire::dns_data::type_name;

/// Events that wait for one subscriber: at some 350 bytes of text, less than half a MiB.
pub const QUEUE: usize = 1024;
/// Flow events, and questions, that wait for the control plane.
pub const CHANNEL: usize = 1024;
/// Subscribers at a time.
pub const MAX_SUBSCRIBERS: usize = 64;
/// How often drops are summed.
const SUM_DROPS: Duration = Duration::from_secs(1);
/// How often it is looked whether a client that sends no more still reads.
const LOOK: Duration = Duration::from_secs(1);

/// A flow event with the data plane's time.
pub type FlowNews = (Instant, FlowEvent);

/// The data plane's end: a channel that never makes it wait, and the count of what did not fit.
#[derive(Clone, Debug)]
pub struct FlowTeller {
    channel: mpsc::Sender<FlowNews>,
    lost: Arc<AtomicU64>,
}

/// The control plane's end of the same.
#[derive(Debug)]
pub struct FlowHearer {
    channel: mpsc::Receiver<FlowNews>,
    lost: Arc<AtomicU64>,
}

/// Both ends.
pub fn flow_channel() -> (FlowTeller, FlowHearer) {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let lost = Arc::new(AtomicU64::new(0));
    (FlowTeller { channel: sender, lost: Arc::clone(&lost) }, FlowHearer { channel: receiver, lost })
}

impl FlowTeller {
    /// Tells one, or counts it.
    pub fn tell(&self, now: Instant, event: FlowEvent) {
        if self.channel.try_send((now, event)).is_err() {
            self.lose(1);
        }
    }

    /// Counts some that were lost before.
    pub fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Subscriber {
    kinds: Vec<EventKind>,
    queue: mpsc::Sender<Arc<str>>,
    lost: Arc<AtomicU64>,
}

/// Who is told of what. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    subscribers: Mutex<Vec<Subscriber>>,
    /// Somebody came or went.
    changed: Notify,
}

/// One subscriber's end: drop it to unsubscribe.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<Arc<str>>,
    lost: Arc<AtomicU64>,
    hub: Hub,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.queue.close();
        self.hub.with(|all| all.retain(|subscriber| !subscriber.queue.is_closed()));
        self.hub.0.changed.notify_one();
    }
}

/// Every place is taken.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{MAX_SUBSCRIBERS} clients are subscribed already")]
pub struct TooMany;

impl Hub {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<Subscriber>) -> T) -> T {
        act(&mut self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Subscribes to `kinds`.
    pub fn subscribe(&self, kinds: Vec<EventKind>) -> Result<Subscription, TooMany> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        self.with(|all| {
            if all.len() >= MAX_SUBSCRIBERS {
                return Err(TooMany);
            }
            all.push(Subscriber { kinds, queue: sender, lost: Arc::clone(&lost) });
            Ok(())
        })?;
        self.0.changed.notify_one();
        Ok(Subscription { queue, lost, hub: self.clone() })
    }

    /// There will be no more events: whoever is subscribed is let go of.
    pub fn close(&self) {
        self.with(Vec::clear);
    }

    /// Whether anybody wants any of these.
    pub fn wants(&self, kinds: &[EventKind]) -> bool {
        self.with(|all| all.iter().any(|subscriber| kinds.iter().any(|kind| subscriber.kinds.contains(kind))))
    }

    /// Tells an event to those who want it.
    pub fn tell<T: Serialize>(&self, kind: EventKind, data: impl FnOnce() -> T) {
        self.with(|all| {
            let mut wanting = all.iter().filter(|subscriber| subscriber.kinds.contains(&kind)).peekable();
            if wanting.peek().is_none() {
                return;
            }
            let Some(line) = line(json!(kind), Some(SystemTime::now()), &data()) else { return };
            for subscriber in wanting {
                if subscriber.queue.try_send(Arc::clone(&line)).is_err() {
                    subscriber.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }

    /// Some events of these kinds were lost before they came here.
    fn lose(&self, kinds: &[EventKind], count: u64) {
        self.with(|all| {
            for subscriber in all.iter().filter(|s| kinds.iter().any(|kind| s.kinds.contains(kind))) {
                subscriber.lost.fetch_add(count, Ordering::Relaxed);
            }
        });
    }

    /// A port was bound or closed.
    pub fn port(&self, kind: EventKind, listener: &Listener) {
        self.tell(kind, || Port {
            proto: if listener.proto == Proto::Tcp { Protocol::Tcp } else { Protocol::Udp },
            host_addr: listener.host_addr.to_string(),
            host_port: listener.host_port,
            guest_addr: listener.guest_addr.map(|addr| addr.to_string()),
            guest_port: listener.guest_port,
        });
    }

    /// The servers that are asked for names have changed.
    pub fn host_dns(&self, servers: &[SocketAddr]) {
        self.tell(EventKind::HostDns, || HostDns { servers: servers.iter().map(ToString::to_string).collect() });
    }
}

/// A line of JSON.
fn line(event: serde_json::Value, time: Option<SystemTime>, data: &impl Serialize) -> Option<Arc<str>> {
    let mut line = json!({ "event": event, "data": serde_json::to_value(data).ok()? });
    if let Some(time) = time {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        line["time"] = json!(since.as_secs_f64());
    }
    Some(format!("{line}\n").into())
}

const FLOWS: [EventKind; 2] = [EventKind::FlowOpened, EventKind::FlowClosed];

/// Brings events to the hub; never returns.
pub async fn watch(plane: DataPlane, mut flows: FlowHearer, resolver: Arc<Resolver>) {
    let hub = plane.hub().clone();
    let (question, mut questions) = mpsc::channel(CHANNEL);
    let (mut flows_on, mut dns_on) = (false, false);
    let mut dns_lost = 0;
    let mut drops: Option<BTreeMap<&'static str, u64>> = None;
    let mut second = tokio::time::interval(SUM_DROPS);
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let want = hub.wants(&FLOWS);
        if want != flows_on {
            flows_on = want;
            let _ = plane.tell_flows(want).await;
        }
        let want = hub.wants(&[EventKind::Dns]);
        if want != dns_on {
            dns_on = want;
            resolver.observe(want.then(|| question.clone()));
            dns_lost = resolver.stats().lost_events;
        }
        let want = hub.wants(&[EventKind::Drops]);
        if !want {
            drops = None;
        } else if drops.is_none() {
            // What was dropped before anybody asked is not told.
            drops = now_dropped(&plane).await;
        }
        let counting = drops.is_some() || flows_on || dns_on;
        tokio::select! {
            () = hub.0.changed.notified() => {}
            Some((now, event)) = flows.channel.recv() => {
                let kind = if event.closed { EventKind::FlowClosed } else { EventKind::FlowOpened };
                hub.tell(kind, || observe::flow(&event.flow, now));
            }
            Some(question) = questions.recv() => hub.tell(EventKind::Dns, || dns(&question)),
            _ = second.tick(), if counting => {
                let lost = flows.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    hub.lose(&FLOWS, lost);
                }
                let lost = resolver.stats().lost_events;
                if dns_on && lost > dns_lost {
                    hub.lose(&[EventKind::Dns], lost - std::mem::replace(&mut dns_lost, lost));
                }
                if let Some(before) = &mut drops
                    && let Some(now) = now_dropped(&plane).await
                {
                    let news: BTreeMap<_, _> = now
                        .iter()
                        .map(|(reason, n)| (*reason, n - before.get(reason).copied().unwrap_or(0)))
                        .filter(|(_, n)| *n > 0)
                        .collect();
                    *before = now;
                    if !news.is_empty() {
                        hub.tell(EventKind::Drops, || news);
                    }
                }
            }
        }
    }
}

async fn now_dropped(plane: &DataPlane) -> Option<BTreeMap<&'static str, u64>> {
    let statistics = plane.statistics().await.ok()?;
    Some(statistics.drops.iter().map(|(reason, n)| (reason.name(), n)).collect())
}

fn dns(question: &Question) -> Dns {
    let (source, server) = match question.source {
        Source::Local => ("local", None),
        Source::Zone => ("zone", None),
        Source::Server(server) => ("server", Some(server.to_string())),
        Source::Nobody => ("nobody", None),
    };
    Dns {
        name: question.name.clone(),
        qtype: type_name(question.qtype).to_string(),
        transport: if question.transport == Transport::Udp { Protocol::Udp } else { Protocol::Tcp },
        rcode: question.rcode,
        source: source.to_owned(),
        server,
        addresses: question.addresses.iter().map(ToString::to_string).collect(),
        took_seconds: question.took.as_secs_f64(),
    }
}

/// Writes events to a client until it is gone. What it sends is thrown away, and it may end its own stream.
pub async fn serve(stream: UnixStream, mut subscription: Subscription) {
    let write = async {
        while let Some(event) = subscription.queue.recv().await {
            let lost = subscription.lost.swap(0, Ordering::Relaxed);
            if lost > 0
                && let Some(line) = line(json!("lost"), Some(SystemTime::now()), &json!({ "count": lost }))
            {
                write_all(&stream, line.as_bytes()).await?;
            }
            write_all(&stream, event.as_bytes()).await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        () = gone(&stream) => {}
        _ = write => {}
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns when the other side has closed, which a silent subscription would not notice by writing.
async fn gone(stream: &UnixStream) {
    let mut waste = [0; 256];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut waste) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    // It says no more, as `echo … | nc` does, but may read. Only a socket closed both ways is shut for writing.
    while stream.ready(Interest::WRITABLE).await.is_ok_and(|ready| !ready.is_write_closed()) {
        sleep(LOOK).await;
    }
}
