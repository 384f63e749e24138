"""What is special about FLUX.2 Klein: guidance with an empty text, a distilled model, layers of the text encoder."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of
from hsd.models.parts import own_tokens

PROMPTS = ["a cat", "a much longer prompt about a dog"]
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
SHORT = {"max_sequence_length": 64}
STEPS = 2


@pytest.fixture(scope="module")
def pipe():
    return tiny.flux2_klein()


@pytest.fixture(scope="module")
def distilled():
    return tiny.flux2_klein(is_distilled=True)


def stock(pipe, **settings):
    packed = []

    def keep(pipe, step, timestep, tensors):
        packed.append(tensors["latents"])
        return tensors

    options = {**SIZE, "num_inference_steps": STEPS, "output_type": "latent", "callback_on_step_end": keep}
    pipe(prompt=list(PROMPTS), generator=fresh_generators(SEEDS), **options, **settings)
    return packed[-1]


def ours(pipe, own=None, **settings):
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS, settings=own)
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "settings",
    [{}, {**SHORT, "text_encoder_out_layers": (1, -3, 5)}, {**SHORT, "guidance_scale": 1.5}],
    ids=str,
)
def test_each_setting_does_what_it_does_in_the_pipeline(pipe, settings):
    expected = stock(pipe, **settings)
    assert apart(ours(pipe, **settings), expected) < 1e-5
    assert apart(stock(pipe, **SHORT), expected) > 0.02


def test_the_distilled_model_is_not_guided(pipe, distilled):
    expected = stock(distilled, **SHORT)
    model = hsd.load(distilled, **SIZE)  # with the pipeline's default scale, of which nothing is said
    assert not model.guided
    assert apart(ours(distilled, **SHORT), expected) < 1e-5
    assert apart(stock(pipe, **SHORT), expected) > 0.02
    assert apart(stock(pipe, **SHORT, guidance_scale=1.0), expected) < 1e-6


def test_a_scale_for_the_distilled_model_is_said_once_to_have_no_effect(distilled):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hsd.load(hsd.load(distilled, **SIZE, guidance_scale=7.5), width=32)
    assert [str(one.message) for one in said] == [
        "guidance_scale=7.5 has no effect: this FLUX.2 Klein is distilled, and never guided. It is made for 4 steps, "
        "of which similar prompts can share few"
    ]
    assert said[0].filename == __file__


def test_lanes_of_one_call_have_their_own_scale(pipe):
    own = [{"guidance_scale": 1.5}, {"guidance_scale": 6.0}]
    low, high = (hsd.load(pipe, **SIZE, **SHORT, **each) for each in own)
    assert low.call_key() == high.call_key()
    assert low.call_key() != hsd.load(pipe, **SIZE, **SHORT, guidance_scale=1.0).call_key()
    rows = {name: field.rows[0][None] for name, field in encoded(low, PROMPTS[:1], SEEDS[:1]).fields.items()}
    two = {name: torch.cat([row, row]) for name, row in rows.items()}
    two["guidance_scale"] = torch.tensor([1.5, 6.0])
    x = torch.randn((1, *low.latent_shape()), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900.0])
    with torch.no_grad():
        both = low.denoise(torch.cat([x, x]), torch.cat([t, t]), two)[0]
        for i, scale in enumerate((1.5, 6.0)):
            alone = low.denoise(x, t, {**rows, "guidance_scale": torch.tensor([scale])})[0]
            torch.testing.assert_close(both[i : i + 1], alone, atol=2e-5, rtol=2e-5)
    assert apart(both[0], both[1]) > 0.05


@pytest.mark.parametrize("side", ["right", "left"])
def test_clustered_by_the_tokens_of_the_prompt_alone(side):
    pipe = tiny.flux2_klein()
    pipe.tokenizer.padding_side = side
    tokens = pipe.encode_prompt(PROMPTS, max_sequence_length=64)[0]
    vectors = encoded(hsd.load(pipe, **SIZE, **SHORT), [*PROMPTS, ""], [0, 1, 2]).vectors
    for i, prompt in enumerate(PROMPTS):
        whole = 6 + len(prompt) + 13  # one token per byte, in a chat
        first = 6 if side == "right" else 64 - whole + 6
        own = tokens[i, first : first + len(prompt)]
        torch.testing.assert_close(torch.from_numpy(vectors[i]), own.mean(0), atol=1e-4, rtol=1e-4)
    assert abs(vectors[2]).max() > 0


def test_text_that_does_not_fit_still_has_a_vector(pipe):
    vectors = encoded(hsd.load(pipe, **SIZE, max_sequence_length=4), PROMPTS, SEEDS).vectors
    assert abs(vectors[0] - vectors[1]).max() < 1e-4  # both are cut within the beginning of the chat
    assert abs(vectors).max() > 0


@pytest.mark.parametrize(
    ("ids", "empty", "limit", "expected"),
    [
        ("<abc>", "<>", 9, "abc"),
        ("<abc>", "<>", 3, "ab"),
        ("abc", "", 9, "abc"),
        ("<>", "<>", 9, ">"),  # an empty text
        ("", "", 9, ""),
        ("<<a>", "<>", 9, "<a"),  # a text that begins as the template does
        ("<abc>", "<>", 1, "<"),  # cut before it begins
    ],
)
def test_own_tokens(ids, empty, limit, expected):
    assert ids[own_tokens([ord(x) for x in ids], [ord(x) for x in empty], limit)] == expected


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        ((9, 18, 29), r"text_encoder_out_layers has 29: the text encoder has 28 layers, whose outputs are 1 to 28"),
        ((9, 18), r"text_encoder_out_layers is \(9, 18\): the transformer reads the outputs of 3 layers"),
    ],
)
def test_layers_that_there_are_not(pipe, layers, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(pipe, **SIZE, text_encoder_out_layers=layers)


def test_default_size(pipe):
    model = hsd.load(pipe)
    assert (model.height, model.width) == (1024, 1024)
    with pytest.raises(ValueError, match="width is 40: it has to be a positive multiple of 16"):
        hsd.load(pipe, width=40)


def test_no_negative_prompt(pipe):
    with pytest.raises(TypeError, match="Flux2Klein has no setting 'negative_prompt'"):
        hsd.load(pipe, negative_prompt="dull")


def test_a_transformer_that_is_told_its_guidance_is_refused():
    pipe = tiny.flux2_klein()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(hsd.UnsupportedPipeline, match="guidance_embeds=True"):
        hsd.load(pipe)


def test_the_pipeline_for_inpainting_is_refused(pipe):
    other = Flux2KleinInpaintPipeline(**pipe.components)
    with pytest.raises(hsd.UnsupportedPipeline, match=r"pass diffusers.Flux2KleinPipeline.from_pipe\(pipe\)"):
        hsd.load(other)
