"""What the measuring halves of compare share: running programs, waiting, looking at processes, the host they play, and
the order of measurements."""

import json
import os
import re
import subprocess
import sys
import time

HOST4, HOST6 = "198.51.100.2", "2001:db8::2"
#: Of the server on the host and in each sandbox; PORT + 1 is its connect-and-close side.
PORT = 9000
MTUS = (65520, 1500)
#: Before a program that opens many connections: all descriptors that it may have.
MANY = ["sh", "-c", 'ulimit -n "$(ulimit -Hn)"; exec "$@"', "sh"]
CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
UNPRIVILEGED = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--"]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def run(*argv, **kw):
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **kw)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def set_congestion(name, prefix=()):
    """Has the kernel of our network namespace, or of that where a prefix leads, use this algorithm, if one is named."""
    if name:
        run(*prefix, "sh", "-c", f"echo {name} >{CONGESTION}")


def stage(congestion=""):
    set_congestion(congestion)
    run("sh", "-ec", f"""
        mount -t tmpfs -o mode=755 tmpfs /mnt; mkdir -m 700 /mnt/run
        ip link set lo up
        ip link add up0 type veth peer name peer0 && ip link set peer0 up
        ip addr add {HOST4}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up
        ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8::1
        echo '1000 1000' > /proc/sys/net/ipv4/ping_group_range
    """)


def named_user():
    """Gives our one id a name, which some programs insist on."""
    if "user:" not in open("/etc/passwd", encoding="utf-8").read(5):
        run("sh", "-ec", "echo user:x:1000:1000::/mnt:/bin/sh >/mnt/passwd; mount --bind /mnt/passwd /etc/passwd")


def retransmitted(pid="self"):
    """TCP segments that the kernel of a process's network namespace has sent again."""
    try:
        text = open(f"/proc/{pid}/net/snmp", encoding="utf-8").read()
    except OSError as error:
        raise RuntimeError(f"the sandbox has gone: {error}") from error
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def serve(traffic, control, prefix=(), port=PORT):
    """Starts the server of all measurements, inside a sandbox if a prefix leads there."""
    argv = [*prefix, *MANY, traffic, "serve", str(port), control]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError(f"{' '.join(map(str, argv))} did not start: {server.stderr.read().decode()}")
    return server


def processes():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def words(pid):
    """The command line of a process; nothing if it is gone."""
    try:
        return open(f"/proc/{pid}/cmdline", "rb").read()
    except OSError:
        return b""


def descendants(pid):
    children = {}
    for p in processes():
        try:
            stat = open(f"/proc/{p}/stat", encoding="utf-8").read()
        except OSError:
            continue
        parent = int(stat.rsplit(")", 1)[1].split()[1])
        children.setdefault(parent, []).append(p)
    found, todo = [], [pid]
    while todo:
        p = todo.pop()
        found.append(p)
        todo += children.get(p, [])
    return found


def wait_for(what, done, seconds=20.0):
    end = time.monotonic() + seconds
    while True:
        value = done()
        if value:
            return value
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.002)


def own_netns(pid):
    """Whether the process has left our network namespace."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    except OSError:
        return False


def sleeper(process, log):
    """The `sleep` in a namespace of its own that a process has started; None while there is none yet."""
    for pid in descendants(process.pid):
        if words(pid).startswith(b"sleep\0") and own_netns(pid):
            return pid
    if process.poll() is not None:
        raise RuntimeError(f"{process.args} ended: " + open(log, encoding="utf-8").read()[-2000:])
    return None


def comm(pid):
    try:
        return open(f"/proc/{pid}/comm", encoding="utf-8").read().strip()
    except OSError:
        return ""


def memory(pids):
    """MiB: (resident + page tables, proportional + page tables) of these processes."""
    rss = pss = 0
    for pid in pids:
        fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status", encoding="utf-8").read().splitlines())
        if "VmPTE" not in fields:
            # It has ended, which says more about it than a figure does.
            raise RuntimeError(f"{comm(pid)} ({pid}) has ended: {fields['State'].strip()}")
        tables = int(fields["VmPTE"].split()[0])
        rss += int(fields["VmRSS"].split()[0]) + tables
        rollup = open(f"/proc/{pid}/smaps_rollup", encoding="utf-8").read()
        pss += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) + tables
    return rss / 1024, pss / 1024


def rounds(plan, pairs, note, failures, label=""):
    """Takes every measurement of the plan (name, subjects, function of a subject) once a round with every subject."""
    begin = time.monotonic()
    for n in range(pairs):
        for name, subjects, measure in plan:
            turn = n % len(subjects)
            for subject in subjects[turn:] + subjects[:turn]:
                try:
                    value = measure(subject)
                except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
                    # A subject that stalls or refuses has no figure in this round; that is counted and shown.
                    failures.setdefault(name, {}).setdefault(subject, []).append(str(error)[:300])
                    value = None
                note(name, subject, value)
        say(f"{label}round {n + 1}/{pairs}, {time.monotonic() - begin:.0f} s")
