"""What is special about FLUX.2: the scale as an input, the text to cluster by, statistics for decoding latents."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, mean_difference

PROMPTS = ["a cat", "a much longer prompt about a dog"]
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    return tiny.flux2()


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    return pipe(
        prompt=list(prompts),
        generator=fresh_generators(seeds),
        num_inference_steps=STEPS,
        output_type=output_type,
        **SIZE,
        **settings,
    ).images


def ours(pipe, settings=None, **common):
    model = hsd.load(pipe, **SIZE, **common)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS, settings=settings)
    return {image.index: image for image in hsd.stream(plan, model, batch_size=2)}


@pytest.mark.parametrize("settings", [{"max_sequence_length": 256}, {"text_encoder_out_layers": (5, 9, 25)}], ids=str)
def test_settings_of_the_text(pipe, settings):
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    latents, expected = torch.cat([latents[0], latents[1]]), stock(pipe, **settings)
    assert (latents - expected).norm() < 1e-5 * expected.norm()
    assert (stock(pipe) - expected).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize(
    "own",
    [
        [{"guidance_scale": 1.5}, {"guidance_scale": 6.0}],
        [{"max_sequence_length": 256}, {}],
        [{"text_encoder_out_layers": (5, 9, 25)}, {}],
    ],
    ids=str,
)
def test_settings_of_single_prompts(pipe, own):
    images = ours(pipe, settings=own)
    for i, settings in enumerate(own):
        expected = stock(pipe, PROMPTS[i : i + 1], SEEDS[i : i + 1], "pil", **settings)[0]
        assert mean_difference(images[i].pil, expected) < 0.5


def test_lanes_of_one_call_have_their_own_scale(pipe):
    low, high = (hsd.load(pipe, **SIZE, guidance_scale=scale) for scale in (1.5, 6.0))
    assert low.call_key() == high.call_key()
    rows = {name: field.rows[0][None] for name, field in encoded(low, PROMPTS[:1], SEEDS[:1]).fields.items()}
    two = {name: torch.cat([row, row]) for name, row in rows.items()}
    two["guidance_scale"] = torch.tensor([1.5, 6.0])
    x = torch.randn((2, *low.latent_shape()), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900.0, 900.0])
    with torch.no_grad():
        both = low.denoise(x, t, two)[0]
        for i, scale in enumerate((1.5, 6.0)):
            alone = low.denoise(x[i : i + 1], t[:1], {**rows, "guidance_scale": torch.tensor([scale])})[0]
            torch.testing.assert_close(both[i : i + 1], alone, atol=2e-5, rtol=2e-5)
        same = low.denoise(x, t, {**two, "guidance_scale": torch.tensor([6.0, 6.0])})[0]
    assert (same[0] - both[0]).norm() > 0.05 * both[0].norm()


def test_clustered_by_the_tokens_of_the_prompt_alone(pipe):
    model = hsd.load(pipe, **SIZE)
    tokens = pipe.encode_prompt(PROMPTS)[0]
    vectors = encoded(model, [*PROMPTS, ""], [0, 1, 2]).vectors
    for i, prompt in enumerate(PROMPTS):
        own = tokens[i, -(len(prompt) + 1) :]  # one token per byte, and the one that closes the message
        torch.testing.assert_close(torch.from_numpy(vectors[i]), own.mean(0), atol=1e-4, rtol=1e-4)
    closing = pipe.encode_prompt("")[0][0, -1]
    torch.testing.assert_close(torch.from_numpy(vectors[2]), closing, atol=1e-4, rtol=1e-4)


def test_text_that_does_not_fit_still_has_a_vector(pipe):
    vectors = encoded(hsd.load(pipe, **SIZE, max_sequence_length=16), PROMPTS, SEEDS).vectors
    assert abs(vectors[0] - vectors[1]).max() < 1e-4  # both are truncated to the beginning of the system message
    assert abs(vectors).max() > 0


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_missing_statistic_shows_in_the_image(pipe, statistic):
    other = tiny.flux2()
    (nn.init.zeros_ if statistic == "running_mean" else nn.init.ones_)(getattr(other.vae.bn, statistic))
    right, wrong = (stock(each, output_type="pil")[0] for each in (pipe, other))
    assert mean_difference(right, wrong) > 2
    assert mean_difference(ours(other)[0].pil, wrong) < 0.5


def test_default_size(pipe):
    model = hsd.load(pipe)
    assert (model.height, model.width) == (1024, 1024)
    with pytest.raises(ValueError, match="width is 40: it has to be a positive multiple of 16"):
        hsd.load(pipe, width=40)


def test_no_negative_prompt(pipe):
    with pytest.raises(TypeError, match="Flux2 has no setting 'negative_prompt'"):
        hsd.load(pipe, negative_prompt="dull")
