//! Names that a network answers itself: records, and which of them answer a question. Pure; the resolver asks.
//!
//! A zone here is no region of the tree but single names laid over it: a name that has a record, or that a wildcard
//! covers, is ours with all its types; every other one is somebody else's, also right above or below a name of ours. So
//! `api.example.com` can be ours and `example.com` the Internet's.
//!
//! | asked for | answer |
//! |---|---|
//! | name and type that there are | the records; addresses in an order drawn for each answer |
//! | name of ours, type that it has not | empty: no error, no records (never "no such name") |
//! | name that is an alias | the alias and what it leads to, as far as that is ours; the rest is somebody else's |
//! | reverse name of an address of ours | the names of that address, unless a PTR record says otherwise |
//! | name below a wildcard's | as if it had the wildcard's records, if no name between has records (RFC 4592 §3.3.1) |
//!
//! **Limits.** [`Limits`] bounds records, what one name's records take (they go into one message), one text, and chains of
//! aliases. They and everything else (an alias has no other records, chains do not loop, nothing twice) are checked when a
//! zone is made, so that a [`Zone`] is always sound. Not here: delegations, SOA, negative time to live, DNSSEC.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::wire::dns_data::{Data, DataError, TYPE_CNAME, TYPE_PTR, type_name};
use crate::wire::dns_message::{TYPE_A, TYPE_AAAA, TYPE_ANY};
use crate::wire::dns_name::{Name, NameError};

/// Time to live of records that are given none, seconds: short enough to change them while programs run.
pub const DEFAULT_TTL: u32 = 60;
/// Longest time to live, seconds (RFC 2181 §8).
pub const MAX_TTL: u32 = i32::MAX as u32;
/// Names that one address is answered with on its own, at most; an address that a thousand names have (0.0.0.0 in lists
/// of what is not to be reached) would not fit a message.
const MAX_NAMES_OF_ADDRESS: usize = 16;

/// Bounds of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// What the records of one name may take in a message, bytes.
    pub name_bytes: usize,
    /// One text, bytes.
    pub text: usize,
    /// Aliases followed for one answer.
    pub chain: usize,
}

impl Default for Limits {
    /// 4096 records: some 200 bytes each here. 32 KiB of a message's 64 for one name, 2 KiB a text (keys for mail are
    /// half of that), chains of 8 (resolvers stop at 8 to 16).
    fn default() -> Self {
        Self { records: 4096, name_bytes: 32 * 1024, text: 2048, chain: 8 }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "RecordText", try_from = "RecordText")]
pub struct Record {
    /// Its name; a first label `*` stands for every name there that has no records of its own.
    pub name: Name,
    /// Time to live, seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// A record as text, which is how it travels and is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RecordText {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    value: String,
    ttl: u32,
}

/// Why a record or a zone is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// No name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No value of the type.
    #[error("record '{name}': {fault}")]
    Data {
        /// The record's name.
        name: String,
        /// What is wrong with its value.
        fault: DataError,
    },
    /// A life beyond 31 bits.
    #[error("time to live {ttl} s of '{name}' is too long; give at most {MAX_TTL}")]
    Ttl {
        /// The record's name.
        name: Name,
        /// Seconds.
        ttl: u32,
    },
    /// Names that are answered before any record is looked for.
    #[error("'{0}' always means this host itself (RFC 6761); give another name")]
    Localhost(Name),
    /// The same record twice.
    #[error("record {} {} '{}' exists already; remove it first", .0.name, type_name(.0.data.kind()), .0.data)]
    Exists(Record),
    /// An alias beside other records.
    #[error("'{0}' has other records; a CNAME must be its name's only record, remove the others or use another name")]
    CnameAndOthers(Name),
    /// Aliases that lead nowhere.
    #[error("following the CNAME of '{name}' takes more than {limit} steps; point it at the last name directly")]
    Chain {
        /// Where it began.
        name: Name,
        /// The bound.
        limit: usize,
    },
    /// Too many records.
    #[error("more than {limit} records; remove some first")]
    Records {
        /// The bound.
        limit: usize,
    },
    /// Too much for one message.
    #[error("the records of '{name}' take more than {limit} bytes together; remove some first")]
    NameBytes {
        /// The name.
        name: Name,
        /// The bound.
        limit: usize,
    },
    /// A text too long.
    #[error("the text of '{name}' is {length} bytes long; give at most {limit}")]
    Text {
        /// The name.
        name: Name,
        /// Its length.
        length: usize,
        /// The bound.
        limit: usize,
    },
}

impl Record {
    /// Reads a record from its texts; see [`Data::parse`]. The name of a PTR record may be an address.
    pub fn parse(name: &str, kind: &str, value: &str, ttl: u32) -> Result<Self, ZoneError> {
        let data = Data::parse(kind, value).map_err(|fault| ZoneError::Data { name: name.to_owned(), fault })?;
        let name = match (name.parse::<IpAddr>(), data.kind()) {
            (Ok(address), TYPE_PTR) => Name::reverse(address),
            _ => Name::parse(name)?,
        };
        let record = Self { name, ttl, data };
        record.check()?;
        Ok(record)
    }

    /// What can be said of one record without the others and without bounds.
    fn check(&self) -> Result<(), ZoneError> {
        if self.ttl > MAX_TTL {
            return Err(ZoneError::Ttl { name: self.name.clone(), ttl: self.ttl });
        }
        if self.name.tails().last() == Some(b"\x09localhost\x00") {
            return Err(ZoneError::Localhost(self.name.clone()));
        }
        Ok(())
    }

    /// Bytes in a message: its name pointed at, type, class, life and length beside the contents.
    fn wire_length(&self) -> usize {
        12 + self.data.wire_length()
    }
}

impl From<Record> for RecordText {
    fn from(record: Record) -> Self {
        Self {
            name: record.name.to_string(),
            kind: type_name(record.data.kind()).into_owned(),
            value: record.data.to_string(),
            ttl: record.ttl,
        }
    }
}

impl TryFrom<RecordText> for Record {
    type Error = ZoneError;

    fn try_from(text: RecordText) -> Result<Self, ZoneError> {
        Self::parse(&text.name, &text.kind, &text.value, text.ttl)
    }
}

/// What there is at one name: places in [`Zone::records`], in order, and names that an address has on its own. None of
/// both: only names below it have something.
#[derive(Clone, Debug, Default)]
struct Node {
    records: Vec<usize>,
    names: Vec<(Name, u32)>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.names.is_empty()
    }
}

/// The records of a network, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: Vec<Record>,
    nodes: BTreeMap<Name, Node>,
    chain: usize,
}

/// What the zone has to say to a question about a name of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Owner, time to live in seconds and contents, in the order in which they are sent.
    pub records: Vec<(Name, u32, Data)>,
    /// The name that the last alias leads to, where that is somebody else's: ask for it there.
    pub rest: Option<Name>,
}

impl Zone {
    /// Checks `records` and makes them ready.
    pub fn new(records: Vec<Record>, limits: &Limits) -> Result<Self, ZoneError> {
        if records.len() > limits.records {
            return Err(ZoneError::Records { limit: limits.records });
        }
        let mut zone = Self { records, nodes: BTreeMap::new(), chain: limits.chain };
        for at in 0..zone.records.len() {
            zone.add(at, limits)?;
        }
        for at in 0..zone.records.len() {
            zone.add_reverse(at);
        }
        for record in &zone.records {
            if record.data.kind() == TYPE_CNAME && !zone.is_chain_sound(&record.name) {
                return Err(ZoneError::Chain { name: record.name.clone(), limit: limits.chain });
            }
        }
        Ok(zone)
    }

    fn add(&mut self, at: usize, limits: &Limits) -> Result<(), ZoneError> {
        let record = &self.records[at];
        record.check()?;
        if let Data::Txt(texts) = &record.data {
            let length = texts.iter().map(String::len).sum();
            if length > limits.text {
                return Err(ZoneError::Text { name: record.name.clone(), length, limit: limits.text });
            }
        }
        for tail in record.name.tails().skip(1) {
            if !self.nodes.contains_key(tail)
                && let Some(name) = Name::from_wire(tail)
            {
                self.nodes.insert(name, Node::default());
            }
        }
        let node = self.nodes.entry(record.name.clone()).or_default();
        let mut bytes = record.wire_length();
        for other in node.records.iter().map(|&at| &self.records[at]) {
            if other.data == record.data {
                return Err(ZoneError::Exists(record.clone()));
            }
            if other.data.kind() == TYPE_CNAME || record.data.kind() == TYPE_CNAME {
                return Err(ZoneError::CnameAndOthers(record.name.clone()));
            }
            bytes += other.wire_length();
        }
        if bytes > limits.name_bytes {
            return Err(ZoneError::NameBytes { name: record.name.clone(), limit: limits.name_bytes });
        }
        node.records.push(at);
        Ok(())
    }

    /// The name of an address, where no record says another. A wildcard is the name of nothing.
    fn add_reverse(&mut self, at: usize) {
        let record = &self.records[at];
        let Some(address) = record.data.address().filter(|_| !record.name.is_wildcard()) else { return };
        let reverse = Name::reverse(address);
        for tail in reverse.tails().skip(1) {
            if !self.nodes.contains_key(tail)
                && let Some(name) = Name::from_wire(tail)
            {
                self.nodes.insert(name, Node::default());
            }
        }
        let node = self.nodes.entry(reverse).or_default();
        if node.records.is_empty() && node.names.len() < MAX_NAMES_OF_ADDRESS {
            node.names.push((record.name.clone(), record.ttl));
        }
    }

    /// The node that answers for a name (wire form, lower case).
    fn node(&self, name: &Name) -> Option<&Node> {
        let mut tails = name.tails();
        if let Some(node) = self.nodes.get(tails.next()?) {
            return Some(node).filter(|node| !node.is_empty());
        }
        // The closest name above that there is, and the wildcard right below that (RFC 4592 §3.3.1).
        let encloser = tails.find(|&tail| self.nodes.contains_key(tail))?;
        let wildcard = [b"\x01*", encloser].concat();
        self.nodes.get(&wildcard[..]).filter(|node| !node.is_empty())
    }

    fn alias(&self, node: &Node) -> Option<(u32, &Name)> {
        let record = &self.records[*node.records.first()?];
        match &record.data {
            Data::Cname(target) => Some((record.ttl, target)),
            _ => None,
        }
    }

    fn is_chain_sound(&self, name: &Name) -> bool {
        let mut name = name;
        for _ in 0..=self.chain {
            match self.node(name).and_then(|node| self.alias(node)) {
                Some((_, target)) => name = target,
                None => return true,
            }
        }
        false
    }

    /// What `name` and `qtype` are answered with; None where the name is not ours. `random` is drawn anew for each
    /// question and decides the order of addresses.
    pub fn lookup(&self, name: &Name, qtype: u16, random: u64) -> Option<Answer> {
        let mut node = self.node(name)?;
        let mut answer = Answer::default();
        let mut owner = name.clone();
        // Somebody who asks for the alias itself gets that.
        if qtype != TYPE_CNAME && qtype != TYPE_ANY {
            while let Some((ttl, target)) = self.alias(node) {
                answer.records.push((owner, ttl, Data::Cname(target.clone())));
                owner = target.clone();
                match self.node(target) {
                    // Making the zone refused longer chains.
                    Some(next) if answer.records.len() <= self.chain => node = next,
                    _ => {
                        answer.rest = Some(owner);
                        return Some(answer);
                    }
                }
            }
        }
        let chain = answer.records.len();
        let fits = |kind: u16| kind == qtype || qtype == TYPE_ANY;
        let here = node.records.iter().map(|&at| &self.records[at]).filter(|record| fits(record.data.kind()));
        answer.records.extend(here.map(|record| (owner.clone(), record.ttl, record.data.clone())));
        if fits(TYPE_PTR) {
            let names = node.names.iter().map(|(target, ttl)| (owner.clone(), *ttl, Data::Ptr(target.clone())));
            answer.records.extend(names);
        }
        if matches!(qtype, TYPE_A | TYPE_AAAA) {
            shuffle(&mut answer.records[chain..], random);
        }
        one_life(&mut answer.records[chain..]);
        Some(answer)
    }

    /// Its records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// True without records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Fisher and Yates's shuffle, drawing from SplitMix64 begun at `seed`.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut drawn = state;
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        drawn ^= drawn >> 31;
        // The bias of 2⁶⁴ over a few records is of no matter.
        items.swap(last, (drawn % (last as u64 + 1)) as usize);
    }
}

/// Records of one name and type have one time to live, the shortest (RFC 2181 §5.2).
fn one_life(records: &mut [(Name, u32, Data)]) {
    let mut shortest: BTreeMap<u16, u32> = BTreeMap::new();
    for (_, ttl, data) in records.iter() {
        shortest.entry(data.kind()).and_modify(|life| *life = *ttl.min(life)).or_insert(*ttl);
    }
    for (_, ttl, data) in records {
        *ttl = shortest.get(&data.kind()).copied().unwrap_or(*ttl);
    }
}

#[cfg(test)]
mod tests;
