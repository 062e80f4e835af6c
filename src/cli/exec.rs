//! `tapway exec NAME -- CMD`: a further command in a running sandbox.

use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use clap::Args;
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;

use super::run_network::choose_user;
use super::{FAILURE, Failure, target};
use crate::sandbox::command::Start;
use crate::sandbox::exec::{self, Exec};
use crate::sandbox::users::{self, Identity};
use crate::sandbox::{jobs, life};

const EXAMPLES: &str = "\
Examples:
  tapway exec site -- ss -ltn
  tapway exec site bash
      a shell in the sandbox 'site', with its network, files and processes
  tapway exec -d -w /srv -e DEBUG=1 site ./worker
      in the background; it ends with the sandbox at the latest

The standard streams and the terminal are the caller's, and so is the environment, with -e on top.
Exit code: the command's own; 128+N if signal N ended it; 127 if it was not found, 126 if it could not be
  executed; 2 for a wrong command line; 1 if the sandbox could not be entered.";

/// Arguments of `tapway exec`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ExecArgs {
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Set a variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Where it starts [default: where the caller is, or / if that is hidden inside]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// User inside [default: that of the sandbox's command]
    #[arg(short, long, value_name = "UID[:GID]|keep")]
    pub user: Option<String>,
    /// Do not wait for it; its standard streams are /dev/null
    #[arg(short, long)]
    pub detach: bool,
    /// Accepted out of habit; stdin is always the caller's
    #[arg(short, long, hide = true)]
    pub interactive: bool,
    /// Accepted out of habit; the terminal is always the caller's
    #[arg(short, long, hide = true)]
    pub tty: bool,
}

/// Does it; the exit code of the command.
pub fn main(args: ExecArgs) -> Result<u8, Failure> {
    let environment = args.env.iter().map(variable).collect::<Result<Vec<_>, _>>()?;
    let choice = args.user.as_deref().map(users::parse_user).transpose().map_err(Failure::usage)?;
    let command = args
        .command
        .into_iter()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Failure::usage("the command has a NUL byte in it"))?;
    let target = target::container(&args.sandbox)?;
    let (namespaces, mut fds) = target.namespaces()?;
    let own = Identity { uid: namespaces.uid, gid: namespaces.gid };
    let (identity, _) = choose_user(choice, own, &namespaces, target.name())?;
    let Some(first) = fds.pop() else { return Err(Failure::usage("no such sandbox")) };
    let entered: Vec<(CloneFlags, OwnedFd)> =
        namespaces.namespaces.iter().map(|&kind| life::flag(kind)).zip(fds).collect();
    if args.detach && !entered.iter().any(|&(flag, _)| flag == CloneFlags::CLONE_NEWPID) {
        let line = format!(
            "sandbox {} shares the host's process ids, where a detached command would outlive it; leave --detach out",
            target.name()
        );
        return Err(Failure { code: FAILURE, line });
    }
    let shares_terminal = !args.detach && jobs::shares_terminal();
    let foreground = shares_terminal && jobs::is_interactive();
    let start = Start {
        command,
        environment,
        directory: args.workdir,
        // Always set: after entering, this process has the capabilities of the sandbox's owner whoever it is.
        identity: Some(identity),
        own_group: !shares_terminal || foreground,
        foreground,
        own_session: args.detach,
        dies_with_parent: !args.detach,
        stdio: if args.detach { Some(nowhere()?) } else { None },
        signal_mask: SigSet::thread_get_mask().unwrap_or(SigSet::empty()),
        descriptor_limit: None,
    };
    let exec = Exec { namespaces: entered, first, start, shares_terminal, detach: args.detach };
    exec::run(exec).map_err(|error| Failure { code: error.exit_code(), line: crate::telemetry::chain(&error) })
}

/// `NAME=VALUE`; a name alone is the caller's variable, which is there anyway.
fn variable(text: &OsString) -> Result<(OsString, OsString), Failure> {
    let bytes = text.as_bytes();
    let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(0) => {}
        Some(at) => return Ok((part(&bytes[..at]), part(&bytes[at + 1..]))),
        None if bytes.is_empty() => {}
        None => return Ok((text.clone(), std::env::var_os(text).unwrap_or_default())),
    }
    Err(Failure::usage(format!("variable '{}' has no name; write NAME=VALUE", text.to_string_lossy())))
}

/// Standard streams of a detached command.
fn nowhere() -> Result<[OwnedFd; 3], Failure> {
    let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let all = || Ok([open()?, open()?, open()?]);
    all().map_err(|error: std::io::Error| Failure { code: FAILURE, line: format!("cannot open /dev/null: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let read =
            |text: &str| variable(&OsString::from(text)).map(|(n, v)| format!("{}|{}", n.display(), v.display()));
        assert_eq!(read("A=b=c"), Ok("A|b=c".to_owned()));
        assert_eq!(read("A="), Ok("A|".to_owned()));
        assert_eq!(read("PATH"), Ok(format!("PATH|{}", std::env::var("PATH").unwrap_or_default())));
        for bad in ["", "=x"] {
            assert!(read(bad).unwrap_err().line.contains(&format!("'{bad}'")));
        }
    }
}
