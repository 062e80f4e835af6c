//! Who is called what on a shared network: the names of its members, forward and reverse.
//!
//! | asked for | answer |
//! |---|---|
//! | a name, alias, id or host name of a member, or one of these under the network's name | its addresses of that family |
//! | a name that several members have | the addresses of all, in an order drawn for each answer |
//! | a known name's type that it has not | empty: no error, no records |
//! | the reverse name of a member's address | its first name under the network's name |
//! | a member's own alias for another one (`--link`) | as the other one's name, while there is somebody of that name |
//! | anything else | None: somebody else's to answer |
//!
//! A member is in it from [`Directory::join`] to [`Directory::leave`] and not a moment longer, so answers live for
//! [`TTL`] seconds: a name follows its sandbox to another address at once, and asking again costs microseconds.
//!
//! **Limits.** Names and links of one member are bounded by [`Limits`]; members by the network. A lookup is one look into a
//! hash table, whatever the number of members.

use std::collections::HashMap;
use std::net::IpAddr;

use super::config::Link;
use super::zone::{Answer, shuffle};
use crate::wire::dns_data::{Data, TYPE_PTR};
use crate::wire::dns_message::{TYPE_A, TYPE_AAAA, TYPE_ANY};
use crate::wire::dns_name::Name;

/// Life of an answer, seconds: none, as aardvark-dns and gvproxy have it. Docker's 600 keeps an address of a sandbox that
/// has moved alive in every cache.
pub const TTL: u32 = 0;

/// Addresses in one answer, at most: what fits 64 KiB several times over, and no client looks at more.
const MAX_ADDRESSES: usize = 256;

/// Bounds of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Names.
    pub names: usize,
    /// Links.
    pub links: usize,
}

impl Default for Limits {
    /// Nobody types more than a few of either; a program that makes them must be stopped somewhere.
    fn default() -> Self {
        Self { names: 128, links: 128 }
    }
}

/// Why a member is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// A bound.
    #[error("{given} {what} for one member; give at most {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        given: usize,
        /// The bound.
        limit: usize,
    },
    /// Text that cannot be a name.
    #[error("'{0}' cannot be a name of a member: it is no host name")]
    Name(String),
}

#[derive(Debug)]
struct Member {
    /// As in the tables, without duplicates.
    names: Vec<Name>,
    /// Its first name under the network's.
    full: Option<Name>,
    addresses: Vec<IpAddr>,
}

/// The names of one network. `u32` is whatever number the owner gives a member.
#[derive(Debug, Default)]
pub struct Directory {
    network: String,
    limits: Limits,
    members: HashMap<u32, Member>,
    by_name: HashMap<Name, Vec<u32>>,
    by_address: HashMap<IpAddr, u32>,
}

/// A member's own names for others.
#[derive(Clone, Debug, Default)]
pub struct Aliases(HashMap<Name, Name>);

impl Directory {
    /// Of a network of that name; nobody is there.
    pub fn new(network: &str, limits: Limits) -> Self {
        Self { network: network.to_owned(), limits, ..Self::default() }
    }

    /// Number `id` comes, with its names in order and its addresses. What number `id` was before is forgotten.
    pub fn join(&mut self, id: u32, names: &[String], addresses: &[IpAddr]) -> Result<(), DirectoryError> {
        if names.len() > self.limits.names {
            let (given, limit) = (names.len(), self.limits.names);
            return Err(DirectoryError::TooMany { what: "names", given, limit });
        }
        let parse = |text: &str| Name::parse(text).map_err(|_| DirectoryError::Name(text.to_owned()));
        let mut all = Vec::with_capacity(2 * names.len());
        let mut full = None;
        for text in names {
            let name = parse(text)?;
            // A name too long for the longer form has only the short one.
            let under = Name::parse(&format!("{}.{}", text.trim_end_matches('.'), self.network)).ok();
            if full.is_none() {
                full.clone_from(&under);
            }
            for name in std::iter::once(name).chain(under) {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        self.leave(id);
        for name in &all {
            self.by_name.entry(name.clone()).or_default().push(id);
        }
        for &address in addresses {
            self.by_address.insert(address, id);
        }
        self.members.insert(id, Member { names: all, full, addresses: addresses.to_vec() });
        Ok(())
    }

    /// Number `id` is gone; true if it was there.
    pub fn leave(&mut self, id: u32) -> bool {
        let Some(member) = self.members.remove(&id) else { return false };
        for name in &member.names {
            if let Some(ids) = self.by_name.get_mut(name) {
                ids.retain(|&other| other != id);
                if ids.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
        for address in &member.addresses {
            if self.by_address.get(address) == Some(&id) {
                self.by_address.remove(address);
            }
        }
        true
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What `name` and `qtype` are answered with; None where the name is not ours. `random` is drawn anew for each question.
    pub fn lookup(&self, name: &Name, qtype: u16, aliases: &Aliases, random: u64) -> Option<Answer> {
        let mut answer = Answer::default();
        if let Some(&id) = name.reversed_address().and_then(|address| self.by_address.get(&address)) {
            let full = self.members.get(&id)?.full.clone()?;
            if matches!(qtype, TYPE_PTR | TYPE_ANY) {
                answer.records.push((name.clone(), TTL, Data::Ptr(full)));
            }
            return Some(answer);
        }
        let linked = aliases.0.get(name).and_then(|target| self.by_name.get(target));
        let ids = linked.or_else(|| self.by_name.get(name))?;
        let wanted = |address: &&IpAddr| match qtype {
            TYPE_A => address.is_ipv4(),
            TYPE_AAAA => address.is_ipv6(),
            qtype => qtype == TYPE_ANY,
        };
        let addresses = ids.iter().filter_map(|id| self.members.get(id)).flat_map(|member| &member.addresses);
        let data = |address: &IpAddr| match address {
            IpAddr::V4(address) => Data::A(*address),
            IpAddr::V6(address) => Data::Aaaa(*address),
        };
        answer.records.extend(addresses.filter(wanted).map(|address| (name.clone(), TTL, data(address))));
        shuffle(&mut answer.records, random);
        answer.records.truncate(MAX_ADDRESSES);
        Some(answer)
    }

    /// The aliases that `links` make.
    pub fn aliases(&self, links: &[Link]) -> Result<Aliases, DirectoryError> {
        if links.len() > self.limits.links {
            let (given, limit) = (links.len(), self.limits.links);
            return Err(DirectoryError::TooMany { what: "links", given, limit });
        }
        let parse = |text: &str| Name::parse(text).map_err(|_| DirectoryError::Name(text.to_owned()));
        links.iter().map(|link| Ok((parse(&link.alias)?, parse(&link.target)?))).collect::<Result<_, _>>().map(Aliases)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn addresses(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    struct Net(Directory);

    impl Net {
        fn new() -> Self {
            let mut net = Self(Directory::new("web", Limits::default()));
            net.join(1, &["site", "www", "0123456789ab", "host1"], &["172.18.0.2"]);
            net.join(2, &["redis", "www", "ba9876543210"], &["172.18.0.3", "fd00::3"]);
            net
        }

        fn join(&mut self, id: u32, names: &[&str], all: &[&str]) {
            self.0.join(id, &texts(names), &addresses(all)).unwrap();
        }

        fn ask(&self, text: &str, qtype: u16) -> Option<Vec<String>> {
            self.ask_as(text, qtype, &Aliases::default(), 1)
        }

        fn ask_as(&self, text: &str, qtype: u16, aliases: &Aliases, random: u64) -> Option<Vec<String>> {
            let answer = self.0.lookup(&name(text), qtype, aliases, random)?;
            assert!(answer.rest.is_none() && answer.records.iter().all(|record| record.1 == TTL));
            Some(answer.records.iter().map(|(_, _, data)| data.to_string()).collect())
        }
    }

    #[test]
    fn every_name_is_found_in_both_forms_whatever_its_case() {
        let net = Net::new();
        for asked in ["site", "SITE", "0123456789ab", "host1", "site.web", "Host1.Web"] {
            assert_eq!(net.ask(asked, TYPE_A), Some(texts(&["172.18.0.2"])), "{asked}");
        }
        for asked in ["site.other", "web", "sit", "a.site", "nobody"] {
            assert_eq!(net.ask(asked, TYPE_A), None, "{asked}");
        }
    }

    #[test]
    fn a_name_without_that_family_is_empty_and_not_unknown() {
        let net = Net::new();
        assert_eq!(net.ask("site", TYPE_AAAA), Some(texts(&[])));
        assert_eq!(net.ask("redis", TYPE_AAAA), Some(texts(&["fd00::3"])));
        // MX, and whatever else.
        assert_eq!(net.ask("redis", 15), Some(texts(&[])));
    }

    #[test]
    fn a_name_of_several_has_all_their_addresses_in_any_order() {
        let net = Net::new();
        let mut firsts = std::collections::BTreeSet::new();
        for random in 0..64 {
            let mut all = net.ask_as("www", TYPE_A, &Aliases::default(), random).unwrap();
            firsts.insert(all[0].clone());
            all.sort();
            assert_eq!(all, ["172.18.0.2", "172.18.0.3"]);
        }
        assert_eq!(firsts.len(), 2);
    }

    #[test]
    fn addresses_have_the_first_name() {
        let net = Net::new();
        assert_eq!(net.ask("2.0.18.172.in-addr.arpa", TYPE_PTR), Some(texts(&["site.web"])));
        assert_eq!(net.ask("9.0.18.172.in-addr.arpa", TYPE_PTR), None);
        let v6 = Name::reverse("fd00::3".parse().unwrap()).to_string();
        assert_eq!(net.ask(&v6, TYPE_PTR), Some(texts(&["redis.web"])));
        assert_eq!(net.ask(&v6, TYPE_A), Some(texts(&[])));
    }

    #[test]
    fn who_left_is_unknown_and_who_comes_again_is_known() {
        let mut net = Net::new();
        assert!(net.0.leave(2) && !net.0.leave(2));
        assert_eq!((net.ask("redis", TYPE_A), net.ask("www", TYPE_A)), (None, Some(texts(&["172.18.0.2"]))));
        assert_eq!(net.ask("3.0.18.172.in-addr.arpa", TYPE_PTR), None);
        net.join(9, &["redis"], &["172.18.0.7"]);
        assert_eq!(net.ask("redis", TYPE_A), Some(texts(&["172.18.0.7"])));
        assert_eq!(net.0.len(), 2);
        net.0.leave(1);
        net.0.leave(9);
        assert!(net.0.is_empty() && net.0.by_name.is_empty() && net.0.by_address.is_empty());
    }

    #[test]
    fn an_alias_is_its_owners_alone_and_follows_the_name() {
        let mut net = Net::new();
        let link = |target: &str, alias: &str| Link { target: target.to_owned(), alias: alias.to_owned() };
        let mine = net.0.aliases(&[link("redis", "db"), link("gone", "cache")]).unwrap();
        assert_eq!(net.ask_as("DB", TYPE_A, &mine, 1), Some(texts(&["172.18.0.3"])));
        assert_eq!((net.ask("db", TYPE_A), net.ask_as("cache", TYPE_A, &mine, 1)), (None, None));
        net.0.leave(2);
        assert_eq!(net.ask_as("db", TYPE_A, &mine, 1), None);
        net.join(3, &["redis"], &["172.18.0.4"]);
        assert_eq!(net.ask_as("db", TYPE_A, &mine, 1), Some(texts(&["172.18.0.4"])));
    }

    #[test]
    fn nonsense_and_too_much_are_refused_and_change_nothing() {
        let mut net = Net::new();
        let bad = net.0.join(1, &texts(&["fine", "not..fine"]), &[]);
        assert_eq!(bad, Err(DirectoryError::Name("not..fine".into())));
        let many: Vec<String> = (0..129).map(|n| format!("n{n}")).collect();
        assert!(matches!(net.0.join(1, &many, &[]), Err(DirectoryError::TooMany { given: 129, limit: 128, .. })));
        assert_eq!(net.ask("site", TYPE_A), Some(texts(&["172.18.0.2"])));
    }
}
