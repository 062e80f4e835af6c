//! The system call filter: what a network process may ask of the kernel.
//!
//! There is one filter for each [`Role`]. A network process that a monitor stands by holds descriptors only. One that
//! stands alone (slirp4netns mode) is its own monitor in three things: it reads resolv.conf, makes listeners, and removes
//! its API socket; what it may do more is said where it is allowed.
//!
//! Two seccomp programs. The first is an allow-list that kills the process for anything else; the second answers some
//! calls with an errno where libraries try and fall back:
//!
//! | calls | answer | because |
//! |---|---|---|
//! | `clone3` | ENOSYS | its flags are behind a pointer; the C library then uses `clone`, whose flags can be read |
//! | opening, looking at and listing files | EACCES | the C and Rust libraries peek at /proc and /etc for advice and do without |
//!
//! Both are run for each call and the stricter answer wins (seccomp(2)). Calls that are allowed whatever their arguments
//! are answered from the kernel's per-call bitmap (Linux 5.11) and cost nothing to speak of; so no call of the frame path
//! (`read`, `write`, `epoll_wait`, `send*`, `recv*`) has a bound on its arguments.
//!
//! Bounds on arguments, everything else kills:
//! - `socket`: IPv4 and IPv6; TCP, UDP, and ping sockets. No raw, packet, netlink, Unix or vsock sockets.
//! - `socketpair`: Unix streams. An end of a pair of datagram sockets could send to any abstract socket of the host.
//! - `setsockopt`: not filters or programs (SO_ATTACH_*), not TCP_ULP, TCP_REPAIR or keys, no UDP encapsulation, nothing
//!   of netfilter.
//! - `clone`: a thread of this process. No process, no namespace.
//! - `mmap`, `mprotect`: nothing executable.
//! - `ioctl`: FIONBIO, FIOCLEX, FIONREAD, and asking whether something is a terminal.
//! - `fcntl`: flags and close-on-exec duplicates.
//! - `prctl`: names of threads and of mappings.
//! - `prlimit64`: reading. `tgkill`: ourselves.
//!
//! Not here because nothing needs it: `execve`, `fork`, `ptrace`, `mount`, `setns`, `unshare`, `bpf`, `io_uring`, `keyctl`,
//! `userfaultfd`, `listen` (listeners are made by the monitor).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch,
};

/// What the process has to do itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A monitor stands by.
    Network,
    /// Nobody does: files may be opened for reading, and listeners made. `unlink`: and files removed, which only
    /// Landlock keeps to one directory.
    Standalone {
        /// Names may be removed.
        unlink: bool,
    },
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// seccompiler has no back end for this machine.
    #[error("no filter for the architecture {}", std::env::consts::ARCH)]
    Architecture,
    /// Building failed: a defect of the tables here.
    #[error("the filter tables do not compile")]
    Build(#[source] seccompiler::BackendError),
    /// The kernel refused.
    #[error("the kernel does not take the filter")]
    Install(#[source] seccompiler::Error),
}

/// Calls allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // The frame path.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    // Flows.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_epoll_ctl,
    libc::SYS_close,
    // Waiting and time.
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads, signals and the end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    // Descriptors that we hold, captures among them.
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
];

/// Older spellings that some architectures still have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time, libc::SYS_getrlimit];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// Answered with EACCES: the file system is not there.
const NO_FILES: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
];
#[cfg(target_arch = "x86_64")]
const NO_FILES_HERE: &[libc::c_long] =
    &[libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const NO_FILES_HERE: &[libc::c_long] = &[];

/// Flags of open(2) that do more than read: every access mode but `O_RDONLY` (0), and making or cutting files.
const CHANGES: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_TMPFILE;

/// What reading a file takes beyond opening it: looked at, not changed.
const LOOK: &[libc::c_long] = &[libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_readlinkat];

/// Builds the programs of a role and installs them for the calling thread and the threads it makes.
pub fn install(role: Role) -> Result<(), FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| FilterError::Architecture)?;
    for program in programs(arch, role).map_err(FilterError::Build)? {
        seccompiler::apply_filter(&program).map_err(FilterError::Install)?;
    }
    Ok(())
}

/// The programs in the order of their installation. `seccomp` itself is not on the allow-list, so that one comes last.
fn programs(arch: TargetArch, role: Role) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let answer = |calls: &mut dyn Iterator<Item = &libc::c_long>, errno: i32| -> Result<BpfProgram, _> {
        let calls = calls.map(|&call| (call, Vec::new())).collect();
        SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()), arch)?.try_into()
    };
    let standalone = role != Role::Network;
    let no_files = || {
        let looks = move |call: &&libc::c_long| standalone && (LOOK.contains(call) || **call == libc::SYS_openat);
        NO_FILES.iter().chain(NO_FILES_HERE).filter(move |call| !looks(call))
    };
    let mut rules: BTreeMap<libc::c_long, Vec<Rule>> = BTreeMap::new();
    // What is answered with an errno must pass the allow-list, or being killed wins.
    for &call in ALLOWED.iter().chain(ALLOWED_HERE).chain(no_files()).chain(&[libc::SYS_clone3]) {
        rules.insert(call, Vec::new());
    }
    rules.extend(bounded()?);
    if let Role::Standalone { unlink } = role {
        for &call in LOOK.iter().chain(&[libc::SYS_listen]) {
            rules.insert(call, Vec::new());
        }
        if unlink {
            rules.insert(libc::SYS_unlinkat, Vec::new());
        }
        rules.insert(libc::SYS_openat, vec![Rule::new(vec![masked(2, CHANGES, 0)?])?]);
        // The index of a link-local name server's interface.
        let index = Rule::new(vec![Condition::new(1, Len::Dword, Op::Eq, libc::SIOCGIFINDEX & 0xFFFF_FFFF)?])?;
        rules.entry(libc::SYS_ioctl).or_default().push(index);
    }
    let allow = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(vec![
        answer(&mut [libc::SYS_clone3].iter(), libc::ENOSYS)?,
        answer(&mut no_files(), libc::EACCES)?,
        allow.try_into()?,
    ])
}

/// `argument op value`, on the lower 32 bits, which is all that the kernel reads of an int.
fn int(argument: u8, op: Op, value: i32) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(argument, Len::Dword, op, u64::from(value.cast_unsigned()))
}

/// `argument & mask == value`.
fn masked(argument: u8, mask: i32, value: i32) -> Result<Condition, seccompiler::BackendError> {
    int(argument, Op::MaskedEq(u64::from(mask.cast_unsigned())), value)
}

/// One rule for each value of `argument`.
fn one_of(argument: u8, values: &[i32]) -> Result<Vec<Rule>, seccompiler::BackendError> {
    values.iter().map(|&value| Rule::new(vec![int(argument, Op::Eq, value)?])).collect()
}

/// Calls whose arguments are bounded; the rules of one call are alternatives.
fn bounded() -> Result<Vec<(libc::c_long, Vec<Rule>)>, seccompiler::BackendError> {
    /// SOCK_NONBLOCK and SOCK_CLOEXEC travel in the type.
    const KIND: i32 = !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    /// Every flag of clone(2) that makes a namespace or leaves the process, and CLONE_THREAD that stays in it.
    const CLONE: i32 = libc::CLONE_THREAD
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWUTS
        | libc::CLONE_PTRACE
        | libc::CLONE_VFORK;

    let mut socket = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let ping = if family == libc::AF_INET { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        for (kind, protocol) in [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::SOCK_DGRAM, ping),
        ] {
            socket.push(Rule::new(vec![int(0, Op::Eq, family)?, masked(1, KIND, kind)?, int(2, Op::Eq, protocol)?])?);
        }
    }

    let mut setsockopt = Vec::new();
    let except = |level: i32, options: &[i32]| -> Result<Rule, seccompiler::BackendError> {
        let mut conditions = vec![int(1, Op::Eq, level)?];
        for &option in options {
            conditions.push(int(2, Op::Ne, option)?);
        }
        Rule::new(conditions)
    };
    setsockopt.push(except(
        libc::SOL_SOCKET,
        &[
            libc::SO_ATTACH_FILTER,
            libc::SO_ATTACH_BPF,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            libc::SO_BINDTODEVICE,
        ],
    )?);
    setsockopt.push(except(
        libc::IPPROTO_TCP,
        &[
            libc::TCP_ULP,
            libc::TCP_REPAIR,
            libc::TCP_REPAIR_QUEUE,
            libc::TCP_REPAIR_OPTIONS,
            libc::TCP_REPAIR_WINDOW,
            libc::TCP_MD5SIG,
            libc::TCP_FASTOPEN_KEY,
        ],
    )?);
    // Netfilter's tables sit at 64 and above (IPT_BASE_CTL), and at 64 and 65 of IPv6 (IP6T_BASE_CTL).
    setsockopt.push(Rule::new(vec![int(1, Op::Eq, libc::IPPROTO_IP)?, int(2, Op::Lt, 64)?])?);
    setsockopt.push(Rule::new(vec![int(1, Op::Eq, libc::IPPROTO_IPV6)?, int(2, Op::Lt, 64)?])?);
    setsockopt.push(Rule::new(vec![int(1, Op::Eq, libc::IPPROTO_IPV6)?, int(2, Op::Gt, 65)?])?);
    for option in [libc::UDP_SEGMENT, libc::UDP_GRO] {
        setsockopt.push(Rule::new(vec![int(1, Op::Eq, libc::IPPROTO_UDP)?, int(2, Op::Eq, option)?])?);
    }

    // The request is an unsigned int: FIONBIO and its like fit 32 bits, whatever type libc gives them.
    let requests = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS];
    let ioctl = requests
        .iter()
        .map(|&request| Rule::new(vec![Condition::new(1, Len::Dword, Op::Eq, request & 0xFFFF_FFFF)?]))
        .collect::<Result<Vec<_>, _>>()?;

    let not_executable = || Ok(vec![Rule::new(vec![masked(2, libc::PROT_EXEC, 0)?])?]);
    Ok(vec![
        (libc::SYS_socket, socket),
        (
            libc::SYS_socketpair,
            vec![Rule::new(vec![int(0, Op::Eq, libc::AF_UNIX)?, masked(1, KIND, libc::SOCK_STREAM)?])?],
        ),
        (libc::SYS_setsockopt, setsockopt),
        (libc::SYS_clone, vec![Rule::new(vec![masked(0, CLONE, libc::CLONE_THREAD)?])?]),
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        (libc::SYS_ioctl, ioctl),
        (
            libc::SYS_fcntl,
            one_of(1, &[libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC])?,
        ),
        (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA])?),
        // No new limits: the pointer to them is null, all 64 bits of it.
        (libc::SYS_prlimit64, vec![Rule::new(vec![Condition::new(2, Len::Qword, Op::Eq, 0)?])?]),
        // abort(3) and raise(3). The process id stays ours: no fork is possible any more.
        (libc::SYS_tgkill, one_of(0, &[nix::unistd::getpid().as_raw()])?),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_compile_for_every_architecture_and_name_no_call_twice() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64, TargetArch::riscv64] {
            let roles = [Role::Network, Role::Standalone { unlink: false }, Role::Standalone { unlink: true }];
            for program in roles.into_iter().flat_map(|role| programs(arch, role).unwrap()) {
                // BPF_MAXINSNS, linux/bpf_common.h.
                assert!(program.len() < 4096);
            }
        }
        let mut calls: Vec<_> = ALLOWED.iter().chain(ALLOWED_HERE).chain(NO_FILES).chain(NO_FILES_HERE).collect();
        let bounded = bounded().unwrap();
        calls.extend(bounded.iter().map(|(call, _)| call));
        let named = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), named, "a call is listed twice: the later entry would silently win");
    }
}
