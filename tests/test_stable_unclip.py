"""What is special about Stable unCLIP: the noise of the image embedding, and any scheduler for the prior."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UnCLIPScheduler

import hsd
import tiny
from families.checks import check_parity
from families.measure import PROMPTS, SEEDS
from families.stable_unclip import StableUnCLIP
from helpers import encoded, fresh_generators, latents_of, mean_difference, rows_of

FAMILY = StableUnCLIP()
CALL = {"height": 64, "width": 64, "num_inference_steps": 4, "prior_num_inference_steps": 3}


def both(pipe, prompts=PROMPTS, seeds=SEEDS, **settings):
    """Latents of the pipeline, and ours, for the same settings."""
    reference = pipe(prompts, generator=fresh_generators(seeds), output_type="latent", **CALL, **settings).images
    model = hsd.load(pipe, height=64, width=64, prior_steps=3, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=4, seeds=seeds)
    latents = latents_of(plan, model, batch_size=2)
    return reference, torch.cat([latents[i] for i in range(len(prompts))])


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("level", [0, 500])
def test_noise_levels(level):
    reference, ours = both(tiny.stable_unclip(), guidance_scale=3.0, noise_level=level)
    other, _ = both(tiny.stable_unclip(), guidance_scale=3.0, noise_level=50)
    assert apart(ours, reference) < FAMILY.tolerance
    assert apart(other, reference) > 0.01


PRIORS = {
    # Stepped from each timestep to the one before it, as this pipeline steps it.
    "unclip": UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
    "ddim": DDIMScheduler(prediction_type="sample", clip_sample=False),
    "euler": EulerDiscreteScheduler(prediction_type="sample"),  # requires a scaled input
}


@pytest.mark.parametrize(("name", "settings"), [("unclip", {}), ("ddim", {}), ("ddim", {"eta": 0.7}), ("euler", {})])
def test_schedulers_of_the_prior(name, settings):
    pipe = tiny.stable_unclip()
    pipe.prior_scheduler = PRIORS[name]
    reference, ours = both(pipe, guidance_scale=3.0, noise_level=50, prior_guidance_scale=2.0, **settings)
    assert apart(ours, reference) < FAMILY.tolerance
    assert apart(ours.roll(1, 0), reference) > 0.1


def test_eta_reaches_both_schedulers():
    """DDIM at both: one setting, as in the pipeline."""
    pipe = tiny.stable_unclip()
    pipe.prior_scheduler = PRIORS["ddim"]
    plain, _ = both(pipe, guidance_scale=3.0)
    reference, ours = both(pipe, guidance_scale=3.0, eta=0.7)
    assert apart(ours, reference) < FAMILY.tolerance
    assert apart(plain, reference) > 0.1
    model = hsd.load(pipe, prior_steps=3, eta=0.7)
    assert len(model.prior().draws()) == len(hsd.load(pipe, prior_steps=3).prior().draws()) + 3


def test_without_guidance_of_the_prior():
    reference, ours = both(tiny.stable_unclip(), guidance_scale=3.0, prior_guidance_scale=1.0)
    assert apart(ours, reference) < FAMILY.tolerance


def test_every_prompt_has_noise_of_its_own():
    """The same prompt twice, with two seeds: the embeddings differ, the tokens do not."""
    model = hsd.load(tiny.stable_unclip(), prior_steps=3, noise_level=50)
    conditioning = encoded(model, ["a cat", "a cat"], [1, 2])
    labels, tokens = (rows_of(conditioning, name) for name in ("class_labels", "prompt_embeds"))
    assert (labels[0][: tiny.WIDTH] - labels[1][: tiny.WIDTH]).abs().max() > 0.01
    assert torch.equal(labels[0][tiny.WIDTH :], labels[1][tiny.WIDTH :])  # the level
    torch.testing.assert_close(tokens[0], tokens[1])


def test_lanes_may_differ_in_noise_level_and_scales():
    pipe = tiny.stable_unclip()
    own = [
        {"guidance_scale": 3.0, "noise_level": 0},
        {"guidance_scale": 5.0, "noise_level": 300},
        {"guidance_scale": 3.0, "prior_guidance_scale": 2.0, "negative_prompt": "dull"},
    ]
    model = hsd.load(pipe, height=64, width=64, prior_steps=3)
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 1
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=4, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        generator = torch.Generator().manual_seed(SEEDS[i])
        (expected,) = pipe(PROMPTS[i], generator=generator, **CALL, **settings).images
        assert mean_difference(images[i], expected) < 0.5


def test_eta_with_a_prior_that_takes_none():
    check_parity(FAMILY, FAMILY.build(), {**FAMILY.guided, "eta": 0.5}, FAMILY.size)


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_noise_level_that_there_is_not_is_refused(level):
    with pytest.raises(ValueError, match=rf"noise_level is {level}: this model has levels 0 to 999"):
        hsd.load(tiny.stable_unclip(), noise_level=level)


def test_other_values_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="prior_steps is 0"):
        hsd.load(tiny.stable_unclip(), prior_steps=0)
    with pytest.raises(ValueError, match="height is 60.*multiple of 8"):
        hsd.load(tiny.stable_unclip(), height=60)
