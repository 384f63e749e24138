"""Variations: where they fork, and that they are what the scheduler itself makes of fresh noise there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
import tiny
from helpers import PROMPTS, encoded, finished_by
from hsd.errors import UnsupportedScheduler
from hsd.generation.variations import fresh_noise
from hsd.planning.vary import fork_step
from hsd.replay.executor import Executor
from hsd.replay.lowering import program_of


def random_plan(n: int, seed: int, tau: float = 0.9) -> hsd.Plan:
    rows = np.random.default_rng(seed).normal(size=(n, 3)) + 1.0
    return hsd.compile([f"prompt {i}" for i in range(n)], tau, embeddings=rows, steps=10, seeds=5)


def partition(plan: hsd.Plan, step: int, n: int) -> list[int]:
    """Of the first ``n`` prompts: the lowest one in the cluster of each."""
    active = plan.active(step)[:n].tolist()
    return [active.index(segment) for segment in active]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.data())
def test_a_variation_leaves_its_cluster_at_one_step(n, seed, depth, data):
    plan = random_plan(n, seed)
    chosen = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    larger = plan.more(2, sorted(chosen), depth).whole()
    step = fork_step(plan.phi, depth)
    assert larger.extensions == (n,)
    assert sorted(larger.variations.values()) == sorted([*chosen, *chosen])
    for k in range(plan.n_steps):
        assert partition(larger, k, n) == partition(plan, k, n), "old clusters stay as they are"
        active = larger.active(k)
        for variation, original in larger.variations.items():
            assert (active[variation] == active[original]) == (k < step)
            assert k < step or np.count_nonzero(active == active[variation]) == 1


def test_the_number_is_what_there_is_in_the_end():
    plan = random_plan(5, 0)
    two = plan.more(2, [1, 3])
    assert (two.kept.tolist(), two.n_prompts) == ([1, 3, 5, 6, 7, 8], 9)
    assert two.more(2, [1, 3]).n_prompts == 9
    assert two.more(1).kept.tolist() == [1, 3, 5, 6, 7, 8]
    three = two.more(3, [3])
    assert (three.n_prompts, three.kept.tolist()) == (10, [3, 7, 8, 9])
    assert three.seeds[-1] == 14
    assert three.prompts[-1] == "prompt 3"


def test_settings_and_columns_are_those_of_the_first_image():
    rows = np.random.default_rng(0).normal(size=(3, 4))
    plan = hsd.compile(
        list("abc"), 0.9, embeddings=rows, steps=6, settings=[{}, {"height": 64}, {}], columns={"id": [7, 8, 9]}
    )
    larger = plan.more(1, [1])
    assert larger.settings[larger.setting[3]] == {"height": 64}
    assert larger.columns == {"id": [7, 8, 9, 8]}


def test_saved_and_loaded(tmp_path):
    larger = random_plan(4, 1).more(1)
    larger.save(tmp_path / "plan.safetensors")
    loaded = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert loaded.fingerprint == larger.fingerprint
    assert loaded.variations == larger.variations
    assert random_plan(4, 1).fingerprint in loaded.grown_from


def test_a_list_says_nothing_of_variations():
    plan = random_plan(4, 2)
    rows = np.random.default_rng(2).normal(size=(4, 3)) + 1.0
    again = hsd.compile(plan.prompts, 0.9, embeddings=rows, steps=10, seeds=5, extend=plan.more(1))
    assert again.n_prompts == 8
    assert again.kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: plan.more(0), "n"),
        (lambda plan: plan.more(1, depth=1.0), "depth is 1.0"),
        (lambda plan: plan.more(1, depth="much"), "depth has to be a number"),
        (lambda plan: plan.more(1, [9]), "prompt 9 is not in the plan, which has 4"),
        (lambda plan: plan.more(1, [0]).more(1, [4]), "prompt 4 is a variation of prompt 0"),
        (lambda plan: random_plan(4, 0, tau=0.0).more(1), "tau is 0"),
    ],
)
def test_what_means_nothing(change, says):
    with pytest.raises((ValueError, TypeError), match=says):
        change(random_plan(4, 0))


# ---------------------------------------------------------------------------------------------------------- the images


def model_with(scheduler):
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=1.0)
    return model.with_scheduler(scheduler.from_config(model.scheduler().config))


def latents_with_fresh_noise(model, plan):
    conditioning, sampler = encoded(model, plan.prompts, plan.seeds), model.sampler(plan.request["steps"])
    program = program_of(plan, model, conditioning, 4)
    executor = Executor(plan, program, model, conditioning, sampler, fresh=fresh_noise(plan, model, sampler))
    return finished_by(executor)


def continued(model, plan, seeds, variation, step, stochastic):
    """The latent of a variation of a plan of one prompt, by the scheduler and the network themselves."""
    scheduler = model.scheduler()
    scheduler.set_timesteps(plan.n_steps)
    row = {name: value[None] for name, value in encoded(model, plan.prompts[:1], seeds[:1]).mean(np.array([0])).items()}
    generator = torch.Generator().manual_seed(int(seeds[0]))
    latent = torch.randn((1, *model.latent_shape()), generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad():
        for k, timestep in enumerate(scheduler.timesteps):
            if k == step:
                generator = torch.Generator().manual_seed(int(seeds[variation]))
                if not stochastic:
                    noise = torch.randn(latent.shape, generator=generator)
                    latent = scheduler.add_noise(x0, noise, timestep[None])  # noqa: F821 - of the step before
            output, _ = model.denoise(scheduler.scale_model_input(latent, timestep), timestep[None], row)
            told = scheduler.step(output, timestep, latent, **({"generator": generator} if stochastic else {}))
            latent, x0 = told.prev_sample, told.pred_original_sample  # noqa: F841
    return latent


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DDPMScheduler])
def test_fresh_noise_on_what_the_last_shared_step_predicts(scheduler):
    model = model_with(scheduler)
    plan = hsd.compile(PROMPTS[:1], 0.9, model=model, steps=8, seeds=3).more(2, depth=0.5)
    step = fork_step(plan.phi, 0.5)
    found = latents_with_fresh_noise(model, plan)
    for variation in (1, 2):
        expected = continued(model, plan, plan.seeds, variation, step, scheduler is DDPMScheduler)
        difference = (found[variation] - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4
    assert (found[1] - found[2]).abs().max() > 0.01 * found[1].abs().max()


def test_refused_before_the_folder_changes(tmp_path):
    model = model_with(UniPCMultistepScheduler)
    plan = hsd.compile(PROMPTS[:2], 0.9, model=model, steps=6)
    hsd.generate(plan, model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UnsupportedScheduler, match="UniPC.* cannot make variations.*remembers the noise"):
        hsd.generate(plan.more(1), model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_trunks_of_variations(tmp_path):
    model = model_with(DDIMScheduler)
    plan = hsd.compile(PROMPTS[:3], 0.9, model=model, steps=8)
    step = fork_step(plan.phi, 0.7)
    for name, kept in (("with", True), ("without", False)):
        hsd.generate(plan, model, tmp_path / name, keep_trunks=kept)
        first = hsd.generate(plan.more(1), model, tmp_path / name, keep_trunks=kept)
        second = hsd.generate(plan.more(1).more(2), model, tmp_path / name, keep_trunks=kept)
        assert first.images == second.images == 3
        if kept:
            assert second.node_steps == 3 * (8 - step)
        else:
            assert second.node_steps > 3 * (8 - step)
    for path in sorted((tmp_path / "without").glob("*.png")):
        pixels = [np.asarray(hsd_image(tmp_path / name / path.name), dtype=int) for name in ("with", "without")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, path.name


def hsd_image(path):
    import PIL.Image

    return PIL.Image.open(path)
