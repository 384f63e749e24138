"""IP-Adapters of Stable Diffusion and SDXL: one reference image for all prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

import hsd
import tiny
from algorithm1 import algorithm1
from families.measure import EMBEDDINGS, PROMPTS, SEEDS, SHARED_PROMPTS, SHARED_SEEDS
from families.stable_diffusion import StableDiffusion
from helpers import latents_of
from hsd.models.capture import lint
from hsd.models.identity import image_identity
from image_cases import NEAR, STEPS, apart, check

IMAGE, OTHER = tiny.picture((40, 32)), tiny.picture((40, 32), 1)
SIZE = {"height": 32, "width": 32}
ONE = {**SIZE, "ip_adapter_image": IMAGE}


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.sdxl])
@pytest.mark.parametrize("plus", [False, True], ids=["", "plus"])
def test_parity(build, plus):
    pipe = tiny.with_ip_adapter(build(), plus=plus)
    check(pipe, {**ONE, "guidance_scale": 4.0}, {"ip_adapter_image": OTHER})


def test_parity_without_guidance_and_with_another_scheduler():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion(EulerDiscreteScheduler(**tiny.SD_BETAS)))
    check(pipe, {**ONE, "guidance_scale": 1.0}, {"ip_adapter_image": OTHER})


def test_several():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion(), n=2)
    pipe.set_ip_adapter_scale([0.4, 0.9])
    check(pipe, {**SIZE, "ip_adapter_image": [IMAGE, OTHER]}, {"ip_adapter_image": [OTHER, IMAGE]})


@pytest.mark.parametrize("build", [tiny.sd_control, tiny.sd_from_image])
def test_together_with_another_image(build):
    pipe = tiny.with_ip_adapter(build())
    settings = {"image": tiny.picture((32, 32)), "ip_adapter_image": IMAGE}
    check(pipe, settings, {"ip_adapter_image": OTHER})


def test_sharing_is_algorithm_1():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion())
    model, family = hsd.load(pipe, guidance_scale=5.0, **ONE), StableDiffusion()
    plan = hsd.compile(SHARED_PROMPTS, 0.4, embeddings=EMBEDDINGS, model=model, steps=STEPS, seeds=SHARED_SEEDS)
    assert 0.05 < plan.savings < 0.8
    [embeds] = pipe.prepare_ip_adapter_image_embeds([IMAGE], None, "cpu", 1, True)
    conditioning = family.conditioning(pipe, SHARED_PROMPTS)

    @torch.no_grad()
    def evaluate(x, t, rows):
        halves = zip(("negative", "tokens"), embeds[:, None], strict=True)
        u, c = (
            pipe.unet(x, t, encoder_hidden_states=rows[name], added_cond_kwargs={"image_embeds": [image]}).sample
            for name, image in halves
        )
        return u + 5.0 * (c - u)

    expected, _ = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: scheduler.set_timesteps(STEPS),
        pipe.scheduler,
        plan.seeds,
        mean=lambda leaves: family.mean([conditioning[i] for i in leaves]),
        evaluate=evaluate,
        first_noise=lambda generator: family.first_noise(pipe, (32, 32), generator),
        new_generator=lambda seed: family.generator(pipe, seed),
    )
    found = latents_of(plan, model, batch_size=3)
    assert max(apart(found[i], latent) for i, latent in expected.items()) < NEAR


def test_the_strength_is_read_from_the_pipeline_and_recorded():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion())
    model = hsd.load(pipe, **ONE)
    before = image_identity(model)
    pipe.set_ip_adapter_scale(0.2)
    assert image_identity(model) != before
    assert image_identity(model)["networks"]["unet"]["IP-Adapter scales"] == [0.2]
    assert image_identity(hsd.load(model, ip_adapter_image=OTHER)) != image_identity(model)
    check(pipe, ONE, {"ip_adapter_image": OTHER})


def test_calls_can_be_captured():
    assert lint(hsd.load(tiny.with_ip_adapter(tiny.stable_diffusion()), **ONE)) == []


def test_what_is_refused():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion())
    with pytest.raises(hsd.UnsupportedPipeline, match="set ip_adapter_image.*unload_ip_adapter"):
        hsd.load(pipe)
    with pytest.raises(ValueError, match="ip_adapter_image has 2 images, and 1 is needed, one for each IP-Adapter"):
        hsd.load(pipe, ip_adapter_image=[IMAGE, OTHER])
    model = hsd.load(pipe, **ONE)
    plan = hsd.compile(PROMPTS, 1.0, model=model, steps=2, seeds=SEEDS)
    pipe.unload_ip_adapter()
    with pytest.raises(hsd.UnsupportedPipeline, match="has no IP-Adapter to give ip_adapter_image to"):
        hsd.stream(plan, model)
    assert hsd.load(model, ip_adapter_image=None).ip_adapter_image is None  # the advice leads on


def test_an_encoder_is_needed():
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion())
    pipe.image_encoder = None
    with pytest.raises(hsd.UnsupportedPipeline, match="has an IP-Adapter and no image_encoder"):
        hsd.load(pipe, **ONE)


def test_one_image_in_another_mode():
    """The alpha channel is left out, as diffusers leaves it out; a grey image has three equal channels."""
    grey = IMAGE.convert("L")
    pipe = tiny.with_ip_adapter(tiny.stable_diffusion())
    model = hsd.load(pipe, ip_adapter_image=grey, **SIZE)
    assert np.ptp(np.array(model.ip_adapter_image.pil), axis=2).max() == 0
    rgba = IMAGE.copy()
    rgba.putalpha(100)
    assert hsd.load(pipe, ip_adapter_image=rgba, **SIZE).ip_adapter_image == hsd.load(pipe, **ONE).ip_adapter_image
