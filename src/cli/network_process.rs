//! `tapway __network NAME CONFIG`: the process of a shared network. Hidden: monitors start it (`sandbox::shared`).
//!
//! Its standard input is the listening socket for monitors, its standard output the one for reads, its standard error its
//! log. It makes itself nobody's child and nobody's session, so that it outlives its starter and no terminal signals it.
//! Whoever is waited for leaves at once, with 0 if the process is there.

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
            // It was executed by way of /proc/self/exe, whose last part would be its name.
            let _ = nix::sys::prctl::set_name(c"tapway");
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
            if let Ok(null) = null {
                let _ = nix::unistd::dup2_stdin(&null);
                let _ = nix::unistd::dup2_stdout(&null);
            }
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
