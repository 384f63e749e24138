"""What is special about Qwen-Image: guidance with two conditions, tokens under a mask, statistics by channel."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, mean_difference

PROMPTS = ["a cat", "a much longer prompt about a dog"]
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
STEPS = 4
GUIDED = {"negative_prompt": "dull", "true_cfg_scale": 3.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny.qwen_image()


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    if settings.get("negative_prompt") is not None:
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
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
    [{}, {"negative_prompt": "dull"}, {"negative_prompt": "", "true_cfg_scale": 6.0}, {"max_sequence_length": 12}],
    ids=str,
)
def test_each_setting_does_what_it_does_in_the_pipeline(pipe, settings):
    expected = stock(pipe, **settings)
    assert apart(ours(pipe, **settings), expected) < 1e-5
    if settings:
        assert apart(stock(pipe), expected) > 0.02  # the setting matters


@pytest.mark.parametrize("half", [{"true_cfg_scale": 6.0}, {"negative_prompt": "dull", "true_cfg_scale": 1.0}], ids=str)
def test_guidance_takes_a_negative_prompt_and_a_scale(pipe, half):
    model = hsd.load(pipe, **SIZE, **half)
    assert not model.guided
    assert torch.equal(ours(pipe, **half), ours(pipe))


def test_guided_tokens_are_as_long_as_unguided_ones(pipe):
    """The pipeline's rule, token by token; it has an effect where guidance is strong."""
    fields = encoded(hsd.load(pipe, **SIZE, **GUIDED), PROMPTS, SEEDS).fields
    tokens, negative = (fields[name].rows[0][None] for name in ("prompt_embeds", "negative_prompt_embeds"))
    given = {"prompt_embeds": tokens, "prompt_embeds_mask": torch.ones(1, tokens.shape[1], dtype=torch.bool)}
    guided = {
        **given,
        "negative_prompt_embeds": negative,
        "negative_prompt_embeds_mask": torch.ones(1, negative.shape[1], dtype=torch.bool),
        "true_cfg_scale": torch.tensor([30.0]),
    }
    x = torch.randn((1, *hsd.load(pipe, **SIZE).latent_shape()), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900.0])
    with torch.no_grad():
        plain = hsd.load(pipe, **SIZE).denoise(x, t, given)[0]
        strong = hsd.load(pipe, **SIZE, **GUIDED).denoise(x, t, guided)[0]
    torch.testing.assert_close(strong.norm(dim=-1), plain.norm(dim=-1))
    assert apart(strong, plain) > 0.5


def test_lanes_of_one_call_have_guidance_of_their_own(pipe):
    own = [{"true_cfg_scale": 2.0, "negative_prompt": "dull"}, {"true_cfg_scale": 6.0, "negative_prompt": "a red dog"}]
    own.append({})
    keys = {hsd.load(pipe, **SIZE, **settings).call_key() for settings in own}
    assert len(keys) == 2  # guided or not
    texts, seeds = ["a cat"] * 3, [4] * 3
    model = hsd.load(pipe, **SIZE)
    plan = hsd.compile(texts, 0.0, model=model, steps=STEPS, seeds=seeds, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, texts[:1], seeds[:1], "pil", **settings)
        assert mean_difference(images[i], expected) < 0.5
        assert mean_difference(images[(i + 1) % 3], expected) > 2


def test_texts_of_one_length_come_without_a_mask(pipe):
    """The pipeline then returns none; rows are the same as in a batch with a text of another length."""
    alone = encoded(hsd.load(pipe, **SIZE), PROMPTS[:1], SEEDS[:1])
    both = encoded(hsd.load(pipe, **SIZE), PROMPTS, SEEDS)
    assert pipe.encode_prompt(PROMPTS[:1])[1] is None
    torch.testing.assert_close(alone.fields["prompt_embeds"].rows[0], both.fields["prompt_embeds"].rows[0])
    assert len(both.fields["prompt_embeds"].rows[1]) > len(both.fields["prompt_embeds"].rows[0])


def test_clustered_by_the_mean_of_the_tokens(pipe):
    vectors = encoded(hsd.load(pipe, **SIZE), PROMPTS, SEEDS).vectors
    for i, prompt in enumerate(PROMPTS):
        tokens = pipe.encode_prompt(prompt)[0][0]
        torch.testing.assert_close(torch.from_numpy(vectors[i]), tokens.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("statistic", ["latents_mean", "latents_std"])
def test_a_missing_statistic_shows_in_the_image(pipe, statistic):
    other = tiny.qwen_image()
    channels = other.vae.config.z_dim
    other.vae.register_to_config(**{statistic: [0.0 if statistic == "latents_mean" else 1.0] * channels})
    right, wrong = (stock(each, output_type="pil")[0] for each in (pipe, other))
    assert mean_difference(right, wrong) > 2
    model = hsd.load(other, **SIZE)
    plan = hsd.compile(PROMPTS[:1], 0.0, model=model, steps=STEPS, seeds=SEEDS[:1])
    [image] = hsd.stream(plan, model)
    assert mean_difference(image.pil, wrong) < 0.5


def test_default_size(pipe):
    model = hsd.load(pipe)
    assert (model.height, model.width) == (1024, 1024)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"width": 40}, "width is 40: it has to be a positive multiple of 16"),
        ({"max_sequence_length": 1025}, "max_sequence_length is 1025: it has to be within 1 and 1024 tokens"),
    ],
)
def test_bad_settings(pipe, settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(pipe, **settings)


def test_a_transformer_that_is_told_its_guidance_is_refused():
    pipe = tiny.qwen_image()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(hsd.UnsupportedPipeline, match="guidance_embeds=True"):
        hsd.load(pipe)


def test_a_scheduler_that_takes_no_sigmas_is_refused():
    pipe = tiny.qwen_image(FlowMatchHeunDiscreteScheduler())
    with pytest.raises(ValueError, match="does not support custom"):
        hsd.compile(PROMPTS, 0.0, model=hsd.load(pipe, **SIZE), steps=STEPS)
