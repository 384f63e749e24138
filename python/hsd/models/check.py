"""Does an adapter keep the promises that the executor relies on? Found out by running it on a few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..errors import Error
from .base import Adapter
from .caches import refuse_step_caches
from .encode import encode
from .loading import load

_PROMPTS = ("a red bicycle", "a portrait of an old sailor, in oil", "the sea")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the output's root mean square; half precision below
_HALF_TOLERANCE = 5e-2


class BrokenAdapter(Error, ValueError):
    """An adapter, or a network that was patched, that would give wrong images. Says how it was found."""


def check(model: Any, prompts: Sequence[str] = _PROMPTS, *, steps: int = 4, **settings: Any) -> None:
    """Run a model on a few prompts, and raise if what the executor relies on does not hold.

    It costs about a dozen evaluations of the denoiser. What is compared: every prompt encoded alone and beside
    others; lanes at different steps in one call and each alone; the same call again after another one.

    Parameters
    ----------
    model
        Anything that :func:`hsd.load` takes; ``settings`` go to it.
    prompts
        Two or more, different from each other.
    steps
        Inference steps to take timesteps from.

    Raises
    ------
    BrokenAdapter
        Naming the first promise that does not hold, and by how much.
    hsd.UnsupportedScheduler, hsd.UnsupportedPipeline
        As for generating.
    """
    adapter = load(model, **settings)
    refuse_step_caches(adapter)
    texts = list(dict.fromkeys(prompts))
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} different prompts: a check needs two or more")
    sampler = adapter.sampler(steps)
    n, seeds, alike = len(texts), np.arange(len(texts)), np.zeros(len(texts), np.int64)
    conditioning = encode([adapter], alike, texts, seeds)
    for i in range(n):
        _check_rows(conditioning, encode([adapter], alike[:1], texts[i : i + 1], seeds[i : i + 1]), i)
    means = [conditioning.mean(np.array([i])) for i in range(n)]
    rows = {name: torch.stack([mean[name] for mean in means]).to(adapter.device) for name in means[0]}
    noise = torch.cat([adapter.first_noise(adapter.generator(int(seed))) for seed in seeds])
    if noise.shape != (n, *adapter.latent_shape()):
        raise BrokenAdapter(
            f"first_noise gives {tuple(noise.shape[1:])}, but latent_shape says {adapter.latent_shape()}"
        )
    latents = noise.to(adapter.device).float() * sampler.init_noise_sigma
    step = torch.arange(n) % (sampler.n_steps if adapter.mixed_timesteps else 1)
    timesteps = sampler.timesteps[step].to(adapter.device)
    _check_lanes(adapter, latents, timesteps, rows)
    with torch.no_grad():
        pictures = adapter.decode(latents[:2], [adapter.generator(int(seed)) for seed in seeds[:2]])
    if len(pictures) != 2:
        raise BrokenAdapter(f"decode gives {len(pictures)} images for 2 latents")


def _check_rows(together: Conditioning, alone: Conditioning, i: int) -> None:
    for name, field in together.fields.items():
        ours, theirs = field.rows[int(field.index[i])], alone.fields[name].rows[int(alone.fields[name].index[0])]
        if ours.shape != theirs.shape:
            raise BrokenAdapter(
                f"encode gives {name} of shape {tuple(ours.shape)} beside others and {tuple(theirs.shape)} alone: "
                "pad to a fixed length, or give rows of differing lengths as a list of tensors without padding"
            )
        _same(ours, theirs, f"encode: {name} of prompt {i} depends on the other prompts of its batch")


@torch.no_grad()
def _check_lanes(adapter: Adapter, latents: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> None:
    output, variance = adapter.denoise(latents, timesteps, rows)
    for what, value in (("output", output), ("variance", variance)):
        if value is not None and value.shape != latents.shape:
            raise BrokenAdapter(f"denoise gives {what} {tuple(value.shape)} for latents {tuple(latents.shape)}")
    for i in range(len(latents)):
        one = {name: row[i : i + 1] for name, row in rows.items()}
        alone, _ = adapter.denoise(latents[i : i + 1], timesteps[i : i + 1], one)
        hint = "" if not adapter.mixed_timesteps else " (if it is the mixed timesteps, set mixed_timesteps = False)"
        _same(output[i : i + 1], alone, f"denoise: lane {i} depends on the lanes beside it or on the call before{hint}")
    again, _ = adapter.denoise(latents, timesteps, rows)
    _same(output, again, "denoise: the same call gives another result after other calls, so something is remembered")


def _same(a: Tensor, b: Tensor, what: str) -> None:
    if not a.dtype.is_floating_point:
        return
    tolerance = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE)
    size = float(b.float().pow(2).mean().sqrt())
    error = float((a.float() - b.float()).abs().max()) / max(size, 1e-12)
    if not error <= tolerance:  # also nan
        raise BrokenAdapter(f"{what}: off by {error:.1e} of its size, allowed is {tolerance:g}")
