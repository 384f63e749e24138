"""docs/prompts.md and examples/: every command is one, every snippet runs, every template gives what is said of it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import hsd
from hsd import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "prompts.md", ROOT / "examples" / "README.md"]
EXAMPLES = ROOT / "examples"


def blocks(page, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for own, text in found if own == language]


def commands(page):
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hsd ")]


COMMANDS = [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    group = typer.main.get_command(cli.app)
    context = group.commands[words[1]].make_context(words[1], words[2:])  # raises for an unknown option
    for file in [text[1:] for text in context.params.get("template") or [] if text.startswith("@")]:
        assert (ROOT / file).is_file()
    wildcards = context.params.get("wildcards")
    assert wildcards is None or str(wildcards) == "wildcards" or (ROOT / wildcards).is_dir()


def test_there_are_commands():
    assert len(COMMANDS) > 8
    with pytest.raises(Exception, match="No such option"):
        test_commands_are_understood(["hsd", "prompts", "--no-such-option"])


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").write_text("caption,seed\na cat,1\na dog,\na cow,\n")
    code = "\n".join(blocks(PAGES[0], "python"))
    names = {}
    exec(code, names)
    assert len(names["plan"].prompts) == 4


def test_what_is_printed(monkeypatch):
    (words,) = [words for words in commands(PAGES[0]) if words[1] == "prompts" and words[2] == "--template"]
    result = CliRunner().invoke(cli.app, words[1:], env={"COLUMNS": "80"})
    printed = [line.rstrip() for line in (result.stderr + result.stdout).splitlines()]
    (shown,) = [block for block in blocks(PAGES[0], "") if "choice_1" in block]
    for line in shown.splitlines():
        assert line in printed, line


@pytest.mark.parametrize(
    ("path", "count", "columns"),
    [
        ("styles/template.txt", 100, ["style"]),
        ("styles/demo.txt", 100, ["colour", "ground", "style"]),
        ("subjects/template.txt", 500, ["animal", "role"]),
        ("subjects/demo.txt", 500, ["size", "colour", "shape", "relation", "ring"]),
        ("try-on/template.txt", 16, ["top", "bottom"]),
        ("try-on/demo.txt", 16, ["top", "bottom"]),
    ],
)
def test_examples(path, count, columns):
    (template,) = [line for line in (EXAMPLES / path).read_text().splitlines() if not line.startswith("#")]
    folder = EXAMPLES / path.split("/")[0] / "wildcards"
    file = hsd.expand_template(template, wildcards=folder if folder.is_dir() else None)
    assert len(set(file.prompts)) == len(file.prompts) == count
    assert list(file.columns) == columns
    if path.endswith("demo.txt"):
        sys.path.insert(0, str(ROOT / "tools"))
        from demo_model.language import parse

        for prompt in file.prompts:
            parse(prompt)  # raises for what the model does not know


def test_the_sheet_of_a_folder(tmp_path):
    """The tool that made the pictures of the page."""
    sys.path.insert(0, str(ROOT / "tools"))
    from PIL import Image

    from contact_sheet import contact_sheet

    lines = ""
    for index, colour in ((1, "blue"), (0, "red"), (2, "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
        lines += f'{{"file_name": "{index}.png", "index": {index}}}\n'
    (tmp_path / "metadata.jsonl").write_text(lines)
    sheet = contact_sheet(tmp_path, 2, 4)
    assert sheet.size == (4 * 2, 4 * 2)
    colours = [sheet.getpixel(at) for at in ((1, 1), (5, 1), (1, 5), (5, 5))]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)]
    for picture in (ROOT / "docs" / "prompts").glob("*"):
        assert picture.stat().st_size < 150 * 1024
