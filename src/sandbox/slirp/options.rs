//! What the command line of slirp4netns mode asks for, checked. Values only; `cli::slirp4netns` makes it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::network::config::{Mac, PlanV4};

/// What the other end of the link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The network namespace of a process.
    Pid(i32),
    /// A file that is a network namespace.
    Path(PathBuf),
    /// An open descriptor, of a TAP or a `SOCK_SEQPACKET` socket.
    TapFd(RawFd),
    /// A `SOCK_SEQPACKET` socket to be made at this path.
    Bess(PathBuf),
}

/// One command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// argv\[0\], for messages.
    pub program: String,
    /// The other end.
    pub target: Target,
    /// Name of the interface, at most 15 bytes; may be empty or hold `%d`.
    pub tap_name: String,
    /// `--configure`.
    pub configure: bool,
    /// `--exit-fd`.
    pub exit_fd: Option<RawFd>,
    /// `--ready-fd`.
    pub ready_fd: Option<RawFd>,
    /// `--mtu`, bytes, 1 to 65521.
    pub mtu: u16,
    /// `--enable-ipv6`.
    pub ipv6: bool,
    /// `--api-socket`.
    pub api_socket: Option<OsString>,
    /// `--cidr`, laid out: gateway +2, DNS +3, guest +100.
    pub plan: PlanV4,
    /// First and last address of DHCP: +15, +30.
    pub dhcp: (Ipv4Addr, Ipv4Addr),
    /// `--disable-host-loopback`.
    pub disable_host_loopback: bool,
    /// `--userns-path`.
    pub userns_path: Option<PathBuf>,
    /// `--enable-sandbox`.
    pub sandbox: bool,
    /// `--enable-seccomp`.
    pub seccomp: bool,
    /// `--outbound-addr`, resolved.
    pub outbound_v4: Option<Ipv4Addr>,
    /// `--outbound-addr6`, resolved.
    pub outbound_v6: Option<Ipv6Addr>,
    /// `--disable-dns`.
    pub disable_dns: bool,
    /// `--macaddress`.
    pub mac: Option<Mac>,
}
