"""What HSD warns of is one plain line of a command, and a warning in Python; so are files that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hsd
import tiny
from hsd import cli
from hsd.work.text import listed, shortened

pytestmark = pytest.mark.faults
RUN = CliRunner()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    return str(path)


def test_every_warning_class_is_a_notice():
    assert issubclass(hsd.Notice, UserWarning)
    assert issubclass(hsd.OtherVersions, hsd.Notice)
    with pytest.warns(hsd.Notice, match="has no effect"):
        hsd.compile(["a cat"], budget=0.1)
    with pytest.warns(hsd.Notice, match="1 of 1 prompt is longer than the model reads"):
        hsd.compile(["x" * 100], model=hsd.load(tiny.stable_diffusion(), height=32, width=32), steps=2)


@pytest.mark.parametrize("command", ["plan", "generate"])
def test_a_command_says_it_in_one_line(command, prompts, tmp_path):
    arguments = [command, prompts, "--budget", "0.1", "--steps", "2"]
    ran = RUN.invoke(cli.app, [*arguments, *(["--out", str(tmp_path / "out")] if command == "generate" else [])])
    assert ran.exit_code == 0, ran.output
    assert "hsd: a budget of 0.1 has no effect: there is one image" in ran.stderr.splitlines()
    assert ".py:" not in ran.output
    assert "Warning" not in ran.output


def test_a_file_that_cannot_be_written_is_one_line(prompts, tmp_path):
    code = "import sys; from hsd.cli import main; main()"
    path = str(tmp_path / "none" / "plan.safetensors")
    command = [sys.executable, "-c", code, "plan", prompts, "--model", "stand-in", "--save", path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1
    assert ran.stderr == f"hsd: cannot write {path}: there is no folder {tmp_path / 'none'}\n"


def test_shortened_and_listed():
    assert shortened("x" * 60) == "x" * 60
    assert shortened("x" * 61) == "x" * 57 + "..."
    assert listed(["a", "b"], 2) == "a; b"
    assert listed([str(i) for i in range(2003)], 3) == "0; 1; 2; and 2,000 more"


@pytest.mark.parametrize("name", ["cfg", "cfg_scale", "Guidance"])
def test_names_of_other_programs_are_known_without_a_file_too(name):
    with pytest.raises(TypeError, match=r"did you mean 'guidance_scale'\?"):
        hsd.load(tiny.stable_diffusion(), **{name: 3})


def test_a_study_of_an_earlier_version_is_continued_by_its_model_only(tmp_path):
    from hsd.generation.differences import claim_model, early_identity
    from hsd.models.identity import image_identity
    from hsd.work.files import claim

    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    study = {"model": "another", "settings": json.loads(json.dumps(model.settings)), "steps": 3}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert claim(tmp_path / "study.json", {**early_identity(tmp_path, model), "steps": 3}) == ("model", "another")
    claim_model(tmp_path, image_identity(model))  # as this version does: the name does not count
    assert early_identity(tmp_path, model) == {}
