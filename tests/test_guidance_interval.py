"""Guidance in a part of the run: the images that diffusers and a plain Algorithm 1 give, and calls that stay full."""

from __future__ import annotations

import contextlib
import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hsd
import tiny
from families import FAMILIES, Family
from families.measure import PROMPTS, SEEDS, sharing, with_scheduler
from helpers import executor_of, finished_by, fresh_generators, latents_of, make_scheduler, mean_difference
from hsd.models import Guidance
from hsd.replay.executor import Executor
from hsd.replay.layout import CONDITIONAL, PICK, UNCONDITIONAL, Layout
from hsd.tuning.batching import choose
from hsd.tuning.curve import Curve
from hsd.tuning.passes import cost

EMBEDDINGS = np.random.default_rng(2).normal(size=(3, 8))[[0, 0, 0, 1, 1, 2, 2, 2]]
EMBEDDINGS = EMBEDDINGS + 0.4 * np.random.default_rng(3).normal(size=EMBEDDINGS.shape)
WORDS = ["a cat", "a dog", "a fox", "the sea", "a lake", "one bird", "two birds", "three birds"]

GUIDED = [family for family in FAMILIES if family.name != "flux-2"]
families = pytest.mark.parametrize("family", GUIDED, ids=lambda family: family.name)


def settings_of(family: Family):
    return family.settings(family.guided, family.size)


def load(interval=(0.25, 0.75), **settings):
    pipe = tiny.stable_diffusion(make_scheduler("ddpm", tiny.sd_ddim().config))
    return hsd.load(pipe, height=32, width=32, guidance_interval=interval, **settings)


def compiled(model, tau=0.8, steps=8):
    return hsd.compile(WORDS, tau, embeddings=EMBEDDINGS, model=model, steps=steps)


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def plan(model):
    return compiled(model)


@pytest.fixture(scope="module")
def reference(plan, model):
    """One lane per call: no two lanes can meet."""
    return latents_of(plan, model, batch_size=1)


def assert_near(latents, expected, share=2e-5):
    assert sorted(latents) == sorted(expected)
    for i, latent in expected.items():
        assert (latents[i] - latent).abs().max() <= share * latent.abs().max()


# -- witnesses


@families
def test_sharing_is_algorithm_1_with_guidance_in_a_part(family: Family):
    interval = (0.2, 0.7)
    found = sharing(family, None, 1.2, interval)
    rows = [2 if interval[0] <= k / found.plan.n_steps < interval[1] else 1 for k in range(found.plan.n_steps)]
    assert len(set(rows)) == 2
    assert found.network_rows == found.plan.counts() @ rows
    assert found.error < 10 * family.tolerance


def test_that_check_can_fail():
    family = next(family for family in GUIDED if family.name == "stable-diffusion")
    found = sharing(family, None, 1.2, (0.0, 0.6))
    model = hsd.load(family.build(), **settings_of(family), guidance_interval=(0.0, 0.8))
    other = latents_of(found.plan, model)
    assert max((other[i] - latent).abs().max() for i, latent in found.expected.items()) > 1e-2


HALVES = {
    "stable-diffusion": ("prompt_embeds",),
    "stable-diffusion-xl": ("prompt_embeds", "add_text_embeds", "add_time_ids"),
    "stable-diffusion-3": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Tensors of a pipeline's loop that hold both halves, unconditional first."""


@pytest.mark.parametrize("scheduler", [None, "dpm++2m", "euler-ancestral"])
@pytest.mark.parametrize("name", HALVES)
def test_the_pipeline_gives_these_images_if_a_callback_ends_its_guidance(name, scheduler):
    family = next(family for family in GUIDED if family.name == name)
    if scheduler is not None and scheduler not in family.schedulers:
        pytest.skip("the pipeline cannot step this scheduler")
    steps, end = 5, 0.6
    pipe = with_scheduler(family, scheduler)

    def end_guidance(pipe, i, t, tensors):
        if (i + 1) / steps >= end and pipe._guidance_scale > 1:
            pipe._guidance_scale = 1.0
            return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}
        return tensors

    callback = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": list(HALVES[name])}
    settings = {**family.guided, **callback}
    stock = family.call(pipe, PROMPTS, fresh_generators(SEEDS), settings, family.size, steps, "latent").float()
    model = hsd.load(pipe, **settings_of(family), guidance_interval=(0.0, end))
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=steps, seeds=SEEDS)
    ours = torch.cat([latent for _, latent in sorted(latents_of(plan, model, batch_size=2).items())])
    tolerance = max(family.tolerance, family.lane_tolerance)
    assert (ours - stock).abs().max() <= tolerance * stock.abs().max()
    always = hsd.load(pipe, **settings_of(family))
    other = torch.cat([latent for _, latent in sorted(latents_of(plan, always, batch_size=2).items())])
    assert (other - stock).abs().max() > 100 * tolerance * stock.abs().max()  # the check can fail


@families
def test_an_unguided_lane_is_what_the_model_gives_without_guidance(family: Family):
    """Also beside guided lanes, and for guidance that is more than a sum: rescaled, normalised, truncated."""
    extra = {
        "stable-diffusion": {"guidance_rescale": 0.7},
        "stable-diffusion-xl": {"guidance_rescale": 0.7},
        "z-image": {"cfg_normalization": 0.5},
    }.get(family.name, {})
    pipe = family.build()
    scale = "true_cfg_scale" if "true_cfg_scale" in family.guided else "guidance_scale"
    settings = {**family.settings({**family.guided, **extra}, family.size)}
    neutral = {**settings, scale: family.unguided[scale]}
    if family.name == "karlo":
        neutral["prior_guidance_scale"] = 1.0
    rows, outputs = {}, {}
    for name, own in (("guided", settings), ("unguided", neutral)):
        model = hsd.load(family.loadable(pipe), **own)
        texts = WORDS[:3] if model.one_length else PROMPTS  # three lanes of one call
        plan = hsd.compile(texts, 0.0, embeddings=EMBEDDINGS[:3], model=model, steps=family.steps, seeds=SEEDS)
        executor = executor_of(plan, model, batch_size=3)
        seen = rows.setdefault(name, [])
        original = type(model).denoise

        def watched(self, latents, t, given, original=original, seen=seen):
            seen.append((latents, t, given))
            return original(self, latents, t, given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "denoise", watched)
            next(executor.run())
        outputs[name] = model
    (latents, t, given), (_, _, plain) = rows["guided"][0], rows["unguided"][0]
    if family.name == "karlo":  # its prior is guided or not as well, so the embedding differs
        plain = {**plain, "image_embeds": given["image_embeds"]}
    layout = Layout(np.array([2, 1]), latents.device).of(torch.tensor([1, 0, 1]), torch.ones(3, dtype=torch.bool), 4)
    with torch.no_grad():
        mixed, variance = outputs["guided"].denoise(latents, t, {**given, **layout})
        full, _ = outputs["guided"].denoise(latents, t, given)
        alone, own_variance = outputs["unguided"].denoise(latents, t, plain)
    for lane, expected in enumerate((alone, full, alone)):
        torch.testing.assert_close(mixed[lane], expected[lane], atol=family.lane_tolerance, rtol=family.lane_tolerance)
    assert (alone[0] - full[0]).abs().max() > 1e-3
    if variance is not None:
        torch.testing.assert_close(variance, own_variance, atol=family.lane_tolerance, rtol=family.lane_tolerance)


# -- what the images do not depend on


def test_guided_and_unguided_lanes_meet_in_calls_that_stay_full(model):
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    plan = hsd.compile([f"prompt {i}" for i in range(60)], 0.8, embeddings=vectors, steps=8)
    program = plan.program(3, rows=model.rows_by_step(plan.n_steps))
    assert program.calls.shape == (program.n_calls, 6)
    assert (program.batch_size, program.max_lanes, program.max_rows) == (3, 6, 6)
    rows = np.where(program.calls["segment"] >= 0, program.rows[program.calls["step"]], 0)
    assert np.array_equal(rows.sum(1), program.rows_per_call)
    assert program.rows_per_call.max() == 6
    assert any({1, 2} <= set(row.tolist()) for row in rows)  # both in one call
    assert program.n_rows == rows.sum() == plan.counts() @ program.rows
    assert program.occupancy > 0.95


@pytest.mark.parametrize("order", ["depth", "breadth"])
@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_batch_size_and_order(plan, model, reference, batch_size, order):
    assert_near(latents_of(plan, model, batch_size=batch_size, order=order), reference)


def test_slots_shards_and_calls_of_one_step(plan, model, reference):
    least = plan.program(1).n_slots
    assert_near(latents_of(plan, model, batch_size=4, max_slots=least), reference)
    assert_near(latents_of(plan, model, batch_size=3, mixed_steps=False), reference)
    shards = [latents_of(part, model, batch_size=2) for part in plan.shard(3)]
    assert_near({i: latent for shard in shards for i, latent in shard.items()}, reference)
    assert_near(latents_of(plan.prune([1, 6]), model), {i: reference[i] for i in (1, 6)})


def test_padded_calls(plan, model, reference):
    """What CUDA graphs capture: lanes and rows are padded to one number, and all shapes are the buffers'."""
    executor = executor_of(plan, model, batch_size=3)
    sizes = []

    @contextlib.contextmanager
    def for_lanes(size):
        sizes.append(size)
        yield

    executor._compiled = SimpleNamespace(size=6, for_lanes=for_lanes)
    assert_near(finished_by(executor), reference)
    assert set(sizes) <= {1, 2, 3, 4, 6}
    assert sizes.count(6) > len(sizes) / 3


def test_out_of_memory_cuts_calls_by_rows(plan, model, reference, monkeypatch):
    whole, most = type(model).denoise, []

    def denoise(self, latents, timestep, rows):
        if len(rows[PICK]) > 4:
            raise torch.OutOfMemoryError("too many")
        most.append(len(rows[PICK]))
        return whole(self, latents, timestep, rows)

    monkeypatch.setattr(type(model), "denoise", denoise)
    with pytest.warns(UserWarning, match="out of memory with .* rows of the network"):
        assert_near(latents_of(plan, model, batch_size=5), reference)
    assert max(most) <= 4


def test_without_an_interval_nothing_is_different(model):
    """Bit for bit, and through the same program."""
    always = load(None)
    plan = compiled(always)
    for interval in ((0.0, 1.0), (0, 1)):
        same = load(interval)
        assert same.rows_by_step(plan.n_steps) is None
        ours, theirs = latents_of(plan, same, batch_size=3), latents_of(plan, always, batch_size=3)
        assert all(torch.equal(ours[i], theirs[i]) for i in theirs)
    assert "guidance_interval" not in always.settings
    assert model.settings["guidance_interval"] == (0.25, 0.75)


def test_a_model_that_is_not_guided_has_no_interval(plan):
    unguided = load((0.0, 0.5), guidance_scale=1.0)
    assert unguided.rows_by_step(plan.n_steps) is None
    assert len(latents_of(plan, unguided)) == len(WORDS)
    with pytest.raises(TypeError, match="no setting 'guidance_interval'"):
        hsd.load(tiny.flux2(), guidance_interval=(0.0, 0.5))


def both_without(plan):
    """The plan without the settings of single prompts."""
    request = {name: value for name, value in plan.request.items() if name != "settings"}
    return hsd.Plan(plan._core, plan.prompts, plan.seeds, request)


def test_prompts_may_differ_in_the_interval(model):
    """They are in different passes, and get the images that each interval gives."""
    settings = [{"guidance_interval": [0.25, 0.75]}] * 4 + [{}] * 4
    always = load(None)
    both = hsd.compile(WORDS, 0.8, embeddings=EMBEDDINGS, model=always, steps=8, settings=settings)
    images = {image.index: image.pil for image in hsd.stream(both, always, batch_size=3)}
    for kept, own, other in ((range(4), model, always), (range(4, 8), always, model)):
        alone, wrong = (
            {image.index: image.pil for image in hsd.stream(both_without(both).prune(kept), each, batch_size=1)}
            for each in (own, other)
        )
        assert all(mean_difference(images[i], alone[i]) < 0.05 for i in kept)
        assert all(mean_difference(images[i], wrong[i]) > 0.5 for i in kept)


# -- steps, arguments and errors


@pytest.mark.parametrize(
    ("interval", "steps", "expected"),
    [
        ((0.0, 0.6), 10, "2222221111"),
        ((0.0, 0.6), 5, "22211"),
        ((0.2, 0.6), 5, "12211"),
        ((0.3, 1.0), 10, "1112222222"),
        ((0.0, 0.01), 4, "2111"),
        ((0.95, 1.0), 4, "1111"),
    ],
)
def test_which_steps_are_guided(interval, steps, expected):
    assert "".join(map(str, load(interval).rows_by_step(steps))) == expected


@pytest.mark.parametrize(
    ("interval", "match"),
    [
        ((0.6, 0.2), r"\(0.6, 0.2\).*end after it begins"),
        ((0.5, 0.5), "end after it begins"),
        ((-0.1, 0.5), "begin at 0 or later"),
        ((0.0, 1.5), "end at 1 or earlier"),
        ((0.0,), "a pair of fractions"),
        (0.6, "a pair of fractions"),
        ((0.0, float("nan")), "a pair of fractions"),
        ((0, 10**400), "a pair of fractions"),
        (("0", "1"), "a pair of fractions"),
    ],
)
@pytest.mark.parametrize("family", GUIDED[:2], ids=lambda family: family.name)
def test_bad_intervals_are_refused(family, interval, match):
    with pytest.raises(ValueError, match=match):
        hsd.load(family.loadable(family.build()), **settings_of(family), guidance_interval=interval)


@families
def test_every_guided_family_checks_it(family: Family):
    with pytest.raises(ValueError, match="guidance_interval"):
        hsd.load(family.loadable(family.build()), **settings_of(family), guidance_interval=(2, 1))


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        ([1, 2], ValueError, "rows has length 2, but 8"),
        ([1, 2, 3, 1, 1, 1, 1, 1], ValueError, "rows is 3 at step 2"),
        ([1.0] * 8, TypeError, "rows has to hold integers"),
    ],
)
def test_bad_rows_are_named(plan, rows, error, match):
    for use in (plan.program, plan.check_program):
        with pytest.raises(error, match=match):
            use(4, rows=rows)


def test_a_program_is_pickled_with_its_rows(plan):
    program = plan.program(3, rows=[1, 2] * 4)
    again = pickle.loads(pickle.dumps(program))
    assert np.array_equal(again.rows, program.rows)
    assert np.array_equal(again.calls, program.calls)
    assert "6 rows" in repr(program)
    assert "6 rows" in program.describe()
    assert plan.program(3).rows is None


def test_a_program_without_the_rows_of_the_model_is_refused(plan, model):
    for lowering in ({"rows": None}, {"rows": [2] * 7 + [1]}):
        with pytest.raises(hsd.PlanMismatch, match=r"rows=model.rows_by_step"):
            executor_of(plan, model, **lowering)


def test_layout_of_a_call():
    layout = Layout(np.array([2, 1]), torch.device("cpu"))
    step, real = torch.tensor([1, 0, 0, 0, 1]), torch.tensor([True, True, True, False, False])
    found = layout.of(step, real, 6)
    # Rows: unconditional of lanes 1 and 2, conditional of lanes 0, 1 and 2, then one that nothing needs.
    assert found[PICK].tolist() == [1, 2, 5, 6, 7, 0]
    assert found[UNCONDITIONAL][:3].tolist() == [2, 0, 1]
    assert found[CONDITIONAL][:3].tolist() == [2, 3, 4]
    assert all(0 <= int(row) < 6 for name in (UNCONDITIONAL, CONDITIONAL) for row in found[name])
    assert [layout.fitting(step[:3], most) for most in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert layout.count(step[:3]) == 5


def test_guidance_reads_the_layout():
    layout = Layout(np.array([2, 1]), torch.device("cpu")).of(torch.tensor([1, 0]), torch.ones(2, dtype=torch.bool), 3)
    rows = {"x": torch.tensor([1.0, 2.0]), "negative_x": torch.tensor([-1.0, -2.0]), **layout}
    guidance = Guidance({**rows, "guidance_scale": torch.tensor([3.0, 5.0])}, True)
    assert guidance.both("x").tolist() == [-2.0, 1.0, 2.0]
    assert guidance.whole().both("x").tolist() == [-1.0, -2.0, 1.0, 2.0]
    assert guidance.conditional(guidance.both("x")).tolist() == [1.0, 2.0]
    assert guidance.apply(guidance.both("x")).tolist() == [1.0, -2.0 + 5.0 * 4.0]
    assert guidance.where_guided(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 0.0]


# -- costs


def test_the_cost_is_rows(plan, model):
    summary = cost(plan, model, batch_size=4)
    assert summary.rows == plan.counts() @ model.rows_by_step(8)
    assert summary.standard_rows == 2 * plan.standard_node_steps
    assert summary.guidance_varies
    assert f"{summary.rows:,} instead of {summary.standard_rows:,}" in str(summary)
    assert "calls of 8 rows" in str(summary)
    assert summary.numbers()["rows"] == summary.rows
    always = cost(plan, load(None), batch_size=4)
    assert not always.guidance_varies
    assert "rows" not in str(always)
    assert always.rows == 2 * plan.node_steps
    assert "rows" not in plan.cost().numbers()


def test_the_time_is_estimated_by_rows(plan, model):
    rows = (int(plan.counts() @ model.rows_by_step(8)), 2 * plan.standard_node_steps)
    assert plan.cost((), 2.0, rows).seconds.ends() == pytest.approx([2.0 * rows[0] / 2] * 2)


def test_the_batch_size_is_chosen_by_rows(plan, model):
    """By a curve in which calls of 4 guided lanes are best: 8 rows."""
    curve = Curve((1, 2, 4, 8), (1.0, 1.1, 1.2, 2.4))
    rows = model.rows_by_step(8)
    choice = choose(plan, curve, order="depth", rows=rows)
    program = plan.program(choice.batch_size, "depth", rows=rows)
    assert choice.n_calls == program.n_calls
    assert choice.seconds == pytest.approx(sum(curve.seconds(n / 2) for n in program.rows_per_call))
    without = choose(plan, curve, order="depth", sizes=[choice.batch_size])
    assert choice.seconds < without.seconds


def test_settings_of_a_copy(model):
    again = hsd.load(model, guidance_interval=[0, 0.5])
    assert again.guidance_interval == (0.0, 0.5)
    assert again.call_key() != model.call_key()
    assert again.encoding_key() == model.encoding_key()
    assert copy.copy(again).settings == again.settings
    assert isinstance(executor_of(compiled(again), again), Executor)
