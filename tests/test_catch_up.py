"""Catch-up conditioning: the weights by the running mean, every family by Algorithm 1, and where it changes nothing."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import hsd
import tiny
from algorithm1 import caught_up
from families import EVERY, Family
from families.measure import sharing
from helpers import encoded, executor_of, finished_by, latents_of, mean_difference
from hsd import cli
from hsd.generation.session import Options, Session
from hsd.models import Adapter, registry
from hsd.models.generic import Generic
from hsd.models.guided import GuidedAdapter
from hsd.models.modular.adapter import Modular
from hsd.models.prior import TextPrior
from hsd.planning.catch_up import catch_up_weights, differences_left
from hsd.replay.catch_up import History, caught_up_fields
from hsd.tuning.batching import slot_bytes

ON = {"catch_up": 1.0}
families = pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
BAD = [
    (-0.5, ValueError, "catch_up is -0.5"),
    (float("nan"), ValueError, "catch_up is nan"),
    (float("inf"), ValueError, "catch_up is inf"),
    (10**400, ValueError, "catch_up is 10000"),
    (True, TypeError, "catch_up .*not True"),
    ("1", TypeError, "catch_up .*not '1'"),
    ([1.0], TypeError, r"catch_up .*not \[1.0\]"),
]
UNSTORABLE = (BAD[1][0], float("inf"))
"""nan and inf: no file can hold them, because JSON has none."""


# -- the numbers


@given(
    steps=st.integers(2, 24),
    begins=st.lists(st.integers(1, 23), max_size=5),
    gamma=st.floats(0.0, 4.0),
    seed=st.integers(0, 1000),
)
def test_the_weights_are_those_of_the_running_mean(steps, begins, gamma, seed):
    """A path of several segments: what it is given at each step, by the weights and by a plain mean of all before."""
    edges = [0, *sorted({k for k in begins if k < steps}), steps]
    weights, left = catch_up_weights(steps, gamma).astype(np.float64), differences_left(steps, gamma)
    means = np.random.default_rng(seed).normal(size=len(edges) - 1)
    ours, plain, before = [], [], 0.0
    for mean, (begin, end) in zip(means, pairwise(edges), strict=True):
        difference = mean - before if begin else 0.0
        ours += [mean + weights[begin, k] * difference for k in range(begin, end)]
        before = mean - left[begin, end] * difference
        for _ in range(begin, end):
            plain.append(mean + gamma * (mean - np.mean(plain)) if plain else mean)
    # Both lose digits where gamma is large: terms of either sign cancel.
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())


def test_weights_by_hand():
    """gamma = 1, from step 1: what was missed in one step is made up for in the next, and it is even from then on."""
    assert catch_up_weights(4, 1.0)[1].tolist() == [0, 1, 0, 0]
    assert catch_up_weights(4, 1.0)[2].tolist() == pytest.approx([0, 0, 1, 1 / 3])
    assert not catch_up_weights(4, 1.0)[0].any()
    assert not catch_up_weights(4, 0.0).any()


# -- every family


@families
@pytest.mark.parametrize(("gamma", "guided"), [(1.0, True), (0.6, False)])
def test_sharing_with_catch_up_is_algorithm_1(family: Family, gamma, guided):
    if family.name == "karlo" and not guided:
        pytest.skip("its prior is guided with its decoder, and the conditioning here is that of a guided prior")
    settings = family.guided if guided else {**family.guided, **family.unguided}
    found = sharing(family, None, 0.8, catch_up=gamma, settings=settings)
    assert len(set(found.plan.segments["first_step"])) > 2  # segments that begin late have some above them that do too
    assert found.rows == found.expected_rows == found.plan.node_steps
    assert found.error < 10 * family.tolerance


def test_the_witness_tells_catch_up_from_none():
    family = next(family for family in EVERY if family.name == "kandinsky-2.2")
    off, on = (sharing(family, None, 0.8, catch_up=gamma) for gamma in (0.0, 1.0))
    for i, latent in on.expected.items():
        assert (off.ours[i] - latent).abs().max() > 1e-3 * latent.abs().max()


def test_the_witness_with_tokens_of_different_lengths():
    """A position that no entry has is that of the mean."""
    before = [torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0]]])]
    now = torch.tensor([[[4.0], [4.0], [7.0]]])
    assert caught_up(now, before, 0.5).flatten().tolist() == [4 + 0.5 * (4 - 2), 4 + 0.5 * (4 - 2), 7]


# -- where nothing changes


def test_without_sharing_it_is_off(model):
    plan = hsd.compile(["a cat", "a dog", "a cat"], 0.0, model=model, steps=4)
    executor = executor_of(plan, model, ON)
    buffers = executor.buffers
    assert (buffers.differences, buffers.weights, len(buffers.table)) == ({}, None, 3)
    expected = latents_of(plan, model)
    assert all(torch.equal(latent, expected[i]) for i, latent in finished_by(executor).items())


def test_zero_allocates_nothing(plan, model):
    executor = executor_of(plan, model)
    buffers = executor.buffers
    assert (buffers.differences, buffers.weights, len(buffers.table)) == ({}, None, 3)
    assert executor._feeder._history is None


def test_a_prompt_that_shares_nothing_is_not_changed(model):
    """Beside others that do. One lane a call, so that equal numbers are computed equally."""
    plan = hsd.compile(["a", "b", "c"], 0.5, embeddings=np.array([[1, 0.1], [1, -0.1], [-1, 0.0]]), steps=5)
    assert plan.active(0).tolist() in ([0, 0, 1], [1, 1, 0])
    off, on = (latents_of(plan, model, {"catch_up": gamma}, batch_size=1) for gamma in (0.0, 1.0))
    assert torch.equal(off[2], on[2])
    assert not torch.allclose(off[0], on[0])
    assert not torch.allclose(off[1], on[1])


def test_only_what_differs_in_a_cluster_has_a_second_row(model):
    """Prompts with another negative prompt are in trees of their own."""
    own = [{}, {}, {"negative_prompt": "blurry"}, {"negative_prompt": "blurry"}]
    vectors = np.eye(4) + 1
    plan = hsd.compile(["a cat", "a dog", "the sea", "a hill"], 9.0, embeddings=vectors, steps=4, settings=own)
    variants = hsd.models.variants_of(model, plan.settings)
    conditioning = hsd.models.encode.encode(variants, plan.setting, plan.prompts, plan.seeds)
    _, differing = conditioning.split(plan.covered())
    assert "negative_prompt_embeds" in differing.fields
    assert caught_up_fields(plan, differing, 1.0) == ["prompt_embeds"]


# -- invariance


@pytest.fixture(scope="module")
def reference(plan, model):
    latents = latents_of(plan, model, ON, batch_size=len(plan.prompts))
    off = latents_of(plan, model, batch_size=len(plan.prompts))
    moved = [i for i in latents if (latents[i] - off[i]).abs().max() > 5e-4 * off[i].abs().max()]
    assert sorted(moved) == list(range(8))  # the repeat is alone in its tree
    return latents


def assert_equal(latents, reference, prompts=None):
    assert sorted(latents) == sorted(reference if prompts is None else prompts)
    for i, latent in latents.items():
        assert (latent - reference[i]).abs().max() < 1e-4 * reference[i].abs().max(), i


@pytest.mark.parametrize("order", ["depth", "breadth"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batch_size_and_order(plan, model, reference, batch_size, order):
    assert_equal(latents_of(plan, model, ON, batch_size=batch_size, order=order), reference)


@pytest.mark.parametrize("extra", [0, 2])
def test_max_slots(plan, model, reference, extra):
    slots = plan._core.least_slots() + extra
    assert_equal(latents_of(plan, model, ON, batch_size=4, max_slots=slots), reference)


def test_shards_and_single_prompts(plan, model, reference):
    for part in (*plan.shard(3), *(plan.prune([i]) for i in range(plan.n_prompts))):
        assert_equal(latents_of(part, model, ON), reference, part.kept.tolist())


@pytest.mark.parametrize("chunk", [1, 3])
def test_calls_in_chunks(plan, model, reference, chunk, monkeypatch):
    monkeypatch.setattr("hsd.replay.feed.CHUNK", chunk)
    assert_equal(latents_of(plan, model, ON, batch_size=5), reference)


def test_padded_calls(plan, model, reference):
    class Inline:
        """In place of CUDA graphs: every call runs from the buffers, and only from them."""

        def run(self, size, work):
            work(size)

    executor = executor_of(plan, model, ON, batch_size=7)
    executor._graphs = Inline()
    assert_equal(finished_by(executor), reference)


def test_calls_that_are_cut_when_memory_runs_out(plan, model, reference, monkeypatch):
    whole = type(model).denoise

    def denoise(self, latents, timestep, rows):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, latents, timestep, rows)

    monkeypatch.setattr(type(model), "denoise", denoise)
    with pytest.warns(UserWarning, match="out of memory with"):
        assert_equal(latents_of(plan, model, ON, batch_size=8), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """A difference is stored like its row; sums are float32. Ragged tokens keep zeros where they are padded."""
    model = hsd.load(tiny.pixart_sigma().to(dtype), height=32, width=32, use_resolution_binning=False)
    prompts = ["a cat", "a much longer prompt about a dog", "two birds"]
    plan = hsd.compile(prompts, 9.0, embeddings=np.eye(3) + 1, steps=4)
    conditioning = encoded(model, plan.prompts, plan.seeds)
    seen = []
    inner = type(model).denoise

    def denoise(latents, timestep, rows):
        seen.append(rows)
        return inner(model, latents, timestep, rows)

    model.__dict__["denoise"] = denoise
    latents_of(plan, model, ON, batch_size=1)
    trunk, own = (conditioning.mean(np.array(which)) for which in ([0, 1, 2], [0]))
    mask, begin = own["prompt_embeds_mask"], plan.segments["first_step"].max()
    late = [rows for rows in seen if torch.equal(rows["prompt_embeds_mask"][0], mask)]
    assert plan.counts().tolist() == [1] * begin + [3] * (4 - begin)
    assert len(late) == 4 - begin
    assert not mask.all()
    mean, before = own["prompt_embeds"].float(), trunk["prompt_embeds"].float()
    for rows in late:
        assert rows["prompt_embeds"].dtype == dtype
        assert not rows["prompt_embeds"][0][~mask].any()
    expected = 2 * mean - before  # gamma = 1, at the first step after the trunk
    error = (late[0]["prompt_embeds"][0].float() - expected)[mask].abs().max()
    assert error < 2 * torch.finfo(dtype).eps * expected[mask].abs().max()
    assert (expected - mean)[mask].abs().max() > 0.1 * expected[mask].abs().max()


# -- what is kept on the host


def test_histories_end_with_the_last_child(plan, model):
    conditioning = encoded(model, plan.prompts, plan.seeds)
    history = History(plan, ["prompt_embeds"], 1.0)
    order = plan.tree.leaf_order
    kept = []
    for segment, row in enumerate(plan.segments):
        means = conditioning.mean(order[row["leaf_begin"] : row["leaf_end"]])
        differences = history.begin(segment, means)
        assert set(differences) == (set() if row["first_step"] == 0 else {"prompt_embeds"})
        kept.append(len(history))
    assert max(kept) > 1
    assert kept[-1] == 0
    assert len(executor_of(plan, model, ON)._feeder._history) == 0


def test_a_run_ends_with_nothing_kept(plan, model):
    executor = executor_of(plan, model, ON, batch_size=2)
    kept = [len(executor._feeder._history) for _ in executor.run()]
    assert 0 < max(kept) <= executor.program.n_slots
    assert kept[-1] == 0


def test_memory_of_a_slot(plan, model):
    conditioning, sampler = encoded(model, plan.prompts, plan.seeds), model.sampler(6)
    for gamma in (0.0, 1.0):
        executor = executor_of(plan, model, {"catch_up": gamma})
        buffers = (executor.state, *executor.buffers.rows.values(), *executor.buffers.differences.values())
        per_slot = sum(buffer[0].nbytes for buffer in buffers)
        assert slot_bytes(model, conditioning, sampler, plan, gamma) == per_slot


# -- plans


def plan_with(catch_up=None, **more):
    return hsd.compile(["a", "b", "c"], 9.0, embeddings=np.eye(3) + 1, steps=4, catch_up=catch_up, **more)


@pytest.mark.parametrize("gamma", [None, 0.0, 1.5, np.float32(0.5), 2])
def test_a_plan_keeps_it(tmp_path, gamma):
    plan = plan_with(gamma)
    plan.save(tmp_path / "plan.safetensors")
    again = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert again.catch_up == plan.catch_up == gamma
    assert again.request["catch_up"] is None or type(again.request["catch_up"]) is float
    assert again.fingerprint == plan.fingerprint == plan.prune([1]).fingerprint
    assert plan.shard(2)[1].catch_up == gamma


def test_old_plan_files_are_without(tmp_path):
    plan = plan_with()
    fingerprint = plan.fingerprint
    del plan.request["catch_up"]
    plan.save(tmp_path / "plan.safetensors")
    again = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert again.catch_up == 0.0
    assert again.fingerprint == fingerprint
    # 0 is what plans were before; None is the model's default, which the identity of an image folder holds.
    assert plan_with(0.0).fingerprint == fingerprint != plan_with(1.0).fingerprint


@pytest.mark.parametrize(("value", "error", "says"), BAD)
def test_bad_values(value, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(["a"], catch_up=value)


def test_one_that_overflows():
    with pytest.raises(ValueError, match="catch_up is 1e\\+30: over 4 steps"):
        plan_with(1e30)
    assert plan_with(50.0).catch_up == 50.0


@pytest.mark.parametrize("value", [value for value, _, _ in BAD if value not in UNSTORABLE])
def test_bad_values_in_files(tmp_path, value):
    plan = plan_with()
    plan.request["catch_up"] = value
    plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(hsd.Error, match=r"is not a plan that can be used: .*(catch_up|out of range)"):
        hsd.Plan.load(tmp_path / "plan.safetensors")


def test_reuse(tmp_path, model):
    request = {"tau": 0.5, "model": model, "steps": 3}
    first = hsd.compile(["a", "b"], catch_up=1.0, **request)
    first.save(tmp_path / "plan.safetensors")
    seen = []

    def compiled(**more):
        seen.clear()
        return hsd.compile(["a", "b"], **request, **more, reuse=tmp_path, progress=lambda *event: seen.append(event))

    assert compiled(catch_up=1.0).catch_up == 1.0
    assert not seen
    for gamma in (None, 0.0, 2.0):
        assert compiled(catch_up=gamma).catch_up == gamma
        assert seen
    del first.request["catch_up"]  # a run from before there was catch-up goes on as it began
    first.save(tmp_path / "plan.safetensors")
    assert compiled().catch_up == 0.0
    assert not seen


# -- sessions


def test_defaults():
    """On for every family that has an adapter here; off where nobody knows what a row of conditioning holds."""
    families = [registry._built_in(name, place) for name, place in registry.BUILT_IN.items()]
    assert {model.default_catch_up for model in families} == {1.0}
    assert {model.default_catch_up for model in (Adapter, GuidedAdapter, Generic, Modular, TextPrior)} == {0.0}


@pytest.fixture(scope="module")
def kandinsky():
    return hsd.load(tiny.k22_combined(), height=64, width=64, prior_steps=2)


PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea"]


@pytest.mark.parametrize(("asked", "used"), [(None, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_a_session_takes_the_plans_or_the_models(kandinsky, asked, used):
    plan = hsd.compile(PROMPTS, 9.0, model=kandinsky, steps=4, catch_up=asked)
    session = Session(plan, kandinsky, Options(batch_size=3))
    assert session.catch_up == used
    images = {image.index: image.pil.tobytes() for image in session.images(plan, None)}
    explicit = hsd.compile(PROMPTS, 9.0, model=kandinsky, steps=4, catch_up=used)
    assert images == {image.index: image.pil.tobytes() for image in hsd.stream(explicit, kandinsky, batch_size=3)}
    off = hsd.compile(PROMPTS, 9.0, model=kandinsky, steps=4, catch_up=0.0)
    same = [images[image.index] == image.pil.tobytes() for image in hsd.stream(off, kandinsky, batch_size=3)]
    assert all(same) == (used == 0.0)


def test_a_run_goes_on_with_the_same(kandinsky, tmp_path):
    plan = hsd.compile(PROMPTS, 9.0, model=kandinsky, steps=4)
    hsd.generate(plan, kandinsky, tmp_path, batch_size=1, progress=False)
    before = {path.name: PIL.Image.open(path).copy() for path in tmp_path.glob("*.png")}
    for name in list(before)[1:3]:
        (tmp_path / name).unlink()
    run = hsd.generate(hsd.Plan.load(tmp_path / "plan.safetensors"), kandinsky, tmp_path, batch_size=1, progress=False)
    assert run.images == 2
    assert all(mean_difference(PIL.Image.open(tmp_path / name), image) < 0.5 for name, image in before.items())
    runs = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert [one["catch_up"] for one in runs] == [1.0, 1.0]


def test_images_with_and_without_do_not_mix(kandinsky, tmp_path, monkeypatch):
    """The model's default is no part of the plan, so the folder holds it."""
    plan = hsd.compile(PROMPTS[:2], 9.0, model=kandinsky, steps=3)
    monkeypatch.setattr(type(kandinsky), "default_catch_up", 0.0)
    hsd.generate(plan, kandinsky, tmp_path, progress=False)
    monkeypatch.undo()
    advice = r"catch_up: 0.0 before, 1.0 now, a plan that was compiled with catch_up=0 \(--catch-up 0\) has none"
    with pytest.raises(hsd.PlanMismatch, match=advice):
        hsd.generate(plan, kandinsky, tmp_path, progress=False)
    off = hsd.compile(PROMPTS[:2], 9.0, model=kandinsky, steps=3, catch_up=0.0)
    assert hsd.generate(off, kandinsky, tmp_path, progress=False).existing == 2


def test_automatic_batch_size(kandinsky):
    plan = hsd.compile(PROMPTS, 9.0, model=kandinsky, steps=4)
    assert len(list(hsd.stream(plan, kandinsky, batch_size="auto"))) == 4


def test_command_line(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "plan.safetensors"
    prompts.write_text("a cat\na dog\n")
    command = ["plan", str(prompts), "--model", "stand-in", "--steps", "4", "--save", str(out)]
    for more, gamma in (([], None), (["--catch-up", "0.5"], 0.5)):
        result = CliRunner().invoke(cli.app, [*command, *more])
        assert result.exit_code == 0, result.output
        assert hsd.Plan.load(out).catch_up == gamma
    assert "catch_up is -1.0" in str(CliRunner().invoke(cli.app, [*command, "--catch-up", "-1"]).exception)


def test_a_file_with_a_gamma_that_overflows_is_refused_before_encoding(tmp_path):
    plan = hsd.compile(["a", "b"], 0.5, steps=4, catch_up=0.5)
    plan.request["catch_up"] = 1e30
    plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(ValueError, match="catch_up is 1e\\+30: over 4 steps"):
        hsd.stream(hsd.Plan.load(tmp_path / "plan.safetensors"), tiny.stable_diffusion(), height=32, width=32)
