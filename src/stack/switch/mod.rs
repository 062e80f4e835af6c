//! The switch of a network that many endpoints share: frames of one member to the others, before the gateway's stack.
//!
//! ```text
//!                         ┌─► the gateway's MAC ───────────────► the sender's own Stack
//! a member's frame ─ guard┼─► another member's MAC ────────────► that member's TAP, vnet header and all
//!                         ├─► broadcast, all hosts ────────────► every other member
//!                         ├─► ARP, neighbour solicitation ─────► whoever has the address: the Stack, or that member
//!                         └─► a group ─────────────────────────► those that joined (groups)
//! ```
//!
//! **It does not learn.** Its table is what was attached: one MAC and the assigned addresses of each member. A frame for a
//! MAC that nobody has is dropped and counted, never flooded. Members answer ARP for themselves, so a member that is dead
//! behind its TAP is seen to be so; but a question goes only to the one that it is for.
//!
//! **Guard.** Nobody can be somebody else: the source MAC is the port's; the source address of IPv4 and the sender of ARP
//! is the assigned one; in IPv6 it is the assigned one or one that the member was the first to use (its link-local address
//! and those it makes itself of the prefix: FCFS SAVI, RFC 6620, without its probes, since we see every frame). An address
//! that is assigned to a newcomer is taken from whoever made it up. Router advertisements, redirects and queries for
//! groups are the gateway's alone. Frames that are neither IP nor ARP are dropped: a tag of priority would carry what
//! the guard has not seen. So is anything to 127/8: members route 127.0.0.11 to the gateway, and their kernels believe it.
//!
//! **Apart.** Without `icc` nothing goes from member to member, whatever it is, but between two that are linked. What goes
//! by way of the gateway (published ports) goes by way of the host's sockets and is not the switch's to see.
//!
//! **Offloads.** A frame is written as it came where the receiver's TAP can do what its vnet header wants; else its sum is
//! completed, or it is cut, in software (`wire::segment`). A packet above the receiver's MTU is refused as a router would.
//!
//! **Limits.** Members, addresses that one makes up, copies of one's frames a second ([`SwitchLimits`]), groups ([`groups`]). Per frame: a hash of a MAC, and for
//! frames to many one step a receiver. Nothing is queued here.

mod groups;
mod guard;
mod messages;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

pub use groups::{FIRST_RESPONSE, GroupLimits, Groups, QUERY_INTERVAL, RESPONSE};

use super::bucket::{Bucket, Rate};
use super::verdict::DropReason;
use super::{Output, Stack};
use crate::network::config::{EndpointConfig, Mac, Membership, Offloads, PlanV4, PlanV6};
use crate::wire::segment;
use crate::wire::vnet::{Gso, IP_OFFSET, MAX_FRAME, VNET_HDR_LEN, VnetHdr};
use guard::Kind;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct SwitchLimits {
    /// Members at a time.
    pub members: usize,
    /// IPv6 addresses that one member makes up.
    pub own_addresses: usize,
    /// Multicast groups.
    pub groups: GroupLimits,
    /// Copies of one member's frames to everybody. One frame is as many as there are others.
    pub copies: Rate,
    /// Copies of one member's frames to those that joined a group: they want them.
    pub group_copies: Rate,
}

impl Default for SwitchLimits {
    fn default() -> Self {
        // Link-local, one of the prefix, and temporary ones of a week (RFC 8981: one a day).
        // Copies, a guess: at about 2 µs each a twentieth of a processor; at once, what twenty frames are to 1024 members.
        // To groups: a stream of 100 Mbit/s to twenty.
        Self {
            members: crate::network::config::max_members(),
            own_addresses: 16,
            groups: GroupLimits::default(),
            copies: Rate { per_second: 20_000, burst: 20_480 },
            group_copies: Rate { per_second: 200_000, burst: 50_000 },
        }
    }
}

/// Where frames for other members go.
pub trait Members {
    /// A frame, vnet header first, for this member's TAP. What the TAP does not take is dropped and counted there.
    fn to_member(&mut self, member: u16, frame: &[u8]);
}

/// Why an endpoint is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachRefusal {
    /// The bound.
    #[error("the network has {0} members already, which is its bound")]
    Full(usize),
    /// The MAC.
    #[error("MAC address {0} is in use on this network")]
    MacInUse(Mac),
    /// A MAC that no host can have.
    #[error("MAC address {0} is a group's or nobody's; give a unicast one such as 02:42:ac:12:00:02")]
    BadMac(Mac),
    /// An address.
    #[error("address {0} is in use on this network")]
    AddressInUse(IpAddr),
    /// Segments that others replace belong to nobody else.
    #[error("slirp4netns's segment cannot be shared")]
    Slirp,
}

/// One member, as the switch knows it.
#[derive(Debug)]
struct Port {
    mac: Mac,
    gateway_mac: Mac,
    v4: Option<PlanV4>,
    v6: Option<PlanV6>,
    mtu: u16,
    offloads: Offloads,
    membership: Membership,
    /// With whom it is linked, where members are kept apart.
    linked: Vec<u16>,
    /// Addresses that it was the first to use.
    own: Vec<Ipv6Addr>,
    /// What is left of copies to everybody, and to groups.
    copies: Bucket,
    group_copies: Bucket,
}

/// The switch of one network.
pub struct Switch {
    icc: bool,
    limits: SwitchLimits,
    ports: Vec<Option<Port>>,
    /// Those that are there, for what goes to everybody.
    present: Vec<u16>,
    by_mac: HashMap<Mac, u16, FixedState>,
    by_v4: HashMap<Ipv4Addr, u16, FixedState>,
    by_v6: HashMap<Ipv6Addr, u16, FixedState>,
    groups: Groups,
    /// Packets of a super-frame are built here, and what the switch says itself.
    scratch: Box<[u8]>,
}

/// What to do with a frame that the guard has let through.
enum Way {
    /// To the gateway's stack.
    Gateway,
    /// To this member.
    Member(u16),
    /// To every other member.
    All,
    /// To those that joined.
    Group(IpAddr),
    /// Its work is done.
    Consumed,
}

impl Switch {
    /// Of a network without members. `icc`: members reach each other. `seed` must be unpredictable to guests.
    pub fn new(icc: bool, limits: SwitchLimits, seed: u64) -> Self {
        let state = || FixedState::with_seed(seed);
        Self {
            icc,
            limits,
            ports: Vec::new(),
            present: Vec::new(),
            by_mac: HashMap::with_hasher(state()),
            by_v4: HashMap::with_hasher(state()),
            by_v6: HashMap::with_hasher(state()),
            groups: Groups::new(limits.groups, seed),
            scratch: vec![0; MAX_FRAME].into_boxed_slice(),
        }
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Memberships of groups.
    pub fn group_memberships(&self) -> usize {
        self.groups.len()
    }

    /// Whether `attach` would be refused; nothing changes.
    pub fn check(&self, config: &EndpointConfig) -> Result<(), AttachRefusal> {
        if config.slirp.is_some() {
            return Err(AttachRefusal::Slirp);
        }
        if self.present.len() >= self.limits.members.min(usize::from(u16::MAX)) {
            return Err(AttachRefusal::Full(self.present.len()));
        }
        let mac = config.guest_mac;
        if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
            return Err(AttachRefusal::BadMac(mac));
        }
        if mac == config.gateway_mac || self.by_mac.contains_key(&mac) {
            return Err(AttachRefusal::MacInUse(mac));
        }
        if let Some(plan) = config.v4
            && (self.by_v4.contains_key(&plan.guest) || [plan.gateway, plan.dns].contains(&plan.guest))
        {
            return Err(AttachRefusal::AddressInUse(plan.guest.into()));
        }
        if let Some(plan) = config.v6 {
            let assigned = self.by_v6.get(&plan.guest).and_then(|&member| self.port(member)?.v6);
            if assigned.is_some_and(|other| other.guest == plan.guest)
                || [plan.gateway, plan.gateway_link_local, plan.dns].contains(&plan.guest)
            {
                return Err(AttachRefusal::AddressInUse(plan.guest.into()));
            }
        }
        Ok(())
    }

    /// Lets an endpoint in as number `member`, which nobody has. The others are told where it is, and it is asked for its
    /// groups.
    pub fn attach(
        &mut self,
        member: u16,
        config: &EndpointConfig,
        membership: Membership,
        members: &mut impl Members,
    ) -> Result<(), AttachRefusal> {
        self.check(config)?;
        let at = usize::from(member);
        if self.ports.len() <= at {
            self.ports.resize_with(at + 1, || None);
        }
        self.by_mac.insert(config.guest_mac, member);
        if let Some(plan) = config.v4 {
            self.by_v4.insert(plan.guest, member);
        }
        if let Some(plan) = config.v6
            && let Some(before) = self.by_v6.insert(plan.guest, member)
            && let Some(Some(port)) = self.ports.get_mut(usize::from(before))
        {
            // Somebody had made it up.
            port.own.retain(|&own| own != plan.guest);
        }
        self.ports[at] = Some(Port {
            mac: config.guest_mac,
            gateway_mac: config.gateway_mac,
            v4: config.v4,
            v6: config.v6,
            mtu: config.mtu,
            offloads: config.offloads,
            membership,
            linked: Vec::new(),
            own: Vec::new(),
            copies: Bucket::new(self.limits.copies),
            group_copies: Bucket::new(self.limits.group_copies),
        });
        self.present.push(member);
        self.link();
        self.announce(member, config, members);
        self.query(member, FIRST_RESPONSE, members);
        Ok(())
    }

    /// Number `member` is gone, with all that was known of it.
    pub fn detach(&mut self, member: u16) {
        let Some(port) = self.ports.get_mut(usize::from(member)).and_then(Option::take) else { return };
        self.present.retain(|&other| other != member);
        self.by_mac.remove(&port.mac);
        if let Some(plan) = port.v4 {
            self.by_v4.remove(&plan.guest);
        }
        for address in port.v6.map(|plan| plan.guest).into_iter().chain(port.own) {
            self.by_v6.remove(&address);
        }
        self.groups.forget(member);
        self.link();
    }

    /// Finds anew who is linked with whom. Names come and go with their members, so that a link holds for whoever has
    /// the name.
    fn link(&mut self) {
        if self.icc {
            return;
        }
        let mut pairs = Vec::new();
        {
            let mut named: HashMap<String, Vec<u16>> = HashMap::new();
            for &member in &self.present {
                for name in self.port(member).map_or(&[][..], |port| &port.membership.names) {
                    named.entry(name.to_lowercase()).or_default().push(member);
                }
            }
            for &member in &self.present {
                for link in self.port(member).map_or(&[][..], |port| &port.membership.links) {
                    for &other in named.get(&link.target.to_lowercase()).into_iter().flatten() {
                        if other != member {
                            pairs.extend([(member, other), (other, member)]);
                        }
                    }
                }
            }
        }
        for port in self.ports.iter_mut().flatten() {
            port.linked.clear();
        }
        for (member, other) in pairs {
            if let Some(Some(port)) = self.ports.get_mut(usize::from(member))
                && !port.linked.contains(&other)
            {
                port.linked.push(other);
            }
        }
    }

    fn port_mut(&mut self, member: u16) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(member))?.as_mut()
    }

    fn port(&self, member: u16) -> Option<&Port> {
        self.ports.get(usize::from(member))?.as_ref()
    }

    /// Whether frames go from one to the other.
    fn may_pass(&self, from: &Port, to: u16) -> bool {
        self.icc || from.linked.contains(&to)
    }

    /// One frame of a member, vnet header first. `stack` and `out` are its own. May be rewritten.
    pub fn handle_from_guest(
        &mut self,
        now: Instant,
        member: u16,
        frame: &mut [u8],
        (stack, out): (&mut Stack, &mut impl Output),
        members: &mut impl Members,
    ) {
        let way = match self.guard(now, member, frame) {
            Ok(way) => way,
            Err(reason) => return stack.count_drop(reason),
        };
        match way {
            Way::Gateway => stack.handle_from_guest(now, frame, out),
            Way::Consumed => {}
            Way::Member(to) => match self.deliver(to, frame, members) {
                Ok(()) => {}
                Err(undelivered) => {
                    stack.count_drop(undelivered.reason());
                    if let Undelivered::TooBig(mtu) = undelivered {
                        stack.refuse_too_big(mtu, &frame[IP_OFFSET..], out);
                    }
                }
            },
            Way::All => {
                let copies = self.present.len().saturating_sub(1) as u32;
                if !self.port_mut(member).is_some_and(|port| port.copies.take(now, copies)) {
                    return stack.count_drop(DropReason::RateLimited);
                }
                let mut reached = false;
                for at in 0..self.present.len() {
                    let to = self.present[at];
                    reached |= self.copy_to(member, to, frame, stack, members);
                }
                if !reached && self.present.len() > 1 {
                    stack.count_drop(DropReason::Isolated);
                }
            }
            Way::Group(group) => {
                let copies = self.groups.size(group) as u32;
                if !self.port_mut(member).is_some_and(|port| port.group_copies.take(now, copies)) {
                    return stack.count_drop(DropReason::RateLimited);
                }
                let mut reached = false;
                let mut at = 0;
                while let Some((to, until)) = self.groups.member(group, at) {
                    at += 1;
                    reached |= until > now && self.copy_to(member, to, frame, stack, members);
                }
                if !reached {
                    stack.count_drop(DropReason::Multicast);
                }
            }
        }
    }

    /// One copy of what goes to several; false if `to` is not to have it.
    fn copy_to(&mut self, from: u16, to: u16, frame: &mut [u8], stack: &mut Stack, members: &mut impl Members) -> bool {
        if to == from || !self.port(from).is_some_and(|port| self.may_pass(port, to)) {
            return false;
        }
        if let Err(undelivered) = self.deliver(to, frame, members) {
            stack.count_drop(undelivered.reason());
        }
        true
    }

    /// Writes a frame in the form that the receiver's TAP takes.
    fn deliver(&mut self, to: u16, frame: &mut [u8], members: &mut impl Members) -> Result<(), Undelivered> {
        let Some(Some(port)) = self.ports.get(usize::from(to)) else { return Err(Undelivered::NoMember) };
        let Some(mut hdr) = VnetHdr::parse(frame) else { return Err(Undelivered::Malformed) };
        let (mtu, can) = (port.mtu, port.offloads);
        if hdr.gso == Gso::None {
            if frame.len() - IP_OFFSET > usize::from(mtu) {
                return Err(Undelivered::TooBig(mtu));
            }
            if hdr.needs_csum && !can.csum && segment::complete(frame, &mut hdr).is_err() {
                return Err(Undelivered::Malformed);
            }
            members.to_member(to, frame);
            return Ok(());
        }
        let takes = match hdr.gso {
            Gso::Tcp4 => can.tso4,
            Gso::Tcp6 => can.tso6,
            Gso::Udp => can.uso,
            // Not negotiated with anybody.
            Gso::None | Gso::Unknown(_) => return Err(Undelivered::Malformed),
        };
        let Ok(largest) = segment::largest(frame, &hdr) else { return Err(Undelivered::Malformed) };
        if largest > usize::from(mtu) && frame.len() - IP_OFFSET > usize::from(mtu) {
            return Err(Undelivered::TooBig(mtu));
        }
        if takes && can.csum {
            members.to_member(to, frame);
            return Ok(());
        }
        let Self { scratch, .. } = self;
        segment::cut(frame, &hdr, can.csum, scratch, |piece| members.to_member(to, piece))
            .map_err(|_| Undelivered::Malformed)?;
        Ok(())
    }

    /// When to call [`Switch::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.groups.next_timeout()
    }

    /// Asks for groups, where some are known and it is time.
    pub fn handle_timeout(&mut self, now: Instant, members: &mut impl Members) {
        if self.groups.poll_query(now) {
            for at in 0..self.present.len() {
                self.query(self.present[at], RESPONSE, members);
            }
        }
    }

    fn query(&mut self, member: u16, response: Duration, members: &mut impl Members) {
        let Some(Some(port)) = self.ports.get(usize::from(member)) else { return };
        let own = port.gateway_mac;
        if let Some(plan) = port.v4 {
            let len = messages::igmp_query(own, plan.gateway, response, &mut self.scratch);
            members.to_member(member, &self.scratch[..len]);
        }
        if let Some(plan) = port.v6 {
            let len = messages::mld_query(own, plan.gateway_link_local, response, &mut self.scratch);
            members.to_member(member, &self.scratch[..len]);
        }
    }

    /// Whoever remembers a predecessor's MAC for the newcomer's addresses learns better.
    fn announce(&mut self, member: u16, config: &EndpointConfig, members: &mut impl Members) {
        let mac = config.guest_mac;
        for at in 0..self.present.len() {
            let to = self.present[at];
            if to == member || !self.port(member).is_some_and(|port| self.may_pass(port, to)) {
                continue;
            }
            if let Some(plan) = config.v4 {
                let len = messages::arp_announcement(mac, plan.guest, &mut self.scratch);
                members.to_member(to, &self.scratch[..len]);
            }
            if let Some(plan) = config.v6
                && let Some(len) = messages::ndp_announcement(mac, plan.guest, &mut self.scratch)
            {
                members.to_member(to, &self.scratch[..len]);
            }
        }
    }

    /// Checks a frame and says where it goes.
    fn guard(&mut self, now: Instant, member: u16, frame: &[u8]) -> Result<Way, DropReason> {
        if frame.len() < IP_OFFSET {
            return Err(DropReason::Truncated);
        }
        let Some(Some(port)) = self.ports.get(usize::from(member)) else { return Err(DropReason::NoMember) };
        let eth = &frame[VNET_HDR_LEN..];
        if eth[6..12] != port.mac.0 {
            return Err(DropReason::SpoofedSource);
        }
        let seen = match [eth[12], eth[13]] {
            [0x08, 0x00] => guard::ip_v4(port, frame)?,
            [0x86, 0xdd] => guard::ip_v6(port, frame)?,
            [0x08, 0x06] => guard::arp(port, eth)?,
            _ => return Err(DropReason::EtherType),
        };
        self.claim_all(member, &seen)?;
        let kind = seen.kind;
        let Some(Some(port)) = self.ports.get(usize::from(member)) else { return Err(DropReason::NoMember) };
        let mut to = [0; 6];
        to.copy_from_slice(&eth[..6]);
        if to[0] & 1 != 0 {
            return self.many(now, member, kind, frame);
        }
        if to == port.gateway_mac.0 {
            return Ok(Way::Gateway);
        }
        match self.by_mac.get(&Mac(to)) {
            Some(&other) if other != member => {
                if self.may_pass(port, other) {
                    guard::between_members(kind, frame)?;
                    Ok(Way::Member(other))
                } else {
                    Err(DropReason::Isolated)
                }
            }
            _ => Err(DropReason::NoMember),
        }
    }

    /// Where a frame to a group's MAC goes.
    fn many(&mut self, now: Instant, member: u16, kind: Kind, frame: &[u8]) -> Result<Way, DropReason> {
        let Some(Some(port)) = self.ports.get(usize::from(member)) else { return Err(DropReason::NoMember) };
        match kind {
            Kind::ArpRequest(target) => {
                if port.v4.is_some_and(|plan| plan.gateway == target || plan.dns == target) {
                    return Ok(Way::Gateway);
                }
                if port.v4.is_some_and(|plan| plan.guest == target) {
                    return Ok(Way::All);
                }
                self.to_owner(port, member, self.by_v4.get(&target))
            }
            Kind::ArpReply => Ok(Way::All),
            Kind::Solicitation(target) => {
                let ours = |plan: PlanV6| [plan.gateway, plan.gateway_link_local, plan.dns].contains(&target);
                if port.v6.is_some_and(ours) {
                    return Ok(Way::Gateway);
                }
                match self.by_v6.get(&target) {
                    Some(&owner) if owner == member => Ok(Way::All),
                    // A link-local address that its owner has not used yet.
                    None if target.is_unicast_link_local() => Ok(Way::All),
                    owner => self.to_owner(port, member, owner),
                }
            }
            Kind::Gateways => Ok(Way::Gateway),
            Kind::Reports(at) => {
                self.take_reports(now, member, frame, at)?;
                Ok(Way::Consumed)
            }
            Kind::Everybody => Ok(Way::All),
            Kind::Group(group) => Ok(Way::Group(group)),
            Kind::Plain => Err(DropReason::Malformed),
        }
    }

    fn to_owner(&self, port: &Port, member: u16, owner: Option<&u16>) -> Result<Way, DropReason> {
        match owner {
            Some(&owner) if owner != member => {
                if self.may_pass(port, owner) {
                    Ok(Way::Member(owner))
                } else {
                    Err(DropReason::Isolated)
                }
            }
            _ => Err(DropReason::NoMember),
        }
    }
}

/// Why a frame did not get to a member's TAP.
#[derive(Clone, Copy)]
enum Undelivered {
    /// The packet is larger than this MTU of the receiver's.
    TooBig(u16),
    /// The vnet header does not fit its frame, which a kernel makes none of.
    Malformed,
    /// The member is gone.
    NoMember,
}

impl Undelivered {
    /// What is counted.
    fn reason(self) -> DropReason {
        match self {
            Self::TooBig(_) => DropReason::TooBig,
            Self::Malformed => DropReason::Malformed,
            Self::NoMember => DropReason::NoMember,
        }
    }
}
