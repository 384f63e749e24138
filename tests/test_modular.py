"""Modular pipelines: HSD runs their blocks, and gives what their own call gives."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import guiders
from diffusers.modular_pipelines.ideogram4 import encoders as ideogram4_encoders
from diffusers.modular_pipelines.krea2 import encoders as krea2_encoders
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, ModularPipelineBlocks

import hsd
from algorithm1 import algorithm1
from device import emulated
from device.runs import case, images_of, on_the_device, same
from device.runs import latents_of as device_latents_of
from helpers import latents_of
from hsd.models.identity import image_identity
from hsd.models.modular import Modular, blocks
from tiny import modular as tiny

PROMPTS = ["a cat", "a red house by the sea at night", "a cat on a mat"]
SEEDS = [3, 8, 5]
SIZE = {"height": 64, "width": 64}
STEPS = 4
LAYERS = {"inputs": {"text_encoder_out_layers": tiny.LAYERS}}

CASES = {
    "flux3": (tiny.modular_flux3, LAYERS),
    "flux3-distilled": (lambda: tiny.modular_flux3(distilled=True), LAYERS),
    "flux2-klein-base": (tiny.modular_klein, LAYERS),
    "flux2-klein": (lambda: tiny.modular_klein(distilled=True), LAYERS),
    "krea2": (tiny.modular_krea2, {}),
    "krea2-turbo": (lambda: tiny.modular_krea2(turbo=True), {}),
    "ernie": (tiny.modular_ernie, {}),
    "qwen-image-2.1": (tiny.modular_qwen_image_21, {"guidance_scale": 4.0, "negative_prompt": "dull"}),
    "ideogram4": (
        tiny.modular_ideogram4,
        {"inputs": {"guidance_schedule": [7.0, 7.0, 5.0, 3.0]}, "max_sequence_length": 256},
    ),
    "z-image": (tiny.modular_z_image, {}),
    "qwen-image": (tiny.modular_qwen_image, {"negative_prompt": "dull and long"}),
    "flux": (tiny.modular_flux, {"guidance_scale": 5.0, "max_sequence_length": 64}),
    "flux2": (tiny.modular_flux2, {"inputs": {"text_encoder_out_layers": (10, 20, 30)}, "max_sequence_length": 64}),
    "sd3": (tiny.modular_sd3, {"max_sequence_length": 64}),
    "sdxl": (tiny.modular_sdxl, {"guidance_scale": 3.0, "negative_prompt": "dull"}),
}
"""Builders and settings, by name."""


@pytest.fixture(autouse=True)
def few_layers(monkeypatch):
    """The text blocks of two families read the layers of their encoder by a global of their module."""
    monkeypatch.setattr(krea2_encoders, "KREA2_TEXT_ENCODER_SELECT_LAYERS", tiny.LAYERS)
    monkeypatch.setattr(ideogram4_encoders, "QWEN3_VL_ACTIVATION_LAYERS", tiny.LAYERS)


def stock(pipe, settings, prompts=PROMPTS, seeds=SEEDS, steps=STEPS):
    """What the pipeline's own call gives the VAE, one prompt a call; the guider's scale is set by the user there."""
    options = {**SIZE, **settings}
    options |= options.pop("inputs", {})
    scale = options.get("guidance_scale")
    own = getattr(pipe, "guider", None)
    if scale is not None and own is not None:
        del options["guidance_scale"]
        pipe.update_components(guider=own.new(guidance_scale=scale))
    try:
        with decoded_by(pipe) as seen:
            for prompt, seed in zip(prompts, seeds, strict=True):
                generator = torch.Generator().manual_seed(seed)
                pipe(prompt=prompt, generator=generator, num_inference_steps=steps, **options)
        return [latent[0] for latent in seen]
    finally:
        if own is not None:
            pipe.update_components(guider=own)


@contextmanager
def decoded_by(pipe):
    """What a pipeline's VAE is given meanwhile."""
    seen, decode = [], pipe.vae.decode

    def record(z, *args, **kwargs):
        seen.append(z.float().clone())
        return decode(z, *args, **kwargs)

    pipe.vae.decode = record
    try:
        yield seen
    finally:
        del pipe.vae.decode


def ours(pipe, settings, prompts=PROMPTS, seeds=SEEDS, steps=STEPS, batch_size=4):
    """What HSD gives the VAE, and the model."""
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=steps, seeds=seeds)
    latents = latents_of(plan, model, batch_size=batch_size)
    with decoded_by(pipe) as seen:
        for i in range(len(prompts)):
            [image] = model.decode(latents[i], [torch.Generator()])
            assert image.size == (64, 64)
    return [latent[0] for latent in seen], model


def apart(a, b):
    return float((a - b).norm() / b.norm())


def error(found, expected):
    assert apart(found[0], expected[1]) > 0.02  # images of other prompts are far away
    return max(apart(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_the_pipelines_own_call(name):
    build, settings = CASES[name]
    pipe = build()
    expected = stock(pipe, settings)
    before = {part: copy.copy(vars(getattr(pipe, part))) for part in ("scheduler", "guider") if hasattr(pipe, part)}
    found, model = ours(pipe, settings)
    assert error(found, expected) < (1e-3 if name == "sdxl" else 2e-5)
    assert isinstance(model, Modular)
    assert model.mixed_timesteps == (name not in ("ideogram4", "sdxl"))
    for part, state in before.items():  # the user's objects are as they were
        assert str(vars(getattr(pipe, part))) == str(state)
