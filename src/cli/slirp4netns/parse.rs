//! From words to [`Options`]: what follows what, and what is said.
//!
//! 1. Options, left to right. A value that needs nothing else is checked on the spot, so the first mistake is the one that
//!    is told; `--help` and `--version` end it all there and then.
//! 2. What does not go together: `--macaddress` without `--configure`, BESS and what means nothing to it.
//! 3. The other words: target and interface. One too many is a warning, since callers do that.
//! 4. The contents of network, sources and MAC.
//!
//! A mistake in 1. to 3. is followed by the usage text on stdout, one in 4. is not. The code is 1 for all. Warnings go to
//! stdout, each once, when their option comes by.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::getopt::{Getopt, Given};
use super::table::{self, Id};
use super::values::{self, ValueError};
use crate::network::plan::{DEFAULT_SUBNET, MAX_MTU};
use crate::sandbox::slirp::options::{Options, Target};
use crate::telemetry;

/// MTU without `--mtu`, bytes.
const DEFAULT_MTU: u16 = 1500;
/// Longest name of an interface, bytes (IFNAMSIZ less the terminator).
const MAX_NAME: usize = 15;

/// What the command line comes to.
#[derive(Debug, PartialEq)]
pub enum End {
    /// Print the help or the version; success.
    Print(String),
    /// Usage, after a complaint if there is one to make; failure.
    Usage(Option<String>),
    /// A complaint alone; failure.
    Refused(ValueError),
    /// Go on.
    Run(Box<Options>),
}

/// What was given, as far as it needs the rest to be understood.
#[derive(Default)]
struct Raw {
    configure: bool,
    exit_fd: Option<i32>,
    ready_fd: Option<i32>,
    mtu: Option<u16>,
    cidr: Option<String>,
    disable_host_loopback: bool,
    netns_type: Option<OsString>,
    userns_path: Option<PathBuf>,
    api_socket: Option<OsString>,
    ipv6: bool,
    sandbox: bool,
    seccomp: bool,
    outbound_v4: Option<String>,
    outbound_v6: Option<String>,
    disable_dns: bool,
    mac: Option<String>,
    target_type: Option<OsString>,
}

fn complain(what: impl Into<String>) -> End {
    End::Usage(Some(what.into()))
}

/// Reads the command line. `posix`: the first word that is no option ends them. `warn` is handed each warning as it
/// arises.
pub fn parse(
    program: &str,
    words: impl IntoIterator<Item = OsString>,
    posix: bool,
    warn: &mut dyn FnMut(String),
) -> End {
    let mut warned = Vec::new();
    let mut warn = |text: String| {
        if !warned.contains(&text) {
            warn(format!("WARNING: {text}"));
            warned.push(text);
        }
    };
    let names = table::names();
    let mut getopt = Getopt::new(&names, words, posix);
    let mut raw = Raw::default();
    while let Some(option) = getopt.next_option() {
        let step = match option {
            Ok(given) => take(program, given, &mut raw, &mut warn),
            Err(complaint) => Err(complain(format!("{program}: {complaint}"))),
        };
        if let Err(end) = step {
            return end;
        }
    }
    let link = together(&raw).and_then(|()| link(&raw, &getopt.others(), &mut warn));
    match link {
        Ok((target, tap_name)) => finish(program, raw, target, tap_name).map_or_else(End::Refused, End::Run),
        Err(end) => end,
    }
}

/// One option.
fn take(program: &str, given: Given<Id>, raw: &mut Raw, warn: &mut dyn FnMut(String)) -> Result<(), End> {
    let value = given.value.unwrap_or_default();
    let text = || value.to_string_lossy().into_owned();
    let descriptor = |name: &str| {
        let number = values::integer::<i32>(&text()).filter(|&fd| fd >= 0);
        number.map(Some).ok_or_else(|| complain(format!("{name} must be a non-negative integer")))
    };
    let experimental = |what: &str| format!("Support for {what} is experimental");
    let deprecated = |old: &str, new: &str| {
        format!("{old} is deprecated and will be removed in future releases, please use {new} instead.")
    };
    match given.id {
        Id::Configure => raw.configure = true,
        Id::ExitFd => raw.exit_fd = descriptor("exit-fd")?,
        Id::ReadyFd => raw.ready_fd = descriptor("ready-fd")?,
        Id::Mtu => {
            let mtu = values::integer(&text()).filter(|mtu| (1..=MAX_MTU).contains(mtu));
            let bad = || complain(format!("MTU must be a positive integer (< {})", MAX_MTU + 1));
            raw.mtu = Some(mtu.ok_or_else(bad)?);
        }
        Id::Cidr => raw.cidr = Some(text()),
        Id::DisableHostLoopback => raw.disable_host_loopback = true,
        Id::NoHostLoopback => {
            warn(deprecated("--no-host-loopback", "--disable-host-loopback"));
            raw.disable_host_loopback = true;
        }
        Id::NetnsType => raw.netns_type = Some(value),
        Id::UsernsPath => {
            if access(Path::new(&value), AccessFlags::F_OK).is_err() {
                return Err(complain(format!("userns path doesn't exist: {}", text())));
            }
            raw.userns_path = Some(value.into());
        }
        Id::ApiSocket => raw.api_socket = Some(value),
        Id::EnableIpv6 => {
            warn(experimental("IPv6"));
            raw.ipv6 = true;
        }
        Id::EnableSandbox => raw.sandbox = true,
        Id::CreateSandbox => {
            warn(deprecated("--create-sandbox", "--enable-sandbox"));
            raw.sandbox = true;
        }
        Id::EnableSeccomp => {
            warn(experimental("seccomp"));
            raw.seccomp = true;
        }
        Id::Help => return Err(End::Print(table::usage(program))),
        Id::Version => return Err(End::Print(table::version())),
        Id::OutboundAddr => {
            warn(experimental("--outbound-addr"));
            raw.outbound_v4 = Some(text());
        }
        Id::OutboundAddr6 => {
            warn(experimental("--outbound-addr6"));
            raw.outbound_v6 = Some(text());
        }
        Id::DisableDns => raw.disable_dns = true,
        Id::MacAddress => raw.mac = Some(text()),
        Id::TargetType => raw.target_type = Some(value),
    }
    Ok(())
}

/// What does not depend on the other words.
fn together(raw: &Raw) -> Result<(), End> {
    if raw.mac.is_some() && !raw.configure {
        return Err(complain("--macaddr cannot be specified when --configure or -c is not specified"));
    }
    match raw.target_type.as_deref().map(OsStr::as_bytes) {
        None | Some(b"netns" | b"bess") => Ok(()),
        Some(_) => Err(complain("--target-type must be either \"netns\" or \"bess\"")),
    }
}

/// The other end, and the name of the interface.
fn link(raw: &Raw, words: &[OsString], warn: &mut dyn FnMut(String)) -> Result<(Target, String), End> {
    let first = words.first().ok_or(End::Usage(None))?;
    if raw.target_type.as_deref() == Some(OsStr::new("bess")) {
        if words.len() > 1 {
            return Err(complain("too many arguments"));
        }
        let conflicts = [
            ("--configure", raw.configure),
            ("--netns-type", raw.netns_type.is_some()),
            ("--userns-path", raw.userns_path.is_some()),
        ];
        if let Some((name, _)) = conflicts.iter().find(|(_, given)| *given) {
            return Err(complain(format!("{name} conflicts with --target-type=bess")));
        }
        warn("BESS mode is experimental".to_owned());
        return Ok((Target::Bess(first.into()), String::new()));
    }
    let kind = raw.netns_type.as_deref().map_or(&b"pid"[..], OsStr::as_bytes);
    let names_interface = kind != b"tapfd";
    if words.len() > 1 + usize::from(names_interface) {
        warn("too many arguments".to_owned());
    }
    let number = || values::integer::<i32>(&first.to_string_lossy());
    let target = match kind {
        b"pid" => {
            let pid = number().filter(|&pid| pid > 0);
            Target::Pid(pid.ok_or_else(|| complain("PID must be a positive integer"))?)
        }
        b"tapfd" => {
            let fd = number().filter(|&fd| fd >= 0);
            Target::TapFd(fd.ok_or_else(|| complain("TAPFD must a file descriptor"))?)
        }
        // Any other word means a path, and the message names the one that is documented.
        _ => {
            access(Path::new(first), AccessFlags::F_OK).map_err(|errno| {
                complain(format!("existing path expected when --netns-type=path: {}", telemetry::strerror(errno)))
            })?;
            Target::Path(first.into())
        }
    };
    if !names_interface {
        return Ok((target, String::new()));
    }
    let name = words.get(1).ok_or(End::Usage(None))?.to_string_lossy();
    Ok((target, name[..name.floor_char_boundary(MAX_NAME)].to_owned()))
}

/// The values that are looked at last.
fn finish(program: &str, raw: Raw, target: Target, tap_name: String) -> Result<Box<Options>, ValueError> {
    let (plan, dhcp) = values::plan(raw.cidr.as_deref().unwrap_or(DEFAULT_SUBNET))?;
    let outbound_v4 = raw.outbound_v4.map(|text| values::outbound_v4(&text, values::addresses)).transpose()?;
    let outbound_v6 = raw.outbound_v6.map(|text| values::outbound_v6(&text, values::addresses)).transpose()?;
    let mac = raw.mac.as_deref().map(values::mac).transpose()?;
    Ok(Box::new(Options {
        program: program.to_owned(),
        target,
        tap_name,
        configure: raw.configure,
        exit_fd: raw.exit_fd,
        ready_fd: raw.ready_fd,
        mtu: raw.mtu.unwrap_or(DEFAULT_MTU),
        ipv6: raw.ipv6,
        api_socket: raw.api_socket,
        plan,
        dhcp,
        disable_host_loopback: raw.disable_host_loopback,
        userns_path: raw.userns_path,
        sandbox: raw.sandbox,
        seccomp: raw.seccomp,
        outbound_v4,
        outbound_v6,
        disable_dns: raw.disable_dns,
        mac,
    }))
}

#[cfg(test)]
mod tests;
