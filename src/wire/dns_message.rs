//! DNS messages, as much of them as a forwarder must understand (RFC 1035 §4, RFC 6891).
//!
//! A forwarder passes messages on as the bytes that they are. What it has to know is: is this one question (RFC 9619),
//! which one, how large an answer its sender can take, does an answer belong to it, and how to shorten an answer or make
//! a small one of its own. Names are compared and skipped, never decompressed, so hostile pointers lead nowhere. Answers with
//! records of all kinds are made in `dns_build`.

use std::net::IpAddr;

use super::dns_name::Name;

/// Length of the header.
pub const HEADER: usize = 12;
/// What a UDP answer may hold where the question says nothing (RFC 1035 §2.3.4).
pub const MIN_UDP: usize = 512;
/// UDP size that our own answers announce: what passes every link unfragmented (DNS flag day 2020).
const OUR_UDP_SIZE: u16 = 1232;
const TYPE_OPT: u16 = 41;
/// A, AAAA, ANY and the two zone transfers (RFC 1035 §3.2, RFC 3596, RFC 1995).
pub const TYPE_A: u16 = 1;
/// See [`TYPE_A`].
pub const TYPE_AAAA: u16 = 28;
/// See [`TYPE_A`].
pub const TYPE_ANY: u16 = 255;
/// See [`TYPE_A`].
pub const TYPE_IXFR: u16 = 251;
/// See [`TYPE_A`].
pub const TYPE_AXFR: u16 = 252;
/// Class IN.
pub const CLASS_IN: u16 = 1;

/// Response codes (RFC 1035 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rcode {
    /// No error.
    NoError = 0,
    /// The question cannot be understood.
    FormErr = 1,
    /// The server failed.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// The server does not do that.
    NotImp = 4,
    /// The server will not do that.
    Refused = 5,
}

/// A question that can be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The whole message.
    pub message: &'a [u8],
    /// Its id.
    pub id: u16,
    /// The question section: name, type and class.
    pub question: &'a [u8],
    /// Question type.
    pub qtype: u16,
    /// Question class.
    pub qclass: u16,
    /// UDP payload size that the sender takes, where it speaks EDNS.
    pub edns: Option<u16>,
}

/// Why a message is no question that can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Too short for a header, or an answer itself: nothing may be said to it, or two of us talk for ever.
    #[error("no DNS question: shorter than a header, or an answer")]
    NoQuestion,
    /// An operation other than QUERY.
    #[error("DNS operation {0} is not carried")]
    Operation(u8),
    /// Not exactly one question, or sections that break off.
    #[error("malformed DNS question")]
    Malformed,
}

fn be16(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// The end of the name at `at`; a compression pointer ends it. None where it breaks off.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return (at + 2 <= message.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

/// The only question of a message: its end, type and class. Its name is spelt out.
fn single_question(message: &[u8]) -> Option<(usize, u16, u16)> {
    if be16(message, 4)? != 1 {
        return None;
    }
    let mut at = HEADER;
    while *message.get(at)? != 0 {
        if message[at] > 63 {
            return None;
        }
        at += 1 + usize::from(message[at]);
    }
    at += 1;
    if at - HEADER > 255 {
        return None;
    }
    Some((at + 4, be16(message, at)?, be16(message, at + 2)?))
}

/// The end of a message's question section, where that is one question or none.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    if be16(message, 4)? == 0 { Some(HEADER) } else { single_question(message).map(|(end, _, _)| end) }
}

/// A resource record's place in a message.
pub(super) struct Record {
    /// Where its name begins.
    pub start: usize,
    /// Where its type begins: 2 bytes, class 2, time to live 4, length 2, contents.
    pub fixed: usize,
    /// Where it ends.
    pub end: usize,
    /// Its type.
    pub kind: u16,
    class: u16,
}

/// The records behind the question, of all sections; None where one breaks off.
pub(super) fn records(message: &[u8], mut at: usize) -> Option<impl Iterator<Item = Option<Record>>> {
    let mut left = [6, 8, 10].iter().try_fold(0, |sum, &count| Some(sum + usize::from(be16(message, count)?)))?;
    Some(std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        left -= 1;
        let record = (|| {
            let start = at;
            let name = skip_name(message, at)?;
            let end = name + 10 + usize::from(be16(message, name + 8)?);
            (end <= message.len()).then_some(())?;
            at = end;
            Some(Record { start, fixed: name, end, kind: be16(message, name)?, class: be16(message, name + 2)? })
        })();
        if record.is_none() {
            left = 0;
        }
        Some(record)
    }))
}

impl<'a> Query<'a> {
    /// Takes a message apart.
    pub fn parse(message: &'a [u8]) -> Result<Self, QueryError> {
        if message.len() < HEADER || message[2] & 0x80 != 0 {
            return Err(QueryError::NoQuestion);
        }
        let operation = message[2] >> 3 & 15;
        if operation != 0 {
            return Err(QueryError::Operation(operation));
        }
        let (end, qtype, qclass) = single_question(message).ok_or(QueryError::Malformed)?;
        let mut edns = None;
        for record in records(message, end).ok_or(QueryError::Malformed)? {
            let record = record.ok_or(QueryError::Malformed)?;
            // RFC 6891 §6.1.1: one at most, and the root is its name.
            if record.kind == TYPE_OPT {
                if edns.is_some() || message[record.start] != 0 {
                    return Err(QueryError::Malformed);
                }
                edns = Some(record.class);
            }
        }
        let id = u16::from_be_bytes([message[0], message[1]]);
        Ok(Self { message, id, question: &message[HEADER..end], qtype, qclass, edns })
    }

    /// Largest UDP answer that the sender takes, bytes (RFC 6891 §6.2.3: less than 512 means 512).
    pub fn max_udp(&self) -> usize {
        usize::from(self.edns.unwrap_or(0)).max(MIN_UDP)
    }

    /// True for `suffix` (one label, lower case) and every name under it.
    pub fn is_under(&self, suffix: &str) -> bool {
        let name = &self.question[..self.question.len() - 4];
        let mut at = 0;
        while let Some(&length) = name.get(at)
            && length > 0
        {
            let next = at + 1 + usize::from(length);
            if name.get(next) == Some(&0) {
                return name[at + 1..next].eq_ignore_ascii_case(suffix.as_bytes());
            }
            at = next;
        }
        false
    }

    /// The same message under another id.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        let mut message = self.message.to_vec();
        message[..2].copy_from_slice(&id.to_be_bytes());
        message
    }

    /// True where `answer` is an answer to this question under `id`: id, direction, operation and question agree
    /// (RFC 5452 §9.1). Letters of the name may differ in case.
    pub fn is_answered_by(&self, answer: &[u8], id: u16) -> bool {
        if answer.len() < HEADER || be16(answer, 0) != Some(id) || answer[2] & 0xf8 != 0x80 {
            return false;
        }
        match be16(answer, 4) {
            Some(1) => answer
                .get(HEADER..HEADER + self.question.len())
                .is_some_and(|question| question.eq_ignore_ascii_case(self.question)),
            // Some servers leave the question out when they refuse.
            Some(0) => answer[3] & 15 != 0 && answer.len() == HEADER,
            _ => false,
        }
    }

    /// An answer without records. EDNS is answered with EDNS (RFC 6891 §6.1.1).
    pub fn answer(&self, rcode: Rcode) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.question.len() + 11);
        out.extend(header(self.message, rcode));
        out[5] = 1;
        out.extend(self.question);
        self.append_opt(&mut out);
        out
    }

    /// An answer with those of `addresses` that the question's type asks for, with `ttl` seconds to live.
    pub fn address_answer(&self, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let mut out = self.answer(Rcode::NoError);
        let opt = out.split_off(HEADER + self.question.len());
        let mut count: u16 = 0;
        for address in addresses {
            let (kind, octets) = match address {
                IpAddr::V4(a) => (TYPE_A, a.octets().to_vec()),
                IpAddr::V6(a) => (TYPE_AAAA, a.octets().to_vec()),
            };
            if self.qclass != CLASS_IN || (self.qtype != kind && self.qtype != TYPE_ANY) {
                continue;
            }
            if count == u16::MAX {
                break;
            }
            count += 1;
            // The name is the question's.
            out.extend([0xc0, HEADER as u8]);
            out.extend(kind.to_be_bytes());
            out.extend(CLASS_IN.to_be_bytes());
            out.extend(ttl.to_be_bytes());
            out.extend((octets.len() as u16).to_be_bytes());
            out.extend(octets);
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        out.extend(opt);
        out
    }

    /// `answer` for a sender that takes `limit` bytes: as it is, or with its records left out and marked truncated, so
    /// that the sender asks again over TCP (RFC 2181 §9).
    pub fn fit(&self, answer: Vec<u8>, limit: usize) -> Vec<u8> {
        if answer.len() <= limit {
            return answer;
        }
        let mut out = Vec::with_capacity(HEADER + self.question.len() + 11);
        out.extend(&answer[..HEADER]);
        out[2] |= 0x02;
        out[4..].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(self.question);
        self.append_opt(&mut out);
        out
    }

    /// The name asked for; None is the root.
    pub fn name(&self) -> Option<Name> {
        Name::from_wire(&self.question[..self.question.len() - 4])
    }

    /// The same question about another name: recursion, "checking disabled", type, class and EDNS size are kept; options
    /// of EDNS were about the other name and are not.
    pub fn about(&self, name: &Name) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + name.as_wire().len() + 15);
        out.extend([self.message[0], self.message[1], self.message[2] & 0x01, self.message[3] & 0x10]);
        out.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(name.as_wire());
        out.extend(self.qtype.to_be_bytes());
        out.extend(self.qclass.to_be_bytes());
        if let Some(size) = self.edns {
            out[11] = 1;
            out.push(0);
            out.extend(TYPE_OPT.to_be_bytes());
            out.extend(size.to_be_bytes());
            out.extend([0; 6]);
        }
        out
    }

    pub(super) fn append_opt(&self, out: &mut Vec<u8>) {
        if self.edns.is_some() {
            out[11] += 1;
            out.push(0);
            out.extend(TYPE_OPT.to_be_bytes());
            out.extend(OUR_UDP_SIZE.to_be_bytes());
            out.extend([0; 6]);
        }
    }
}

/// The header of an answer to `query`, with all sections empty: id, operation and "recursion desired" are the query's.
fn header(query: &[u8], rcode: Rcode) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..2].copy_from_slice(&query[..2]);
    out[2] = 0x80 | (query[2] & 0x79);
    out[3] = 0x80 | rcode as u8;
    out
}

/// An answer to a message that [`Query::parse`] refused: the header alone. None where nothing may be answered.
pub fn error_answer(message: &[u8], error: QueryError) -> Option<Vec<u8>> {
    let rcode = match error {
        QueryError::NoQuestion => return None,
        QueryError::Operation(_) => Rcode::NotImp,
        QueryError::Malformed => Rcode::FormErr,
    };
    (message.len() >= HEADER).then(|| header(message, rcode).to_vec())
}

/// True where the answer is marked as truncated.
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// The response code of an answer, without EDNS's upper bits.
pub fn rcode(answer: &[u8]) -> u8 {
    answer.get(3).map_or(Rcode::ServFail as u8, |flags| flags & 15)
}

#[cfg(test)]
mod tests;
