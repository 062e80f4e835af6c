//! Names at the desk: DNS settings, records and hosts are kept, put into the sandbox's files, and told to the resolver.

use std::net::SocketAddr;

use serde_json::Value;

use super::super::edit::Edited;
use super::super::files::host_line;
use super::super::link::Link;
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
            self.servers_due |= self.desired.dns().servers.is_none();
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

    /// The lines of /etc/hosts that are these hosts'.
    pub fn host_lines(&self) -> Vec<String> {
        self.desired.hosts().iter().map(|host| host_line(host.address, &host.name.to_string())).collect()
    }

    /// The lines of /etc/resolv.conf that may change.
    pub fn resolv_lines(&self) -> Vec<String> {
        let text = self.desired.dns().resolv_conf(&self.resolvers);
        let may = |line: &&str| line.starts_with("search") || line.starts_with("options");
        text.lines().filter(may).map(str::to_owned).collect()
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

    pub(super) fn tell_servers(&mut self, link: &mut Link) -> Result<(), AttachError> {
        self.servers_due = false;
        let zones = self.desired.dns().zones.clone();
        link.push(&ToNetwork::HostDns { servers: self.servers(), zones }, Vec::new())
    }

    pub(super) fn tell_names(&mut self, link: &mut Link) -> Result<(), AttachError> {
        self.names_due = false;
        for message in attach::zone_messages(self.desired.zone_records())? {
            link.push(&message, Vec::new())?;
        }
        Ok(())
    }

    /// Says what is due to the network process, once it has heard what was said before.
    pub fn tell_due(&mut self, link: &mut Link) -> Result<(), AttachError> {
        if !self.attached {
            // All is told at attach.
            (self.names_due, self.servers_due) = (false, false);
        }
        if link.backlog() == 0 {
            if self.servers_due {
                self.tell_servers(link)?;
            }
            if self.names_due {
                self.tell_names(link)?;
            }
        }
        Ok(())
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
            NamesChange::Settings => self.servers_due = true,
            NamesChange::Records | NamesChange::Hosts => self.names_due = true,
        }
        Ok(value)
    }
}
