//! Configuring the sandbox's interfaces by rtnetlink, synchronously, in one write.
//!
//! All requests go to the kernel in a single datagram, which it works through in order, answering each (NLM_F_ACK);
//! the answers are then read and the first error is reported with what it was about. So the whole set-up costs two
//! wake-ups. Runs in the sandbox's network namespace, before anything else does.
//!
//! Deliberately static: addresses without duplicate detection (nobody else is on the segment, and DAD would cost a
//! second), default routes by netlink and not by router advertisement.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::network::config::{Mac, PlanV4, PlanV6};

pub(super) use netlink_packet_route::link::LinkAttribute as Attribute;

/// Index of the loopback interface in every network namespace (LOOPBACK_IFINDEX, include/net/net_namespace.h).
pub(super) const LOOPBACK: u32 = 1;

/// No table: the number does not fit into the header, and is an attribute (RT_TABLE_UNSPEC).
const RT_TABLE_UNSPEC: u8 = 0;

/// The routing table of a host's own addresses (RT_TABLE_LOCAL, include/uapi/linux/rtnetlink.h).
const LOCAL_TABLE: u8 = 255;

/// Frames that wait in the TAP for us. With TSO the queue counts super-frames: at 10 000 one TAP with a stopped reader
/// was seen to hold 618 MiB of kernel memory; at 1000 it holds a tenth, and nothing was slower.
const TX_QUEUE_LEN: u32 = 1000;

/// Why the interfaces could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket.
    #[error("cannot {what} a netlink socket")]
    Socket {
        /// The call.
        what: &'static str,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {what}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// An answer that is none.
    #[error("unexpected answer from the kernel on a netlink socket")]
    Answer,
}

/// What the interface of the guest gets.
#[derive(Debug)]
pub struct Interface<'a> {
    /// Its name, as in messages.
    pub name: &'a str,
    /// Its index.
    pub index: u32,
    /// MAC address.
    pub mac: Mac,
    /// MTU, bytes.
    pub mtu: u16,
    /// IPv4 address and route.
    pub v4: Option<PlanV4>,
    /// IPv6 address and route.
    pub v6: Option<PlanV6>,
    /// It gets no default route: there is no way out, or another interface has it.
    pub no_default: bool,
    /// A default route that is there stays.
    pub keep_routes: bool,
}

/// Brings up lo alone.
pub fn bring_up_loopback() -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.set_link("bring up lo", LOOPBACK, true, vec![]);
    batch.run()
}

/// Brings up lo and `interface`, with addresses and default routes. Returns what was left as it is.
pub fn configure(interface: &Interface<'_>) -> Result<Vec<String>, NetlinkError> {
    let mut batch = Batch::default();
    let (name, index) = (interface.name, interface.index);
    batch.set_link("bring up lo", LOOPBACK, true, vec![]);
    batch.set_link(
        format!("set MTU {}, the MAC address and the queue length of {name}", interface.mtu),
        index,
        false,
        vec![
            LinkAttribute::Mtu(u32::from(interface.mtu)),
            LinkAttribute::Address(interface.mac.0.to_vec()),
            LinkAttribute::TxQueueLen(TX_QUEUE_LEN),
        ],
    );
    batch.set_link(format!("bring up {name}"), index, true, vec![]);
    let mut routes = Vec::new();
    let mut both = |address: IpAddr, prefix_len: u8, gateway: IpAddr| {
        batch.add_address(format!("give {name} the address {address}/{prefix_len}"), index, address, prefix_len);
        if !interface.no_default {
            if interface.keep_routes {
                routes.push(gateway);
            } else {
                batch.add_default_route(format!("set the default route of {name} via {gateway}"), index, gateway, None);
            }
        }
    };
    if let Some(plan) = interface.v4 {
        both(IpAddr::V4(plan.guest), plan.subnet.prefix_len(), IpAddr::V4(plan.gateway));
    }
    if let Some(plan) = interface.v6 {
        both(IpAddr::V6(plan.guest), plan.subnet.prefix_len(), IpAddr::V6(plan.gateway_link_local));
    }
    batch.run()?;
    let mut notes = Vec::new();
    for gateway in routes {
        let mut batch = Batch { keep: true, ..Batch::default() };
        batch.add_default_route(format!("set the default route of {name} via {gateway}"), index, gateway, None);
        match batch.run() {
            Err(NetlinkError::Refused { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                let family = if gateway.is_ipv6() { "IPv6" } else { "IPv4" };
                notes.push(format!("the namespace has a default route of {family} already, which stays"));
            }
            result => result?,
        }
    }
    Ok(notes)
}

/// Makes `address`, which is one of the loopback network, lead to `gateway` by interface `index`. The route has its place in
/// the local table, where the loopback network's own is: the longer one counts. The interface must have `route_localnet`.
/// `keep`: a route that is there is not replaced, but an error.
pub fn route_loopback_address(
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    index: u32,
    keep: bool,
) -> Result<(), NetlinkError> {
    let mut batch = Batch { keep, ..Batch::default() };
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.table = LOCAL_TABLE;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(address)),
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(index),
    ];
    batch.push(
        format!("set a route to {address} via {gateway}"),
        batch.create(),
        RouteNetlinkMessage::NewRoute(message),
    );
    batch.run()
}

/// Moves interface `index` of the current network namespace to `namespace`, as `name` there (`tap%d`: the first number
/// that is free).
pub fn move_link(index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    let to = vec![LinkAttribute::NetNsFd(namespace.as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
    batch.set_link(format!("move {name} to its namespace"), index, false, to);
    batch.run()
}

/// Deletes an interface.
pub fn delete_link(name: &str, index: u32) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    let mut message = LinkMessage::default();
    message.header.index = index;
    batch.push(format!("delete {name}"), 0, RouteNetlinkMessage::DelLink(message));
    batch.run()
}

/// A rule of the routing policy (ip-rule(8)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For packets with this source address; None: for all.
    pub from: Option<IpAddr>,
    /// Lower ones come first.
    pub priority: u32,
    /// The table that is looked into.
    pub table: u32,
    /// What the table's default route says counts.
    pub keep_default: bool,
    /// Of one without an address.
    pub ipv6: bool,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, table, .. } = self;
        match from {
            Some(from) => write!(f, "from {from} lookup {table}"),
            None => write!(f, "lookup {table}"),
        }
    }
}

impl Rule {
    /// True if it is for IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.from.map_or(self.ipv6, |from| from.is_ipv6())
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(self.priority), RuleAttribute::Table(self.table)];
        if let Some(from) = self.from {
            message.header.src_len = if from.is_ipv6() { 128 } else { 32 };
            message.attributes.push(RuleAttribute::Source(from));
        }
        if !self.keep_default {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        }
        message
    }

    /// Makes it.
    pub fn add(&self) -> Result<(), NetlinkError> {
        let mut batch = Batch { keep: true, ..Batch::default() };
        batch.push("make it", batch.create(), RouteNetlinkMessage::NewRule(self.message()));
        match batch.run() {
            // It is there.
            Err(NetlinkError::Refused { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Removes it.
    pub fn remove(&self) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        batch.push("remove it", 0, RouteNetlinkMessage::DelRule(self.message()));
        batch.run()
    }
}

/// Requests on their way; the position is the sequence number.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    what: Vec<String>,
    /// What exists is not replaced.
    keep: bool,
}

impl Batch {
    fn create(&self) -> u16 {
        NLM_F_CREATE | if self.keep { NLM_F_EXCL } else { NLM_F_REPLACE }
    }

    fn push(&mut self, what: impl Into<String>, flags: u16, message: RouteNetlinkMessage) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.what.len() as u32;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = self.bytes.len();
        // Messages are aligned to 4 bytes (NLMSG_ALIGN).
        self.bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.bytes[start..]);
        self.what.push(what.into());
    }

    /// Changes attributes of an interface, or brings it up.
    pub(super) fn set_link(&mut self, what: impl Into<String>, index: u32, up: bool, attributes: Vec<LinkAttribute>) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes = attributes;
        self.push(what, 0, RouteNetlinkMessage::SetLink(message));
    }

    /// Gives an interface an address, without duplicate detection.
    pub(super) fn add_address(&mut self, what: impl Into<String>, index: u32, address: IpAddr, prefix_len: u8) {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        } else if let IpAddr::V4(v4) = address {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast((u32::from(v4) | host_bits).into()));
        }
        self.push(what, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewAddress(message));
    }

    /// Sets the default route of one family: in the main table, unless it is said in which.
    pub(super) fn add_default_route(
        &mut self,
        what: impl Into<String>,
        index: u32,
        gateway: IpAddr,
        table: Option<u32>,
    ) {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = if table.is_some() { RT_TABLE_UNSPEC } else { RouteHeader::RT_TABLE_MAIN };
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let gateway_address = match gateway {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        };
        message.attributes = vec![RouteAttribute::Gateway(gateway_address), RouteAttribute::Oif(index)];
        message.attributes.extend(table.map(RouteAttribute::Table));
        self.push(what, self.create(), RouteNetlinkMessage::NewRoute(message));
    }

    /// Removes the default route of one family from the main table.
    pub(super) fn remove_default_route(&mut self, ipv6: bool) {
        let mut message = RouteMessage::default();
        message.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.scope = RouteScope::NoWhere;
        self.push("remove the default route", 0, RouteNetlinkMessage::DelRoute(message));
    }

    /// Sends everything and waits for the answers.
    pub(super) fn run(self) -> Result<(), NetlinkError> {
        if self.what.is_empty() {
            return Ok(());
        }
        let socket_error = |what| move |source| NetlinkError::Socket { what, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(socket_error("open"))?;
        socket.bind_auto().map_err(socket_error("bind"))?;
        let sent = socket.send_to(&self.bytes, &SocketAddr::new(0, 0), 0).map_err(socket_error("write to"))?;
        if sent != self.bytes.len() {
            return Err(NetlinkError::Answer);
        }
        let mut answered = 0;
        let mut buffer = vec![0u8; 8192];
        while answered < self.what.len() {
            let length =
                match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()) {
                    Ok(length) => length,
                    Err(nix::Error::EINTR) => continue,
                    Err(errno) => return Err(socket_error("read from")(errno.into())),
                };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| NetlinkError::Answer)?;
                if let NetlinkPayload::Error(error) = &message.payload {
                    if error.code.is_some() {
                        let what = self.what.get(message.header.sequence_number as usize);
                        let what = what.cloned().unwrap_or_else(|| "configure the network".to_owned());
                        return Err(NetlinkError::Refused { what, source: error.to_io() });
                    }
                    answered += 1;
                }
                let step = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                if step == 0 {
                    return Err(NetlinkError::Answer);
                }
                rest = &rest[step..];
            }
        }
        Ok(())
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}
