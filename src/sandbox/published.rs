//! The ports of one sandbox, bound: those of `tapway run -p`, and those that came over its control socket.
//!
//! Each socket has an id, 1 for the first and never given again, which clients know, and a number, by which the network
//! process of the moment knows it (`api::attach`). The sockets stay here as long as the port is published, whatever becomes
//! of network processes: clients that come meanwhile wait in the backlog.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::ports;
use crate::api::error::{ApiError, Code};
use crate::api::hostfwd::{Add, Entry, ForwardProto};
use crate::api::verbs::ports::{ListedPort, Port, PortList, PortTraffic, refused};
use crate::host::published;
use crate::network::config::{Listener, Proto};
use crate::network::publish::{self, HostPort, Publish};
use crate::telemetry;

/// One bound socket.
#[derive(Clone, Debug)]
pub struct Bound {
    /// What clients call it.
    pub id: u64,
    /// What the network process calls it.
    pub number: usize,
    /// What it is.
    pub listener: Listener,
    /// The socket.
    pub fd: Rc<OwnedFd>,
    /// As `add_hostfwd` named it.
    named: Option<(ForwardProto, IpAddr)>,
}

/// All of them.
#[derive(Debug)]
pub struct Published {
    by_id: BTreeMap<u64, Bound>,
    last_id: u64,
    next_number: usize,
    guest_v4: Option<Ipv4Addr>,
    guest_v6: Option<Ipv6Addr>,
}

impl Published {
    /// Those that the sandbox is born with, and the guest's addresses.
    pub fn new(listeners: Vec<(Listener, OwnedFd)>, guest_v4: Option<Ipv4Addr>, guest_v6: Option<Ipv6Addr>) -> Self {
        let mut this = Self { by_id: BTreeMap::new(), last_id: 0, next_number: 0, guest_v4, guest_v6 };
        for (listener, fd) in listeners {
            this.add(listener, fd, None);
        }
        this
    }

    fn add(&mut self, listener: Listener, fd: OwnedFd, named: Option<(ForwardProto, IpAddr)>) -> u64 {
        self.last_id += 1;
        let (id, number) = (self.last_id, self.next_number);
        self.next_number += 1;
        self.by_id.insert(id, Bound { id, number, listener, fd: Rc::new(fd), named });
        id
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Bound> {
        self.by_id.get(&id)
    }

    /// What they are, by id.
    pub fn listeners(&self) -> Vec<Listener> {
        self.by_id.values().map(|bound| bound.listener).collect()
    }

    /// All of them for a new network process, with numbers from 0 on.
    pub fn renumbered(&mut self) -> Vec<(Listener, Rc<OwnedFd>)> {
        for (number, bound) in self.by_id.values_mut().enumerate() {
            bound.number = number;
        }
        self.next_number = self.by_id.len();
        self.by_id.values().map(|bound| (bound.listener, Rc::clone(&bound.fd))).collect()
    }

    /// These of them, in the order of their numbers.
    pub fn batch(&self, ids: &[u64]) -> Vec<(Listener, Rc<OwnedFd>)> {
        ids.iter().filter_map(|id| self.by_id.get(id)).map(|bound| (bound.listener, Rc::clone(&bound.fd))).collect()
    }

    /// What the specs of one request mean, each by itself, none against another.
    pub fn parse(specs: &[String]) -> Result<Vec<(String, Vec<Publish>)>, ApiError> {
        if specs.is_empty() {
            return Err(ApiError::new(Code::BadArgument, "there is no spec; give at least one, such as \"8080:80\""));
        }
        let bad = |error: publish::PublishError| ApiError::new(Code::BadArgument, error.to_string());
        publish::parse_all(specs).map_err(bad)?;
        specs.iter().map(|spec| Ok((spec.clone(), publish::parse(spec).map_err(bad)?))).collect()
    }

    /// Binds all of them, or none; their ids.
    pub fn publish(&mut self, specs: &[(String, Vec<Publish>)]) -> Result<Vec<u64>, ApiError> {
        let mut bound = Vec::new();
        for (spec, wanted) in specs {
            bound.extend(ports::bind_all(wanted).map_err(|error| {
                let ApiError { desc, code } = refused(&error);
                ApiError::new(code, format!("published port '{spec}': {desc}"))
            })?);
        }
        Ok(bound.into_iter().map(|(listener, fd)| self.add(listener, fd, None)).collect())
    }

    /// Binds what `add_hostfwd` asks for; its id, or why not.
    pub fn forward(&mut self, add: &Add) -> Result<u64, String> {
        let &Add { proto, host_addr, host_port, guest_addr, guest_port } = add;
        let own = [self.guest_v4.map(IpAddr::V4), self.guest_v6.map(IpAddr::V6)];
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
        self.by_id.remove(&id)
    }

    /// Closes all of these, or none.
    pub fn remove_all(&mut self, ids: &[u64]) -> Result<Vec<Bound>, ApiError> {
        let mut seen = HashSet::new();
        for id in ids {
            if !self.by_id.contains_key(id) {
                return Err(ApiError::new(Code::NotFound, format!("there is no port {id}; see list_ports")));
            }
            if !seen.insert(id) {
                return Err(ApiError::new(Code::BadArgument, format!("port {id} is given twice")));
            }
        }
        if ids.is_empty() {
            return Err(ApiError::new(Code::BadArgument, "there is no id; give at least one"));
        }
        Ok(ids.iter().filter_map(|id| self.by_id.remove(id)).collect())
    }

    /// Closes all that these specs mean, or none. A spec without a host address means every address that the port is
    /// bound to; one without a host port, whichever was chosen.
    pub fn unpublish(&mut self, specs: &[String]) -> Result<Vec<Bound>, ApiError> {
        let wanted = Self::parse(specs)?;
        let mut by_guest: HashMap<(Proto, u16), Vec<&Bound>> = HashMap::new();
        for bound in self.by_id.values() {
            by_guest.entry((bound.listener.proto, bound.listener.guest_port)).or_default().push(bound);
        }
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        for (spec, publishes) in &wanted {
            for publish in publishes {
                let candidates = by_guest.get(&(publish.proto, publish.guest_port)).map_or(&[][..], Vec::as_slice);
                let before = ids.len();
                let fitting = candidates.iter().filter(|bound| fits(&bound.listener, publish)).map(|bound| bound.id);
                ids.extend(fitting.filter(|&id| seen.insert(id)));
                if ids.len() == before {
                    let desc = format!("published port '{spec}': nothing is published like that; see list_ports");
                    return Err(ApiError::new(Code::NotFound, desc));
                }
            }
        }
        self.remove_all(&ids)
    }

    fn guest_of(&self, listener: &Listener) -> IpAddr {
        let family = if listener.host_addr.is_ipv6() { self.guest_v6.map(IpAddr::V6) } else { None };
        let usual = family.or(self.guest_v4.map(IpAddr::V4)).or(self.guest_v6.map(IpAddr::V6));
        listener.guest_addr.or(usual).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// One, for a client.
    pub fn tell(&self, bound: &Bound) -> Port {
        let Listener { proto, host_addr, host_port, guest_port, .. } = bound.listener;
        Port { id: bound.id, proto, host_addr, host_port, guest_addr: self.guest_of(&bound.listener), guest_port }
    }

    /// All of them for a client, with the counters of the network process by its numbers.
    pub fn list(&self, traffic: &HashMap<usize, PortTraffic>) -> PortList {
        let listed = |bound: &Bound| ListedPort {
            port: self.tell(bound),
            traffic: traffic.get(&bound.number).copied().unwrap_or_default(),
        };
        PortList { ports: self.by_id.values().map(listed).collect() }
    }

    /// All of them in slirp4netns's words.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |bound: &Bound| {
            let Listener { proto, host_addr, host_port, guest_port, .. } = bound.listener;
            let of_family = match (proto, host_addr.is_ipv6()) {
                (Proto::Tcp, false) => ForwardProto::Tcp,
                (Proto::Tcp, true) => ForwardProto::Tcp6,
                (Proto::Udp, false) => ForwardProto::Udp,
                (Proto::Udp, true) => ForwardProto::Udp6,
            };
            let (proto, guest_addr) = bound.named.unwrap_or((of_family, self.guest_of(&bound.listener)));
            Entry { id: bound.id, proto, host_addr, host_port, guest_addr, guest_port }
        };
        self.by_id.values().map(entry).collect()
    }
}

/// True if a bound socket is one that the publication means.
fn fits(bound: &Listener, publish: &Publish) -> bool {
    let port = match publish.host_port {
        HostPort::Chosen => true,
        HostPort::Fixed(port) => bound.host_port == port,
        HostPort::FirstOf(first, last) => (first..=last).contains(&bound.host_port),
    };
    port && publish.host.is_none_or(|host| host == bound.host_addr)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn none() -> Published {
        Published::new(Vec::new(), Some(Ipv4Addr::new(10, 0, 2, 100)), None)
    }

    fn publish(ports: &mut Published, specs: &[&str]) -> Result<Vec<u64>, ApiError> {
        let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
        ports.publish(&Published::parse(&specs)?)
    }

    fn unpublish(ports: &mut Published, spec: &str) -> Result<Vec<u64>, Code> {
        let removed = ports.unpublish(&[spec.to_owned()]).map_err(|error| error.code)?;
        Ok(removed.iter().map(|bound| bound.id).collect())
    }

    #[test]
    fn all_or_nothing_and_the_fault_is_named() {
        let mut ports = none();
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().port();
        let error = publish(&mut ports, &["127.0.0.1::80", &format!("127.0.0.1:{taken}:81")]).unwrap_err();
        assert_eq!(error.code, Code::PortInUse);
        assert!(error.desc.contains(&format!("'127.0.0.1:{taken}:81'")), "{error}");
        assert!(error.desc.contains(&format!("port {taken}/tcp")), "{error}");
        assert!(ports.is_empty());
        let error = publish(&mut ports, &["192.0.2.1:8080:80"]).unwrap_err();
        assert_eq!(error.code, Code::AddressNotLocal);
        assert_eq!(publish(&mut ports, &[]).unwrap_err().code, Code::BadArgument);
        assert_eq!(publish(&mut ports, &["http"]).unwrap_err().code, Code::BadArgument);
        assert_eq!(publish(&mut ports, &["127.0.0.1::80"]).unwrap(), [1], "no number was used up");
    }

    #[test]
    fn ids_are_never_given_again_and_numbers_begin_anew() {
        let mut ports = none();
        assert_eq!(publish(&mut ports, &["127.0.0.1::80", "127.0.0.1::81/udp"]).unwrap(), [1, 2]);
        assert_eq!(ports.remove(1).unwrap().number, 0);
        assert_eq!(publish(&mut ports, &["127.0.0.1::82"]).unwrap(), [3]);
        assert_eq!(ports.get(3).unwrap().number, 2);
        assert_eq!(ports.renumbered().len(), 2);
        assert_eq!(ports.get(3).unwrap().number, 1);
    }

    #[test]
    fn what_specs_take_back() {
        let mut ports = none();
        let ids = publish(&mut ports, &["127.0.0.1::80", "127.0.0.2::80", "127.0.0.1::80/udp"]).unwrap();
        let first = ports.get(1).unwrap().listener.host_port;
        assert_eq!(unpublish(&mut ports, &format!("127.0.0.3:{first}:80")), Err(Code::NotFound));
        assert_eq!(unpublish(&mut ports, "81"), Err(Code::NotFound));
        assert_eq!(unpublish(&mut ports, &format!("127.0.0.1:{first}:80")), Ok(vec![1]));
        assert_eq!(unpublish(&mut ports, "80"), Ok(vec![2]));
        assert_eq!(unpublish(&mut ports, "80/udp"), Ok(vec![3]));
        assert_eq!(ids.len(), 3);
        assert_eq!(ports.remove_all(&[9]).unwrap_err().code, Code::NotFound);
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
