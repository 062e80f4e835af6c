//! The faults of one endpoint, as the control plane has them: what rules there are, and who is told of a change.
//!
//! A name is looked up once, when its rule is set, as the guest would be answered: own records and hosts, members of the
//! network, other networks of the sandbox, then servers. Its rule is about the addresses of that moment; a supervisor is told
//! them, and tells a successor the same ones.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::command::DataPlane;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::fault::{
    self as api, ClearFault, Cleared, FaultList, FaultRule, Impairment, ListFaults, SetFault,
};
use crate::host::resolver::Resolver;
use crate::network::fault::{FaultError, Limits, Rule, Rules, Target, Wanted};
use crate::stack::fault::Counts;

/// See the module.
pub struct Faults {
    plane: DataPlane,
    resolver: Arc<Resolver>,
    /// Held while a change is under way, so that changes happen one after the other.
    rules: Mutex<Rules>,
}

/// Rules as a supervisor tells them. One that makes no sense is left out: the supervisor has it from a process like this
/// one, so it is told in the log alone.
pub fn told(told: &[FaultRule]) -> Rules {
    let read = |rule: &FaultRule| {
        let refused = |why| tracing::error!("the monitor told a fault that is refused: {why}");
        Rule::try_from(rule).map_err(refused).ok()
    };
    Rules::of(told.iter().filter_map(read).collect(), &Limits::default())
}

impl Faults {
    /// `rules` hold in the data plane already; the resolver learns of them here.
    pub fn new(plane: DataPlane, resolver: Arc<Resolver>, rules: Rules) -> Self {
        resolver.set_failing(rules.dns_fail());
        Self { plane, resolver, rules: Mutex::new(rules) }
    }

    /// How many rules there are.
    pub async fn count(&self) -> usize {
        self.rules.lock().await.all().len()
    }

    /// Does what one of `api::verbs::fault` asks for.
    pub async fn answer(&self, verb: &str, arguments: Map<String, Value>) -> Result<Value, ApiError> {
        match verb {
            "set_fault" => {
                let arguments: SetFault = error::arguments(verb, arguments)?;
                let change = arguments.change()?;
                let refused = |error: FaultError| api::refused(verb, &error);
                let to = match &arguments.to {
                    Some(text) => Some(self.find(Wanted::parse(text).map_err(refused)?).await.map_err(refused)?),
                    None => None,
                };
                let mut rules = self.rules.lock().await;
                let mut changed = rules.clone();
                changed.set(to, &change, fresh_seed()?, &Limits::default()).map_err(refused)?;
                let faults = self.apply(&mut rules, changed).await?;
                error::value(&FaultList { faults })
            }
            "clear_fault" => {
                let arguments: ClearFault = error::arguments(verb, arguments)?;
                let (to, direction) = arguments.which()?;
                let mut rules = self.rules.lock().await;
                let mut changed = rules.clone();
                let cleared = changed.clear(to.as_ref(), direction).map_err(|error| api::refused(verb, &error))?;
                let faults = self.apply(&mut rules, changed).await?;
                error::value(&Cleared { cleared, faults })
            }
            _ => {
                let ListFaults {} = error::arguments(verb, arguments)?;
                let rules = self.rules.lock().await;
                let counts = self.plane.faults(None).await.map_err(gone)?;
                error::value(&FaultList { faults: list(&rules, &counts) })
            }
        }
    }

    async fn find(&self, wanted: Wanted) -> Result<Target, FaultError> {
        match wanted {
            Wanted::Known(target) => Ok(target),
            Wanted::Name(name) => {
                Target::of_name(&name, self.resolver.addresses(&name).await, Limits::default().addresses)
            }
        }
    }

    /// The rules are others from now on; they are told as they are then.
    async fn apply(&self, rules: &mut Rules, changed: Rules) -> Result<Vec<FaultRule>, ApiError> {
        let counts = self.plane.faults(Some(changed.all().to_vec())).await.map_err(gone)?;
        self.resolver.set_failing(changed.dns_fail());
        *rules = changed;
        Ok(list(rules, &counts))
    }
}

fn gone(error: std::io::Error) -> ApiError {
    ApiError::new(Code::Gone, error.to_string())
}

/// One that can be typed again.
fn fresh_seed() -> Result<u64, ApiError> {
    let mut seed = [0; 4];
    let failed = |error| ApiError::new(Code::Internal, format!("cannot get random bytes: {error}"));
    crate::sys::random::fill(&mut seed).map_err(failed)?;
    Ok(u32::from_ne_bytes(seed).into())
}

fn list(rules: &Rules, counts: &[[Counts; 2]]) -> Vec<FaultRule> {
    let counted = |said: Impairment, counts: Counts| Impairment {
        packets: counts.packets,
        delayed: counts.delayed,
        lost: counts.lost,
        overflowed: counts.overflowed,
        ..said
    };
    let all = rules.all().iter().zip(counts.iter().copied().chain(std::iter::repeat(Default::default())));
    all.map(|(rule, [from_guest, to_guest])| {
        let said = FaultRule::from(rule);
        FaultRule {
            from_guest: counted(said.from_guest, from_guest),
            to_guest: counted(said.to_guest, to_guest),
            ..said
        }
    })
    .collect()
}
