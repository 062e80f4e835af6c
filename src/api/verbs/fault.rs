//! `set_fault`, `clear_fault` and `list_faults`.
//!
//! ```text
//! {"execute":"set_fault","arguments":{"latency":"50ms","loss":"1%","to":"192.0.2.0/24","seed":7}}
//! {"return":{"faults":[{"to":"192.0.2.0/24","addresses":["192.0.2.0/24"],"seed":7,"restarts":1,"dns_fail":"0",
//!   "from_guest":{"latency":"50ms","jitter":"0","loss":"1%","rate":null,"reorder":false,"packets":0,…},"to_guest":{…}}]}}
//! {"execute":"clear_fault"}
//! {"return":{"cleared":1,"faults":[]}}
//! ```
//!
//! Amounts are texts both ways (`network::fault`): what is listed can be set again.

use serde::{Deserialize, Serialize};

use crate::api::error::{ApiError, Code};
use crate::network::fault::{self, FaultError, Rate, Rule, Shape, Target, UnitError, Wanted};

/// Verbs of this group.
pub const VERBS: [&str; 3] = ["set_fault", "clear_fault", "list_faults"];

/// Which packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Those that the guest sends.
    FromGuest,
    /// Those that it is sent.
    ToGuest,
    /// Both, each by itself.
    #[default]
    Both,
}

impl Direction {
    fn only(self) -> Option<fault::Direction> {
        match self {
            Self::FromGuest => Some(fault::Direction::FromGuest),
            Self::ToGuest => Some(fault::Direction::ToGuest),
            Self::Both => None,
        }
    }
}

/// Arguments of `set_fault`. What is left out stays as it is; `0` ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFault {
    /// The peers that it is about: an address, a network such as `192.0.2.0/24`, or a name, whose addresses are looked up now.
    /// Left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Which packets; both directions unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// How much later packets come, in each direction: `50ms`, at most `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// Up to so much earlier or later than that, evenly distributed; at most the latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// Share of packets that never come: `1%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Bits a second, of Ethernet frames: `10mbit`, from `1kbit` to `100gbit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Whether jitter may have packets overtake each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<bool>,
    /// Share of the guest's questions for names that are answered SERVFAIL; not together with `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_fail: Option<String>,
    /// Chance begins anew, with this number. Without one a new rule gets one that nobody has chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Arguments of `clear_fault`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearFault {
    /// Only what is about these peers, as it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Only this direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
}

/// Arguments of `list_faults`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListFaults {}

/// What `set_fault` and `list_faults` return.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultList {
    /// All rules of the endpoint, in the order in which they were set.
    pub faults: Vec<FaultRule>,
}

/// What `clear_fault` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// How many rules that concerned.
    pub cleared: usize,
    /// Those that are left.
    pub faults: Vec<FaultRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRule {
    /// The peers that it is about; `null`: all.
    pub to: Option<String>,
    /// What that is: addresses and networks.
    pub addresses: Vec<String>,
    /// What chance began with.
    pub seed: u64,
    /// How often chance was begun anew by a seed.
    pub restarts: u32,
    /// Share of questions for names that fail.
    pub dns_fail: String,
    /// What happens to packets that the guest sends.
    pub from_guest: Impairment,
    /// What happens to packets that it is sent.
    pub to_guest: Impairment,
}

/// What happens to packets of one direction, and did so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impairment {
    /// Latency.
    pub latency: String,
    /// Jitter.
    pub jitter: String,
    /// Loss.
    pub loss: String,
    /// Rate; `null`: any.
    pub rate: Option<String>,
    /// Whether packets may overtake each other.
    pub reorder: bool,
    /// Packets that the rule was applied to.
    #[serde(default)]
    pub packets: u64,
    /// Those that were held for a while.
    #[serde(default)]
    pub delayed: u64,
    /// Those that were lost.
    #[serde(default)]
    pub lost: u64,
    /// Those that were dropped because a queue was full.
    #[serde(default)]
    pub overflowed: u64,
}

impl From<&Shape> for Impairment {
    fn from(shape: &Shape) -> Self {
        Self {
            latency: shape.latency.to_string(),
            jitter: shape.jitter.to_string(),
            loss: shape.loss.to_string(),
            rate: shape.rate.map(|rate| rate.to_string()),
            reorder: shape.reorder,
            packets: 0,
            delayed: 0,
            lost: 0,
            overflowed: 0,
        }
    }
}

impl TryFrom<&Impairment> for Shape {
    type Error = UnitError;

    fn try_from(said: &Impairment) -> Result<Self, UnitError> {
        Ok(Self {
            latency: said.latency.parse()?,
            jitter: said.jitter.parse()?,
            loss: said.loss.parse()?,
            rate: said.rate.as_deref().map_or(Ok(None), Rate::parse)?,
            reorder: said.reorder,
        })
    }
}

impl From<&Rule> for FaultRule {
    fn from(rule: &Rule) -> Self {
        Self {
            to: rule.key().map(str::to_owned),
            addresses: rule.to.iter().flat_map(|to| &to.nets).map(fault::net_text).collect(),
            seed: rule.seed,
            restarts: rule.restarts,
            dns_fail: rule.dns_fail.to_string(),
            from_guest: (&rule.from_guest).into(),
            to_guest: (&rule.to_guest).into(),
        }
    }
}

impl TryFrom<&FaultRule> for Rule {
    type Error = String;

    fn try_from(said: &FaultRule) -> Result<Self, String> {
        let unit = |error: UnitError| error.to_string();
        let net = |text: &String| match Wanted::parse(text) {
            Ok(Wanted::Known(target)) => Ok(target.nets),
            _ => Err(format!("'{text}' is no address")),
        };
        let nets: Vec<_> = said.addresses.iter().map(net).collect::<Result<_, _>>()?;
        let to = said.to.as_ref().map(|text| Target { text: text.clone(), nets: nets.concat() });
        Ok(Self {
            to,
            from_guest: (&said.from_guest).try_into().map_err(unit)?,
            to_guest: (&said.to_guest).try_into().map_err(unit)?,
            dns_fail: said.dns_fail.parse().map_err(unit)?,
            seed: said.seed,
            restarts: said.restarts,
        })
    }
}

/// The refusal of a change.
pub fn refused(verb: &str, error: &FaultError) -> ApiError {
    let code = match error {
        FaultError::NoRule(_) | FaultError::Unknown(_) => Code::NotFound,
        FaultError::TooMany(_) => Code::Limit,
        _ => Code::BadArgument,
    };
    ApiError::new(code, format!("{verb}: {error}"))
}

impl SetFault {
    /// The change that is asked for.
    pub fn change(&self) -> Result<fault::Change, ApiError> {
        fn read<T>(
            name: &str,
            text: Option<&String>,
            read: impl FnOnce(&str) -> Result<T, UnitError>,
        ) -> Result<Option<T>, ApiError> {
            let bad = |why| ApiError::new(Code::BadArgument, format!("set_fault: {name}: {why}"));
            text.map(|text| read(text).map_err(bad)).transpose()
        }
        Ok(fault::Change {
            direction: self.direction.unwrap_or_default().only(),
            latency: read("latency", self.latency.as_ref(), str::parse)?,
            jitter: read("jitter", self.jitter.as_ref(), str::parse)?,
            loss: read("loss", self.loss.as_ref(), str::parse)?,
            rate: read("rate", self.rate.as_ref(), Rate::parse)?,
            reorder: self.reorder,
            dns_fail: read("dns_fail", self.dns_fail.as_ref(), str::parse)?,
            seed: self.seed,
        })
    }
}

impl ClearFault {
    /// What is to be cleared.
    pub fn which(&self) -> Result<(Option<Wanted>, Option<fault::Direction>), ApiError> {
        let wanted = self.to.as_deref().map(Wanted::parse).transpose();
        let wanted = wanted.map_err(|error| refused("clear_fault", &error))?;
        Ok((wanted, self.direction.unwrap_or_default().only()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::fault::{Limits, Rules};

    #[test]
    fn what_is_told_is_what_was_set() {
        let mut rules = Rules::default();
        let arguments = SetFault {
            to: Some("192.0.2.0/24".to_owned()),
            direction: Some(Direction::ToGuest),
            latency: Some("1.5ms".to_owned()),
            jitter: Some("1ms".to_owned()),
            loss: Some("0.1%".to_owned()),
            rate: Some("1.5mbit".to_owned()),
            reorder: Some(true),
            seed: Some(u64::MAX),
            ..SetFault::default()
        };
        let Wanted::Known(to) = Wanted::parse("192.0.2.0/24").unwrap() else { unreachable!() };
        rules.set(Some(to), &arguments.change().unwrap(), 1, &Limits::default()).unwrap();
        let everybody = SetFault { dns_fail: Some("5%".to_owned()), ..SetFault::default() };
        rules.set(None, &everybody.change().unwrap(), 2, &Limits::default()).unwrap();
        for rule in rules.all() {
            let told: FaultRule = rule.into();
            let text = serde_json::to_string(&told).unwrap();
            assert_eq!(&Rule::try_from(&serde_json::from_str::<FaultRule>(&text).unwrap()).unwrap(), rule, "{text}");
        }
    }

    #[test]
    fn refusals_name_the_argument() {
        let bad = SetFault { loss: Some("1".to_owned()), ..SetFault::default() };
        let error = bad.change().unwrap_err();
        assert_eq!(error.code, Code::BadArgument);
        assert_eq!(error.desc, "set_fault: loss: '1' is no share; write a number and %, such as 1% or 0.1%");
        let error = ClearFault { to: Some("a b".to_owned()), direction: None }.which().unwrap_err();
        assert!(error.desc.starts_with("clear_fault: 'a b' is neither an address"), "{}", error.desc);
    }
}
