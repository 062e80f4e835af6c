"""Sandboxes of slirp4netns, pasta, tapway and RootlessKit, started alike.

Confinement is that of users: slirp4netns with --enable-sandbox and --enable-seccomp, RootlessKit asks its slirp4netns for the
same; pasta and tapway confine themselves always.

RootlessKit wants newuidmap and subordinate ids, whether or not somebody needs them. In namespaces that have one id there are
none, so a newuidmap of ours maps that one alone. It has no part in what is measured, the builtin port driver.
"""

import ipaddress
import json
import os
import socket
import subprocess

from common import (
    PORT, UNPRIVILEGED, comm, descendants, memory, named_user, own_netns, run, serve, set_congestion, sleeper, wait_for
)

#: Who gives a sandbox a network, and who has published ports of its own besides.
HELPERS = ("slirp4netns", "pasta", "tapway")
PUBLISHERS = ("slirp4netns", "pasta", "rootlesskit", "tapway")
SHIMS = "/mnt/bin"


def program_path():
    return f"{SHIMS}:{os.environ['PATH']}"


def one_id():
    """What RootlessKit needs where there is one id; once, before its first sandbox."""
    if not os.path.exists("/etc/subuid") or not os.path.exists("/etc/subgid"):
        raise RuntimeError("/etc/subuid and /etc/subgid are missing, which RootlessKit reads; touch /etc/subuid /etc/subgid")
    named_user()
    run("sh", "-ec", f"""
        mkdir {SHIMS}; cd {SHIMS}
        printf '%s\\n' '#!/bin/sh' 'echo "$2 $3 1" >/proc/$1/uid_map' >newuidmap
        printf '%s\\n' '#!/bin/sh' 'echo deny >/proc/$1/setgroups; echo "$2 $3 1" >/proc/$1/gid_map' >newgidmap
        chmod 755 newuidmap newgidmap
        echo user:100000:65536 >subids
        mount --bind subids /etc/subuid; mount --bind subids /etc/subgid""")


def control(subject, mtu=None):
    """Where the server of a sandbox, or the host's, tells its counts."""
    return "/mnt/control.host" if subject == "loopback" else f"/mnt/control.{subject}.{mtu}"


class Sandbox:
    """One sandbox of one helper: how to reach the host from inside, and the guest from the host."""

    def __init__(self, helper, mtu, published, programs, congestion="", served=True):
        self.helper, self.mtu, self.published, self.programs = helper, mtu, published, programs
        self.processes = []
        self.start(["sleep", "1000000"])
        self.pid = wait_for(f"the sandbox of {helper}", self.sleeper)
        self.gateway = {}
        wait_for(f"routes in the sandbox of {helper}", self.find_gateways)
        set_congestion(congestion, self.inside())
        self.server = serve(programs["traffic"], control(helper, mtu), self.inside()) if served else None

    def log(self):
        return open(f"/mnt/log.{self.helper}", "ab")

    def popen(self, argv, **kw):
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=self.log(), **kw)
        self.processes.append(process)
        return process

    def start(self, command, stdout=subprocess.DEVNULL, publish=True):
        """Starts the helper with `command` inside; returns the process whose end is the command's."""
        mtu, port = str(self.mtu), str(self.published)
        if self.helper == "tapway":
            argv = [self.programs["tapway"], "run", "--network", "private", "--mtu", mtu, "--allow-host-loopback"]
            for p in (self.published, self.published + 1) if publish else ():
                argv += ["-p", f"{p}:{PORT + p - self.published}"]
            if publish:
                argv += ["-p", f"{port}:{PORT}/udp"]
            return self.popen([*UNPRIVILEGED, *argv, "--", *command], stdout=stdout)
        if self.helper == "pasta":
            argv = ["pasta", "--config-net", "--mtu", mtu, "--ns-ifname", "eth0", "-T", "none", "-U", "none"]
            ports = f"{self.published}-{self.published + 1}:{PORT}-{PORT + 1}" if publish else "none"
            argv += ["-t", ports, "-u", f"{self.published}:{PORT}" if publish else "none"]
            return self.popen([*UNPRIVILEGED, *argv, "--", *command], stdout=stdout)
        if self.helper == "rootlesskit":
            argv = ["rootlesskit", f"--state-dir=/mnt/rootlesskit.{port}", "--net=slirp4netns", f"--mtu={mtu}", "--copy-up=/etc"]
            argv += ["--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true", "--port-driver=builtin"]
            argv += [f"-p=0.0.0.0:{self.published + n}:{PORT + n}/tcp" for n in (0, 1)]
            env = {**os.environ, "PATH": program_path()}
            return self.popen([*UNPRIVILEGED, *argv, *command], stdout=stdout, env=env)
        unshare = ["unshare", "-Urnm", "--", *command]
        sandbox = self.popen([*UNPRIVILEGED, *unshare], stdout=stdout)
        wait_for("a network namespace", lambda: own_netns(sandbox.pid))
        api = f"/mnt/slirp.{sandbox.pid}"
        argv = ["slirp4netns", "--configure", "--mtu", mtu, "--enable-ipv6", "--enable-sandbox", "--enable-seccomp"]
        argv += ["--api-socket", api] if publish else []
        self.popen([*UNPRIVILEGED, *argv, str(sandbox.pid), "eth0"], stdout=subprocess.DEVNULL)
        if publish:
            for offset in (0, 1):
                self.slirp(api, self.published + offset, PORT + offset, "tcp")
            self.slirp(api, self.published, PORT, "udp")
        return sandbox

    def slirp(self, api, host_port, guest_port, proto):
        def ask():
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(api)
                except OSError:
                    return None
                wish = {"proto": proto, "host_port": host_port, "guest_port": guest_port}
                s.sendall(json.dumps({"execute": "add_hostfwd", "arguments": wish}).encode())
                s.shutdown(socket.SHUT_WR)
                return s.recv(4096)

        answer = wait_for("slirp4netns's API socket", ask)
        if b"error" in answer:
            raise RuntimeError(f"slirp4netns: {answer.decode()}")

    def sleeper(self):
        return next(filter(None, (sleeper(p, f"/mnt/log.{self.helper}") for p in self.processes)), None)

    def find_gateways(self):
        if self.helper == "rootlesskit":
            self.gateway = {4: "10.0.2.2"}
            return "default" in run(*self.inside("ip", "-4", "route"))
        if self.helper == "slirp4netns":
            # It configures IPv4 only and advertises the rest; waiting for that would be unfair to none but our time.
            if "default" not in run(*self.inside("ip", "-4", "route")):
                return False
            run(*self.inside("sh", "-ec", """
                ip -6 addr add fd00::64/64 dev eth0 nodad 2>/dev/null || true
                ip -6 route replace default via fe80::2 dev eth0"""))
            self.gateway = {4: "10.0.2.2", 6: "fd00::2"}
            return True
        for family in (4, 6):
            routes = json.loads(run(*self.inside("ip", "-j", f"-{family}", "route", "show", "default")))
            if not routes:
                return False
            self.gateway[family] = routes[0]["gateway"]
        if self.helper == "tapway":
            addresses = json.loads(run(*self.inside("ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "global")))
            if not addresses[0]["addr_info"]:
                return False
            prefix = ipaddress.ip_network(addresses[0]["addr_info"][0]["local"] + "/64", strict=False)
            self.gateway[6] = str(prefix[2])
        return True

    def inside(self, *argv):
        return ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials", "--", *argv]

    def helper_pids(self):
        """All processes of the helper: everything it started but what runs inside, and the network process."""
        names = {"slirp4netns": ("slirp4netns",), "pasta": ("pasta", "passt"), "tapway": ("tapway",)}[self.helper]
        mine = set()
        for process in self.processes:
            mine |= set(descendants(process.pid))
        if self.helper == "tapway":
            mine |= detached(self.pid)
        return [p for p in mine if comm(p).startswith(names)]

    def memory(self):
        """MiB of all processes of the helper, as common.memory counts them."""
        return memory(self.helper_pids())

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


#: Network processes of tapway that were there before each sandbox was started: what is new belongs to it.
KNOWN = {}


def detached(sandbox_pid):
    """The network process of a sandbox: it leaves its parent (setsid), so it is told by when it appeared."""
    return KNOWN.get(sandbox_pid, set())


def orphans():
    return {int(p) for p in os.listdir("/proc") if p.isdigit() and comm(int(p)).startswith("tapway")}
