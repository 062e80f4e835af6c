//! What a network process must not be able to do, each as it would be tried from inside.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::unistd::fork;

/// Exit code of a process killed by the filter.
pub const KILLED: i32 = 128 + libc::SIGSYS;

/// A raw call: 0, or the errno.
macro_rules! raw {
    ($($argument:expr),+) => {{
        // SAFETY: pointers are null or to constants that outlive the call; the kernel copies. What a call would change
        // is this process, which ends right after.
        let result = unsafe { libc::syscall($($argument),+) };
        if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }};
}

/// Sets an option to 1 on a socket that may be made.
fn option(level: i32, option: i32) -> i32 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = 1i32;
    raw!(libc::SYS_setsockopt, socket.as_raw_fd(), level, option, &raw const one, 4)
}

/// A forbidden act: the exit code it must end with (killed or the errno), and what it does.
pub type Forbidden = (&'static str, i32, fn() -> i32);

pub const FORBIDDEN: &[Forbidden] = &[
    ("open for reading", libc::EACCES, || raw!(libc::SYS_openat, libc::AT_FDCWD, c"/".as_ptr(), libc::O_RDONLY)),
    ("create a file", libc::EACCES, || {
        raw!(libc::SYS_openat, libc::AT_FDCWD, c"/x".as_ptr(), libc::O_WRONLY | libc::O_CREAT, 0o600)
    }),
    ("stat", libc::EACCES, || std::fs::metadata("/").unwrap_err().raw_os_error().unwrap()),
    ("unlink", KILLED, || raw!(libc::SYS_unlinkat, libc::AT_FDCWD, c"/x".as_ptr(), 0)),
    ("execve", KILLED, || raw!(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0)),
    ("execveat", KILLED, || raw!(libc::SYS_execveat, 0, c"".as_ptr(), 0, 0, libc::AT_EMPTY_PATH)),
    ("fork", KILLED, || {
        // SAFETY: never gets to have a child.
        unsafe { fork() }.map_or_else(|e| e as i32, |_| 0)
    }),
    ("clone3", libc::ENOSYS, || raw!(libc::SYS_clone3, 0, 0)),
    ("clone into a namespace", KILLED, || raw!(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0)),
    ("thread in a new network namespace", KILLED, || {
        raw!(
            libc::SYS_clone,
            libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_NEWNET,
            0,
            0,
            0,
            0
        )
    }),
    ("unshare", KILLED, || raw!(libc::SYS_unshare, libc::CLONE_NEWUSER)),
    ("setns", KILLED, || raw!(libc::SYS_setns, 0, 0)),
    ("mount", KILLED, || raw!(libc::SYS_mount, 0, c"/".as_ptr(), c"tmpfs".as_ptr(), 0, 0)),
    ("chroot", KILLED, || raw!(libc::SYS_chroot, c"/".as_ptr())),
    ("ptrace", KILLED, || raw!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
    ("read another process", KILLED, || raw!(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)),
    ("kill another process", KILLED, || raw!(libc::SYS_kill, 1, 0)),
    ("tgkill another process", KILLED, || raw!(libc::SYS_tgkill, 1, 1, 0)),
    ("bpf", KILLED, || raw!(libc::SYS_bpf, 0, 0, 0)),
    ("io_uring", KILLED, || raw!(libc::SYS_io_uring_setup, 1, 0)),
    ("keyctl", KILLED, || raw!(libc::SYS_keyctl, 0, 0, 0, 0, 0)),
    ("userfaultfd", KILLED, || raw!(libc::SYS_userfaultfd, 0)),
    ("a second filter", KILLED, || raw!(libc::SYS_seccomp, 0, 0, 0)),
    ("executable memory", KILLED, || {
        raw!(libc::SYS_mmap, 0, 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }),
    ("make memory executable", KILLED, || raw!(libc::SYS_mprotect, 0, 4096, libc::PROT_READ | libc::PROT_EXEC)),
    ("raw socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("packet socket", KILLED, || raw!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_DGRAM, 0)),
    ("netlink socket", KILLED, || raw!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("unix socket", KILLED, || raw!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("vsock socket", KILLED, || raw!(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("sctp socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("IPv6 ping socket of the IPv4 protocol", KILLED, || {
        raw!(libc::SYS_socket, libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)
    }),
    ("internet socket pair", KILLED, || raw!(libc::SYS_socketpair, libc::AF_INET, libc::SOCK_STREAM, 0, 0)),
    ("listen", KILLED, || raw!(libc::SYS_listen, 0, 1)),
    ("socket filter", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, 0, 0)),
    ("kernel TLS", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_TCP, libc::TCP_ULP, 0, 0)),
    ("netfilter table", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_IP, 64, 0, 0)),
    ("netfilter table, IPv6", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_IPV6, 64, 0, 0)),
    ("udp encapsulation", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_UDP, libc::UDP_ENCAP, 0, 0)),
    ("type into the terminal", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr())),
    ("reconfigure the TAP", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TUNSETIFF, 0)),
    ("signal-driven descriptor", KILLED, || raw!(libc::SYS_fcntl, 0, libc::F_SETOWN, 1)),
    ("become dumpable again", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
    ("change a limit", KILLED, || raw!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, c"0123456789abcdef".as_ptr(), 0)),
    ("another architecture's call", KILLED, || raw!(0x4000_0000 + libc::SYS_getpid)), // x32 bit of x86-64
    // Files, by every other way.
    ("open for writing", libc::EACCES, || raw!(libc::SYS_openat, libc::AT_FDCWD, c"/".as_ptr(), libc::O_RDWR)),
    ("open with openat2", libc::EACCES, || raw!(libc::SYS_openat2, libc::AT_FDCWD, c"/".as_ptr(), 0, 24)),
    ("list the working directory's path", libc::EACCES, || raw!(libc::SYS_getcwd, 0, 0)),
    ("open a file without a name", KILLED, || raw!(libc::SYS_memfd_create, c"x".as_ptr(), 0)),
    ("name a file by a handle", KILLED, || raw!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, c"/".as_ptr(), 0, 0, 0)),
    ("open by a handle", KILLED, || raw!(libc::SYS_open_by_handle_at, libc::AT_FDCWD, 0, 0)),
    ("list a directory", KILLED, || raw!(libc::SYS_getdents64, 0, 0, 0)),
    ("make a directory", KILLED, || raw!(libc::SYS_mkdirat, libc::AT_FDCWD, c"/x".as_ptr(), 0o700)),
    ("make a device", KILLED, || raw!(libc::SYS_mknodat, libc::AT_FDCWD, c"/x".as_ptr(), libc::S_IFCHR, 1)),
    ("make a link", KILLED, || {
        raw!(libc::SYS_linkat, libc::AT_FDCWD, c"/x".as_ptr(), libc::AT_FDCWD, c"/y".as_ptr(), 0)
    }),
    ("make a symbolic link", KILLED, || raw!(libc::SYS_symlinkat, c"/x".as_ptr(), libc::AT_FDCWD, c"/y".as_ptr())),
    ("rename", KILLED, || raw!(libc::SYS_renameat2, libc::AT_FDCWD, c"/x".as_ptr(), libc::AT_FDCWD, c"/y".as_ptr(), 0)),
    ("change a mode", KILLED, || raw!(libc::SYS_fchmod, 0, 0o777)),
    ("change a mode by path", KILLED, || raw!(libc::SYS_fchmodat, libc::AT_FDCWD, c"/".as_ptr(), 0o777, 0)),
    ("change an owner", KILLED, || raw!(libc::SYS_fchown, 0, 0, 0)),
    ("change an owner by path", KILLED, || raw!(libc::SYS_fchownat, libc::AT_FDCWD, c"/".as_ptr(), 0, 0, 0)),
    ("change times", KILLED, || raw!(libc::SYS_utimensat, libc::AT_FDCWD, c"/".as_ptr(), 0, 0)),
    ("set an extended attribute", KILLED, || raw!(libc::SYS_fsetxattr, 0, c"user.x".as_ptr(), 0, 0, 0)),
    ("change the working directory", KILLED, || raw!(libc::SYS_chdir, c"/".as_ptr())),
    ("change it to an open one", KILLED, || raw!(libc::SYS_fchdir, 0)),
    ("allocate", KILLED, || raw!(libc::SYS_fallocate, 0, 0, 0, 1)),
    ("send a file", KILLED, || raw!(libc::SYS_sendfile, 0, 0, 0, 1)),
    ("copy between files", KILLED, || raw!(libc::SYS_copy_file_range, 0, 0, 0, 0, 1, 0)),
    ("splice", KILLED, || raw!(libc::SYS_splice, 0, 0, 0, 0, 1, 0)),
    ("tee", KILLED, || raw!(libc::SYS_tee, 0, 0, 1, 0)),
    ("lend pages to a pipe", KILLED, || raw!(libc::SYS_vmsplice, 0, 0, 0, 0)),
    ("watch files", KILLED, || raw!(libc::SYS_inotify_init1, 0)),
    ("watch all files", KILLED, || raw!(libc::SYS_fanotify_init, 0, 0)),
    ("lock a file", KILLED, || raw!(libc::SYS_flock, 0, libc::LOCK_EX)),
    // Mounts and roots.
    ("unmount", KILLED, || raw!(libc::SYS_umount2, c"/".as_ptr(), 0)),
    ("pivot_root", KILLED, || raw!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())),
    ("open a tree of mounts", KILLED, || raw!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1)),
    ("move a mount", KILLED, || {
        raw!(libc::SYS_move_mount, libc::AT_FDCWD, c"/".as_ptr(), libc::AT_FDCWD, c"/".as_ptr(), 0)
    }),
    ("open a file system", KILLED, || raw!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0)),
    ("mount a file system", KILLED, || raw!(libc::SYS_fsmount, 0, 0, 0)),
    ("pick a file system", KILLED, || raw!(libc::SYS_fspick, libc::AT_FDCWD, c"/".as_ptr(), 0)),
    ("make a mount writable", KILLED, || raw!(libc::SYS_mount_setattr, libc::AT_FDCWD, c"/".as_ptr(), 0, 0, 0)),
    // Privileges and identity.
    ("regain capabilities", KILLED, || raw!(libc::SYS_capset, 0, 0)),
    ("become root", KILLED, || raw!(libc::SYS_setuid, 0)),
    ("become root, all ids", KILLED, || raw!(libc::SYS_setresuid, 0, 0, 0)),
    ("become root's group", KILLED, || raw!(libc::SYS_setresgid, 0, 0, 0)),
    ("other groups", KILLED, || raw!(libc::SYS_setgroups, 0, 0)),
    ("another id for files", KILLED, || raw!(libc::SYS_setfsuid, 0)),
    ("take no_new_privs back", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)),
    ("another filter by prctl", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_SECCOMP, 2, 0, 0, 0)),
    ("raise an ambient capability", KILLED, || raw!(libc::SYS_prctl, libc::PR_CAP_AMBIENT, 2, 10, 0, 0)),
    ("keep capabilities", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)),
    ("let anybody trace", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_PTRACER, -1, 0, 0, 0)),
    ("another death signal", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, 0, 0, 0, 0)),
    ("adopt orphans", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)),
    ("move the memory map", KILLED, || raw!(libc::SYS_prctl, libc::PR_SET_MM, 1, 0, 0, 0)),
    ("a personality in which what is read is executable", KILLED, || raw!(libc::SYS_personality, 0x0040_0000)),
    ("another Landlock domain", KILLED, || raw!(libc::SYS_landlock_create_ruleset, 0, 0, 1)),
    ("a session of its own", KILLED, || raw!(libc::SYS_setsid)),
    ("another process group", KILLED, || raw!(libc::SYS_setpgid, 0, 0)),
    ("a better priority", KILLED, || raw!(libc::SYS_setpriority, 0, 0, -20)),
    ("real-time scheduling", KILLED, || raw!(libc::SYS_sched_setscheduler, 0, 1, 0)),
    ("other processors", KILLED, || raw!(libc::SYS_sched_setaffinity, 0, 0, 0)),
    ("an older way to change a limit", KILLED, || raw!(libc::SYS_setrlimit, libc::RLIMIT_CORE, 0)),
    // Other processes.
    ("a process that shares memory", KILLED, || {
        raw!(libc::SYS_clone, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0)
    }),
    ("thread in a new mount namespace", KILLED, || {
        raw!(libc::SYS_clone, libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_NEWNS, 0, 0, 0, 0)
    }),
    ("open a process", KILLED, || raw!(libc::SYS_pidfd_open, 1, 0)),
    ("signal an open process", KILLED, || raw!(libc::SYS_pidfd_send_signal, 0, 0, 0, 0)),
    ("take another's descriptor", KILLED, || raw!(libc::SYS_pidfd_getfd, 0, 0, 0)),
    ("signal a thread", KILLED, || raw!(libc::SYS_tkill, 1, 0)),
    ("signal with a value", KILLED, || raw!(libc::SYS_rt_sigqueueinfo, 1, 0, 0)),
    ("signal a thread with a value", KILLED, || raw!(libc::SYS_rt_tgsigqueueinfo, 1, 1, 0, 0)),
    ("write another process", KILLED, || raw!(libc::SYS_process_vm_writev, 1, 0, 0, 0, 0, 0)),
    ("advise another's memory", KILLED, || raw!(libc::SYS_process_madvise, 0, 0, 0, 0, 0)),
    ("compare with another", KILLED, || raw!(libc::SYS_kcmp, 1, 1, 0, 0, 0)),
    ("move another's pages", KILLED, || raw!(libc::SYS_move_pages, 1, 0, 0, 0, 0, 0)),
    ("wait for a child", KILLED, || raw!(libc::SYS_wait4, -1, 0, 0, 0)),
    ("trace another", KILLED, || raw!(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0)),
    // What of the kernel is large and old.
    ("io_uring, go on", KILLED, || raw!(libc::SYS_io_uring_enter, 0, 0, 0, 0, 0, 0)),
    ("io_uring, register", KILLED, || raw!(libc::SYS_io_uring_register, 0, 0, 0, 0)),
    ("asynchronous I/O", KILLED, || raw!(libc::SYS_io_setup, 1, 0)),
    ("perf events", KILLED, || raw!(libc::SYS_perf_event_open, 0, 0, -1, -1, 0)),
    ("add a key", KILLED, || raw!(libc::SYS_add_key, 0, 0, 0, 0, 0)),
    ("request a key", KILLED, || raw!(libc::SYS_request_key, 0, 0, 0, 0)),
    ("load a module", KILLED, || raw!(libc::SYS_finit_module, 0, c"".as_ptr(), 0)),
    ("boot another kernel", KILLED, || raw!(libc::SYS_kexec_load, 0, 0, 0, 0)),
    ("reboot", KILLED, || raw!(libc::SYS_reboot, 0, 0, 0, 0)),
    ("read the kernel's log", KILLED, || raw!(libc::SYS_syslog, 3, 0, 0)),
    ("set the clock", KILLED, || raw!(libc::SYS_clock_settime, 0, 0)),
    ("adjust the clock", KILLED, || raw!(libc::SYS_clock_adjtime, 0, 0)),
    ("set the host name", KILLED, || raw!(libc::SYS_sethostname, c"x".as_ptr(), 1)),
    ("shared memory", KILLED, || raw!(libc::SYS_shmget, 0, 4096, 0o1600)),
    ("message queue", KILLED, || raw!(libc::SYS_msgget, 0, 0o1600)),
    ("semaphores", KILLED, || raw!(libc::SYS_semget, 0, 1, 0o1600)),
    ("message queue by name", KILLED, || raw!(libc::SYS_mq_open, c"/x".as_ptr(), libc::O_CREAT, 0o600, 0)),
    ("memory with keys", KILLED, || raw!(libc::SYS_pkey_mprotect, 0, 4096, libc::PROT_READ, -1)),
    ("secret memory", KILLED, || raw!(libc::SYS_memfd_secret, 0)),
    ("lock memory", KILLED, || raw!(libc::SYS_mlockall, 1)),
    // Memory that is writable and executable, by each way.
    ("executable and writable memory", KILLED, || {
        let (protection, flags) = (libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        raw!(libc::SYS_mmap, 0, 4096, protection, flags, -1, 0)
    }),
    ("an executable file's memory", KILLED, || raw!(libc::SYS_mmap, 0, 4096, libc::PROT_EXEC, libc::MAP_PRIVATE, 0, 0)),
    // Sockets.
    ("raw IPv6 socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
    ("raw socket of any protocol", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)),
    ("raw packet socket", KILLED, || raw!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0x0300)),
    ("unix datagram socket", KILLED, || raw!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_DGRAM, 0)),
    // Whose ends can send to any socket of the host that has no path.
    ("pair of unix datagram sockets", KILLED, || raw!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_DGRAM, 0, 0)),
    ("kernel crypto socket", KILLED, || raw!(libc::SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("Bluetooth socket", KILLED, || raw!(libc::SYS_socket, libc::AF_BLUETOOTH, libc::SOCK_RAW, 0)),
    ("AF_XDP socket", KILLED, || raw!(libc::SYS_socket, libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("MPTCP socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("UDP-Lite socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
    ("DCCP socket", KILLED, || raw!(libc::SYS_socket, libc::AF_INET, 6, libc::IPPROTO_DCCP)),
    ("BPF filter on a socket", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, 0, 0)),
    ("filter of a port's sockets", KILLED, || {
        raw!(libc::SYS_setsockopt, 0, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, 0, 0)
    }),
    ("BPF filter of a port's sockets", KILLED, || {
        raw!(libc::SYS_setsockopt, 0, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF, 0, 0)
    }),
    ("bind to an interface", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 0, 0)),
    ("repair a connection", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0, 0)),
    ("a key for a connection", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::IPPROTO_TCP, libc::TCP_MD5SIG, 0, 0)),
    ("an option of another protocol", KILLED, || raw!(libc::SYS_setsockopt, 0, libc::SOL_NETLINK, 1, 0, 0)),
    // The filter lets these by; what they take is not there any more.
    ("mark packets for the host's rules", libc::EPERM, || option(libc::SOL_SOCKET, libc::SO_MARK)),
    ("receive buffers past the host's limit", libc::EPERM, || option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE)),
    ("be anybody's address", libc::EPERM, || option(libc::IPPROTO_IP, libc::IP_TRANSPARENT)),
    ("a port below 1024", libc::EACCES, || {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 9)).map_or_else(|e| e.raw_os_error().unwrap(), |_| 0)
    }),
    // Terminals, interfaces, namespaces by ioctl; signals by fcntl.
    ("a terminal of its own", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TIOCSCTTY, 1)),
    ("paste into the console", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TIOCLINUX, c"\x03".as_ptr())),
    ("take the console's output", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TIOCCONS, 0)),
    ("keep the TAP for ever", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TUNSETPERSIST, 1)),
    ("give the TAP away", KILLED, || raw!(libc::SYS_ioctl, 0, libc::TUNSETOWNER, 0)),
    ("set an interface's address", KILLED, || raw!(libc::SYS_ioctl, 0, libc::SIOCSIFADDR, 0)),
    ("set an interface's flags", KILLED, || raw!(libc::SYS_ioctl, 0, libc::SIOCSIFFLAGS, 0)),
    ("add a route", KILLED, || raw!(libc::SYS_ioctl, 0, libc::SIOCADDRT, 0)),
    // NS_GET_USERNS, linux/nsfs.h.
    ("open a namespace's owner", KILLED, || raw!(libc::SYS_ioctl, 0, 0xb701)),
    ("signals for a descriptor", KILLED, || raw!(libc::SYS_fcntl, 0, 10 /* F_SETSIG */, libc::SIGKILL)),
    ("a lease on a file", KILLED, || raw!(libc::SYS_fcntl, 0, libc::F_SETLEASE, libc::F_WRLCK)),
    ("seal a file", KILLED, || raw!(libc::SYS_fcntl, 0, libc::F_ADD_SEALS, 0)),
];
