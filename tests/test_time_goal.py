"""Times as goals: images per hour and GPU hours are solved for tau by the speed of the model."""

from __future__ import annotations

import dataclasses
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
from hsd.planning.span import Span
from hsd.planning.summary import Summary
from hsd.tuning import speeds
from hsd.tuning.curve import Curve
from hsd.tuning.speeds import Parts, Speeds
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


NODE_STEP, IMAGE = 2.0, 3.0
STANDARD = NODE_STEP * N * STEPS + IMAGE * N


def seconds_of(plan):
    return NODE_STEP * plan.node_steps + IMAGE * len(plan)


def know(model, node_step=NODE_STEP, image=IMAGE):
    speeds.remember(model, {16: Span(node_step, node_step)}, image)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
@pytest.mark.parametrize("name", ["gpu_hours", "images_per_hour"])
def test_the_smallest_tau_that_is_fast_enough(model, share, name):
    know(model)
    limit = share * STANDARD
    plan = compiled(model, **{name: limit / 3600 if name == "gpu_hours" else N / limit * 3600})
    assert seconds_of(plan) <= limit * (1 + 1e-9)
    smaller = compiled(model, tau=plan.tau * (1 - 1e-6))
    assert seconds_of(smaller) > limit
    assert plan.request[name] > 0
    assert plan.request["budget"] is None
    assert f"{plan.cost().goal}, reached by" in str(plan)


def test_no_sharing_is_needed(model):
    know(model)
    with pytest.warns(hsd.Notice, match=r"need no sharing.*about 3\.8 min, 189 images per hour; tau is 0"):
        plan = compiled(model, gpu_hours=1)
    assert plan.tau == 0
    assert plan.savings == 0
    assert "reached without sharing" in str(plan)


def test_out_of_reach(model):
    know(model)
    least = compiled(model, tau=1e9)
    seconds = seconds_of(least)
    per_hour = N / seconds * 3600
    says = rf"cannot be met: with .* the last, the run.*{per_hour:,.0f} images per hour, of which .* 36\.0 s"
    with pytest.raises(ValueError, match=says):
        compiled(model, images_per_hour=per_hour * 1.01)
    assert compiled(model, images_per_hour=per_hour * 0.99).savings == pytest.approx(least.savings)


def test_images_that_may_not_share_are_never_faster(model):
    know(model)
    with pytest.raises(ValueError, match="cannot be met: no two images may share a step, and the run takes about"):
        hsd.compile(["a red star"], model=model, steps=STEPS, gpu_hours=1e-6)


def test_rows_count_where_guidance_varies(model):
    know(model)
    half = hsd.load("demo", device="cpu", guidance_interval=(0.0, 0.5))
    limit = 0.7 * STANDARD
    plan = compiled(half, gpu_hours=limit / 3600)
    rows = 1 + (np.arange(STEPS) < STEPS // 2)
    assert seconds_of(plan) > limit  # by rows it is within it
    assert plan.counts() @ rows / 2 * NODE_STEP + 3.0 * N <= limit * (1 + 1e-9)


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
    assert min(found.sizes) == 1
    assert found.image.low > seconds_to_decode(model, 1) / 20
    assert [len(one) for one in json.loads(cache.read_text())[speeds.key(model)]["sizes"].values()] == [1] * len(
        found.sizes
    )


# ------------------------------------------------------------------------------- what is remembered


def test_a_run_that_was_long_enough_is_remembered(model, tmp_path, monkeypatch):
    plan = compiled(model, tau=0)
    monkeypatch.setattr(speeds, "LEAST_SECONDS", 1e9)
    hsd.generate(plan, model, tmp_path / "short", batch_size=2, progress=False)
    assert speeds.recall(model) is None
    monkeypatch.setattr(speeds, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(speeds, "LEAST_IMAGES", N)
    run = hsd.generate(plan, model, tmp_path / "images", batch_size=2, progress=False)
    found = speeds.recall(model)
    assert list(found.sizes) == [2]
    span = found.sizes[2]
    assert 0 < span.low <= run.seconds["denoise"] / plan.node_steps
    assert span.low < span.high  # parts of a run are never equally fast
    assert found.image.low * N >= run.seconds["decode"]
    _, conditioning = hsd.models.encode.encoded(plan)
    assert found.image.low >= conditioning.seconds > 0


def test_a_run_in_parts():
    parts = Parts()
    for _ in range(2):
        parts.add(100.0, 1.0, True)  # compiled, captured
    for i in range(80):
        parts.add(3.0 if i < 40 else 2.0, 10.0, i % 2 == 0)
        assert len(parts._parts) < 16
    assert (parts.full, parts.seconds) == (40, 200.0)
    assert parts.span() == Span(0.2, 0.3)
    short = Parts()
    for _ in range(33):
        short.add(3.0, 10.0, True)
    assert short.span() is None  # 31 full calls are timed
    short.add(3.0, 10.0, True)
    assert short.span() == Span(0.3, 0.3)
    enqueued = Parts(9)
    for _ in range(2 + 9):
        enqueued.add(0.0, 10.0, True)  # the host is ahead of the device
    for _ in range(32):
        enqueued.add(3.0, 10.0, True)
    assert enqueued.span() == Span(0.3, 0.3)
    quick = Parts()
    for _ in range(1000):
        quick.add(0.001, 10.0, True)
    assert quick.span() is None


def test_measurements_are_joined(model):
    for low, high in [(9.0, 9.0), *[(2.0, 3.0)] * 7, (1.5, 2.5)]:  # of nine, the first is forgotten
        speeds.remember(model, {4: Span(low, high)}, low)
    found = speeds.recall(model)
    assert found == Speeds({4: Span(1.5, 3.0)}, Span(1.5, 2.0), False)
    curve = Curve((1, 2, 8), (1.0, 1.5, 4.0), None, "the time per lane no longer falls", ((1, 2), (1, 2), (4, 6)))
    speeds.remember_curve(model, curve, compile=True)
    assert speeds.recall(model) == found
    own = speeds.recall(model, compile=True)
    assert own == Speeds({1: Span(1, 2), 2: Span(0.5, 1), 8: Span(0.5, 0.75)}, None, True)


def test_speeds_between_measured_sizes():
    known = Speeds({2: Span(1.0, 2.0), 8: Span(0.5, 1.5)})
    assert known.at(2) == Span(1.0, 2.0)
    assert known.at(5) == Span((2.0 + 4.0) / 2 / 5, (4.0 + 12.0) / 2 / 5)  # calls on the line between
    assert known.at(1) is known.at(16) is None
    assert known.at(None) == Span(0.5, 1.5)
    assert Speeds(known.sizes, None, True).at(16) == Span(0.5, 1.5)
    assert Speeds({}).at(4) is Speeds({}).at(None) is None


def test_times_are_ranges_that_were_measured(model):
    plan = compiled(model, tau=0.3)
    nothing = hsd.generation.cost(plan, model)
    assert nothing.seconds is None
    assert re.search(r"time +not known: hsd bench demo measures it, and so does a run", str(nothing))
    assert "denoising time" not in str(nothing)
    of_object = hsd.cost(plan, dataclasses.replace(model, name="stable-diffusion"))
    assert of_object.no_time.startswith("hsd.bench.bench(model, prompts) measures it")
    speeds.remember(model, {16: Span(1.0, 1.25)}, 3.0)
    speeds.remember(model, {16: Span(1.125, 1.5)}, 4.0)
    summary = hsd.generation.cost(plan, model)
    n = plan.node_steps
    assert summary.seconds == Span(n, 1.5 * n)
    assert summary.standard_seconds == Span(N * STEPS, 1.5 * N * STEPS)
    assert summary.other_seconds == Span(3.0 * N, 4.0 * N)
    numbers = summary.numbers()
    assert numbers["run_seconds"] == [n + 3.0 * N, 1.5 * n + 4.0 * N]
    assert f"{n + 3.0 * N:.1f} to {1.5 * n + 4.0 * N:.1f} s" in str(summary) or " min instead of " in str(summary)
    assert "images per hour" in str(summary)
    assert "only batches of 16 were measured;" in hsd.generation.cost(plan, model, 4).no_time
    assert hsd.generation.cost(plan, model, channels_last=True).seconds is None


def test_spans_as_text():
    assert str(Span(0.0123, 0.2)) == "12 to 200 ms"
    assert str(Span(59.96, 60.04)) == "about 60.0 s"
    assert str(Span(119.0, 180.0)) == "2.0 to 3.0 min"
    assert str(Span(3600.0, 7200.0)) == "1.0 to 2.0 h"


@pytest.mark.parametrize("entry", [0.25, {"node_step": 0.25, "image": 0.1, "images": 10}], ids=["number", "object"])
def test_speeds_of_earlier_versions_may_be_of_few_evaluations(model, cache, entry):
    cache.parent.mkdir()
    cache.write_text(json.dumps({speeds.key(model): entry}))
    assert speeds.recall(model) is None
    know(model)
    assert speeds.recall(model).sizes == {16: Span(NODE_STEP, NODE_STEP)}


def test_a_plan_of_a_time_is_continued_also_if_the_speed_is_another(model, tmp_path):
    options = {"gpu_hours": 0.7 * STANDARD / 3600, "reuse": tmp_path}
    know(model)
    plan = compiled(model, **options)
    plan.save(tmp_path / "plan.safetensors")
    know(model, 2.5)
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
    know(hsd.load("demo"))
    hours = ["--gpu-hours", 0.8 * STANDARD / 3600, "--steps", STEPS]
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json", *hours).stdout)
    assert numbers["run_seconds"][1] <= 0.8 * STANDARD
    assert numbers["standard_run_seconds"] == pytest.approx([STANDARD, STANDARD])
    assert numbers["goal"] == {"gpu_hours": pytest.approx(0.8 * STANDARD / 3600)}
    out = tmp_path / "images"
    made = invoke("generate", prompts, "--out", out, *hours).output
    assert f"{numbers['node_steps']:,} instead of {N * STEPS}" in made
    assert "12 existed already" in invoke("generate", prompts, "--out", out, *hours).output  # the speed is another now
    next(out.glob("*.png")).unlink()
    known = speeds.recall(hsd.load("demo"))
    left = json.loads(invoke("plan", prompts, "--model", "demo", "--out", out, "--json", *hours).stdout)
    for end in (0, 1):
        denoising = known.sizes[16].ends()[end] * left["missing_node_steps"]
        assert left["missing_seconds"][end] == pytest.approx(denoising + known.image.ends()[end])
    refused = RUN.invoke(cli.app, ["plan", str(prompts), "--model", "stand-in", "--gpu-hours", "1"])
    assert "needs a model" in str(refused.exception)


def test_a_typed_time_replaces_the_threshold_of_a_settings_file(prompts, tmp_path):
    know(hsd.load("demo"))
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
    shown = invoke("plan", prompts, "--model", "stand-in", "--budget", "0.3").output
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
    assert shown == "hsd generate 'a b.txt' --column 'x=y z' --column u=v --keep --out FOLDER\n"


def test_json_has_what_the_table_has(model, prompts):
    """Each entry of a summary has its numbers in JSON, so that no new one is forgotten."""
    know(hsd.load("demo"))
    numbers = json.loads(invoke("plan", prompts, "--model", "demo", "--json").stdout)
    elsewhere = {
        "correlation": "metric_correlation",
        "run": "calls",
    }
    assert {elsewhere.get(field.name, field.name) for field in fields(Summary)} <= set(numbers)
    assert {"batch_size", "rows_per_call", "calls_lower_bound", "occupancy", "slots"} <= set(numbers)
    sums = [ours + other for ours, other in zip(numbers["seconds"], numbers["other_seconds"], strict=True)]
    assert numbers["run_seconds"] == pytest.approx(sums)


def test_plots_of_the_command_line(prompts, tmp_path):
    invoke("plan", prompts, "--model", "stand-in", "--plot", tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_bytes().startswith(b"<?xml")
    refused = RUN.invoke(cli.app, ["plan", "missing.txt", "--plot", str(tmp_path / "plan.jpg")])
    assert "has to end in .png, .svg, .pdf" in str(refused.exception)  # before the prompts are read
