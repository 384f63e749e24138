"""``hsd prompts``, and the options by which every command takes prompts from templates, tables and data sets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.cli.sources import Source, takes_prompts
from hsd.demo import PROMPTS

RUN = CliRunner()
TEMPLATE = "a {red|blue} {star|circle}"


def run(*arguments, fails=None, **more):
    result = RUN.invoke(cli.app, list(map(str, arguments)), **more)
    if fails is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result
    with pytest.raises((ValueError, TypeError), match=fails):
        raise result.exception
    return result


def numbers(*arguments):
    return json.loads(run("prompts", *arguments, "--json").stdout)


def test_the_report(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "Prompt,Seed,width,id\na red star,5,64,x\na blue star,,,y\na red star,7,,z\n" + "a red star " * 30 + ",,,\n"
    )
    result = run("prompts", path, "--model", "demo", "--rows", "2")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert [line.split() for line in lines[:3]] == [
        ["prompt", "seed", "width", "id"],
        ["0", "a", "red", "star", "5", "64", "x"],
        ["1", "a", "blue", "star", "y"],
    ]
    assert lines[3:] == [
        "4 prompts",
        "seeds: 2 given",
        "settings: width (1)",
        "kept beside the images: id (3)",
        "repeats of earlier prompts, each for one more image with its own seed: 1",
        f"  'a red star': 2 times ({path}, line 2; {path}, line 4)",
        "1 longer than the model reads, which loses their end:",
        f"  {path}, line 5: 92 tokens, 32 are read; lost: {'a red star ' * 5 + 'a ...'!r}",
    ]
    assert "id: no setting of the model; kept as a column of metadata.jsonl" in result.stderr
    found = numbers(path, "--model", "demo")
    assert found["repeats"] == [{"prompt": "a red star", "indices": [0, 2]}]
    assert [(cut["index"], cut["tokens"]) for cut in found["cut"]] == [(3, 92)]


def test_what_is_saved_is_read_back_the_same(tmp_path):
    out = tmp_path / "out.jsonl"
    template = "__width__ {oil|ink}"
    (tmp_path / "width.txt").write_text("1\n2\n")
    run("prompts", "--template", template, "--wildcards", tmp_path, "--save", out)
    file, again = hsd.expand_template(template, wildcards=tmp_path), hsd.read_prompts(out)
    assert (again.prompts, again.columns, again.settings) == (file.prompts, file.columns, file.settings)
    table = tmp_path / "p.csv"
    table.write_text("prompt,seed,width,price\na,5,64,3\nb,,,\n")
    run("prompts", table, "--save", out, "--column", "seed_choice=price")
    first, again = hsd.read_prompts(table, columns={"seed_choice": "price"}), hsd.read_prompts(out)
    assert (again.prompts, again.seeds, again.settings) == (first.prompts, first.seeds, first.settings)
    assert again.columns == first.columns
    run("prompts", table, "--save", tmp_path / "out.csv", fails="written as JSON lines: give it a name")


def test_templates():
    result = run("prompts", "--template", TEMPLATE)
    assert result.stderr == "hsd: 4 combinations\n"
    assert numbers("--template", TEMPLATE) == {
        "prompts": 4,
        "seeds": 0,
        "settings": {},
        "columns": {"choice_1": 4, "choice_2": 4},
        "repeats": [],
        "same_seeds": 0,
    }
    both = numbers("--template", TEMPLATE, "--template", "a {x|y|z} ring")
    assert (both["prompts"], both["columns"]["template"]) == (7, 7)
    drawn = run("prompts", "--template", TEMPLATE * 9, "--sample", "3", "--json")
    assert drawn.stderr == "hsd: 262,144 combinations, of which 3 are drawn\n"
    assert [numbers("--template", TEMPLATE, "--sample", n)["prompts"] for n in ("9", "3")] == [4, 3]
    bad = run("prompts", "--template", "a {b", fails="--template, column 3")
    assert bad.stdout == ""


def test_the_seed_of_a_sample(tmp_path):
    prompts = []
    for more in ([], ["--sample-seed", "0"], ["--sample-seed", "1"]):
        run("prompts", "--template", TEMPLATE * 9, "--sample", "5", *more, "--save", tmp_path / "out.jsonl")
        prompts.append(hsd.read_prompts(tmp_path / "out.jsonl").prompts)
    assert prompts[0] == prompts[1] != prompts[2]


def test_a_file_of_templates(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text(f"# a comment\n{TEMPLATE}\n\na {{green|white}} ring\n")
    run("prompts", "--template", f"@{path}", "--save", tmp_path / "out.jsonl")
    file = hsd.read_prompts(tmp_path / "out.jsonl")
    assert file.prompts[3:] == ["a blue circle", "a green ring", "a white ring"]
    assert file.columns["template"][4] == "a {green|white} ring"
    path.write_text("a\nb {c\n")
    run("prompts", "--template", f"@{path}", fails="templates.txt, line 2, column 3")
    path.write_text("# nothing\n")
    run("prompts", "--template", f"@{path}", fails="has no templates")


def test_many_combinations_are_asked_about(monkeypatch):
    said = "262,144 combinations are more than 100,000: give --sample N .* or --yes"
    run("prompts", "--template", TEMPLATE * 9, fails=said)
    monkeypatch.setattr("hsd.cli.sources.MOST", 50)
    many = TEMPLATE * 3
    monkeypatch.setattr("hsd.cli.sources._on_terminal", lambda: True)
    refused = RUN.invoke(cli.app, ["prompts", "--template", many], input="n\n")
    assert refused.exit_code == 1
    assert "Make them all? [y/N]" in refused.stderr
    assert "prompts" not in refused.stdout
    allowed = RUN.invoke(cli.app, ["prompts", "--template", many, "--rows", "0"], input="y\n")
    assert "64 prompts\n" in allowed.stdout
    assert "Make" not in run("prompts", "--template", many, "--rows", "0", "--yes").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there are no prompts: name a file, PROMPTS, or give --template"),
        (["demo", "--template", "a"], r"give PROMPTS \(demo\) or --template, not both"),
        (["demo", "--sample", "3"], "--sample is for --template"),
        (["demo", "--wildcards", "."], "--wildcards is for --template"),
        (["--template", "a", "--column", "a=b"], "--column is for PROMPTS"),
        (["--template", "a", "--split", "b"], "--split is for PROMPTS"),
        (["demo", "--column", "prompt"], "--column prompt: write NAME=COLUMN"),
        (["demo", "--column", "a=b", "--column", "a=c"], "--column a=c: a is given twice"),
        (["demo", "--split", "train"], "has no splits"),
    ],
)
def test_options_that_do_not_go_together(arguments, says):
    for command in ("prompts", "plan"):
        run(command, *arguments, fails=says)


def test_every_command_takes_them(tmp_path):
    """Those that need a model or much time are only asked what they take."""
    for command in ("generate", "plan", "prompts", "bench", "calibrate", "tune"):
        text = " ".join(run(command, "--help", env={"COLUMNS": "200"}).stdout.split())
        for option in ("--template", "--wildcards", "--column", "--split", "--yes"):
            assert option in text, (command, option)
        assert ("--sample-seed" in text) == (command != "tune")  # which has another --sample


def test_a_template_to_images(tmp_path):
    out = tmp_path / "images"
    arguments = ["--template", "a {red|blue} star", "--steps", "2", "--out", out, "--seed", "7"]
    result = run("generate", *arguments)
    assert "2 combinations" in result.stderr
    assert "of the model; kept" not in result.stderr
    lines = sorted(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()), key=lambda line: line["index"])
    assert [(line["text"], line["choice_1"], line["seed"]) for line in lines] == [
        ("a red star", "red", 7),
        ("a blue star", "blue", 8),
    ]
    assert "0 images in" in run("generate", *arguments).output


def test_a_table_to_a_plan(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("caption\tseed\na red star\t3\na blue star\t4\n")
    run("plan", path, "--model", "stand-in", "--column", "prompt=caption", "--save", tmp_path / "plan")
    plan = hsd.Plan.load(tmp_path / "plan")
    assert (list(plan.prompts), list(plan.seeds)) == (["a red star", "a blue star"], [3, 4])


def test_bench_has_a_default():
    seen = []

    def bench(source: Source) -> None:
        seen.append(source)

    takes_prompts(default="demo")(bench)(**vars(Source("demo")))
    takes_prompts(default="demo")(bench)(**vars(Source("demo", ["a {b|c}"])))
    assert [source.prompts for source in seen] == ["demo", None]
    typed = Source(None, ["a {b|c}", "@f"], 3, wildcards="w", yes=True).typed()
    assert typed == "--template 'a {b|c}' --template @f --sample 3 --wildcards w --yes"
    assert Source("my file.csv", column=["prompt=x"]).typed() == "'my file.csv' --column prompt=x"


def test_no_torch_without_a_model():
    code = (
        "from hsd.cli import app; app(['prompts', 'demo'], standalone_mode=False); import sys\n"
        "loaded = {'torch', 'diffusers', 'transformers', 'pyarrow', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(PROMPTS.read_text().splitlines())} prompts" in done.stdout


def test_repeats_with_one_seed_are_told(tmp_path):
    path = tmp_path / "same.csv"
    path.write_text("prompt,seed\na red star,1\na red star,1\na red star,2\na blue star,1\n")
    assert numbers(str(path))["same_seeds"] == 1
    said = "1 of them has the seed of an earlier one too: without sharing they give its image again"
    assert said in run("prompts", str(path)).stdout
