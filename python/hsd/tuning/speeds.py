"""How long the parts of a run take on this machine, stored between runs, to estimate how long a plan will take.

For each model, size of latents, dtype, device and way of running there is a curve: seconds per evaluation of the
denoiser by batch size, as the fastest and the slowest part of each measurement. ``hsd bench`` measures it, and a run
adds to it if it was long enough to mean something.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from ..demo import MODELS as DEMO_MODELS
from ..models.base import Adapter
from ..names import MODELS
from ..planning.span import Span
from ..work.device import hardware_name
from ..work.files import make_folder, write_json
from ..work.reading import is_number, read_object
from .curve import Curve

LEAST_CALLS = 32
"""Full calls of a run that is stored: one of fewer is mostly its first calls, which are slow."""

LEAST_SECONDS = 5.0
"""Seconds of denoising of a run that is stored."""

LEAST_IMAGES = 16
"""Images of a run whose time beside the denoiser is stored."""

_KEPT = 8
"""Measurements of each batch size: the newest."""

_FIRST = 2
"""Calls of a run that are not timed: networks are compiled and captured in them, and caches are empty."""

_PARTS = 16
"""Parts of a run at most."""


@dataclass(frozen=True)
class Speeds:
    """What was measured of one model on one device."""

    sizes: dict[int, Span]
    """Seconds per evaluation on one latent, with guidance, by batch size: ascending."""
    image: Span | None = None
    """Seconds per image for all that is not the denoiser: encoding, decoding, writing. None: not known."""
    flat: bool = False
    """Whether larger batches than the largest were found to gain nothing."""

    def at(self, batch_size: int | None) -> Span | None:
        """Seconds per evaluation at a batch size; None: at the fastest that was measured.

        Between two sizes, calls take as long as on the line between their times. Outside of what was measured it is not
        known, except for larger batches that gain nothing.
        """
        if not self.sizes:
            return None
        if batch_size is None:
            return min(self.sizes.values(), key=lambda span: span.middle)
        largest = max(self.sizes)
        if batch_size > largest and self.flat:
            return self.sizes[largest]
        if not min(self.sizes) <= batch_size <= largest:
            return None
        lanes = list(self.sizes)
        low, high = ([n * getattr(self.sizes[n], end) for n in lanes] for end in ("low", "high"))
        return Span(*(float(np.interp(batch_size, lanes, times)) / batch_size for times in (low, high)))


@dataclass
class Parts:
    """A run in parts of about as many calls each: how long each of them took for the same work."""

    ahead: int = 0
    """Calls that a GPU may be behind: so many more are not timed, since at first calls are only enqueued."""
    calls: int = 0
    full: int = 0
    """Timed calls in which no lane was empty."""
    seconds: float = 0.0
    _each: int = 1
    _now: tuple[float, float, int] = (0.0, 0.0, 0)
    _parts: list[tuple[float, float]] = field(default_factory=list)

    def add(self, seconds: float, work: float, full: bool) -> None:
        """One call: its seconds, and its evaluations of the denoiser, with guidance."""
        self.calls += 1
        if self.calls <= _FIRST + self.ahead:
            return
        self.full += full
        self.seconds += seconds
        spent, done, calls = self._now
        self._now = spent + seconds, done + work, calls + 1
        if calls + 1 == self._each:
            self._parts.append(self._now[:2])
            self._now = (0.0, 0.0, 0)
        if len(self._parts) == _PARTS:
            pairs = zip(self._parts[::2], self._parts[1::2], strict=True)
            self._parts = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
            self._each *= 2

    def span(self) -> Span | None:
        """Seconds per evaluation, of the fastest and of the slowest part; None if the run was too short."""
        if self.full < LEAST_CALLS or self.seconds < LEAST_SECONDS:
            return None
        return Span.of(seconds / work for seconds, work in self._parts)


def _path() -> Path:
    return Path(platformdirs.user_cache_dir("hsd")) / "speeds.json"


def key(adapter: Adapter, *, compile: bool = False, channels_last: bool = False, cuda_graphs: bool = True) -> str:
    """What the speed depends on: model, latent size, guidance, device, dtype, and how the networks are run."""
    device = adapter.device
    name = hardware_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    shape = "x".join(map(str, adapter.latent_shape()))
    ways = {"compiled": compile, "channels last": channels_last, "no graphs": device.type == "cuda" and not cuda_graphs}
    parts = [adapter.name, shape, "guided" if adapter.guided else "unguided", name, str(adapter.dtype)]
    return "|".join([*parts, *(way for way, used in ways.items() if used)])


def remember(
    adapter: Adapter, sizes: dict[int, Span], image: float | None = None, *, flat: bool = False, **ways: bool
) -> None:
    """Store a measurement. A failure is ignored: it is only used for estimates.

    Parameters
    ----------
    sizes
        Seconds per evaluation of the denoiser on one latent, with guidance, by batch size.
    image
        Seconds per image for all else.
    flat
        Whether larger batches than these gain nothing.
    ways
        As for :func:`key`.
    """
    with contextlib.suppress(OSError):
        speeds, name = _load(), key(adapter, **ways)
        entry = _entry(speeds.get(name)) or {"sizes": {}, "image": [], "flat": False}
        for size, span in sizes.items():
            entry["sizes"][str(size)] = [*entry["sizes"].get(str(size), []), span.ends()][-_KEPT:]
        if image is not None:
            entry["image"] = [*entry["image"], image][-_KEPT:]
        largest = max(map(int, entry["sizes"]), default=0)
        entry["flat"] = entry["flat"] or (flat and max(sizes, default=0) == largest)
        speeds[name] = entry
        make_folder(_path().parent)
        write_json(_path(), dict(sorted(speeds.items())))


def remember_curve(adapter: Adapter, curve: Curve, image: float | None = None, **ways: bool) -> None:
    """Store the curve of a denoiser by itself."""
    remember(adapter, sizes_of(curve), image, flat=curve.flat, **ways)


def sizes_of(curve: Curve) -> dict[int, Span]:
    """Seconds per lane, by lanes."""
    return {n: Span(low / n, high / n) for n, (low, high) in zip(curve.lanes, curve.ends(), strict=True)}


def recall(adapter: Adapter, **ways: bool) -> Speeds | None:
    """What was measured of a run like this one; None if nothing was."""
    entry = _entry(_load().get(key(adapter, **ways)))
    if entry is None:
        return None
    sizes = {int(size): [Span(*ends) for ends in found] for size, found in entry["sizes"].items()}
    joined = {n: Span(min(one.low for one in sizes[n]), max(one.high for one in sizes[n])) for n in sorted(sizes)}
    return Speeds(joined, Span.of(entry["image"]) if entry["image"] else None, entry["flat"])


def how_to_measure(adapter: Adapter, known: Speeds | None) -> str:
    """Why there is no time, and what to do."""
    by_name = adapter.name in (*DEMO_MODELS, *MODELS) or "/" in adapter.name or os.sep in adapter.name
    bench = f"hsd bench {adapter.name}" if by_name else "hsd.bench.bench(model, prompts)"  # of a pipeline object
    if known is not None and known.sizes:
        least, most = min(known.sizes), max(known.sizes)
        sizes = f"{least}" if least == most else f"{least} to {most}"
        return f"only batches of {sizes} were measured; {bench} measures more"
    return f"{bench} measures it, and so does a run of {LEAST_CALLS} full calls of the denoiser and {LEAST_SECONDS:g} s"


def _entry(value: Any) -> dict[str, Any] | None:
    """An entry of the file, if it is one. Those of earlier versions, which may be of ten evaluations, are none."""
    if not isinstance(value, dict) or not isinstance(value.get("flat"), bool):
        return None
    sizes, image = value.get("sizes"), value.get("image")
    if not isinstance(sizes, dict) or not isinstance(image, list):
        return None
    for size, found in sizes.items():
        if not (size.isascii() and size.isdigit() and 0 < int(size) < 1 << 31 and isinstance(found, list) and found):
            return None
        for ends in found:
            if not (isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends)) and 0 < ends[0] <= ends[1]):
                return None
    return value if all(is_number(one) and one >= 0 for one in image) else None


def _load() -> dict[str, Any]:
    try:
        return read_object(_path())
    except (OSError, ValueError):  # it is only used for estimates
        return {}
