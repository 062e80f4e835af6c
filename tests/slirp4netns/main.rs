//! The slirp4netns mode from outside: started by its command line, as runtimes and slirp4netns's own tests start it.
//!
//! Every test takes the helper as an argument. Most run with Debian's slirp4netns too, which tells a wrong test from a
//! wrong helper; a test that only ours can pass says why. The stage is that of `tests/netns`: the helper is an ordinary
//! user of the "host", without any capability there, and joins namespaces that the same user made.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

/// What a Debian 12 machine needs for this test binary; `.ci/run` installs the same list.
const PACKAGES: &str =
    "dnsmasq-base dnsutils iproute2 iputils-ping libcap2-bin ncat slirp4netns tcpdump udhcpc util-linux";

/// Makes tests out of functions that take the stage and a helper: `function: helper helper;`.
///
/// The helpers are `real` (Debian's slirp4netns), `ours` (tapway under the name slirp4netns) and `verb`
/// (`tapway slirp4netns`).
macro_rules! tests {
    ($($function:ident: $($helper:ident)+;)+) => {$(
        mod $function {
            $(
                #[test]
                fn $helper() {
                    crate::world::World::run(|w| super::$function(w, &crate::helper::Helper::$helper(w)));
                }
            )+
        }
    )+};
}

mod api;
mod attach;
mod confined;
mod data;
mod ends;
mod forwards;
mod frames;
mod helper;
#[path = "../spaces/mod.rs"]
mod spaces;
mod startup;
#[path = "../netns/tools.rs"]
#[allow(dead_code, reason = "shared with tests/netns")]
mod tools;
mod upstream;
mod verbs;
#[path = "../netns/world.rs"]
#[allow(dead_code, reason = "shared with tests/netns")]
mod world;
