"""Predicted times of a call on each device, and what ways of running it should bring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import roofline
from released import MODELS
from results import EAGER, GRAPH
from roofline import DEVICES, Device, Model

from .common import BATCH, NONE, Paper, both, number, table

LANES = (1, 2, 4, 8, 16, 32)

FEW = (1, 8, 32)
"""Lanes of devices that were not measured: between them the time is nearly linear."""

NEAR = 0.05
"""A batch size is large enough if a lane takes at most this share longer than in the largest calls."""


def milliseconds(paper: Paper) -> str:
    """ms of a call as a graph, by lanes, on the device that was measured."""
    device = _shown(paper)
    rows = []
    for name, model in paper.models.items():
        found = _measured(paper, name)
        host = model.work.launches * model.known.host
        cells = _cells(model, device, LANES)
        if len(cells) == len(LANES) and cells[-1]:
            fitted = model.fixed if paper.measured == paper.known else ()
            shown = [number(found.get(lanes) and found[lanes] * 1e3) for lanes in LANES]
            cells = [
                both(cell, f"{ms}*" if lanes in fitted else ms)
                for cell, ms, lanes in zip(cells, shown, LANES, strict=True)
            ]
        rows.append([MODELS[name].title, f"{host * 1e3:.0f}", *cells])
    return table([device.title, "launching, at least", "1 lane", *map(str, LANES[1:])], rows)


def elsewhere(paper: Paper) -> str:
    """The same on the other devices, for some lanes."""
    others = [device for device in DEVICES if device != _shown(paper)]
    rows = [
        [MODELS[name].title, *(cell for device in others for cell in _cells(model, device, FEW))]
        for name, model in paper.models.items()
    ]
    return table(["", *(f"{device.words}, {n}" for device in others for n in FEW)], rows)


def _shown(paper: Paper) -> Device:
    """The device that was measured; where it is none of the known ones, that of the calibration."""
    device = roofline.device_of(paper.measured.device) or roofline.device_of(paper.known.device)
    assert device is not None
    return device


def _cells(model: Model, device: Device, lanes: Sequence[int]) -> list[str]:
    """ms by lanes."""
    if not roofline.fits(model.work, device):
        return ["does not fit", *[""] * (len(lanes) - 1)]
    return [number(roofline.seconds(model.work, device, model.known, n) * 1e3) for n in lanes]


def _measured(paper: Paper, name: str) -> dict[int, float]:
    """Seconds of a graph, by lanes: of the section denoiser, else of the denoiser alone in the section efficiency."""
    if found := paper.measured.seconds(name, GRAPH):
        return found
    try:
        lanes, taken = paper.measured.alone(name)
    except LookupError:
        return {}
    return {lanes: lanes * taken}


def faster_below(model: Model, device: Device) -> int:
    """The most lanes with which a graph is faster; 0 if it never is."""
    return max(0, math.ceil(roofline.break_even(model.work, device, model.known)) - 1)


def enough(model: Model, device: Device) -> int:
    """The batch size from which a lane takes at most ``NEAR`` longer than in the largest calls."""
    one, two = (roofline.seconds(model.work, device, model.known, lanes) for lanes in (1e6, 1e6 + 1))
    return max(1, math.ceil(model.work.launches * model.known.node / (NEAR * (two - one))))


def _by_device(paper: Paper, what: Callable[[Model, Device], int]) -> dict[str, list[str]]:
    """A whole number for each model and device."""
    return {
        name: [
            (str(what(model, device) or "never") if roofline.fits(model.work, device) else "does not fit")
            for device in DEVICES
        ]
        for name, model in paper.models.items()
    }


def graphs_pay(paper: Paper) -> str:
    """Up to how many lanes a graph is faster."""
    rows = [[MODELS[name].title, *cells] for name, cells in _by_device(paper, faster_below).items()]
    return table(["graphs are faster up to", *(device.title for device in DEVICES)], rows)


def batch_pays(paper: Paper) -> str:
    """From how many lanes a batch is large enough, and what else could be saved."""
    known = roofline.device_of(paper.known.device)
    assert known is not None
    rows = []
    for name, cells in _by_device(paper, enough).items():
        model = paper.models[name]
        sixteen = roofline.seconds(model.work, known, model.known, 16)
        lane = model.counts["each"]
        shares = [16 * model.work.rest / known.bandwidth / sixteen, lane.convolutions / lane.flops]
        rows.append([MODELS[name].title, *cells, *(f"{share:.0%}" for share in shares)])
    return table(["large enough from", *(device.title for device in DEVICES), "no product", "convolutions"], rows)


def graphs(paper: Paper) -> str:
    """Kandinsky launched kernel by kernel and as a graph."""
    model, shown = paper.models["kandinsky"], _shown(paper)
    eager, graph = (paper.measured.seconds("kandinsky", mode) for mode in (EAGER, GRAPH))
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
    compiled = paper.measured.efficiency("kandinsky", BATCH, 1.0).get(("styles", "compile"), {})
    rows = [
        ["at its best batch size", number(_ms(lanes.get("graphs")))],
        ["the same, channels-last", number(_ms(lanes.get("graphs+channels-last")))],
        [f"compiled, at {BATCH} lanes", number(_ms(compiled.get("alone_seconds_per_lane")))],
        [f"graphs, at {BATCH} lanes", number(_ms(paper.measured.seconds("kandinsky", GRAPH).get(BATCH), BATCH))],
    ]
    return table(["the denoiser alone", "ms a lane, measured"], rows)


def _ms(seconds: float | None, lanes: int = 1) -> float | None:
    return None if seconds is None else 1e3 * seconds / lanes


TABLES: dict[str, Callable[[Paper], str]] = {
    "ms": milliseconds,
    "ms-elsewhere": elsewhere,
    "graphs-pay": graphs_pay,
    "batch-pays": batch_pays,
    "graphs": graphs,
    "ways": ways,
}
