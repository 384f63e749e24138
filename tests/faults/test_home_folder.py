"""Paths that begin with ~: a shell leaves it alone inside quotes and in ``--out=~/images``, and so does Python."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import hsd
from hsd import cli, demo
from hsd.planning.chosen import Settings, load_settings
from hsd.work.paths import user_path

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder, and another working directory, in which nothing may appear."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    (home / "prompts.txt").write_text("a red circle\na blue square\n")
    (home / "model").symlink_to(demo.FOLDER)
    yield home
    assert not list(elsewhere.iterdir())


def command(*args):
    result = CliRunner().invoke(cli.app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_commands(home):
    np.save(home / "e.npy", np.eye(2, 4))
    command("plan", "~/prompts.txt", "--steps=4", "--embeddings=~/e.npy", "--save=~/p.plan")
    assert (home / "p.plan").is_file()
    arguments = ["generate", "~/prompts.txt", "--model=~/model", "--steps=3", "--set=prior_steps=2", "--out=~/images"]
    assert "2 images" in command(*arguments)
    assert len(list((home / "images").glob("*.png"))) == 2
    assert "2 existed already" in command(*arguments)


def test_python(home):
    plan = hsd.compile(["a cat", "a dog"], embeddings=np.eye(2, 4), steps=4)
    plan.save("~/plan.safetensors")
    assert hsd.Plan.load("~/plan.safetensors").fingerprint == plan.fingerprint
    Settings(steps=4).save("~/settings.json")
    assert load_settings("~/settings.json") == Settings(steps=4)
    assert hsd.load("~/model").name == str(home / "model")


def test_a_user_that_does_not_exist():
    assert str(user_path("~nobody-has-this-name/x")) == "~nobody-has-this-name/x"
