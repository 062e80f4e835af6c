"""What compare's figures say: ratios and their intervals, the tables, the goals, and floors below which no ratio may fall."""

import json
import math
import re
import statistics

import members
import programs
from common import MTUS
from own import BESIDE_BULK, RESTED, RESTING

#: All there are, in the order of the tables' columns.
SUBJECTS = ("loopback", "slirp4netns", "pasta", "rootlesskit", "veth", "relay", "tapway")
#: What issue "Speed and scale" asks for: measurement, against whom, at least (bigger is better) or at most this ratio; against
#: None, this figure.
GOALS = [
    *((f"tcp send v{f} 65520 x{n}", "slirp4netns", 4.0) for f in (4, 6) for n in (1, 4)),
    *((f"tcp recv v{f} 65520 x{n}", "slirp4netns", 2.7) for f in (4, 6) for n in (1, 4)),
    *((f"tcp send v{f} 1500 x{n}", "slirp4netns", 15.0) for f in (4, 6) for n in (1, 4)),
    *((f"tcp recv v{f} 1500 x{n}", "slirp4netns", 4.5) for f in (4, 6) for n in (1, 4)),
    *((f"tcp {d} v{f} {m} x{n}", "pasta", 1.0) for m in MTUS for d in ("send", "recv") for f in (4, 6) for n in (1, 4)),
    *((f"tcp {d} v{f} 65520 x{n}", "loopback", 0.8) for d in ("send", "recv") for f in (4, 6) for n in (1, 4)),
    *((f"cpu {d} 65520", "loopback", 2.0) for d in ("send", "recv")),
    *((f"cpu {d} {m}", "slirp4netns", 0.4) for d in ("send", "recv") for m in MTUS),
    *((f"published send v4 {m}", other, goal) for m in MTUS for other, goal in (("slirp4netns", 3.0), ("rootlesskit", 1.2))),
    *((f"rtt v{f}", other, goal) for f in (4, 6) for other, goal in (("slirp4netns", 0.8), ("pasta", 1.0))),
    ("connect+byte+close v4", "slirp4netns", 0.85),
    *(("connect+byte+close v4 x32", other, 1.5) for other in ("slirp4netns", "pasta")),
    (BESIDE_BULK, "slirp4netns", 1.0),
    (BESIDE_BULK, None, 3.0),
    (RESTING, None, 120.0),
    (RESTED, None, 40.0),
    *((f"udp {d} 1200 v4 x{n} below 0.1 % loss", other, goal)
      for n, goal in ((1, 3.0), (64, 2.0)) for d in ("send", "recv") for other in ("slirp4netns", "pasta")),
    *((f"retransmitted by the guest, tcp {d} {m}", None, 0) for m in MTUS for d in ("send", "recv")),
    *programs.GOALS,
    # And issue "Foundation".
    ("start to first byte", "slirp4netns", 1.0),
    # And issue "Drop-in slirp4netns".
    *((f"podman tcp {d}", "slirp4netns", 2.5) for d in ("send", "recv")),
    *((f"podman published {d}", "slirp4netns", 2.0) for d in ("send", "recv")),
    ("podman run", "slirp4netns", 1.0),
    # Against nobody: MiB.
    ("memory idle", None, 8.0),
    ("memory idle, shared pages once", None, 8.0),
    *members.GOALS,
]


def interval(values):
    """Median and a 90 % interval for it from order statistics (widest there is, if the sample is too small)."""
    values, n = sorted(values), len(values)
    low = 0
    # P(median below the k-th smallest) is binomial; take the narrowest symmetric pair that still covers 90 %.
    for k in range(n // 2):
        if 1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n < 0.9:
            break
        low = k
    return statistics.median(values), values[low], values[n - 1 - low]


def ratios(samples, name, ours, theirs):
    mine, other = (samples.get(name, {}).get(s, []) for s in (ours, theirs))
    return [a / b for a, b in zip(mine, other) if a is not None and b]


def shown(value):
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(runs):
    """All tables; those of each congestion control algorithm, if there were several, apart."""
    lines = []
    for run in runs:
        lines += [""] if lines else []
        if len(runs) > 1:
            lines += [f"**{run['facts']['congestion control']}**", ""]
        lines += ["| | |", "|---|---|"] + [f"| {key} | {value} |" for key, value in run["facts"].items()]
        measured = [n for n in run["units"] if n in run["samples"]]
        kinds = {"Between members of one network, medians": members.UNITS, "Real programs at both ends, medians": programs.UNITS}
        special = [n for units in kinds.values() for n in units]
        for title, names in {"Medians": [n for n in measured if n not in special], **kinds}.items():
            names = [n for n in measured if n in names]
            lines += ["", *tables(run, names, f"{title} over all rounds:")] if names else []
    return "\n".join(lines) + "\n"


def tables(result, names, title):
    """The three tables about these measurements: figures, ratios, goals."""
    units, samples = result["units"], result["samples"]
    subjects = [s for s in SUBJECTS if any(s in samples[name] for name in names)]
    ours = "tapway" if "tapway" in subjects else None
    lines = [title, ""]
    lines += ["| | unit | " + " | ".join(subjects) + " |", "|---|---|" + "---:|" * len(subjects)]
    for name in names:
        cells = []
        for subject in subjects:
            values = samples[name].get(subject)
            if values is None:
                cells.append("")
                continue
            good = [v for v in values if v is not None]
            cell = shown(statistics.median(good)) if good else "–"
            if len(good) < len(values):
                cell += f" ({len(values) - len(good)} of {len(values)} failed)"
            cells.append(cell)
        lines.append(f"| {name} | {units[name][0]} | " + " | ".join(cells) + " |")
    if not ours:
        return lines
    others = [s for s in subjects if s != ours]
    compared = []
    for name in names:
        cells = [spread(ratios(samples, name, ours, other)) for other in others]
        if any(cells):
            compared.append(f"| {name} | {'↑' if units[name][1] else '↓'} | " + " | ".join(cells) + " |")
    if compared:
        lines += ["", "tapway divided by the others, median of the ratios within a round and its 90 % interval",
                  "(↑ more is better, ↓ less is better):", ""]
        lines += ["| | | " + " | ".join(others) + " |", "|---|---|" + "---|" * len(others)]
        lines += compared
    reached = []
    for name, other, goal in GOALS:
        if name not in names:
            continue
        values = ratios(samples, name, ours, other) if other else samples[name].get(ours, [])
        values = [v for v in values if v is not None]
        if not values:
            continue
        _, low, high = interval(values)
        unit, bigger = units[name]
        met = high >= goal if bigger else low <= goal
        against, unit = (f" × {other}", "") if other else (f" {unit}", f" {unit}")
        reached.append(f"| {name} | {'≥' if bigger else '≤'} {goal:g}{against} | {spread(values)}{unit} | "
                       f"{'met' if met else '**missed**'} |")
    if reached:
        lines += ["", "What was to be reached; missed only if the interval excludes it:", ""]
        lines += ["| | goal | found | |", "|---|---|---|---|", *reached]
    return lines


def spread(values):
    if not values:
        return ""
    middle, low, high = interval(values)
    return shown(middle) + (f" ({shown(low)}–{shown(high)})" if len(values) > 1 else "")


# --- floors -----------------------------------------------------------------------------------------------------------

#: Of the low end of an interval, this much becomes the floor: what a noisy machine may take away.
MARGIN = 0.75


def record_floor(run, only, path):
    """Writes down what the ratios of these measurements may not fall below, or for times rise above, hereafter."""
    rows = []
    for name, (_, bigger) in run["units"].items():
        if not re.search(only, name):
            continue
        for other in (s for s in ("loopback", "slirp4netns") if s in run["samples"].get(name, {})):
            values = ratios(run["samples"], name, "tapway", other)
            if values:
                _, low, high = interval(values)
                limit = low * MARGIN if bigger else high / MARGIN
                rows.append({"row": name, "to": other, "at least" if bigger else "at most": round(limit, 3)})
    facts = {key: run["facts"][key] for key in ("date", "machine", "kernel", "congestion control", "rounds", "seconds")}
    path.write_text(json.dumps({**facts, "floors": rows}, indent=1) + "\n", encoding="utf-8")


def floored(path):
    """A pattern for the measurements that have a floor there."""
    rows = {floor["row"] for floor in json.loads(path.read_text(encoding="utf-8"))["floors"]}
    return f"^({'|'.join(map(re.escape, sorted(rows)))})$"


def below_floor(run, only, path):
    """What is wrong with this run by the floors recorded there: what an interval excludes, and where tapway has no figures."""
    complaints = []
    for floor in json.loads(path.read_text(encoding="utf-8"))["floors"]:
        name, other = floor["row"], floor["to"]
        if not re.search(only, name):
            continue
        values = ratios(run["samples"], name, "tapway", other)
        # Of fewer there is no interval to speak of: held against tapway if the lack is its own, but not if it is the other's.
        enough = min(3, run["facts"]["rounds"])
        mine = [v for v in run["samples"].get(name, {}).get("tapway", []) if v is not None]
        if len(mine) < enough or not values:
            complaints.append(f"{name}: no figures beside {other}'s")
            continue
        if len(values) < enough:
            continue
        _, low, high = interval(values)
        where = f"{name}: {spread(values)} × {other}"
        if high < floor.get("at least", -math.inf):
            complaints.append(f"{where}, the floor is {floor['at least']}")
        if low > floor.get("at most", math.inf):
            complaints.append(f"{where}, the most that it may be is {floor['at most']}")
    return complaints
