//! DHCPv4 server with one address to give: the guest's (RFC 2131, options of RFC 2132). Or, on slirp4netns's segment, with
//! a range of them ([`pool`]).
//!
//! For guests that ask rather than being configured: virtual machines, images that run `udhcpc` or `dhclient` by habit.
//! The UDP payload of a datagram to port 67 goes in, the payload of the answer and where it goes come out. The lease is
//! no lease of anybody's: the address belongs to the endpoint as long as it lives, so nothing is stored and every answer
//! depends on the request alone. With a range, "the guest's address" below is the one that the pool has for the client's
//! MAC (none: silence); RELEASE and DECLINE then matter; a BOOTP request without a message type (RFC 951) is answered with
//! an address too; and the answers carry `siaddr`, but neither MTU nor names, as libslirp's.
//!
//! | from the guest | answer |
//! |---|---|
//! | DISCOVER | OFFER of the guest's address |
//! | REQUEST that names another server | silence: the guest chose it |
//! | REQUEST for the guest's address (selecting, rebooting, renewing, rebinding) | ACK |
//! | REQUEST for any other address | NAK, broadcast: we are the only authority on this link |
//! | INFORM | ACK without lease or address |
//! | DECLINE, RELEASE | silence, counted |
//!
//! The client identifier is echoed byte for byte (RFC 6842), which is why the options are read raw: smoltcp's `DhcpRepr`
//! knows only identifiers shaped like a MAC. Option overload and relay agents (`giaddr`) are not served.

pub mod pool;

use std::net::Ipv4Addr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpOptionWriter, DhcpPacket, EthernetAddress, checksum,
};

use super::neighbour::own_mac;
use crate::network::config::{EndpointConfig, Mac};
use crate::wire::dns_name;
use pool::Pool;

/// Lease time, one day; renewal after half and rebinding after seven eighths of it (RFC 2131 §4.4.5). Seconds.
const LEASE: u32 = 86_400;
const RENEW: u32 = LEASE / 2;
const REBIND: u32 = LEASE / 8 * 7;

/// Fixed part of a message with the magic cookie (RFC 2131 §2).
const FIXED: usize = 240;
/// Shortest message that BOOTP relays and some clients take (RFC 1542 §2.1).
const MIN_MESSAGE: usize = 300;
/// Longest message to a client that does not say what it takes: an IP datagram of 576 bytes (RFC 2131 §2).
const DEFAULT_MAX_DATAGRAM: usize = 576;
/// IPv4 and UDP header, which "maximum DHCP message size" counts too (as ISC dhcpd reads RFC 2132 §9.10).
const HEADERS: usize = 28;
/// A message never grows past what fits an Ethernet frame, whatever the client says.
const MAX_DATAGRAM: usize = 1500;

/// Ethernet, IPv4 and UDP headers of [`DhcpServer::handle_frame`].
const FRAME_HEADERS: usize = 14 + 20 + 8;
const PROTOCOL_UDP: u8 = 17;
/// Linux's default (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
const SERVER_PORT: u8 = 67;
const CLIENT_PORT: u8 = 68;

/// Stands for "no message type", which only BOOTP has; never on the wire.
const BOOTP: DhcpMessageType = DhcpMessageType::Unknown(255);

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_HOSTNAME: u8 = 12;
const OPTION_MTU: u8 = 26;
const OPTION_BROADCAST: u8 = 28;
const OPTION_REQUESTED: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_MAX_SIZE: u8 = 57;
const OPTION_RENEW: u8 = 58;
const OPTION_REBIND: u8 = 59;
const OPTION_CLIENT_ID: u8 = 61;
/// Domain search (RFC 3397). Names are written uncompressed, which its §2 allows.
const OPTION_SEARCH: u8 = 119;
const OPTION_END: u8 = 255;

/// Where an answer goes: to port 68, with the server's address and port 67 as its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DhcpReply {
    /// Length of the UDP payload in the caller's buffer.
    pub len: usize,
    /// To the link-layer broadcast address; else to the MAC that asked.
    pub broadcast: bool,
    /// IPv4 destination; 255.255.255.255 for broadcasts.
    pub dst_ip: Ipv4Addr,
}

/// What guests said that needs no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DhcpStats {
    /// DHCPDECLINE: the guest believes that somebody else has its address.
    pub declined: u64,
    /// DHCPRELEASE.
    pub released: u64,
    /// What was no request of a client, or none that can be answered.
    pub ignored: u64,
}

/// The server of one endpoint.
#[derive(Debug)]
pub struct DhcpServer {
    mac: Mac,
    server: Ipv4Addr,
    guest: Ipv4Addr,
    mask: Ipv4Addr,
    broadcast: Ipv4Addr,
    dns: Ipv4Addr,
    mtu: u16,
    hostname: Vec<u8>,
    search: Vec<u8>,
    /// Where there is more than one address to give.
    pool: Option<Pool>,
    leased: Option<(Ipv4Addr, Mac)>,
    stats: DhcpStats,
}

/// The part of a request that decides the answer.
struct Request<'a> {
    kind: DhcpMessageType,
    client_ip: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    max_datagram: usize,
}

impl DhcpServer {
    /// The server for an endpoint; None where it has no IPv4.
    pub fn new(config: &EndpointConfig) -> Option<Self> {
        let plan = config.v4?;
        let mut search = Vec::new();
        for domain in &config.dns_search {
            dns_name::append(&mut search, domain);
        }
        // RFC 2132 §3.14: one option, no terminator. A name that does not fit is of no use cut.
        let hostname = if config.hostname.len() <= 255 { config.hostname.clone().into_bytes() } else { Vec::new() };
        Some(Self {
            mac: own_mac(config, Some(plan.gateway.into())),
            server: plan.gateway,
            guest: plan.guest,
            mask: plan.subnet.netmask(),
            broadcast: plan.subnet.broadcast(),
            dns: plan.dns,
            mtu: config.mtu,
            hostname,
            search,
            pool: config.slirp.map(|slirp| Pool::new(slirp.dhcp)),
            leased: None,
            stats: DhcpStats::default(),
        })
    }

    /// What needed no answer so far.
    pub fn stats(&self) -> DhcpStats {
        self.stats
    }

    /// Takes the UDP payload of a datagram to port 67. Some: the answer is in `out`. None: there is none, be it by the
    /// table above, because the payload is no DHCP request, or because `out` is too short (1472 bytes always do).
    pub fn handle(&mut self, now: Instant, udp_payload: &[u8], out: &mut [u8]) -> Option<DhcpReply> {
        let reply = self.answer(now, udp_payload, out);
        if reply == Answer::Ignored {
            self.stats.ignored += 1;
        }
        match reply {
            Answer::Send(reply) => Some(reply),
            Answer::Silence | Answer::Ignored => None,
        }
    }

    /// Like [`Self::handle`], but a whole Ethernet frame is written. Returns its length.
    pub fn handle_frame(&mut self, now: Instant, udp_payload: &[u8], out: &mut [u8]) -> Option<usize> {
        let (headers, payload) = out.split_at_mut_checked(FRAME_HEADERS)?;
        let reply = self.handle(now, udp_payload, payload)?;
        let udp_length = 8 + reply.len;
        // `chaddr`, which the answer echoes.
        headers[..6].copy_from_slice(if reply.broadcast { &[0xff; 6] } else { &payload[28..34] });
        headers[6..12].copy_from_slice(&self.mac.0);
        headers[12..14].copy_from_slice(&[8, 0]);
        let (ip, udp) = headers[14..].split_at_mut(20);
        // Identification 0 and "don't fragment": an atomic datagram (RFC 6864 §4.1).
        ip[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, PROTOCOL_UDP]);
        ip[2..4].copy_from_slice(&((20 + udp_length) as u16).to_be_bytes());
        ip[10..12].fill(0);
        ip[12..16].copy_from_slice(&self.server.octets());
        ip[16..20].copy_from_slice(&reply.dst_ip.octets());
        let sum = !checksum::data(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        udp.copy_from_slice(&[0, SERVER_PORT, 0, CLIENT_PORT, 0, 0, 0, 0]);
        udp[4..6].copy_from_slice(&(udp_length as u16).to_be_bytes());
        let pseudo =
            checksum::pseudo_header_v4(&self.server, &reply.dst_ip, smoltcp::wire::IpProtocol::Udp, udp_length as u32);
        let sum = !checksum::combine(&[pseudo, checksum::data(udp), checksum::data(&payload[..reply.len])]);
        // Zero means "no checksum" (RFC 768); its other form is all ones.
        udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
        Some(FRAME_HEADERS + reply.len)
    }

    /// The lease that the last answer granted, once: who has which address now.
    pub fn take_leased(&mut self) -> Option<(Ipv4Addr, Mac)> {
        self.leased.take()
    }

    fn answer(&mut self, now: Instant, udp_payload: &[u8], out: &mut [u8]) -> Answer {
        let Ok(packet) = DhcpPacket::new_checked(udp_payload) else { return Answer::Ignored };
        let Some(request) = parse(&packet, self.pool.is_some()) else { return Answer::Ignored };
        let mac = packet.client_hardware_address().0;
        let named = request.requested.or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()));
        let (kind, given) = match request.kind {
            DhcpMessageType::Discover | BOOTP => match self.offer(now, mac, named) {
                Some(address) if request.kind == BOOTP => {
                    self.bind(now, mac, address);
                    (BOOTP, address)
                }
                Some(address) => (DhcpMessageType::Offer, address),
                // The pool is empty.
                None => return Answer::Silence,
            },
            DhcpMessageType::Request => match (request.server, named) {
                (Some(server), _) if server != self.server => {
                    if let Some(pool) = &mut self.pool {
                        pool.withdraw(mac);
                    }
                    return Answer::Silence;
                }
                (_, Some(address)) if self.bind(now, mac, address) => (DhcpMessageType::Ack, address),
                (_, Some(address)) => (DhcpMessageType::Nak, address),
                // It asks for nothing.
                (_, None) => return Answer::Ignored,
            },
            // The answer goes to the address that the client says it has: that must be one.
            DhcpMessageType::Inform if !self.on_link(request.client_ip) => return Answer::Ignored,
            DhcpMessageType::Inform => (DhcpMessageType::Ack, request.client_ip),
            DhcpMessageType::Decline => {
                self.stats.declined += 1;
                if let Some((pool, address)) = self.pool.as_mut().zip(request.requested) {
                    pool.decline(now, mac, address);
                }
                return Answer::Silence;
            }
            DhcpMessageType::Release => {
                self.stats.released += 1;
                if let Some(pool) = &mut self.pool {
                    pool.release(mac, request.client_ip);
                }
                return Answer::Silence;
            }
            _ => return Answer::Ignored,
        };
        // RFC 2131 §4.1: a NAK is broadcast; else to the address that the client has, else as its flag says.
        let (broadcast, dst_ip) = if kind == DhcpMessageType::Nak {
            (true, Ipv4Addr::BROADCAST)
        } else if !request.client_ip.is_unspecified() {
            (false, given)
        } else if packet.flags().contains(DhcpFlags::BROADCAST) {
            (true, Ipv4Addr::BROADCAST)
        } else {
            (false, given)
        };
        match self.write(&packet, &request, kind, given, out) {
            Some(len) => Answer::Send(DhcpReply { len, broadcast, dst_ip }),
            None => Answer::Ignored,
        }
    }

    fn offer(&mut self, now: Instant, mac: [u8; 6], wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        match &mut self.pool {
            Some(pool) => pool.offer(now, mac, wanted),
            None => Some(self.guest),
        }
    }

    fn bind(&mut self, now: Instant, mac: [u8; 6], address: Ipv4Addr) -> bool {
        let Some(pool) = &mut self.pool else { return address == self.guest };
        let bound = pool.bind(now, mac, address, Duration::from_secs(u64::from(LEASE)));
        if bound {
            self.leased = Some((address, Mac(mac)));
        }
        bound
    }

    /// An address that a host of this link may have.
    fn on_link(&self, address: Ipv4Addr) -> bool {
        let (address, mask) = (address.to_bits(), self.mask.to_bits());
        address & mask == self.guest.to_bits() & mask
            && address != self.broadcast.to_bits()
            && address != self.server.to_bits()
            && address & !mask != 0
    }

    fn write(
        &self,
        packet: &DhcpPacket<&[u8]>,
        request: &Request<'_>,
        kind: DhcpMessageType,
        given: Ipv4Addr,
        out: &mut [u8],
    ) -> Option<usize> {
        let room = out.len().min(request.max_datagram - HEADERS);
        let out = out.get_mut(..room)?;
        if room < MIN_MESSAGE {
            return None;
        }
        out.fill(0);
        let mut reply = DhcpPacket::new_unchecked(&mut out[..]);
        reply.set_opcode(DhcpOpCode::Reply);
        reply.set_hardware_type(packet.hardware_type());
        reply.set_hardware_len(packet.hardware_len());
        reply.set_transaction_id(packet.transaction_id());
        reply.set_flags(packet.flags());
        reply.set_client_hardware_address(packet.client_hardware_address());
        reply.set_magic_number(0x6382_5363);
        let inform = request.kind == DhcpMessageType::Inform;
        if kind != DhcpMessageType::Nak {
            // RFC 2131 table 3: the client's own word comes back in an ACK.
            if kind == DhcpMessageType::Ack {
                reply.set_client_ip(request.client_ip);
            }
            if self.pool.is_some() {
                reply.set_server_ip(self.server);
            }
            if !inform {
                reply.set_your_ip(given);
            }
        }

        // The last byte stays for the end mark.
        let options = &mut out[FIXED..room - 1];
        let total = options.len();
        let mut left = Options { left: total, writer: DhcpOptionWriter::new(options) };
        let bootp = kind == BOOTP;
        if !bootp {
            // Without these three an answer is worth nothing.
            left.put(OPTION_TYPE, &[kind.into()])?;
            left.put(OPTION_SERVER, &self.server.octets())?;
        }
        if let Some(id) = request.client_id {
            left.put(OPTION_CLIENT_ID, id)?;
        }
        if kind != DhcpMessageType::Nak {
            if !inform && !bootp {
                left.put(OPTION_LEASE, &LEASE.to_be_bytes())?;
                left.put(OPTION_RENEW, &RENEW.to_be_bytes())?;
                left.put(OPTION_REBIND, &REBIND.to_be_bytes())?;
            }
            left.put(OPTION_MASK, &self.mask.octets())?;
            left.put(OPTION_ROUTER, &self.server.octets())?;
            left.put(OPTION_DNS, &self.dns.octets())?;
        }
        if kind != DhcpMessageType::Nak && self.pool.is_none() {
            // A guest can do without the rest where there is no room.
            let _ = left.put(OPTION_MTU, &self.mtu.to_be_bytes());
            let _ = left.put(OPTION_BROADCAST, &self.broadcast.octets());
            if !self.hostname.is_empty() {
                let _ = left.put(OPTION_HOSTNAME, &self.hostname);
            }
            // Longer values go on in another option of the same number (RFC 3396); half a list would be cut inside a
            // name, so all or nothing.
            if !self.search.is_empty() && self.search.len() + 2 * self.search.len().div_ceil(255) <= left.left {
                for part in self.search.chunks(255) {
                    left.put(OPTION_SEARCH, part)?;
                }
            }
        }
        let end = FIXED + total - left.left;
        out[end] = OPTION_END;
        Some((end + 1).max(MIN_MESSAGE))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Send(DhcpReply),
    Silence,
    Ignored,
}

/// An option writer that knows what is left.
struct Options<'a> {
    writer: DhcpOptionWriter<'a>,
    left: usize,
}

impl Options<'_> {
    fn put(&mut self, kind: u8, data: &[u8]) -> Option<()> {
        self.writer.emit(DhcpOption { kind, data }).ok()?;
        self.left -= 2 + data.len();
        Some(())
    }
}

/// None for what is no request of an Ethernet client on this link.
/// `bootp`: what has no DHCP options is a request too.
fn parse<'a>(packet: &'a DhcpPacket<&'a [u8]>, bootp: bool) -> Option<Request<'a>> {
    let options = packet.magic_number() == 0x6382_5363;
    if packet.opcode() != DhcpOpCode::Request
        || !(options || bootp)
        || u16::from(packet.hardware_type()) != 1
        || packet.hardware_len() != 6
        || !packet.relay_agent_ip().is_unspecified()
        || !unicast(packet.client_hardware_address())
    {
        return None;
    }
    let mut request = Request {
        kind: if bootp { BOOTP } else { DhcpMessageType::Unknown(0) },
        client_ip: packet.client_ip(),
        requested: None,
        server: None,
        client_id: None,
        max_datagram: DEFAULT_MAX_DATAGRAM,
    };
    let address = |data: &[u8]| <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
    if !options {
        return Some(request);
    }
    for option in packet.options() {
        match (option.kind, option.data) {
            (OPTION_TYPE, &[kind]) if DhcpMessageType::from(kind) == BOOTP => return None,
            (OPTION_TYPE, &[kind]) => request.kind = kind.into(),
            (OPTION_REQUESTED, data) => request.requested = Some(address(data)?),
            (OPTION_SERVER, data) => request.server = Some(address(data)?),
            // RFC 2132 §9.14: at least two bytes; what is shorter is echoed all the same, it is the client's.
            (OPTION_CLIENT_ID, data) => request.client_id = Some(data),
            (OPTION_MAX_SIZE, &[a, b]) => {
                let said = usize::from(u16::from_be_bytes([a, b]));
                request.max_datagram = said.clamp(DEFAULT_MAX_DATAGRAM, MAX_DATAGRAM);
            }
            _ => {}
        }
    }
    Some(request)
}

fn unicast(mac: EthernetAddress) -> bool {
    mac.as_bytes()[0] & 1 == 0
}

#[cfg(test)]
mod tests;
