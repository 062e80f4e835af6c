//! The interfaces of a sandbox as its first process makes, orders and deletes them: those that it is born with, and those of
//! networks that it is connected to later. The monitor says what, one thing at a time (`sandbox::proto`).

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::inside::{InsideError, Setup};
use super::interface::{self, Interface};
use super::netlink::{self, NetlinkError};
use super::proto::FromSandbox;
use super::resets::{self, Over, Whose};
use super::routes::Routes;
use super::tap;
use crate::api::attach::{self, AttachError};
use crate::network::config::Offloads;
use crate::telemetry;

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Networks {
    interfaces: Vec<Interface>,
    routes: Routes,
}

impl Networks {
    /// Makes the TAPs that the sandbox is born with, hands them over, and configures them. Returns whether names can be asked for
    /// at the address of Docker's containers.
    pub fn make(&mut self, conn: &OwnedFd, setup: &Setup, notes: &mut Vec<String>) -> Result<bool, InsideError> {
        let only = setup.interfaces.len() == 1;
        let mut embedded_dns = false;
        for interface in &setup.interfaces {
            let (taps, offloads) = tap::create_queues(&interface.name, interface.queues)?;
            tell(conn, &interface.name, &taps, offloads)?;
            drop(taps);
            let configured = interface::configure(interface, only)?;
            notes.extend(configured.notes);
            embedded_dns = configured.embedded_dns;
            self.interfaces.push(interface.clone());
        }
        if !only {
            let arranged = self.routes.arrange(&named(&self.interfaces, &setup.order))?;
            notes.extend(arranged.notes);
            embedded_dns = arranged.embedded_dns;
        }
        Ok(embedded_dns)
    }

    /// One more, without a way out: that comes with the order.
    pub fn connect(&mut self, conn: &OwnedFd, interface: Interface) -> Result<(), InsideError> {
        let name = interface.name.clone();
        let made = tap::create_queues(&name, interface.queues).map_err(|error| telemetry::chain(&error));
        let made = made.and_then(|made| {
            interface::configure(&interface, false).map_err(|error| telemetry::chain(&error))?;
            Ok(made)
        });
        match made {
            Ok((taps, offloads)) => {
                self.interfaces.push(interface);
                tell(conn, &name, &taps, offloads)?;
            }
            Err(desc) => attach::send(conn, &FromSandbox::NotConnected { name, desc }, &[])?,
        }
        Ok(())
    }

    /// Sets the ways out for these, in the order of their ranks. A failure is told as a note: the sandbox goes on.
    pub fn arrange(&mut self, names: &[String]) -> FromSandbox {
        match self.routes.arrange(&named(&self.interfaces, names)) {
            Ok(arranged) => FromSandbox::Ordered { embedded_dns: arranged.embedded_dns, notes: arranged.notes },
            Err(error) => FromSandbox::Ordered { embedded_dns: false, notes: vec![telemetry::chain(&error)] },
        }
    }

    /// Ends the connections of this interface that are over; `members`: those to members of its network, too.
    pub fn end_connections(&self, name: &str, members: bool) {
        let Some(interface) = self.interfaces.iter().find(|interface| interface.name == name) else { return };
        let others = self.interfaces.iter().filter(|other| other.name != name);
        let others = others.flat_map(|other| {
            let v4 = other.v4.map(|plan| plan.guest.into());
            v4.into_iter().chain(other.v6.map(|plan| plan.guest.into()))
        });
        let over = Over { v4: interface.v4, v6: interface.v6, whose: Whose::AllBut(others.collect()), members };
        match resets::end_connections(&over) {
            Ok(ended) => tracing::info!(interface = name, ended, "connections that are over"),
            Err(error) => tracing::warn!(interface = name, "connections that are over are left open: {error}"),
        }
    }

    /// Deletes an interface, with its addresses and routes. One that somebody has deleted is none.
    pub fn delete(&mut self, name: &str) {
        self.interfaces.retain(|interface| interface.name != name);
        let Ok(index) = nix::net::if_::if_nametoindex(name) else { return };
        match netlink::delete_link(name, index) {
            Ok(()) => {}
            Err(NetlinkError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => tracing::warn!("{}", telemetry::chain(&error)),
        }
    }
}

/// Hands the queues of a TAP over.
fn tell(conn: &OwnedFd, name: &str, taps: &[OwnedFd], offloads: Offloads) -> Result<(), AttachError> {
    let fds: Vec<RawFd> = taps.iter().map(AsRawFd::as_raw_fd).collect();
    attach::send(conn, &FromSandbox::Tap { name: name.to_owned(), offloads }, &fds)
}

fn named<'a>(interfaces: &'a [Interface], names: &[String]) -> Vec<&'a Interface> {
    names.iter().filter_map(|name| interfaces.iter().find(|interface| interface.name == *name)).collect()
}
