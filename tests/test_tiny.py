"""The tiny pipelines are useful for tests: deterministic, and their images depend on the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny

PROMPTS = ["a cat", "a dog", "two birds on a wire"]
SMALL = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def prior_run(prompt: str) -> Tensor:
    return tiny.k22_prior()(prompt, num_inference_steps=4, generator=seed()).image_embeds


def decoder_run(prompt: str, scheduler: Any = None) -> Tensor:
    embeds = torch.randn(1, tiny.WIDTH, generator=torch.Generator().manual_seed(PROMPTS.index(prompt)))
    negative = tiny.k22_prior().get_zero_embed(1)
    return tiny.k22_decoder(scheduler)(embeds, negative, generator=seed(), **SMALL).images


def stock_decoder_run(prompt: str) -> Tensor:
    return decoder_run(prompt, tiny.k22_ddpm())


def combined_run(prompt: str) -> Tensor:
    return tiny.k22_combined()(prompt, prior_num_inference_steps=4, generator=seed(), **SMALL).images


def sd_run(prompt: str) -> Tensor:
    return tiny.stable_diffusion()(prompt, generator=seed(), **SMALL).images


def sdxl_run(prompt: str) -> Tensor:
    return tiny.sdxl()(prompt, generator=seed(), **SMALL).images


def sd3_run(prompt: str) -> Tensor:
    return tiny.sd3()(prompt, generator=seed(), **SMALL).images


def flux_dev_run(prompt: str) -> Tensor:
    return tiny.flux()(prompt, generator=seed(), **SMALL).images


def flux_schnell_run(prompt: str) -> Tensor:
    return tiny.flux(guidance_embeds=False)(prompt, generator=seed(), **SMALL).images


def pixart_run(prompt: str) -> Tensor:
    return tiny.pixart_sigma()(prompt, generator=seed(), use_resolution_binning=False, **SMALL).images


def karlo_run(prompt: str) -> Tensor:
    steps = {"prior_num_inference_steps": 3, "decoder_num_inference_steps": 4, "super_res_num_inference_steps": 2}
    return torch.from_numpy(tiny.karlo()(prompt, generator=seed(), output_type="np", **steps).images)


def stable_unclip_run(prompt: str) -> Tensor:
    return tiny.stable_unclip()(prompt, generator=seed(), prior_num_inference_steps=3, **SMALL).images


def qwen_run(prompt: str) -> Tensor:
    return tiny.qwen_image()(prompt, generator=seed(), **SMALL).images


def sana_run(prompt: str) -> Tensor:
    return tiny.sana()(prompt, generator=seed(), use_resolution_binning=False, **SMALL).images


def flux2_run(prompt: str) -> Tensor:
    return tiny.flux2()(prompt=prompt, generator=seed(), **SMALL).images


def flux2_klein_run(prompt: str) -> Tensor:
    return tiny.flux2_klein()(prompt=prompt, generator=seed(), **SMALL).images


def krea2_run(prompt: str) -> Tensor:
    return tiny.krea2()(prompt, generator=seed(), **SMALL).images


def ernie_image_run(prompt: str) -> Tensor:
    return tiny.ernie_image()(prompt, generator=seed(), **SMALL).images


def z_image_run(prompt: str) -> Tensor:
    return tiny.z_image()(prompt, generator=seed(), **SMALL).images


def qwen_21_run(prompt: str) -> Tensor:
    return tiny.qwen_image_21()(prompt, generator=seed(), **SMALL).images


def kandinsky5_run(prompt: str) -> Tensor:
    return tiny.kandinsky5()(prompt, generator=seed(), **SMALL).image


def cogview4_run(prompt: str) -> Tensor:
    return tiny.cogview4()(prompt, generator=seed(), **SMALL).images


@pytest.mark.parametrize(
    "run",
    [
        cogview4_run,
        kandinsky5_run,
        qwen_21_run,
        prior_run,
        decoder_run,
        stock_decoder_run,
        combined_run,
        sd_run,
        sdxl_run,
        sd3_run,
        flux_dev_run,
        flux_schnell_run,
        pixart_run,
        karlo_run,
        stable_unclip_run,
        flux2_run,
        flux2_klein_run,
        sana_run,
        qwen_run,
        krea2_run,
        ernie_image_run,
        z_image_run,
    ],
)
def test_prompts_matter_and_runs_repeat(run: Any) -> None:
    cat, dog, birds = (run(prompt) for prompt in PROMPTS)
    assert cat.isfinite().all()
    assert torch.equal(cat, run(PROMPTS[0]))
    for other in (dog, birds):
        assert (cat - other).norm() / cat.norm() > 0.05


def test_whole_images_differ_too() -> None:
    import numpy as np

    arguments = SMALL | {"output_type": "np"}
    pixart = partial(tiny.pixart_sigma(), use_resolution_binning=False)
    builders = (tiny.k22_combined, tiny.stable_diffusion, tiny.sdxl, tiny.sd3, tiny.flux, tiny.flux2, tiny.z_image)
    builders = (*builders, tiny.flux2_klein, tiny.krea2, tiny.ernie_image)
    for pipeline in (*(build() for build in builders), pixart):
        cat, birds = (
            pipeline(prompt=prompt, generator=seed(), **arguments).images[0] for prompt in (PROMPTS[0], PROMPTS[2])
        )
        assert cat.shape == (64, 64, 3)
        assert np.abs(cat - birds).mean() > 0.01


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    tiny.k22_combined()
    tiny.stable_diffusion()
    tiny.sdxl()
    tiny.sd3()
    tiny.flux()
    tiny.pixart_sigma()
    tiny.karlo()
    tiny.stable_unclip()
    tiny.flux2()
    tiny.flux2_klein()
    tiny.krea2()
    tiny.ernie_image()
    tiny.z_image()
    assert torch.equal(before, torch.get_rng_state())
