"""Pipelines that read an image, compared with their own call at tau = 0."""

from __future__ import annotations

import torch

import hsd
from families.measure import PROMPTS, SEEDS
from helpers import fresh_generators, latents_of

STEPS = 4
NEAR = 5e-5
"""Largest error of latents, as a share of their range."""


def stock(pipe, settings, **options):
    """Latents (3, ...) of the pipeline's own call."""
    options = {"num_inference_steps": STEPS, "generator": fresh_generators(SEEDS), **options}
    return pipe(PROMPTS, output_type="latent", **settings, **options).images


def ours(pipe, settings, steps=STEPS, **options):
    """Latents (3, ...) of the same prompts, two lanes a call, so that lanes of one call are at different steps."""
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=steps, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2, **options)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    """Largest difference, as a share of the range of ``b``."""
    return float((a - b).abs().max() / b.abs().max())


def check(pipe, settings, other, **options):
    """Ours is the pipeline's, for ``settings``; and the pipeline's for ``other`` settings is far away."""
    expected = stock(pipe, settings, **options)
    assert apart(ours(pipe, settings), expected) < NEAR
    assert apart(stock(pipe, {**settings, **other}, **options), expected) > 100 * NEAR
