//! Arguments and results of every verb of the control protocol, a file for each group.
//!
//! Values only: what a client may write and what it may rely on to read. Arguments refuse fields that they do not know;
//! results may gain fields. Turning them into acts is the business of whoever answers.

pub mod capture;
pub mod connect;
pub mod dns;
pub mod fault;
pub mod life;
pub mod network;
pub mod observe;
pub mod ports;

/// Every verb that a control socket knows, beside slirp4netns's three and `hello`.
pub const ALL: &[&str] = &[
    "publish",
    "unpublish",
    "list_ports",
    "set_dns",
    "get_dns",
    "add_dns_record",
    "remove_dns_record",
    "list_dns_records",
    "add_host",
    "remove_host",
    "list_hosts",
    "get_info",
    "start_capture",
    "stop_capture",
    "list_captures",
    "set_fault",
    "clear_fault",
    "list_faults",
    "list_flows",
    "kill_flow",
    "get_stats",
    "get_metrics",
    "set_log_level",
    "subscribe",
];

/// Verbs that are about one network of a sandbox that is on several: a sandbox's socket takes its name, or its id (12
/// digits or more), as `network`, and otherwise means the one that has the default route.
pub const OF_ONE_NETWORK: &[&str] = &[
    "get_info",
    "start_capture",
    "stop_capture",
    "list_captures",
    "set_fault",
    "clear_fault",
    "list_faults",
    "list_flows",
    "kill_flow",
    "get_stats",
    "get_metrics",
    "subscribe",
];

/// Every verb that the control socket of a sandbox knows: those, and what concerns its processes and networks.
pub const OF_SANDBOX: [&str; ALL.len() + life::VERBS.len() + connect::VERBS.len()] = {
    let mut all = [""; ALL.len() + life::VERBS.len() + connect::VERBS.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < ALL.len() {
            ALL[at]
        } else if at < ALL.len() + life::VERBS.len() {
            life::VERBS[at - ALL.len()]
        } else {
            connect::VERBS[at - ALL.len() - life::VERBS.len()]
        };
        at += 1;
    }
    all
};
