//! Names at the desk: DNS settings, records and hosts are kept, put into the sandbox's files, and told to the resolver.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::edit::Edited;
use super::super::endpoint::Endpoint;
use super::super::files::{host_line, own_line};
use super::super::place;
use super::Desk;
use crate::api::attach::{self, AttachError, ToNetwork};
use crate::api::error::{ApiError, Code};
use crate::api::verbs::dns::{self, Change as NamesChange};
use crate::network::desired;

impl Desk {
    /// The host's name servers are others now.
    pub fn handle_host_servers(&mut self, servers: Vec<SocketAddr>) {
        if servers != self.host_servers {
            tracing::info!(?servers, "the host's name servers changed");
            self.host_servers = servers;
            self.servers_version += u64::from(self.desired.dns().servers.is_none());
        }
    }

    /// The sandbox's files are there. What has been asked for meanwhile is done now.
    pub fn handle_files(&mut self, resolv: Edited, hosts: Edited) {
        self.resolv_file = Some(resolv);
        self.hosts_file = Some(hosts);
        if let Err(error) = self.write_files() {
            tracing::warn!("{error}");
        }
    }

    /// The lines of /etc/hosts that are ours to change: the sandbox's own, and its hosts'.
    pub fn host_lines(&self) -> Vec<String> {
        let hostname = &self.template.config.hostname;
        let own = self.addresses.iter().map(|&address| own_line(address, hostname));
        own.chain(self.desired.hosts().iter().map(|host| host_line(host.address, &host.name.to_string()))).collect()
    }

    /// The lines of /etc/resolv.conf that may change.
    pub fn resolv_lines(&self) -> Vec<String> {
        let may = |line: &&str| ["nameserver", "search", "options"].iter().any(|word| line.starts_with(word));
        self.resolv_text().lines().filter(may).map(str::to_owned).collect()
    }

    /// The text of /etc/resolv.conf.
    pub fn resolv_text(&self) -> String {
        place::resolv_text(self.desired.dns(), &self.resolvers)
    }

    pub(super) fn write_files(&mut self) -> Result<(), ApiError> {
        let refused = |path: &str, error: std::io::Error| {
            ApiError::new(Code::Internal, format!("cannot edit {path} of the sandbox: {error}"))
        };
        let (hosts, resolv) = (self.host_lines(), self.resolv_lines());
        if let Some(file) = &mut self.hosts_file {
            file.set(hosts).map_err(|error| refused("/etc/hosts", error))?;
        }
        if let Some(file) = &mut self.resolv_file {
            file.set(resolv).map_err(|error| refused("/etc/resolv.conf", error))?;
        }
        Ok(())
    }

    pub(super) fn tell_servers(&mut self, at: &mut Endpoint) -> Result<(), AttachError> {
        at.told_servers = self.servers_version;
        let zones = self.desired.dns().zones.clone();
        at.uplink.link.push(&ToNetwork::HostDns { servers: self.servers(), zones }, Vec::new())
    }

    pub(super) fn tell_names(&mut self, at: &mut Endpoint) -> Result<(), AttachError> {
        at.told_names = self.names_version;
        for message in attach::zone_messages(self.desired.zone_records())? {
            at.uplink.link.push(&message, Vec::new())?;
        }
        Ok(())
    }

    /// Says what is due to the network process, once it has heard what was said before.
    pub fn tell_due(&mut self, at: &mut Endpoint) -> Result<(), AttachError> {
        // Before that all is told at attach.
        if at.attached && at.uplink.link.backlog() == 0 {
            if at.told_servers != self.servers_version {
                self.tell_servers(at)?;
            }
            if at.told_names != self.names_version {
                self.tell_names(at)?;
            }
        }
        Ok(())
    }

    /// The sandbox has these endpoints now, in the order of their ranks. `embedded`: the address of Docker's containers leads to
    /// the first one's gateway. Its files follow.
    pub fn handle_networks(&mut self, endpoints: &[&Endpoint], embedded: bool) {
        self.know_networks(endpoints, embedded);
        if let Err(error) = self.write_files() {
            tracing::warn!("{error}");
        }
    }

    /// The same, before there are files.
    pub fn know_networks(&mut self, endpoints: &[&Endpoint], embedded: bool) {
        self.addresses = endpoints
            .iter()
            .flat_map(|endpoint| {
                let (v4, v6) = endpoint.plans();
                v4.map(|plan| plan.guest.into()).into_iter().chain(v6.map(|plan| plan.guest.into()))
            })
            .collect();
        self.networks = endpoints
            .iter()
            .map(|endpoint| {
                let (v4, v6) = endpoint.plans();
                json!({
                    "network": endpoint.place.network,
                    "interface": endpoint.interface(),
                    "mac": endpoint.place.interface.mac.to_string(),
                    "v4": v4.map(|plan| plan.guest),
                    "v6": v6.map(|plan| plan.guest),
                    "gateway": endpoint.gateway,
                })
            })
            .collect();
        let places = endpoints.iter().map(|endpoint| (endpoint.place.names && embedded, endpoint.config()));
        self.resolvers = place::resolvers(places);
    }

    pub(super) fn names(&mut self, request: dns::Request) -> Result<Value, ApiError> {
        let (change, before) = (request.change(), self.desired.clone());
        let value = request.apply(&mut self.desired, &desired::Limits::default(), &self.host_servers);
        let value = value.map_err(|error| dns::refused(&error))?;
        if let (NamesChange::Settings | NamesChange::Hosts, Err(error)) = (change, self.write_files()) {
            self.desired = before;
            // One of two files may have been written.
            let _ = self.write_files();
            return Err(error);
        }
        match change {
            NamesChange::Nothing => {}
            NamesChange::Settings => self.servers_version += 1,
            NamesChange::Records | NamesChange::Hosts => self.names_version += 1,
        }
        Ok(value)
    }
}
