//! What the network process tells of itself: flows, numbers, metrics, what it is; and two acts that change no setting of
//! the network: ending a flow, and how much is logged.
//!
//! The same in both modes: [`Observer::answer`] takes a verb with its arguments, wherever they came from. It runs on the
//! control thread; what the data plane must be asked for comes by `runtime::command`, in pieces that are each short.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use smoltcp::time::Instant;

use super::command::{DataPlane, Served, Statistics};
use super::events::Subscription;
use crate::api::error::{self, ApiError, Code, arguments};
use crate::api::verbs::observe as api;
use crate::host::resolver::Resolver;
use crate::network::config::{EndpointConfig, Mac, Proto};
use crate::stack::Limits;
use crate::stack::census::{Cursor, EndFilter, FlowFilter, FlowId, FlowRecord, FlowState, PAGE, Protocol};
use crate::stack::verdict::DropReason;

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Addresses and policy.
    pub endpoint: EndpointConfig,
    /// Bounds of the stack.
    pub limits: Limits,
    /// How each stage of confinement ended.
    pub confinement: BTreeMap<String, String>,
    /// When forwarding began.
    pub since: Clock,
    /// The same by the clock on the wall.
    pub since_date: SystemTime,
}

impl Identity {
    /// Of a process that begins now.
    pub fn new(endpoint: EndpointConfig, limits: Limits) -> Self {
        let (since, since_date) = (Clock::now(), SystemTime::now());
        Self { endpoint, limits, confinement: BTreeMap::new(), since, since_date }
    }
}

/// Answers what is asked about the network process. Clones are the same.
#[derive(Clone)]
pub struct Observer {
    plane: DataPlane,
    identity: Arc<Identity>,
    resolver: Arc<Resolver>,
}

fn gone(error: io::Error) -> ApiError {
    ApiError::new(Code::Gone, error.to_string())
}

fn bad(verb: &str, name: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::BadArgument, format!("{verb}: {name}: {why}"))
}

impl Observer {
    /// For one process.
    pub fn new(plane: DataPlane, identity: Identity, resolver: Arc<Resolver>) -> Self {
        Self { plane, identity: Arc::new(identity), resolver }
    }

    /// Whether [`Observer::answer`] knows the verb.
    pub fn knows(verb: &str) -> bool {
        api::VERBS.contains(&verb)
    }

    /// Does what is asked.
    pub async fn answer(&self, verb: &str, given: Map<String, Value>) -> Result<Value, ApiError> {
        match verb {
            "list_flows" => error::value(&self.list_flows(arguments(verb, given)?).await?),
            "kill_flow" => {
                let api::KillFlow { id } = arguments(verb, given)?;
                self.kill_flow(&id).await?;
                Ok(json!({}))
            }
            "get_stats" => {
                let api::Nothing {} = arguments(verb, given)?;
                error::value(&self.stats().await?)
            }
            "get_metrics" => {
                let api::Nothing {} = arguments(verb, given)?;
                error::value(&api::Metrics { text: self.metrics().await? })
            }
            "set_log_level" => {
                let api::SetLogLevel { level } = arguments(verb, given)?;
                crate::telemetry::set_level(&level).map_err(|why| bad(verb, "level", why))?;
                Ok(json!({}))
            }
            "get_info" => {
                let api::Nothing {} = arguments(verb, given)?;
                error::value(&self.info())
            }
            _ => Err(ApiError::new(Code::UnknownVerb, format!("unknown verb '{}'", verb.escape_debug()))),
        }
    }

    /// Subscribes; see `runtime::events::serve` for what to do with it.
    pub fn subscribe(&self, given: Map<String, Value>) -> Result<Subscription, ApiError> {
        let api::Subscribe { mut events } = arguments(api::SUBSCRIBE, given)?;
        events.sort_unstable();
        events.dedup();
        if events.is_empty() {
            return Err(bad(api::SUBSCRIBE, "events", "name at least one"));
        }
        self.plane.hub().subscribe(events).map_err(|error| ApiError::new(Code::Limit, error.to_string()))
    }

    async fn list_flows(&self, given: api::ListFlows) -> Result<api::FlowList, ApiError> {
        let verb = "list_flows";
        let end = |name, text: Option<String>| {
            text.map(|text| end_filter(&text).map_err(|why| bad(verb, name, why))).transpose()
        };
        let filter = FlowFilter {
            protocol: given.protocol.map(|protocol| match protocol {
                api::Protocol::Tcp => Protocol::Tcp,
                api::Protocol::Udp => Protocol::Udp,
                api::Protocol::Icmp => Protocol::Icmp,
            }),
            guest: end("guest", given.guest)?,
            peer: end("peer", given.peer)?,
            state: given.state.map(state_of),
        };
        let after = match &given.after {
            Some(text) => {
                text.parse().map_err(|_| bad(verb, "after", format_args!("'{}' is no cursor", text.escape_debug())))?
            }
            None => Cursor::START,
        };
        let limit = given.limit.map_or(PAGE, usize::from);
        if limit == 0 || limit > PAGE {
            return Err(bad(verb, "limit", format_args!("{limit} is not from 1 to {PAGE}")));
        }
        let mut list = api::FlowList::default();
        let mut after = Some(after);
        // A page of the data plane is short by slots, too: a client that filters gets what it asked for all the same.
        while let Some(from) = after.filter(|_| list.flows.len() < limit) {
            let page = self.plane.flows(from, limit - list.flows.len(), filter).await.map_err(gone)?;
            list.flows.extend(page.flows.iter().map(|record| flow(record, page.now)));
            list.total = page.total;
            after = page.next;
        }
        list.next = after.map(|cursor| cursor.to_string());
        Ok(list)
    }

    async fn kill_flow(&self, id: &str) -> Result<(), ApiError> {
        let unknown = || ApiError::new(Code::NotFound, format!("kill_flow: there is no flow '{}'", id.escape_debug()));
        let flow: FlowId =
            id.parse().map_err(|_| bad("kill_flow", "id", format_args!("'{}' is no id", id.escape_debug())))?;
        if self.plane.kill_flow(flow).await.map_err(gone)? { Ok(()) } else { Err(unknown()) }
    }

    fn info(&self) -> api::NetworkInfo {
        let Identity { endpoint, limits, confinement, since, .. } = &*self.identity;
        let addresses = |subnet: IpNet, [gateway, dns, guest]: [IpAddr; 3]| api::Addresses {
            subnet: subnet.to_string(),
            gateway: gateway.to_string(),
            dns: dns.to_string(),
            guest: guest.to_string(),
        };
        let offloads = endpoint.offloads;
        api::NetworkInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: since.elapsed().as_secs_f64(),
            id: endpoint.id.clone(),
            mtu: endpoint.mtu,
            mac: endpoint.slirp.is_none().then(|| mac(endpoint.guest_mac)),
            v4: endpoint.v4.map(|v4| addresses(v4.subnet.into(), [v4.gateway.into(), v4.dns.into(), v4.guest.into()])),
            v6: endpoint.v6.map(|v6| addresses(v6.subnet.into(), [v6.gateway.into(), v6.dns.into(), v6.guest.into()])),
            offloads: api::OffloadInfo {
                vnet_hdr: offloads.vnet_hdr,
                csum: offloads.csum,
                tso4: offloads.tso4,
                tso6: offloads.tso6,
                uso: offloads.uso,
            },
            limits: api::LimitInfo {
                tcp_flows: limits.tcp.max_flows as u64,
                tcp_connecting: limits.tcp.max_opening as u64,
                udp_mappings: limits.udp.max_mappings as u64,
                udp_clients: limits.udp.max_pairs as u64,
                echo_sessions: limits.ping_sessions as u64,
            },
            confinement: confinement.clone(),
            // Said by who knows (`runtime::answers`).
            faults: 0,
            log_level: crate::telemetry::in_force(),
        }
    }

    async fn stats(&self) -> Result<api::Stats, ApiError> {
        let Statistics { numbers, drops, delayed, .. } = *self.plane.statistics().await.map_err(gone)?;
        let mut counters: BTreeMap<String, u64> = BTreeMap::new();
        let mut put = |name: &str, value| counters.insert(name.to_owned(), value);
        put("frames_from_guest", numbers.frames_from_guest);
        put("frames_to_guest", numbers.frames_to_guest);
        for (name, live) in ["tcp_flows", "udp_mappings", "udp_clients", "echo_sessions"].into_iter().zip(numbers.live)
        {
            put(name, live);
        }
        for (protocol, sums) in PROTOCOLS.into_iter().zip(&numbers.sums) {
            put(&format!("{protocol}_opened"), sums.opened);
            put(&format!("{protocol}_closed"), sums.closed);
            put(&format!("{protocol}_from_guest_bytes"), sums.traffic.from_guest_bytes);
            put(&format!("{protocol}_to_guest_bytes"), sums.traffic.to_guest_bytes);
            put(&format!("{protocol}_from_guest_packets"), sums.traffic.from_guest_packets);
            put(&format!("{protocol}_to_guest_packets"), sums.traffic.to_guest_packets);
        }
        put("udp_evicted", numbers.evicted[0]);
        put("echo_evicted", numbers.evicted[1]);
        put("dns_queries_udp", numbers.dns_queries);
        put("fault_delayed", delayed);
        for (name, value) in self.resolver.stats().named() {
            put(name, value);
        }
        let drops = DropReason::ALL.iter().map(|&reason| (reason.name().to_owned(), drops.get(reason))).collect();
        Ok(api::Stats { counters, drops })
    }

    /// OpenMetrics 1.0 text. A successor of this process counts from 0: whoever keeps the numbers sees by `_created` when
    /// they began, also where they have already grown past those of before.
    pub async fn metrics(&self) -> Result<String, ApiError> {
        let statistics = self.plane.statistics().await.map_err(gone)?;
        let Statistics { numbers, drops, ports, delayed } = &*statistics;
        let (mut text, born) = (Exposition::default(), self.identity.since_date);
        text.family("tapway_uptime_seconds", "gauge", Some("seconds"), "Time since forwarding began.");
        text.sample("tapway_uptime_seconds", &[], format_args!("{:.6}", self.identity.since.elapsed().as_secs_f64()));
        text.family("tapway", "info", None, "What this is.");
        let (version, id) = (env!("CARGO_PKG_VERSION"), self.identity.endpoint.id.as_str());
        text.sample("tapway_info", &[("version", version), ("id", id)], 1);
        text.family("tapway_frames", "counter", None, "Frames that crossed the TAP.");
        text.counter("tapway_frames", &[("direction", "from_guest")], born, numbers.frames_from_guest);
        text.counter("tapway_frames", &[("direction", "to_guest")], born, numbers.frames_to_guest);
        text.family("tapway_flows", "gauge", None, "Flows that live.");
        for (kind, live) in ["tcp", "udp", "udp_published", "echo"].into_iter().zip(numbers.live) {
            text.sample("tapway_flows", &[("kind", kind)], live);
        }
        for (name, help, count) in [
            (
                "tapway_flows_opened",
                "Flows that began.",
                (|sums| sums.opened) as fn(&crate::stack::ledger::Sums) -> u64,
            ),
            ("tapway_flows_closed", "Flows that ended.", |sums| sums.closed),
        ] {
            text.family(name, "counter", None, help);
            for (protocol, sums) in PROTOCOLS.into_iter().zip(&numbers.sums) {
                text.counter(name, &[("protocol", protocol)], born, count(sums));
            }
        }
        text.family("tapway_payload_bytes", "counter", Some("bytes"), "Payload that went on, by direction.");
        for (protocol, sums) in PROTOCOLS.into_iter().zip(&numbers.sums) {
            let traffic = &sums.traffic;
            for (direction, n) in [("from_guest", traffic.from_guest_bytes), ("to_guest", traffic.to_guest_bytes)] {
                text.counter("tapway_payload_bytes", &[("protocol", protocol), ("direction", direction)], born, n);
            }
        }
        text.family("tapway_packets", "counter", None, "Packets of flows as they crossed the TAP.");
        for (protocol, sums) in PROTOCOLS.into_iter().zip(&numbers.sums) {
            let traffic = &sums.traffic;
            for (direction, n) in [("from_guest", traffic.from_guest_packets), ("to_guest", traffic.to_guest_packets)] {
                text.counter("tapway_packets", &[("protocol", protocol), ("direction", direction)], born, n);
            }
        }
        text.family("tapway_evictions", "counter", None, "Flows that gave way to newer ones.");
        text.counter("tapway_evictions", &[("protocol", "udp")], born, numbers.evicted[0]);
        text.counter("tapway_evictions", &[("protocol", "echo")], born, numbers.evicted[1]);
        text.family("tapway_drops", "counter", None, "What was not carried on, by reason.");
        for &reason in DropReason::ALL {
            text.counter("tapway_drops", &[("reason", reason.name())], born, drops.get(reason));
        }
        text.family("tapway_fault_delayed", "counter", None, "Packets that were held on purpose.");
        text.counter("tapway_fault_delayed", &[], born, *delayed);
        text.family("tapway_dns", "counter", None, "What happened to questions of the guest.");
        for (name, value) in self.resolver.stats().named() {
            text.counter("tapway_dns", &[("event", name.strip_prefix("dns_").unwrap_or(name))], born, value);
        }
        self.port_metrics(ports, &mut text);
        Ok(text.end())
    }

    fn port_metrics(&self, totals: &[crate::stack::ledger::PortTotals], text: &mut Exposition) {
        let totals: BTreeMap<usize, _> = totals.iter().map(|port| (port.listener, port)).collect();
        let ports: Vec<_> = self
            .plane
            .ports()
            .into_iter()
            .map(|(number, Served { listener: port, since })| {
                let proto = if port.proto == Proto::Tcp { "tcp" } else { "udp" };
                let at = SocketAddr::new(port.host_addr, port.host_port).to_string();
                (proto, at, since, totals.get(&number).map_or_else(Default::default, |&total| *total))
            })
            .collect();
        text.family("tapway_port_connections", "counter", None, "Connections and clients of published ports.");
        for (proto, at, since, total) in &ports {
            text.counter("tapway_port_connections", &[("proto", proto), ("host", at)], *since, total.connections);
        }
        text.family("tapway_port_bytes", "counter", Some("bytes"), "Payload through published ports.");
        for (proto, at, since, total) in &ports {
            let traffic = &total.traffic;
            for (direction, n) in [("from_guest", traffic.from_guest_bytes), ("to_guest", traffic.to_guest_bytes)] {
                let labels = [("proto", *proto), ("host", at.as_str()), ("direction", direction)];
                text.counter("tapway_port_bytes", &labels, *since, n);
            }
        }
    }
}

/// As the sums of the stack are ordered.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "echo"];

/// OpenMetrics text in the making.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, unit: Option<&str>, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    /// A sample of a counter that began at `created`.
    fn counter(&mut self, name: &str, labels: &[(&str, &str)], created: SystemTime, value: u64) {
        self.sample(&format!("{name}_total"), labels, value);
        let created = created.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.sample(&format!("{name}_created"), labels, format_args!("{:.3}", created.as_secs_f64()));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

fn mac(Mac(bytes): Mac) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// `ADDRESS`, `NETWORK/BITS`, either with `:PORT`, or `:PORT`.
pub fn end_filter(text: &str) -> Result<EndFilter, String> {
    let wrong = || format!("'{}' is no ADDRESS, NETWORK/BITS or either with :PORT", text.escape_debug());
    let net =
        |text: &str| -> Option<IpNet> { text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?))) };
    if let Some(net) = net(text) {
        return Ok(EndFilter { net: Some(net.trunc()), port: None });
    }
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    if address.is_empty() {
        return Ok(EndFilter { net: None, port: Some(port) });
    }
    let found = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => net(v6).filter(|net| net.addr().is_ipv6()),
        None => net(address).filter(|net| net.addr().is_ipv4()),
    };
    Ok(EndFilter { net: Some(found.ok_or_else(wrong)?.trunc()), port: Some(port) })
}

fn state_of(state: api::State) -> FlowState {
    match state {
        api::State::Connecting => FlowState::Connecting,
        api::State::Handshake => FlowState::Handshake,
        api::State::Open => FlowState::Open,
        api::State::Closing => FlowState::Closing,
        api::State::Unanswered => FlowState::Unanswered,
        api::State::Closed => FlowState::Closed,
        api::State::Reset => FlowState::Reset,
        api::State::Failed => FlowState::Failed,
    }
}

/// A flow, as clients read it.
pub fn flow(record: &FlowRecord, now: Instant) -> api::Flow {
    let echo = record.id.kind.protocol() == Protocol::Icmp;
    let end = |end: SocketAddr| if echo { end.ip().to_string() } else { end.to_string() };
    let since = |then: Instant| if now > then { Duration::from(now - then).as_secs_f64() } else { 0.0 };
    api::Flow {
        id: record.id.to_string(),
        protocol: match record.id.kind.protocol() {
            Protocol::Tcp => api::Protocol::Tcp,
            Protocol::Udp => api::Protocol::Udp,
            Protocol::Icmp => api::Protocol::Icmp,
        },
        guest: end(record.guest),
        peer: end(record.peer),
        target: record.target.map(end),
        direction: if record.listener.is_some() { api::Direction::Published } else { api::Direction::Outgoing },
        state: match record.state {
            FlowState::Connecting => api::State::Connecting,
            FlowState::Handshake => api::State::Handshake,
            FlowState::Open => api::State::Open,
            FlowState::Closing => api::State::Closing,
            FlowState::Unanswered => api::State::Unanswered,
            FlowState::Closed => api::State::Closed,
            FlowState::Reset => api::State::Reset,
            FlowState::Failed => api::State::Failed,
        },
        from_guest_bytes: record.traffic.from_guest_bytes,
        to_guest_bytes: record.traffic.to_guest_bytes,
        from_guest_packets: record.traffic.from_guest_packets,
        to_guest_packets: record.traffic.to_guest_packets,
        age_seconds: since(record.opened),
        idle_seconds: since(record.last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        for (text, net, port) in [
            ("10.0.2.100", Some("10.0.2.100/32"), None),
            ("10.0.2.100/24", Some("10.0.2.0/24"), None),
            ("10.0.2.100:80", Some("10.0.2.100/32"), Some(80)),
            ("10.0.2.0/24:80", Some("10.0.2.0/24"), Some(80)),
            ("fd00::1", Some("fd00::1/128"), None),
            ("[fd00::/64]:80", Some("fd00::/64"), Some(80)),
            ("[fd00::1]:80", Some("fd00::1/128"), Some(80)),
            (":443", None, Some(443)),
        ] {
            let net = net.map(|net| net.parse().expect("network"));
            assert_eq!(end_filter(text), Ok(EndFilter { net, port }), "{text}");
        }
        for text in
            ["", ":", "x", "10.0.2", "10.0.2.1:", "10.0.2.1:65536", "[10.0.2.1]:80", "[fd00::1]", "1.2.3.4/33", ":-1"]
        {
            assert!(end_filter(text).is_err(), "{text}");
        }
    }
}
