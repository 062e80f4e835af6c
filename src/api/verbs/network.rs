//! `get_info`, `get_stats` and `list_members` of a shared network's own socket: what there is to see of all its members. One
//! request, one reply.
//!
//! ```text
//! {"execute":"list_members"}
//! {"return":{"members":[{"id":"0123456789ab","name":"redis","mac":"02:42:ac:12:00:02","v4":"172.18.0.2",…}]}}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All verbs.
pub const VERBS: [&str; 3] = ["get_info", "get_stats", "list_members"];

/// Result of `get_info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkProcessInfo {
    /// tapway's version.
    pub version: String,
    /// The network process.
    pub pid: u32,
    /// Since it began.
    pub uptime_seconds: f64,
    /// The network's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// MTU of its members' interfaces.
    pub mtu: u16,
    /// Nothing leaves.
    pub internal: bool,
    /// Members reach each other.
    pub icc: bool,
    /// Members reach the world.
    pub masquerade: bool,
    /// Members are found by name.
    pub names: bool,
    /// Members now.
    pub members: u64,
    /// And at most.
    pub max_members: u64,
    /// How each stage of confinement ended.
    pub confinement: BTreeMap<String, String>,
}

/// Result of `get_stats`: sums over the members there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStats {
    /// Numbers by name.
    pub counters: BTreeMap<String, u64>,
    /// What was dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Result of `list_members`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// In the order of the switch's ports.
    pub members: Vec<Member>,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Id of its sandbox.
    pub id: String,
    /// Its first name; the id if it has none.
    pub name: String,
    /// All its names.
    pub names: Vec<String>,
    /// Number of its port.
    pub port: u32,
    /// MAC address.
    pub mac: String,
    /// IPv4 address.
    pub v4: Option<String>,
    /// IPv6 address.
    pub v6: Option<String>,
    /// Frames and bytes that crossed its TAP, to and from whomever.
    pub frames_from_guest: u64,
    /// To it.
    pub frames_to_guest: u64,
    /// Bytes from it, Ethernet headers included.
    pub bytes_from_guest: u64,
    /// Bytes to it.
    pub bytes_to_guest: u64,
    /// Flows by way of the gateway that live.
    pub flows: u64,
    /// What was dropped, by reason; those that did not occur are left out.
    pub drops: BTreeMap<String, u64>,
}
