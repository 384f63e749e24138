"""``hsd generate`` on a folder that grows: longer lists, ``--extend``, ``--more``, ``--preview`` and ``--only``."""

from __future__ import annotations

import json
import sys

import pytest

import hsd
from hsd import cli

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("star", "ring", "cross")]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with lists of prompts; its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name, prompts in (("few.txt", PROMPTS[:6]), ("all.txt", PROMPTS), ("more.txt", PROMPTS[7:])):
        (tmp_path / name).write_text("".join(f"{prompt}\n" for prompt in prompts))

    def run(command):
        monkeypatch.setattr(sys, "argv", ["hsd", "generate", *command.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return end.value.code or 0, " ".join((told.out + told.err).split())

    return run


HOW = "--steps 6 --budget 0.5"


def test_a_folder_grows(run, tmp_path):
    assert run(f"few.txt --out images {HOW} --keep-trunks 1M")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").glob("*.png")}
    assert len(before) == 6

    code, told = run(f"all.txt --out images {HOW}")
    assert code == 0
    assert "3 new prompts join the 6 of the folder, whose images stay as they are" in told
    assert "3 images in" in told
    assert "(6 existed already)" in told
    assert {name: (tmp_path / "images" / name).read_bytes() for name in before} == before

    code, told = run("more.txt --extend images")  # it has them
    assert (code, "0 images in" in told, "join" in told) == (0, True, False)
    (tmp_path / "more.txt").write_text("a black star\n")
    code, told = run("more.txt --extend images")
    assert (code, "1 new prompt joins the 9 of the folder" in told) == (0, True)

    code, told = run(f"few.txt --out images {HOW} --tar shards")
    assert (code, "0 images in" in told) == (0, True)
    assert "4 prompts of the folder are not in this list" in told
    assert "10 images in 1 shard" in told
    assert "images in the shards whose prompts are not in this list: 4 of 10" in told
    assert "whose prompts are not" not in run(f"few.txt --out images {HOW} --only 0 --tar shards")[1]

    code, told = run("--more 1 --only 0,2-3 --out images")
    assert (code, "3 images in" in told) == (0, True)
    code, told = run("--more 1 --only 0,2-3 --out images")
    assert (code, "0 images in" in told) == (0, True)
    plan = hsd.Plan.load(tmp_path / "images" / "plan.safetensors")
    assert plan.extensions == (6, 9, 10)
    assert plan.variations == {10: 0, 11: 2, 12: 3}
    assert len(list((tmp_path / "images").glob("*.png"))) == 13


def test_a_cell_that_was_edited_stays_edited(run, tmp_path):
    def titles():
        lines = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
        return [json.loads(line)["title"] for line in lines]

    (tmp_path / "sheet.csv").write_text("prompt,title\na red star,Star\na blue ring,Ring\n")
    assert run("sheet.csv --out images --steps 4")[0] == 0
    (tmp_path / "sheet.csv").write_text("prompt,title\na red star,Red\na blue ring,Ring\n")
    code, told = run("sheet.csv --out images --steps 4")
    assert (code, "damaged" in told, titles()) == (0, False, ["Red", "Ring"])
    (tmp_path / "added.csv").write_text("prompt,title\na green cross,Cross\n")
    code, told = run("added.csv --extend images")
    assert (code, "damaged" in told, titles()) == (0, False, ["Red", "Ring", "Cross"])
    (tmp_path / "added.csv").write_text("prompt,title\na green cross,Green\n")
    assert run("added.csv --extend images")[0] == 0  # of a plan that has grown, whose copy is written too
    code, told = run("--more 1 --only 0 --out images")
    assert (code, "damaged" in told, titles()) == (0, False, ["Red", "Ring", "Green", "Red"])


def test_preview_then_the_rest_of_a_cluster(run, tmp_path):
    code, told = run(f"all.txt --out images {HOW} --preview 3")
    assert code == 0
    names = [word for word in told.split() if word.startswith("cluster:") and "@" in word]
    assert 1 <= len(names) <= 3
    assert len(list((tmp_path / "images").glob("*.png"))) == len(names)
    assert list((tmp_path / "images" / "__trunks__").glob("block-*"))
    for name in names:
        assert run(f"all.txt --out images {HOW} --only {name}")[0] == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 9
    assert "0 images in" in run(f"all.txt --out images {HOW}")[1]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("all.txt", "say where the images go: --out FOLDER"),
        ("all.txt --out a --extend b", "give --out or --extend, not both"),
        (
            "all.txt --extend b --tau 1",
            "--tau is decided by the plan of the images in the folder, which --extend keeps: leave it out",
        ),
        ("all.txt --extend b", "b has no images whose plan could grow"),
        ("--more 1 --out b", "b has no images of which there could be more"),
        ("all.txt --out b --keep-trunks much", "--keep-trunks much: write a number of bytes"),
        ("all.txt --out b --preview 2 --workers 2", "--preview is for a run of one process"),
        ("all.txt --out b --steps 4 --only 40", "40: prompts are numbered 0 to 8"),
    ],
)
def test_what_does_not_go_together(run, tmp_path, command, says):
    code, told = run(command)
    assert code != 0
    assert says in told
    assert not list(tmp_path.glob("*/*.png"))
