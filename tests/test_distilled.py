"""Distilled models that take the guidance scale as an input of the UNet, as latent consistency models do."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler, UNet2DConditionModel

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, share_apart

PROMPTS = ["a cat", "two birds on a wire"]
SEEDS = [3, 8]
STEPS = 3


@pytest.fixture(params=[tiny.stable_diffusion, tiny.sdxl], ids=["sd", "sdxl"])
def pipe(request):
    """A tiny pipeline whose UNet has one more input."""
    pipe = request.param(LCMScheduler(**tiny.SD_BETAS))
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 16}).eval().requires_grad_(False)
    unet.load_state_dict(pipe.unet.state_dict(), strict=False)
    unet.time_embedding.cond_proj.weight.mul_(8.0)
    pipe.unet = unet
    return pipe


def stock(pipe, scale, which=slice(None), output_type="latent"):
    generators = fresh_generators(SEEDS[which])
    options = {"num_inference_steps": STEPS, "output_type": output_type}
    return pipe(PROMPTS[which], generator=generators, guidance_scale=scale, **options).images


def apart(a, b):
    return float((a - b).norm() / b.norm())


def test_the_scale_is_an_input(pipe):
    weak, strong = stock(pipe, 1.5), stock(pipe, 8.0)
    assert apart(weak, strong) > 0.003
    model = hsd.load(pipe, guidance_scale=8.0)
    assert not model.guided
    latents = latents_of(hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS), model)
    assert apart(torch.cat([latents[0], latents[1]]), strong) < 2e-5


def test_lanes_of_one_call_differ_in_it(pipe):
    own = [{"guidance_scale": 1.5}, {"guidance_scale": 8.0}]
    model = hsd.load(pipe)
    assert encoded(model, PROMPTS, SEEDS).shapes()["timestep_cond"][0] == (16,)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, settings["guidance_scale"], slice(i, i + 1), "pil")
        [other] = stock(pipe, own[1 - i]["guidance_scale"], slice(i, i + 1), "pil")
        assert share_apart(images[i], expected) < 0.01
        assert share_apart(images[i], other) > 0.1
