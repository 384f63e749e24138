"""Documents for users: every command and every piece of Python is run, with small models in place of large ones.

A block of ``sh`` or ``console`` is run line by line where the line is an ``hsd`` command; other commands set up an
environment, or are CI itself. A block of ``python`` is run with the names of the blocks before it on the page, and with
those that a reader has: ``prompts``, ``pipe``, ``plan``, ``rank``. What cannot be run says why in a comment before it:
``<!-- not run: ... -->``.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hsd
import tiny
from hsd import cli, distributed
from hsd.choice import grid, tuning
from hsd.evaluation import measure
from hsd.evaluation.by_name import make_scorer
from hsd.models import loading
from hsd.models.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

BLOCK = re.compile(
    r"(?:^<!-- (?P<why>not run: [^\n]+?) -->\n+)?^```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^```", re.M | re.S
)

OTHERS = re.compile(
    r"(python3?|pip|sbatch|ray start|\.venv/bin/pip|\./(check|try)|cargo|benches/gpu/run\.sh|\.ci/run|[\w.]+/bin/pip) ?"
)
"""Commands that set up an environment, or that CI runs."""

STAND_INS = {
    "kandinsky-2.2": (tiny.k22_combined, {"height": 64, "width": 64}),
    "sd-1.5": (tiny.stable_diffusion, {"height": 32, "width": 32}),
    "sdxl": (tiny.sdxl, {"height": 32, "width": 32}),
}
"""By short name: a pipeline of the same class with random weights, and a size that is quick."""

COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("star", "ring", "cross", "heart")
MANY = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
"""As many as a calibration needs."""
PROMPTS = MANY[:4]


BEFORE = {
    "docs/report.md": [
        "hsd generate prompts.txt --out images --steps 4",
        "hsd generate prompts.txt --out shared --steps 4",
        "hsd generate prompts.txt --out standard --steps 4 --tau 0",
    ]
}
"""Commands whose results a page is about."""


@dataclass(frozen=True)
class Snippet:
    line: int
    kind: str
    code: str


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Snippet(text.count("\n", 0, found.start("code")) + 1, found["kind"], found["code"])
        for found in BLOCK.finditer(text)
        if found["kind"] in ("sh", "console", "python") and found["why"] is None
    ]


def commands(code: str) -> list[str]:
    """Commands of a block, without comments and the shell's prompt."""
    lines = (line.removeprefix("$ ").strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


RUN = [page for page in PAGES if snippets(page)]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with the files that a reader has; large models and scorers are small ones."""
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (tmp_path / "my-prompts.txt").write_text("".join(f"{prompt}\n" for prompt in MANY))
    (tmp_path / "longer.txt").write_text("".join(f"{prompt}\n" for prompt in MANY[:6]))
    (tmp_path / "additions.txt").write_text(f"{MANY[6]}\n")
    rows = "".join(f"{prompt},{i},c-{i}\n" for i, prompt in enumerate(PROMPTS))
    (tmp_path / "prompts.csv").write_text("prompt,seed,id\n" + rows)
    (tmp_path / "captions.csv").write_text("caption,seed,id\n" + rows)
    wildcards = tmp_path / "wildcards"
    wildcards.mkdir()
    (wildcards / "shape.txt").write_text("".join(f"{shape}\n" for shape in SHAPES))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}

    def named(source):
        return next((name for name in STAND_INS if MODELS[name] == source), None)

    def adapter_of(source, original=loading._adapter_of):  # without asking the hub
        return original(source) if named(source) is None else None

    def stand_in(source, device, dtype, adapter, original=loading._from_pretrained):
        name = named(source)
        if name is None:
            return original(source, None, dtype, adapter)
        if name not in made:
            made[name] = STAND_INS[name][0]()
        return made[name]

    def small(pipe, *, name, settings, original=loading._wrap):
        sizes = STAND_INS[name][1] if name in STAND_INS else {}
        return original(pipe, name=name, settings={**sizes, **settings})

    monkeypatch.setattr(loading, "_from_pretrained", stand_in)
    monkeypatch.setattr(loading, "_adapter_of", adapter_of)
    monkeypatch.setattr(loading, "_wrap", small)
    monkeypatch.setattr(grid, "STEPS", (0.2,))  # fewer settings to try
    monkeypatch.setattr(grid, "BUDGETS", (0.0, 0.5))
    monkeypatch.setattr("webbrowser.open", lambda page: True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for module in (measure, tuning):
        monkeypatch.setattr(module, "make_scorer", lambda *_, **__: make_scorer("demo"))
    monkeypatch.setitem(vars(distributed), "generate", without_workers)
    return tmp_path


def without_workers(plan, model, out, *, workers=None, address=None, device=None, **options):
    """In this process, where the stand-ins are; ``tests/test_distributed.py`` has workers."""
    adapter = hsd.load(model, device=device)
    return hsd.generate(plan(adapter) if callable(plan) else plan, adapter, out, **options)


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    if ">" in words:  # what is printed goes to a file
        words = words[: words.index(">")]
    if words[0] != "hsd":
        assert OTHERS.match(command), f"neither an hsd command nor one that sets up an environment: {command}"
        return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, command


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
@pytest.mark.parametrize("page", RUN)
def test_all_of_a_page_runs(page, reader, monkeypatch):
    names: dict[str, Any] = {"hsd": hsd, "np": np, "prompts": list(PROMPTS), "my_prompts": MANY, "rank": 0}
    exec("pipe = model = hsd.load('demo'); plan = hsd.compile(prompts, model=pipe, steps=4)", names)
    for command in BEFORE.get(page, []):
        run_command(command, monkeypatch)
    for snippet in snippets(page):
        if snippet.kind == "python":
            exec(compile("\n" * (snippet.line - 1) + snippet.code, page, "exec"), names)
            continue
        for command in commands(snippet.code):
            run_command(command, monkeypatch)


def test_pages_have_snippets():
    assert {"README.md", "docs/evaluate.md", "docs/get-started.md", "docs/tune.md"} <= set(RUN)
