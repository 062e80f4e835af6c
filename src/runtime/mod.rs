//! The network process: link ⇄ stack ⇄ host.
//!
//! Two threads, and one more for each further queue that a TAP has ([`lanes`]). The **data plane** ([`engine`]) runs on the first: level-triggered epoll over the TAP, the listeners and
//! every host socket; it is the only reader of the clock and never waits for anything but epoll. The **control plane**
//! ([`control`]) is a tokio current-thread runtime: the attach connection, upstream DNS. They talk through bounded
//! channels and an eventfd; what does not fit is dropped and counted, so nothing there can stall a packet.
//! Each capture has a thread more, which only writes ([`capture`]).
//!
//! What the data plane has of one sandbox is an [`endpoint`]; the process of a shared network ([`network`]) has one for each
//! member.
//!
//! With a monitor ([`network_process`]) the process is told everything over the attach connection (`api::attach`), holds
//! only descriptors, and leaves when the connection closes: that is its lease. In slirp4netns mode ([`standalone`]) it is
//! set up by its own command line and ends with its exit descriptor or its TAP.

pub mod answers;
pub mod api;
pub mod arrival;
pub mod capture;
pub mod command;
pub mod control;
pub mod endpoint;
pub mod engine;
pub mod events;
pub mod fair;
mod faults;
pub mod forwards;
pub mod lanes;
mod metrics_http;
mod moderation;
pub mod network;
pub mod observe;
pub mod output;
pub mod own_names;
pub mod scene;
pub mod sockets;
pub mod told;
pub mod vigil;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use crate::api::attach::{self, AttachError, FromNetwork, ToNetwork};
use crate::confine;
use crate::network::config::{EndpointConfig, Listener, Membership, Turns};
use crate::network::fault::Rules;
use arrival::{Arrival, Heard};
use control::{Control, HostDns, Supervisor};
use engine::End;

/// Everything told before `Start`.
#[derive(Debug)]
pub struct Attached {
    /// Addresses and policy.
    pub endpoint: EndpointConfig,
    /// The TAP.
    pub tap: OwnedFd,
    /// Further queues of it.
    pub queues: Vec<OwnedFd>,
    /// An open capture file.
    pub pcap: Option<OwnedFd>,
    /// Published ports with their sockets.
    pub listeners: Vec<(Listener, OwnedFd)>,
    /// Whom to ask for names, and which are answered here.
    pub dns: control::Names,
    /// The listening socket where metrics are scraped.
    pub metrics: Option<OwnedFd>,
    /// The listening API socket, where the process serves one itself.
    pub api: Option<std::os::unix::net::UnixListener>,
    /// Whose other side, when it closes, ends the process.
    pub exit: Option<OwnedFd>,
    /// How the endpoint is a member, where the network is shared.
    pub membership: Membership,
    /// What happens to its packets on purpose.
    pub faults: Rules,
}

/// Why an attach failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The connection.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The monitor's words were out of order.
    #[error("attach connection: {0}")]
    Protocol(&'static str),
    /// The kernel refused something that the process cannot be without.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its errno.
        #[source]
        source: std::io::Error,
    },
    /// Confinement.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
}

/// Names the failed step of a system call.
fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> RuntimeError {
    move |source| RuntimeError::System { what, source: source.into() }
}

/// Serves one endpoint; returns when the monitor is gone. Whose turn it is (`engine`) is noted in `serving`.
pub fn network_process(conn: OwnedFd, serving: &'static Turns) -> ExitCode {
    match serve(&conn, serving) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RuntimeError::Attach(AttachError::Closed)) => ExitCode::SUCCESS,
        Err(error) => {
            let desc = crate::telemetry::chain(&error);
            tracing::error!("{desc}");
            let _ = attach::send(conn.as_fd(), &FromNetwork::Failed { desc, aside: false }, &[]);
            ExitCode::FAILURE
        }
    }
}

fn serve(conn: &OwnedFd, serving: &'static Turns) -> Result<(), RuntimeError> {
    let text = crate::sys::memory::Text::find();
    // Before a byte of anybody's is read, and while there is one thread.
    let report = confine::enter(confine::Options::default())?;
    scene::watch();
    tracing::debug!(?report, "confined");
    let confinement = report.outcomes().map(|(stage, outcome)| (stage.to_owned(), outcome.to_string())).into();
    let attached = receive(conn)?;
    let for_control = conn.try_clone().map_err(system("duplicate the attach connection"))?;
    set_nonblocking(&for_control)?;
    let (engine, mut control) = engine::build(attached, Supervisor::Monitor(for_control), Some(serving))?;
    control.set_confinement(confinement);
    // When the lease is over, host sockets close with a reset, listeners with them.
    start_control(control, || std::process::exit(0))?;
    engine::tell_ready(conn)?;
    // What it took to get here is not needed again.
    text.drop_pages();
    engine.run().map(drop)
}

/// Serves one endpoint in a process that has been confined, as `confinement` says, and told everything already. `ready` is called when frames
/// flow; returns when it is over.
pub fn standalone(
    attached: Attached,
    host_dns: HostDns,
    confinement: BTreeMap<String, String>,
    ready: impl FnOnce(),
) -> Result<End, RuntimeError> {
    scene::watch();
    let (engine, mut control) = engine::build(attached, Supervisor::Caller { host_dns }, None)?;
    control.set_confinement(confinement);
    // The caller ends the process, with what it has to tidy up and its exit code.
    start_control(control, || ())?;
    ready();
    engine.run()
}

/// Starts the control thread; it calls `ended` last.
fn start_control(control: Control, ended: fn()) -> Result<(), RuntimeError> {
    start_control_with(move |runtime| control.run(runtime), ended)
}

/// The same for whatever runs there.
fn start_control_with(
    run: impl FnOnce(&tokio::runtime::Runtime) + Send + 'static,
    ended: fn(),
) -> Result<(), RuntimeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(system("start the control plane"))?;
    std::thread::Builder::new()
        .name("control".into())
        .stack_size(CONTROL_STACK)
        .spawn(move || {
            run(&runtime);
            ended();
        })
        .map_err(system("start the control thread"))?;
    Ok(())
}

/// Stack of the control thread; DNS messages live on the heap.
const CONTROL_STACK: usize = 256 * 1024;

fn set_nonblocking(fd: &OwnedFd) -> Result<(), RuntimeError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(|_| ()).map_err(system("make a connection non-blocking"))
}

/// Listens to the monitor until it says `Start`.
fn receive(conn: &OwnedFd) -> Result<Attached, RuntimeError> {
    let mut arrival = Arrival::default();
    loop {
        let (message, fds) = attach::recv::<ToNetwork>(conn.as_fd())?;
        match arrival.heed(message, fds)? {
            Heard::Noted => {}
            Heard::Listened => attach::send(conn.as_fd(), &FromNetwork::Listened { error: None }, &[])?,
            Heard::Start(attached) => return Ok(*attached),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixDatagram;

    /// As text, and whether a descriptor comes along: what monitors of that version say.
    fn told(version: u32, messages: &[(&str, bool)]) -> Result<Attached, RuntimeError> {
        let (monitor, ours) = UnixDatagram::pair().unwrap();
        let endpoint = r#"{"id":"0123456789ab","mtu":1500,"guest_mac":[2,0,0,0,0,1],"gateway_mac":[2,0,0,0,0,2],
            "v4":null,"v6":null,"offloads":{"vnet_hdr":false,"csum":false,"tso4":false,"tso6":false,"uso":false},
            "allow_host_loopback":false,"allow_link_local":false,"outbound_v4":null,"outbound_v6":null,
            "hostname":"h","dns_search":[],"slirp":null}"#;
        let attach = format!(r#"{{"Attach":{{"version":{version},"endpoint":{endpoint},"pcap":false}}}}"#);
        for (text, fd) in [(attach.as_str(), true)].iter().chain(messages).chain(&[(r#""Start""#, false)]) {
            let fds = [monitor.as_raw_fd()];
            attach::send_text(&monitor, text.as_bytes(), if *fd { &fds } else { &[] }).unwrap();
        }
        receive(&ours.into())
    }

    #[test]
    fn monitors_of_all_versions_are_understood() {
        let dns = (r#"{"HostDns":{"servers":["192.0.2.53:53"]}}"#, false);
        for version in 1..=2 {
            let attached = told(version, &[dns]).unwrap();
            assert!(attached.metrics.is_none() && attached.dns.servers.len() == 1, "{version}");
        }
        assert!(told(3, &[(r#""Metrics""#, true), dns]).unwrap().metrics.is_some());
        assert!(told(3, &[dns]).unwrap().metrics.is_none());
        for (version, messages) in [(attach::VERSION + 1, &[dns][..]), (3, &[(r#""Metrics""#, false)])] {
            assert!(matches!(told(version, messages), Err(RuntimeError::Protocol(_))), "{version} {messages:?}");
        }
    }
}
