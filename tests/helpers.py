"""Helpers of several test files."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hsd.generation.events import Watcher
from hsd.models.encode import encode
from hsd.models.registry import adapter_class
from hsd.replay.denoiser import Prior
from hsd.replay.executor import Executor

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real prompt sets and embeddings, in a folder next to the repository, where available."""

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real prompt sets are not at {SHARED}")

SCHEDULERS = ["ddim", "ddpm", "euler", "euler-ancestral", "dpm++2m", "unipc"]


PROMPTS = [
    "a cat",
    "a cat on a mat",
    "a dog",
    "a small dog",
    "the sea at night",
    "the sea by day",
    "the sea by day, in oil",
    "a red bicycle",
]
"""Eight: families and single prompts."""


class UniPCTakingGenerator(UniPCMultistepScheduler):
    """The Kandinsky pipeline passes ``generator`` to every scheduler; UniPC draws nothing and does not take it."""

    def step(self, model_output, timestep, sample, return_dict=True, generator=None):
        return super().step(model_output, timestep, sample, return_dict=return_dict)


@functools.cache
def adapter_of(family):
    """The adapter that drives a family's pipeline. Its pipeline is built once: many tests ask while they are found."""
    return adapter_class(family.loadable(family.build()))


def make_scheduler(name, config):
    """A scheduler by short name, with the betas and the prediction type of ``config``, and nothing nonlinear."""
    classes = {
        "ddim": DDIMScheduler,
        "ddpm": DDPMScheduler,
        "euler": EulerDiscreteScheduler,
        "euler-ancestral": EulerAncestralDiscreteScheduler,
        "dpm++2m": DPMSolverMultistepScheduler,
        "unipc": UniPCTakingGenerator,
    }
    keep = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    options = {key: config[key] for key in keep if key in config}
    if name in ("ddim", "ddpm"):
        options["clip_sample"] = False
    return classes[name](**options)


def name_of(value):
    """The name of a parameter: without addresses of objects, which differ between the workers of pytest-xdist."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def encoded(model, prompts, seeds, **options):
    """The conditioning of prompts, all with the model's own settings."""
    return encode([model], np.zeros(len(prompts), np.int64), list(prompts), np.asarray(seeds), **options)


def rows_of(conditioning, name):
    """All rows of one field, by prompt."""
    field = conditioning.fields[name]
    return [field.rows[int(i)] for i in field.index]


def fresh_generators(seeds):
    """One generator per seed, as the pipelines take them."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def executor_of(plan, model, execution=None, **lowering):
    """An executor of a plan; ``execution`` are its own options, the rest are the program's."""
    lowering = {
        "batch_size": 4,
        "mixed_steps": model.mixed_timesteps,
        "rows": model.rows_by_step(plan.n_steps),
        **lowering,
    }
    conditioning, sampler = encoded(model, plan.prompts, plan.seeds), model.sampler(plan.request["steps"])
    return Executor(plan, plan.program(**lowering), model, conditioning, sampler, **(execution or {}))


def latents_of(plan, model, execution=None, **lowering):
    """Finished latents by prompt: {index: (1, C, h, w) float32}, from the executor, not decoded."""
    return finished_by(executor_of(plan, model, execution, **lowering))


def finished_by(executor):
    """Finished latents by prompt, each once."""
    finished = [(image.index, image.latent) for _, images in executor.run() for image in images]
    assert len(finished) == len(dict(finished))
    return dict(finished)


class Calls(Watcher):
    """Calls a function with what each call of the denoiser evaluated, and what it finished."""

    watches = True

    def __init__(self, report):
        self.report = report

    def event(self, event):
        if event.node_steps:
            self.report(event.node_steps, event.finished)


@contextlib.contextmanager
def recorded() -> Iterator[dict[int, torch.Tensor]]:
    """Finished latents by prompt of the complete run inside: what :func:`latents_of` would denoise once more.

    They are copies that are made where the latents are, in the order of what is enqueued there. So nothing waits for
    them, and what the run lets go of is free as early as without them.
    """
    latents: dict[int, torch.Tensor] = {}
    run = Executor.run

    def recording(self):
        with contextlib.closing(run(self)) as calls:
            for lanes, done in calls:
                for finished in done:
                    if not finished.is_fork and not isinstance(self.denoiser, Prior):
                        assert finished.index not in latents
                        latents[finished.index] = finished.latent.clone()
                yield lanes, done

    with patch.object(Executor, "run", recording):
        yield latents


def share_apart(a, b):
    """Share of the values of two images that differ by more than one step of 1/255."""
    return float((_difference(a, b) > 1).mean())


def mean_difference(a, b):
    """Mean absolute difference between two images, in steps of 1/255."""
    return float(_difference(a, b).mean())


def _difference(a, b):
    a, b = (np.array(image, dtype=np.int16) for image in (a, b))
    assert a.shape == b.shape
    return np.abs(a - b)
