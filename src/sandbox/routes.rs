//! The ways out of a sandbox that is on several networks, done by its first process.
//!
//! | | where |
//! |---|---|
//! | the default route of each family | the main table: by the first network in the order of ranks that leads out, and has the family |
//! | [`EMBEDDED_DNS`] | the local table: to the first network's gateway |
//! | from an address of the sandbox | a table of its interface with a default route by that network's gateway, by a rule |
//! | anything that is not default | the main table, by a rule before those: whatever somebody inside puts there counts |
//!
//! So a connection keeps to the network whose address it has when another becomes the gateway: its packets would otherwise leave
//! by the new one with the address of the old, which no network lets pass. A sandbox on one network has no rules.
//!
//! Rules that are there already stay without a gap; those of an interface that is gone are removed.

use std::net::IpAddr;

use super::interface::Interface;
use super::netlink::{Batch, NetlinkError, Rule, route_loopback_address};
use crate::stack::policy::EMBEDDED_DNS;
use crate::telemetry;

/// Priority of the rule for what is not default, and of those for addresses. Those of the kernel are 0, 32766 and 32767; lower
/// numbers are left to people.
const NOT_DEFAULT: u32 = 1000;
const FROM_ADDRESS: u32 = 1001;
/// Number of the table of interface 0; below 256 are those with names (RT_TABLE_*, include/uapi/linux/rtnetlink.h).
const TABLES: u32 = 1000;
/// The main table (RT_TABLE_MAIN).
const MAIN: u32 = 254;

/// What was arranged until now.
#[derive(Debug, Default)]
pub struct Routes {
    rules: Vec<Rule>,
    /// There may be a default route, of IPv4 and of IPv6.
    default: [bool; 2],
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Arranged {
    /// [`EMBEDDED_DNS`] leads to a gateway.
    pub embedded_dns: bool,
    /// What is not as it was to be.
    pub notes: Vec<String>,
}

impl Routes {
    /// For a sandbox whose interfaces are these, in the order of their ranks.
    pub fn arrange(&mut self, order: &[&Interface]) -> Result<Arranged, NetlinkError> {
        let mut arranged = Arranged::default();
        let mut rules = Vec::new();
        for (family, ipv6) in [false, true].into_iter().enumerate() {
            let mut default = None;
            let mut several = Vec::new();
            for interface in order.iter().filter(|interface| !interface.internal) {
                let Some((own, gateway)) = plan(interface, ipv6) else { continue };
                let index = interface.index()?;
                default.get_or_insert((index, gateway));
                let table = TABLES + index;
                several.push((table, index, gateway));
                rules.push(Rule { from: Some(own), priority: FROM_ADDRESS, table, keep_default: true, ipv6 });
            }
            let mut batch = Batch::default();
            match default {
                Some((index, gateway)) => {
                    batch.add_default_route(format!("set the default route via {gateway}"), index, gateway, None);
                }
                None if self.default[family] => batch.remove_default_route(ipv6),
                None => {}
            }
            // A rule that leads nowhere would lead on.
            if order.len() > 1 {
                for (table, index, gateway) in several {
                    let what = format!("set the route via {gateway} of table {table}");
                    batch.add_default_route(what, index, gateway, Some(table));
                }
            }
            match batch.run() {
                // Nobody has removed what somebody else did.
                Err(NetlinkError::Refused { source, .. })
                    if default.is_none() && source.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
            self.default[family] = default.is_some();
        }
        if order.len() < 2 {
            rules.clear();
        } else if !rules.is_empty() {
            for ipv6 in [false, true] {
                if rules.iter().any(|rule| rule.is_ipv6() == ipv6) {
                    rules.push(Rule { from: None, priority: NOT_DEFAULT, table: MAIN, keep_default: false, ipv6 });
                }
            }
        }
        self.set_rules(rules, &mut arranged);
        let embedded = Self::embed(order);
        arranged.notes.extend(embedded.notes);
        arranged.embedded_dns = embedded.embedded_dns;
        Ok(arranged)
    }

    fn set_rules(&mut self, wanted: Vec<Rule>, arranged: &mut Arranged) {
        let mut failed = |rule: &Rule, result: Result<(), NetlinkError>| {
            if let Err(error) = &result {
                // Without CONFIG_IP_MULTIPLE_TABLES only connections of another gateway's suffer.
                arranged.notes.push(format!("rule {rule}: {}", telemetry::chain(error)));
            }
            result.is_ok()
        };
        let (added, kept): (Vec<Rule>, Vec<Rule>) = wanted.into_iter().partition(|rule| !self.rules.contains(rule));
        let gone: Vec<Rule> = self.rules.iter().filter(|rule| !kept.contains(rule)).cloned().collect();
        self.rules = kept;
        for rule in added {
            if failed(&rule, rule.add()) {
                self.rules.push(rule);
            }
        }
        for rule in gone {
            failed(&rule, rule.remove());
        }
    }

    /// Has [`EMBEDDED_DNS`] lead to the first one's gateway, where one of them wants it.
    pub fn embed(order: &[&Interface]) -> Arranged {
        let mut arranged = Arranged::default();
        let wanted = order.iter().any(|interface| interface.embedded_dns);
        let Some((first, plan)) = order.first().and_then(|first| Some((first, first.v4?))).filter(|_| wanted) else {
            return arranged;
        };
        // The kernel sends nothing to the loopback network by any other interface, and takes nothing from it, without this
        // (Documentation/networking/ip-sysctl.rst, route_localnet).
        let routed = std::fs::write(format!("/proc/sys/net/ipv4/conf/{}/route_localnet", first.name), "1")
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let index = first.index().map_err(|error| telemetry::chain(&error))?;
                route_loopback_address(EMBEDDED_DNS, plan.gateway, index, first.keep_routes)
                    .map_err(|error| telemetry::chain(&error))
            });
        if let Err(why) = &routed {
            let note = format!("names inside are asked for at {}, not at {EMBEDDED_DNS}: {why}", plan.gateway);
            arranged.notes.push(note);
        }
        arranged.embedded_dns = routed.is_ok();
        arranged
    }
}

/// The address of one family, and the gateway.
fn plan(interface: &Interface, ipv6: bool) -> Option<(IpAddr, IpAddr)> {
    if ipv6 {
        interface.v6.map(|plan| (plan.guest.into(), plan.gateway_link_local.into()))
    } else {
        interface.v4.map(|plan| (plan.guest.into(), plan.gateway.into()))
    }
}
