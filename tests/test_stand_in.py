"""The built-in encoder stands in for a model: where one runs a plan, its own embeddings decide who shares steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

import hsd
import tiny
from helpers import PROMPTS, mean_difference
from hsd.generation.clustering import clustered_by_model
from hsd.generation.options import Options
from hsd.generation.session import Session
from hsd.planning.encoders import EARLIER_NAME, StaticEncoder, default_encoder

OPTIONS = {"steps": 4, "seeds": 7}


@pytest.fixture
def encoded(model, monkeypatch):
    """The prompts that the model has encoded."""
    seen, whole = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, batch: seen.extend(batch.prompts) or whole(self, batch))
    return seen


def run(plan, model, out, **options):
    return hsd.generate(plan, model, out, progress=False, **options)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"tau": 0.9},
        {"budget": 0.3},
        {"linkage": "average", "tau": 0.6},
        {"schedule": "cosine"},
        {"noise": "shared", "catch_up": 0.5},
        {"images_per_prompt": 2},
        {"settings": [{"guidance_scale": 2.0}] * 4 + [{}] * 4},
        {"seeds": list(range(8, 0, -1))},
        {"columns": {"id": list("abcdefgh")}, "images_per_prompt": 2},
        {"metric": "euclidean", "tau": 3.0},
    ],
    ids=lambda own: ",".join(own) or "defaults",
)
def test_the_plan_that_runs_is_the_one_by_the_model(model, request_, tmp_path):
    plan = hsd.compile(PROMPTS, **{**OPTIONS, **request_})
    expected = hsd.compile(PROMPTS, model=model, **{**OPTIONS, **request_})
    assert plan.request["encoder"] == StaticEncoder.name
    ran = run(plan, model, tmp_path)
    assert ran.plan.fingerprint == expected.fingerprint != plan.fingerprint
    assert ran.plan.request == expected.request
    assert ran.node_steps == expected.node_steps
    assert hsd.Plan.load(tmp_path / "plan.safetensors").fingerprint == expected.fingerprint
    record = json.loads((tmp_path / "run.json").read_text())["runs"][0]
    assert record["plan"]["encoder"] == model.name


def test_the_images_are_those_of_the_model_and_any_part_has_the_same(model):
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    by_model = hsd.compile(PROMPTS, 0.9, model=model, **OPTIONS)
    expected = {image.index: image.pil for image in hsd.stream(by_model, model)}
    parts = [plan, *plan.shard(2), plan.prune([5])]
    for part in parts:
        images = {image.index: image.pil for image in hsd.stream(part, model)}
        assert sorted(images) == part.kept.tolist()
        for i, image in images.items():
            assert mean_difference(image, expected[i]) < 0.5


def test_shards_write_one_folder_and_a_run_goes_on_without_encoding_to_cluster(model, encoded, tmp_path):
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    first, second = plan.shard(2)
    assert run(first, model, tmp_path).images == len(first)
    encoded.clear()
    ran = run(second, model, tmp_path)
    assert ran.images == len(second)
    assert set(encoded) == {PROMPTS[i] for i in ran.plan.covered()}  # its own part, and not all to cluster again
    encoded.clear()
    again = run(plan, model, tmp_path)
    assert (again.images, again.existing) == (0, len(PROMPTS))
    assert encoded == []


def test_the_defaults_are_the_models(tmp_path):
    demo = hsd.load("demo", prior_steps=2)
    pair = ["a red star", "a blue star"]
    ran = run(hsd.compile(pair, steps=3), demo, tmp_path / "auto")
    assert ran.plan.tau == demo.calibration.tau
    assert ran.plan.metric == "calibrated"
    ran = run(hsd.compile(pair, 0.7, steps=3, metric="cosine"), demo, tmp_path / "asked")
    assert (ran.plan.tau, ran.plan.metric) == (0.7, "cosine")


def test_a_schedule_of_values_is_kept(model, tmp_path):
    values = [1.0, 0.8, 0.8, 0.0]
    for schedule in (values, lambda x: (1 - x) ** 2):
        plan = hsd.compile(PROMPTS, 0.9, schedule=schedule, **OPTIONS)
        ran = run(plan, model, tmp_path / str(callable(schedule)))
        np.testing.assert_allclose(ran.plan.phi, plan.phi, rtol=1e-12)
        assert ran.plan.request["encoder"] == model.name


def test_steps_are_counted_by_the_models_scheduler(tmp_path):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    model = hsd.load(pipe, height=32, width=32)
    ran = run(hsd.compile(PROMPTS[:3], 0.9, steps=4), model, tmp_path)
    assert ran.plan.n_steps == 7


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 100]}, {"sigmas": [9.0, 3.0, 1.0]}], ids=list)
def test_steps_are_counted_by_the_settings_of_the_prompts(own):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    model = hsd.load(pipe, height=32, width=32)
    settings = [own, own, {**own, "guidance_scale": 2.0}]
    plan = hsd.compile(PROMPTS[:3], 0.9, settings=settings, **OPTIONS)
    by_model = hsd.compile(PROMPTS[:3], 0.9, settings=settings, model=model, **OPTIONS)
    checked = []
    found = clustered_by_model(plan.prune([0, 2]), model, check=checked.append)
    assert (found.fingerprint, found.request) == (by_model.fingerprint, by_model.request)
    [asked] = checked
    assert asked.n_steps == asked.request["steps"] == by_model.n_steps != plan.n_steps
    assert asked.kept.tolist() == [0, 2]
    Session(asked, model, Options())  # what a run checks before it encodes anything


def test_what_was_given_by_the_user_stands(model, tmp_path):
    e = np.random.default_rng(0).normal(size=(8, 4))
    kinds = ({"embeddings": e}, {"encoder": lambda prompts: e}, {"encoder": default_encoder()}, {"model": model})
    for n, own in enumerate(kinds):
        plan = hsd.compile(PROMPTS, 0.9, **own, **OPTIONS)
        ran = run(plan, model, tmp_path / str(n))
        assert ran.plan.fingerprint == plan.fingerprint


def test_where_nothing_is_shared_nothing_is_clustered(model, encoded, tmp_path):
    plan = hsd.compile(PROMPTS, 0.0, **OPTIONS)
    assert run(plan, model, tmp_path).plan.fingerprint == plan.fingerprint
    assert len(encoded) == len(PROMPTS)


def test_a_folder_that_was_begun_with_the_plan_itself_is_continued(model, tmp_path):
    """As by a version that ran such plans as they were; it had another encoder, and did not record what was asked."""
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    request = {name: value for name, value in plan.request.items() if not name.startswith("asked")}
    old = hsd.Plan(plan._core, plan.prompts, plan.seeds, {**request, "encoder": EARLIER_NAME})
    (tmp_path / "old").mkdir()
    old.save(tmp_path / "old" / "plan.safetensors")
    assert run(old, model, tmp_path / "old").plan.fingerprint == old.fingerprint
    # Elsewhere it is clustered by the model, by the tau that it has.
    by_model = hsd.compile(PROMPTS, 0.9, model=model, **OPTIONS)
    assert run(old, model, tmp_path / "new").plan.fingerprint == by_model.fingerprint


def test_a_folder_that_an_earlier_version_began_from_prompts_is_continued(model, tmp_path, caplog, encoded):
    """Its encoder gave another tree, so the prompts are now compiled to another plan."""
    caplog.set_level("INFO", "hsd")
    request = {"schedule": "cosine", "noise": "shared", **OPTIONS}
    plan = hsd.compile(PROMPTS, 0.9, columns={"id": list("abcdefgh")}, **request)
    other = hsd.compile(PROMPTS, 0.9, embeddings=np.random.default_rng(0).normal(size=(8, 4)), **request)
    begun = hsd.Plan(other._core, PROMPTS, other.seeds, {**other.request, "encoder": EARLIER_NAME})
    begun.save(tmp_path / "plan.safetensors")
    ran = hsd.generate(plan.prune([2, 5]), model, tmp_path)
    assert ran.plan.fingerprint == begun.fingerprint not in (None, plan.fingerprint)
    assert ran.plan.kept.tolist() == [2, 5]
    assert ran.plan.columns == plan.columns
    assert "an earlier version of HSD began this folder" in caplog.text
    assert set(encoded) == {PROMPTS[i] for i in ran.plan.covered()}
    # With other arguments it is another set of images.
    for changed in ({"tau": 0.8}, {"seeds": 8}, {"schedule": "linear"}, {"prompts": [*PROMPTS[:7], "the sun"]}):
        own = {"prompts": PROMPTS, "tau": 0.9, **request, **changed}
        assert clustered_by_model(hsd.compile(**own), model, folder=tmp_path).request["encoder"] == model.name


def test_the_plan_of_a_folder_is_read_once(model, tmp_path, monkeypatch):
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    ran = run(plan.prune([0]), model, tmp_path)
    read, load = [], hsd.Plan.load
    monkeypatch.setattr(hsd.Plan, "load", lambda path: read.append(path) or load(path))
    assert clustered_by_model(plan, model, folder=tmp_path).fingerprint == ran.plan.fingerprint
    assert len(read) == 1


def test_a_run_says_so_once(model, tmp_path, caplog):
    caplog.set_level("INFO", "hsd")
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    ran = hsd.generate(plan, model, tmp_path)
    said = [text for text in caplog.messages if "clustered by" in text]
    assert said == [
        f"prompts are clustered by the embeddings of {model.name}, not by those of the built-in encoder: "
        f"{ran.plan.savings:.1%} saved instead of {plan.savings:.1%}"
    ]
    caplog.clear()
    hsd.generate(hsd.compile(PROMPTS, 0.9, model=model, **OPTIONS), model, tmp_path)
    assert "clustered by" not in caplog.text


def test_a_summary_says_that_it_is_an_estimate(model):
    assert "the built-in encoder stands in for the model's own embeddings" in str(hsd.compile(PROMPTS, 0.9))
    assert "so tau, and who shares with whom, are an estimate" in str(hsd.compile(PROMPTS, budget=0.2))
    assert "estimate" not in str(hsd.compile(PROMPTS, 0.0))
    assert "estimate" not in str(hsd.compile(PROMPTS, 0.9, model=model))


@pytest.mark.parametrize(
    ("options", "error"),
    [({"batch_size": 0}, "batch_size"), ({"order": "sideways"}, "order"), ({"batch_size": "many"}, "batch_size")],
)
def test_bad_arguments_are_found_before_anything_is_encoded(model, encoded, options, error, tmp_path):
    plan = hsd.compile(PROMPTS, 0.9, **OPTIONS)
    for work in (lambda: run(plan, model, tmp_path, **options), lambda: hsd.stream(plan, model, **options)):
        with pytest.raises((ValueError, TypeError), match=error):
            work()
    (tmp_path / "file").write_text("")
    with pytest.raises(hsd.OutputError):
        run(plan, model, tmp_path / "file")
    assert encoded == []
