"""Pipelines that read an image, compared with their own call at tau = 0."""

from __future__ import annotations

import torch

import hsd
from families.measure import PROMPTS, SEEDS
from helpers import fresh_generators, latents_of

STEPS = 4
NEAR = 5e-5
"""Largest error of latents, as a share of their range."""


def stock(pipe, settings, steps=STEPS):
    """Latents (3, ...) of the pipeline's own call."""
    options = {"num_inference_steps": steps, "generator": fresh_generators(SEEDS), "output_type": "latent"}
    return pipe(PROMPTS, **settings, **options).images


def ours(pipe, settings, steps=STEPS):
    """Latents (3, ...) of the same prompts, two lanes a call, so that lanes of one call are at different steps."""
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=steps, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    """Largest difference, as a share of the range of ``b``."""
    return float((a - b).abs().max() / b.abs().max())


def check(pipe, settings, other, steps=STEPS):
    """Ours is the pipeline's, for ``settings``; and the pipeline's for ``other`` settings is far away."""
    expected = stock(pipe, settings, steps)
    assert apart(ours(pipe, settings, steps), expected) < NEAR
    assert apart(stock(pipe, {**settings, **other}, steps), expected) > 100 * NEAR
