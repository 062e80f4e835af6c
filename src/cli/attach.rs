//! `tapway attach` and `tapway detach`: a namespace that somebody else made becomes a member of a network, and stops being one.
//!
//! What can be read is checked first: that the target is a network namespace, that it is not the one that we are in, and
//! that the options go together. Then what the endpoint needs is taken (`cli::endpoint`), as for `tapway run`, and the monitor
//! (`sandbox::attached`) sends a child in.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use clap::Args;
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::detach::{self, Side};
use super::endpoint::{self, Endpoint, Names, Taken};
use super::endpoint_args::EndpointArgs;
use super::run_network::NetworkMode;
use super::stop::{end, for_each};
use super::table::output;
use super::{FAILURE, Failure, target};
use crate::api::verbs::life::Stop;
use crate::sandbox::attached::{self, Plan, Target};
use crate::sandbox::inside::INTERFACE;
use crate::sandbox::state::About;
use crate::sys;

/// Longest name of an interface (IFNAMSIZ, include/uapi/linux/if.h, with its end).
const MAX_INTERFACE: usize = 15;

const ATTACH_EXAMPLES: &str = "\
Examples:
  tapway network create web
  echo nameserver 127.0.0.11 > resolv.conf
  podman run -d --name db --network none -v ./resolv.conf:/etc/resolv.conf redis
  tapway attach -d --network web --name db $(podman inspect -f '{{.State.Pid}}' db)
      found as 'db' by every member of web, and finds them; podman knows nothing of it
  unshare -Urn sleep 1000 & tapway attach -d --network web --name box -p 8080:80 $!
  bwrap --unshare-all --info-fd 5 … 5>info &
  tapway attach -d --network web --name cage $(jq '.[\"child-pid\"]' info)
  tapway attach --network web --name blue /run/netns/blue
      stays in the foreground; Ctrl-C detaches
  tapway detach db

The id is printed when the interface is up. tapway ps, port, publish, dns, flows, capture and top know the name as that of
any sandbox; what runs inside stays whoever's it is: exec, logs and signals are theirs.
Names: members ask the gateway for them (`ip route` shows its address), or 127.0.0.11 on a network that you made; where
/etc/resolv.conf points is up to who made the container: nothing is mounted there.

Exit code: 0 when the namespace has ended, or by a signal or 'tapway detach'; 2 for a wrong command line; else 1.";

const DETACH_EXAMPLES: &str = "\
Examples:
  tapway detach db
      the name is printed when its interface, its address and its ports are gone; what runs inside goes on";

/// Arguments of `tapway attach`.
#[derive(Debug, Args)]
#[command(args_override_self = true, after_long_help = ATTACH_EXAMPLES)]
pub struct AttachArgs {
    /// A process in the namespace, or a file that is one, such as /run/netns/NAME
    #[arg(value_name = "PID|NETNS")]
    pub target: String,

    /// Its place on a network
    #[command(flatten)]
    pub endpoint: EndpointArgs,

    /// Name of the interface inside
    #[arg(long, value_name = "NAME", default_value = INTERFACE)]
    pub interface: String,
}

/// Arguments of `tapway detach`.
#[derive(Debug, Args)]
#[command(after_long_help = DETACH_EXAMPLES)]
pub struct DetachArgs {
    /// Names or ids of sandboxes
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandbox: Vec<String>,
}

/// `tapway attach`.
pub fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let options = &args.endpoint;
    if !options.detach {
        crate::telemetry::init(options.verbose, options.log_format);
        return run(args, None);
    }
    // What is said goes into a file sooner or later.
    crate::telemetry::init_with(options.verbose, options.log_format, false);
    match detach::split()? {
        Side::Caller(waiting) => waiting.wait(),
        Side::Monitor(ready) => run(args, Some(ready)),
    }
}

/// `tapway detach`.
pub fn detach(args: &DetachArgs) -> Result<u8, Failure> {
    for_each(&args.sandbox, |name| {
        let target = target::container(name)?;
        if target.sandbox.as_ref().is_some_and(|sandbox| sandbox.about.attached.is_none()) {
            let line = format!(
                "{name} was not attached: tapway made it, and its network goes with it; 'tapway stop {name}' ends it"
            );
            return Err(Failure { code: FAILURE, line });
        }
        end(&target, Stop::default())
    })
}

/// In the foreground, or, with somebody who is to be told when it is up, in the background.
fn run(args: &AttachArgs, ready: Option<OwnedFd>) -> Result<u8, Failure> {
    check_interface(&args.interface)?;
    let (mode, networks) = NetworkMode::of(&args.endpoint.network)?;
    if let [_, second, ..] = &networks[..] {
        return Err(Failure::usage(format!(
            "attach makes one interface, and --network names several networks; attach to {} by itself, with another --interface",
            second.name
        )));
    }
    if !matches!(mode, NetworkMode::Private | NetworkMode::Named(_)) {
        return Err(Failure::usage(format!(
            "conflicting options: attach and the network mode {}; give private or the name of a network",
            mode.name()
        )));
    }
    mode.check_endpoint(&args.endpoint)?;
    let target = find(&args.target)?;
    let endpoint = Endpoint::check(&args.endpoint, (mode, networks), &Names::default())?;
    endpoint::raise_descriptor_limit();
    let about = About {
        init: match target {
            Target::Process(pid) => u32::try_from(pid).ok(),
            Target::File(_) => None,
        },
        attached: Some(match &target {
            Target::Process(pid) => pid.to_string(),
            Target::File(path) => path.display().to_string(),
        }),
        detached: ready.is_some(),
        ..About::default()
    };
    let Taken { mut station, sandbox, runtime_dir, .. } = endpoint.take(&args.endpoint, about, &args.interface)?;
    // Somebody else made the namespace.
    for place in &mut station.places {
        place.interface.keep_routes = true;
    }
    let output_of = |ready| detach::keep_output(&runtime_dir, sandbox, args.endpoint.rm, ready).map(|(kept, ..)| kept);
    let plan = Plan { target, output: ready.map(output_of).transpose()?, station };
    // Whoever closed standard output does not want to know.
    let up = |id: &str| drop(output(&format!("{id}\n")));
    attached::run(plan, up).map_err(|error| Failure { code: error.exit_code(), line: crate::telemetry::chain(&error) })
}

/// As the kernel has it (net/core/dev.c, dev_valid_name), without patterns that it numbers.
fn check_interface(name: &str) -> Result<(), Failure> {
    let usable = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    if (1..=MAX_INTERFACE).contains(&name.len()) && name.bytes().all(usable) && name != "." && name != ".." {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "interface name '{name}' is not usable; give up to {MAX_INTERFACE} letters and digits, such as eth1"
    )))
}

/// The namespace that is meant, if it is one and not our own.
fn find(typed: &str) -> Result<Target, Failure> {
    let failed = |line: String| Err(Failure { code: FAILURE, line });
    let is_number = !typed.is_empty() && typed.bytes().all(|byte| byte.is_ascii_digit());
    let target = match typed.parse::<i32>() {
        Ok(pid) if is_number && pid > 0 => Target::Process(pid),
        _ if is_number => return failed(format!("no such process: {typed}")),
        _ if typed.contains('/') => Target::File(PathBuf::from(typed)),
        _ => {
            return Err(Failure::usage(format!(
                "'{typed}' is neither a process id nor the path of a network namespace, such as /run/netns/{typed}"
            )));
        }
    };
    // A pipe in its place must not block us.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(target.path());
    let file = match (file, &target) {
        (Ok(file), _) => file,
        (Err(error), Target::Process(pid)) => {
            return match error.raw_os_error().map(Errno::from_raw) {
                // Of one that has ended and was not waited for there are no namespaces.
                Some(Errno::ENOENT | Errno::ESRCH) => failed(format!("no such process: {pid}")),
                _ => failed(format!("process {pid} is not yours: its network namespace cannot be opened: {error}")),
            };
        }
        (Err(error), Target::File(path)) => return failed(format!("cannot open {}: {error}", path.display())),
    };
    if sys::namespace::kind(file.as_fd()) != Ok(CloneFlags::CLONE_NEWNET) {
        return failed(format!("{target} is not a network namespace"));
    }
    let identity = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    let own = File::open("/proc/self/ns/net").ok().and_then(|own| identity(&own));
    if own.is_some() && identity(&file) == own {
        return failed(format!(
            "{target} is in the same network as you are; what is attached needs a network namespace of its own"
        ));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::USAGE;

    #[test]
    fn what_is_no_target_is_refused() {
        let own = std::process::id().to_string();
        for (typed, line) in [
            ("0", "no such process: 0"),
            ("99999999999", "no such process: 99999999999"),
            ("/proc/self/ns/user", "/proc/self/ns/user is not a network namespace"),
            ("/dev/null", "/dev/null is not a network namespace"),
            ("/proc/self/ns/net", "/proc/self/ns/net is in the same network as you are"),
            ("/nowhere/x", "cannot open /nowhere/x: No such file"),
            (own.as_str(), "is in the same network as you are"),
        ] {
            let failure = find(typed).unwrap_err();
            assert!(failure.code == FAILURE && failure.line.contains(line), "{typed}: {failure:?}");
        }
        let failure = find("blue").unwrap_err();
        assert!(failure.code == USAGE && failure.line.contains("/run/netns/blue"), "{failure:?}");
        assert_eq!(find("").unwrap_err().code, USAGE);
    }

    #[test]
    fn names_of_interfaces() {
        for good in ["eth0", "a", "fifteen-letters"] {
            assert_eq!(check_interface(good), Ok(()));
        }
        for bad in ["", "sixteen-letters-", "a/b", "tap%d", "a b", "..", "eth0:1", "é"] {
            assert_eq!(check_interface(bad).unwrap_err().code, USAGE, "{bad}");
        }
    }
}
