"""What is special about Karlo: guidance of both stages or of none, super-resolution that draws, masks that fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hsd
import tiny
from families.checks import check_parity
from families.karlo import Karlo
from families.measure import PROMPTS
from helpers import fresh_generators, latents_of, mean_difference

FAMILY = Karlo()


@pytest.mark.parametrize(
    ("guidance_scale", "prior_guidance_scale"), [(3.0, 0.5), (0.5, 2.0)], ids=["only-the-decoder", "only-the-prior"]
)
def test_one_scale_above_1_guides_both_stages(guidance_scale, prior_guidance_scale):
    settings = {"guidance_scale": guidance_scale, "prior_guidance_scale": prior_guidance_scale}
    # Where the first step leaves a value unclipped, it magnifies rounding 20,000 times; these seeds have none there.
    check_parity(FAMILY, FAMILY.build(), settings, FAMILY.size, seeds=[1, 2, 3])


def test_one_at_a_time_every_bit_is_the_pipeline_s():
    """The first steps of decoder and super-resolution divide by 5e-5 before they clip, so a last bit would be seen."""
    pipe = FAMILY.build()
    model = hsd.load(pipe, **FAMILY.settings(FAMILY.guided, FAMILY.size))
    for seed in range(6):
        plan = hsd.compile(PROMPTS[:1], 0.0, model=model, steps=FAMILY.steps, seeds=[seed])
        latent, image = (
            FAMILY.call(pipe, PROMPTS[:1], fresh_generators([seed]), FAMILY.guided, FAMILY.size, FAMILY.steps, kind)
            for kind in ("latent", "pil")
        )
        assert torch.equal(latents_of(plan, model)[0], latent)
        assert next(hsd.stream(plan, model)).pil.tobytes() == image[0].tobytes()


def test_a_prompt_whose_mask_is_as_long_as_the_pixels():
    """60 tokens of text and 4 of the image embedding, at 8 x 8 pixels: attention takes such a mask for the pixels'."""
    prompt = "x" * 58
    pipe = FAMILY.build()
    assert len(pipe.tokenizer(prompt).input_ids) + pipe.text_proj.clip_extra_context_tokens == 64
    check_parity(FAMILY, pipe, FAMILY.guided, FAMILY.size, prompts=[prompt, "x"], seeds=[1, 2])


def decoded(model, latents, seeds):
    generators = fresh_generators(seeds)
    with torch.no_grad():
        images = model.decode(latents, generators)
    return [np.array(image) for image in images], generators


def test_super_resolution_draws_from_each_image_s_own_generator():
    model = hsd.load(tiny.karlo(), super_res_steps=3)
    latents = torch.randn((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    together, after = decoded(model, latents, [1, 2, 3])
    for i, seed in enumerate([1, 2, 3]):
        (alone,), (own,) = decoded(model, latents[i : i + 1], [seed])
        assert np.abs(together[i].astype(int) - alone).max() <= 1
        assert torch.equal(after[i].get_state(), own.get_state())
    (other,), _ = decoded(model, latents[:1], [4])
    assert np.abs(together[0].astype(int) - other).mean() > 2
    assert model.pipe.super_res_scheduler.num_inference_steps is None  # the pipeline's own was not touched


def test_steps_of_super_resolution():
    pipe = tiny.karlo()
    options = {"prior_guidance_scale": 2.0, "decoder_guidance_scale": 3.0, "prior_num_inference_steps": 3}
    pictures = []
    for steps in (2, 5):
        model = hsd.load(pipe, guidance_scale=3.0, prior_guidance_scale=2.0, prior_steps=3, super_res_steps=steps)
        (image,) = hsd.stream(hsd.compile(PROMPTS[:1], 0.0, model=model, steps=4, seeds=[7]), model)
        (expected,) = pipe(
            PROMPTS[0],
            generator=torch.Generator().manual_seed(7),
            decoder_num_inference_steps=4,
            super_res_num_inference_steps=steps,
            **options,
        ).images
        assert mean_difference(image.pil, expected) < 0.5
        pictures.append(image.pil)
    assert mean_difference(*pictures) > 2


def test_lanes_may_differ_in_both_scales():
    """One plan, one pass: the same as each prompt by itself."""
    pipe = FAMILY.build()
    own = [{"guidance_scale": g, "prior_guidance_scale": p} for g, p in ((3.0, 2.0), (3.0, 4.0), (6.0, 2.0))]
    model = hsd.load(pipe, **FAMILY.settings(own[0], FAMILY.size))
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 1
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=4, seeds=[1, 2, 3], settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        (expected,) = FAMILY.call(pipe, PROMPTS[i : i + 1], fresh_generators([i + 1]), settings, FAMILY.size, 4, "pil")
        assert mean_difference(images[i], expected) < 0.5


def test_prompts_of_other_prior_steps_draw_their_own_noise():
    """The decoder draws after the prior, whose number of draws matters: so they are not lanes of one call."""
    pipe = FAMILY.build()
    own = [{"prior_steps": 3}, {"prior_steps": 5}]
    model = hsd.load(pipe, **FAMILY.settings(FAMILY.guided, FAMILY.size))
    plan = hsd.compile(PROMPTS[:1] * 2, 0.0, model=model, steps=4, seeds=[1, 1], settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=2)}
    for i, settings in enumerate(own):
        (expected,) = pipe(
            PROMPTS[0],
            generator=torch.Generator().manual_seed(1),
            decoder_guidance_scale=FAMILY.guided["guidance_scale"],
            prior_guidance_scale=FAMILY.guided["prior_guidance_scale"],
            prior_num_inference_steps=settings["prior_steps"],
            decoder_num_inference_steps=4,
            super_res_num_inference_steps=3,
        ).images
        assert mean_difference(images[i], expected) < 0.5


@pytest.mark.parametrize("name", ["prior_steps", "super_res_steps"])
def test_a_single_step_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 1.*at least 2"):
        hsd.load(tiny.karlo(), **{name: 1})


def test_a_single_step_of_the_decoder_is_refused():
    model = hsd.load(tiny.karlo())
    with pytest.raises(ValueError, match=r"steps is 1.*at least 2"):
        hsd.compile(PROMPTS, 0.0, model=model, steps=1)
