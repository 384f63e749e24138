"""docs/output.md: every command and every snippet runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsd import cli
from hsd.demo import PROMPTS
from hsd.generation.forks import read_forks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "output.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_what_the_page_shows_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS.read_text().splitlines()[:6]))
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 8
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "hsd"
            run = CliRunner().invoke(cli.app, arguments)
            assert run.exit_code == 0, run.output
    assert read_forks("forks") != []
    assert (tmp_path / "shards" / "images-000000.tar").exists()
