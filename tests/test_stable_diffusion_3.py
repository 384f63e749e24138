"""Stable Diffusion 3: lengths of texts, shifts, a pipeline without T5."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import hsd
import tiny
from helpers import fresh_generators, latents_of, share_apart

PROMPTS = ["a cat", "two birds on a wire"]
SEEDS = [3, 8]
STEPS = 3


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    if settings.get("negative_prompt") is not None:
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    options = {"num_inference_steps": STEPS, "output_type": output_type, **settings}
    return pipe(prompts, generator=fresh_generators(seeds), **options).images


def ours(pipe, **settings):
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


def dynamic():
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@pytest.mark.parametrize(
    "settings",
    [{"max_sequence_length": 64}, {"clip_skip": 1}, {"negative_prompt": "dull"}, {"guidance_scale": 2.5}],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_each_setting_does_what_it_does_in_the_pipeline(settings):
    pipe = tiny.sd3()
    expected = stock(pipe, **settings)
    assert apart(stock(pipe), expected) > 0.003  # the setting matters
    assert apart(ours(pipe, **settings), expected) < 2e-5


@pytest.mark.parametrize("settings", [{}, {"height": 128, "width": 96}, {"mu": 2.0}], ids=["native", "large", "mu"])
def test_the_shift_follows_the_size_or_what_is_set(settings):
    pipe = tiny.sd3(dynamic())
    assert apart(ours(pipe, **settings), stock(pipe, **settings)) < 2e-5
    plain, other = (hsd.load(pipe, **own).sampler(STEPS).timesteps for own in ({}, settings))
    assert torch.equal(plain, other) == (not settings)


def test_without_t5():
    pipe = tiny.sd3()
    whole = stock(pipe)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    expected = stock(pipe)
    assert apart(whole, expected) > 0.02
    assert apart(ours(pipe), expected) < 2e-5


def test_noise_is_in_the_dtype_of_all_tokens_joined():
    pipe = tiny.sd3().to(torch.bfloat16)
    pipe.text_encoder_3.to(torch.float32)
    tokens = pipe.encode_prompt(PROMPTS, None, None)[0]
    noise = hsd.load(pipe).first_noise(torch.Generator().manual_seed(1))
    assert noise.dtype == tokens.dtype == torch.float32
    pipe.text_encoder_3 = None
    assert hsd.load(pipe).noise_dtype == torch.bfloat16


def test_prompts_of_one_plan_may_have_settings_of_their_own():
    pipe = tiny.sd3()
    lanes = [{"guidance_scale": 2.0}, {"guidance_scale": 6.0, "negative_prompt": "dull"}, {"clip_skip": 1}]
    own = [*lanes, {"max_sequence_length": 64}]
    model = hsd.load(pipe)
    assert len({hsd.load(model, **settings).call_key() for settings in lanes}) == 1
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 2
    plan = hsd.compile(["a cat"] * 4, 0.0, model=model, steps=STEPS, seeds=[4] * 4, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, ["a cat"], [4], "pil", **settings)
        assert share_apart(images[i], expected) < 0.01
        assert share_apart(images[(i + 1) % 4], expected) > 0.05


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"width": 72}, "width is 72.*multiple of 16"), ({"max_sequence_length": 600}, "max_sequence_length is 600")],
)
def test_bad_settings(settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(tiny.sd3(), **settings)


def test_what_cannot_be_driven_is_refused():
    pipe = tiny.sd3()
    pipe.transformer.image_proj = torch.nn.Linear(2, 2)
    with pytest.raises(hsd.UnsupportedPipeline, match="unload_ip_adapter"):
        hsd.load(pipe)
    pipe = tiny.sd3()
    pipe.text_encoder = None
    with pytest.raises(hsd.UnsupportedPipeline, match="no text_encoder:"):
        hsd.load(pipe)
