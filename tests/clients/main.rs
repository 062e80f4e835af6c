//! The programs that start slirp4netns, start tapway: Debian's podman, buildah, RootlessKit and rootless Docker.
//!
//! Every scenario is two tests: `…::slirp4netns::…` with the helper that Debian ships, which tells a failing harness
//! from a failing product, and `…::tapway::…` with the binary of this build under the name `slirp4netns`. Where the two
//! are meant to differ, the scenario asks [`world::Helper`].
//!
//! `world` makes the stage, a machine of its own for each test; nothing here leaves it, and nothing needs root. A
//! missing Debian program fails the test with the line that installs it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

/// What a Debian 12 machine needs for this test binary; `.ci/run` installs the same list.
const PACKAGES: &str = "aardvark-dns buildah busybox catatonit conmon crun dnsmasq-base dnsutils docker.io iproute2 \
                        iptables iputils-ping netavark podman procps rootlesskit slirp4netns uidmap util-linux";

#[path = "../spaces/mod.rs"]
mod spaces;
#[allow(dead_code, reason = "shared with tests/netns")]
#[path = "../netns/tools.rs"]
mod tools;

/// Two tests for each scenario, one per helper. A scenario is a function that is given the world. Those after `tapway:`
/// are what slirp4netns cannot do.
macro_rules! scenarios {
    ($($both:ident),+ $(,)? $(; tapway: $($ours:ident),+ $(,)?)?) => {
        mod slirp4netns {
            $(scenarios!(@test Slirp4netns $both);)+
        }
        mod tapway {
            $(scenarios!(@test Tapway $both);)+
            $($(scenarios!(@test Tapway $ours);)+)?
        }
    };
    (@test $helper:ident $scenario:ident) => {
        #[test]
        fn $scenario() {
            let name = concat!(module_path!(), "::", stringify!($scenario));
            crate::world::run(crate::world::Helper::$helper, name, super::$scenario);
        }
    };
}

mod attach;
mod bridge;
mod build;
mod docker;
mod life;
mod options;
mod publish;
mod refusals;
mod rootlesskit;
mod talk;
mod transfer;
mod world;
