"""Times as goals: images per hour and GPU hours are solved for tau by the speed of the model."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from typing import Annotated

import numpy as np
import platformdirs
import pytest
import typer
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.cli.run_line import run_line
from hsd.planning.summary import Summary
from hsd.tuning import speeds
from hsd.tuning.speeds import Speed
from hsd.tuning.time_goal import seconds_to_decode

RUN = CliRunner()
PROMPTS = [f"a {colour} {shape}" for shape in ("star", "ring", "cross") for colour in ("red", "blue", "green", "white")]
N, STEPS = len(PROMPTS), 8


@pytest.fixture(scope="module")
def model():
    return hsd.load("demo", device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    return tmp_path / "cache" / "speeds.json"


def compiled(model, **options):
    return hsd.compile(PROMPTS, model=model, **{"steps": STEPS, **options})


def seconds_of(plan, speed):
    return speed.node_step * plan.node_steps + speed.image * len(plan)


SPEED = Speed(node_step=2.0, image=3.0)
STANDARD = 2.0 * N * STEPS + 3.0 * N


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
@pytest.mark.parametrize("name", ["gpu_hours", "images_per_hour"])
def test_the_smallest_tau_that_is_fast_enough(model, share, name):
    speeds.remember(model, SPEED, 20)
    limit = share * STANDARD
    plan = compiled(model, **{name: limit / 3600 if name == "gpu_hours" else N / limit * 3600})
    assert seconds_of(plan, SPEED) <= limit * (1 + 1e-9)
    smaller = compiled(model, tau=plan.tau * (1 - 1e-6))
    assert seconds_of(smaller, SPEED) > limit
    assert plan.request[name] > 0
    assert plan.request["budget"] is None
    assert f"{plan.cost().goal}, reached by" in str(plan)


def test_no_sharing_is_needed(model):
    speeds.remember(model, SPEED, 20)
    with pytest.warns(hsd.Notice, match=r"need no sharing.*about 3\.8 min, 189 images per hour; tau is 0"):
        plan = compiled(model, gpu_hours=1)
    assert plan.tau == 0
    assert plan.savings == 0
    assert "reached without sharing" in str(plan)


def test_out_of_reach(model):
    speeds.remember(model, SPEED, 20)
    least = compiled(model, tau=1e9)
    seconds = seconds_of(least, SPEED)
    per_hour = N / seconds * 3600
    says = rf"cannot be met: with .* the last, the run.*{per_hour:,.0f} images per hour, of which .* 36\.0 s"
    with pytest.raises(ValueError, match=says):
        compiled(model, images_per_hour=per_hour * 1.01)
    assert compiled(model, images_per_hour=per_hour * 0.99).savings == pytest.approx(least.savings)


def test_images_that_may_not_share_are_never_faster(model):
    speeds.remember(model, SPEED, 20)
    with pytest.raises(ValueError, match="cannot be met: no two images may share a step, and the run takes about"):
        hsd.compile(["a red star"], model=model, steps=STEPS, gpu_hours=1e-6)


def test_rows_count_where_guidance_varies(model):
    speeds.remember(model, SPEED, 20)
    half = hsd.load("demo", device="cpu", guidance_interval=(0.0, 0.5))
    limit = 0.7 * STANDARD
    plan = compiled(half, gpu_hours=limit / 3600)
    rows = 1 + (np.arange(STEPS) < STEPS // 2)
    assert seconds_of(plan, SPEED) > limit  # by rows it is within it
    assert plan.counts() @ rows / 2 * SPEED.node_step + 3.0 * N <= limit * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpu_hours": 1, "tau": 1.0}, r"give only one of tau \(1.0\) and gpu_hours \(1\), not both"),
        ({"gpu_hours": 1, "budget": 0.5}, "not both"),
        ({"images_per_hour": 1, "gpu_hours": 2}, "not both"),
        ({"images_per_hour": 0}, "images_per_hour is 0"),
        ({"gpu_hours": float("nan")}, "gpu_hours is nan"),
        ({"gpu_hours": -1}, "gpu_hours is -1"),
    ],
)
def test_bad_goals(model, options, says):
    with pytest.raises(ValueError, match=says):
        compiled(model, **options)


def test_a_time_needs_a_model():
    with pytest.raises(ValueError, match=r"images_per_hour \(5\) needs a model"):
        hsd.compile(PROMPTS, images_per_hour=5)


def test_a_speed_that_is_not_known_is_measured(model, cache):
    with pytest.warns(hsd.Notice) as said:
        plan = compiled(model, gpu_hours=100)
    first, second = (str(notice.message) for notice in said)
    assert first.startswith("the speed of demo on this machine was not known: measured in")
    assert second.startswith("100 GPU hours need no sharing")
    [where] = {(notice.filename, notice.lineno) for notice in said}  # where hsd.compile was called
    assert where == (__file__, compiled.__code__.co_firstlineno + 1)
    assert plan.tau == 0
    found = speeds.recall(model)
    assert found.node_step > 0
    assert found.image > seconds_to_decode(model, 1) / 20
    assert json.loads(cache.read_text())[speeds.key(model)]["images"] == 1


def test_a_run_measures_all_that_an_image_takes(model, tmp_path):
    plan = compiled(model)
    run = hsd.generate(plan, model, tmp_path / "images", progress=False)
    speed = speeds.recall(model)
    assert speed.node_step == pytest.approx(run.seconds["denoise"] / plan.node_steps)
    assert speed.image * N >= run.seconds["decode"]
    assert speed.image * N <= run.seconds["total"] - run.seconds["denoise"] + 10  # and encoding, when it was compiled
    _, conditioning = hsd.models.encode.encoded(plan)
    assert conditioning.seconds > 0
    assert speed.image >= conditioning.seconds


def test_short_runs_do_not_replace_long_ones(model):
    speeds.remember(model, Speed(1.0, 1.0), 5)
    speeds.remember(model, Speed(2.0, 1.0), 6)
    assert speeds.recall(model).node_step == 2.0
    speeds.remember(model, Speed(3.0, 1.0), 100)
    speeds.remember(model, Speed(4.0, 1.0), 15)
    assert speeds.recall(model).node_step == 3.0
    speeds.remember(model, Speed(5.0, 1.0), 16)
    assert speeds.recall(model).node_step == 5.0


def test_speeds_of_earlier_versions_are_read(model, cache):
    cache.parent.mkdir()
    cache.write_text(json.dumps({speeds.key(model): 0.25}))
    assert speeds.recall(model) == Speed(0.25, None)
    summary = hsd.tuning.passes.cost(compiled(model, tau=0), model)
    assert summary.seconds == 0.25 * N * STEPS
    assert summary.other_seconds is None
    assert "whole run" not in str(summary)
    with pytest.warns(hsd.Notice) as said:
        compiled(model, gpu_hours=100)
    assert "was not known" in str(said[0].message)  # what an image takes beside the denoiser
    assert speeds.recall(model).image is not None


def test_a_plan_of_a_time_is_continued_also_if_the_speed_is_another(model, tmp_path):
    options = {"gpu_hours": 0.7 * STANDARD / 3600, "reuse": tmp_path}
    speeds.remember(model, SPEED, 20)
    plan = compiled(model, **options)
    plan.save(tmp_path / "plan.safetensors")
    speeds.remember(model, Speed(1.5, 3.0), 20)
    assert compiled(model, **options).fingerprint == plan.fingerprint
    assert compiled(model, **{**options, "reuse": None}).fingerprint != plan.fingerprint


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "my prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def invoke(*words):
    result = RUN.invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def test_the_command_line(model, prompts, tmp_path):
    speeds.remember(hsd.load("demo"), SPEED, 20)
    hours = ["--gpu-hours", 0.8 * STANDARD / 3600, "--steps", STEPS]
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json", *hours).stdout)
    assert numbers["run_seconds"] <= 0.8 * STANDARD
    assert numbers["standard_run_seconds"] == pytest.approx(STANDARD)
    assert numbers["goal"] == {"gpu_hours": pytest.approx(0.8 * STANDARD / 3600)}
    out = tmp_path / "images"
    made = invoke("generate", prompts, "--out", out, *hours).output
    assert f"{numbers['node_steps']:,} instead of {N * STEPS}" in made
    assert "12 existed already" in invoke("generate", prompts, "--out", out, *hours).output  # the speed is another now
    refused = RUN.invoke(cli.app, ["plan", str(prompts), "--gpu-hours", "1"])
    assert "needs a model" in str(refused.exception)


def test_a_typed_time_replaces_the_threshold_of_a_settings_file(prompts, tmp_path):
    speeds.remember(hsd.load("demo"), SPEED, 20)
    (tmp_path / "own.json").write_text(json.dumps({"budget": 0.1, "steps": STEPS}))
    hours = ["--gpu-hours", str(0.8 * STANDARD / 3600), "--settings", tmp_path / "own.json"]
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json", *hours).stdout)
    assert list(numbers["goal"]) == ["gpu_hours"]
    assert numbers["steps"] == STEPS


@pytest.mark.parametrize(
    "options",
    [
        ["--budget", "0.3", "--steps", "3"],
        ["--tau", "0.9", "--steps", "4", "--seed", "7", "--images-per-prompt", "2", "--linkage", "average"],
        ["--steps", "4", "--guidance-interval", "0", "0.5", "--max-slots", "9"],
    ],
    ids=" ".join,
)
def test_the_command_of_a_plan_runs_it(options, prompts, tmp_path):
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json", *options).stdout)
    words = shlex.split(numbers["command"])
    assert words[:2] == ["hsd", "generate"]
    made = invoke(*[str(tmp_path / "images") if word == "FOLDER" else word for word in words[1:]]).output
    assert f"{numbers['node_steps']:,} evaluations of the denoiser instead of" in made


def test_the_command_names_no_model_that_was_not_asked_for(prompts, tmp_path):
    shown = invoke("plan", prompts, "--budget", "0.3", "--save", tmp_path / "p.safetensors").output
    assert re.search(r"to run it +hsd generate '.*my prompts.txt' --budget 0.3 --model MODEL --out FOLDER\n", shown)
    assert "the built-in encoder stands in for the model's own embeddings" in shown
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(N, 4)))
    shown = invoke("plan", prompts, "--embeddings", tmp_path / "e.npy").output
    assert re.search(r"to run it +hsd generate --plan FILE --model MODEL --out FOLDER, with the FILE of --save", shown)
    assert "stands in" not in shown


def test_options_that_can_be_repeated_are_repeated():
    app = typer.Typer()

    @app.command()
    def command(
        ctx: typer.Context, prompts: str, column: Annotated[list[str], typer.Option()] = (), keep: bool = False
    ) -> None:
        typer.echo(run_line(ctx))

    shown = RUN.invoke(app, ["a b.txt", "--column", "x=y z", "--column", "u=v", "--keep"]).output
    assert shown == "hsd generate 'a b.txt' --column 'x=y z' --column u=v --keep --model MODEL --out FOLDER\n"


def test_json_has_what_the_table_has(model, prompts):
    """Each entry of a summary has its numbers in JSON, so that no new one is forgotten."""
    speeds.remember(hsd.load("demo"), SPEED, 20)
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json").stdout)
    elsewhere = {
        "correlation": "metric_correlation",
        "run": "calls",
        "seconds_per_node_step": "seconds",
        "seconds_per_image": "other_seconds",
    }
    assert {elsewhere.get(field.name, field.name) for field in fields(Summary)} <= set(numbers)
    assert {"batch_size", "rows_per_call", "calls_lower_bound", "occupancy", "slots"} <= set(numbers)
    assert numbers["run_seconds"] == pytest.approx(numbers["seconds"] + numbers["other_seconds"])


def test_plots_of_the_command_line(prompts, tmp_path):
    invoke("plan", prompts, "--plot", tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_bytes().startswith(b"<?xml")
    refused = RUN.invoke(cli.app, ["plan", "missing.txt", "--plot", str(tmp_path / "plan.jpg")])
    assert "has to end in .png, .svg, .pdf" in str(refused.exception)  # before the prompts are read
