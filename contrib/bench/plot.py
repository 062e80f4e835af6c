#!/usr/bin/python3
"""Draws the main figures of one run of compare, from its JSON: a panel for each measurement, a bar for each subject.

    contrib/bench/plot.py RESULT.json PICTURE.svg

A bar is the median over all rounds, the line on it the 90 % interval. Every panel has a scale of its own that begins at
zero. Colours are such that the picture can be read on white and on black. Drawing takes matplotlib (python3-matplotlib of
Debian); nothing else of the benchmark does.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot  # noqa: E402

sys.dont_write_bytecode = True
from report import interval, shown  # noqa: E402

#: Measurement and what it is called in the picture.
PANELS = {
    "tcp send v4 65520 x1": "TCP, guest to host, MTU 65520",
    "tcp recv v4 65520 x1": "TCP, host to guest, MTU 65520",
    "tcp send v4 1500 x1": "TCP, guest to host, MTU 1500",
    "published send v4 65520": "TCP through a published port",
    "http requests, wrk x32": "nginx and wrk, 32 connections",
    "connect+byte+close v4 x32": "short connections, 32 clients",
    "udp send 1200 v4 x1 below 0.1 % loss": "datagrams, below 0.1 % loss",
    "rtt v4": "one byte there and back",
}
COLOURS = {"tapway": "#2f81f7", "slirp4netns": "#d9822b", "pasta": "#3fa45b", "rootlesskit": "#a371f7", "loopback": "#8b949e"}
CALLED = {"loopback": "kernel loopback", "rootlesskit": "RootlessKit builtin"}
#: Between black and white: legible on both.
INK = "#7d8590"


def unit(text, value):
    """The unit and the factor that spare the reader thousands."""
    if text == "1/s" and value >= 1000:
        return "thousand a second", 1e-3
    return {"1/s": "a second"}.get(text, text), 1


def panel(axes, run, name):
    text, bigger = run["units"][name]
    bars = []
    for subject in COLOURS:
        values = [v for v in run["samples"][name].get(subject, []) if v is not None]
        if values:
            bars.append((subject, *interval(values)))
    called, factor = unit(text, max(middle for _, middle, _, _ in bars))
    end = max(high for _, _, _, high in bars) * factor
    for place, (subject, middle, low, high) in enumerate(bars):
        axes.barh(place, middle * factor, color=COLOURS[subject], height=0.72, alpha=0.5 if subject == "loopback" else 1)
        axes.plot([low * factor, high * factor], [place, place], color=INK, linewidth=1)
        axes.text(end * 1.03, place, shown(middle * factor), va="center", ha="left", color=INK, fontsize=9,
                  fontweight="bold" if subject == "tapway" else "normal")
    axes.set_xlim(0, end * 1.2)
    axes.set_yticks(range(len(bars)), [CALLED.get(subject, subject) for subject, *_ in bars], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{PANELS[name]}\n{called}, {'more' if bigger else 'less'} is better", loc="left", fontsize=9.5, color=INK)


def draw(run, path):
    """Draws what there is of the panels."""
    names = [name for name in PANELS if any(v is not None for s in run["samples"].get(name, {}).values() for v in s)]
    if not names:
        raise SystemExit("plot: none of the measurements that are drawn was taken")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tapway", "font.family": "sans-serif"})
    rows = (len(names) + 1) // 2
    figure, grid = pyplot.subplots(rows, 2, figsize=(9.6, 1.75 * rows + 0.3), squeeze=False)
    for axes, name in zip(grid.flat, names):
        panel(axes, run, name)
    for axes in list(grid.flat)[len(names):]:
        axes.axis("off")
    facts = run["facts"]
    said = ", ".join(f"{key} {facts[key]}" for key in ("machine", "kernel", "congestion control", "date") if key in facts)
    said = f"contrib/bench/compare, medians of {facts['rounds']} interleaved rounds; {said}"
    figure.text(0.01, 0.004, said, fontsize=7.5, color=INK)
    figure.tight_layout(rect=(0, 0.02, 1, 1), h_pad=1.4, w_pad=2.0)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py RESULT.json PICTURE.svg")
    draw(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["runs"][0], sys.argv[2])
