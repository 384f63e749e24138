"""What is special about Z-Image: renormalised guidance that is cut off, captions of differing lengths in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of

PROMPTS = ["a cat", "a much longer prompt about a dog"]  # padded to 32 and to 64 tokens
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
STEPS = 4


def stock(pipe, **settings):
    return pipe(
        list(PROMPTS),
        generator=fresh_generators(SEEDS),
        num_inference_steps=STEPS,
        output_type="latent",
        **SIZE,
        **settings,
    ).images


def ours(pipe, **settings):
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[0], latents[1]])


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 0.5},  # guided: the pipeline counts from 0
        {"cfg_normalization": True},
        {"cfg_normalization": 0.5},
        {"cfg_truncation": 0.3},
        {"cfg_truncation": 0.3, "cfg_normalization": 0.5},  # steps without guidance are not normalised
    ],
    ids=str,
)
def test_settings_of_guidance(settings):
    pipe = tiny.z_image()
    settings = {"guidance_scale": 3.0, **settings}
    expected = stock(pipe, **settings)
    assert (ours(pipe, **settings) - expected).norm() < 1e-5 * expected.norm()
    for other in ({"guidance_scale": 0.0}, {"guidance_scale": 3.0}):
        if other != settings:
            assert (stock(pipe, **other) - expected).norm() > 0.02 * expected.norm()


@pytest.mark.parametrize("settings", [{"cfg_truncation": None}, {"cfg_truncation": 2.0}], ids=str)
def test_guidance_that_is_never_cut_off(settings):
    pipe = tiny.z_image()
    assert torch.equal(ours(pipe, **settings), ours(pipe))


def test_guidance_is_cut_off_by_lane():
    """One call, with one lane before the cut and one after it."""
    model = hsd.load(tiny.z_image(), **SIZE, cfg_truncation=0.3, cfg_normalization=0.5)
    conditioning = encoded(model, PROMPTS, SEEDS)
    means = [conditioning.mean(np.array([i])) for i in range(2)]
    rows = {name: torch.stack([mean[name] for mean in means]) for name in means[0]}
    latents = torch.randn((2, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    timesteps = model.sampler(STEPS).timesteps[[0, -1]]
    free = hsd.load(model, cfg_truncation=None)
    with torch.no_grad():
        cut, uncut = model.denoise(latents, timesteps, rows)[0], free.denoise(latents, timesteps, rows)[0]
    assert torch.equal(cut[0], uncut[0])
    assert (cut[1] - uncut[1]).norm() > 0.05 * uncut[1].norm()


def test_captions_are_cut_to_the_longest_allowed():
    pipe = tiny.z_image()
    settings = {"max_sequence_length": 30}
    expected = stock(pipe, **settings)
    assert (ours(pipe, **settings) - expected).norm() < 1e-5 * expected.norm()
    assert (ours(pipe) - expected)[1].norm() > 0.05 * expected[1].norm()


def test_prompts_are_left_as_they_were():
    """The pipeline itself writes its chat template into the list of prompts."""
    prompts = list(PROMPTS)
    model = hsd.load(tiny.z_image(), **SIZE)
    hsd.compile(prompts, 1.0, model=model, steps=STEPS)
    assert prompts == PROMPTS


def test_sides_are_whole_tokens():
    with pytest.raises(ValueError, match="height is 40: it has to be a positive multiple of 16"):
        hsd.load(tiny.z_image(), height=40)


def test_a_scheduler_that_takes_no_sigmas_is_refused():
    from diffusers import DPMSolverMultistepScheduler

    pipe = tiny.z_image(DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
    with pytest.raises(ValueError, match="does not support custom"):
        hsd.compile(PROMPTS, 0.0, model=hsd.load(pipe, **SIZE), steps=STEPS)
