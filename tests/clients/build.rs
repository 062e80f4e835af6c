//! `podman build` and buildah: a helper per step, found in $PATH, with the fewest options, in a network namespace of
//! the user namespace that the helper is in already.

use crate::talk::{blob, first_word, offer, sha256, tellers_outside};
use crate::tools::{at, tell_tcp};
use crate::world::{HOST4, OUTSIDE_NAME, OUTSIDE4, World};

scenarios!(podman_build, buildah_from_a_file, buildah_run);

/// A shell line that fails unless the network is there: data, a name, the host's loopback (which buildah leaves open up
/// to 1.30).
fn line(w: &World) -> String {
    let version = w.user(&["buildah", "--version"]).ok();
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    let loopback = if minor <= 30 { "nc 10.0.2.2 7001 </dev/null | grep -q ^127" } else { "! nc 10.0.2.2 7001" };
    tellers_outside(w, 7000);
    tell_tcp(&w.host, at([127, 0, 0, 1], 7001));
    let bytes = blob(11, 5 << 20);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, OUTSIDE4.into(), bytes);
    format!(
        "ip addr show tap0 | grep -q 'inet 10.0.2.100/24' \
         && nc {OUTSIDE4} 7000 </dev/null | grep -q '^{HOST4}:' \
         && nc {} {} </dev/null | sha256sum | grep -q ^{sum} \
         && nslookup -type=a {OUTSIDE_NAME} 10.0.2.3 | grep -q {OUTSIDE4} \
         && {loopback}",
        from.ip(),
        from.port()
    )
}

fn containerfile(w: &World) {
    let line = line(w);
    let text = format!("FROM localhost/box\nRUN {line}\nRUN {line} && echo done >/made\n");
    std::fs::write(w.path("Containerfile"), text).unwrap();
}

fn podman_build(w: &World) {
    w.podman_image();
    containerfile(w);
    w.podman(&["build", "-t", "made", "."]).ok();
    assert_eq!(first_word(&w.podman(&["run", "--rm", "made", "cat", "/made"]).ok()), "done");
    w.expect_quiet();
}

fn buildah_from_a_file(w: &World) {
    w.podman_image();
    containerfile(w);
    w.user(&["buildah", "bud", "-t", "made", "."]).ok();
    w.expect_quiet();
}

fn buildah_run(w: &World) {
    w.podman_image();
    let line = line(w);
    let name = w.user(&["buildah", "from", "localhost/box"]).ok();
    for _ in 0..3 {
        w.user(&["buildah", "run", name.trim(), "sh", "-c", &line]).ok();
    }
    w.expect_quiet();
}
