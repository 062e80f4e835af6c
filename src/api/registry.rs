//! The published ports of one process: ids, lookup, and what the verbs about ports say of them.
//!
//! Each socket has an id, 1 for the first and never given again, which clients know, and a number, by which the data plane
//! of the moment knows it. Who holds the sockets is the owner's business (`S`): a monitor keeps them, so that they outlive
//! network processes (`sandbox::published`); a process that stands alone gives them to its data plane
//! (`runtime::forwards`). Binding is done here, all or nothing, since what a refusal says is part of the protocol.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use nix::sys::resource::{Resource, getrlimit};

use super::error::{ApiError, Code};
use super::hostfwd::{Entry, ForwardProto};
use super::verbs::ports::{ListedPort, Port, PortList, PortTraffic, refused};
use crate::host::ports;
use crate::network::config::{Listener, Proto};
use crate::network::publish::{self, HostPort, Publish};

/// Descriptors that are left for everything but published ports.
const RESERVE: u64 = 128;

/// One published socket.
#[derive(Clone, Debug)]
pub struct Bound<S> {
    /// What clients call it.
    pub id: u64,
    /// What the data plane calls it.
    pub number: usize,
    /// What it is.
    pub listener: Listener,
    /// The socket, where the owner keeps it.
    pub socket: S,
    /// As `add_hostfwd` named it: the protocol, and the guest's address.
    named: Option<(ForwardProto, IpAddr)>,
}

/// All of them.
#[derive(Debug)]
pub struct Registry<S> {
    by_id: BTreeMap<u64, Bound<S>>,
    last_id: u64,
    guest_v4: Option<Ipv4Addr>,
    guest_v6: Option<Ipv6Addr>,
}

/// The specs of one request, understood.
#[derive(Debug)]
pub struct Specs(Vec<(String, Vec<Publish>)>);

impl Specs {
    /// What the specs of one request mean, none against another.
    pub fn parse(specs: &[String]) -> Result<Self, ApiError> {
        if specs.is_empty() {
            return Err(ApiError::new(Code::BadArgument, "there is no spec; give at least one, such as \"8080:80\""));
        }
        let bad = |error: publish::PublishError| ApiError::new(Code::BadArgument, error.to_string());
        publish::parse_all(specs).map_err(bad)?;
        let one = |spec: &String| Ok((spec.clone(), publish::parse(spec).map_err(bad)?));
        specs.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// How many sockets they take at most.
    pub fn sockets(&self) -> usize {
        self.0.iter().flat_map(|(_, publishes)| publishes).map(ports::sockets).sum()
    }

    /// Binds all of them, or none.
    pub fn bind(&self) -> Result<Vec<(Listener, OwnedFd)>, ApiError> {
        let mut bound = Vec::new();
        for (spec, wanted) in &self.0 {
            bound.extend(ports::bind_all(wanted).map_err(|error| {
                let ApiError { desc, code } = refused(&error);
                ApiError::new(code, format!("published port '{spec}': {desc}"))
            })?);
        }
        Ok(bound)
    }
}

impl<S> Registry<S> {
    /// None yet. The guest's addresses are those of ports that name none.
    pub fn new(guest_v4: Option<Ipv4Addr>, guest_v6: Option<Ipv6Addr>) -> Self {
        Self { by_id: BTreeMap::new(), last_id: 0, guest_v4, guest_v6 }
    }

    /// The guest's addresses are these from now on.
    pub fn set_guests(&mut self, guest_v4: Option<Ipv4Addr>, guest_v6: Option<Ipv6Addr>) {
        (self.guest_v4, self.guest_v6) = (guest_v4, guest_v6);
    }

    /// Takes one up; its id. `named`: as `add_hostfwd` named it.
    pub fn add(&mut self, listener: Listener, number: usize, socket: S, named: Option<(ForwardProto, IpAddr)>) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.by_id.insert(id, Bound { id, number, listener, socket, named });
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
    pub fn get(&self, id: u64) -> Option<&Bound<S>> {
        self.by_id.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Bound<S>> {
        self.by_id.values()
    }

    /// All of them, by id, to be numbered anew.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Bound<S>> {
        self.by_id.values_mut()
    }

    /// The guest's own addresses.
    pub fn guests(&self) -> [Option<IpAddr>; 2] {
        [self.guest_v4.map(IpAddr::V4), self.guest_v6.map(IpAddr::V6)]
    }

    /// Refuses what the limit on descriptors does not allow, before anything is bound.
    pub fn check_room(&self, needed: usize) -> Result<(), ApiError> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let left = limit.saturating_sub(RESERVE).saturating_sub(self.len() as u64);
        if needed as u64 <= left {
            return Ok(());
        }
        let desc = format!(
            "{needed} more sockets are needed and {left} are left of the limit on open files ({limit}); \
             publish fewer, or raise the limit (ulimit -n) before tapway is started"
        );
        Err(ApiError::new(Code::Limit, desc))
    }

    /// Closes one.
    pub fn remove(&mut self, id: u64) -> Option<Bound<S>> {
        self.by_id.remove(&id)
    }

    /// Closes all of these, or none.
    pub fn remove_all(&mut self, ids: &[u64]) -> Result<Vec<Bound<S>>, ApiError> {
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
    pub fn remove_specs(&mut self, specs: &[String]) -> Result<Vec<Bound<S>>, ApiError> {
        let Specs(wanted) = Specs::parse(specs)?;
        let mut by_guest: HashMap<(Proto, u16), Vec<&Bound<S>>> = HashMap::new();
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
        let [v4, v6] = self.guests();
        let family = if listener.host_addr.is_ipv6() { v6 } else { None };
        listener.guest_addr.or(family).or(v4).or(v6).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// One, for a client.
    pub fn tell(&self, bound: &Bound<S>) -> Port {
        let Listener { proto, host_addr, host_port, guest_port, .. } = bound.listener;
        Port { id: bound.id, proto, host_addr, host_port, guest_addr: self.guest_of(&bound.listener), guest_port }
    }

    /// All of them for a client, with the data plane's counters by its numbers.
    pub fn list(&self, traffic: &HashMap<usize, PortTraffic>) -> PortList {
        let listed = |bound: &Bound<S>| ListedPort {
            port: self.tell(bound),
            traffic: traffic.get(&bound.number).copied().unwrap_or_default(),
        };
        PortList { ports: self.by_id.values().map(listed).collect() }
    }

    /// All of them in slirp4netns's words.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |bound: &Bound<S>| {
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

    fn none() -> Registry<OwnedFd> {
        Registry::new(Some(Ipv4Addr::new(10, 0, 2, 100)), None)
    }

    fn publish(ports: &mut Registry<OwnedFd>, specs: &[&str]) -> Result<Vec<u64>, ApiError> {
        let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
        let bound = Specs::parse(&specs)?.bind()?;
        Ok(bound.into_iter().map(|(listener, fd)| ports.add(listener, 0, fd, None)).collect())
    }

    fn unpublish(ports: &mut Registry<OwnedFd>, spec: &str) -> Result<Vec<u64>, Code> {
        let removed = ports.remove_specs(&[spec.to_owned()]).map_err(|error| error.code)?;
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
        assert_eq!(ports.check_room(1 << 40).unwrap_err().code, Code::Limit);
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
}
