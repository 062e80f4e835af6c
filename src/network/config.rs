//! What one network process is told at attach: addresses, policy and published ports.
//!
//! Values only. They are chosen and validated by the monitor (`cli::run`), serialised by `api::attach` and read by the
//! data plane; nothing here changes while an endpoint lives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::atomic::AtomicU64;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::wire::dns_name::Name;

/// An Ethernet address, in transmission order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

/// IPv4 side of an endpoint's address plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanV4 {
    /// The segment, e.g. 10.0.2.0/24.
    pub subnet: Ipv4Net,
    /// Router and alias for the host (subnet + 2).
    pub gateway: Ipv4Addr,
    /// Where the guest asks for names (subnet + 3).
    pub dns: Ipv4Addr,
    /// The guest's own address (subnet + 100, or --ip later).
    pub guest: Ipv4Addr,
}

/// IPv6 side of an endpoint's address plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanV6 {
    /// The segment, always a /64 (a random ULA unless given).
    pub subnet: Ipv6Net,
    /// Router's global address and alias for the host (prefix::2).
    pub gateway: Ipv6Addr,
    /// Router's link-local address (fe80::2), source of router advertisements and the guest's next hop.
    pub gateway_link_local: Ipv6Addr,
    /// Where the guest asks for names (prefix::3).
    pub dns: Ipv6Addr,
    /// The guest's own address (prefix::64, i.e. decimal 100).
    pub guest: Ipv6Addr,
}

/// Which parts of TAP offloading the kernel granted, tried one by one when the TAP was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// `IFF_VNET_HDR`: each frame starts with a 10-byte virtio-net header. Without it nothing else is possible.
    pub vnet_hdr: bool,
    /// `TUN_F_CSUM`: the guest leaves TCP and UDP checksums partial.
    pub csum: bool,
    /// `TUN_F_TSO4`.
    pub tso4: bool,
    /// `TUN_F_TSO6`.
    pub tso6: bool,
    /// `TUN_F_USO4` and `TUN_F_USO6` (Linux 6.2; set together).
    pub uso: bool,
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One bound host socket that stands for one published port. The descriptor travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// TCP (listening, non-blocking) or UDP (bound, non-blocking, PKTINFO on).
    pub proto: Proto,
    /// Address that the socket is bound to.
    pub host_addr: IpAddr,
    /// Port that the socket is bound to (the chosen one where the user left it open).
    pub host_port: u16,
    /// Which of the guest's addresses; None is the endpoint's own.
    #[serde(default)]
    pub guest_addr: Option<IpAddr>,
    /// Port on the guest.
    pub guest_port: u16,
}

/// A domain with name servers of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsZone {
    /// It and every name under it are asked of these servers alone; of two domains the longer one counts.
    pub domain: Name,
    /// In order of preference.
    pub servers: Vec<SocketAddr>,
}

/// What differs where the endpoint stands in for slirp4netns: that program's segment knows neither the guest's MAC nor
/// its addresses beforehand, and everything behind the TAP is the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slirp {
    /// First and last address that DHCP gives.
    pub dhcp: (Ipv4Addr, Ipv4Addr),
    /// The DNS addresses answer names; otherwise nothing but pings.
    pub dns: bool,
}

/// Most queues of a TAP, each with a thread of the data plane's. Rootless workloads with more cores for their network alone are none
/// that we know.
pub const MAX_QUEUES: NonZeroU8 = NonZeroU8::new(8).unwrap();

/// How many queues a TAP gets where the user does not say, on a machine with so many cores: one for every two, since whoever
/// makes and takes the bytes needs the others, and up to four. So two cores have one queue: a second one carries 1.2 to 1.9 times as much
/// there in four streams, and costs 4 MiB and the programs' processor (docs/benchmarks.md, "Several queues").
pub fn default_queues(cores: usize) -> NonZeroU8 {
    NonZeroU8::new((cores / 2).clamp(1, 4) as u8).unwrap_or(NonZeroU8::MIN)
}

/// A number of queues that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no number of queues; give 1 to {MAX_QUEUES}")]
pub struct QueuesError(String);

/// A number of queues as somebody wrote it.
pub fn parse_queues(text: &str) -> Result<NonZeroU8, QueuesError> {
    let number = text.parse().ok().filter(|number| *number <= MAX_QUEUES);
    number.ok_or_else(|| QueuesError(text.to_owned()))
}

/// Whose turn it is in each lane of a data plane: [`mark`]s, 0 between turns. The last is whose turn it was for the thread that
/// ended all others: see [`CULPRIT`].
pub type Turns = [AtomicU64; CULPRIT + 1];

/// Where in [`Turns`] a thread that panics notes at whose turn it does: a [`mark`], or [`NOBODYS`]. 0: none did.
pub const CULPRIT: usize = MAX_QUEUES.get() as usize;

/// At the turn of no endpoint.
pub const NOBODYS: u64 = 1;

/// At whose turn a process died of which this is left: what the thread that panicked noted, or one sandbox's that alone had its turn. Its
/// [`mark`].
pub fn at_turn(turns: &[u64; CULPRIT + 1]) -> Option<u64> {
    let (lanes, culprit) = (&turns[..CULPRIT], turns[CULPRIT]);
    if culprit != 0 {
        return Some(culprit).filter(|&culprit| culprit != NOBODYS);
    }
    let mut marks = lanes.iter().copied().filter(|&mark| mark != 0);
    let mark = marks.next()?;
    marks.all(|other| other == mark).then_some(mark)
}

/// A sandbox's id as one number that is never 0.
pub fn mark(id: &str) -> u64 {
    1 << 63 | u64::from_str_radix(id, 16).unwrap_or_default()
}

/// The id of which [`mark`] made this; none of 0 and [`NOBODYS`].
pub fn sandbox_of(mark: u64) -> Option<String> {
    (mark >> 63 == 1).then(|| format!("{:012x}", mark & !(1 << 63)))
}

/// Everything the data plane must know of an endpoint before its first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// 12-digit id of the sandbox, for logs.
    pub id: String,
    /// MTU of the guest's interface.
    pub mtu: u16,
    /// The guest's MAC address. Not looked at with `slirp`, where guests are learnt.
    pub guest_mac: Mac,
    /// The gateway's MAC address; it answers for every address but the guest's. Not looked at with `slirp`, where MACs
    /// are made of addresses.
    pub gateway_mac: Mac,
    /// IPv4 plan; None switches the family off.
    pub v4: Option<PlanV4>,
    /// IPv6 plan; None switches the family off.
    pub v6: Option<PlanV6>,
    /// What the TAP can do.
    pub offloads: Offloads,
    /// The gateway address reaches the host's 127.0.0.1 and ::1 (else the host's address on its default route, or, with
    /// `slirp`, nothing).
    pub allow_host_loopback: bool,
    /// 169.254.0.0/16 is reachable (cloud metadata lives there).
    pub allow_link_local: bool,
    /// Source address of outgoing IPv4 sockets.
    pub outbound_v4: Option<Ipv4Addr>,
    /// Source address of outgoing IPv6 sockets.
    pub outbound_v6: Option<Ipv6Addr>,
    /// Host name of the guest, handed out by DHCP.
    pub hostname: String,
    /// Search domains, handed out by DHCP and router advertisements.
    pub dns_search: Vec<String>,
    /// slirp4netns's segment instead of a container's endpoint.
    #[serde(default)]
    pub slirp: Option<Slirp>,
}

/// A network that many endpoints share, as its process is told at its start. What the network is for everybody is said
/// here, and not by those who attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Id, 64 hexadecimal digits.
    pub id: String,
    /// Name; names of members are under it too.
    pub name: String,
    /// MTU of its members' interfaces.
    pub mtu: u16,
    /// Nothing leaves: members reach each other and the name service, and nobody else.
    #[serde(default)]
    pub internal: bool,
    /// Members reach each other; otherwise only those that are linked do.
    pub icc: bool,
    /// Members reach the world under the host's address; otherwise the host and nobody beyond, since nobody beyond would
    /// know the way back to theirs.
    pub masquerade: bool,
    /// Members are found by name. The default network has no names.
    pub names: bool,
    /// Most members at a time.
    #[serde(default = "max_members")]
    pub max_members: usize,
    /// How long the process waits for another member after the last one left, milliseconds.
    #[serde(default = "linger_ms")]
    pub linger_ms: u64,
    /// How long it waits for the first one, milliseconds.
    #[serde(default = "first_ms")]
    pub first_ms: u64,
}

/// Default of [`NetworkConfig::max_members`]: as many as a kernel bridge has ports (BR_MAX_PORTS, net/bridge/br_private.h).
pub const fn max_members() -> usize {
    1024
}

/// Default of [`NetworkConfig::linger_ms`]: a sandbox that is started again finds the process.
pub const fn linger_ms() -> u64 {
    2000
}

/// Default of [`NetworkConfig::first_ms`]: whoever started the process attaches within milliseconds, or never.
pub const fn first_ms() -> u64 {
    10_000
}

/// How an endpoint is a member of a shared network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Names by which it is found, the container's own first, which is the one that its address has.
    pub names: Vec<String>,
    /// Whom it calls by names of its own, and reaches where members are kept apart.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// `--link NAME:ALIAS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// A name of the other member, which need not be there.
    pub target: String,
    /// What this member calls it; seen by nobody else.
    pub alias: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_queue_for_every_two_cores_up_to_four() {
        let wanted = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4), (256, 4)];
        for (cores, queues) in wanted {
            assert_eq!(default_queues(cores).get(), queues, "{cores} cores");
        }
    }

    #[test]
    fn a_number_of_queues_is_one_to_eight() {
        assert_eq!(parse_queues("8"), Ok(MAX_QUEUES));
        for text in ["", "0", "9", "-1", "1.0", "256", "two"] {
            assert_eq!(parse_queues(text), Err(QueuesError(text.to_owned())));
        }
    }

    #[test]
    fn of_two_at_their_turn_the_one_that_panicked_is_meant() {
        let (a, b) = (mark("00000000000a"), mark("00000000000b"));
        let meant = |lanes: [u64; 2], culprit: u64| {
            let mut turns = [0; CULPRIT + 1];
            turns[..2].copy_from_slice(&lanes);
            turns[CULPRIT] = culprit;
            at_turn(&turns)
        };
        assert_eq!(meant([0, 0], 0), None);
        assert_eq!((meant([a, 0], 0), meant([a, a], 0)), (Some(a), Some(a)));
        assert_eq!(meant([a, b], 0), None);
        assert_eq!(meant([a, b], b), Some(b));
        // It is not known yet that the other lane's turn is over.
        assert_eq!(meant([a, 0], b), Some(b));
        assert_eq!(meant([a, 0], NOBODYS), None, "the control thread's own");
    }

    #[test]
    fn a_mark_is_its_sandbox() {
        assert_eq!(sandbox_of(mark("00c0ffee0123")).as_deref(), Some("00c0ffee0123"));
        assert_eq!((sandbox_of(0), mark("000000000000") != 0), (None, true));
    }
}
