"""Runs of HSD on the emulated device and on the CPU, in calls of the same sizes, so that they can be equal bit for bit.

On a GPU with graphs, calls are padded to a few sizes; :func:`padded` pads those of a plain run in the same way, since
another number of lanes may be rounded differently. Attention is torch's own without a fused kernel in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import hsd
from families import Family
from helpers import executor_of, finished_by, recorded
from hsd.replay import executor
from hsd.replay.graphs import Graphs

PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day"]

SMALLER: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 64},
    "flux-2": {"max_sequence_length": 64},
    "kandinsky-2.2": {"height": 32, "width": 32},
    "sana": {"complex_human_instruction": None, "max_sequence_length": 32},
    "stable-diffusion-3": {"max_sequence_length": 64},
    "z-image": {"max_sequence_length": 64},
}
"""Settings with which a family takes less time here."""


@contextlib.contextmanager
def padded() -> Iterator[None]:
    """Calls on the CPU are padded as those that a GPU captures, and run one kernel at a time."""

    def would_capture(denoiser: Any) -> bool:
        return denoiser.capturable and not denoiser.offloads

    with (
        patch.object(executor, "can_capture", would_capture),
        patch.object(Graphs, "run", lambda self, size, work: work(size)),
        plain_attention(),
    ):
        yield


@contextlib.contextmanager
def on_the_device() -> Iterator[None]:
    """What a run on the emulated device needs to be comparable; every size of calls is captured that occurs thrice."""
    with plain_attention(), patch("hsd.replay.graphs.pays", lambda cost, left: True):
        yield


def plain_attention() -> contextlib.AbstractContextManager[None]:
    """Attention that is the same on the CPU and on the emulated device."""
    return sdpa_kernel(SDPBackend.MATH)


@dataclass
class Case:
    """A family's pipeline and plan, and what a plain run gives, by whether calls are padded."""

    family: Family
    pipe: Any
    plan: hsd.Plan
    latents: dict[bool, dict[int, torch.Tensor]]
    images: dict[bool, dict[int, np.ndarray]]

    def load(self) -> hsd.models.Adapter:
        return load(self.family, self.pipe)


def load(family: Family, pipe: Any) -> hsd.models.Adapter:
    settings = {**family.settings(family.guided, family.size), **SMALLER.get(family.name, {})}
    return hsd.load(family.loadable(pipe), **settings)


def case(family: Family, prompts: list[str] = PROMPTS, batch_size: int = 2) -> Case:
    """Run a family on the CPU."""
    pipe = family.build()
    model = load(family, pipe)
    with padded():
        plan = hsd.compile(prompts, 0.8, model=model, steps=family.steps)
        runs = {graphs: run_of(plan, model, graphs, batch_size) for graphs in (False, True)}
    latents, images = ({graphs: run[i] for graphs, run in runs.items()} for i in range(2))
    return Case(family, pipe, plan, latents, images)


def latents_of(plan: hsd.Plan, model: Any, graphs: bool, batch_size: int = 2) -> dict[int, torch.Tensor]:
    """Encode and denoise."""
    found = finished_by(executor_of(plan, model, {"cuda_graphs": graphs}, batch_size=batch_size))
    return {i: latent.cpu() for i, latent in found.items()}


def images_of(plan: hsd.Plan, model: Any, graphs: bool, batch_size: int = 2) -> dict[int, np.ndarray]:
    """Denoise and decode."""
    stream = hsd.stream(plan, model, batch_size=batch_size, cuda_graphs=graphs)
    return {image.index: np.array(image.pil) for image in stream}


def run_of(
    plan: hsd.Plan, model: Any, graphs: bool, batch_size: int = 2
) -> tuple[dict[int, torch.Tensor], dict[int, np.ndarray]]:
    """Encode, denoise and decode, in one run; returns latents and images."""
    with recorded() as latents:
        images = images_of(plan, model, graphs, batch_size)
        return {i: latent.cpu() for i, latent in latents.items()}, images


def same_images(ours: dict[int, Any], expected: dict[int, Any]) -> bool:
    """Whether two runs gave the same images: few values, if any, one step of 1/255 apart.

    On some CPUs the last bit of a convolution depends on where its input lies in memory. What was read too early, or
    too late, is far away.
    """
    if ours.keys() != expected.keys():
        return False
    apart = [np.abs(np.asarray(ours[i], int) - np.asarray(expected[i], int)) for i in expected]
    return all(each.max() <= 1 and (each > 0).mean() < 1e-3 for each in apart)


def near(ours: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> bool:
    """Whether two runs gave the same latents, but for rounding: as :func:`same_images`, for where it counts more."""
    if ours.keys() != expected.keys():
        return False
    return all(bool((ours[i] - each).abs().max() <= 1e-4 * each.abs().max()) for i, each in expected.items())


def same(ours: dict[int, Any], expected: dict[int, Any]) -> bool:
    """Whether two runs gave the same, bit for bit."""
    return ours.keys() == expected.keys() and all(np.array_equal(ours[i], expected[i]) for i in expected)
