//! Amounts with units, as people type them and as they are shown: `50ms`, `1%`, `10mbit`.
//!
//! Strict: a number (with a fraction, if it comes out whole in the smallest unit) and its unit, nothing between them. `0`
//! needs none. What is shown is read again as the same amount.

use std::fmt;
use std::str::FromStr;

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number with a unit of this kind.
    #[error("'{text}' is no {what}; write a number and {units}, such as {example}")]
    Form {
        /// What was typed.
        text: String,
        /// What it should have been.
        what: &'static str,
        /// Its units.
        units: &'static str,
        /// One.
        example: &'static str,
    },
    /// A fraction of the smallest step.
    #[error("'{text}' is finer than {step}; round it")]
    Fine {
        /// What was typed.
        text: String,
        /// The smallest step.
        step: &'static str,
    },
    /// Out of range.
    #[error("'{text}' is {how} {bound}; give a {what} within bounds")]
    Range {
        /// What was typed.
        text: String,
        /// What it is.
        what: &'static str,
        /// More than, or less than.
        how: &'static str,
        /// The bound.
        bound: &'static str,
    },
}

/// A kind of amount.
struct Kind {
    what: &'static str,
    units: &'static str,
    example: &'static str,
    step: &'static str,
    /// Each unit, in smallest steps.
    table: &'static [(&'static str, u64)],
}

impl Kind {
    /// The amount in smallest steps.
    fn read(&self, text: &str) -> Result<u64, UnitError> {
        let form = || UnitError::Form {
            text: text.escape_debug().to_string(),
            what: self.what,
            units: self.units,
            example: self.example,
        };
        if text == "0" {
            return Ok(0);
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let &(_, size) = self.table.iter().find(|(name, _)| *name == unit).ok_or_else(form)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        // Longer ones are out of any range, or finer than any step.
        if whole.is_empty() || fraction.is_empty() || whole.len() > 18 || fraction.contains('.') {
            return Err(form());
        }
        let fine = || UnitError::Fine { text: text.to_owned(), step: self.step };
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 18 {
            return Err(fine());
        }
        let scale = 10_u128.pow(fraction.len() as u32);
        let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| form())? };
        let parts = parts * u128::from(size);
        if !parts.is_multiple_of(scale) {
            return Err(fine());
        }
        let whole: u128 = whole.parse().map_err(|_| form())?;
        Ok(u64::try_from(whole * u128::from(size) + parts / scale).unwrap_or(u64::MAX))
    }

    fn range(&self, text: &str, how: &'static str, bound: &'static str) -> UnitError {
        UnitError::Range { text: text.to_owned(), what: self.what, how, bound }
    }
}

/// Writes `amount` of the largest of these units that leaves no more than three digits behind the point.
fn show(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)]) -> fmt::Result {
    if amount == 0 {
        return f.write_str("0");
    }
    for &(unit, size) in units {
        let (whole, rest) = (amount / size, amount % size);
        if whole > 0 && (rest * 1000).is_multiple_of(size) {
            let fraction = format!("{:03}", rest * 1000 / size);
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            return write!(f, "{whole}{point}{fraction}{unit}");
        }
    }
    let (unit, size) = units.last().copied().unwrap_or(("", 1));
    write!(f, "{}{unit}", amount / size)
}

/// A time, in microseconds: up to a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

const SPAN: Kind = Kind {
    what: "time",
    units: "us, ms or s",
    example: "50ms",
    step: "1us",
    table: &[("us", 1), ("ms", 1000), ("s", 1_000_000)],
};

impl Span {
    /// Microseconds.
    pub fn micros(self) -> u64 {
        self.0
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match SPAN.read(text)? {
            micros if micros > 60_000_000 => Err(SPAN.range(text, "more than", "60s")),
            micros => Ok(Self(micros)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &[("s", 1_000_000), ("ms", 1000), ("us", 1)])
    }
}

/// A share, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

const SHARE: Kind = Kind { what: "share", units: "%", example: "1% or 0.1%", step: "0.0001%", table: &[("%", 10_000)] };

impl Share {
    /// All of it.
    pub const WHOLE: u64 = 1_000_000;

    /// How many of [`Self::WHOLE`].
    pub fn parts(self) -> u64 {
        self.0.into()
    }
}

impl FromStr for Share {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match SHARE.read(text)? {
            parts if parts > Self::WHOLE => Err(SHARE.range(text, "more than", "100%")),
            parts => Ok(Self(parts as u32)),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0");
        }
        let fraction = format!("{:04}", self.0 % 10_000);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{}{point}{fraction}%", self.0 / 10_000)
    }
}

/// Bits a second, at least 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

const RATE: Kind = Kind {
    what: "rate",
    units: "kbit, mbit or gbit",
    example: "10mbit",
    step: "1 bit a second",
    table: &[("kbit", 1000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)],
};

impl Rate {
    /// Bits a second.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Reads a rate; None is any, which is `0`.
    pub fn parse(text: &str) -> Result<Option<Self>, UnitError> {
        match RATE.read(text)? {
            0 => Ok(None),
            bits if bits < 1000 => Err(RATE.range(text, "less than", "1kbit")),
            bits if bits > 100_000_000_000 => Err(RATE.range(text, "more than", "100gbit")),
            bits => Ok(Some(Self(bits))),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &[("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000)])
    }
}
