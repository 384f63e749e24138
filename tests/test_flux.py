"""FLUX: two kinds of guidance, one of them a row; schnell; packed latents; lengths of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, share_apart

PROMPTS = ["a cat", "two birds on a wire"]
SEEDS = [3, 8]
STEPS = 3
SMALL = {"height": 64, "width": 64}


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    if settings.get("negative_prompt") is not None:
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    options = {"num_inference_steps": STEPS, "output_type": output_type, **SMALL, **settings}
    return pipe(prompts, generator=fresh_generators(seeds), **options).images


def ours(pipe, **settings):
    model = hsd.load(pipe, **{**SMALL, **settings})
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 8.0},
        {"true_cfg_scale": 4.0, "negative_prompt": ""},
        {"true_cfg_scale": 4.0, "negative_prompt": "dull", "guidance_scale": 1.0},
        {"max_sequence_length": 32},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_each_setting_does_what_it_does_in_the_pipeline(settings):
    pipe = tiny.flux()
    expected = stock(pipe, **settings)
    assert apart(stock(pipe), expected) > 0.02  # the setting matters
    assert apart(ours(pipe, **settings), expected) < 2e-5


@pytest.mark.parametrize("settings", [{"true_cfg_scale": 4.0}, {"negative_prompt": "dull"}], ids=str)
def test_true_guidance_takes_a_scale_and_a_negative_prompt(settings):
    pipe = tiny.flux()
    assert not hsd.load(pipe, **settings).guided
    assert torch.equal(stock(pipe), stock(pipe, **settings))
    assert apart(ours(pipe, **settings), stock(pipe)) < 2e-5


@pytest.mark.parametrize(
    "settings",
    [{}, {"true_cfg_scale": 3.0, "negative_prompt": "dull"}, {"height": 96, "max_sequence_length": 256}],
    ids=["plain", "guided", "oblong"],
)
def test_schnell(settings):
    pipe = tiny.flux(guidance_embeds=False)
    expected = stock(pipe, **settings)
    assert apart(expected[:1], expected[1:]) > 0.1
    assert apart(ours(pipe, **settings), expected) < 2e-5
    model = hsd.load(pipe, **SMALL)
    assert "guidance_scale" not in encoded(model, PROMPTS, SEEDS).fields


def test_schnell_shares():
    """Prompts of one cluster share their latent until it splits: the same latents as a plain loop over the mean."""
    pipe = tiny.flux(guidance_embeds=False)
    model = hsd.load(pipe, **SMALL)
    alike = np.array([[1.0, 0.0], [0.9, 0.1]])
    plan = hsd.compile(PROMPTS, 0.5, embeddings=alike, model=model, steps=STEPS, seeds=SEEDS)
    assert plan.counts().tolist() == [1, 1, 2]
    latents = latents_of(plan, model)
    rows = [pipe.encode_prompt(prompt, None)[:2] for prompt in PROMPTS]
    mean = [torch.stack(pair).mean(0) for pair in zip(*rows, strict=True)]
    sigmas = np.linspace(1, 1 / STEPS, STEPS)
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(SEEDS[0]))
    x = pipe._pack_latents(noise, 1, 16, 8, 8)
    ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)

    def velocity(x, sigma, tokens, pooled):
        arguments = {"txt_ids": torch.zeros(512, 3), "img_ids": ids, "pooled_projections": pooled}
        with torch.no_grad():
            return pipe.transformer(x, tokens, timestep=torch.tensor([sigma]).float(), **arguments).sample

    for k in range(2):
        x = x - velocity(x, sigmas[k], *mean) / STEPS
    for i in range(2):
        assert apart(latents[i], x - velocity(x, sigmas[2], *rows[i]) / STEPS) < 2e-5


@pytest.mark.parametrize(
    "common",
    [{}, {"true_cfg_scale": 2.0, "negative_prompt": "dull"}],
    ids=["distilled", "true"],
)
def test_lanes_of_one_call_differ_in_their_scales(common):
    pipe = tiny.flux()
    own = [{**common, "guidance_scale": scale} for scale in (1.5, 4.0, 9.0)]
    if common:
        own[2] = {**own[2], "true_cfg_scale": 5.0, "negative_prompt": "a dog"}
    model = hsd.load(pipe, **SMALL)
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 1
    plan = hsd.compile(["a cat"] * 3, 0.0, model=model, steps=STEPS, seeds=[4, 4, 4], settings=own)
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["guidance"].tolist()), with_kwargs=True
    )
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    hook.remove()
    assert rows == [[1.5, 4.0, 9.0] * (2 if common else 1)] * STEPS
    for i, settings in enumerate(own):
        [expected] = stock(pipe, ["a cat"], [4], "pil", **settings)
        assert share_apart(images[i], expected) < 0.01
        assert share_apart(images[(i + 1) % 3], expected) > 0.05


def test_prompts_of_one_plan_may_have_texts_of_different_lengths():
    pipe = tiny.flux()
    own = [{"max_sequence_length": 32}, {"max_sequence_length": 64}]
    model = hsd.load(pipe, **SMALL)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, PROMPTS[i : i + 1], SEEDS[i : i + 1], "pil", **settings)
        assert share_apart(images[i], expected) < 0.01


def test_the_shift_follows_the_size():
    model = hsd.load(tiny.flux())
    assert (model.height, model.width) == (1024, 1024)  # the pipeline's own
    assert model.latent_shape() == (64 * 64, 64)
    large, small = model.sampler(4).timesteps, hsd.load(model, **SMALL).sampler(4).timesteps
    assert (large[1:] > small[1:] + 10).all()
    schnell = hsd.load(tiny.flux(guidance_embeds=False))
    assert torch.equal(schnell.sampler(4).timesteps, hsd.load(schnell, **SMALL).sampler(4).timesteps)


def test_noise_is_drawn_in_the_dtype_and_shape_of_the_vae():
    pipe = tiny.flux().to(torch.bfloat16)
    model = hsd.load(pipe, height=96, width=64)
    noise = model.first_noise(torch.Generator().manual_seed(5))
    expected, _ = pipe.prepare_latents(
        1, 16, 96, 64, torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(5)
    )
    assert noise.dtype == torch.bfloat16
    assert torch.equal(noise, expected)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"height": 72}, "height is 72.*multiple of 16"),
        ({"max_sequence_length": 513}, "max_sequence_length is 513"),
        ({"max_sequence_length": 0}, "max_sequence_length is 0"),
    ],
)
def test_bad_settings(settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(tiny.flux(), **settings)


def test_what_cannot_be_driven_is_refused():
    pipe = tiny.flux()
    pipe.transformer.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 32, 2)])
    with pytest.raises(hsd.UnsupportedPipeline, match="unload_ip_adapter"):
        hsd.load(pipe)
    pipe = tiny.flux()
    pipe.text_encoder_2 = None
    with pytest.raises(hsd.UnsupportedPipeline, match="no text_encoder_2"):
        hsd.load(pipe)
    pipe = tiny.flux()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()  # the pipeline cannot set its noise levels
    with pytest.raises(ValueError, match="FlowMatchHeun.*does not support custom"):
        hsd.compile(PROMPTS, 0.0, model=hsd.load(pipe, **SMALL), steps=STEPS)
