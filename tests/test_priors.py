"""Priors: run by the executor they give what the pipelines' own loops give; shared, they are Algorithm 1."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

import hsd
import tiny
from algorithm1 import algorithm1
from families import masked_mean
from families.karlo import Karlo
from families.stable_unclip import StableUnCLIP
from helpers import encoded, fresh_generators, mean_difference, rows_of

PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day, in oil", "a red bicycle"]
SEEDS = [7, 3, 9, 1, 4, 8]
STEPS, SCALE = 4, 2.0
NEGATIVE = "blurry, dull"
PRIOR = {"prior_steps": STEPS, "prior_guidance_scale": SCALE}


class Case:
    """A pipeline with a prior, whose parts are taken out of it by name."""

    def __init__(self, name, build, prior, scheduler, encode, *, negative=None):
        self.name, self.build, self.negative = name, build, negative
        self.prior, self.scheduler, self.encode_text = prior, scheduler, encode

    def load(self, pipe, **settings):
        negative = {} if self.negative is None else {"negative_prompt": self.negative}
        size = {} if self.name == "karlo" else {"height": 64, "width": 64}
        return hsd.load(pipe, **size, **PRIOR, **negative, **settings)

    def text(self, pipe, prompt):
        """Pooled (1, D) and tokens (1, L, D) of a prompt by itself, without padding."""
        pooled, tokens, mask = self.encode_text(pipe, [prompt])
        return {"pooled": pooled, "tokens": tokens[:, : int(mask.sum())]}


def kandinsky(name, negative=None):
    return Case(
        name,
        lambda: (tiny.k22_prior(), tiny.k22_decoder(tiny.k22_ddpm())),
        prior=lambda pipe: pipe[0].prior,
        scheduler=lambda pipe: pipe[0].scheduler,
        encode=lambda pipe, prompts: pipe[0]._encode_prompt(prompts, "cpu", 1, False),
        negative=negative,
    )


CASES = [
    kandinsky("kandinsky-2.2"),
    kandinsky("kandinsky-2.2-negative", NEGATIVE),
    Case(
        "karlo",
        tiny.karlo,
        prior=lambda pipe: pipe.prior,
        scheduler=lambda pipe: pipe.prior_scheduler,
        encode=lambda pipe, prompts: pipe._encode_prompt(prompts, "cpu", 1, False),
    ),
    Case(
        "stable-unclip",
        tiny.stable_unclip,
        prior=lambda pipe: pipe.prior,
        scheduler=lambda pipe: pipe.prior_scheduler,
        encode=lambda pipe, prompts: pipe._encode_prior_prompt(prompts, "cpu", 1, False),
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def embeds_of(conditioning):
    """(N, D) embeddings that the plan clusters by."""
    return torch.from_numpy(conditioning.vectors)


def rows_through(module):
    """Records the rows of a prior's calls: a list that grows, and the hook to remove."""
    seen = []
    return seen, module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))


# -- by itself: the pipelines' own runs


def own_runs(case, pipe):
    """Image embeddings (N, D) from the stock pipeline, one prompt at a time."""
    if isinstance(pipe, tuple):
        out = []
        for prompt, generator in zip(PROMPTS, fresh_generators(SEEDS), strict=True):
            options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "generator": generator}
            out.append(pipe[0](prompt, negative_prompt=case.negative, **options))
        return torch.cat([o.image_embeds for o in out]), torch.cat([o.negative_image_embeds for o in out])
    family = {"karlo": Karlo, "stable-unclip": StableUnCLIP}[case.name]()
    started = zip(PROMPTS, fresh_generators(SEEDS), strict=True)
    return torch.cat([family.image_embeds(pipe, prompt, generator, STEPS, SCALE) for prompt, generator in started])


@cases
def test_a_prior_gives_what_the_pipeline_gives(case):
    pipe = case.build()
    conditioning = encoded(case.load(pipe), PROMPTS, SEEDS)
    ours, expected = embeds_of(conditioning), own_runs(case, pipe)
    if isinstance(expected, tuple):
        expected, negative = expected
        theirs = rows_of(conditioning, "negative_image_embeds")
        for row, own in zip(theirs, negative, strict=True):
            torch.testing.assert_close(row, own, atol=1e-4, rtol=1e-4)
        differ = not torch.equal(theirs[0], theirs[1])
        assert differ == (case.negative is not None)  # sampled with each prompt's, or a black image for all
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert (ours[0] - expected[1]).abs().max() > 0.01


@cases
def test_a_prior_run_in_a_batch_is_what_it_is_alone(case):
    model = case.load(case.build())
    together = embeds_of(encoded(model, PROMPTS, SEEDS))
    alone = torch.cat([embeds_of(encoded(model, [p], [s])) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@cases
def test_priors_are_not_shared_unless_asked_for(case):
    pipe = case.build()
    for settings in ({}, {"prior_tau": 1.5}):
        model = case.load(pipe, **settings)
        seen, hook = rows_through(case.prior(pipe))
        conditioning = encoded(model, PROMPTS, SEEDS)
        hook.remove()
        lanes = 4 if case.negative else 2
        assert sum(seen) == lanes * len(PROMPTS) * STEPS
        if not settings:
            plain = embeds_of(conditioning)
    assert torch.equal(plain, embeds_of(conditioning))


# -- shared: Algorithm 1 on the texts


def evaluate_on(case, pipe):
    """The prior on one text per call, padded to its length; a negative embedding is a second latent."""
    prior, nothing = case.prior(pipe), case.text(pipe, case.negative or "")

    def run(x, t, text):
        missing = prior.config.num_embeddings - text["tokens"].shape[1]
        mask = torch.arange(prior.config.num_embeddings)[None] < text["tokens"].shape[1]
        tokens = pad(text["tokens"], (0, 0, 0, missing))
        return prior(x, t, text["pooled"], tokens, mask).predicted_image_embedding

    @torch.no_grad()
    def evaluate(x, t, text):
        out = []
        for i, own in enumerate([text, nothing][: x.shape[1]]):
            u, c = run(x[:, i], t, nothing), run(x[:, i], t, own)
            out.append(u + SCALE * (c - u))
        return torch.stack(out, 1)

    return evaluate


@pytest.mark.parametrize("tau", [0.8, 1.2])
@cases
def test_a_shared_prior_is_algorithm_1(case, tau):
    pipe = case.build()
    texts = [case.text(pipe, prompt) for prompt in PROMPTS]
    pooled = torch.cat([text["pooled"] for text in texts]).numpy()
    plan = hsd.compile(PROMPTS, tau, embeddings=pooled, steps=STEPS, seeds=SEEDS)  # clusters of similar texts
    assert 0.05 < plan.savings < 0.8
    passes = "prev_timestep" in inspect.signature(case.scheduler(pipe).step).parameters
    assert passes == (case.name != "stable-unclip")
    shape = (1, 2 if case.negative else 1, tiny.WIDTH)
    expected, rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: scheduler.set_timesteps(STEPS),
        case.scheduler(pipe),
        plan.seeds,
        mean=lambda leaves: {
            "pooled": torch.cat([texts[i]["pooled"] for i in leaves]).mean(0, keepdim=True),
            "tokens": masked_mean([texts[i]["tokens"] for i in leaves]),
        },
        evaluate=evaluate_on(case, pipe),
        first_noise=lambda generator: torch.randn(shape, generator=generator),
        new_generator=lambda seed: torch.Generator().manual_seed(seed),
        scale_input=False,
    )
    model = case.load(pipe, share_prior=True, prior_tau=tau)
    seen, hook = rows_through(case.prior(pipe))
    conditioning = encoded(model, PROMPTS, SEEDS)
    hook.remove()
    assert rows == plan.node_steps
    assert sum(seen) == plan.node_steps * (4 if case.negative else 2)
    ours, unshared = embeds_of(conditioning), embeds_of(encoded(case.load(pipe), PROMPTS, SEEDS))
    for i, latent in expected.items():
        embed = case.prior(pipe).post_process_latents(latent)
        torch.testing.assert_close(ours[i], embed[0, 0], atol=2e-4, rtol=2e-4)
        if case.negative:
            negative = rows_of(conditioning, "negative_image_embeds")[i]
            torch.testing.assert_close(negative, embed[0, 1], atol=2e-4, rtol=2e-4)
    assert (ours - unshared).abs().max() > 1e-3
    assert len(torch.unique(ours.round(decimals=3), dim=0)) == len(PROMPTS)  # every prompt ends by itself


def test_a_shared_prior_does_not_depend_on_what_is_asked_for():
    """One prompt of a plan, on another host: its embedding is shared with prompts that are generated elsewhere."""
    case = CASES[0]
    model = case.load(case.build(), share_prior=True, prior_tau=5.0)
    whole, part = (encoded(model, PROMPTS, SEEDS, needed=needed) for needed in (None, np.array([4])))
    torch.testing.assert_close(embeds_of(part)[4], embeds_of(whole)[4], atol=1e-4, rtol=1e-4)
    alone = encoded(model, PROMPTS[4:5], SEEDS[4:5])
    assert (embeds_of(alone)[0] - embeds_of(whole)[4]).abs().max() > 0.01


@cases
def test_images_of_a_shared_prior(case):
    """A complete run: the decoder shares by the shared prior's embeddings, and every image is generated."""
    model = case.load(case.build(), share_prior=True, prior_tau=5.0)
    plan = hsd.compile(PROMPTS, 0.5, model=model, steps=STEPS, seeds=SEEDS)
    vectors = encoded(model, PROMPTS, SEEDS).vectors
    again = hsd.compile(PROMPTS, 0.5, embeddings=vectors, steps=STEPS, seeds=SEEDS)
    np.testing.assert_allclose(plan.tree.heights, again.tree.heights, atol=1e-4)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=4)}
    assert sorted(images) == list(range(len(PROMPTS)))
    unshared = case.load(model.pipe)
    others = {image.index: image.pil for image in hsd.stream(plan, unshared, batch_size=4)}
    assert max(mean_difference(images[i], others[i]) for i in images) > 0.5


def test_prompts_whose_priors_draw_differently_are_no_lanes_of_one_call():
    """One generator runs through Kandinsky's combined pipeline, so the decoder's noise depends on what was drawn."""
    pipe = tiny.k22_combined(tiny.k22_ddpm())
    own = [{"prior_steps": 3}, {"prior_steps": 5}, {"prior_steps": 3, "negative_prompt": NEGATIVE}]
    model = hsd.load(pipe, height=64, width=64)
    plan = hsd.compile(PROMPTS[:3], 0.0, model=model, steps=4, seeds=SEEDS[:3], settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        (expected,) = pipe(
            PROMPTS[i],
            negative_prompt=settings.get("negative_prompt"),
            prior_num_inference_steps=settings["prior_steps"],
            generator=torch.Generator().manual_seed(SEEDS[i]),
            height=64,
            width=64,
            num_inference_steps=4,
        ).images
        assert mean_difference(images[i], expected) < 0.5
