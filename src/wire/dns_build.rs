//! Making DNS answers with records in them (RFC 1035 §4.1), from values and from another server's answer.
//!
//! A [`Builder`] begins with the header and question of a [`Query`], takes records one by one and ends with EDNS where the
//! question had it. Names that were written before are pointed at (§4.1.4), the question's own first of all, so that an
//! answer spells a name in the letters of the question. A record that does not fit 65535 bytes is left out, with those
//! behind it, and the answer marked truncated; shortening for UDP is [`Query::fit`].
//!
//! [`Builder::append_answer`] moves the answer and authority sections of a server's message here. Its compressed names
//! point into that message, so they are spelt out and written anew in the types that may have such (RFC 3597 §4); other
//! contents are moved as they are. Pointers go backwards only, so that hostile ones end.

use std::collections::BTreeMap;

use super::dns_data::Data;
use super::dns_message::{CLASS_IN, HEADER, Query, Rcode, question_end, records};
use super::dns_name::{MAX_NAME, Name};

/// Longest message (the 16-bit length of RFC 1035 §4.2.2), less the OPT record that may follow.
const MAX_BODY: usize = 0xffff - 11;
/// Pointers reach this far (14 bits, RFC 1035 §4.1.4).
const MAX_POINTER: usize = 0x3fff;
/// The "authoritative answer" bit, in the third byte of the header.
const AUTHORITATIVE: u8 = 0x04;
/// The "truncated" bit.
const TRUNCATED: u8 = 0x02;

/// An answer being made. See the module.
#[derive(Clone, Debug)]
pub struct Builder {
    out: Vec<u8>,
    /// Where each name that was written, in lower case, begins.
    names: BTreeMap<Vec<u8>, u16>,
    full: bool,
}

/// Sections in which records are counted; the value is their counter's place in the header.
#[derive(Clone, Copy)]
enum Section {
    Answer = 6,
    Authority = 8,
}

/// Where the names are in the contents of a type: so many bytes, then so many names, then the rest. None: there are no
/// names, or they are never compressed.
fn names_within(kind: u16) -> Option<(usize, usize)> {
    match kind {
        // NS, CNAME, MB, MG, MR, PTR, DNAME.
        2 | 5 | 7 | 8 | 9 | 12 | 39 => Some((0, 1)),
        // SOA, MINFO, RP.
        6 | 14 | 17 => Some((0, 2)),
        // MX, AFSDB, RT, KX.
        15 | 18 | 21 | 36 => Some((2, 1)),
        // SRV.
        33 => Some((6, 1)),
        _ => None,
    }
}

impl Builder {
    /// An answer to `query` without records. `authoritative`: all of it will be our own.
    pub fn new(query: &Query<'_>, rcode: Rcode, authoritative: bool) -> Self {
        let mut out = query.answer(rcode);
        out.truncate(HEADER + query.question.len());
        // Counters of other sections; EDNS is counted at the end.
        out[6..HEADER].fill(0);
        if authoritative {
            out[2] |= AUTHORITATIVE;
        }
        let mut builder = Self { out, names: BTreeMap::new(), full: false };
        let name = builder.out[HEADER..builder.out.len() - 4].to_vec();
        builder.remember(&name, HEADER);
        builder
    }

    /// Appends an answer record of class IN. False where it does not fit any more.
    pub fn record(&mut self, owner: &Name, ttl: u32, data: &Data) -> bool {
        let start = self.out.len();
        self.name(owner.as_wire(), true);
        self.out.extend(data.kind().to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        let contents = self.begin_contents();
        match data {
            Data::A(address) => self.out.extend(address.octets()),
            Data::Aaaa(address) => self.out.extend(address.octets()),
            Data::Cname(name) | Data::Ptr(name) => self.name(name.as_wire(), true),
            Data::Txt(texts) => {
                for text in texts {
                    let text = &text.as_bytes()[..text.len().min(255)];
                    self.out.push(text.len() as u8);
                    self.out.extend(text);
                }
            }
            Data::Srv { priority, weight, port, target } => {
                for number in [priority, weight, port] {
                    self.out.extend(number.to_be_bytes());
                }
                // RFC 2782: not compressed.
                self.name(target.as_wire(), false);
            }
        }
        self.end_record(start, contents, Section::Answer)
    }

    /// Appends the answer and authority sections of `message`, an answer to another question. False, with nothing
    /// appended, where they cannot be read.
    pub fn append_answer(&mut self, message: &[u8]) -> bool {
        let before = self.clone();
        let done = self.copy_sections(message).is_some();
        if !done {
            *self = before;
        }
        done
    }

    fn copy_sections(&mut self, message: &[u8]) -> Option<()> {
        if message.get(2)? & TRUNCATED != 0 {
            self.out[2] |= TRUNCATED;
        }
        let count = |at: usize| Some(usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])));
        let (answers, authorities) = (count(6)?, count(8)?);
        for (at, record) in records(message, question_end(message)?)?.take(answers + authorities).enumerate() {
            let record = record?;
            let owner = expand(message, record.start)?.0;
            let start = self.out.len();
            self.name(&owner, true);
            // Type, class, time to live.
            self.out.extend(message.get(record.fixed..record.fixed + 8)?);
            let contents = self.begin_contents();
            let mut from = record.fixed + 10;
            if let Some((bytes, names)) = names_within(record.kind) {
                self.out.extend(message.get(from..from + bytes)?);
                from += bytes;
                for _ in 0..names {
                    let (name, next) = expand(message, from)?;
                    self.name(&name, record.kind != 33);
                    from = next;
                }
            }
            self.out.extend(message.get(from..record.end)?);
            let section = if at < answers { Section::Answer } else { Section::Authority };
            if !self.end_record(start, contents, section) {
                break;
            }
        }
        Some(())
    }

    /// Sets the response code of what will be sent.
    pub fn set_rcode(&mut self, rcode: Rcode) {
        self.out[3] = self.out[3] & 0xf0 | rcode as u8;
    }

    /// The message. `query` is that of the beginning.
    pub fn finish(mut self, query: &Query<'_>) -> Vec<u8> {
        query.append_opt(&mut self.out);
        self.out
    }

    fn begin_contents(&mut self) -> usize {
        self.out.extend([0, 0]);
        self.out.len()
    }

    /// Ends the record begun at `start`: its length, its section's count. Takes it out again where it does not fit.
    fn end_record(&mut self, start: usize, contents: usize, section: Section) -> bool {
        if self.full || self.out.len() > MAX_BODY {
            // Names in it are beyond what pointers reach, or are never asked for again: nothing follows.
            self.full = true;
            self.out.truncate(start);
            self.out[2] |= TRUNCATED;
            return false;
        }
        let length = (self.out.len() - contents) as u16;
        self.out[contents - 2..contents].copy_from_slice(&length.to_be_bytes());
        let at = section as usize;
        // At 11 bytes a record at least, a message cannot hold 65536.
        let count = u16::from_be_bytes([self.out[at], self.out[at + 1]]) + 1;
        self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        true
    }

    /// Writes a name (wire form), pointing at what is there already.
    fn name(&mut self, wire: &[u8], compress: bool) {
        let start = self.out.len();
        let mut at = 0;
        while wire.get(at).is_some_and(|&length| length != 0) {
            if compress && let Some(&known) = self.names.get(&wire[at..].to_ascii_lowercase()) {
                self.out.extend(&wire[..at]);
                self.out.extend((0xc000 | known).to_be_bytes());
                self.remember(wire, start);
                return;
            }
            at += 1 + usize::from(wire[at]);
        }
        self.out.extend(wire);
        self.remember(wire, start);
    }

    /// Notes that `wire`, or as much of it as is not known yet, is written at `start`.
    fn remember(&mut self, wire: &[u8], start: usize) {
        let mut at = 0;
        while wire.get(at).is_some_and(|&length| length != 0) && start + at <= MAX_POINTER {
            let tail = wire[at..].to_ascii_lowercase();
            if self.names.contains_key(&tail) {
                // Its tails are known too.
                return;
            }
            self.names.insert(tail, (start + at) as u16);
            at += 1 + usize::from(wire[at]);
        }
    }
}

/// The name at `at`, spelt out, and where what follows it begins. None where it breaks off, is too long, or a pointer does
/// not go backwards.
fn expand(message: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::new();
    let (mut at, mut limit, mut next) = (at, at, None);
    loop {
        let length = *message.get(at)?;
        match length {
            0 => {
                name.push(0);
                return Some((name, next.unwrap_or(at + 1)));
            }
            1..=63 => {
                name.extend(message.get(at..=at + usize::from(length))?);
                at += 1 + usize::from(length);
                // The root is to come.
                if name.len() >= MAX_NAME {
                    return None;
                }
            }
            0xc0.. => {
                let to = usize::from(u16::from_be_bytes([length & 0x3f, *message.get(at + 1)?]));
                next.get_or_insert(at + 2);
                // Each goes before the start of the piece that it ends, so there is an end.
                if to >= limit || to < HEADER {
                    return None;
                }
                (at, limit) = (to, to);
            }
            _ => return None,
        }
    }
}

/// The addresses in the answer section of a message, at most `limit`.
pub fn addresses(message: &[u8], limit: usize) -> Vec<std::net::IpAddr> {
    let answers = message.get(6..8).map_or(0, |count| usize::from(u16::from_be_bytes([count[0], count[1]])));
    let mut found = Vec::new();
    let Some(records) = question_end(message).and_then(|end| records(message, end)) else { return found };
    for record in records.take(answers).flatten() {
        if found.len() == limit {
            break;
        }
        let data = &message[record.fixed + 10..record.end];
        match (record.kind, <[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            (super::dns_message::TYPE_A, Ok(octets), _) => found.push(octets.into()),
            (super::dns_message::TYPE_AAAA, _, Ok(octets)) => found.push(octets.into()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
