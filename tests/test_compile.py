"""From prompts to plan: encoders, budgets, replicas, and the numbers of the real prompt sets."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from helpers import SHARED, needs_shared
from hsd import _core
from hsd._core import SCHEDULES
from hsd.generation import cost
from hsd.models.encode import recall
from hsd.planning.encoders import default_encoder
from hsd.planning.schedule import schedule_shape
from hsd.prompts.files import PromptFile, read_prompts

SETS = {
    "style_variations": "style_variations.minilm384",
    "animals": "animals.minilm384",
    "genai_bench": "genai_bench.minilm384",
    "prompt_templates": "prompt_templates.minilm384",
}


def unique_prompts(n):
    return [f"prompt {i}" for i in range(n)]


@needs_shared
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_active_clusters_of_the_real_sets(name, tau):
    expected = json.loads((SHARED / "expected" / "ward_minilm.json").read_text())["datasets"][name][f"tau={tau}"]
    embeddings = np.load(SHARED / "embeddings" / f"{SETS[name]}.npy")
    plan = hsd.compile(unique_prompts(len(embeddings)), tau, embeddings=embeddings, steps=40)
    assert plan.counts().tolist() == expected["active"]
    assert plan.node_steps == expected["node_steps"]
    assert plan.savings == pytest.approx(expected["savings"], abs=1e-12)


@needs_shared
def test_default_encoder_is_near_a_sentence_encoder():
    """Savings within 15 points of those with sentence embeddings, on every set, with no network."""
    expected = json.loads((SHARED / "expected" / "ward_minilm.json").read_text())["datasets"]
    for name in SETS:
        prompts = read_prompts(SHARED / "prompts" / f"{name}.txt").prompts
        plan = hsd.compile(list(dict.fromkeys(prompts)), 1.0)
        assert plan.savings == pytest.approx(expected[name]["tau=1.0"]["savings"], abs=0.15), name


def test_default_encoder_puts_like_with_like():
    e = default_encoder()(["a photo of a dog", "a picture of a puppy", "the stock market fell"])
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    assert e[0] @ e[1] > e[0] @ e[2] + 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.floats(0.02, 0.9), st.sampled_from(SCHEDULES), st.integers(2, 30))
def test_budget_gives_the_smallest_tau_that_meets_it(n, budget, schedule, steps):
    e = np.random.default_rng(n).normal(size=(n, 5))
    options = {"embeddings": e, "schedule": schedule, "steps": steps}
    try:
        plan = hsd.compile(unique_prompts(n), budget=budget, **options)
    except ValueError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        most = hsd.compile(unique_prompts(n), 1e9, **options)
        assert most.savings < budget
        return
    assert plan.savings >= budget - 1e-9
    if plan.tau > 0:
        less = hsd.compile(unique_prompts(n), np.nextafter(plan.tau, 0), **options)
        assert less.savings < budget


def test_replicas_meet_at_infinity():
    prompts = ["a", "b", "a", "c", "a"]
    plan = hsd.compile(prompts, 1e6, embeddings=np.random.default_rng(0).normal(size=(5, 4)), steps=4)
    assert plan.counts().tolist() == [3, 3, 3, 5]
    roots = [frozenset(np.flatnonzero(plan.active(0) == label)) for label in set(plan.active(0))]
    assert set(roots) == {frozenset({0, 1, 3}), frozenset({2}), frozenset({4})}


@pytest.mark.parametrize(("prompts", "what"), [(["a"], "there is one image"), (["a"] * 6, "no two of the 6 images")])
def test_a_budget_where_nothing_can_be_shared_does_not_stop_a_script(prompts, what):
    with pytest.warns(UserWarning, match=f"a budget of 0.1 has no effect: {what}"):
        plan = hsd.compile(prompts, budget=0.1, embeddings=np.ones((len(prompts), 3)))
    assert (plan.tau, plan.savings) == (0.0, 0.0)
    with pytest.raises(ValueError, match="cannot be met: sharing all steps but the last saves 0.2500"):
        hsd.compile(["a", "b"], budget=0.3, embeddings=np.eye(2), steps=2)  # less would be saved, so it has to be said


@pytest.mark.parametrize("progress", [False, True])
def test_a_notice_points_at_the_call(progress):
    """Also through the frames of its decorators."""
    with pytest.warns(hsd.Notice, match="has no effect") as said:
        hsd.compile(["a"], budget=0.1, embeddings=np.ones((1, 3)), progress=progress)
    assert [notice.filename for notice in said] == [__file__]


def test_images_per_prompt_repeats_each_in_a_row():
    plan = hsd.compile(["a", "b"], 1.0, images_per_prompt=2, seeds=5, embeddings=np.eye(2))
    assert plan.prompts == ["a", "a", "b", "b"]
    assert plan.seeds.tolist() == [5, 6, 7, 8]


def test_near_embeddings_share_all_but_the_last_step():
    plan = hsd.compile(unique_prompts(4), 0.1, embeddings=1 + 1e-3 * np.eye(4), steps=5)
    assert plan.counts().tolist() == [1, 1, 1, 1, 4]


def test_one_prompt_and_one_step():
    assert hsd.compile(["a"], 1.0, steps=3).counts().tolist() == [1, 1, 1]
    assert hsd.compile(["a", "b"], 5.0, steps=1).counts().tolist() == [2]


@pytest.mark.parametrize("make", [np.float16, np.float32, np.float64, "torch", "bfloat16", "strided", "list"])
def test_embeddings_in_any_form(make):
    e = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float16).astype(np.float64)
    forms = {
        "torch": lambda: torch.from_numpy(e),
        "bfloat16": lambda: torch.from_numpy(e).to(torch.bfloat16),
        "strided": lambda: np.repeat(e, 2, axis=1)[:, ::2],
        "list": lambda: e.tolist(),
    }
    given_form = forms[make]() if isinstance(make, str) else e.astype(make)
    ours, reference = (hsd.compile(unique_prompts(6), 0.7, embeddings=x) for x in (given_form, e))
    tolerance = 0.05 if make == "bfloat16" else 1e-5
    np.testing.assert_allclose(ours.tree.heights, reference.tree.heights, rtol=tolerance)


def test_schedules():
    k = np.arange(7)
    np.testing.assert_allclose(schedule_shape("linear", 7), 1 - k / 6, atol=1e-15)
    np.testing.assert_allclose(schedule_shape("paper-eq7", 7), 1 - (k + 1) / 7, atol=1e-15)
    np.testing.assert_allclose(schedule_shape(lambda x: (1 - x) ** 2, 7), (1 - k / 6) ** 2, atol=1e-15)
    for name in SCHEDULES:
        for steps in (1, 2, 40):
            shape = schedule_shape(name, steps)
            assert shape[-1] == 0.0
            assert (np.diff(shape) <= 0).all()
            assert (shape >= 0).all()
            assert (shape <= 1).all()


def test_save_and_load_keep_everything(tmp_path):
    prompts = ["a cat", "naïve café ☕", "犬", "a cat"]
    plan = hsd.compile(prompts, 0.7, seeds=[9, 8, 2**62, 6], linkage="average", noise="shared")
    for part in (plan, plan.prune([3, 1])):
        part.save(tmp_path / "p.safetensors")
        again = hsd.Plan.load(tmp_path / "p.safetensors")
        assert again.prompts == prompts
        assert again.seeds.tolist() == [9, 8, 2**62, 6]
        assert again.request == part.request
        assert (again.tau, again.noise) == (0.7, "shared")
        assert again.kept.tolist() == part.kept.tolist()
        assert np.array_equal(again.segments, part.segments)
        assert np.array_equal(again.tree.scores, part.tree.scores)
        assert again.fingerprint == plan.fingerprint
    from safetensors import safe_open

    with safe_open(tmp_path / "p.safetensors", "np") as file:  # any reader of safetensors opens it
        assert "segments" in file.keys()  # noqa: SIM118
    other = hsd.compile(prompts, 0.7, seeds=[9, 8, 2**62, 7], linkage="average", noise="shared")
    assert other.fingerprint != plan.fingerprint


def test_summary_says_what_it_costs():
    plan = hsd.compile(unique_prompts(50), 1.0, embeddings=np.random.default_rng(1).normal(size=(50, 8)))
    text = str(plan)
    assert f"{plan.node_steps:,} instead of 2,000" in text
    assert f"{plan.savings:.1%}" in text
    assert f"{plan.program(16).n_calls:,} (" in text
    assert "50 prompts" in repr(plan)
    assert "approximate" not in text
    tree = hsd.Tree.from_merges(plan.tree.merges, plan.tree.scores, exact=False)
    core = _core.Plan.compile(tree, plan.phi)
    assert "approximate ward on" in str(hsd.Plan(core, plan.prompts, plan.seeds, plan.request))


def test_a_plan_is_pickled_without_its_model(model):
    plan = hsd.compile(["a cat", "a dog"], 0.5, model=model, steps=3).shard(2)[1]
    again = pickle.loads(pickle.dumps(plan))
    assert recall(plan, model.encoding_key()) is not None
    assert recall(again, model.encoding_key()) is None
    assert again.origin is again
    assert not again.seeds.flags.writeable
    assert (again.fingerprint, again.kept.tolist(), repr(again)) == (plan.fingerprint, plan.kept.tolist(), repr(plan))


def test_progress_reports_both_stages(model):
    seen = []
    hsd.compile(unique_prompts(70), 1.0, model=model, steps=3, progress=lambda *event: seen.append(event))
    for stage in ("encode", "cluster"):
        fractions = [fraction for name, fraction in seen if name == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert 0.0 <= fractions[0] <= 1.0
    assert [name for name, _ in seen] == sorted((name for name, _ in seen), reverse=True)


def test_default_tau_is_one_or_what_suits_the_model():
    assert hsd.compile(["a", "b"]).tau == 1.0
    demo = hsd.load("demo", prior_steps=2)
    pair = ["a red star", "a blue star"]
    assert hsd.compile(pair, model=demo, steps=3, metric="cosine").tau == demo.default_tau == 0.3
    assert hsd.compile(pair, model=demo, steps=3).tau == demo.calibration.tau != 0.3
    assert hsd.compile(["a red star", "a blue star"], model=demo, steps=3, embeddings=np.eye(2)).tau == 1.0
    assert hsd.compile(["a red star", "a blue star"], 0.7, model=demo, steps=3).tau == 0.7


def test_a_plan_does_not_change():
    seeds = np.array([3, 1, 2])
    plan = hsd.compile(unique_prompts(3), 0.5, embeddings=np.eye(3, 4), seeds=seeds)
    for part in (plan, plan.prune([1])):
        for name in ("prompts", "seeds", "request", "encoded", "_core"):
            with pytest.raises(AttributeError):
                setattr(part, name, None)
        with pytest.raises(ValueError, match="read-only"):
            part.seeds[0] = 7
    mine = np.array([3, 1, 2])
    again = hsd.Plan(plan._core, plan.prompts, mine, plan.request)
    mine[0] = 7  # the caller's array is copied, and may be written
    assert again.seeds.tolist() == [3, 1, 2]
    assert copy.copy(plan).fingerprint == plan.fingerprint


def test_what_a_model_encoded_is_remembered_for_all_parts_of_a_plan_and_no_longer(model):
    plan = hsd.compile(["a cat", "a dog", "the sea"], 0.5, model=model, steps=3)
    key = model.encoding_key()
    conditioning = recall(plan, key)
    assert conditioning is not None
    part = plan.prune([2, 0]).prune([0])
    assert part.origin is part.whole() is plan
    assert recall(part, key) is recall(plan.shard(2)[1], key) is conditioning
    assert recall(plan, "another key") is None
    alive = weakref.ref(conditioning)
    del plan, part, conditioning
    gc.collect()
    assert alive() is None


def test_a_pruned_plan_from_a_file_has_a_whole(tmp_path):
    plan = hsd.compile(unique_prompts(6), 0.8, embeddings=np.random.default_rng(0).normal(size=(6, 4)), steps=5)
    plan.prune([4, 1]).save(tmp_path / "p.safetensors")
    part = hsd.Plan.load(tmp_path / "p.safetensors")
    assert part.origin is part
    assert np.array_equal(part.whole().segments, plan.segments)
    assert part.whole().origin is part


def test_a_summary_is_of_the_programs_that_run():
    plan = hsd.compile(unique_prompts(50), 1.0, embeddings=np.random.default_rng(1).normal(size=(50, 8)), steps=9)
    program = plan.program(4, "breadth", 30, mixed_steps=False)
    text = plan.summary(4, "breadth", 30, mixed_steps=False)
    calls = f"{program.n_calls:,} (lower bound {program.lower_bound:,}), {program.occupancy:.1%} of lanes filled"
    assert f"calls of 4        {calls}" in text
    assert f"{program.n_slots} latents alive at most" in text
    parts = [part.program(4) for part in plan.shard(2)]
    numbers = plan.cost(parts, 0.5).numbers()
    assert numbers["calls"] == sum(part.n_calls for part in parts)
    assert numbers["calls_lower_bound"] == sum(part.lower_bound for part in parts)
    assert numbers["slots"] == max(part.n_slots for part in parts)
    assert numbers["seconds"] == [0.5 * plan.node_steps] * 2
    assert plan.cost([program]).numbers()["occupancy"] == program.occupancy
    assert "calls" not in plan.cost().numbers()


def test_a_summary_with_a_model_follows_its_rules(plan, model, monkeypatch):
    mixed = cost(plan, model, 4)
    assert mixed.run == plan.cost([plan.program(4)]).run
    monkeypatch.setattr(type(model), "mixed_timesteps", False)
    one_step = cost(plan, model, 4)
    assert one_step.run == plan.cost([plan.program(4, mixed_steps=False)]).run
    assert one_step.run.calls > mixed.run.calls
    assert cost(plan, model, None).run is None


SUMMARY = """\
prompts           4
steps             3
clustering        ward on embeddings, tau 0.5
node-steps        8 instead of 12
saved             33.3% of the denoiser's evaluations
                  each of 3 steps decides much of an image: what shares one looks alike;
                  look at a sample first, and take a smaller tau than with more steps
clusters by step  2 ▄▄█ 4
                  0:2  1:2  2:4
calls of 16       3 (lower bound 3), 16.7% of lanes filled
slots             6 latents alive at most"""


def test_the_text_of_a_summary():
    e = np.repeat(np.eye(2, 4), 2, axis=0) + 1e-3 * np.eye(4)
    assert str(hsd.compile(unique_prompts(4), 0.5, embeddings=e, steps=3)) == SUMMARY
    few = "steps decides much of an image"
    assert few in str(hsd.compile(unique_prompts(4), 0.5, embeddings=e, steps=8))
    assert few not in str(hsd.compile(unique_prompts(4), 0.5, embeddings=e, steps=9))
    assert few not in str(hsd.compile(unique_prompts(4), 0.0, embeddings=e, steps=3)), "nothing is shared"


EARLIER = ["a cat", "a cat on a mat", "a dog"]


@pytest.fixture
def earlier(model, tmp_path):
    """The arguments and the plan of an earlier run, and its folder."""
    request = {
        "budget": 0.2,
        "steps": 4,
        "seeds": 3,
        "images_per_prompt": 2,
        "settings": [{}, {}, {"guidance_scale": 2.0}],
    }
    plan = hsd.compile(EARLIER, model=model, **request)
    plan.save(tmp_path / "plan.safetensors")
    return request, plan, tmp_path


def test_the_plan_of_an_earlier_run_is_reused(earlier, model, monkeypatch):
    request, plan, folder = earlier
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded again"))
    for path in (folder, folder / "plan.safetensors", str(folder)):
        again = hsd.compile(EARLIER, model=model, reuse=path, progress=pytest.fail, **request)
        assert again.fingerprint == plan.fingerprint
        assert again.tau == plan.tau
    plan.prune([0]).save(folder / "plan.safetensors")
    assert len(hsd.compile(EARLIER, model=model, reuse=folder, **request)) == len(plan)


def test_columns_decide_nothing(earlier, model, monkeypatch):
    request, plan, folder = earlier
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded again"))
    again = hsd.compile(EARLIER, model=model, reuse=folder, columns={"id": [1, 2, 3]}, **request)
    assert again.fingerprint == plan.fingerprint
    assert again.columns == {"id": [1, 1, 2, 2, 3, 3]}
    for own in ({"id": [1, 5, 3], "kind": ["a", "b", None]}, {}):
        after = hsd.compile(EARLIER, model=model, reuse=again, columns=own, **request)
        assert after.columns == {name: [value for value in values for _ in range(2)] for name, values in own.items()}
        assert after.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"prompts": ["a cat", "a cat on a mat", "a cow"]},
        {"seeds": 4},
        {"seeds": [3, 4, 5, 6, 7, 9]},
        {"budget": 0.1},
        {"budget": None, "tau": 0.5},
        {"steps": 5},
        {"linkage": "average"},
        {"metric": "euclidean"},
        {"schedule": "cosine"},
        {"schedule": [1.0, 0.9, 0.8, 0.0]},
        {"noise": "shared"},
        {"catch_up": 1.0},
        {"settings": None},
        {"settings": [{}, {}, {"guidance_scale": 2.5}]},
        {"images_per_prompt": 1},
        {"exact": False},
        {"model": None},
        {"embeddings": np.eye(3) + 0.5},
        {"encoder": lambda prompts: np.eye(len(prompts)) + 0.5},
    ],
    ids=lambda other: ", ".join(other),
)
def test_the_plan_of_other_arguments_is_not_reused(earlier, model, other):
    request, _, folder = earlier
    seen = []
    arguments = {"prompts": EARLIER, "model": model, **request, **other}
    if other.get("model", model) is None:
        arguments["settings"] = None
    plan = hsd.compile(**arguments, reuse=folder, progress=lambda *event: seen.append(event))
    assert seen
    assert plan.fingerprint == hsd.compile(**arguments).fingerprint


def test_the_plan_of_a_scheduler_with_other_evaluations_is_not_reused(model, tmp_path):
    """Heun evaluates the denoiser about twice in each step: a plan for another scheduler could not run."""
    request = {"tau": 0.5, "steps": 4, "reuse": tmp_path / "plan.safetensors"}
    hsd.compile(["a cat", "a cow"], model=model, **request).save(request["reuse"])
    heun = model.with_scheduler(HeunDiscreteScheduler.from_config(model.scheduler().config))
    assert hsd.compile(["a cat", "a cow"], model=heun, **request).n_steps == heun.sampler(4).n_steps


def test_a_bad_schedule_is_an_error_with_reuse_too(tmp_path):
    """``custom`` is what a plan records for a schedule without a name. It is not a name itself."""
    request = {"tau": 0.5, "steps": 3, "reuse": tmp_path / "plan.safetensors"}
    hsd.compile(["a cat", "a cow"], schedule=[1.0, 0.5, 0.0], **request).save(request["reuse"])
    with pytest.raises(ValueError, match="unknown schedule 'custom'"):
        hsd.compile(["a cat", "a cow"], schedule="custom", **request)


def test_nothing_to_reuse(model, tmp_path):
    for path in (tmp_path, tmp_path / "no such folder", tmp_path / "no.safetensors"):
        assert len(hsd.compile(["a cat"], model=model, steps=2, reuse=path)) == 1
    (tmp_path / "plan.safetensors").write_text("a cat\n")
    with pytest.raises(hsd.Error, match="is not a plan that can be used"):
        hsd.compile(["a cat"], model=model, steps=2, reuse=tmp_path)


def test_a_prompt_file_is_compiled_with_all_that_it_has(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "seed": 40, "width": 64, "id": "x"}\n{"prompt": "b", "glow": 2}\n')
    file = hsd.read_prompts(path)
    plan = hsd.compile(file, 1.0, seeds=7)
    parts = hsd.compile(file.prompts, 1.0, seeds=[40, 8], settings=file.settings, columns=file.columns)
    assert plan.request == parts.request
    assert list(plan.seeds) == [40, 8]
    assert list(hsd.compile(file, 1.0, seeds=[1, 2]).seeds) == [1, 2]
    with pytest.raises(ValueError, match="images_per_prompt is 2"):
        hsd.compile(file, 1.0, images_per_prompt=2)
    expanded = hsd.compile(hsd.expand_template("a {red|blue} star"), 1.0, images_per_prompt=2)
    assert expanded.request["columns"] == {"choice_1": ["red", "red", "blue", "blue"]}


def test_a_model_from_elsewhere_takes_its_settings_from_a_prompt_file(model, monkeypatch):
    """Its settings are no columns, and a wrong one is told with its line."""
    names = {*model.setting_names(), "glow"}
    monkeypatch.setattr(type(model), "setting_names", classmethod(lambda _: names))
    places = ["p.jsonl, line 1", "p.jsonl, line 2"]
    columns = {"glow": [None, 2], "id": ["x", "y"]}
    file = PromptFile(["a red star", "a blue star"], [None, None], [{}, {}], columns, places)
    with pytest.raises((ValueError, TypeError), match="p.jsonl, line 2: .*glow"):
        hsd.compile(file, 1.0, model=model, steps=2)


def test_the_seeds_of_a_prompt_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "seed": 40}\n{"prompt": "b"}\n')
    file = hsd.read_prompts(path)
    assert file.seeds_from(7) == [40, 8]
    with pytest.raises(ValueError, match="images_per_prompt is 2.*repeat lines"):
        file.seeds_from(7, 2)
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert hsd.read_prompts(path).seeds_from(7, 2) == 7
