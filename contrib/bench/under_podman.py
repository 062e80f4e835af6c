"""The half of compare that measures "under podman": the same container, started by the same podman with the same
options, once with slirp4netns and once with tapway in its place.

It runs on the machine of tests/clients/machine.sh, which has room for an ordinary user's podman. Each helper serves one
container for the whole run, at podman's default MTU and confined as podman asks for (--enable-sandbox,
--enable-seccomp), with ports published by the helper itself (port_handler=slirp4netns). Servers are at the host's own
address; "published" is asked for there too. "run" is how long `podman run -d` takes until it returns, which is when the
container runs and its network is ready.
"""

import json
import os
import pathlib
import shutil
import time

from common import HOST4, PORT, rounds, run, serve, set_congestion

HELPERS = ("slirp4netns", "tapway")
HOME = "/mnt/home"
#: Path of each helper on the machine.
PATHS = {"slirp4netns": "/usr/bin/slirp4netns", "tapway": "/usr/local/bin/slirp4netns"}
#: Port on the host that leads to PORT in the container.
PUBLISHED = {"slirp4netns": 21000, "tapway": 22000}
PACKAGES = "busybox catatonit conmon crun podman slirp4netns uidmap"
#: How the machine is entered.
UNSHARE = """unshare --user --map-root-user --map-auto --net --mount --pid --uts --ipc --cgroup --fork --kill-child
             --mount-proc -- catatonit --"""
USER = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"]
UNITS = {
    "podman tcp send": ("Gbit/s", True),
    "podman tcp recv": ("Gbit/s", True),
    "podman published send": ("Gbit/s", True),
    "podman published recv": ("Gbit/s", True),
    "podman run": ("ms", False),
}


def files(root):
    """What must be copied beside the script."""
    return [root / "tests/clients/machine.sh", root / "tests/clients/image.sh", root / "contrib/containers/containers.conf"]


def subjects(name, wanted):
    return [h for h in HELPERS if h in wanted]


def user(*argv, **kw):
    env = {**os.environ, "HOME": HOME, "XDG_RUNTIME_DIR": "/run/user/1000", "TMPDIR": "/var/tmp"}
    return run(*USER, *argv, cwd=HOME, env=env, **kw)


def podman(helper, *argv, **kw):
    return user("podman", "--network-cmd-path", PATHS[helper], *argv, **kw)


class UnderPodman:
    def __init__(self, helpers, seconds, congestion):
        self.helpers, self.seconds, self.congestion = helpers, seconds, congestion
        self.pids, self.servers = {}, []

    def setup(self, scratch):
        # The machine hides /tmp and with it the scratch directory; what is open stays.
        os.chdir(scratch)
        image = pathlib.Path("image.sh").read_text(encoding="utf-8")
        conf = pathlib.Path("containers.conf").read_text(encoding="utf-8")
        run("sh", "-c", pathlib.Path("machine.sh").read_text(encoding="utf-8"), cwd="/")
        shutil.copy("bench-traffic", "/usr/local/bin/bench-traffic")
        if "tapway" in self.helpers:
            shutil.copy("tapway", "/usr/local/bin/tapway")
            os.symlink("tapway", PATHS["tapway"])
        os.chdir("/")
        pathlib.Path(f"{HOME}/.config/containers/containers.conf").write_text(conf, encoding="utf-8")
        run("sh", "-ec", f"""
            ip link set lo up
            ip link add up0 type veth peer name peer0 && ip link set peer0 up
            ip addr add {HOST4}/24 dev up0; ip link set up0 up; ip route add default via 198.51.100.1""")
        set_congestion(self.congestion)
        self.serve([], "host")
        user("sh", "-c", image)
        user("podman", "import", "-q", "box.tar", "box")
        for helper in self.helpers:
            ports = [f"--publish={PUBLISHED[helper] + n}:{PORT + n}" for n in (0, 1)]
            network = "--network=slirp4netns:port_handler=slirp4netns"
            podman(helper, "run", "-d", "--name", helper, network, *ports, "box", "sleep", "1000000")
            self.pids[helper] = podman(helper, "inspect", "-f", "{{.State.Pid}}", helper).strip()
            set_congestion(self.congestion, self.inside(helper))
            self.serve(self.inside(helper), helper)

    def serve(self, prefix, name):
        self.servers.append(serve("bench-traffic", f"/mnt/control.{name}", prefix))

    def inside(self, helper):
        return ["nsenter", "-t", self.pids[helper], "-n", "--"]

    def bulk(self, prefix, kind, port, counter):
        argv = [*prefix, "bench-traffic", kind, HOST4, str(port), str(self.seconds), "1"]
        if kind == "send":
            argv.append(f"/mnt/control.{counter}")
        return json.loads(run(*argv, timeout=self.seconds + 10))["gbit_s"]

    def measure(self, name, helper):
        _, *words = name.split()
        if words == ["run"]:
            begin = time.monotonic()
            podman(helper, "run", "-d", "--name", "short", "box", "sleep", "1000000")
            took = time.monotonic() - begin
            podman(helper, "rm", "-f", "-t", "0", "short")
            return took * 1e3
        where, kind = words
        if where == "tcp":
            return self.bulk(self.inside(helper), kind, PORT, "host")
        return self.bulk([], kind, PUBLISHED[helper], helper)


def measure(args, names):
    """The samples and failures of these measurements."""
    helpers = subjects("", args.subjects)
    bench = UnderPodman(helpers, args.seconds, args.congestion)
    bench.setup(args.inner)
    samples, failures = {name: {h: [] for h in helpers} for name in names}, {}

    def note(name, helper, value):
        samples[name][helper].append(value)

    plan = [(name, helpers, lambda helper, name=name: bench.measure(name, helper)) for name in names]
    rounds(plan, args.pairs, note, failures, "under podman, ")
    version = run("podman", "--version").split()[-1]
    return {"samples": samples, "failures": failures, "units": {n: UNITS[n] for n in names}, "facts": {"podman": version}}
