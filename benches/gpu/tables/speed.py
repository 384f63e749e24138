"""Predicted times of a call on each device, and what ways of running it should bring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import roofline
from released import MODELS
from results import EAGER, GRAPH
from roofline import DEVICES, Device, Model

from .common import NONE, Paper, both, number, percent, table

LANES = (1, 2, 4, 8, 16, 32)

NEAR = 0.05
"""A batch size is large enough if a lane takes at most this share longer than in the largest calls."""


def milliseconds(device: Device, paper: Paper) -> str:
    """ms of a call as a graph, by lanes."""
    mine = roofline.device_of(paper.measured.device) == device
    rows = []
    for name, model in paper.models.items():
        found = _measured(paper, name) if mine else {}
        host = model.work.launches * model.known.host
        if model.work.weights > device.memory:
            rows.append([MODELS[name].title, f"{host * 1e3:.0f}", *["does not fit", *[""] * (len(LANES) - 1)]])
            continue
        cells = [_cell(model, device, lanes, found.get(lanes), mine) for lanes in LANES]
        rows.append([MODELS[name].title, f"{host * 1e3:.0f}", *cells])
    return table([device.title, "host", *map(str, LANES)], rows)


def _cell(model: Model, device: Device, lanes: int, found: float | None, measured: bool) -> str:
    text = number(roofline.seconds(model.work, device, model.known, lanes) * 1e3)
    if found is None:
        return both(text, NONE)
    return both(text, number(found * 1e3) + ("*" if measured and lanes in model.fixed else ""))


def _measured(paper: Paper, name: str) -> dict[int, float]:
    """Seconds of a graph, by lanes: of the section denoiser, else of the denoiser alone in the section efficiency."""
    if found := paper.measured.seconds(name, GRAPH):
        return found
    try:
        lanes, taken = paper.measured.alone(name)
    except LookupError:
        return {}
    return {lanes: lanes * taken}


def pays(paper: Paper) -> str:
    """Below how many lanes a graph is faster, and from how many a batch is large enough."""
    rows = []
    for name, model in paper.models.items():
        cells = []
        for device in DEVICES:
            if model.work.weights > device.memory:
                cells.append(NONE)
                continue
            below = roofline.break_even(model.work, device, model.known)
            one, two = (roofline.seconds(model.work, device, model.known, lanes) for lanes in (1e6, 1e6 + 1))
            enough = model.work.launches * model.known.node / (NEAR * (two - one))
            cells.append(f"{below:.1f}, {max(1, enough):.0f}")
        rows.append([MODELS[name].title, *cells])
    return table(["graphs below, batch from", *(device.title for device in DEVICES)], rows)


def fusing(paper: Paper) -> str:
    """What compiling and channels-last could change."""
    rows = []
    device = roofline.device_of(paper.known.device)
    assert device is not None
    for name, model in paper.models.items():
        one, sixteen = (roofline.seconds(model.work, device, model.known, lanes) for lanes in (1, 16))
        rest, nodes = model.work.rest / device.bandwidth, model.work.launches * model.known.node
        lane = model.counts["each"]
        shares = [(nodes + rest) / one, (nodes + 16 * rest) / sixteen, lane.convolutions / lane.flops]
        rows.append([MODELS[name].title, *map(percent, shares)])
    head = [f"on the {device.title}", "not products, 1 lane", "16 lanes", "convolutions, of the FLOPs"]
    return table(head, rows)


def graphs(paper: Paper) -> str:
    """Kandinsky launched kernel by kernel and as a graph."""
    model, device = paper.models["kandinsky"], roofline.device_of(paper.measured.device)
    eager, graph = (paper.measured.seconds("kandinsky", mode) for mode in (EAGER, GRAPH))
    shown = device or DEVICES[0]
    rows = []
    for lanes in LANES:
        one = roofline.launched(model.work, shown, model.known, lanes)
        other = roofline.seconds(model.work, shown, model.known, lanes)
        a, b = eager.get(lanes), graph.get(lanes)
        gain = f"{a / b:.2f}x" if a and b else NONE
        cells = [both(number(mine * 1e3), number(x and x * 1e3)) for mine, x in ((one, a), (other, b))]
        rows.append([str(lanes), *cells, both(f"{one / other:.2f}x", gain)])
    return table(["lanes", "kernel by kernel, ms", "graph, ms", "gain"], rows)


def ways(paper: Paper) -> str:
    """Kandinsky's ms a lane in other ways of running it: only measured."""
    lanes = paper.measured.end_to_end().get("denoise_alone", {})
    compiled = paper.measured.efficiency("kandinsky", 16, 1.0).get(("styles", "compile"))
    rows = [
        ["graphs", number(_ms(lanes.get("graphs")))],
        ["graphs, channels-last", number(_ms(lanes.get("graphs+channels-last")))],
        ["compiled, at 16 lanes", number(_ms(compiled and compiled["alone_seconds_per_lane"]))],
        ["graphs, at 16 lanes", number(_ms(paper.measured.seconds("kandinsky", GRAPH).get(16), 16))],
    ]
    return table(["the denoiser alone", "ms a lane, measured"], rows)


def _ms(seconds: float | None, lanes: int = 1) -> float | None:
    return None if seconds is None else 1e3 * seconds / lanes


TABLES: dict[str, Callable[[Paper], str]] = {
    **{f"ms-{device.words.lower().replace(' ', '-')}": partial(milliseconds, device) for device in DEVICES},
    "pays": pays,
    "fusing": fusing,
    "graphs": graphs,
    "ways": ways,
}
