"""What one call costs."""

from __future__ import annotations

from collections.abc import Callable

from released import MODELS
from roofline import DEVICES

from .common import NONE, Paper, both, number, percent, table


def cost(paper: Paper) -> str:
    """What was counted: a lane, the guidance included."""
    rows = []
    for name, counts in paper.counts.items():
        model, one, lane = MODELS[name], counts["one"], counts["each"]
        found = paper.measured.launches(name)
        rows.append(
            [
                model.title,
                f"{model.side}",
                f"{model.rows}",
                f"{number(one.parameters / 1e9)} ({number(model.parameters / 1e9)})",
                number(one.weights / 1e9),
                number(lane.flops / 1e12),
                both(f"{one.launches:,}", NONE if found is None else f"{found:,.0f}"),
                f"{number(lane.least / 1e9)}–{number(lane.most / 1e9)}",
                f"{lane.flops / (one.weights + lane.most):,.0f}–{lane.flops / lane.least:,.0f}",
            ]
        )
    head = ["model", "px", "rows", "10⁹ weights", "GB", "TFLOP", "launches", "activations, GB", "FLOP/byte"]
    return table(head, rows)


def launches(paper: Paper) -> str:
    """How far the counted launches are off those that were measured."""
    found = {name: paper.measured.launches(name) for name in paper.counts}
    off = [
        f"{MODELS[name].title} {paper.counts[name]['one'].launches / measured - 1:+.1%}"
        for name, measured in found.items()
        if measured is not None
    ]
    return f"Counted launches against measured ones: {', '.join(off) or NONE}."


def devices(_: Paper) -> str:
    """Data sheets."""
    rows = [
        [
            device.title,
            f"{device.peak / 1e12:,.1f}",
            f"{device.bandwidth / 1e12:.3f}",
            f"{device.memory / 1e9:.0f}",
            f"{device.peak / device.bandwidth:.0f}",
            device.source,
        ]
        for device in DEVICES
    ]
    return table(["device", "TFLOP/s", "TB/s", "GB", "FLOP/byte", "source (NVIDIA)"], rows)


def calibration(paper: Paper) -> str:
    """What was solved from measured times."""
    known = paper.models["kandinsky"].known
    rows = [
        ["`host`: to launch a kernel", f"{known.host * 1e6:.1f} µs", "Kandinsky, 1 lane, kernel by kernel"],
        [
            "`node`: of a kernel in a graph, beside its work",
            f"{known.node * 1e6:.1f} µs",
            "Kandinsky, graphs, 1 and 32 lanes",
        ],
    ]
    for name, model in paper.models.items():
        if model.own:
            lanes = " and ".join(map(str, model.fixed))
            what = f"{MODELS[name].title}, {lanes} lanes"
            rows.append([f"`share` of the peak, {MODELS[name].title}", percent(model.known.share), what])
    return table([f"on the {paper.known.device}", "value", "from"], rows)


TABLES: dict[str, Callable[[Paper], str]] = {
    "cost": cost,
    "launches": launches,
    "devices": devices,
    "calibration": calibration,
}
