"""Qwen-Image 2.1, Kandinsky 5 and CogView 4: their networks read padding, so that texts of two lengths never meet."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

import hsd
import tiny
from families import FAMILIES, Family
from families.measure import PROMPTS, SEEDS
from helpers import encoded, executor_of, finished_by, fresh_generators, latents_of, mean_difference
from hsd.models import Guidance

READING = {family.name: family for family in FAMILIES if family.name in ("qwen-image-2.1", "kandinsky-5", "cogview-4")}
families = pytest.mark.parametrize("family", READING.values(), ids=READING)
STEPS = 4
LONG = "a rather longer text about a cat and a dog"


def load(family: Family, pipe=None, **settings):
    return hsd.load(
        family.build() if pipe is None else pipe, **{**family.settings(family.guided, family.size), **settings}
    )


def stock(family: Family, pipe, prompts, seeds, settings=None, steps=STEPS, output_type="latent"):
    settings = family.guided if settings is None else settings
    return family.call(pipe, prompts, fresh_generators(seeds), settings, family.size, steps, output_type)


def ours(model, prompts=PROMPTS, seeds=SEEDS, steps=STEPS, **execution):
    plan = hsd.compile(prompts, 0.0, model=model, steps=steps, seeds=seeds)
    found = latents_of(plan, model, execution, batch_size=3)
    return torch.cat([found[i] for i in range(len(plan))])


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@families
def test_in_a_batch_of_the_pipeline_a_prompt_changes_with_the_longest_beside_it(family: Family):
    """This is why each prompt is compared with its own call."""
    pipe = family.build()
    settings = {k: [v, v] if k == "negative_prompt" else v for k, v in family.guided.items()}
    size = {"height": family.size[0], "width": family.size[1]}
    call = {**settings, **size, "num_inference_steps": STEPS, "output_type": "latent"}
    both = pipe(["a cat", LONG], generator=fresh_generators([1, 2]), **call)
    both = getattr(both, "images", None) if hasattr(both, "images") else both.image
    alone = stock(family, pipe, ["a cat", LONG], [1, 2])
    assert apart(both[0], alone[0]) > 0.02
    assert apart(both[1], alone[1]) < 10 * family.tolerance  # the longest one is not padded


@families
def test_texts_of_one_length_share_calls_and_others_do_not(family: Family):
    model = load(family)
    prompts = ["a cat", "a dog", LONG, "a fox"]
    seen = []
    watch = model.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["encoder_hidden_states"].shape[:2])), with_kwargs=True
    )
    ours(model, prompts, [1, 2, 3, 4], steps=2)
    watch.remove()
    rows = encoded(model, prompts, [1, 2, 3, 4]).fields
    short, long = (len(rows["prompt_embeds"].rows[i]) for i in (0, 2))
    negative = len(rows["negative_prompt_embeds"].rows[0])
    assert short < long
    lanes = {length: sum(n for n, text in seen if text == length) for length in (short, long, negative)}
    if negative in (short, long):  # CogView 4's texts are filled up to 16 tokens
        lanes[negative] -= 2 * 4
    assert lanes == {short: 3 * 2, long: 2} | ({} if negative in (short, long) else {negative: 4 * 2})
    assert max(n for n, text in seen if text == short) > 1


@families
def test_a_compiled_call_is_guided_in_a_part_of_the_run(family: Family):
    """A call of which only some lanes are guided calls the network twice, with sizes that the host has to know."""
    model = load(family, guidance_interval=(0.0, 0.5))
    plan = hsd.compile(["a cat", "a dog", LONG], 0.0, model=model, steps=STEPS, seeds=SEEDS)
    expected = latents_of(plan, model, batch_size=1)
    executor = executor_of(plan, model, batch_size=3)
    executor._compiled = SimpleNamespace(size=6, for_lanes=lambda size: contextlib.nullcontext())
    for i, latent in finished_by(executor).items():
        assert apart(latent, expected[i]) < 10 * family.tolerance
    assert apart(latents_of(plan, load(family), batch_size=1)[0], expected[0]) > 0.01


def test_guidance_in_two_calls():
    """By rows: the formula, and no unconditional call where no lane is guided."""
    x, scale = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2.0, 3.0, 4.0])
    rows = {"text": torch.ones(3, 4), "negative_text": torch.zeros(3, 2), "guidance_scale": scale}
    calls = []

    def network(x, text):
        calls.append((len(x), text.shape[1]))
        return x * (1 + text.sum(1, keepdim=True))  # 5 x, and x without a text

    def result(picked, unconditional, conditional):
        calls.clear()
        layout = {"_pick": picked, "_unconditional_row": unconditional, "_conditional_row": conditional}
        given = rows | {name: torch.tensor(value) for name, value in layout.items() if value is not None}
        return Guidance(given, True).in_two_calls(network, (x,), ("text",)).flatten().tolist()

    assert result(None, None, None) == [9.0, 26.0, 51.0]
    assert calls == [(3, 4), (3, 2)]
    assert result([0, 2, 3, 4, 5], [0, 3, 1], [2, 3, 4]) == [9.0, 10.0, 51.0]
    assert calls == [(3, 4), (2, 2)]
    assert result([3, 4, 5], [0, 1, 2], [0, 1, 2]) == [5.0, 10.0, 15.0]
    assert calls == [(3, 4)]
    calls.clear()
    assert Guidance(rows, False).in_two_calls(network, (x,), ("text",)).flatten().tolist() == [5.0, 10.0, 15.0]


@pytest.mark.parametrize(
    ("family", "row"),
    [
        (READING["kandinsky-5"], "prompt_embeds"),
        (READING["kandinsky-5"], "pooled_embeds"),
        (READING["kandinsky-5"], "negative_pooled_embeds"),
        (READING["cogview-4"], "prompt_embeds"),
        (READING["cogview-4"], "size_ids"),
        (READING["qwen-image-2.1"], "prompt_embeds"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_each_input_matters(family: Family, row: str):
    model = load(family)
    conditioning = encoded(model, ["a cat", "a dog"], [1, 2])
    rows = {name: field.rows[int(field.index[0])][None].clone() for name, field in conditioning.fields.items()}
    x = torch.randn((1, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model.denoise(x, torch.tensor([700.0]), rows)
        other = conditioning.fields[row]
        changed = other.rows[int(other.index[1])] if len(other.rows) > 1 else other.rows[0].roll(1, 0) * 0.5
        mixed, _ = model.denoise(x, torch.tensor([700.0]), rows | {row: changed[None]})
        later, _ = model.denoise(x, torch.tensor([500.0]), rows)
    assert apart(mixed, whole) > 0.02
    assert apart(later, whole) > 0.02


@families
def test_clustered_by_the_mean_of_the_prompts_own_tokens(family: Family):
    """One token a letter in these models, and none of the chat around it."""
    model = load(family)
    vectors = encoded(model, ["a cat", LONG, ""], [1, 2, 3]).vectors
    before = {"qwen-image-2.1": len("Suser\n"), "kandinsky-5": 0, "cogview-4": 0}[family.name]
    for i, prompt in enumerate(["a cat", LONG]):
        tokens = model.pipe.encode_prompt(prompt)[0][0]
        start = len(tokens) - len(prompt) if family.name == "cogview-4" else before
        words = tokens[start : len(tokens) - behind(family)]
        assert family.name == "kandinsky-5" or len(words) == len(prompt)
        torch.testing.assert_close(torch.from_numpy(vectors[i]), words.mean(0), atol=1e-4, rtol=1e-4)
    assert np.isfinite(vectors[2]).all()


def behind(family: Family) -> int:
    """Tokens behind a prompt: ``<|im_end|>``, for Qwen-Image 2.1 the beginning of an answer too."""
    return {"qwen-image-2.1": len("E\nSassistant\n"), "kandinsky-5": 1, "cogview-4": 0}[family.name]


# -- Qwen-Image 2.1


QWEN = READING["qwen-image-2.1"]


def test_the_models_own_noise_levels_are_its_number_of_steps():
    own = [1.0, 0.7, 0.3]
    pipe = tiny.qwen_image_21(sample_sigmas=own)
    model = load(QWEN, pipe)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=40, seeds=SEEDS)
    assert plan.n_steps == 3
    found = torch.cat([latent for _, latent in sorted(latents_of(plan, model).items())])
    assert apart(found, stock(QWEN, pipe, PROMPTS, SEEDS, steps=40)) < QWEN.tolerance
    assert apart(ours(load(QWEN), steps=3), found) > 0.01
    given = load(QWEN, pipe, sigmas=[1.0, 0.5])
    expected = stock(QWEN, pipe, PROMPTS, SEEDS, {**QWEN.guided, "sigmas": [1.0, 0.5]})
    assert apart(ours(given, steps=40), expected) < QWEN.tolerance


def test_the_texts_keys_may_be_computed_at_each_step():
    pipe = QWEN.build()
    expected = stock(QWEN, pipe, PROMPTS, SEEDS, {**QWEN.guided, "use_kv_cache": False})
    assert apart(ours(load(QWEN, pipe)), expected) < QWEN.tolerance


@pytest.mark.parametrize("half", [{"true_cfg_scale": 6.0}, {"negative_prompt": "dull"}], ids=str)
def test_guidance_takes_a_negative_prompt_and_a_scale(half):
    pipe = QWEN.build()
    model = hsd.load(pipe, height=64, width=64, **half)
    assert not model.guided
    assert torch.equal(ours(model), ours(hsd.load(pipe, height=64, width=64)))


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_transparent_images_are_written(tmp_path, image_format):
    model = load(QWEN)
    plan = hsd.compile(["a cat"], 0.0, model=model, steps=2, seeds=[1])
    [image] = hsd.stream(plan, model)
    assert image.pil.mode == "RGBA"
    assert np.array(image.pil)[..., 3].min() < 200  # or the test would not see what becomes of it
    hsd.generate(plan, model, tmp_path, progress=False, image_format=image_format)
    white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.pil.size, "white"), image.pil).convert("RGB")
    with PIL.Image.open(tmp_path / f"00000.{image_format}") as written:
        if image_format == "png":
            assert written.tobytes() == image.pil.tobytes()
        elif image_format == "webp":
            assert written.mode == "RGBA"
        else:
            assert written.mode == "RGB"
            assert mean_difference(written, white) < 20
            assert mean_difference(image.pil.convert("RGB"), white) > 20


# -- Kandinsky 5


KANDINSKY = READING["kandinsky-5"]


@pytest.mark.parametrize("size", [(64, 128), (1000, 64)])
def test_a_size_that_the_pipeline_would_change_is_refused(size):
    with pytest.raises(ValueError, match=rf"height and width are {size[0]} and {size[1]}, .*\(64, 64\), \(64, 32\)"):
        load(KANDINSKY, height=size[0], width=size[1])


def test_a_prompt_that_is_too_long_does_not_cut_others():
    """The pipeline itself cuts them: it takes the padding of the others for the end that it leaves out."""
    pipe, prompts = KANDINSKY.build(), ["a cat by the sea", "x" * 60]
    model = load(KANDINSKY, pipe, max_sequence_length=24)
    settings = {**KANDINSKY.guided, "max_sequence_length": 24}
    expected = stock(KANDINSKY, pipe, prompts, [1, 2], settings)
    assert apart(ours(model, prompts, [1, 2]), expected) < KANDINSKY.tolerance
    together = pipe.encode_prompt(prompts, max_sequence_length=24)[0][0]
    alone = pipe.encode_prompt(prompts[:1], max_sequence_length=24)[0][0]
    assert (together[: len(alone)] - alone).abs().max() > 0.1


# -- CogView 4


COGVIEW = READING["cogview-4"]


@pytest.mark.parametrize("settings", [{"original_size": (32, 128)}, {"crops_coords_top_left": (8, 16)}], ids=str)
def test_sizes_do_what_they_do_in_the_pipeline(settings):
    pipe = COGVIEW.build()
    expected = stock(COGVIEW, pipe, PROMPTS, SEEDS, {**COGVIEW.guided, **settings})
    assert apart(ours(load(COGVIEW, pipe, **settings)), expected) < COGVIEW.tolerance
    assert apart(stock(COGVIEW, pipe, PROMPTS, SEEDS), expected) > 0.005


def test_texts_that_begin_alike_meet_word_by_word():
    """A prompt's own tokens come first, whatever fills it up to 16: the transformer knows no order of text tokens."""
    model = load(COGVIEW)
    short, longer, other = (
        field[0]
        for field in (
            encoded(model, [text], [1]).fields["prompt_embeds"].rows for text in ("a cat", "a cat sat", "the sea")
        )
    )
    assert len(short) == len(longer) == 16

    def near(one, two):  # in direction: in front of them is padding, which is not the same
        return torch.cosine_similarity(one[2:7], two[2:7]).mean()

    assert near(short, longer) > near(short, other) + 0.1
    assert near(short, longer) > near(short.roll(9, 0), longer.roll(5, 0)) + 0.1  # as the pipeline has them
    transformer, x = model.pipe.transformer, torch.randn((1, *model.latent_shape()))
    size = torch.tensor([[64.0, 64.0]])
    with torch.no_grad():
        first, second = (
            transformer(x, tokens[None], torch.tensor([500.0]), size, size, 0 * size).sample
            for tokens in (longer, longer.roll(5, 0))
        )
    assert apart(first, second) < 1e-5


@pytest.mark.parametrize(
    ("family", "settings", "error"),
    [
        (COGVIEW, {"height": 40}, "height is 40: it has to be a positive multiple of 16"),
        (COGVIEW, {"original_size": 64}, "original_size is 64: it has to be a pair"),
        (COGVIEW, {"max_sequence_length": 0}, "max_sequence_length is 0: it has to be at least 1"),
        (COGVIEW, {"timesteps": [900, 100], "sigmas": [1.0, 0.5]}, "both given"),
        (KANDINSKY, {"max_sequence_length": 1025}, "max_sequence_length is 1025: it has to be within 1 and 1024"),
        (QWEN, {"width": 80}, "width is 80: it has to be a positive multiple of 32"),
    ],
)
def test_bad_settings(family, settings, error):
    with pytest.raises(ValueError, match=error):
        load(family, **settings)


def test_a_scheduler_that_does_not_take_timesteps_and_noise_levels_is_refused():
    pipe = tiny.cogview4(FlowMatchHeunDiscreteScheduler())
    with pytest.raises(hsd.UnsupportedScheduler, match=r"FlowMatchHeun.* cannot step CogView 4.*FlowMatchEuler"):
        hsd.compile(PROMPTS, 0.0, model=load(COGVIEW, pipe), steps=STEPS)


def test_default_sizes():
    assert (hsd.load(tiny.qwen_image_21()).height, hsd.load(tiny.cogview4()).width) == (1024, 64)
