"""Check that an adapter has the properties that the executor relies on, by running it on a few prompts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..errors import Error, Notice
from ..replay.denoiser import step_rows
from ..replay.lengths import of_one_length, read_by
from .base import Adapter
from .caches import refuse_step_caches
from .capture import PROMPTS, NotChecked, Verdict, lint
from .capture_rules import Finding
from .encode import encode
from .loading import load

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference, relative to the root mean square of what is compared."""
_HALF_TOLERANCE = 5e-2
"""The same in half precision."""


_KEEPS = " (does a network keep something of the last call, as step caches do?)"


class BrokenAdapter(Error, ValueError):
    """An adapter, or a patched network, that would give wrong images. The message says how this was found."""


def check(model: Any, prompts: Sequence[str] = PROMPTS, *, steps: int = 4, **settings: Any) -> Verdict:
    """Run a model on a few prompts, and raise if it lacks a property that the executor relies on.

    It takes about a dozen evaluations of the denoiser. These are compared: each prompt encoded by itself and in a
    batch with others; each lane in a call by itself and in a call with lanes at other steps; a call and the same call
    repeated after others; two latents decoded twice, with generators in the same state. Also, one call runs on tensors
    that only claim to be on a GPU, to find what a CUDA graph forbids, see :mod:`hsd.models.capture`.

    Parameters
    ----------
    model
        Anything that :func:`hsd.load` takes; ``settings`` go to it.
    prompts
        Two or more, different from each other.
    steps
        Inference steps to take timesteps from. From image to image as many more as leave two of them.

    Returns
    -------
    Verdict
        Whether calls can be captured as CUDA graphs. If nothing forbids it, but the adapter has ``capturable = False``,
        a :class:`hsd.Notice` says so too.

    Raises
    ------
    BrokenAdapter
        Names the first property that does not hold, and the difference.
    hsd.UnsupportedScheduler, hsd.UnsupportedPipeline
        As :func:`hsd.generate` does.
    """
    adapter = load(model, **settings)
    refuse_step_caches(adapter)
    texts = list(dict.fromkeys(prompts))
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} different prompts: a check needs two or more")
    steps = max(steps, adapter.steps_for(2))
    sampler = adapter.sampler(steps)
    n, seeds, variant = len(texts), np.arange(len(texts)), np.zeros(len(texts), np.int64)
    with _runs(f"encode of {n} prompts"):
        conditioning = encode([adapter], variant, texts, seeds)
    for i in range(n):
        _check_rows(conditioning, encode([adapter], variant[:1], texts[i : i + 1], seeds[i : i + 1]), i)
    # Before anything is evaluated: networks may keep tensors, and then do not look on which device they are.
    graphs = _graphs(adapter, conditioning, texts, steps)
    noise = torch.cat([adapter.first_noise(adapter.generator(int(seed))) for seed in seeds])
    if noise.shape != (n, *adapter.latent_shape()):
        raise BrokenAdapter(
            f"first_noise gives {tuple(noise.shape[1:])}, but latent_shape says {adapter.latent_shape()}"
        )
    latents = noise.to(adapter.device).float() * sampler.init_noise_sigma
    step = torch.arange(n) % (sampler.n_steps if adapter.mixed_timesteps else 1)
    timesteps = sampler.timesteps.to(adapter.device)
    for lanes in _calls(adapter, conditioning, n):
        rows = read_by(adapter, conditioning).each(lanes, adapter.device)
        at = step[: len(lanes)].to(adapter.device)
        if adapter.reads_steps:
            rows |= step_rows(timesteps, at)
        _check_lanes(adapter, latents[: len(lanes)], timesteps[at], rows)
    _check_decode(adapter, latents[:2], seeds[:2])
    return _judged(adapter, graphs)


def _calls(adapter: Adapter, conditioning: Conditioning, n: int) -> list[list[int]]:
    """The prompts of each call that lanes are compared in: all of them, or those of each length, two at least."""
    if not adapter.one_length:
        return [list(range(n))]
    alike = [places.tolist() for places in of_one_length(adapter, conditioning, np.arange(n))]
    return [prompts if len(prompts) > 1 else prompts * 2 for prompts in alike]


def _graphs(adapter: Adapter, conditioning: Conditioning, texts: list[str], steps: int) -> list[Finding] | NotChecked:
    """What a CUDA graph forbids in calls of the model's denoiser and of its prior.

    On a CPU also in the half precision that the family is loaded in on a GPU, in which networks may do other things.
    """
    if adapter.one_length or adapter.never_captured:
        return []
    try:
        found = lint(adapter, conditioning, texts, steps=steps)
        if adapter.prior() is not None:
            found += lint(adapter, prompts=texts, of_prior=True)
    except NotChecked as reason:
        return reason
    if not found and adapter.device.type != "cuda" and adapter.dtype != adapter.half_dtype:
        with contextlib.suppress(NotChecked):  # some networks keep parts of them in float32
            found = lint(adapter, conditioning, texts, steps=steps, dtype=adapter.half_dtype)
    return found


def _judged(adapter: Adapter, graphs: list[Finding] | NotChecked) -> Verdict:
    """What :func:`_graphs` means for what the adapter declares; ``BrokenAdapter`` if they contradict each other."""
    if adapter.offloads:
        return Verdict(False, "hooks move or convert the model's weights for each call")
    if adapter.one_length:
        return Verdict(False, "a call holds texts of one length, and each length would need a graph of its own")
    if adapter.never_captured:
        return Verdict(False, adapter.never_captured)
    if isinstance(graphs, NotChecked):
        return Verdict(None, str(graphs))
    what = "; ".join(map(str, graphs))
    if graphs and adapter.capturable:
        raise BrokenAdapter(
            f"denoise does what a CUDA graph forbids: {what}. Set capturable = False on the adapter, or keep these "
            "tensors on the device"
        )
    if graphs:
        return Verdict(False, f"capturable is False, and denoise does what a graph forbids: {what}")
    if not adapter.capturable:
        text = "capturable is False, but nothing was found that a graph forbids: it could be True"
        warnings.warn(f"{adapter.name}: {text}", Notice, stacklevel=3)
        return Verdict(False, text)
    return Verdict(True)


def _check_rows(together: Conditioning, single: Conditioning, i: int) -> None:
    """Compare the rows of prompt ``i``, encoded ``together`` with others, with those of its ``single`` encoding."""
    for name, field in together.fields.items():
        other = single.fields[name]
        in_batch, by_itself = field.rows[int(field.index[i])], other.rows[int(other.index[0])]
        if in_batch.shape != by_itself.shape:
            raise BrokenAdapter(
                f"encode gives {name} of shape {tuple(in_batch.shape)} in a batch and {tuple(by_itself.shape)} for the "
                "prompt by itself: pad to a fixed length, or give rows of differing lengths as a list of tensors "
                "without padding"
            )
        _same(in_batch, by_itself, f"encode: {name} of prompt {i} depends on the other prompts of its batch")


@torch.no_grad()
def _check_lanes(adapter: Adapter, latents: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> None:
    """Compare each lane of a call with the same lane in a call by itself, and the call with a repetition of it."""
    n = len(latents)
    with _runs(f"denoise of {n} lanes"):
        output, variance = adapter.denoise(latents, timesteps, rows)
    for what, value in (("output", output), ("variance", variance)):
        if value is not None and value.shape != latents.shape:
            raise BrokenAdapter(f"denoise gives {what} {tuple(value.shape)} for latents {tuple(latents.shape)}")
    for i in range(len(latents)):
        one = {name: row[i : i + 1] for name, row in rows.items()}
        with _runs(f"denoise of lane {i} by itself, after a call of {'one' if i else n}{_KEEPS}"):
            by_itself, _ = adapter.denoise(latents[i : i + 1], timesteps[i : i + 1], one)
        hint = "" if not adapter.mixed_timesteps else " (if it is the mixed timesteps, set mixed_timesteps = False)"
        what = f"denoise: lane {i} depends on the other lanes or on the previous call{hint}"
        _same(output[i : i + 1], by_itself, what)
    with _runs(f"denoise of {n} lanes, after a call of one{_KEEPS}"):
        again, _ = adapter.denoise(latents, timesteps, rows)
    _same(output, again, "denoise: the same call gives another result after other calls, so the model keeps a state")


@contextlib.contextmanager
def _runs(what: str) -> Iterator[None]:
    """``BrokenAdapter`` if the model cannot do what is tried; a lack of memory is no fault of the adapter."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, (torch.OutOfMemoryError, Error)):
            raise
        raise BrokenAdapter(f"{what} fails: {type(error).__name__}: {error}") from error


@torch.no_grad()
def _check_decode(adapter: Adapter, latents: Tensor, seeds: NDArray[np.int64]) -> None:
    """Decode latents twice, and compare the pictures."""
    with _runs(f"decode of {len(latents)} latents"):
        first, second = (adapter.decode(latents, [adapter.generator(int(seed)) for seed in seeds]) for _ in range(2))
    if len(first) != len(latents):
        raise BrokenAdapter(f"decode gives {len(first)} images for {len(latents)} latents")
    for picture, again in zip(first, second, strict=True):
        off = np.abs(np.asarray(picture, np.float32) - np.asarray(again, np.float32)).mean() / 255
        if off > 1 / 255:
            raise BrokenAdapter(
                f"decode gives another image for the same latents and generators, off by {off:.1e} of the range: where "
                "it draws noise, it has to draw from the generators that it is given"
            )


def _same(a: Tensor, b: Tensor, what: str) -> None:
    """``BrokenAdapter`` with the text ``what`` if two tensors differ by more than the tolerance of their dtype."""
    if not a.dtype.is_floating_point:
        return
    tolerance = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE)
    size = float(b.float().pow(2).mean().sqrt())
    error = float((a.float() - b.float()).abs().max()) / max(size, 1e-12)
    if not error <= tolerance:  # also nan
        raise BrokenAdapter(f"{what}: off by {error:.1e} of its size, allowed is {tolerance:g}")
