//! `publish`, `unpublish` and `list_ports`.
//!
//! ```text
//! {"execute":"publish","arguments":{"specs":["127.0.0.1:8080:80","53:53/udp"]}}
//! {"return":{"ports":[{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80},…]}}
//! {"execute":"unpublish","arguments":{"ids":[1]}}
//! ```
//!
//! A spec is what `tapway run -p` takes (`network::publish`). A spec without a host address is two ports, one for each
//! family. All or nothing: of the specs of one request all are bound, or none is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::api::error::{ApiError, Code};
use crate::host::published::PortError;
use crate::network::config::Proto;
use crate::telemetry;

/// Arguments of `publish`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// `[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]`, ports singly or as ranges; at least one.
    pub specs: Vec<String>,
}

/// Arguments of `unpublish`: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unpublish {
    /// As they were published; each must be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specs: Option<Vec<String>>,
    /// Numbers that `publish`, `add_hostfwd` or `list_ports` gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<u64>>,
}

/// What is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By spec.
    Specs(Vec<String>),
    /// By number.
    Ids(Vec<u64>),
}

impl Unpublish {
    /// The one that was given.
    pub fn which(self) -> Result<Which, ApiError> {
        match self {
            Self { specs: Some(specs), ids: None } => Ok(Which::Specs(specs)),
            Self { specs: None, ids: Some(ids) } => Ok(Which::Ids(ids)),
            _ => Err(ApiError::new(Code::BadArgument, "unpublish: give either `specs` or `ids`")),
        }
    }
}

/// Arguments of `list_ports`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPorts {}

/// One bound host port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its number: 1 for the first of the sandbox, and never given again.
    pub id: u64,
    /// Transport.
    pub proto: Proto,
    /// The bound address.
    pub host_addr: IpAddr,
    /// The bound port.
    pub host_port: u16,
    /// The guest's address that it leads to.
    pub guest_addr: IpAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// What `publish` and `unpublish` return.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// What was bound or released, by number.
    pub ports: Vec<Port>,
}

/// What went through a port since the network process was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortTraffic {
    /// Connections, or UDP clients, from the first on.
    pub connections: u64,
    /// Bytes of payload that the guest sent.
    pub from_guest_bytes: u64,
    /// Bytes of payload that the guest was sent.
    pub to_guest_bytes: u64,
    /// Segments with payload, or datagrams, that the guest sent.
    pub from_guest_packets: u64,
    /// Segments with payload, or datagrams, that the guest was sent.
    pub to_guest_packets: u64,
}

/// One port, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedPort {
    /// What it is.
    #[serde(flatten)]
    pub port: Port,
    /// What went through it.
    #[serde(flatten)]
    pub traffic: PortTraffic,
}

/// What `list_ports` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortList {
    /// By number.
    pub ports: Vec<ListedPort>,
}

/// The refusal of a port that cannot be bound.
pub fn refused(error: &PortError) -> ApiError {
    let code = match error {
        PortError::InUse { .. } | PortError::NoneFree { .. } => Code::PortInUse,
        PortError::Privileged { .. } => Code::PortPrivileged,
        PortError::NotOurs { .. } => Code::AddressNotLocal,
        PortError::Other { source, .. } if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            Code::Limit
        }
        PortError::Other { .. } => Code::Internal,
    };
    ApiError::new(code, telemetry::chain(error))
}
