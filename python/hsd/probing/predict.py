"""What a model begins to draw: predictions of x0 for each prompt, without guidance, all from the same noise."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..models.base import Adapter, AdapterT
from ..replay.denoiser import step_rows
from ..replay.lengths import of_one_length, read_by
from ..work.device import FittingSize
from ..work.progress import Progress, Report
from .levels import NoiseLevel, noise_levels

MOST_PIXELS = 512
"""Longest side at which a model is probed, where it has a choice."""

_LONGEST = 16384
"""Predictions that are longer are shortened to this many numbers, see :func:`sketch`."""

_BATCH = 32
_SEED = 7


def unguided(adapter: AdapterT) -> AdapterT:
    """A copy that evaluates the conditional row only. Its conditioning is that of the original."""
    kind = type(adapter)
    twin = copy.copy(adapter)
    # A subclass, because families decide by their settings in different ways whether they are guided.
    twin.__class__ = type(kind.__name__, (kind,), {"guided": False, "__doc__": kind.__doc__})
    return twin


def smaller(adapter: AdapterT) -> AdapterT:
    """A copy whose longest side is at most 512 pixels, where the model takes such a size; else ``adapter`` itself."""
    if adapter.encodes_size:
        return adapter
    height, width = (getattr(adapter, name, None) for name in ("height", "width"))
    if not isinstance(height, int) or not isinstance(width, int) or max(height, width) <= MOST_PIXELS:
        return adapter
    scale = MOST_PIXELS / max(height, width)
    sides: dict[str, Any] = {
        name: max(64, round(side * scale / 64) * 64) for name, side in (("height", height), ("width", width))
    }
    try:
        return dataclasses.replace(adapter, **sides)
    except ValueError:
        return adapter


@torch.no_grad()
def predictions(
    adapter: Adapter,
    conditioning: Conditioning,
    prompts: NDArray[np.int64] | None = None,
    *,
    levels: list[NoiseLevel] | None = None,
    progress: Report | None = None,
) -> NDArray[np.float32]:
    """Predictions of x0 for each prompt: one row, all noise levels side by side.

    Every prompt gets the same input. At the first level it is pure noise. At the others it is that noise level of the
    image that the model predicts for the mean of the conditionings, so it is an input that runs come by.

    Parameters
    ----------
    adapter
        The model. It is probed without guidance, at 512 pixels at most.
    conditioning
        Its conditioning of N prompts.
    prompts
        (n,) which of them; all by default.
    levels
        Where; by default at three levels of its own scheduler.
    progress
        Gets the finished fraction.

    Returns
    -------
    (n, L * M) float32, for L levels. M is the size of a latent; at most 16,384, see :func:`sketch`. No level differs
    more than twice as much between prompts as another, see :func:`balance`.
    """
    prompts = np.arange(conditioning.n_prompts) if prompts is None else prompts
    levels = noise_levels(adapter) if levels is None else levels
    twin = unguided(smaller(adapter))
    shared, own = read_by(twin, conditioning).split(prompts)
    device, report = twin.device, Progress(progress)
    shared = {name: row.to(device) for name, row in shared.items()}
    generator = torch.Generator().manual_seed(_SEED)
    first, second = (twin.first_noise(generator).float().to(device) for _ in range(2))

    def evaluate(model_input: Tensor, level: NoiseLevel, rows: dict[str, Tensor], n: int) -> Tensor:
        rows = rows | {name: row.expand(n, *row.shape[1:]) for name, row in shared.items()}
        inputs = model_input.expand(n, *model_input.shape[1:])
        if twin.reads_steps and level.timesteps is not None:
            rows |= step_rows(level.timesteps.to(device), torch.full((n,), level.step, device=device))
        output, _ = twin.denoise(inputs, level.timestep.to(device).expand(n), rows)
        return level.predict(inputs, output)

    def some(rows: dict[str, Tensor], begin: int, model_input: Tensor, level: NoiseLevel, n: int) -> Tensor:
        return evaluate(model_input, level, {name: row[begin : begin + n] for name, row in rows.items()}, n)

    out: NDArray[np.float32] | None = None
    fitting = FittingSize(_BATCH, "prompts", device)
    with twin.running():
        noisy = first * (levels[0].signal ** 2 + levels[0].noise ** 2) ** 0.5
        mean = {name: row[None].to(device) for name, row in own.mean(prompts).items()}
        image = evaluate(noisy, levels[0], mean, 1)
        inputs = [noisy, *(level.signal * image + level.noise * second for level in levels[1:])]
        finished = 0
        for places in _calls(twin, conditioning, prompts):
            rows = own.each(prompts[places], device)
            count, done = len(places), 0
            while done < count:
                for j, (level, model_input) in enumerate(zip(levels, inputs, strict=True)):
                    predicted, size = fitting.run(partial(some, rows, done, model_input, level), count - done)
                    values = sketch(predicted.flatten(1)).cpu().numpy()
                    if out is None:
                        out = np.empty((len(prompts), len(levels) * values.shape[1]), dtype=np.float32)
                    columns = slice(j * values.shape[1], (j + 1) * values.shape[1])
                    out[places[done : done + size], columns] = values
                # The number that fits falls at the first level if at all: all levels take the same memory.
                done += size
            finished += count
            report(finished / len(prompts))
    twin.free()
    assert out is not None
    balance(out, len(levels))
    return out


def _calls(adapter: Adapter, conditioning: Conditioning, prompts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Places in ``prompts`` of at most :data:`_BATCH` prompts each that may share a call."""
    for places in of_one_length(adapter, conditioning, prompts):
        for begin in range(0, len(places), _BATCH):
            yield places[begin : begin + _BATCH]


def balance(values: NDArray[np.float32], levels: int) -> None:
    """Scale levels of ``values`` (n, L * M) down, in place, to at most twice the spread of the level with the smallest.

    A model that predicts the noise says little about x0 at the first step, and its errors are multiplied by the ratio
    of noise and signal there, 15 and more. That level would hide the others.
    """
    parts = np.split(values, levels, axis=1)  # views
    spreads = [float(np.sqrt(part.var(0, dtype=np.float64).sum())) for part in parts]
    for part, spread in zip(parts, spreads, strict=True):
        if spread > 2.0 * min(spreads) > 0.0:
            part *= 2.0 * min(spreads) / spread


def sketch(values: Tensor, length: int = _LONGEST) -> Tensor:
    """(n, length) from rows (n, M) that are longer, with nearly the same distances; shorter rows are returned as such.

    A count sketch (Charikar, Chen and Farach-Colton 2002): every entry is added, with a random sign, to a random
    column. Squared distances are kept up to about sqrt(2 / length), here 1 %.
    """
    n, m = values.shape
    if m <= length:
        return values
    generator = torch.Generator().manual_seed(m)
    signs = (torch.randint(0, 2, (m,), generator=generator) * 2 - 1).to(values.device, values.dtype)
    columns = torch.randint(0, length, (m,), generator=generator).to(values.device)
    return values.new_zeros(n, length).index_add_(1, columns, values * signs)
