//! The guest's interface, once its TAP is there: addresses, routes, and what /proc/sys has to say of it. Done in the network
//! namespace that it is in, by the first process of a sandbox or by a child that entered somebody else's (`foreign::join`).
//!
//! Where /proc/sys is read-only (in a container) its settings stay as they are: the interface then listens to our router
//! advertisements, too, which say the same; and names are asked for at the gateway, not at [`EMBEDDED_DNS`].

use super::netlink::{self, NetlinkError};
use crate::network::config::{Mac, PlanV4, PlanV6};
use crate::stack::policy::EMBEDDED_DNS;
use crate::telemetry;

/// What the interface is to be.
#[derive(Clone, Debug)]
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
    /// There is no way out of its network.
    pub internal: bool,
    /// Names are to be asked for at [`EMBEDDED_DNS`], which leads to the gateway.
    pub embedded_dns: bool,
    /// Routes that are there stay: somebody else made the namespace, and they would be missing when we have gone.
    pub keep_routes: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Configured {
    /// [`EMBEDDED_DNS`] leads to the gateway.
    pub embedded_dns: bool,
    /// What is not as it was to be.
    pub notes: Vec<String>,
}

/// Configures it, and lo.
pub fn configure(wanted: &Interface) -> Result<Configured, NetlinkError> {
    let name = wanted.name.as_str();
    let index = nix::net::if_::if_nametoindex(name)
        .map_err(|errno| NetlinkError::Refused { what: format!("find {name}"), source: errno.into() })?;
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
        internal: wanted.internal,
        keep_routes: wanted.keep_routes,
    })?;
    let (Some(plan), true) = (wanted.v4, wanted.embedded_dns) else {
        return Ok(Configured { embedded_dns: false, notes });
    };
    // The kernel sends nothing to the loopback network by any other interface, and takes nothing from it, without this
    // (Documentation/networking/ip-sysctl.rst, route_localnet).
    let routed = std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")
        .map_err(|error| error.to_string())
        .and_then(|()| {
            netlink::route_loopback_address(EMBEDDED_DNS, plan.gateway, index, wanted.keep_routes)
                .map_err(|error| telemetry::chain(&error))
        });
    if let Err(why) = &routed {
        notes.push(format!("names inside are asked for at {}, not at {EMBEDDED_DNS}: {why}", plan.gateway));
    }
    Ok(Configured { embedded_dns: routed.is_ok(), notes })
}
