//! The monitor: namespaces, TAP and netlink set-up, descriptor hand-over, generated files, the command.
