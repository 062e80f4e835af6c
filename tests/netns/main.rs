//! End-to-end tests on a real kernel: unprivileged namespaces, a real TAP, real programs.
//!
//! `world` makes the stage; each module asks one part of the data path for the truth. Nothing here leaves the machine,
//! and nothing needs root. A missing Debian program fails the test with the line that installs it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

/// What a Debian 12 machine needs for this test binary; `.ci/run` installs the same list.
const PACKAGES: &str = "bubblewrap busybox curl dnsmasq-base dnsutils git iperf3 iproute2 iputils-ping jq mtr-tiny netcat-openbsd nginx-light \
                        procps python3 python3-prometheus-client redis-server redis-tools tcpdump traceroute tshark udhcpc util-linux wrk";

#[path = "../spaces/mod.rs"]
mod spaces;

mod attach;
mod blame;
mod broken;
mod capture;
mod control;
mod death;
mod dhcp;
mod dns;
mod fair;
mod faults;
mod icmp;
mod iperf;
mod lanes;
mod leaks;
mod life;
mod metrics;
mod named;
mod network;
mod policy;
mod programs;
mod publish;
mod rest;
mod several;
mod short;
mod soak;
mod tcp;
mod tools;
mod turns;
mod udp;
mod upgrade;
mod watching;
mod world;
