//! The guest's interface, once its TAP is there: addresses, routes, and what /proc/sys has to say of it. Done in the network
//! namespace that it is in, by the first process of a sandbox or by a child that entered somebody else's (`foreign::join`).
//!
//! Where /proc/sys is read-only (in a container) its settings stay as they are: the interface then listens to our router
//! advertisements, too, which say the same; and names are asked for at the gateway, not at [`EMBEDDED_DNS`](crate::stack::policy::EMBEDDED_DNS).

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

use super::netlink::{self, NetlinkError};
use super::routes::Routes;
use crate::network::config::{Mac, PlanV4, PlanV6};

/// What the interface is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// MTU, bytes.
    pub mtu: u16,
    /// IPv4 plan.
    pub v4: Option<PlanV4>,
    /// IPv6 plan.
    pub v6: Option<PlanV6>,
    /// Queues of the TAP, where the kernel has several.
    pub queues: NonZeroU8,
    /// There is no way out of its network.
    pub internal: bool,
    /// Names are to be asked for at [`EMBEDDED_DNS`](crate::stack::policy::EMBEDDED_DNS), which leads to the gateway.
    pub embedded_dns: bool,
    /// Routes that are there stay: somebody else made the namespace, and they would be missing when we have gone.
    pub keep_routes: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Configured {
    /// [`EMBEDDED_DNS`](crate::stack::policy::EMBEDDED_DNS) leads to the gateway.
    pub embedded_dns: bool,
    /// What is not as it was to be.
    pub notes: Vec<String>,
}

impl Interface {
    /// Its index in the current network namespace.
    pub fn index(&self) -> Result<u32, NetlinkError> {
        nix::net::if_::if_nametoindex(self.name.as_str())
            .map_err(|errno| NetlinkError::Refused { what: format!("find {}", self.name), source: errno.into() })
    }
}

/// Configures it, and lo. Unless it is the `only` one, ways out are `routes::Routes::arrange`'s.
pub fn configure(wanted: &Interface, only: bool) -> Result<Configured, NetlinkError> {
    let (name, index) = (wanted.name.as_str(), wanted.index()?);
    let set = |setting: &str, value: &str| {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value);
    };
    if wanted.v6.is_some() {
        set("disable_ipv6", "0");
        set("accept_ra", "0");
        set("accept_dad", "0");
    } else {
        set("disable_ipv6", "1");
    }
    let mut notes = netlink::configure(&netlink::Interface {
        name,
        index,
        mac: wanted.mac,
        mtu: wanted.mtu,
        v4: wanted.v4,
        v6: wanted.v6,
        no_default: wanted.internal || !only,
        keep_routes: wanted.keep_routes,
    })?;
    if only {
        let arranged = Routes::embed(&[wanted]);
        notes.extend(arranged.notes);
        return Ok(Configured { embedded_dns: arranged.embedded_dns, notes });
    }
    Ok(Configured { embedded_dns: false, notes })
}
