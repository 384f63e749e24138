"""The images depend on prompts, seeds, tau and model, not on how the work is divided."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import hsd
import tiny
from helpers import encoded, latents_of
from hsd.replay.executor import Executor


@pytest.fixture(scope="module")
def reference(plan, model):
    assert 0.1 < plan.savings < 0.9
    assert plan.counts()[0] >= 2  # several roots: also the repeated prompt's
    return latents_of(plan, model, batch_size=len(plan.prompts))


def assert_equal(latents, reference, prompts=None):
    assert sorted(latents) == sorted(reference if prompts is None else prompts)
    for i, latent in latents.items():
        assert (latent - reference[i]).abs().max() < 1e-4 * reference[i].abs().max(), i


@pytest.mark.parametrize("order", ["depth", "breadth"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_batch_size_and_order(plan, model, reference, batch_size, order):
    assert_equal(latents_of(plan, model, batch_size=batch_size, order=order), reference)


@pytest.mark.parametrize("order", ["depth", "breadth"])
@pytest.mark.parametrize("extra", [0, 1, 3])
def test_max_slots(plan, model, reference, order, extra):
    slots = plan._core.least_slots() + extra
    assert plan.program(4, order, slots).n_slots <= slots
    assert_equal(latents_of(plan, model, batch_size=4, order=order, max_slots=slots), reference)


@pytest.mark.parametrize("n", [2, 3, 9])
def test_shards(plan, model, reference, n):
    made = {}
    for shard in plan.shard(n):
        part = latents_of(shard, model)
        assert not set(part) & set(made)
        made |= part
    assert_equal(made, reference)


def test_prune_to_each_single_prompt(plan, model, reference):
    for i in range(plan.n_prompts):
        assert_equal(latents_of(plan.prune([i]), model), reference, [i])


def test_shared_noise_survives_pruning(model):
    plan = hsd.compile(["a cat", "a dog", "the sea"], 0.2, model=model, steps=4, noise="shared")
    reference = latents_of(plan, model)
    assert_equal(latents_of(plan.prune([2]), model), reference, [2])


def test_saved_and_loaded(plan, model, reference, tmp_path):
    plan.save(tmp_path / "plan.safetensors")
    assert_equal(latents_of(hsd.Plan.load(tmp_path / "plan.safetensors"), model), reference)


@pytest.mark.parametrize("calls", [1, 3])
def test_calls_come_in_chunks(plan, model, reference, calls, monkeypatch):
    whole = latents_of(plan, model)
    monkeypatch.setattr("hsd.replay.feed.CHUNK", calls)
    in_chunks = latents_of(plan, model)
    assert all(torch.equal(in_chunks[i], latent) for i, latent in whole.items())
    assert_equal(in_chunks, reference)


def test_the_executor_never_asks_for_the_whole_table(plan, model):
    program = plan.program(4)
    names = ("n_slots", "rows", "max_rows")
    streamed = SimpleNamespace(chunks=program.chunks, **{name: getattr(program, name) for name in names})
    conditioning = encoded(model, plan.prompts, plan.seeds)
    executor = Executor(plan, streamed, model, conditioning, model.sampler(plan.request["steps"]))
    assert sum(lanes for lanes, _ in executor.run()) == plan.node_steps


def test_a_plan_is_lowered_once(plan, model, monkeypatch):
    lowered = []
    lower = hsd.Plan.program
    monkeypatch.setattr(
        hsd.Plan, "program", lambda self, *how, **more: lowered.append(how) or lower(self, *how, **more)
    )
    images = hsd.stream(plan, model, batch_size=3)
    assert lowered == []
    assert len(list(images)) == plan.n_prompts
    assert lowered == [(3, "depth", None)]


def test_two_runs_of_one_executor_class_do_not_touch_the_pipeline(model, plan):
    scheduler = model.pipe.scheduler
    before = {k: v for k, v in vars(scheduler).items() if not isinstance(v, torch.Tensor)}
    latents_of(plan, model)
    after = {k: v for k, v in vars(scheduler).items() if not isinstance(v, torch.Tensor)}
    assert before == after


def test_repeats_are_different_images_with_their_own_trunk(model):
    plan = hsd.compile(["a cat", "a dog"], 100.0, model=model, steps=4, images_per_prompt=3)
    assert plan.prompts == ["a cat"] * 3 + ["a dog"] * 3
    assert plan.counts().tolist() == [3, 3, 3, 6]  # one root per replica, for any tau
    latents = latents_of(plan, model)
    for i in range(3):
        for j in range(i):
            assert (latents[i] - latents[j]).abs().max() > 0.1


def test_kandinsky_images_do_not_depend_on_the_batch(model):
    model = hsd.load(tiny.k22_combined(), height=64, width=64, prior_steps=2)
    plan = hsd.compile(["a cat", "a dog", "the sea", "a cat on a mat"], 0.5, model=model, steps=4)
    assert_equal(latents_of(plan, model, batch_size=1), latents_of(plan, model, batch_size=3, order="breadth"))


def test_a_denoiser_that_takes_one_timestep_a_call(plan, model, reference, monkeypatch):
    """It never gets two in one call, and the images are the same."""
    evaluate, steps = type(model).denoise, set()

    def strict(self, latents, timestep, rows):
        assert len(timestep.unique()) == 1
        steps.add(float(timestep[0]))
        return evaluate(self, latents, timestep, rows)

    monkeypatch.setattr(type(model), "mixed_timesteps", False)
    monkeypatch.setattr(type(model), "denoise", strict)
    expected = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    assert len(steps) == plan.n_steps
    assert len(expected) == plan.n_prompts
    assert_equal(latents_of(plan, model, batch_size=3, mixed_steps=False), reference)


def test_conditioning_on_disk(plan, model, tmp_path, monkeypatch):
    """Images are equal to the last bit wherever the encoded prompts are stored."""
    plan.save(tmp_path / "plan.safetensors")  # a loaded plan has nothing encoded yet
    in_memory, on_disk = (
        {
            image.index: image.pil.tobytes()
            for image in hsd.stream(hsd.Plan.load(tmp_path / "plan.safetensors"), model, **o)
        }
        for o in ({}, {"conditioning_memory": 0})
    )
    assert in_memory == on_disk


def test_a_shard_encodes_what_its_clusters_cover(plan, model, tmp_path, monkeypatch):
    plan.save(tmp_path / "plan.safetensors")
    part = hsd.Plan.load(tmp_path / "plan.safetensors").prune([0])
    covered = part.covered()
    assert 0 in covered
    assert 1 < len(covered) < plan.n_prompts
    seen = []
    whole = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, batch: seen.extend(batch.prompts) or whole(self, batch))
    (image,) = hsd.stream(part, model)
    assert sorted(seen) == sorted(plan.prompts[i] for i in covered)
    assert image.index == 0
