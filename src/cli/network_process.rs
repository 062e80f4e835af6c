//! Network processes that are executed. Hidden: monitors start them.
//!
//! `tapway __endpoint FORMAT LEVEL` is that of one sandbox whose monitor is of a tapway that was installed before (`sandbox::uplink`). Its
//! standard input is its connection to the monitor, its standard output where it notes whose turn it is, its standard error its log.
//!
//! `tapway __network NAME CONFIG` is that of a shared network (`sandbox::shared`).
//!
//! Its standard input is the listening socket for monitors, its standard output the one for reads, its standard error its
//! log. It makes itself nobody's child and nobody's session, so that it outlives its starter and no terminal signals it.
//! Whoever is waited for leaves at once, with 0 if the process is there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::setsid;

use super::Failure;
use crate::network::config::NetworkConfig;
use crate::runtime::{self, network::Before};
use crate::sandbox::blame::{self, Deaths};
use crate::sys::fd::duplicate_inherited;
use crate::sys::spawn::{self, Forked};
use crate::telemetry::{self, LogFormat};

/// Arguments of `tapway __endpoint`.
#[derive(Debug, Args)]
pub struct EndpointProcessArgs {
    /// How lines of its log look
    #[arg(value_enum)]
    pub format: LogFormat,
    /// What it logs
    pub level: String,
}

/// Becomes the process of one sandbox.
pub fn endpoint(args: &EndpointProcessArgs) -> Result<u8, Failure> {
    let (Some(conn), Some(words)) = (duplicate_inherited(0), duplicate_inherited(1)) else {
        return Err(Failure::usage(format!("{} is started by tapway itself", crate::sandbox::uplink::COMMAND)));
    };
    leave_streams();
    telemetry::init(0, args.format);
    if let Err(error) = telemetry::set_level(&args.level) {
        tracing::warn!("{error}");
    }
    let serving = crate::sys::memory::shared_words(Some(&File::from(words)));
    let serving = serving.map_err(|error| Failure::usage(format!("standard output is no place for notes: {error}")))?;
    Ok(u8::from(runtime::network_process(conn, serving) != std::process::ExitCode::SUCCESS))
}

/// The process's name, and nothing where the connections were.
fn leave_streams() {
    // It was executed by a path whose last part would be its name.
    let _ = nix::sys::prctl::set_name(c"tapway");
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

/// Arguments of `tapway __network`.
#[derive(Debug, Args)]
pub struct NetworkProcessArgs {
    /// The network's name, for lists of processes
    pub name: String,
    /// What the network is, as JSON
    pub config: String,
    /// Directory of what it has at run time (`sandbox::blame`)
    pub dir: PathBuf,
}

/// Becomes the process; only the one that is waited for returns.
pub fn main(args: &NetworkProcessArgs) -> Result<u8, Failure> {
    let config: NetworkConfig = serde_json::from_str(&args.config)
        .map_err(|error| Failure::usage(format!("'{}' is not a network: {error}", args.config)))?;
    let (Some(attach), Some(reads)) = (duplicate_inherited(0), duplicate_inherited(1)) else {
        return Err(Failure::usage(format!("{} is started by tapway itself", crate::sandbox::shared::COMMAND)));
    };
    match spawn::fork().map_err(|error| Failure::runtime(&error))? {
        Forked::Parent(_) => Ok(0),
        Forked::Child => spawn::leave_with(|| {
            let _ = setsid();
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            leave_streams();
            telemetry::init(0, LogFormat::Text);
            u8::from(serve(attach, reads, config, &args.dir) != std::process::ExitCode::SUCCESS)
        }),
    }
}

fn serve(attach: OwnedFd, reads: OwnedFd, config: NetworkConfig, dir: &Path) -> std::process::ExitCode {
    let why = blame::refusal(&config.name);
    let aside = Deaths::read(dir).aside.into_iter().map(|aside| (aside.sandbox, why.clone())).collect();
    let serving = blame::serving(dir)
        .inspect_err(|error| tracing::warn!("who kills this process will not be known: {error}"))
        .ok();
    runtime::network::shared_network_process(attach, Some(reads), config, Before { serving, aside })
}
