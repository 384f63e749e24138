"""docs/plan.md: its commands run, its Python runs, and its table has the rows that are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import PIL.Image
import platformdirs
import pytest
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.planning.span import Span
from hsd.tuning import speeds

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "plan.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    Path("prompts.txt").write_text("a red star\na blue star\na green ring\na white cross\n", encoding="utf-8")
    speeds.remember(hsd.load("demo"), {16: Span(0.5, 0.6)}, 0.1)
    hsd.compile(["a red star", "a blue star"], 0.5).save("plan.safetensors")
    return tmp_path


@pytest.mark.parametrize("command", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands(command):
    words = shlex.split(command, comments=True)
    assert words[:2] == ["hsd", "plan"]
    result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.output
    [table] = blocks("text")
    if "--plot" in words:
        with PIL.Image.open("plan.png") as picture:
            assert picture.format == "PNG"
        names = [line[:18].strip() for line in table.splitlines()]
        assert names == [line[:18].strip() for line in result.stdout.splitlines()]


def test_python():
    pytest.importorskip("matplotlib")
    [code] = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "plan.md", "exec"), names)
    assert names["plan"].savings >= 0.3


def test_the_picture_is_small():
    assert (DOCS / "plan.png").stat().st_size <= 150_000
