//! `list_flows`, `kill_flow`, `get_stats`, `get_metrics`, `set_log_level`, `get_info` and `subscribe`.
//!
//! ```text
//! {"execute":"list_flows","arguments":{"protocol":"tcp","limit":1}}
//! {"return":{"flows":[{"id":"tcp-0-1",…}],"next":"tcp-1","total":7}}
//! {"execute":"kill_flow","arguments":{"id":"tcp-0-1"}}
//! {"return":{}}
//! {"execute":"subscribe","arguments":{"events":["flow_opened","drops"]}}
//! {"return":{}}
//! {"event":"drops","time":1790000000.25,"data":{"no_flow":2}}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Verbs that are answered with one reply.
pub const VERBS: [&str; 6] = ["list_flows", "kill_flow", "get_stats", "get_metrics", "set_log_level", "get_info"];
/// The verb after whose reply the connection carries events.
pub const SUBSCRIBE: &str = "subscribe";

/// Protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests and replies of either family.
    Icmp,
}

/// What a flow is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// TCP: the host has not answered the connect.
    Connecting,
    /// TCP: the guest has not answered the handshake.
    Handshake,
    /// TCP: open both ways. UDP and echo: answered.
    Open,
    /// TCP: one side or both have ended their stream, and something is left to do.
    Closing,
    /// UDP and echo: nobody has answered yet.
    Unanswered,
    /// In `flow_closed` only: TCP that ended in order, UDP and echo that ended in any way.
    Closed,
    /// In `flow_closed` only: TCP that was reset.
    Reset,
    /// In `flow_closed` only: TCP that never opened.
    Failed,
}

/// Who began a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The guest.
    Outgoing,
    /// A client of a published port.
    Published,
}

/// Arguments of `list_flows`. What is left out fits any flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListFlows {
    /// Only this protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Only flows whose guest's end is this: `ADDRESS`, `NETWORK/BITS`, either with `:PORT` behind it (IPv6 in brackets),
    /// or `:PORT` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// The same of the other end, as the guest sees it or as the host does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Only flows in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Go on from here: `next` of the reply before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Most flows in the reply, 1 to 256, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Names it for `kill_flow`; never given to another flow of the same network process.
    pub id: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The guest's end, `ADDRESS:PORT`; of echo the address.
    pub guest: String,
    /// The other end as the guest sees it. UDP and echo of the guest: whom it sent to last.
    pub peer: String,
    /// The other end as the host sees it; left out where the flow ends at our own name service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Who began it.
    pub direction: Direction,
    /// What it is at.
    pub state: State,
    /// Payload bytes that the host took of the guest's.
    pub from_guest_bytes: u64,
    /// Payload bytes that the host gave for the guest.
    pub to_guest_bytes: u64,
    /// Packets of the guest as they crossed the TAP: of TCP a super-frame counts once, of UDP each datagram.
    pub from_guest_packets: u64,
    /// Packets for the guest, likewise.
    pub to_guest_packets: u64,
    /// Seconds since it began.
    pub age_seconds: f64,
    /// Seconds since it last carried anything.
    pub idle_seconds: f64,
}

/// What `list_flows` returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowList {
    /// Flows of this page. May be empty although there is a next.
    pub flows: Vec<Flow>,
    /// What to give as `after` for the next page; left out behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Flows of all kinds that live now, whatever was asked for.
    pub total: u64,
}

/// Arguments of `kill_flow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillFlow {
    /// Which: `id` of a [`Flow`]. TCP is reset on both sides, others are forgotten.
    pub id: String,
}

/// Arguments of `get_stats`, `get_metrics` and `get_info`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What `get_stats` returns. Names are stable; new ones may come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Each counter and gauge by its name.
    pub counters: BTreeMap<String, u64>,
    /// What was dropped, by reason; every reason is there.
    pub drops: BTreeMap<String, u64>,
}

/// What `get_metrics` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// OpenMetrics 1.0 text.
    pub text: String,
}

/// Arguments of `set_log_level`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, `off`, or directives such as `tapway::stack=debug,warn`.
    pub level: String,
}

/// IPv4 or IPv6 addresses of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The segment.
    pub subnet: String,
    /// The gateway.
    pub gateway: String,
    /// Where the guest asks for names.
    pub dns: String,
    /// The guest's own, or the one recommended to it.
    pub guest: String,
}

/// Which parts of TAP offloading are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadInfo {
    /// Frames have a virtio-net header.
    pub vnet_hdr: bool,
    /// Checksums are left to the receiver.
    pub csum: bool,
    /// TCP super-frames, IPv4.
    pub tso4: bool,
    /// TCP super-frames, IPv6.
    pub tso6: bool,
    /// UDP super-frames.
    pub uso: bool,
}

/// Bounds of the network process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitInfo {
    /// TCP flows.
    pub tcp_flows: u64,
    /// TCP connects that the host has not answered.
    pub tcp_connecting: u64,
    /// UDP ports of the guest.
    pub udp_mappings: u64,
    /// Clients of published UDP ports.
    pub udp_clients: u64,
    /// Echo sessions.
    pub echo_sessions: u64,
}

/// What the network process says of itself in `get_info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Version of tapway.
    pub version: String,
    /// Process id of the network process, as it sees itself.
    pub pid: u32,
    /// Seconds since it began to forward.
    pub uptime_seconds: f64,
    /// Id of the sandbox.
    pub id: String,
    /// MTU of the guest's interface.
    pub mtu: u16,
    /// The guest's MAC address; left out where guests are learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// IPv4, unless it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Addresses>,
    /// IPv6, unless it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Addresses>,
    /// Offloads.
    pub offloads: OffloadInfo,
    /// Bounds.
    pub limits: LimitInfo,
    /// How each stage of confinement ended: `done`, or what is missing and why.
    pub confinement: BTreeMap<String, String>,
    /// Rules of faults on purpose: 0 where nothing is done to packets; see `list_faults`.
    #[serde(default)]
    pub faults: u64,
    /// What is logged: a level or directives, as `set_log_level` takes them.
    pub log_level: String,
}

/// Events that can be subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A flow began; `data` is a [`Flow`].
    FlowOpened,
    /// A flow ended; `data` is a [`Flow`] with all that it carried.
    FlowClosed,
    /// A port is published; `data` is a [`Port`].
    PortBound,
    /// A port is published no more; `data` is a [`Port`].
    PortClosed,
    /// A question of the guest was answered; `data` is a [`Dns`].
    Dns,
    /// The servers that are asked for names have changed; `data` is a [`HostDns`].
    HostDns,
    /// What was dropped since the last such event, by reason, once a second at most and only if anything was.
    Drops,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::FlowOpened, Self::FlowClosed, Self::PortBound, Self::PortClosed, Self::Dns, Self::HostDns, Self::Drops];
}

/// Arguments of `subscribe`. After the reply and its newline the connection carries events, a JSON object a line, until
/// the client closes it. A client that is slow loses events and is told how many: `{"event":"lost","data":{"count":N}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// Which events, at least one.
    pub events: Vec<EventKind>,
}

/// A published port, in events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// `tcp` or `udp`.
    pub proto: Protocol,
    /// The bound address.
    pub host_addr: String,
    /// The bound port.
    pub host_port: u16,
    /// The guest's address; left out where it is the endpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_addr: Option<String>,
    /// The guest's port.
    pub guest_port: u16,
}

/// One question and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// The name asked for.
    pub name: String,
    /// Its type, such as `AAAA`.
    #[serde(rename = "type")]
    pub qtype: String,
    /// How it was asked: `udp` or `tcp`.
    pub transport: Protocol,
    /// Response code, RFC 1035 §4.1.1: 0 is an answer, 3 no such name.
    pub rcode: u8,
    /// Who knew: `local`, `zone`, `server` or `nobody`.
    pub source: String,
    /// The server, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Addresses in the answer, at most 8.
    pub addresses: Vec<String>,
    /// How long it took.
    pub took_seconds: f64,
}

/// The servers that are asked for names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDns {
    /// In order of preference.
    pub servers: Vec<String>,
}
