"""PixArt-Sigma: bins of sizes, captions that are cleaned, texts under a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, rows_of, share_apart

PROMPTS = ["a cat", "two birds on a wire"]
SEEDS = [3, 8]
STEPS = 3
EXACT = {"use_resolution_binning": False}


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    if isinstance(settings.get("negative_prompt"), str):
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    options = {"num_inference_steps": STEPS, "output_type": output_type, **settings}
    return pipe(prompts, generator=fresh_generators(seeds), **options).images


def ours(pipe, prompts=PROMPTS, **settings):
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model)
    return torch.cat([latents[i] for i in range(len(prompts))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "settings",
    [{"max_sequence_length": 5}, {"negative_prompt": "dull"}, {"guidance_scale": 2.0}, {"clean_caption": False}],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_each_setting_does_what_it_does_in_the_pipeline(settings):
    prompts = ["A #cat <b>asleep</b>", "two birds on a wire"]
    pipe = tiny.pixart_sigma()
    expected = stock(pipe, prompts, **EXACT, **settings)
    assert apart(stock(pipe, prompts, **EXACT), expected) > 0.01  # the setting matters
    assert apart(ours(pipe, prompts, **EXACT, **settings), expected) < 2e-5


def test_eta():
    pipe = tiny.pixart_sigma(DDIMScheduler(clip_sample=False))
    expected = stock(pipe, **EXACT, eta=0.8)
    assert apart(stock(pipe, **EXACT), expected) > 0.05
    assert apart(ours(pipe, **EXACT, eta=0.8), expected) < 2e-5


def test_texts_are_kept_without_their_padding():
    pipe = tiny.pixart_sigma()
    conditioning = encoded(hsd.load(pipe, **EXACT), PROMPTS, SEEDS)
    for row, vector, prompt in zip(rows_of(conditioning, "prompt_embeds"), conditioning.vectors, PROMPTS, strict=True):
        tokens, mask, *_ = pipe.encode_prompt(prompt)
        length = len(prompt) + 1  # one token per byte, and </s>
        assert int(mask.sum()) == length
        torch.testing.assert_close(row, tokens[0, :length])
        np.testing.assert_allclose(vector, tokens[0, :length].mean(0).numpy(), atol=1e-5)


def test_a_negative_prompt_may_be_longer_than_every_prompt():
    pipe = tiny.pixart_sigma()
    settings = {**EXACT, "negative_prompt": "blurry, dull, and much longer than what is asked for"}
    assert apart(ours(pipe, **settings), stock(pipe, **settings)) < 2e-5


@pytest.fixture
def binned():
    """The tiny pipeline with the bins of a larger size: 256 x 256 pixels and similar."""
    pipe = tiny.pixart_sigma()
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    transformer = PixArtTransformer2DModel(**{**config, "sample_size": 32}).eval().requires_grad_(False)
    weights = {key: value for key, value in pipe.transformer.state_dict().items() if "pos_embed.pos_embed" not in key}
    missing, unexpected = transformer.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("pos_embed.pos_embed" in key for key in missing)
    pipe.transformer = transformer
    return pipe


@pytest.mark.parametrize("size", [{}, {"height": 100, "width": 200}, {"height": 256, "width": 136}], ids=str)
def test_sizes_are_binned_as_in_the_pipeline(binned, size):
    images = stock(binned, output_type="pil", **size)
    latents = stock(binned, **size)
    model = hsd.load(binned, **size)
    assert model.latent_shape() == latents.shape[1:]
    assert apart(ours(binned, **size), latents) < 2e-5
    for image, expected in zip(model.decode(latents, fresh_generators(SEEDS)), images, strict=True):
        assert (image.height, image.width) == (model.height, model.width)
        assert share_apart(image, expected) < 1e-3
    exact = {"height": 256, "width": 144, **EXACT}
    assert hsd.load(binned, **exact).latent_shape() == (4, 32, 18)


def test_settings_that_are_rows_differ_between_lanes_of_one_call():
    pipe = tiny.pixart_sigma()
    own = [
        {"guidance_scale": 2.0},
        {"guidance_scale": 6.0, "negative_prompt": "dull"},
        {"max_sequence_length": 3},
    ]
    model = hsd.load(pipe, **EXACT)
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 1
    plan = hsd.compile(["a cat"] * 3, 0.0, model=model, steps=STEPS, seeds=[4] * 3, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, ["a cat"], [4], "pil", **EXACT, **settings)
        assert share_apart(images[i], expected) < 0.01
        assert share_apart(images[(i + 1) % 3], expected) > 0.05


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "no bins for a model with sample_size=8.*use_resolution_binning=False"),
        ({**EXACT, "height": 72}, "height is 72.*multiple of 16"),
        ({**EXACT, "max_sequence_length": 0}, "max_sequence_length is 0"),
    ],
)
def test_bad_settings(settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(tiny.pixart_sigma(), **settings)


def test_a_pipeline_without_its_text_encoder_is_refused():
    pipe = tiny.pixart_sigma()
    pipe.text_encoder = None
    with pytest.raises(hsd.UnsupportedPipeline, match="no text_encoder:"):
        hsd.load(pipe, **EXACT)
