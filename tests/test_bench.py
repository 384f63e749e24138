"""``hsd bench`` on the bundled model: what it counts, what it compares, and that it does not change the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import json
import re
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import hsd
import tiny
from hsd import cli
from hsd.bench import run as bench
from hsd.bench import settings
from hsd.bench.report import Alone, Report
from hsd.bench.run import Setting
from hsd.demo import PROMPTS as DEMO
from hsd.tuning import batching
from hsd.tuning.curve import Curve

IMAGE = tiny.picture((32, 36))
PROMPTS = DEMO.read_text().splitlines()[:6]
STEPS = 4


@pytest.fixture(scope="module")
def demo():
    return hsd.load("demo", device="cpu", prior_steps=2)


@pytest.fixture(scope="module")
def report(demo):
    return bench.bench(demo, PROMPTS, tau=0.3, steps=STEPS, seconds=1e6)  # more than it takes on any machine


def layouts(adapter):
    kernels = (p for module in adapter.modules() for p in module.parameters() if p.ndim == 4)
    return {p.is_contiguous() or min(p.shape[1:]) == 1 for p in kernels}


def test_the_numbers_add_up(report, demo):
    plan = hsd.compile(PROMPTS, 0.3, model=demo, steps=STEPS)
    planned, run, images = report.plan, report.executor, report.end_to_end
    assert planned.prompts == planned.prompts_given == len(PROMPTS)
    assert (planned.node_steps, planned.standard_node_steps) == (plan.node_steps, len(PROMPTS) * STEPS)
    assert planned.savings == plan.savings
    size = report.alone.batch_size
    program = plan.program(size)
    assert (planned.calls, planned.calls_lower_bound) == (program.n_calls, program.lower_bound)
    assert (planned.occupancy, planned.slots) == (program.occupancy, program.n_slots)
    assert run.prompts == images.prompts == images.diffusers_prompts == len(plan)
    assert (run.node_steps, run.savings) == (plan.node_steps, plan.savings)
    assert run.efficiency == pytest.approx(run.denoiser_seconds / run.seconds)
    best = report.alone.seconds_per_lane[report.alone.best]
    assert run.denoiser_seconds == pytest.approx(run.node_steps * best)
    assert 0 < run.first_image_seconds <= run.seconds
    assert run.one_image_seconds == pytest.approx(STEPS * report.alone.curves["eager"].seconds(1))
    assert images.ideal == pytest.approx(1 / (1 - plan.savings))
    assert 0 < images.encode_seconds_per_image < images.seconds_per_image
    assert images.not_compared is None
    assert images.speed_up == pytest.approx(images.diffusers_seconds_per_image / images.seconds_per_image)
    assert images.not_passed_on == ("prior_steps",)
    assert images.peak_bytes is None  # there is no device to ask
    assert set(report.alone.seconds_per_lane) == {"eager", "channels-last"}
    assert report.alone.flags.startswith(f"--batch-size {size}")


def test_the_table_has_all_rows(report):
    text = str(report)
    assert re.search(r"^demo on cpu \(.*\), 1 thread, float32, 20\d\d-\d\d-\d\dT", text)
    assert f"torch {torch.__version__}" in text
    assert "6 prompts; 4 evaluations per image" in text
    assert re.findall(r"^(\w.*?)(?:,|$)", text.split("\n\n", 1)[1], re.M) == [
        "denoiser by itself",
        f"with {report.alone.batch_size} lanes",
        "plan",
        "executor",
        "end to end",
    ]
    rows = ["eager ", "channels-last ", "best: hsd generate ... --batch-size ", "node-steps ", "calls of ", "slots "]
    rows += ["predicted ", "calls ", "time ", "efficiency ", "first image ", "hsd ", "diffusers ", "speed-up "]
    rows += ["not passed on "]
    for row in rows:
        assert re.search(rf"^  {row}", text, re.M), row
    for lanes in report.alone.curves["eager"].lanes:
        assert re.search(rf"^ +{lanes} +[\d.]+$", text, re.M)
    assert f"{report.plan.node_steps:,} instead of 24" in text
    assert max(map(len, text.splitlines())) < 150


def test_the_model_is_left_as_it_was(report, demo):
    assert layouts(demo) == {True}
    assert not any("forward" in vars(module) for module in demo.modules())
    assert demo._running_dtype is None


def test_on_the_command_line(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "a red star", "seed": 3}\n{"prompt": "a blue star", "guidance_scale": 1.0}\n'
    )
    command = ["bench", "demo", str(tmp_path / "prompts.jsonl"), "--steps", "3", "--budget", "0.2", "--seconds", "1e6"]
    run = CliRunner().invoke(cli.app, [*command, "--set", "prior_steps=2", "--height", "32", "--json"])
    assert run.exit_code == 0, run.output
    assert "settings of single prompts are left out" in run.stderr
    assert "hsd: the diffusers pipeline, on 2 prompts" in run.stderr
    numbers = json.loads(run.stdout)
    assert set(numbers) == {"machine", "alone", "plan", "executor", "end_to_end"}
    assert numbers["plan"]["standard_node_steps"] == 6
    assert numbers["plan"]["node_steps"] <= 4
    assert numbers["alone"]["curves"]["eager"]["lanes"][0] == 1
    assert numbers["end_to_end"]["ideal_speed_up"] >= 1
    assert CliRunner().invoke(cli.app, ["bench"]).exit_code == 2
    bad = CliRunner().invoke(cli.app, [*command[:-1], "0"])
    assert "seconds is 0" in str(bad.exception)


def test_as_much_as_the_time_is_enough_for(demo):
    """With almost no time: four prompts are encoded, one image is generated, and one by the pipeline."""
    report = bench.bench(demo, PROMPTS, tau=0.3, steps=STEPS, seconds=1e-3)
    assert (report.plan.prompts, report.plan.prompts_given) == (4, 6)
    assert "4 prompts of 6, evenly spaced" in str(report)
    few = dataclasses.replace(report.executor, occupancy=0.3)
    assert "30.0% of lanes filled: a short run, --seconds makes it longer" in str(
        dataclasses.replace(report, executor=few)
    )
    assert report.alone.curves["eager"].lanes == (1,)
    assert (report.executor.prompts, report.executor.node_steps) == (1, STEPS)
    assert (report.end_to_end.prompts, report.end_to_end.diffusers_prompts) == (1, 1)


def few(adapter, **options):
    return bench.bench(adapter, PROMPTS[:2], tau=0.3, steps=2, seconds=1e6, **options)


def test_what_cannot_be_compared_says_why(demo, monkeypatch):
    pair = hsd.load((demo.prior_pipe, demo.decoder), height=64, width=64, prior_steps=2)
    result = few(pair).end_to_end
    assert result.not_compared == "a pair of pipelines cannot be called as one"
    assert result.speed_up is None
    kind = type(demo.pipe)

    def refuses(self, prompt, num_inference_steps=1, generator=None, height=0):
        raise TypeError("negative_prompt should be the same type as prompt\nand more")

    monkeypatch.setattr(kind, "__call__", refuses)
    report = few(demo)
    assert "not compared: TypeError: negative_prompt should be the same type as prompt\n" in str(report)
    assert set(report.end_to_end.not_passed_on) >= {"prior_steps", "width", "guidance_scale"}


def test_the_pipeline_gets_the_settings_and_the_seeds(model, monkeypatch):
    adapter = hsd.load(model, negative_prompt="blurry")
    seen = []
    original = type(adapter.pipe).__call__

    def spy(self, prompt, **options):
        seen.append((prompt, options))
        return original(self, prompt, **options)

    spy.__signature__ = inspect.signature(original)
    monkeypatch.setattr(type(adapter.pipe), "__call__", spy)
    report = few(adapter, seeds=[8, 9])
    assert report.end_to_end.not_compared is None
    assert report.end_to_end.not_passed_on == ()
    assert [text for prompt, _ in seen for text in prompt] == PROMPTS[:2]
    for prompt, options in seen:
        assert options["negative_prompt"] == ["blurry"] * len(prompt)
        assert options["num_inference_steps"] == 2
        assert options["height"] == options["width"] == 32
        assert options["guidance_scale"] == adapter.guidance_scale
        assert len(options["generator"]) == len(prompt)
    assert [g.initial_seed() for _, options in seen for g in options["generator"]] == [8, 9]


@pytest.mark.parametrize(
    ("build", "settings", "left_out"),
    [
        (tiny.sd_from_image, {"image": IMAGE, "strength": 0.5}, ()),
        (tiny.sd_from_image, {"image": IMAGE, "height": 16}, ("height",)),  # of which the pipeline has no parameter
        (tiny.sd_control, {"image": IMAGE}, ()),
        (partial(tiny.sd_control, n=2), {"image": [IMAGE, IMAGE], "control_guidance_start": [0.0, 0.3]}, ()),
    ],
)
def test_the_pipeline_gets_the_images(build, settings, left_out):
    result = few(hsd.load(build(), **settings)).end_to_end
    assert result.not_compared is None
    assert result.not_passed_on == left_out


def test_the_pipeline_is_called_in_smaller_batches_where_it_runs_out_of_memory(model, monkeypatch):
    batches = []
    original = type(model.pipe).__call__

    def spy(self, prompt, **options):
        batches.append(len(prompt))
        if len(prompt) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, prompt, **options)

    spy.__signature__ = inspect.signature(original)
    monkeypatch.setattr(type(model.pipe), "__call__", spy)
    monkeypatch.setattr(bench, "choose", partial(batching.choose, sizes=[2]))
    with pytest.warns(UserWarning, match="out of memory with 2 images in a call of the pipeline"):
        result = few(model).end_to_end
    assert batches == [2, 1, 1]
    assert (result.diffusers_prompts, result.diffusers_batch_size) == (2, 1)


def test_a_compiler_that_fails_costs_one_row(demo, monkeypatch):
    class Broken:
        def __init__(self, modules, size):
            raise RuntimeError("no C++ compiler found\nlong story")

    monkeypatch.setattr(settings, "Compiled", Broken)
    report = few(demo, compile=True)
    [(name, reason)] = report.alone.failed.items()
    assert name in ("compile", "channels-last + compile")
    assert reason == "no C++ compiler found"
    assert "--compile" not in report.alone.flags
    assert re.search(r"compile +failed: no C\+\+ compiler found$", str(report), re.M)
    assert layouts(demo) == {True}


def test_a_compiled_best_is_used_and_undone(demo, monkeypatch):
    """The compiler itself is left out; the executor runs with the setting with which the denoiser was fastest."""
    used = []
    measured = bench._Bench._measure

    def measure(self, setting, leaves, **options):
        curve = measured(self, setting, leaves, **options)
        faster = tuple(seconds / (10 if setting.compile else 1) for seconds in curve.seconds_per_call)
        return dataclasses.replace(curve, seconds_per_call=faster)

    class Marked:
        def __init__(self, modules, size, *, dynamic=False):
            used.append(size)
            self.size = size

        def for_lanes(self, size):
            return contextlib.nullcontext()

    monkeypatch.setattr(bench._Bench, "_measure", measure)
    monkeypatch.setattr(settings, "Compiled", Marked)
    monkeypatch.setattr("hsd.replay.executor.Compiled", Marked)
    report = few(demo, compile=True)
    assert "compile" in report.alone.best
    assert "--compile" in report.alone.flags
    assert len(used) == 4  # the setting, the executor with its first run, and the images
    assert set(used) == {report.alone.batch_size}
    assert not any("forward" in vars(module) for module in demo.modules())


@pytest.mark.parametrize(
    ("setting", "name", "flags"),
    [
        (Setting(), "eager", "--batch-size 8 --no-cuda-graphs"),
        (Setting(cuda_graphs=True), "CUDA graphs", "--batch-size 8"),
        (
            Setting(True, True, True),
            "CUDA graphs + channels-last + compile",
            "--batch-size 8 --channels-last --compile",
        ),
    ],
)
def test_settings_are_flags_of_generate(setting, name, flags):
    assert setting.name == name
    assert setting.flags(8, can_capture=True) == flags
    assert setting.flags(8, can_capture=False) == flags.replace(" --no-cuda-graphs", "")
    generate = CliRunner().invoke(cli.app, ["generate", "--help"], env={"COLUMNS": "200"}).output
    assert all(flag in generate for flag in flags.split() if flag.startswith("--"))


def test_a_layout_is_tried_only_where_it_changes_something(demo):
    assert settings.can_be_laid_out(torch.nn.Conv2d(4, 4, 3))
    assert not settings.can_be_laid_out(torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last))
    assert not settings.can_be_laid_out(torch.nn.Linear(4, 4))
    adapter = copy.copy(demo)
    with contextlib.suppress(KeyError), settings.applied(adapter, Setting(channels_last=True)):
        assert layouts(adapter) == {True, False}
        raise KeyError
    assert layouts(adapter) == {True}


def test_the_table_of_a_gpu(report):
    """Artificial numbers: two curves of different lengths, memory, and both peaks."""
    curves = {
        "eager": Curve((1, 2, 4), (0.02, 0.022, 0.03), (1 << 20, 2 << 20, 4 << 20), "enough"),
        "CUDA graphs": Curve((1, 2), (0.01, 0.015), (1 << 20, 2 << 20), "4 lanes failed: out of memory"),
    }
    per_lane = {"eager": 0.011, "CUDA graphs": 0.0075}
    alone = Alone(curves, 2, per_lane, {}, "CUDA graphs", Setting(cuda_graphs=True).flags(2, True))
    memory = dataclasses.replace(report.end_to_end, peak_bytes=5 << 30, diffusers_peak_bytes=3 << 30)
    made_up: Report = dataclasses.replace(report, alone=alone, end_to_end=memory)
    lines = str(made_up).splitlines()
    table = lines[lines.index("denoiser by itself, ms per lane") + 1 :]
    assert table[:4] == [
        "   lanes         eager   CUDA graphs  MiB per call",
        "       1        20.000        10.000             1",
        "       2        11.000         7.500             2",
        "       4         7.500                           4",
    ]
    assert "  CUDA graphs       7.500   1.47x  best" in lines
    assert "  peak memory       5,120 MiB; diffusers 3,072 MiB" in lines
    assert json.loads(json.dumps(made_up.numbers()))["end_to_end"]["peak_bytes"] == 5 << 30
