"""Settings as a file: what is written is what is read, errors name the key, and the command line wins."""

from __future__ import annotations

import json
import re

import pytest
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.planning.chosen import SettingsError
from hsd.sampler.named import NoSuchSampler, scheduler_named

RUN = CliRunner()
FULL = {
    "steps": 12,
    "tau": 0.1 + 0.2,
    "catch_up": 1.0,
    "metric": "cosine",
    "schedule": "cosine",
    "guidance_interval": (0.0, 0.6),
    "scheduler": "deterministic",
    "evidence": {"sentence": "because"},
}


def test_round_trip(tmp_path):
    path = tmp_path / "hsd-settings.json"
    settings = hsd.Settings(**FULL)
    settings.save(path)
    again = hsd.load_settings(path)
    assert again == settings
    assert again.evidence == {"sentence": "because"}
    assert again.compile_arguments() == {key: FULL[key] for key in ("steps", "tau", "catch_up", "metric", "schedule")}
    assert again.model_arguments() == {"guidance_interval": (0.0, 0.6), "scheduler": "deterministic"}
    assert hsd.Settings().compile_arguments() == hsd.Settings().model_arguments() == {}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"stepz": 3}, "unknown key 'stepz': did you mean 'steps'?"),
        ({"steps": "3"}, "steps has to be an integer, not '3'"),
        ({"steps": 0}, "steps is 0"),
        ({"tau": -1}, "tau is -1"),
        ({"tau": "much"}, "tau is 'much'"),
        ({"tau": 10**400}, "tau is an integer that is too large"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"tau": 1, "budget": 0.5}, "give one of them"),
        ({"catch_up": -0.5}, "catch_up is -0.5"),
        ({"catch_up": True}, "catch_up is True"),
        ({"metric": "manhattan"}, "metric is 'manhattan'"),
        ({"metric": ["cosine"]}, r"metric is \['cosine'\]"),
        ({"schedule": "square"}, "schedule is 'square'"),
        ({"guidance_interval": [0.6, 0.2]}, r"guidance_interval is \[0.6, 0.2\]"),
        ({"guidance_interval": 0.6}, "guidance_interval is 0.6"),
        ({"guidance_interval": [0, "x"]}, r"guidance_interval\[1\] is 'x'"),
        ({"scheduler": 3}, "scheduler is 3"),
        ({"evidence": "none"}, "evidence is 'none'"),
        ([1], "holds list, not a JSON object"),
    ],
    ids=str,
)
def test_errors_name_the_file_and_the_key(document, says, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SettingsError, match=says) as raised:
        hsd.load_settings(path)
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match="cannot read settings"):
        hsd.load_settings(tmp_path / "none.json")
    for text in ("{", "[" * 100_000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(SettingsError, match="is not JSON"):
            hsd.load_settings(tmp_path / "bad.json")


@pytest.fixture
def files(tmp_path):
    prompts, path = tmp_path / "prompts.txt", tmp_path / "hsd-settings.json"
    prompts.write_text("a red star\na blue star\na green ring\na green star\n")
    hsd.Settings(steps=5, tau=0.7, schedule="paper-eq7").save(path)
    return prompts, path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], {"steps": 5, "tau": 0.7, "budget": None, "schedule": "paper-eq7"}),
        (["--steps", "40"], {"steps": 40, "tau": 0.7, "budget": None, "schedule": "paper-eq7"}),  # 40: the default
        (["--budget", "0.2"], {"steps": 5, "budget": 0.2, "schedule": "paper-eq7"}),
        (["--schedule", "linear", "--tau", "0"], {"steps": 5, "tau": 0.0, "schedule": "linear"}),
    ],
    ids=str,
)
def test_typed_options_win(files, tmp_path, typed, expected):
    prompts, path = files
    saved = tmp_path / "plan.safetensors"
    run = RUN.invoke(
        cli.app, ["plan", str(prompts), "--model", "stand-in", "--settings", str(path), "--save", str(saved), *typed]
    )
    assert run.exit_code == 0, run.output
    request = hsd.Plan.load(saved).request
    assert {key: request[key] for key in expected} == expected


def test_generate_takes_the_scheduler_and_the_steps(files, tmp_path):
    prompts, path = files
    hsd.Settings(steps=3, tau=0.0, scheduler="DDIMScheduler").save(path)
    out = tmp_path / "images"
    command = ["generate", str(prompts), "--out", str(out), "--settings", str(path)]
    run = RUN.invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    assert "12 evaluations of the denoiser instead of 12" in run.output
    record = json.loads((out / "run.json").read_text())
    assert record["runs"][0]["scheduler"] == record["identity"]["model"]["scheduler"]["class"] == "DDIMScheduler"
    # The folder does not mix images of two schedulers.
    hsd.Settings(steps=3, tau=0.0).save(path)
    other = RUN.invoke(cli.app, command)
    assert isinstance(other.exception, hsd.PlanMismatch)
    assert re.search("another model.*scheduler", str(other.exception))


def test_a_bad_file_is_an_error_before_the_model_is_loaded(files, tmp_path):
    prompts, path = files
    path.write_text('{"stpes": 3}')
    command = ["generate", str(prompts), "--out", str(tmp_path / "i"), "--settings", str(path), "--model", "dmeo"]
    assert "did you mean 'steps'" in str(RUN.invoke(cli.app, command).exception)


def test_settings_of_another_model_are_said(files):
    prompts, path = files
    hsd.Settings(steps=5, tau=0.7, evidence={"model": "sdxl"}).save(path)
    command = ["plan", str(prompts), "--model", "stand-in", "--settings", str(path)]
    assert "was chosen for sdxl" in RUN.invoke(cli.app, command).output
    hsd.Settings(steps=5, tau=0.7).save(path)
    assert "was chosen for" not in RUN.invoke(cli.app, command).output


def test_schedulers_by_name(model):
    own = model.scheduler()
    assert type(scheduler_named("deterministic", own)) is DDIMScheduler
    assert type(scheduler_named("stochastic", own)) is DDPMScheduler
    euler = scheduler_named("EulerDiscreteScheduler", own)
    assert type(euler) is EulerDiscreteScheduler
    assert euler.config["beta_schedule"] == own.config["beta_schedule"]
    assert scheduler_named(type(own).__name__, own) is own
    with pytest.raises(NoSuchSampler, match="did you mean 'EulerDiscreteScheduler'"):
        scheduler_named("EulerDiscretScheduler", own)
    with pytest.raises(NoSuchSampler, match="Known: deterministic"):
        scheduler_named("zzz", own)
    assert type(hsd.load(model, scheduler="DDIMScheduler").scheduler()) is DDIMScheduler
    assert hsd.load(model, scheduler=None).scheduler() is own
    with pytest.raises(TypeError, match="no setting 'scheduler'"):  # all prompts of a plan have the same steps
        hsd.compile(["a"], model=model, settings=[{"scheduler": "DDIMScheduler"}])
