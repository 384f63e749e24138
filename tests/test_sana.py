"""What is special about Sana: the bins of sizes."""

from __future__ import annotations

import pytest
from diffusers import SanaTransformer2DModel

import hsd
import tiny
from helpers import fresh_generators, latents_of, share_apart

PROMPTS, SEEDS, STEPS = ["a cat", "two birds on a wire"], [3, 8], 2
SETTINGS = {"guidance_scale": 1.0, "complex_human_instruction": None}
CALL = {"num_inference_steps": STEPS, **SETTINGS}


@pytest.fixture(scope="module")
def binned():
    """The tiny pipeline with the bins of a larger size: 512 x 512 pixels and similar."""
    pipe = tiny.sana()
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    transformer = SanaTransformer2DModel(**{**config, "sample_size": 16}).eval().requires_grad_(False)
    transformer.load_state_dict(pipe.transformer.state_dict())
    pipe.register_modules(transformer=transformer)
    return pipe


@pytest.mark.parametrize("size", [{"height": 512, "width": 512}, {"height": 100, "width": 333}], ids=str)
def test_sizes_are_binned_as_in_the_pipeline(binned, size):
    latents = binned(PROMPTS, generator=fresh_generators(SEEDS), output_type="latent", **CALL, **size).images
    model = hsd.load(binned, **SETTINGS, **size)
    assert model.latent_shape() == latents.shape[1:]
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    ours = latents_of(plan, model)
    assert max(float((ours[i] - latents[i]).norm() / latents[i].norm()) for i in range(2)) < 2e-5
    images = binned(PROMPTS, generator=fresh_generators(SEEDS), **CALL, **size).images
    for image, expected in zip(model.decode(latents, fresh_generators(SEEDS)), images, strict=True):
        assert (image.height, image.width) == (size["height"], size["width"])
        assert share_apart(image, expected) < 1e-3


def test_the_default_size_is_binned(binned):
    assert hsd.load(binned).latent_shape() == (tiny.sana().transformer.config.in_channels, 64, 64)
    exact = hsd.load(binned, height=96, width=320, use_resolution_binning=False)
    assert exact.latent_shape() == (8, 12, 40)


def test_binning_is_recorded_where_it_changes_the_size(binned):
    """A folder of a version without bins has no such setting; where its size is a bin, it can be continued."""
    recorded = [
        hsd.load(binned, height=height, width=width, use_resolution_binning=on).settings.get("use_resolution_binning")
        for height, width, on in [(512, 512, True), (512, 512, False), (100, 333, True), (96, 320, False)]
    ]
    assert recorded == [None, None, True, None]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "no bins for a model with sample_size=8.*use_resolution_binning=False"),
        ({"use_resolution_binning": False, "height": 100}, "height is 100.*multiple of 32"),
    ],
)
def test_sizes_that_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(tiny.sana(), **settings)
