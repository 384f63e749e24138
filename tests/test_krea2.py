"""What is special about Krea 2: how it counts guidance, tokens without order, a distilled model with another shift."""

from __future__ import annotations

import warnings

import pytest
import torch

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, mean_difference

PROMPTS = ["a cat", "a much longer prompt about a dog"]
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
SHORT = {"max_sequence_length": 64}
STEPS = 2


@pytest.fixture(scope="module")
def pipe():
    return tiny.krea2()


@pytest.fixture(scope="module")
def distilled():
    return tiny.krea2(is_distilled=True)


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    options = {**SIZE, "num_inference_steps": STEPS, "output_type": output_type, **settings}
    return pipe(list(prompts), generator=fresh_generators(seeds), **options).images


def ours(pipe, **settings):
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**SHORT, "guidance_scale": 0.5},  # guided: the pipeline counts from 0
        {**SHORT, "negative_prompt": "dull"},
        {"max_sequence_length": 12},
        {"max_sequence_length": 3},  # what is left is the end of the chat
    ],
    ids=str,
)
def test_each_setting_does_what_it_does_in_the_pipeline(pipe, settings):
    expected = stock(pipe, **settings)
    assert apart(ours(pipe, **settings), expected) < 1e-5
    if settings:
        assert apart(stock(pipe, **SHORT), expected) > 0.02  # the setting matters


def test_padding_does_not_matter(pipe):
    """The default is 512, as in the pipeline; a prompt that fits into 64 tokens is the same."""
    assert apart(ours(pipe, **SHORT), ours(pipe)) < 1e-5
    fields = encoded(hsd.load(pipe, **SIZE), PROMPTS, SEEDS).fields
    assert [len(row) for row in fields["prompt_embeds"].rows] == [5 + len(prompt) for prompt in PROMPTS]


def test_what_all_prompts_have_is_at_the_same_positions(pipe):
    """The end of the chat comes first: a mean by position is of the same token in all prompts."""
    tokens, mask = pipe.encode_prompt(PROMPTS, max_sequence_length=64)
    rows = encoded(hsd.load(pipe, **SIZE, **SHORT), PROMPTS, SEEDS).fields["prompt_embeds"].rows
    for i, prompt in enumerate(PROMPTS):
        assert mask[i, -5:].all()
        torch.testing.assert_close(rows[i][:5], tokens[i, -5:])
        torch.testing.assert_close(rows[i][5:], tokens[i, : len(prompt)])


def test_the_distilled_model_has_a_shift_of_its_own(pipe, distilled):
    settings = {**SHORT, "guidance_scale": 0.0}
    expected = stock(distilled, **settings)
    assert apart(ours(distilled, **settings), expected) < 1e-5
    assert apart(stock(pipe, **settings), expected) > 0.02


def test_a_distilled_model_that_is_guided_says_so_once(distilled):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hsd.load(hsd.load(distilled, **SIZE, **SHORT), width=32)
    assert apart(ours(distilled, **SHORT), stock(distilled, **SHORT)) < 1e-5
    assert [str(one.message) for one in said] == [
        "this Krea 2 is distilled, and made for images without guidance in 8 steps: guidance_scale=4.5 guides it "
        "nevertheless, as in the pipeline. Pass guidance_scale=0"
    ]


def test_lanes_of_one_call_have_guidance_of_their_own(pipe):
    own = [{"guidance_scale": 1.0, "negative_prompt": "dull"}, {"guidance_scale": 5.0}, {"guidance_scale": 0.0}]
    keys = {hsd.load(pipe, **SIZE, **SHORT, **settings).call_key() for settings in own}
    assert len(keys) == 2  # guided or not
    model = hsd.load(pipe, **SIZE, **SHORT)
    plan = hsd.compile(["a cat"] * 3, 0.0, model=model, steps=STEPS, seeds=[4] * 3, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, ["a cat"], [4], "pil", **SHORT, **settings)
        assert mean_difference(images[i], expected) < 0.5
        assert mean_difference(images[(i + 1) % 3], expected) > 1


def test_clustered_by_the_tokens_of_the_prompt_over_the_layers(pipe):
    vectors = encoded(hsd.load(pipe, **SIZE, **SHORT), [*PROMPTS, ""], [0, 1, 2]).vectors
    for i, prompt in enumerate(PROMPTS):
        own = pipe.encode_prompt(prompt, max_sequence_length=64)[0][0, : len(prompt)]
        torch.testing.assert_close(torch.from_numpy(vectors[i]), own.mean((0, 1)), atol=1e-4, rtol=1e-4)
    assert abs(vectors[2]).max() > 0  # an empty prompt has the end of its chat only


@pytest.mark.parametrize("statistic", ["latents_mean", "latents_std"])
def test_a_missing_statistic_shows_in_the_image(pipe, statistic):
    other = tiny.krea2()
    channels = other.vae.config.z_dim
    other.vae.register_to_config(**{statistic: [0.0 if statistic == "latents_mean" else 1.0] * channels})
    right, wrong = (stock(each, PROMPTS[:1], SEEDS[:1], "pil", **SHORT)[0] for each in (pipe, other))
    assert mean_difference(right, wrong) > 2
    model = hsd.load(other, **SIZE, **SHORT)
    [image] = hsd.stream(hsd.compile(PROMPTS[:1], 0.0, model=model, steps=STEPS, seeds=SEEDS[:1]), model)
    assert mean_difference(image.pil, wrong) < 0.5


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"width": 40}, "width is 40: it has to be a positive multiple of 16"),
        ({"max_sequence_length": 2015}, "max_sequence_length is 2015: it has to be within 1 and 2014 tokens"),
    ],
)
def test_bad_settings(pipe, settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(pipe, **settings)
