"""What the commands print where: results on standard output, the rest on standard error, as much as is asked for."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsd import cli
from hsd.cli import console
from hsd.cli.generate import SOME_FAILED
from hsd.generation.live import RunView
from hsd.work.terminal import VARIABLE


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red star\na blue star\n")
    return ["generate", str(path), "--out", str(tmp_path / "images"), "--steps", "2", "--set", "prior_steps=2"]


def test_by_default(command, tmp_path):
    run = CliRunner().invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    result = run.stdout.splitlines()
    assert len(result) == 2
    assert result[0].startswith(f"2 images in {tmp_path / 'images'}, ")
    assert "clusters by step" in run.stderr
    *_, last = run.stderr.splitlines()
    assert last.startswith(f"hsd: 2 images to {tmp_path / 'images'}, ")
    assert "encoded" not in run.stderr
    assert "hsd report" not in run.output  # only where a person reads it


def test_quiet(command):
    run = CliRunner().invoke(cli.app, [*command, "--quiet"])
    assert (run.exit_code, run.stderr) == (0, "")
    assert run.stdout.startswith("2 images in ")


def test_quiet_still_warns(command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star " + "very " * 90 + "\na blue star\n")
    run = CliRunner().invoke(cli.app, [*command, "-q"])
    assert run.stderr.startswith("hsd: 1 of 2 prompts is longer than the model reads")
    next((tmp_path / "images").glob("*1.png")).write_bytes(b"damaged")
    again = CliRunner().invoke(cli.app, [*command, "-q"])
    assert "was changed or damaged since the last run" in again.stderr
    assert again.stderr.count("\n") == 1


def test_verbose(command):
    run = CliRunner().invoke(cli.app, [*command, "-v"])
    assert "hsd: encoded 2 prompts in " in run.stderr
    assert logging.getLogger("hsd").level == logging.NOTSET
    assert not any(isinstance(handler, console._Messages) for handler in logging.getLogger("hsd").handlers)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_no_progress(command, how, monkeypatch):
    if how == "environment":
        monkeypatch.setenv(VARIABLE, "none")
    run = CliRunner().invoke(cli.app, [*command, *(["--progress", "none"] if how == "option" else [])])
    assert run.exit_code == 0, run.output
    assert "images to" not in run.stderr
    assert "clusters by step" in run.stderr
    assert os.environ.get(VARIABLE) == ("none" if how == "environment" else None)


def test_a_way_that_does_not_exist(command, monkeypatch):
    assert CliRunner().invoke(cli.app, [*command, "--progress", "pretty"]).exit_code == 2
    monkeypatch.setenv(VARIABLE, "pretty")
    assert CliRunner().invoke(cli.app, command).exit_code == 2


@pytest.mark.parametrize("name", [command.callback.__name__ for command in cli.app.registered_commands])
def test_every_command_has_them(name):
    run = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"})
    for option in ("--progress", "--quiet", "-q", "--verbose", "-v"):
        assert option in run.output


PAGE = Path(__file__).resolve().parents[1] / "docs" / "run.md"


def test_the_page_about_runs():
    """It names the options and the exit codes that there are; its Python runs in ``test_snippets``."""
    text = PAGE.read_text(encoding="utf-8")
    shown = CliRunner().invoke(cli.app, ["generate", "--help"], env={"COLUMNS": "200"}).output
    options = re.findall(r"`(--[a-z-]+)", text)
    assert options
    for option in options:
        assert option in shown
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in row.split(",")}
    assert codes == {0, 1, 2, SOME_FAILED, *(128 + number for number in (1, 2, 15))}


@pytest.mark.parametrize(("mode", "bars"), [("none", False), ("plain", False), ("live", True)])
def test_downloads_show_bars_in_the_live_view_alone(mode, bars, monkeypatch):
    monkeypatch.setenv(VARIABLE, mode)
    assert RunView().shows == console.shows_progress() == bars
