"""The proof that a recipe is right: a few steps with the network itself, against the pipeline's own call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...conditioning.rows import Conditioning
from ...errors import Notice, UnsupportedScheduler
from ...planning.build import plan_of
from ...replay.denoiser import step_rows
from ...replay.executor import Executor
from ...replay.lengths import read_by
from ...replay.lowering import program_of
from ...sampler import SamplerTable
from ..encode import encode
from .recipe import Recipe
from .unfit import Unfit
from .values import error_of

STEPS = 3
PROMPTS = ["a cat", "a red house by the sea, in oil, at night"]
SEEDS = np.array([3, 8])

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.1
"""Largest difference of finished latents, as a share of their root mean square: half precision rounds at each step."""


@dataclass(frozen=True)
class _Proof:
    """What a proof found."""

    mixed: bool
    """Whether lanes may be at different steps."""
    size: tuple[int, int]
    """Height and width of its images."""
    numbers: int
    """How many numbers its latents held."""

    def size_at(self, latents: Sequence[int], asked: Sequence[int | None]) -> tuple[int, int]:
        """Height and width of images from latents of another shape: those ``asked`` for, if they are as many pixels.

        Latents that are rows of tokens do not say which side is the longer one.
        """
        height, width = self.size
        ratio = math.prod(latents) / self.numbers
        sides = [side for side in asked if side is not None]
        if len(sides) == 2 and math.prod(sides) == round(ratio * height * width):
            return sides[0], sides[1]
        return round(height * ratio**0.5), round(width * ratio**0.5)


_proven: dict[str, _Proof] = {}
"""By what was proven in this process."""


def prove(adapter: Any, recipe: Recipe) -> Recipe:
    """The recipe of a :class:`Generic` with what the proof has found; ``Unfit`` if its images would not be right.

    It is made once in a process for each class, configuration of the network, and structure of a recipe: other numbers
    in the settings change nothing that it looks at, but the rehearsals do.
    """
    network = adapter.modules()[0]
    key = repr(
        (
            type(adapter.pipe),
            type(adapter.pipe).__call__,
            repr(getattr(network, "config", None)),
            network.dtype,
            recipe.structure(),
        )
    )
    if key not in _proven:
        warnings.warn(
            f"{type(adapter.pipe).__name__} has no adapter of its own: it is now tried on {len(PROMPTS)} prompts of "
            f"{STEPS} steps, against the pipeline's own call",
            Notice,
            stacklevel=8,
        )
        _proven[key] = _prove(adapter, recipe)
    proof, asked = _proven[key], (adapter.height, adapter.width)
    return replace(recipe, mixed=proof.mixed, size=proof.size_at(recipe.latent_shape, asked))


@torch.no_grad()
def _prove(adapter: Any, recipe: Recipe) -> _Proof:
    theatre = adapter._theatre()
    expected, images = [], []
    for prompt, seed in zip(PROMPTS, SEEDS.tolist(), strict=True):
        record = theatre.call(
            [prompt], STEPS, [adapter.generator(seed)], network=adapter.modules()[0], output_type="pil"
        )
        assert record.finished is not None
        expected.append(record.finished)
        images.append((record.result.images if hasattr(record.result, "images") else record.result[0])[0])
    tolerance = _TOLERANCE.get(expected[0].dtype, _HALF_TOLERANCE)
    conditioning = encode([adapter], np.zeros(2, np.int64), PROMPTS, SEEDS)
    adapter._recipe = replace(recipe, mixed=_mixes(adapter, conditioning))
    made = _latents(adapter, conditioning)
    for prompt, own, theirs in zip(PROMPTS, made, expected, strict=True):
        error = error_of(own.cpu(), theirs[0].float().cpu())
        if not error <= tolerance:
            raise Unfit(
                f"gives other latents for {prompt!r} than HSD after {STEPS} steps, off by {error:.1e} of their size "
                f"(allowed is {tolerance:g})"
            )
    for i, image in enumerate(images):
        [again] = adapter.decode(expected[i].float(), [adapter.generator(int(SEEDS[i]))])
        if not hasattr(image, "size") or again.size != image.size:
            raise Unfit(f"gives {type(image).__name__}, not one image for each prompt")
        off = np.abs(np.asarray(again, np.float32) - np.asarray(image, np.float32)).mean()
        if not off <= 1.0:
            raise Unfit(
                f"gives another image for the same latents when they are decoded again, off by {off:.1f} of 255"
            )
    width, height = images[0].size
    return _Proof(adapter._recipe.mixed, (height, width), math.prod(recipe.latent_shape))


def _sampler(adapter: Any) -> SamplerTable:
    try:
        table: SamplerTable = adapter.sampler(STEPS)
    except (UnsupportedScheduler, TypeError, ValueError) as error:
        raise Unfit(f"has a scheduler that cannot be driven: {error}") from error
    return table


def _latents(adapter: Any, conditioning: Conditioning) -> list[Tensor]:
    """The finished latents of both prompts, by the executor at tau = 0."""
    sampler = _sampler(adapter)
    plan = plan_of(conditioning.vectors, PROMPTS, SEEDS, 0.0, sampler.n_steps)
    program = program_of(plan, adapter, conditioning, len(PROMPTS))
    found: dict[int, Tensor] = {}
    for _, finished in Executor(plan, program, adapter, conditioning, sampler, cuda_graphs=False).run():
        found |= {image.index: image.latent.float().reshape(adapter.latent_shape()) for image in finished}
    return [found[i] for i in range(len(PROMPTS))]


def _mixes(adapter: Any, conditioning: Conditioning) -> bool:
    """Whether lanes at different steps in one call give what each gives alone; ``Unfit`` if lanes at one do not."""
    timesteps = _sampler(adapter).timesteps.to(adapter.device)
    prompts = [0, 0] if adapter.one_length else [0, 1]
    rows = read_by(adapter, conditioning).each(prompts, adapter.device)
    noise = torch.cat([adapter.first_noise(adapter.generator(int(seed))) for seed in SEEDS]).to(adapter.device).float()
    tolerance = _TOLERANCE.get(adapter.modules()[0].dtype, _HALF_TOLERANCE)
    worst = 0.0
    for at in (torch.tensor([0, len(timesteps) - 1]), torch.tensor([1, 1])):
        at = at.to(adapter.device)
        lanes = rows | (step_rows(timesteps, at) if adapter.reads_steps else {})
        try:
            together, _ = adapter.denoise(noise, timesteps[at], lanes)
            alone = [adapter.denoise(noise[i : i + 1], timesteps[at[i : i + 1]], _lane(lanes, i))[0] for i in range(2)]
        except (RuntimeError, ValueError, TypeError) as error:
            if int(at[0]) == 0:
                continue
            raise Unfit(f"has a network that cannot be called with two prompts: {error}") from error
        worst = error_of(together, torch.cat(alone))
        if worst <= tolerance:
            return int(at[0]) == 0
    raise Unfit(f"has a network that gives a prompt another output in a call with a second one: off by {worst:.1e}")


def _lane(rows: dict[str, Any], i: int) -> dict[str, Any]:
    return {name: row[i : i + 1] for name, row in rows.items()}
