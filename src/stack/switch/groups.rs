//! Who wants which multicast group: membership reports of IGMP and MLD, listened to in passing (RFC 4541).
//!
//! **Joining and leaving.** A report puts the member into the group, a leave takes it out at once: behind a port is one
//! host, so nobody else there could still want it (RFC 4541, section 2.1.1, "fast leave"). IGMPv3 and MLDv2 name sources;
//! a report that wants any source is a join, since hosts filter for themselves.
//!
//! **Forgetting.** A membership that nobody renews ends after [`MEMBERSHIP`]. Reports are renewed only when somebody
//! asks, and a segment without a multicast router has nobody who does; so while any group is known a general query
//! goes out every [`QUERY_INTERVAL`] ([`Groups::poll_query`]), and one to each member that comes, because a member of a
//! network whose process was started anew has reported long ago. On a network without groups nothing is ever sent.
//!
//! **Not kept:** 224.0.0.0/24, which goes to everybody (RFC 4541, section 2.1.2), ff02::1, for which there are no
//! reports (RFC 3810, section 6), and solicited-node groups: the switch knows whose addresses they are for.
//!
//! **Limits.** Groups of one member and memberships in all ([`GroupLimits`]); what is beyond is refused and counted, and
//! its datagrams do not arrive.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

/// Between two general queries (RFC 3376, section 8.2; RFC 3810, section 9.2).
pub const QUERY_INTERVAL: Duration = Duration::from_secs(125);
/// How long hosts may take to answer one (RFC 3376, section 8.3; RFC 3810, section 9.3).
pub const RESPONSE: Duration = Duration::from_secs(10);
/// How long a member that has just come may take: nothing is delivered to it until then.
pub const FIRST_RESPONSE: Duration = Duration::from_millis(500);
/// Group Membership Interval, Multicast Address Listening Interval: robustness 2 × the query interval + the response
/// interval (RFC 3376, section 8.4; RFC 3810, section 9.4).
pub const MEMBERSHIP: Duration = Duration::from_secs(260);

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct GroupLimits {
    /// Groups of one member.
    pub per_member: usize,
    /// Memberships in all.
    pub all: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        // A socket of Linux joins at most 20 groups (igmp_max_memberships), and programs that join have few sockets.
        Self { per_member: 64, all: 4096 }
    }
}

/// No room for one more membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The table.
#[derive(Debug)]
pub struct Groups {
    joined: HashMap<IpAddr, Vec<(u16, Instant)>, FixedState>,
    count: usize,
    /// Groups of each member.
    own: HashMap<u16, usize, FixedState>,
    limits: GroupLimits,
    next_query: Option<Instant>,
}

/// What one message says of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The sender wants it.
    Join(IpAddr),
    /// The sender does not want it any more.
    Leave(IpAddr),
}

impl Groups {
    /// Nobody has joined anything. `seed`: a group's place in the table shall not be for guests to choose.
    pub fn new(limits: GroupLimits, seed: u64) -> Self {
        let state = || FixedState::with_seed(seed);
        let (joined, own) = (HashMap::with_hasher(state()), HashMap::with_hasher(state()));
        Self { joined, count: 0, own, limits, next_query: None }
    }

    /// Memberships.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody has joined anything.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A member reported.
    pub fn handle_report(&mut self, now: Instant, member: u16, report: Report) -> Result<(), Full> {
        match report {
            Report::Join(group) if is_kept(group) => self.join(now, member, group),
            Report::Join(_) => Ok(()),
            Report::Leave(group) => {
                self.leave(member, group);
                Ok(())
            }
        }
    }

    fn join(&mut self, now: Instant, member: u16, group: IpAddr) -> Result<(), Full> {
        let until = now + MEMBERSHIP;
        if let Some(place) = self.joined.get_mut(&group).and_then(|all| all.iter_mut().find(|(who, _)| *who == member))
        {
            place.1 = until;
            return Ok(());
        }
        let own = self.own.entry(member).or_default();
        if self.count >= self.limits.all || *own >= self.limits.per_member {
            return Err(Full);
        }
        *own += 1;
        self.joined.entry(group).or_default().push((member, until));
        self.count += 1;
        self.next_query.get_or_insert(now + QUERY_INTERVAL);
        Ok(())
    }

    fn leave(&mut self, member: u16, group: IpAddr) {
        if let Some(all) = self.joined.get_mut(&group)
            && let Some(at) = all.iter().position(|&(who, _)| who == member)
        {
            all.swap_remove(at);
            self.count -= 1;
            if let Some(own) = self.own.get_mut(&member) {
                *own -= 1;
            }
            if all.is_empty() {
                self.joined.remove(&group);
            }
        }
    }

    /// A member is gone.
    pub fn forget(&mut self, member: u16) {
        self.retain(|&(who, _)| who != member);
    }

    fn retain(&mut self, keep: impl Fn(&(u16, Instant)) -> bool) {
        self.joined.retain(|_, all| {
            all.retain(&keep);
            !all.is_empty()
        });
        self.count = self.joined.values().map(Vec::len).sum();
        self.own.clear();
        for &(who, _) in self.joined.values().flatten() {
            *self.own.entry(who).or_default() += 1;
        }
        if self.count == 0 {
            self.next_query = None;
        }
    }

    /// How many are in a group.
    pub fn size(&self, group: IpAddr) -> usize {
        self.joined.get(&group).map_or(0, Vec::len)
    }

    /// Who is in a group, with the time until which that holds. The place `at`, so that the caller may act in between.
    pub fn member(&self, group: IpAddr, at: usize) -> Option<(u16, Instant)> {
        self.joined.get(&group)?.get(at).copied()
    }

    /// When to call [`Groups::poll_query`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next_query
    }

    /// True if everybody is to be asked now. Forgets what was not renewed.
    pub fn poll_query(&mut self, now: Instant) -> bool {
        if self.next_query.is_none_or(|at| at > now) {
            return false;
        }
        self.retain(|&(_, until)| until > now);
        if self.count > 0 {
            self.next_query = Some(now + QUERY_INTERVAL);
        }
        self.count > 0
    }
}

/// Whether membership of a group means anything: see the module.
fn is_kept(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.is_multicast() && !is_local_control(group),
        IpAddr::V6(group) => {
            group.is_multicast() && group.octets()[1] & 0x0f > 1 && group != ALL_NODES && !is_solicited_node(group)
        }
    }
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// 224.0.0.0/24, the Local Network Control Block (RFC 5771, section 4).
pub fn is_local_control(group: Ipv4Addr) -> bool {
    group.octets()[..3] == [224, 0, 0]
}

/// ff02::1:ff00:0/104 (RFC 4291, section 2.7.1).
pub fn is_solicited_node(group: Ipv6Addr) -> bool {
    group.octets()[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

/// Group records of one report that are looked at.
const MAX_RECORDS: usize = 64;

/// What an IGMP message says. None: it is none that a member may send (a query, or garbage).
pub fn read_igmp(message: &[u8], mut each: impl FnMut(Report)) -> Option<()> {
    match message.first()? {
        // Version 1 and 2 (RFC 2236, section 2).
        0x12 | 0x16 => each(Report::Join(address::<4>(message, 4)?)),
        0x17 => each(Report::Leave(address::<4>(message, 4)?)),
        // Version 3 (RFC 3376, section 4.2).
        0x22 => records::<4>(message, &mut each)?,
        _ => return None,
    }
    Some(())
}

/// What an MLD message says; the same.
pub fn read_mld(message: &[u8], mut each: impl FnMut(Report)) -> Option<()> {
    match message.first()? {
        // Version 1 (RFC 2710, section 3).
        131 => each(Report::Join(address::<16>(message, 8)?)),
        132 => each(Report::Leave(address::<16>(message, 8)?)),
        // Version 2 (RFC 3810, section 5.2).
        143 => records::<16>(message, &mut each)?,
        _ => return None,
    }
    Some(())
}

/// The address of `N` bytes there.
fn address<const N: usize>(message: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    Some(IpAddr::from(<[u8; N]>::try_from(message.get(at..at + N)?).ok()?))
}

/// Every group record of a report: but for the length of its addresses the same in both (RFC 3376, section 4.2; RFC 3810,
/// section 5.2).
fn records<const N: usize>(message: &[u8], each: &mut impl FnMut(Report)) -> Option<()>
where
    IpAddr: From<[u8; N]>,
{
    let count = usize::from(u16::from_be_bytes([*message.get(6)?, *message.get(7)?]));
    let mut at = 8;
    for _ in 0..count.min(MAX_RECORDS) {
        let (kind, extra) = (*message.get(at)?, usize::from(*message.get(at + 1)?));
        let sources = usize::from(u16::from_be_bytes([*message.get(at + 2)?, *message.get(at + 3)?]));
        record(kind, sources, address::<N>(message, at + 4)?, each);
        at += 4 + N + N * sources + 4 * extra;
    }
    Some(())
}

/// One group record, the same in both (RFC 3376, section 4.2.12; RFC 3810, section 5.2.12).
fn record(kind: u8, sources: usize, group: IpAddr, each: &mut impl FnMut(Report)) {
    match (kind, sources) {
        // Includes nothing: MODE_IS_INCLUDE and CHANGE_TO_INCLUDE_MODE without sources.
        (1 | 3, 0) => each(Report::Leave(group)),
        // Includes something, excludes something, allows more.
        (1..=5, _) => each(Report::Join(group)),
        // BLOCK_OLD_SOURCES: still a member.
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn members(groups: &Groups, group: &str) -> Vec<u16> {
        (0..).map_while(|at| groups.member(ip(group), at)).map(|(who, _)| who).collect()
    }

    #[test]
    fn reports_of_every_version_are_read() {
        let read = |message: &[u8]| {
            let mut all = Vec::new();
            read_igmp(message, |report| all.push(report)).map(|()| all)
        };
        let group = [239, 1, 2, 3];
        let join = Some(vec![Report::Join(ip("239.1.2.3"))]);
        let leave = Some(vec![Report::Leave(ip("239.1.2.3"))]);
        assert_eq!(read(&[&[0x12, 0, 0, 0][..], &group].concat()), join);
        assert_eq!(read(&[&[0x16, 0, 0, 0][..], &group].concat()), join);
        assert_eq!(read(&[&[0x17, 0, 0, 0][..], &group].concat()), leave);
        let v3 = |kind: u8, sources: u8| {
            let mut all = vec![0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, sources];
            all.extend(group);
            all.extend(vec![9; 4 * usize::from(sources)]);
            read(&all)
        };
        assert_eq!((v3(4, 0), v3(2, 0), v3(1, 1), v3(5, 2)), (join.clone(), join.clone(), join.clone(), join));
        assert_eq!((v3(3, 0), v3(1, 0), v3(6, 1)), (leave.clone(), leave, Some(vec![])));
        // A query, and what is cut short.
        assert_eq!((read(&[0x11, 0, 0, 0, 0, 0, 0, 0]), read(&[0x16, 0, 0, 0, 239])), (None, None));
        let mut mld = vec![143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0];
        mld.extend("ff05::7".parse::<Ipv6Addr>().unwrap().octets());
        let mut all = Vec::new();
        read_mld(&mld, |report| all.push(report)).unwrap();
        mld.splice(..12, [132, 0, 0, 0, 0, 0, 0, 0]);
        read_mld(&mld, |report| all.push(report)).unwrap();
        assert_eq!(all, [Report::Join(ip("ff05::7")), Report::Leave(ip("ff05::7"))]);
    }

    #[test]
    fn memberships_begin_end_and_are_asked_for() {
        let mut groups = Groups::new(GroupLimits::default(), 1);
        assert_eq!(groups.next_timeout(), None);
        for member in [1, 2] {
            groups.handle_report(at(0), member, Report::Join(ip("239.1.2.3"))).unwrap();
        }
        assert_eq!(groups.next_timeout(), Some(at(125)));
        assert_eq!(members(&groups, "239.1.2.3"), [1, 2]);
        assert!(!groups.poll_query(at(124)) && groups.poll_query(at(125)));
        groups.handle_report(at(130), 2, Report::Join(ip("239.1.2.3"))).unwrap();
        assert!(groups.poll_query(at(250)));
        // 260 s after the only report of 1.
        assert!(groups.poll_query(at(375)));
        assert_eq!(members(&groups, "239.1.2.3"), [2]);
        groups.handle_report(at(376), 2, Report::Leave(ip("239.1.2.3"))).unwrap();
        assert!(members(&groups, "239.1.2.3").is_empty() && groups.is_empty());
        assert!(!groups.poll_query(at(1000)));
        assert_eq!(groups.next_timeout(), None, "nobody is asked on a network without groups");
    }

    #[test]
    fn what_goes_to_everybody_is_not_kept() {
        let mut groups = Groups::new(GroupLimits::default(), 1);
        for group in ["224.0.0.251", "ff02::1", "ff02::1:ff00:3", "ff01::5", "10.0.0.1", "fd00::1"] {
            groups.handle_report(at(0), 1, Report::Join(ip(group))).unwrap();
        }
        assert!(groups.is_empty());
        groups.handle_report(at(0), 1, Report::Join(ip("ff02::fb"))).unwrap();
        assert_eq!((groups.len(), members(&groups, "ff02::fb")), (1, vec![1]));
        groups.forget(1);
        assert!(groups.is_empty() && groups.next_timeout().is_none());
    }

    #[test]
    fn both_bounds_hold() {
        let mut groups = Groups::new(GroupLimits { per_member: 3, all: 5 }, 1);
        let mut join =
            |member, last: u8| groups.handle_report(at(0), member, Report::Join(IpAddr::from([239, 0, 0, last])));
        assert_eq!([1, 2, 3, 4].map(|last| join(1, last).is_ok()), [true, true, true, false]);
        assert_eq!([1, 2, 3].map(|last| join(2, last).is_ok()), [true, true, false]);
        assert_eq!(join(1, 3), Ok(()), "what is known is renewed");
    }

    proptest! {
        #[test]
        fn hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in prop::sample::select(vec![0x12_u8, 0x22, 131, 143])) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let _ = read_igmp(&bytes, |_| ());
            let _ = read_mld(&bytes, |_| ());
        }
    }
}
