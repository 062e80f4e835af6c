//! Which of a sandbox's networks is its gateway: the one that has the default route and the published ports. The order of all of
//! them is also the one in which they are asked for names.
//!
//! Docker's rule (default_gateway.go): first the higher `gw-priority`, then a network with a way out before an internal one,
//! one with both families before one with IPv4 alone, then the name. An internal network is nobody's gateway.

use std::cmp::Reverse;

/// A network's place in that order; the least is the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    priority: Reverse<i32>,
    internal: bool,
    ipv4_only: bool,
    name: String,
}

impl Rank {
    /// Of the network called `name`, which the sandbox joined with this priority, and on which it has an IPv6 address or not.
    pub fn new(priority: i32, internal: bool, ipv6: bool, name: &str) -> Self {
        Self { priority: Reverse(priority), internal, ipv4_only: !ipv6, name: name.to_owned() }
    }

    /// True if the network has a way out.
    pub fn leads_out(&self) -> bool {
        !self.internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_order() {
        let mut all = [
            Rank::new(0, false, false, "b"),
            Rank::new(0, true, true, "a"),
            Rank::new(0, false, false, "a"),
            Rank::new(-1, false, true, "c"),
            Rank::new(0, false, true, "z"),
            Rank::new(5, true, false, "i"),
            Rank::new(5, false, false, "y"),
        ];
        all.sort();
        let names: Vec<&str> = all.iter().map(|rank| rank.name.as_str()).collect();
        assert_eq!(names, ["y", "i", "z", "a", "b", "a", "c"]);
        // The first with a way out is the gateway.
        assert_eq!(all.iter().find(|rank| rank.leads_out()).map(|rank| rank.name.as_str()), Some("y"));
    }
}
