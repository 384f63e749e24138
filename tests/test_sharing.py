"""For tau > 0 the latents are those of a plain Algorithm 1, and the denoiser evaluates as many rows as planned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

import hsd
import tiny
from algorithm1 import algorithm1
from helpers import PROMPTS, SCHEDULERS, encoded, latents_of, make_scheduler, rows_of

STEPS = 6
RNG = np.random.default_rng(5)
# Two families of similar prompts and single prompts: forks of two and of many, early and late.
CENTRES = RNG.normal(size=(3, 12))
EMBEDDINGS = CENTRES[[0, 0, 0, 1, 2, 2, 2, 1]] + 0.4 * RNG.normal(size=(8, 12))


@pytest.fixture(scope="module", params=[0.3, 0.8, 1.5])
def plan(request):
    plan = hsd.compile(PROMPTS, request.param, embeddings=EMBEDDINGS, steps=STEPS, seeds=[7, 3, 9, 1, 4, 8, 2, 6])
    assert 0.05 < plan.savings < 0.8
    return plan


def count_rows(module):
    """A list that gets the batch size of every call of ``module``."""
    sizes = []

    def hook(_, args, kwargs):
        sample = args[0] if args else kwargs["sample"]
        sizes.append(len(sample))

    return sizes, module.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion(plan, name):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)
    model = hsd.load(pipe, height=32, width=32, guidance_scale=5.0)
    if model.sampler(STEPS).n_steps != STEPS:
        plan = hsd.compile(PROMPTS, plan.tau, embeddings=EMBEDDINGS, steps=STEPS, seeds=plan.seeds, model=model)
    tokens, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)

    def evaluate(x, t, tokens):
        with torch.no_grad():
            u = pipe.unet(x, t, encoder_hidden_states=negative[:1]).sample
            c = pipe.unet(x, t, encoder_hidden_states=tokens).sample
        return u + 5.0 * (c - u)

    expected, rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: scheduler.set_timesteps(STEPS),
        pipe.scheduler,
        plan.seeds,
        mean=lambda leaves: tokens[leaves].mean(0, keepdim=True),
        evaluate=evaluate,
        first_noise=lambda g: randn_tensor((1, *model.latent_shape()), generator=g),
        new_generator=lambda seed: torch.Generator().manual_seed(seed),
    )
    sizes, hook = count_rows(pipe.unet)
    latents = latents_of(plan, model, batch_size=3)
    hook.remove()
    assert rows == plan.node_steps
    assert sum(sizes) == 2 * plan.node_steps  # conditional and unconditional
    assert sorted(latents) == list(range(len(PROMPTS)))
    for i, latent in latents.items():
        scale = expected[i].abs().max()
        assert (latent - expected[i]).abs().max() < 2e-4 * scale, (name, i)


@pytest.mark.parametrize("scheduler", [tiny.k22_ddim, tiny.k22_ddpm], ids=["ddim", "ddpm-learned-range-thresholding"])
def test_kandinsky(plan, scheduler):
    pair = (tiny.k22_prior(), tiny.k22_decoder(scheduler()))
    decoder = pair[1]
    model = hsd.load(pair, height=64, width=64, guidance_scale=3.0, prior_steps=3)
    conditioning = encoded(model, PROMPTS, plan.seeds)
    embeds = torch.stack(rows_of(conditioning, "image_embeds"))
    negative = rows_of(conditioning, "negative_image_embeds")[0][None]
    learned = decoder.scheduler.config.get("variance_type") == "learned_range"

    def evaluate(x, t, row):
        with torch.no_grad():
            run = lambda e: decoder.unet(x, t, None, added_cond_kwargs={"image_embeds": e}).sample  # noqa: E731
            (u, _), (c, v) = run(negative).chunk(2, 1), run(row).chunk(2, 1)
        guided = u + 3.0 * (c - u)
        return torch.cat([guided, v], 1) if learned else guided

    expected, rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: scheduler.set_timesteps(STEPS),
        decoder.scheduler,
        plan.seeds,
        mean=lambda leaves: embeds[leaves].mean(0, keepdim=True),
        evaluate=evaluate,
        first_noise=lambda g: randn_tensor((1, *model.latent_shape()), generator=g),
        new_generator=lambda seed: torch.Generator().manual_seed(seed),
        scale_input=False,
    )
    sizes, hook = count_rows(decoder.unet)
    latents = latents_of(plan, model, batch_size=4)
    hook.remove()
    assert rows == plan.node_steps == sum(sizes) // 2
    for i, latent in latents.items():
        assert (latent - expected[i]).abs().max() < 2e-4 * expected[i].abs().max(), i


def test_shared_noise_starts_every_root_from_one_latent():
    pipe = tiny.stable_diffusion()
    model = hsd.load(pipe, height=32, width=32)
    starts = {}
    for noise in ("independent", "shared"):
        plan = hsd.compile(PROMPTS, 0.3, embeddings=EMBEDDINGS, steps=STEPS, noise=noise)
        assert plan.counts()[0] > 1
        seen = []
        hook = pipe.unet.register_forward_pre_hook(
            lambda _, a, k, seen=seen: seen.append(a[0].clone()), with_kwargs=True
        )
        latents_of(plan, model, batch_size=8, order="breadth")
        hook.remove()
        starts[noise] = seen[0][: plan.counts()[0]]
    assert (starts["shared"] - starts["shared"][:1]).abs().max() == 0
    assert torch.equal(starts["shared"][0], starts["independent"][0])
    assert (starts["independent"][1] - starts["independent"][0]).abs().max() > 0.1
