//! The ports of one sandbox, bound: those of `tapway run -p`, and those that came over its control socket.
//!
//! What they are called is in `api::registry`. The sockets stay here as long as the port is published, whatever becomes of
//! network processes: clients that come meanwhile wait in the backlog. Each network process numbers them from 0 on
//! (`api::attach`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::api::error::ApiError;
use crate::api::hostfwd::{Add, Entry, ForwardProto};
use crate::api::registry::{self, Registry, Specs};
use crate::api::verbs::ports::{Port, PortList, PortTraffic};
use crate::host::published;
use crate::network::config::Listener;
use crate::telemetry;

/// One bound socket.
pub type Bound = registry::Bound<Rc<OwnedFd>>;

/// All of them.
#[derive(Debug)]
pub struct Published {
    registry: Registry<Rc<OwnedFd>>,
    next_number: usize,
}

impl Published {
    /// Those that the sandbox is born with, and the guest's addresses.
    pub fn new(listeners: Vec<(Listener, OwnedFd)>, guest_v4: Option<Ipv4Addr>, guest_v6: Option<Ipv6Addr>) -> Self {
        let mut this = Self { registry: Registry::new(guest_v4, guest_v6), next_number: 0 };
        for (listener, fd) in listeners {
            this.add(listener, fd, None);
        }
        this
    }

    fn add(&mut self, listener: Listener, fd: OwnedFd, named: Option<(ForwardProto, IpAddr)>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.registry.add(listener, number, Rc::new(fd), named)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Bound> {
        self.registry.get(id)
    }

    /// What they are, by id.
    pub fn listeners(&self) -> Vec<Listener> {
        self.registry.iter().map(|bound| bound.listener).collect()
    }

    /// All of them for another network process, with numbers from `first` on: as many as it has been told of before.
    pub fn renumbered(&mut self, first: usize) -> Vec<(Listener, Rc<OwnedFd>)> {
        self.next_number = first + self.registry.len();
        let numbered = self.registry.iter_mut().enumerate().map(|(at, bound)| {
            bound.number = first + at;
            (bound.listener, Rc::clone(&bound.socket))
        });
        numbered.collect()
    }

    /// The numbers that the network process has for them.
    pub fn numbers(&self) -> Vec<usize> {
        self.registry.iter().map(|bound| bound.number).collect()
    }

    /// The guest's addresses are these from now on.
    pub fn set_guests(&mut self, guest_v4: Option<Ipv4Addr>, guest_v6: Option<Ipv6Addr>) {
        self.registry.set_guests(guest_v4, guest_v6);
    }

    /// These of them, in the order of their numbers.
    pub fn batch(&self, ids: &[u64]) -> Vec<(Listener, Rc<OwnedFd>)> {
        let known = ids.iter().filter_map(|&id| self.registry.get(id));
        known.map(|bound| (bound.listener, Rc::clone(&bound.socket))).collect()
    }

    /// Refuses more sockets than the limit on descriptors allows.
    pub fn check_room(&self, needed: usize) -> Result<(), ApiError> {
        self.registry.check_room(needed)
    }

    /// Binds all of them, or none; their ids.
    pub fn publish(&mut self, specs: &[String]) -> Result<Vec<u64>, ApiError> {
        let specs = Specs::parse(specs)?;
        self.check_room(specs.sockets())?;
        Ok(specs.bind()?.into_iter().map(|(listener, fd)| self.add(listener, fd, None)).collect())
    }

    /// Binds what `add_hostfwd` asks for; its id, or why not.
    pub fn forward(&mut self, add: &Add) -> Result<u64, String> {
        let &Add { proto, host_addr, host_port, guest_addr, guest_port } = add;
        let own = self.registry.guests();
        let meant = guest_addr.filter(|addr| !addr.is_unspecified());
        if let Some(other) = meant
            && !own.contains(&Some(other))
        {
            return Err(format!("{other} is not an address of this sandbox"));
        }
        let listed = guest_addr.or(own[0]).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let (listener, fd) = published::bind_one((host_addr, host_port, proto.transport()), meant, guest_port)
            .map_err(|error| telemetry::chain(&error))?;
        Ok(self.add(listener, fd, Some((proto, listed))))
    }

    /// Closes one.
    pub fn remove(&mut self, id: u64) -> Option<Bound> {
        self.registry.remove(id)
    }

    /// Closes all of these, or none.
    pub fn remove_all(&mut self, ids: &[u64]) -> Result<Vec<Bound>, ApiError> {
        self.registry.remove_all(ids)
    }

    /// Closes all that these specs mean, or none.
    pub fn unpublish(&mut self, specs: &[String]) -> Result<Vec<Bound>, ApiError> {
        self.registry.remove_specs(specs)
    }

    /// One, for a client.
    pub fn tell(&self, bound: &Bound) -> Port {
        self.registry.tell(bound)
    }

    /// All of them for a client, with the counters of the network process by its numbers.
    pub fn list(&self, traffic: &HashMap<usize, PortTraffic>) -> PortList {
        self.registry.list(traffic)
    }

    /// All of them in slirp4netns's words.
    pub fn entries(&self) -> Vec<Entry> {
        self.registry.entries()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn none() -> Published {
        Published::new(Vec::new(), Some(Ipv4Addr::new(10, 0, 2, 100)), None)
    }

    fn publish(ports: &mut Published, specs: &[&str]) -> Vec<u64> {
        let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
        ports.publish(&specs).unwrap()
    }

    #[test]
    fn ids_are_never_given_again_and_numbers_begin_anew() {
        let mut ports = none();
        assert_eq!(publish(&mut ports, &["127.0.0.1::80", "127.0.0.1::81/udp"]), [1, 2]);
        assert_eq!(ports.remove(1).unwrap().number, 0);
        assert_eq!(publish(&mut ports, &["127.0.0.1::82"]), [3]);
        assert_eq!(ports.get(3).unwrap().number, 2);
        assert_eq!(ports.renumbered(0).len(), 2);
        assert_eq!(ports.get(3).unwrap().number, 1);
        assert_eq!(publish(&mut ports, &["127.0.0.1::83"]), [4]);
        assert_eq!(ports.get(4).unwrap().number, 2);
        // A process that has been told of seven.
        ports.renumbered(7);
        assert_eq!(ports.numbers(), [7, 8, 9]);
        assert_eq!(publish(&mut ports, &["127.0.0.1::84"]), [5]);
        assert_eq!(ports.get(5).unwrap().number, 10);
    }

    #[test]
    fn forwards_lead_to_the_sandbox_alone() {
        let mut ports = none();
        let add = Add {
            proto: ForwardProto::Tcp,
            host_addr: "127.0.0.1".parse().unwrap(),
            host_port: 0,
            guest_addr: None,
            guest_port: 80,
        };
        assert_eq!(ports.forward(&add), Ok(1));
        assert_eq!(ports.entries()[0].guest_addr, IpAddr::from([10, 0, 2, 100]));
        assert_eq!(ports.forward(&Add { guest_addr: Some([10, 0, 2, 100].into()), ..add }), Ok(2));
        let error = ports.forward(&Add { guest_addr: Some([10, 0, 2, 15].into()), ..add }).unwrap_err();
        assert!(error.contains("10.0.2.15"), "{error}");
    }
}
