"""What a call of a denoiser should take on a device: from what it does, and what the device can do.

    products = max(FLOPs / (peak x share), bytes that they move / bandwidth)
    graph = launches x node + products + bytes of all other operations / bandwidth
    kernel by kernel = max(graph, launches x host)

Kernels run one after the other, so the times of matrix products, convolutions and attention and those of the rest
(norms, activations, additions) add up. ``share`` (of the peak, that the products reach), ``node`` (seconds of a launch
in a graph) and ``host`` (seconds of a launch by the host) stand in no data sheet: they are solved from times that were
measured on one device, and taken to be the same on all.
"""

from __future__ import annotations

from dataclasses import dataclass

from counting import Count
from released import MODELS
from results import EAGER, GRAPH, Results


@dataclass(frozen=True)
class Device:
    """Peaks by the vendor's data sheet."""

    title: str
    words: str
    """In the device's name, as torch says it."""
    peak: float
    """Dense half-precision operations a second, sums in float32."""
    bandwidth: float
    """Bytes a second."""
    memory: float
    """Bytes."""
    source: str
    """Of these numbers, by NVIDIA."""


DEVICES = (
    Device("H200", "H200", 989.4e12, 4.8e12, 141e9, "H200 data sheet"),
    Device("H100 SXM", "H100", 989.4e12, 3.35e12, 80e9, "H100 data sheet"),
    Device("A100 SXM 80 GB", "A100", 312e12, 2.039e12, 80e9, "A100 80 GB data sheet"),
    Device("RTX 4090", "RTX 4090", 165.2e12, 1.008e12, 24e9, "Ada architecture white paper"),
)
"""Data sheets of Hopper name the peak with sparsity, 1,979 TFLOP/s, which is twice the dense one."""


ROOM = 1.1
"""Of the denoiser's weights: the memory that a call needs at least. Encoders and decoder may be offloaded."""


def fits(work: Work, device: Device) -> bool:
    """Whether a call of few lanes fits into the memory of a device."""
    return ROOM * work.weights <= device.memory


def device_of(name: str) -> Device | None:
    """The device of that name, or None."""
    return next((one for one in DEVICES if one.words in name), None)


@dataclass(frozen=True)
class Work:
    """What a call does, by its lanes."""

    flops: float
    """Of a lane."""
    products: float
    """Bytes that a lane's matrix products, convolutions and attention read and write, without the weights."""
    rest: float
    """Bytes that all other operations of a lane read and write."""
    weights: float
    """Bytes that a call reads."""
    launches: float
    """Of a call."""


def work_of(counts: dict[str, Count], launches: float | None = None) -> Work:
    """By what was counted; with ``launches`` that were measured, where they were."""
    one, each = counts["one"], counts["each"]
    most = one.launches if launches is None else launches
    return Work(each.flops, each.least, each.most - each.least, one.weights, most)


@dataclass(frozen=True)
class Calibration:
    """What no data sheet says."""

    host: float
    """Seconds of a launch by the host."""
    node: float
    """Seconds that a launch in a graph takes beside its work."""
    share: float
    """Of the peak that is reached."""


def seconds(work: Work, device: Device, known: Calibration, lanes: float) -> float:
    """Of a call as a graph."""
    computed = lanes * work.flops / (device.peak * known.share)
    moved = (work.weights + lanes * work.products) / device.bandwidth
    return work.launches * known.node + max(computed, moved) + lanes * work.rest / device.bandwidth


def launched(work: Work, device: Device, known: Calibration, lanes: float) -> float:
    """Of a call that the host launches kernel by kernel."""
    return max(seconds(work, device, known, lanes), work.launches * known.host)


def break_even(work: Work, device: Device, known: Calibration) -> float:
    """Lanes at which the device takes as long as the host: with fewer, a graph is faster. 0: with none."""
    free = work.launches * (known.host - known.node)  # seconds that the device may work without holding up the host
    rest = work.rest / device.bandwidth
    by_peak = free / (work.flops / (device.peak * known.share) + rest)
    by_bandwidth = (free - work.weights / device.bandwidth) / (work.products / device.bandwidth + rest)
    return max(0.0, min(by_peak, by_bandwidth))


def solve(work: Work, device: Device, first: tuple[int, float], last: tuple[int, float]) -> tuple[float, float]:
    """``node`` and ``share`` from the lanes and seconds of two calls whose products are limited by the peak."""
    (few, short), (many, long) = first, last
    lane = (long - short) / (many - few)
    return (short - few * lane) / work.launches, _share(work, device, lane)


def share_of(work: Work, device: Device, node: float, lanes: int, taken: float) -> float:
    """``share`` from the seconds of one call whose products are limited by the peak."""
    return _share(work, device, (taken - work.launches * node) / lanes)


def _share(work: Work, device: Device, lane: float) -> float:
    return work.flops / (lane - work.rest / device.bandwidth) / device.peak


@dataclass(frozen=True)
class Model:
    """A released denoiser with what is known of it."""

    name: str
    counts: dict[str, Count]
    work: Work
    known: Calibration
    own: bool
    """Whether its share was measured; else it is that of the largest measured model of its kind."""
    fixed: tuple[int, ...]
    """Lanes that the calibration is solved from: there the prediction is the measured time."""


LIKE = {"unet": "sdxl", "transformer": "flux"}
"""Whose share a model without measurements gets."""


def models(counts: dict[str, dict[str, Count]], results: Results) -> dict[str, Model]:
    """All counted models, calibrated by what was measured.

    ``host`` and ``node`` come from Kandinsky with one lane and with most; the other shares from the time alone in the
    section ``efficiency`` at its batch size.
    """
    device = device_of(results.device)
    assert device is not None, results.device
    works = {name: work_of(each, results.launches(name)) for name, each in counts.items()}
    graphs = results.seconds("kandinsky", GRAPH)
    most = max(graphs)
    node, share = solve(works["kandinsky"], device, (1, graphs[1]), (most, graphs[most]))
    host = results.seconds("kandinsky", EAGER)[1] / works["kandinsky"].launches
    shares, fixed = {"kandinsky": share}, dict[str, tuple[int, ...]](kandinsky=(1, most))
    for name in LIKE.values():
        lanes, taken = results.alone(name)
        shares[name], fixed[name] = share_of(works[name], device, node, lanes, lanes * taken), (lanes,)
    found = {}
    for name, each in counts.items():
        like = name if name in shares else LIKE[MODELS[name].kind]
        known = Calibration(host, node, shares[like])
        found[name] = Model(name, each, works[name], known, name in shares, fixed.get(name, ()))
    return found
