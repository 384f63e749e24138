"""Denoisers that read padding: a call holds texts of one length, and is told its step where the network asks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import hsd
from algorithm1 import algorithm1
from helpers import encoded, executor_of, finished_by, latents_of
from hsd.models import NEXT_TIMESTEP, STEP, Denoiser, Encoded
from hsd.replay.lengths import kinds_of, lengths_of
from hsd.tuning.inputs import Inputs

PROMPTS = ["a cat", "a big cat", "a big black cat", "one", "a dog", "a very big dog", "two", "a big black cat asleep"]
SEEDS = [7, 3, 9, 1, 4, 8, 2, 6]
STEPS = 5
EMBEDDINGS = np.random.default_rng(3).normal(size=(3, 8))[[0, 0, 0, 1, 2, 2, 1, 0]]
EMBEDDINGS = EMBEDDINGS + 0.4 * np.random.default_rng(4).normal(size=(8, 8))


def tokens_of(prompt):
    """(L, 4), one row a word."""
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(sum(word.encode()))) for word in prompt.split()]
    return torch.stack(rows)


class ReadsPadding(Denoiser):
    """Its output depends on the number of tokens, on the last one, and on the step and the next timestep."""

    one_length = True
    reads_steps = True
    device = torch.device("cpu")
    dtype = torch.float32
    calls: list[int]

    def __init__(self):
        self.calls = []

    def encode(self, batch):
        rows = [tokens_of(prompt) for prompt in batch.prompts]
        return Encoded({"tokens": rows}, torch.stack([row.mean(0) for row in rows]))

    def shared(self):
        return {"negative_tokens": [tokens_of("no text")]}

    def scheduler(self):
        return DDIMScheduler(clip_sample=False)

    def latent_shape(self):
        return (4, 2)

    def denoise(self, latents, timestep, rows):
        assert not [name for name in rows if name.endswith("_mask")]
        tokens, negative = rows["tokens"], rows["negative_tokens"]
        assert negative.shape == (len(latents), 2, 4)
        self.calls.append(tokens.shape[1])
        return output_of(latents, timestep, tokens, rows[STEP], rows[NEXT_TIMESTEP]) + negative.mean(), None


def output_of(latents, timestep, tokens, step, following):
    length = tokens.shape[1]
    read = (tokens[:, -1] + tokens.sum(1))[..., None]  # [B, 4, 1]
    times = (timestep * 1e-3 + step * 0.1 - following * 2e-3)[:, None, None]
    return 0.3 * latents * times.cos() + 0.2 * read.sin() + 0.1 * length


@pytest.fixture
def model():
    return ReadsPadding()


def compiled(tau, **options):
    return hsd.compile(PROMPTS, tau, embeddings=EMBEDDINGS, steps=STEPS, seeds=SEEDS, **options)


def mean_tokens(leaves):
    rows = [tokens_of(PROMPTS[leaf]) for leaf in leaves]
    longest = max(map(len, rows))
    return torch.stack([torch.stack([row[at] for row in rows if len(row) > at]).mean(0) for at in range(longest)])[None]


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.2])
def test_latents_are_those_of_algorithm_1(model, tau, gamma):
    plan = compiled(tau, catch_up=gamma)
    assert (plan.savings > 0.1) == (tau > 0)
    scheduler = model.scheduler()
    scheduler.set_timesteps(STEPS)
    after = torch.cat([scheduler.timesteps[1:], torch.zeros(1, dtype=torch.int64)])
    negative = tokens_of("no text").mean()

    def evaluate(x, t, tokens):
        step = int((scheduler.timesteps == t).nonzero())
        return output_of(x, t[None], tokens, torch.tensor([step]), after[step : step + 1]) + negative

    expected, rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: scheduler.set_timesteps(STEPS),
        model.scheduler(),
        plan.seeds,
        mean=mean_tokens,
        evaluate=evaluate,
        first_noise=lambda g: torch.randn((1, 4, 2), generator=g),
        new_generator=lambda seed: torch.Generator().manual_seed(seed),
        catch_up=gamma,
    )
    assert rows == plan.node_steps
    kinds = kinds_of(plan, encoded(model, PROMPTS, SEEDS), model)
    for options in ({}, {"kinds": kinds}):  # a program that is made without kinds is cut
        for i, latent in latents_of(plan, model, {"catch_up": gamma}, **options).items():
            torch.testing.assert_close(latent, expected[i], rtol=1e-5, atol=1e-5)


def test_a_program_with_kinds_is_not_cut(model):
    plan = compiled(0.5)
    kinds = kinds_of(plan, encoded(model, PROMPTS, SEEDS), model)
    assert len(np.unique(kinds)) > 2
    executor = executor_of(plan, model, batch_size=3, kinds=kinds)
    finished_by(executor)
    assert len(model.calls) == executor.program.n_calls
    model.calls.clear()
    executor = executor_of(plan, model, batch_size=3)
    finished_by(executor)
    assert len(model.calls) > executor.program.n_calls


def test_lengths_of_segments(model):
    """The length of a mean is that of its longest member; prompts that were not encoded do not count."""
    plan, conditioning = compiled(1.2), encoded(model, PROMPTS, SEEDS)
    conditioning.failed[7] = "not encoded"  # the longest
    lengths = lengths_of(plan, conditioning, model)
    for segment, kind in zip(plan.segments, lengths.kinds, strict=True):
        members = plan.tree.leaf_order[segment["leaf_begin"] : segment["leaf_end"]]
        counted = [i for i in members if i != 7] or members
        assert lengths.of_kind[kind] == {"tokens": max(len(PROMPTS[i].split()) for i in counted)}
        assert len(conditioning.mean(members)["tokens"]) >= lengths.of_kind[kind]["tokens"]


def test_one_text_for_all(model):
    """Texts that are all the same are one shared row, and there is one kind."""
    plan = hsd.compile(["a cat"] * 3, 0.0, embeddings=np.eye(3), steps=STEPS, seeds=[1, 2, 3])
    assert kinds_of(plan, encoded(model, ["a cat"] * 3, [1, 2, 3]), model).tolist() == [0, 0, 0]
    assert sorted(latents_of(plan, model)) == [0, 1, 2]
    assert set(model.calls) == {2}


def test_calls_that_are_timed_have_one_length(model):
    conditioning = encoded(model, PROMPTS, SEEDS)
    for lanes in (1, 5):
        latents, timestep, rows = Inputs(model, conditioning, model.sampler(STEPS), np.arange(8)).of(lanes)
        assert rows["tokens"].shape == (lanes, 5, 4)
        model.denoise(latents, timestep, rows)
