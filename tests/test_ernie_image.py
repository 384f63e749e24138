"""What is special about ERNIE-Image: texts of several lengths in one call, statistics, prompts used as they are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import nn

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, mean_difference

PROMPTS = ["a cat", "a much longer prompt about a dog"]
SEEDS = [3, 8]
SIZE = {"height": 64, "width": 64}
STEPS = 2


@pytest.fixture(scope="module")
def pipe():
    return tiny.ernie_image()


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    options = {**SIZE, "num_inference_steps": STEPS, "output_type": output_type, **settings}
    return pipe(list(prompts), generator=fresh_generators(seeds), **options).images


def ours(pipe, prompts=PROMPTS, **settings):
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=STEPS, seeds=SEEDS[: len(prompts)])
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[i] for i in range(len(prompts))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.5}, {"negative_prompt": None}], ids=str)
def test_each_setting_does_what_it_does_in_the_pipeline(pipe, settings):
    assert apart(ours(pipe, **settings), stock(pipe, **settings)) < 1e-5


def test_a_text_that_is_cut(pipe):
    prompts = ["a", "x" * 600]  # the tokenizer reads 512
    assert apart(ours(pipe, prompts), stock(pipe, prompts)) < 1e-5


def test_beside_a_longer_text_a_prompt_is_what_it_is_alone(pipe):
    """The position of the image follows the text, and padding is masked."""
    both, alone = ours(pipe), ours(pipe, PROMPTS[:1])
    assert apart(both[:1], alone) < 1e-5


def test_the_time_is_rounded_as_in_the_pipeline():
    """It is up to 1000, in the model's dtype: not all whole numbers of that size are in bfloat16."""
    pipe = tiny.ernie_image().to(torch.bfloat16)
    times = {"stock": [], "ours": []}
    for name in times:
        hook = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs, seen=times[name]: seen.append(kwargs["timestep"][0]), with_kwargs=True
        )
        if name == "stock":
            stock(pipe, guidance_scale=1.0)
        else:
            ours(pipe, guidance_scale=1.0)
        hook.remove()
    assert times["ours"] == times["stock"]
    assert {time.dtype for time in times["ours"]} == {torch.bfloat16}


def test_clustered_by_the_tokens_of_the_prompt_without_the_first(pipe):
    vectors = encoded(hsd.load(pipe, **SIZE), [*PROMPTS, "", "x" * 600], range(4)).vectors
    for i, prompt in enumerate(PROMPTS):
        tokens = pipe.encode_prompt(prompt, "cpu")[0]
        assert len(tokens) == 1 + len(prompt)
        torch.testing.assert_close(torch.from_numpy(vectors[i]), tokens[1:].mean(0), atol=1e-5, rtol=1e-5)
    first = pipe.encode_prompt("", "cpu")[0][0]
    torch.testing.assert_close(torch.from_numpy(vectors[2]), first, atol=1e-5, rtol=1e-5)
    cut = pipe.encode_prompt("x" * 600, "cpu")[0]
    torch.testing.assert_close(torch.from_numpy(vectors[3]), cut[1:512].mean(0), atol=1e-5, rtol=1e-5)


def test_small_variances_are_made_larger_by_what_the_pipeline_says():
    """1e-5, where the VAE's configuration says 1e-4."""
    pipe = tiny.ernie_image()
    nn.init.constant_(pipe.vae.bn.running_var, 1e-5)
    assert pipe.vae.config.batch_norm_eps == 1e-4
    model = hsd.load(pipe, **SIZE)
    latents = 100 * torch.randn((1, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    [image] = model.decode(latents, fresh_generators([0]))
    with torch.no_grad():
        for eps, same in ((1e-5, True), (1e-4, False)):
            scale = (1e-5 + eps) ** 0.5
            scaled = latents * scale + pipe.vae.bn.running_mean.view(1, -1, 1, 1)
            decoded = pipe.vae.decode(pipe._unpatchify_latents(scaled)).sample
            [expected] = pipe.image_processor.postprocess(decoded, output_type="pil")
            assert (mean_difference(image, expected) < 0.5) == same


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_missing_statistic_shows_in_the_image(pipe, statistic):
    other = tiny.ernie_image()
    (nn.init.zeros_ if statistic == "running_mean" else nn.init.ones_)(getattr(other.vae.bn, statistic))
    right, wrong = (stock(each, PROMPTS[:1], SEEDS[:1], "pil")[0] for each in (pipe, other))
    assert mean_difference(right, wrong) > 2
    model = hsd.load(other, **SIZE)
    [image] = hsd.stream(hsd.compile(PROMPTS[:1], 0.0, model=model, steps=STEPS, seeds=SEEDS[:1]), model)
    assert mean_difference(image.pil, wrong) < 0.5


def test_prompts_are_not_enhanced_which_is_said_once():
    pipe = tiny.ernie_image()
    pipe.register_modules(pe=pipe.text_encoder, pe_tokenizer=pipe.tokenizer)  # it cannot write: it is not called
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hsd.load(hsd.load(pipe, **SIZE), width=32)
    assert [str(one.message) for one in said] == [
        "the pipeline has a prompt enhancer (pe), which HSD does not use: prompts are encoded as they are, as with "
        "use_pe=False. Enhance them before, if you like, and pass the texts that it gives"
    ]
    assert apart(ours(pipe), stock(pipe, use_pe=False)) < 1e-5


def test_sides_are_whole_tokens(pipe):
    assert (hsd.load(pipe).height, hsd.load(pipe).width) == (1024, 1024)
    with pytest.raises(ValueError, match="height is 40: it has to be a positive multiple of 16"):
        hsd.load(pipe, height=40)


def test_a_scheduler_that_takes_no_tensor_of_sigmas(pipe):
    """The pipeline gives it one, and fails; here it gets an array."""
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = hsd.load(pipe, **SIZE).with_scheduler(unipc)
    latents = latents_of(hsd.compile(PROMPTS, 0.0, model=model, steps=3, seeds=SEEDS), model)
    with torch.no_grad():
        x = model.first_noise(fresh_generators(SEEDS[:1])[0])
        unipc.set_timesteps(sigmas=torch.linspace(1, 0, 4)[:-1].numpy())
        rows = {name: row[None] for name, row in encoded(model, PROMPTS, SEEDS).mean(np.array([0])).items()}
        for t in unipc.timesteps:
            x = unipc.step(model.denoise(x, t[None], rows)[0], t, x).prev_sample
    assert apart(latents[0], x) < 1e-5


def test_a_scheduler_that_shifts_by_size_is_refused_as_in_the_pipeline():
    pipe = tiny.ernie_image(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="`mu` must be passed"):
        stock(pipe)
    with pytest.raises(ValueError, match="`mu` must be passed"):
        hsd.compile(PROMPTS, 0.0, model=hsd.load(pipe, **SIZE), steps=STEPS)
