//! The first words of a monitor: everything from `Attach` to `Start` (`api::attach`), in order or refused. No I/O.

use std::os::fd::OwnedFd;

use super::{Attached, RuntimeError, control, faults};
use crate::api::attach::{self, ToNetwork};
use crate::network::fault::Rules;

/// What has been said so far.
#[derive(Debug, Default)]
pub struct Arrival {
    attached: Option<Box<Attached>>,
    /// The monitor waits for acknowledgements.
    converses: bool,
}

/// What a message led to.
#[derive(Debug)]
pub enum Heard {
    /// Nothing to say.
    Noted,
    /// To be acknowledged.
    Listened,
    /// Everything is told.
    Start(Box<Attached>),
}

impl Arrival {
    /// Takes one message with its descriptors.
    pub fn heed(&mut self, message: ToNetwork, fds: Vec<OwnedFd>) -> Result<Heard, RuntimeError> {
        match (message, &mut self.attached) {
            (ToNetwork::Attach { version, endpoint, pcap, queues, membership }, None) => {
                if version > attach::VERSION {
                    return Err(RuntimeError::Protocol(
                        "the monitor is newer than this network process; `tapway network upgrade` replaces it",
                    ));
                }
                self.converses = version >= attach::CONVERSES;
                let mut fds = fds.into_iter();
                let tap = fds.next().ok_or(RuntimeError::Protocol(
                    "no TAP came with the endpoint; is its limit on open files (RLIMIT_NOFILE) reached?",
                ))?;
                let pcap = if pcap {
                    Some(fds.next().ok_or(RuntimeError::Protocol(
                        "no capture file came with the endpoint; is its limit on open files (RLIMIT_NOFILE) reached?",
                    ))?)
                } else {
                    None
                };
                let queues: Vec<OwnedFd> = fds.take(queues.into()).collect();
                self.attached = Some(Box::new(Attached {
                    endpoint: *endpoint,
                    tap,
                    queues,
                    pcap,
                    listeners: Vec::new(),
                    dns: control::Names::default(),
                    metrics: None,
                    api: None,
                    exit: None,
                    membership: membership.map(|membership| *membership).unwrap_or_default(),
                    faults: Rules::default(),
                }));
            }
            (ToNetwork::Metrics, Some(attached)) => {
                let fd = fds.into_iter().next();
                attached.metrics = Some(fd.ok_or(RuntimeError::Protocol(
                    "no socket came with the metrics; is its limit on open files (RLIMIT_NOFILE) reached?",
                ))?);
            }
            (ToNetwork::Listen { listeners }, Some(attached)) => {
                if listeners.len() != fds.len() {
                    return Err(RuntimeError::Protocol(
                        "not all published ports came; is its limit on open files (RLIMIT_NOFILE) reached?",
                    ));
                }
                attached.listeners.extend(listeners.into_iter().zip(fds));
                if self.converses {
                    return Ok(Heard::Listened);
                }
            }
            (ToNetwork::HostDns { servers, zones }, Some(attached)) => {
                (attached.dns.servers, attached.dns.zones) = (servers, zones);
            }
            (ToNetwork::Zone { records, more }, Some(attached)) => attached.dns.take_part(records, more),
            (ToNetwork::Faults { faults }, Some(attached)) => attached.faults = faults::told(&faults),
            (ToNetwork::Start, Some(_)) => {
                let attached = self.attached.take();
                return attached.map(Heard::Start).ok_or(RuntimeError::Protocol("started without an endpoint"));
            }
            _ => return Err(RuntimeError::Protocol("message out of order")),
        }
        Ok(Heard::Noted)
    }
}
