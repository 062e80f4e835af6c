//! Router advertisements for one endpoint: prefix, MTU, default route and name servers for a guest that configures
//! itself (RFC 4861 §6.2, RFC 8106).
//!
//! A router solicitation is answered at once, unicast where it names its sender (§6.2.6 allows it, and a link with one
//! host needs no random delay), else by multicast, no closer than [`MIN_DELAY`] after the last one. Unsolicited ones
//! follow the timing of §6.2.4: three soon after start, then every 200 to 600 s at random.
//!
//! The message is built once; each sending copies it and fills in addresses and checksum. The prefix is marked on-link
//! and autonomous, so a guest may form addresses of its own in it besides the one that it is given.
//! Not done: RFC 4191 route information, DHCPv6 (the M and O flags are clear), a last advertisement with lifetime 0
//! (the link goes down with us).

use std::net::Ipv6Addr;

use smoltcp::time::{Duration, Instant};

use super::neighbour::own_mac;
use super::verdict::DropReason;
use crate::network::config::{EndpointConfig, Mac};
use crate::wire::dns_name;
use crate::wire::ndisc;

/// MaxRtrAdvInterval, default of RFC 4861 §6.2.1.
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// MinRtrAdvInterval, a third of it (§6.2.1: 0.33 × MaxRtrAdvInterval).
const MIN_INTERVAL: Duration = Duration::from_secs(200);
/// MAX_INITIAL_RTR_ADVERTISEMENTS (§10).
const INITIAL_COUNT: u8 = 3;
/// MAX_INITIAL_RTR_ADVERT_INTERVAL (§10).
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// MIN_DELAY_BETWEEN_RAS (§10): between two multicast advertisements.
pub const MIN_DELAY: Duration = Duration::from_secs(3);
/// AdvDefaultLifetime, 3 × MaxRtrAdvInterval (§6.2.1); also of name servers and search list (RFC 8106 §5.1). Seconds.
const LIFETIME: u16 = 1800;
/// AdvValidLifetime, 30 days (§6.2.1). Seconds.
const PREFIX_VALID: u32 = 2_592_000;
/// AdvPreferredLifetime, 7 days (§6.2.1). Seconds.
const PREFIX_PREFERRED: u32 = 604_800;
/// Valid and preferred lifetime on slirp4netns's segment, one day and four hours: libslirp's, which its guests know.
/// That segment's advertisements name no MTU, so that the guest's interface keeps the one it was given.
const SLIRP_PREFIX: (u32, u32) = (86_400, 14_400);
/// AdvCurHopLimit: the default of hosts (RFC 1700).
const CUR_HOP_LIMIT: u8 = 64;
/// On-link and autonomous flags of the prefix information (§4.6.2).
const PREFIX_FLAGS: u8 = 0xc0;
/// Advertisements must fit the smallest IPv6 MTU; the search list is cut to what is left.
const MAX_MESSAGE: usize = 1280 - 40;

/// The advertiser of one endpoint.
#[derive(Debug)]
pub struct RouterAdvertiser {
    mac: Mac,
    source: Ipv6Addr,
    message: Vec<u8>,
    random: u64,
    initial_left: u8,
    next: Instant,
    last_multicast: Option<Instant>,
}

impl RouterAdvertiser {
    /// The advertiser for an endpoint; None where it has no IPv6. `seed` spreads the periodic advertisements. The first
    /// one is due at once.
    pub fn new(config: &EndpointConfig, seed: u64, now: Instant) -> Option<Self> {
        let plan = config.v6?;
        let mut m = vec![ndisc::ROUTER_ADVERTISEMENT, 0, 0, 0, CUR_HOP_LIMIT, 0];
        m.extend(LIFETIME.to_be_bytes());
        m.extend([0; 8]); // reachable and retransmission time: unspecified by this router
        m.extend([ndisc::SOURCE_LINK_LAYER, 1]);
        let mac = own_mac(config, Some(plan.gateway_link_local.into()));
        m.extend(mac.0);
        let (valid, preferred) = match config.slirp {
            Some(_) => SLIRP_PREFIX,
            None => (PREFIX_VALID, PREFIX_PREFERRED),
        };
        if config.slirp.is_none() {
            // RFC 4861 §4.6.4; IPv6 has no smaller MTU than 1280.
            m.extend([5, 1, 0, 0]);
            m.extend(u32::from(config.mtu.max(1280)).to_be_bytes());
        }
        // RFC 4861 §4.6.2.
        m.extend([3, 4, plan.subnet.prefix_len(), PREFIX_FLAGS]);
        m.extend(valid.to_be_bytes());
        m.extend(preferred.to_be_bytes());
        m.extend([0; 4]);
        m.extend(plan.subnet.network().octets());
        if config.slirp.is_none_or(|slirp| slirp.dns) {
            // Recursive DNS server, RFC 8106 §5.1.
            m.extend([25, 3, 0, 0]);
            m.extend(u32::from(LIFETIME).to_be_bytes());
            m.extend(plan.dns.octets());
            search_list(&mut m, &config.dns_search);
        }
        Some(Self {
            mac,
            source: plan.gateway_link_local,
            message: m,
            random: seed,
            initial_left: INITIAL_COUNT,
            next: now,
            last_multicast: None,
        })
    }

    /// Takes an Ethernet frame with ICMPv6 in it. Ok(Some): an advertisement of that length is in `out`, to be sent now.
    /// Ok(None): it was no router solicitation, or its answer waits for [`Self::next_timeout`].
    pub fn handle_solicitation(
        &mut self,
        now: Instant,
        frame: &[u8],
        out: &mut [u8],
    ) -> Result<Option<usize>, DropReason> {
        let Some(message) = ndisc::parse(frame)? else { return Ok(None) };
        if message.kind != ndisc::ROUTER_SOLICITATION {
            return Ok(None);
        }
        let asker = message.link_layer(ndisc::SOURCE_LINK_LAYER);
        if message.source.is_unspecified() {
            if asker.is_some() {
                // RFC 4861 §6.1.1.
                return Err(DropReason::Malformed);
            }
            let earliest = self.last_multicast.map_or(now, |last| last + MIN_DELAY);
            if earliest <= now {
                return Ok(self.multicast(now, out));
            }
            self.next = self.next.min(earliest);
            return Ok(None);
        }
        let mac = asker.unwrap_or(message.ethernet_source);
        Ok(self.emit(out, mac, message.source))
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    /// Writes the unsolicited advertisement that is due, if one is, and returns its length.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if now < self.next {
            return None;
        }
        self.multicast(now, out)
    }

    fn multicast(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let span = (MAX_INTERVAL - MIN_INTERVAL).total_micros();
        let mut delay = MIN_INTERVAL + Duration::from_micros(self.random() % (span + 1));
        self.initial_left = self.initial_left.saturating_sub(1);
        if self.initial_left > 0 {
            delay = delay.min(INITIAL_INTERVAL);
        }
        self.next = now + delay;
        self.last_multicast = Some(now);
        // The MAC is that of the group.
        self.emit(out, [0; 6], ndisc::ALL_NODES)
    }

    fn emit(&self, out: &mut [u8], mac: [u8; 6], destination: Ipv6Addr) -> Option<usize> {
        out.get_mut(ndisc::MESSAGE..ndisc::MESSAGE + self.message.len())?.copy_from_slice(&self.message);
        ndisc::seal(out, self.message.len(), self.mac.0, mac, self.source, destination)
    }

    /// SplitMix64: enough to keep routers out of step, which is all that it is for.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Appends the DNS search list option (RFC 8106 §5.2) with the domains that are valid and fit; nothing without any.
fn search_list(message: &mut Vec<u8>, domains: &[String]) {
    let start = message.len();
    message.extend([31, 0, 0, 0]);
    message.extend(u32::from(LIFETIME).to_be_bytes());
    let names = message.len();
    for domain in domains {
        let before = message.len();
        if !dns_name::append(message, domain) || message.len().next_multiple_of(8) > MAX_MESSAGE / 8 * 8 {
            message.truncate(before);
        }
    }
    if message.len() == names {
        message.truncate(start);
        return;
    }
    let padded = (message.len() - start).next_multiple_of(8);
    message.resize(start + padded, 0);
    message[start + 1] = (padded / 8) as u8;
}

#[cfg(test)]
mod tests;
