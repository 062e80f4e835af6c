"""The half of compare that measures "members": from one sandbox to another on the same network.

Each subject joins two network namespaces, one pair per MTU, for the whole run:

- veth: the kernel's own pair of Ethernet devices.
- relay: contrib/bench/relay.rs between two TAPs that are made as tapway makes them.
- tapway: two members of one named network, found by name.

"send" goes from the first to the second, "recv" the other way. "cpu" is what the process between them spent, which is the
figure that a busy machine changes least. "between CPUs" keeps the two ends on different ones; else the kernel often has
both on one, where a veth wakes no other. "names" are questions for the other member's A record, at the server that the
sandbox's resolv.conf names, with FLIGHT under way at any time. "at once" is both members of a network beside each other,
each with a server of its own on the host: the rate of the slower divided by that of the faster. "run …" is from starting
`tapway run` until its command, which does nothing else, has written a byte. Memory is proportional (PSS) with page tables,
counted once, while nothing else of tapway runs: the network process of CROWD idle members, and the mean of their monitors,
without and with the init that each has in its sandbox.
"""

import json
import os
import pathlib
import re
import subprocess
import time

from common import (
    HOST4, MTUS, PORT, UNPRIVILEGED, comm, descendants, memory, processes, rounds, run, serve, set_congestion, sleeper, stage,
    wait_for, words
)

#: Questions under way.
FLIGHT = 32
#: Servers on the host, one a member: port and where it tells its counts.
HOSTS = [(PORT, "/mnt/control.host.0"), (PORT + 10, "/mnt/control.host.1")]
#: Idle members whose memory is measured.
CROWD = 50
#: As tapway sets it (src/sandbox/netlink.rs); the kernel gives a veth the same, and a TAP half of it.
TX_QUEUE_LEN = 1000
LOG = "/mnt/log.members"
GIB = 1 << 30
EVERY = ("veth", "relay", "tapway")
PROCESS = f"members memory: network of {CROWD}"
MONITOR = f"members memory: a monitor of {CROWD}"
INIT = f"members memory: a monitor of {CROWD} and its init"
ACROSS = "members rtt between CPUs"
SHARES = {f"members {kind} at once, share of the slower": kind for kind in ("send", "recv")}
UP, STARTS = "members run on a network that is up", "members run that starts its network"
#: Measurement, unit, bigger is better.
UNITS = {
    **{name: ("MiB", False) for name in (PROCESS, MONITOR, INIT)},
    **{f"members cpu {kind} {mtu}": ("s/GiB", False) for mtu in MTUS for kind in ("send", "recv")},
    **{f"members tcp {kind} {mtu} x1": ("Gbit/s", True) for mtu in MTUS for kind in ("send", "recv")},
    "members rtt": ("µs", False),
    ACROSS: ("µs", False),
    "members connect+byte+close": ("µs", False),
    "members names": ("1/s", True),
    **{name: ("of the faster", True) for name in SHARES},
    UP: ("ms", False),
    STARTS: ("ms", False),
}
#: What issue "The container network model" asks for, as compare.GOALS.
GOALS = [
    *((f"members tcp {kind} {mtu} x1", "relay", 0.9) for mtu in MTUS for kind in ("send", "recv")),
    ("members rtt", "veth", 1.15),
    (ACROSS, "veth", 1.15),
    ("members names", None, 20000),
    *((name, None, 0.8) for name in SHARES),
    (UP, None, 20),
    (STARTS, None, 60),
    (PROCESS, None, 20),
    (MONITOR, None, 2),
]


def subjects(name, wanted):
    """Which of the wanted subjects can do this."""
    able = EVERY if re.search("tcp|rtt|connect", name) else ("tapway",)
    return [s for s in able if s in wanted]


def popen(argv, **kw):
    with open(LOG, "ab") as log:
        return subprocess.Popen(argv, **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **kw})


class Pair:
    """Two namespaces joined by one subject: how to be in the first, and where the second is."""

    def __init__(self, subject, mtu, programs, congestion):
        self.subject, self.mtu, self.programs = subject, mtu, programs
        self.control = f"/mnt/control.{subject}.{mtu}"
        if subject == "tapway":
            network, before = f"pair{mtu}", network_processes()
            tapway(programs, "network", "create", "-o", f"com.docker.network.driver.mtu={mtu}", network)
            self.pids = [member(programs, network, f"{name}{mtu}")[1] for name in ("one", "two")]
            (self.between,) = network_processes() - before
            address = json.loads(run(*self.inside("ip", "-j", "-4", "addr", "show", "dev", "eth0", side=1)))[0]
            if address["mtu"] != mtu:
                raise RuntimeError(f"the members of {network} have an MTU of {address['mtu']}")
            self.address, self.name = address["addr_info"][0]["local"], f"two{mtu}"
            settings = open(f"/proc/{self.pids[0]}/root/etc/resolv.conf", encoding="utf-8").read()
            self.resolver = re.search(r"^nameserver\s+(\S+)", settings, re.M)[1]
        else:
            self.between = None
            self.spaces = [popen(["unshare", "--net", "--", "sleep", "1000000"]) for _ in range(2)]
            self.pids = [wait_for("a namespace", lambda p=p: sleeper(p, LOG)) for p in self.spaces]
            self.join()
            self.address = "198.18.0.2"
        for side in (0, 1):
            set_congestion(congestion, self.inside(side=side))
        self.server = serve(programs["traffic"], self.control, self.inside(side=1))

    def join(self):
        one, two = map(str, self.pids)
        if self.subject == "veth":
            run("ip", "link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        else:
            self.relay = popen([self.programs["relay"], *(f"/proc/{p}/ns/net" for p in (one, two))], stdout=subprocess.PIPE)
            self.between = self.relay.pid
            if self.relay.stdout.readline() != b"ready\n":
                raise RuntimeError("the relay did not start: " + open(LOG, encoding="utf-8").read()[-2000:])
        for side in (0, 1):
            run(*self.inside("sh", "-ec", f"""
                ip link set lo up; ip link set eth0 mtu {self.mtu} txqueuelen {TX_QUEUE_LEN} up
                ip addr add 198.18.0.{side + 1}/24 dev eth0""", side=side))

    def inside(self, *argv, side=0):
        user = ["-U", "--preserve-credentials"] if self.subject == "tapway" else []
        return ["nsenter", "-t", str(self.pids[side]), *user, "-n", "--", *argv]

    def spent(self):
        """Seconds of CPU of the process between the two, if there is one."""
        if self.between is None:
            return None
        tasks = pathlib.Path(f"/proc/{self.between}/task").glob("*/schedstat")
        return sum(int(task.read_text(encoding="utf-8").split()[0]) for task in tasks) / 1e9

    def client(self, kind, address, port, seconds, *more, cpu=None):
        argv = [self.programs["traffic"], kind, address, str(port), str(seconds), *map(str, more)]
        if kind == "send":
            argv.append(self.control)
        if cpu is not None:
            argv = ["taskset", "-c", str(cpu), *argv]
        return json.loads(run(*self.inside(*argv), timeout=seconds + 10))


def tapway(programs, *argv, **kw):
    return run(*UNPRIVILEGED, programs["tapway"], *argv, **kw)


def member(programs, network, name):
    """Starts a member; its monitor, and the process inside."""
    argv = [programs["tapway"], "run", "--network", network, "--name", name, "--", "sleep", "1000000"]
    monitor = popen([*UNPRIVILEGED, *argv])
    return monitor, wait_for(f"the member {name}", lambda: sleeper(monitor, LOG))


def network_processes():
    """Those of shared networks; they leave their parent (setsid), and when they have ended they have no words."""
    return {pid for pid in processes() if words(pid).startswith(b"tapway\0__network\0")}


class Members:
    def __init__(self, args, names):
        self.args, self.names = args, names
        files = {"traffic": "bench-traffic", "relay": "bench-relay", "tapway": "tapway"}
        self.programs = {name: f"{args.inner}/{file}" for name, file in files.items()}
        self.pairs, self.samples, self.failures = {}, {}, {}
        self.alone = set()

    def note(self, name, subject, value):
        self.samples.setdefault(name, {}).setdefault(subject, []).append(value)

    def setup(self):
        stage(self.args.congestion)
        if set(SHARES) & set(self.names):
            self.hosts = [serve(self.programs["traffic"], counter, port=port) for port, counter in HOSTS]
        if {PROCESS, MONITOR, INIT} & set(self.names):
            self.crowd()
        wanted = {(s, mtu) for name in self.names for s in subjects(name, self.args.subjects) for mtu in mtus(name)}
        for subject, mtu in sorted(wanted):
            self.pairs[subject, mtu] = Pair(subject, mtu, self.programs, self.args.congestion)
        if {UP, STARTS} & set(self.names):
            for network in ("up", "starts"):
                tapway(self.programs, "network", "create", network)
            if UP in self.names:
                member(self.programs, "up", "resident")
        self.alone = network_processes()

    def crowd(self):
        """Memory of a network of many idle members, and of what stands by each."""
        tapway(self.programs, "network", "create", "crowd")
        monitors = [member(self.programs, "crowd", f"idle{n}")[0] for n in range(CROWD)]
        process = network_processes()
        if len(process) != 1:
            raise RuntimeError(f"{len(process)} network processes for one network")
        time.sleep(2)
        inits = [p for m in monitors for p in descendants(m.pid) if p != m.pid and comm(p).startswith("tapway")]
        monitor, init = (memory(pids)[1] / CROWD for pids in ([m.pid for m in monitors], inits))
        for name, value in ((PROCESS, memory(process)[1]), (MONITOR, monitor), (INIT, monitor + init)):
            if name in self.names:
                self.note(name, "tapway", value)
        for monitor in monitors:
            monitor.terminate()
        for monitor in monitors:
            monitor.wait(timeout=20)
        wait_for("the end of the network process", lambda: not network_processes())

    def plan(self):
        seconds, half = self.args.seconds, max(0.2, self.args.seconds / 2)
        measures = {UP: lambda _: self.start("up"), STARTS: lambda _: self.start("starts")}

        def at(mtu, kind, field, seconds, *more):
            def measure(subject):
                pair = self.pairs[subject, mtu]
                return pair.client(kind, pair.address, PORT, seconds, *more)[field]

            return measure

        def bulk(mtu, kind):
            def measure(subject):
                pair = self.pairs[subject, mtu]
                before = pair.spent()
                result = pair.client(kind, pair.address, PORT, seconds, 1)
                name = f"members cpu {kind} {mtu}"
                if before is not None and name in self.names and result["bytes"]:
                    self.note(name, subject, (pair.spent() - before) * GIB / result["bytes"])
                return result["gbit_s"]

            return measure

        for name, kind in SHARES.items():
            measures[name] = lambda _, kind=kind: self.at_once(kind)
        for mtu in MTUS:
            for kind in ("send", "recv"):
                measures[f"members tcp {kind} {mtu} x1"] = bulk(mtu, kind)
        measures["members rtt"] = at(MTUS[0], "rtt", "us", half)
        measures[ACROSS] = self.across
        measures["members connect+byte+close"] = at(MTUS[0], "conn", "us", half, 1)

        def names(subject):
            pair = self.pairs[subject, MTUS[0]]
            return pair.client("names", pair.resolver, 53, half, pair.name, pair.address, FLIGHT)["per_s"]

        measures["members names"] = names
        return [(n, subjects(n, self.args.subjects), measures[n]) for n in self.names if n in measures]

    def across(self, subject):
        """Round trip with the ends on different CPUs; what is between them runs where the kernel puts it."""
        pair, cpus = self.pairs[subject, MTUS[0]], os.sched_getaffinity(0)
        if len(cpus) < 2:
            raise RuntimeError("this takes two CPUs")
        # The server's first thread starts one for each connection, which inherits this.
        os.sched_setaffinity(pair.server.pid, {max(cpus)})
        try:
            done = pair.client("rtt", pair.address, PORT, max(0.2, self.args.seconds / 2), cpu=min(cpus))
        finally:
            os.sched_setaffinity(pair.server.pid, cpus)
        return done["us"]

    def at_once(self, kind):
        pair, seconds = self.pairs["tapway", MTUS[0]], max(1.0, self.args.seconds)

        def client(side):
            port, counter = HOSTS[side]
            argv = [self.programs["traffic"], kind, HOST4, str(port), str(seconds), "1", *([counter] if kind == "send" else [])]
            return popen(pair.inside(*argv, side=side), stdout=subprocess.PIPE)

        rates = []
        for process in [client(side) for side in (0, 1)]:
            said, _ = process.communicate(timeout=seconds + 10)
            if process.returncode != 0:
                raise RuntimeError(f"a client ended with {process.returncode}: " + open(LOG, encoding="utf-8").read()[-300:])
            rates.append(json.loads(said)["gbit_s"])
        if not all(rates):
            raise RuntimeError(f"nothing moved: {rates}")
        return min(rates) / max(rates)

    def start(self, network):
        """Milliseconds until the command of a new member has written a byte."""
        if network == "starts":
            wait_for("the end of the network process", lambda: network_processes() <= self.alone)
        run_it = [self.programs["tapway"], "run", "--network", network, "--", self.programs["traffic"], "byte"]
        done = run(*UNPRIVILEGED, self.programs["traffic"], "first-byte", *run_it, timeout=20)
        return json.loads(done)["ms"]


def mtus(name):
    """Of the pairs that a measurement needs."""
    if re.search("rtt|connect|names|at once", name):
        return MTUS[:1]
    return [mtu for mtu in MTUS if f" {mtu} " in name]


def measure(args, names):
    """The samples and failures of these measurements."""
    load = [os.getloadavg()[0]]
    bench = Members(args, names)
    bench.setup()
    rounds(bench.plan(), args.pairs, bench.note, bench.failures, "between members, ")
    load.append(os.getloadavg()[0])
    units = {name: UNITS[name] for name in names}
    facts = {"load average": f"{load[0]:.1f} before, {load[1]:.1f} after"}
    return {"samples": bench.samples, "failures": bench.failures, "units": units, "facts": facts}
