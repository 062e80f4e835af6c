"""The half of compare in which each helper joins a sandbox to the host, and both ends are contrib/bench/traffic.rs.

Each helper serves two sandboxes, one per MTU, for the whole run. RootlessKit's are there for its builtin port driver: they are
asked through published ports alone.
"""

import json
import os
import re
import subprocess
import time

from common import HOST4, MANY, MTUS, PORT, retransmitted, rounds, run, say, serve, stage
from sandbox import HELPERS, KNOWN, PUBLISHERS, Sandbox, control, one_id, orphans

GIB = 1 << 30
#: Connections that rest.
FLOWS = 10_000
#: Connections at full rate beside one that is not.
CROWD = 100
BESIDE_IDLE = f"rtt v4 beside {FLOWS} idle flows"
BESIDE_BULK = "ping beside a download, 99th percentile"
BESIDE_CROWD = f"interactive beside {CROWD} bulk flows, 99th percentile"
RESTING, RESTED = f"memory with {FLOWS} flows", f"memory with {FLOWS} flows, 10 s later"
SIDES = ("guest", "host")


def busy_seconds():
    """CPU time of the whole machine, without idling and waiting for disks."""
    fields = [int(f) for f in open("/proc/stat", encoding="utf-8").readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, args):
        self.args = args
        self.programs = {name: f"{args.inner}/{file}" for name, file in (("traffic", "bench-traffic"), ("tapway", "tapway"))}
        self.helpers = [h for h in HELPERS if h in args.subjects]
        self.publishers = [h for h in PUBLISHERS if h in args.subjects]
        self.loopback = ["loopback"] if "loopback" in args.subjects else []
        #: By name and subject, what the round's bulk measurements have had sent again so far.
        self.again = {}
        self.sandboxes, self.samples, self.failures = {}, {}, {}

    def client(self, subject, mtu, kind, address, port, seconds, *more, counter=control("loopback")):
        """What a client says that takes so many seconds; None, if that is its own affair."""
        argv = [self.programs["traffic"], kind, address, str(port), *([] if seconds is None else [str(seconds)]), *map(str, more)]
        if kind in ("send", "udp-send", "udp-lossless-send", "udp-lossless-recv"):
            argv.append(counter)
        if subject is not None:
            argv = self.sandboxes[subject, mtu].inside(*argv)
        return json.loads(run(*argv, timeout=(seconds or 0) + 10))

    def outward(self, subject, mtu, family):
        if subject == "loopback":
            return None, {4: "127.0.0.1", 6: "::1"}[family]
        return subject, self.sandboxes[subject, mtu].gateway[family]

    def measurements(self):
        """(name, unit, bigger is better, subjects, function of a subject returning a value)."""
        seconds = self.args.seconds
        every, ported = self.loopback + self.helpers, self.loopback + self.publishers
        only = re.compile(self.args.only)
        out = []

        def bulk(kind, mtu, family, streams):
            def measure(subject):
                who, address = self.outward(subject, mtu, family)
                before, again = busy_seconds(), self.retransmitted(who, mtu)
                try:
                    result = self.client(who, mtu, kind, address, PORT, seconds, streams)
                finally:
                    for side, count in self.retransmitted(who, mtu).items():
                        key = f"retransmitted by the {side}, tcp {kind} {mtu}", subject
                        self.again[key] = self.again.get(key, 0) + count - again[side]
                if streams == 1 and family == 4 and result["bytes"]:
                    used = (busy_seconds() - before) * GIB / result["bytes"]
                    self.note(f"cpu {kind} {mtu}", subject, used)
                return result["gbit_s"]

            return measure

        for mtu in MTUS:
            # The kernel's loopback has one MTU, so it stands beside the large one only.
            subjects = every if mtu == MTUS[0] else self.helpers
            for family in (4, 6):
                for streams in (1, 4):
                    for kind in ("send", "recv"):
                        name = f"tcp {kind} v{family} {mtu} x{streams}"
                        out.append((name, "Gbit/s", True, subjects, bulk(kind, mtu, family, streams)))
            for kind in ("send", "recv"):

                def published(subject, kind=kind, mtu=mtu):
                    port = PORT if subject == "loopback" else self.sandboxes[subject, mtu].published
                    return self.client(None, mtu, kind, HOST4, port, seconds, 1, counter=control(subject, mtu))["gbit_s"]

                name, whose = f"published {kind} v4 {mtu}", ported if mtu == MTUS[0] else self.publishers
                out.append((name, "Gbit/s", True, whose, published))
            for kind in ("send", "recv"):
                # After all that they count, with whatever of that was wanted.
                if any(re.fullmatch(f"tcp {kind} v. {mtu} x.", m[0]) and only.search(m[0]) for m in out):
                    for side in SIDES:
                        name = f"retransmitted by the {side}, tcp {kind} {mtu}"
                        whose = subjects if side == "host" else self.helpers
                        counted = lambda subject, name=name: self.again.pop((name, subject), None)  # noqa: E731
                        out.append((name, "segments", False, whose, counted))

        half = max(0.2, seconds / 2)
        mtu = MTUS[0]

        def simple(kind, field, *more, family=4, seconds=half):
            def measure(subject):
                who, address = self.outward(subject, mtu, family)
                return self.client(who, mtu, kind, address, PORT, seconds, *more)[field]

            return measure

        out.append(("rtt v4", "µs", False, every, simple("rtt", "us")))
        out.append(("rtt v6", "µs", False, every, simple("rtt", "us", family=6)))
        out.append((BESIDE_IDLE, "µs", False, [s for s in every if s in ("loopback", "tapway")], self.beside_idle))
        out.append((BESIDE_BULK, "ms", False, self.helpers, self.ping_beside_download))
        out.append((BESIDE_CROWD, "ms", False, every, self.interactive_beside_crowd))
        out.append(("connect+byte+close v4", "µs", False, every, simple("conn", "us", 1)))
        out.append(("connect+byte+close v4 x32", "1/s", True, every, simple("conn", "per_s", 32)))

        def published_conn(subject):
            port = PORT if subject == "loopback" else self.sandboxes[subject, mtu].published
            return self.client(None, mtu, "conn", HOST4, port, half, 1)["us"]

        out.append(("published connect+byte+close v4", "µs", False, ported, published_conn))
        for family in (4, 6):
            out.append((f"udp send 1200 v{family}", "1/s", True, every, simple("udp-send", "per_s", 1200, family=family)))
            out.append((f"udp recv 1200 v{family}", "1/s", True, every, simple("udp-recv", "per_s", 1200, family=family)))
        for flows in (1, 64):
            for kind in ("send", "recv"):
                measure = simple(f"udp-lossless-{kind}", "per_s", 1200, flows, seconds=None)
                out.append((f"udp {kind} 1200 v4 x{flows} below 0.1 % loss", "1/s", True, every, measure))
        out.append(("start to first byte", "ms", False, self.helpers, self.start_to_ready))
        return [m for m in out if m[3] and (only.search(m[0]) or m[0].startswith("retransmitted"))]

    def ported(self):
        """Who needs sandboxes: RootlessKit only if something is asked through its ports."""
        asked = {subject for m in self.measurements() for subject in m[3]}
        return [h for h in self.publishers if h in self.helpers or h in asked]

    def retransmitted(self, who, mtu):
        """Segments sent again so far by the kernel of either end."""
        counts = {"host": retransmitted()}
        if who is not None:
            counts["guest"] = retransmitted(self.sandboxes[who, mtu].pid)
        return counts

    def park(self, subject, mtu=MTUS[0]):
        """FLOWS connections that carried 1 KiB each way and rest until the returned process's input ends."""
        who, address = self.outward(subject, mtu, 4)
        argv = [*MANY, self.programs["traffic"], "park", address, str(PORT), str(FLOWS)]
        if who is not None:
            argv = self.sandboxes[who, mtu].inside(*argv)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = process.stdout.readline()
        if b"parked" not in said:
            raise RuntimeError(f"{subject}: {FLOWS} connections were not to be had: {process.stderr.read().decode()}")
        return process

    def beside_idle(self, subject):
        who, address = self.outward(subject, MTUS[0], 4)
        parked = self.park(subject)
        try:
            return self.client(who, MTUS[0], "rtt", address, PORT, max(0.2, self.args.seconds / 2))["us"]
        finally:
            parked.stdin.close()
            parked.wait(timeout=20)

    def ping_beside_download(self, helper):
        box = self.sandboxes[helper, MTUS[0]]
        download = subprocess.Popen(
            box.inside(self.programs["traffic"], "recv", box.gateway[4], str(PORT), "1.0", "1"), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.2)
            said = run(*box.inside("ping", "-n", "-i", "0.004", "-c", "150", "-W", "1", box.gateway[4]), timeout=10)
        finally:
            download.wait(timeout=10)
        times = sorted(float(t) for t in re.findall(r"time=([0-9.]+) ms", said))
        if len(times) < 140:
            raise RuntimeError(f"{helper}: only {len(times)} of 150 pings were answered")
        return times[len(times) * 99 // 100]

    def interactive_beside_crowd(self, subject):
        """Milliseconds that one byte there and back takes while the guest downloads over CROWD connections."""
        who, address = self.outward(subject, MTUS[0], 4)
        argv = [self.programs["traffic"], "recv", address, str(PORT), "1.2", str(CROWD)]
        argv = argv if who is None else self.sandboxes[who, MTUS[0]].inside(*argv)
        crowd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            time.sleep(0.4)
            took = self.client(who, MTUS[0], "rtt", address, PORT, 0.6)["p99_us"]
        finally:
            said, complaint = crowd.communicate(timeout=20)
        if crowd.returncode != 0 or not json.loads(said)["bytes"]:
            raise RuntimeError(f"{subject}: {CROWD} downloads moved nothing: {complaint.decode()[-300:]}")
        return took / 1e3

    def memory_of_many(self, helper):
        """What FLOWS resting connections cost, at once and ten seconds later."""
        box = self.sandboxes[helper, MTUS[0]]
        parked = self.park(helper)
        self.note(RESTING, helper, box.memory()[0])
        time.sleep(10)
        self.note(RESTED, helper, box.memory()[0])
        parked.stdin.close()
        parked.wait(timeout=20)

    def start_to_ready(self, helper):
        box = Sandbox.__new__(Sandbox)
        box.helper, box.mtu, box.published, box.programs, box.processes = helper, MTUS[0], 0, self.programs, []
        gateway = self.sandboxes[helper, MTUS[0]].gateway[4]
        # The kernel takes the last subject's namespaces down meanwhile, and who makes new ones waits for that: 10 ms of tapway's
        # start were the end of another's.
        time.sleep(0.3)
        begin = time.monotonic()
        probe = box.start([self.programs["traffic"], "probe", gateway, str(PORT)], subprocess.PIPE, publish=False)
        said = probe.stdout.readline()
        took = time.monotonic() - begin
        try:
            if b"ready" not in said:
                raise RuntimeError(f"{helper}: the probe said {said!r}")
        finally:
            # The command has ended by itself; slirp4netns ends with its namespace, or by our signal.
            probe.wait(timeout=20)
            box.stop()
        return took * 1e3

    def note(self, name, subject, value):
        self.samples.setdefault(name, {}).setdefault(subject, []).append(value)

    def setup(self):
        stage(self.args.congestion)
        if "rootlesskit" in self.ported():
            one_id()
        self.server = serve(self.programs["traffic"], control("loopback"))
        port = 20000
        for helper in self.ported():
            for mtu in MTUS:
                before = orphans()
                box = Sandbox(helper, mtu, port, self.programs, self.args.congestion)
                KNOWN[box.pid] = orphans() - before
                self.sandboxes[helper, mtu] = box
                port += 10
                if mtu == MTUS[0] and helper in self.helpers:
                    # While it is the only one of its kind, what its processes share is theirs alone.
                    time.sleep(1)
                    rss, pss = box.memory()
                    self.note("memory idle", helper, rss)
                    self.note("memory idle, shared pages once", helper, pss)

    def rounds(self):
        units = {
            "memory idle": ("MiB", False),
            "memory idle, shared pages once": ("MiB", False),
            "memory after traffic": ("MiB", False),
            RESTING: ("MiB", False),
            RESTED: ("MiB", False),
        }
        for kind in ("send", "recv"):
            for mtu in MTUS:
                units[f"cpu {kind} {mtu}"] = ("s/GiB", False)
        plan = self.measurements()
        units.update({name: (unit, bigger) for name, unit, bigger, _, _ in plan})
        plan = [(name, subjects, measure) for name, _, _, subjects, measure in plan]
        if "tapway" in self.helpers and re.search(self.args.only, RESTING):
            try:
                self.memory_of_many("tapway")
            except RuntimeError as error:
                say("compare:", error)
        rounds(plan, self.args.pairs, self.note, self.failures)
        time.sleep(2)
        for helper in self.helpers:
            try:
                self.note("memory after traffic", helper, self.sandboxes[helper, MTUS[0]].memory()[0])
            except RuntimeError as error:
                say("compare:", error)
                self.note("memory after traffic", helper, None)
        return units


def measure(args):
    """The samples and failures of these measurements."""
    bench = Bench(args)
    bench.setup()
    begin = time.monotonic()
    units = bench.rounds()
    facts = {"took": f"{time.monotonic() - begin:.0f} s"}
    return {"samples": bench.samples, "failures": bench.failures, "units": units, "facts": facts}
