//! Faults on purpose: what of a sandbox's traffic is delayed, lost, slowed or left unanswered, as values.
//!
//! A [`Rule`] is about everything, or about the peers of one [`Target`]: a network, an address, or a name whose addresses
//! were found when the rule was set. It has a [`Shape`] for each direction, so that 50 ms from the guest and 10 ms to it are
//! one rule. [`Rules`] are those of one endpoint; a [`Change`] names what becomes different and leaves the rest, and is
//! checked whole before anything of it is kept. Of several rules that fit a packet the most specific one counts, and no
//! other: `stack::fault` does that, and what the shapes say.
//!
//! Amounts are texts with units ([`units`]). Chance comes from [`Draws`], seeded: the same seed and the same packets give
//! the same faults.

mod units;

use std::net::IpAddr;

use ipnet::IpNet;

pub use units::{Rate, Share, Span, UnitError};

use crate::wire::dns_name::{Name, NameError};

/// Bounds of one endpoint's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules.
    pub rules: usize,
    /// Addresses of one name.
    pub addresses: usize,
}

impl Default for Limits {
    /// Each packet is compared with every network of every rule until one fits: 64 rules of names with 16 addresses, the worst,
    /// are a microsecond a packet.
    fn default() -> Self {
        Self { rules: 64, addresses: 16 }
    }
}

/// Where a frame is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Sent by the guest.
    FromGuest,
    /// To be received by it.
    ToGuest,
}

/// Both.
pub const DIRECTIONS: [Direction; 2] = [Direction::FromGuest, Direction::ToGuest];

/// What happens to packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Each comes so much later…
    pub latency: Span,
    /// … and up to so much earlier or later than that, evenly distributed.
    pub jitter: Span,
    /// How many never come.
    pub loss: Share,
    /// How many bits a second the line carries; None: any.
    pub rate: Option<Rate>,
    /// Jitter may have packets overtake each other.
    pub reorder: bool,
}

impl Shape {
    /// Whether packets pass as if there were no rule.
    pub fn is_nothing(&self) -> bool {
        *self == Self { reorder: self.reorder, ..Self::default() }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it is called: the network or address in its usual form, or the name.
    pub text: String,
    /// Addresses and networks.
    pub nets: Vec<IpNet>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is about; None: every peer.
    pub to: Option<Target>,
    /// What happens to packets of the guest.
    pub from_guest: Shape,
    /// What happens to packets for the guest.
    pub to_guest: Shape,
    /// How many questions for names fail; of the rule about every peer only.
    pub dns_fail: Share,
    /// What chance begins with.
    pub seed: u64,
    /// How often chance was begun anew.
    pub restarts: u32,
}

impl Rule {
    /// The shape of one direction.
    pub fn shape(&self, direction: Direction) -> &Shape {
        match direction {
            Direction::FromGuest => &self.from_guest,
            Direction::ToGuest => &self.to_guest,
        }
    }

    fn shape_mut(&mut self, direction: Direction) -> &mut Shape {
        match direction {
            Direction::FromGuest => &mut self.from_guest,
            Direction::ToGuest => &mut self.to_guest,
        }
    }

    fn is_nothing(&self) -> bool {
        self.from_guest.is_nothing() && self.to_guest.is_nothing() && self.dns_fail == Share::default()
    }

    /// The name of its target, which tells it from others.
    pub fn key(&self) -> Option<&str> {
        self.to.as_ref().map(|to| to.text.as_str())
    }
}

/// A change of one rule. What is None stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Which directions' shapes; None: both.
    pub direction: Option<Direction>,
    /// See [`Shape`].
    pub latency: Option<Span>,
    /// See [`Shape`].
    pub jitter: Option<Span>,
    /// See [`Shape`].
    pub loss: Option<Share>,
    /// See [`Shape`]; `Some(None)` is any rate.
    pub rate: Option<Option<Rate>>,
    /// See [`Shape`].
    pub reorder: Option<bool>,
    /// See [`Rule`].
    pub dns_fail: Option<Share>,
    /// Chance begins anew, with this.
    pub seed: Option<u64>,
}

impl Change {
    fn is_nothing(&self) -> bool {
        *self == Self { direction: self.direction, seed: self.seed, ..Self::default() }
    }
}

/// Whom a rule is to be about, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An address or network, which needs nobody to say what it is.
    Known(Target),
    /// A name, to be looked up.
    Name(Name),
}

/// Why rules are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Neither an address nor a name.
    #[error("'{text}' is neither an address, a network such as 192.0.2.0/24, nor a name: {why}")]
    Target {
        /// What was typed.
        text: String,
        /// Why it is no name.
        why: NameError,
    },
    /// A name that stands for many.
    #[error("'{0}' stands for many names; give one, or a network such as 192.0.2.0/24")]
    Wildcard(Name),
    /// Nobody is called so.
    #[error("the name '{0}' has no address; give one that the sandbox can resolve, or an address")]
    Unknown(String),
    /// Nothing is to happen.
    #[error("nothing is to be changed; give latency, jitter, loss, rate, reorder or dns_fail")]
    Nothing,
    /// Packets would have to come before they were sent.
    #[error(
        "a jitter of {jitter} is more than the latency of {latency}; give a jitter of at most {latency}, or more latency"
    )]
    Jitter {
        /// The jitter.
        jitter: Span,
        /// The latency.
        latency: Span,
    },
    /// Questions for names are not asked of peers.
    #[error("dns_fail is about every question for a name; set it without 'to'")]
    DnsOfPeer,
    /// A bound.
    #[error("there are {0} rules already, which is the bound; clear one")]
    TooMany(usize),
    /// No such rule.
    #[error("there is no fault for '{0}'; see list_faults")]
    NoRule(String),
}

impl Wanted {
    /// Reads an address, a network or a name.
    pub fn parse(text: &str) -> Result<Self, FaultError> {
        let net = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()));
        if let Ok(net) = net {
            return Ok(Self::Known(Target { text: net_text(&net), nets: vec![net] }));
        }
        let name = Name::parse(text).map_err(|why| FaultError::Target { text: text.to_owned(), why })?;
        if name.is_wildcard() { Err(FaultError::Wildcard(name)) } else { Ok(Self::Name(name)) }
    }

    /// What the rule will be called.
    pub fn key(&self) -> String {
        match self {
            Self::Known(target) => target.text.clone(),
            Self::Name(name) => name.to_string(),
        }
    }
}

/// One address without its length.
pub fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

impl Target {
    /// Of a name, with the addresses that it has now; of more than `limit` the first count.
    pub fn of_name(name: &Name, mut addresses: Vec<IpAddr>, limit: usize) -> Result<Self, FaultError> {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(limit);
        if addresses.is_empty() {
            return Err(FaultError::Unknown(name.to_string()));
        }
        Ok(Self { text: name.to_string(), nets: addresses.into_iter().map(IpNet::from).collect() })
    }
}

/// The rules of one endpoint, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Those told by somebody who has checked them; what is beyond the bound is left out.
    pub fn of(mut rules: Vec<Rule>, limits: &Limits) -> Self {
        rules.truncate(limits.rules);
        Self(rules)
    }

    /// All of them.
    pub fn all(&self) -> &[Rule] {
        &self.0
    }

    /// How many questions for names fail, with the seed and how often it was begun anew.
    pub fn dns_fail(&self) -> (Share, u64, u32) {
        let rule = self.0.iter().find(|rule| rule.to.is_none());
        rule.map_or((Share::default(), 0, 0), |rule| (rule.dns_fail, rule.seed, rule.restarts))
    }

    /// Changes the rule about `to`, or makes it, with `fresh` as its seed unless one is given. A rule by which nothing happens
    /// any more is gone.
    pub fn set(&mut self, to: Option<Target>, change: &Change, fresh: u64, limits: &Limits) -> Result<(), FaultError> {
        if to.is_some() && change.dns_fail.is_some() {
            return Err(FaultError::DnsOfPeer);
        }
        let key = to.as_ref().map(|to| to.text.as_str());
        let found = self.0.iter().position(|rule| rule.key() == key);
        // A seed alone begins anew what there is.
        if change.is_nothing() && (found.is_none() || change.seed.is_none()) {
            return Err(FaultError::Nothing);
        }
        let mut rule = match found {
            Some(at) => self.0[at].clone(),
            None => Rule {
                to: None,
                from_guest: Shape::default(),
                to_guest: Shape::default(),
                dns_fail: Share::default(),
                seed: fresh,
                restarts: 0,
            },
        };
        // A name's addresses are those of now.
        rule.to = to;
        for direction in DIRECTIONS.into_iter().filter(|&one| change.direction.is_none_or(|only| only == one)) {
            let shape = rule.shape_mut(direction);
            shape.latency = change.latency.unwrap_or(shape.latency);
            shape.jitter = change.jitter.unwrap_or(shape.jitter);
            shape.loss = change.loss.unwrap_or(shape.loss);
            shape.rate = change.rate.unwrap_or(shape.rate);
            shape.reorder = change.reorder.unwrap_or(shape.reorder);
            if shape.jitter > shape.latency {
                return Err(FaultError::Jitter { jitter: shape.jitter, latency: shape.latency });
            }
        }
        rule.dns_fail = change.dns_fail.unwrap_or(rule.dns_fail);
        if let Some(seed) = change.seed {
            rule.seed = seed;
            rule.restarts = rule.restarts.wrapping_add(1);
        }
        match found {
            Some(at) if rule.is_nothing() => drop(self.0.remove(at)),
            Some(at) => self.0[at] = rule,
            None if rule.is_nothing() => {}
            None if self.0.len() >= limits.rules => return Err(FaultError::TooMany(self.0.len())),
            None => self.0.push(rule),
        }
        Ok(())
    }

    /// Ends the rule about `to`, or all rules, in one direction or both. How many rules that concerned.
    pub fn clear(&mut self, to: Option<&Wanted>, direction: Option<Direction>) -> Result<usize, FaultError> {
        let key = to.map(Wanted::key);
        let mut cleared = 0;
        for rule in self.0.iter_mut().filter(|rule| key.is_none() || rule.key() == key.as_deref()) {
            let before = rule.clone();
            for direction in DIRECTIONS.into_iter().filter(|&one| direction.is_none_or(|only| only == one)) {
                *rule.shape_mut(direction) = Shape::default();
            }
            if direction.is_none() {
                rule.dns_fail = Share::default();
            }
            cleared += usize::from(*rule != before);
        }
        self.0.retain(|rule| !rule.is_nothing());
        match key {
            Some(key) if cleared == 0 => Err(FaultError::NoRule(key)),
            _ => Ok(cleared),
        }
    }
}

/// Seeded chance: SplitMix64 (Steele, Lea, Flood 2014), whose whole state is one number. Nobody must be unable to guess it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws(u64);

impl Draws {
    /// `stream` tells those apart that have one seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut draws = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        // Neighbouring seeds begin far from each other.
        Self(draws.draw())
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0; even to within 2⁻⁶⁴ × `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// True for this share of draws.
    pub fn hits(&mut self, share: Share) -> bool {
        self.below(Share::WHOLE) < share.parts()
    }
}

#[cfg(test)]
mod tests;
