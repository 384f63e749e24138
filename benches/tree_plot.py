"""The scaling figure of `tree.py`, from its JSON: seconds and extra memory by N, on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from tree_case import EXACT

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "tree", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)

import matplotlib.pyplot as plt  # noqa: E402


class Line(NamedTuple):
    """One line: its cases, colour (Okabe and Ito's) and marker. Markers differ too."""

    name: str
    side: str
    linkage: str
    exact: bool
    colour: str
    marker: str


LINES = (
    Line("scipy pdist + linkage, ward", "scipy", "ward", True, "#CC79A7", "D"),
    Line("sklearn + fastcluster, ward", "fastcluster", "ward", True, "#E69F00", "^"),
    Line("numpy + fastcluster, ward", "gram", "ward", True, "#D55E00", "P"),
    Line("hsd, ward", "hsd", "ward", True, "#0072B2", "o"),
    Line("hsd, centroid", "hsd", "centroid", True, "#56B4E9", "s"),
    Line("hsd, ward, approximate", "hsd", "ward", False, "#009E73", "v"),
)
DATA = "mixture"


def draw(book: dict[str, Any], path: Path) -> None:
    """Write the figure; the type is the file's ending (.svg, .png)."""
    cases = [case for case in book["cases"].values() if case["status"] == "ok" and case["data"] == DATA]
    main_dim = max((case["dim"] for case in cases), key=[case["dim"] for case in cases].count)
    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for line in LINES:
        points = chosen(cases, line, main_dim)
        for axes, field in ((seconds, "seconds"), (memory, "extra_bytes")):
            trace(axes, line, points, field, main_dim)
    sizes = sorted({case["n"] for line in LINES for case in chosen(cases, line, main_dim)})
    for axes, what in ((seconds, "seconds"), (memory, "extra memory at the peak")):
        dress(axes, what, sizes)
    seconds.yaxis.set_major_formatter(FuncFormatter(lambda time, _: in_seconds(time)))
    seconds.yaxis.set_minor_formatter(NullFormatter())
    memory.yaxis.set_major_locator(FixedLocator([1 << power for power in range(20, 42, 2)]))
    memory.yaxis.set_major_formatter(FuncFormatter(lambda size, _: in_units(size)))
    memory.yaxis.set_minor_locator(NullLocator())
    handles, names = seconds.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    box = book["machine"]
    threads = sorted({case["threads"] for case in cases})
    used = " or ".join(map(str, threads)) + (" threads" if threads != [1] else " thread")
    figure.suptitle(f"Clustering N prompt embeddings, D = {main_dim}; {box['cpu']}, {used}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def chosen(cases: list[dict[str, Any]], line: Line, main_dim: int) -> list[dict[str, Any]]:
    """The line's cases by N, preferably of the main dimension; approximate ones only of the largest memory."""
    mine = [case for case in cases if (case["side"], case["linkage"]) == (line.side, line.linkage)]
    mine = [case for case in mine if case.get("exact", True) == line.exact]
    if not line.exact:
        most = max((case["memory"] or EXACT for case in mine), default=0)
        mine = [case for case in mine if (case["memory"] or EXACT) == most]
    by_n: dict[int, dict[str, Any]] = {}
    for case in sorted(mine, key=lambda case: (case["n"], case["dim"] == main_dim)):
        by_n[case["n"]] = case
    return list(by_n.values())


def trace(axes: Axes, line: Line, points: list[dict[str, Any]], field: str, main_dim: int) -> None:
    """A line through the points of the main dimension; points of other dimensions are hollow and labelled."""
    if not points:
        return
    style = {"color": line.colour, "marker": line.marker, "markersize": 6}
    main = [case for case in points if case["dim"] == main_dim]
    dashes = "-" if line.exact else "--"
    axes.plot([c["n"] for c in main], [c[field] for c in main], dashes, label=line.name, linewidth=1.8, **style)
    for case in points:
        if case["dim"] != main_dim:
            axes.plot(case["n"], case[field], linestyle="none", markerfacecolor="white", **style)
            where = {"xytext": (-8, -3), "textcoords": "offset points", "ha": "right", "fontsize": 9}
            axes.annotate(f"D = {case['dim']}", (case["n"], case[field]), **where)


def dress(axes: Axes, what: str, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("N, prompts")
    axes.set_title(what, loc="left", fontsize=11)
    axes.grid(True, which="major", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    ticks = [n for n in (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000) if sizes[0] <= n <= sizes[-1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: in_thousands(n)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def in_thousands(n: float) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k" if n >= 1e3 else f"{n:g}"


def in_seconds(time: float) -> str:
    """1 ms, 10 ms, … 1000 s."""
    return f"{time:g} s" if time >= 1 else f"{time * 1e3:g} ms"


def in_units(size: float) -> str:
    """1 MiB, 4 MiB, … 16 GiB."""
    return f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
