"""The half of compare with real programs at both ends: what users run, as they come from Debian.

The server is on the host, the client in a sandbox at the large MTU; "published" is the other way round, through a published
port. Nothing is tuned for speed but PostgreSQL, which does not wait for the disk (its data are in memory anyhow).

- "http": nginx, a file of 1 KiB, wrk with 32 connections kept alive.
- "redis": redis-benchmark's GET from 50 clients, no pipelining.
- "pgbench": select-only transactions of 8 clients.
- "dnsperf": questions for one record that dnsmasq knows, as many under way as dnsperf likes. What is lost it waits for.
- "iperf3": one stream, as the receiver counts it; a check on contrib/bench/traffic.rs.

A run that says of an error, however small, has no figure.
"""

import contextlib
import csv
import glob
import io
import json
import os
import pathlib
import re
import subprocess
import tempfile

from common import HOST4, MTUS, PORT, UNPRIVILEGED, named_user, rounds, run, stage, wait_for
from sandbox import HELPERS, Sandbox, one_id

#: Ports on the host; nginx in a sandbox is at PORT, where the published port leads.
HTTP, REDIS, POSTGRES, DNS, IPERF = 8080, 6379, 5432, 5353, 5201
#: Seconds of one measurement: these programs know whole ones only.
SECONDS = 1
PUBLISHED = "http requests, published, wrk x32"
#: Measurement, unit, bigger is better.
UNITS = {
    "http requests, wrk x32": ("1/s", True),
    PUBLISHED: ("1/s", True),
    "redis GET, 50 clients": ("1/s", True),
    "pgbench, select-only, 8 clients": ("1/s", True),
    "dnsperf": ("1/s", True),
    "iperf3 send": ("Gbit/s", True),
    "iperf3 recv": ("Gbit/s", True),
}
#: What issue "Speed and scale" asks for, as report.GOALS.
GOALS = [("http requests, wrk x32", "slirp4netns", 1.5), ("http requests, wrk x32", "pasta", 2.0)]
PACKAGES = "dnsmasq-base dnsperf iperf3 nginx-light postgresql redis-server redis-tools wrk"
LOG = "/mnt/log.programs"
NAME = "bench.example"


def postgres(program):
    """PostgreSQL's programs of the newest version; most are not on the path."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"), key=lambda p: int(p.split("/")[4]))
    return found[-1] if found else None


#: What each measurement takes, beside what all do.
NEEDS = {
    "http": ("nginx", "wrk"),
    "redis": ("redis-server", "redis-benchmark"),
    "dnsperf": ("dnsmasq", "dnsperf"),
    "iperf3": ("iperf3",),
}


def missing(names, which):
    """Programs that are not there; `which` looks for one by name."""
    wanted = {p for name in names for key, programs in NEEDS.items() if name.startswith(key) for p in programs}
    gone = sorted(p for p in wanted if which(p) is None)
    if any(name.startswith("pgbench") for name in names):
        gone += [p for p in ("initdb", "pg_ctl", "pgbench") if postgres(p) is None]
    return gone


def subjects(name, wanted):
    able = ("loopback", *HELPERS, "rootlesskit") if name == PUBLISHED else ("loopback", *HELPERS)
    return [s for s in able if s in wanted]


NGINX = """
daemon off; worker_processes auto; pid {home}/pid; error_log {home}/errors; events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3;
    uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;
    server {{ listen {port}; listen [::]:{port}; root {home}; }}
}}
"""


class Programs:
    def __init__(self, args, names):
        self.args, self.names = args, names
        self.programs = {"tapway": f"{args.inner}/tapway"}
        self.sandboxes, self.samples, self.failures = {}, {}, {}
        self.servers = []
        #: Requests that redis-benchmark gets done from there in the time of a measurement: it takes a number.
        self.redis_requests = {}

    def note(self, name, subject, value):
        self.samples.setdefault(name, {}).setdefault(subject, []).append(value)

    def wants(self, text):
        return any(text in name for name in self.names)

    def setup(self):
        stage(self.args.congestion)
        named_user()
        # Shared memory that a server leaves behind ends with these namespaces.
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
        wanted = sorted({s for name in self.names for s in subjects(name, self.args.subjects)} - {"loopback"})
        if "rootlesskit" in wanted:
            one_id()
        for number, helper in enumerate(wanted):
            box = Sandbox(helper, MTUS[0], 20000 + 10 * number, self.programs, self.args.congestion, served=False)
            self.sandboxes[helper] = box
        if self.wants("http"):
            self.nginx(HTTP)
        if PUBLISHED in self.names:
            for box in self.sandboxes.values():
                self.nginx(PORT, box)
        if self.wants("redis"):
            home = tempfile.mkdtemp(prefix="redis", dir="/mnt")
            options = f"--port {REDIS} --bind 0.0.0.0 --protected-mode no --appendonly no --dir {home} --save"
            self.serve(["redis-server", *options.split(), ""], REDIS)
            # The key that redis-benchmark asks for.
            run("redis-benchmark", "-p", str(REDIS), "-t", "set", "-n", "1", "-c", "1", "-q")
        if self.wants("dnsperf"):
            options = f"--keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv --port={DNS} --cache-size=0 --pid-file="
            self.serve(["dnsmasq", *options.split(), f"--host-record={NAME},192.0.2.80"], DNS)
            pathlib.Path("/mnt/questions").write_text(f"{NAME} A\n", encoding="utf-8")
        if self.wants("iperf3"):
            self.serve(["iperf3", "-s", "-p", str(IPERF)], IPERF)
        if self.wants("pgbench"):
            self.postgres()

    def serve(self, argv, port, box=None):
        """Starts a server as the ordinary user, on the host or in a sandbox, and waits until it listens."""
        # In a sandbox it would be root, and nginx would want to be somebody else.
        place = ["nsenter", "-t", str(box.pid), "-n", "--"] if box else []
        argv = [*place, *UNPRIVILEGED, *argv]
        with open(LOG, "ab") as log:
            server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.servers.append(server)

        def listens():
            if server.poll() is not None:
                raise RuntimeError(f"{' '.join(argv)} ended: " + open(LOG, encoding="utf-8", errors="replace").read()[-2000:])
            return f":{port} " in run(*place, "ss", "-Hltn")

        wait_for(f"{' '.join(argv)} on port {port}", listens)

    def nginx(self, port, box=None):
        home = tempfile.mkdtemp(prefix="nginx", dir="/mnt")
        pathlib.Path(f"{home}/file").write_bytes(b"x" * 1024)
        pathlib.Path(f"{home}/conf").write_text(NGINX.format(home=home, port=port), encoding="utf-8")
        self.serve(["nginx", "-p", home, "-e", f"{home}/errors", "-c", f"{home}/conf"], port, box)

    def postgres(self):
        home = tempfile.mkdtemp(prefix="postgres", dir="/mnt")
        run(*UNPRIVILEGED, postgres("initdb"), "-D", home, "-U", "bench", "-A", "trust", "--no-sync", "--no-locale")
        with open(f"{home}/pg_hba.conf", "a", encoding="utf-8") as rules:
            rules.write("host all all all trust\n")
        options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={home}", "-c", "fsync=off", "-p", str(POSTGRES)]
        self.serve([os.path.join(os.path.dirname(postgres("pg_ctl")), "postgres"), "-D", home, *options], POSTGRES)
        fill = [postgres("pgbench"), "-h", home, "-p", str(POSTGRES), "-U", "bench", "-i", "-q", "postgres"]
        # It listens a little before it lets anybody in.
        wait_for("PostgreSQL", lambda: subprocess.run(
            fill, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0)

    def stop(self):
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=5)
        for box in self.sandboxes.values():
            box.stop()

    def measure(self, name, subject):
        try:
            return self.ask(name, subject)
        except (LookupError, TypeError, ValueError) as error:
            raise RuntimeError(f"{name}: no figure in what the program said: {error!r}") from error

    def ask(self, name, subject):
        if name == PUBLISHED:
            port = HTTP if subject == "loopback" else self.sandboxes[subject].published
            return wrk([], HOST4, port)
        inside, host = [], "127.0.0.1"
        if subject != "loopback":
            inside, host = self.sandboxes[subject].inside(), self.sandboxes[subject].gateway[4]
        kind = re.match("[a-z0-9]+", name)[0]
        if kind == "iperf3":
            return iperf3(inside, host, name.split()[1])
        return {"http": self.http, "redis": self.redis, "pgbench": pgbench, "dnsperf": dnsperf}[kind](inside, host)

    @staticmethod
    def http(inside, host):
        return wrk(inside, host, HTTP)

    def redis(self, inside, host):
        count = self.redis_requests.get(tuple(inside), 2000)
        options = f"-h {host} -p {REDIS} -t get -c 50 -n {count} --csv"
        said = run(*inside, "redis-benchmark", *options.split(), timeout=20)
        (found,) = [row for row in csv.DictReader(io.StringIO(said)) if row["test"] == "GET"]
        rate = float(found["rps"])
        if tuple(inside) not in self.redis_requests:
            # That was too few to be a figure; now it is known how many to ask for.
            self.redis_requests[tuple(inside)] = max(2000, int(rate * SECONDS))
            return self.redis(inside, host)
        return rate


def wrk(inside, host, port):
    said = run(*inside, "wrk", "-t2", "-c32", f"-d{SECONDS}s", f"http://{host}:{port}/file", timeout=20)
    if "Socket errors" in said or "Non-2xx" in said:
        raise RuntimeError(said.strip())
    return float(re.search(r"^Requests/sec:\s+([0-9.]+)", said, re.M)[1])


def pgbench(inside, host):
    said = run(
        *inside, postgres("pgbench"), "-h", host, "-p", str(POSTGRES), "-U", "bench", "-n", "-S", "-c", "8", "-j", "2",
        "-T", str(SECONDS), "postgres", timeout=20)
    if not re.search(r"^number of failed transactions: 0 ", said, re.M):
        raise RuntimeError(said.strip())
    return float(re.search(r"^tps = ([0-9.]+)", said, re.M)[1])


def dnsperf(inside, host):
    said = run(*inside, "dnsperf", "-s", host, "-p", str(DNS), "-d", "/mnt/questions", "-l", str(SECONDS), "-t", "1", timeout=20)
    codes = re.search(r"Response codes:\s+(.*)", said)
    if not codes or not codes[1].startswith("NOERROR") or "," in codes[1]:
        raise RuntimeError(said.strip()[-600:])
    return float(re.search(r"Queries per second:\s+([0-9.]+)", said)[1])


def iperf3(inside, host, kind):
    reverse = ["-R"] if kind == "recv" else []
    said = json.loads(run(*inside, "iperf3", "-J", "-c", host, "-p", str(IPERF), "-t", str(SECONDS), *reverse, timeout=20))
    if "error" in said:
        raise RuntimeError(f"iperf3: {said['error']}")
    return said["end"]["sum_received"]["bits_per_second"] / 1e9


def measure(args, names):
    """The samples and failures of these measurements."""
    bench = Programs(args, names)
    try:
        bench.setup()
        plan = [(n, subjects(n, args.subjects), lambda subject, n=n: bench.measure(n, subject)) for n in names]
        rounds(plan, args.pairs, bench.note, bench.failures, "real programs, ")
    finally:
        bench.stop()
    return {"samples": bench.samples, "failures": bench.failures, "units": {n: UNITS[n] for n in names}, "facts": {}}
