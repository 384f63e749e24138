"""``hsd plan`` says what ``hsd generate`` does with the same options. Also: what all commands have in common."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.generation import run as generation_run

RUN = CliRunner()
PROMPTS = [f"a {colour} {shape}" for shape in ("star", "ring", "cross") for colour in ("red", "blue", "green")]
COMMANDS = typer.main.get_command(cli.app).commands
QUICK = ["--steps", "3", "--set", "prior_steps=2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    lines = [{"prompt": prompt, **({"width": 32, "seed": 5} if i % 2 else {})} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "s.json").write_text(json.dumps({"budget": 0.2, "steps": 3, "guidance_interval": [0.0, 0.5]}))
    return tmp_path


def hsd_plan(*words):
    run = RUN.invoke(cli.app, ["plan", *words, "--json"])
    assert run.exit_code == 0, (run.output, run.exception)
    return json.loads(run.stdout)


def names(command):
    return {option for parameter in COMMANDS[command].params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_no_option_of_generate_is_forgotten():
    """Those that plan lacks change neither the plan nor its cost; they are named here, so that a new one is decided."""
    others = {"--format", "--keep-forks", "--keep-trunks", "--tar", "--ray"}
    assert names("generate") - names("plan") == others
    assert names("plan") - names("generate") == {"--embeddings", "--save", "--plot"}
    defaults = [{p.name: p.default for p in COMMANDS[command].params} for command in ("generate", "plan")]
    common = set(defaults[0]) & set(defaults[1])
    assert {name: defaults[0][name] for name in common} == {name: defaults[1][name] for name in common}


@pytest.mark.parametrize(
    "words",
    [
        ["p.txt", *QUICK],
        ["p.txt", *QUICK, "--budget", "0.3", "--linkage", "average", "--noise", "shared", "--seed", "4"],
        ["p.txt", *QUICK, "--tau", "0.4", "--metric", "cosine", "--images-per-prompt", "2", "--batch-size", "4"],
        ["p.txt", *QUICK, "--guidance-interval", "0", "0.5", "--negative-prompt", "grey", "--width", "32"],
        ["p.jsonl", *QUICK, "--order", "breadth", "--max-slots", "30", "--guidance-scale", "1"],
        ["p.txt", "--settings", "s.json", "--set", "prior_steps=2"],
        ["p.txt", *QUICK, "--only", "0,3-5"],
        ["p.txt", *QUICK, "--preview", "2"],
        ["p.txt", *QUICK, "--shard", "2/2"],
        ["p.txt", *QUICK, "--only", "0-2", "--more", "2", "--depth", "0.5"],
        ["--template", "a {red|blue} star", *QUICK],
    ],
    ids=" ".join,
)
def test_the_plan_is_the_one_that_runs(words, monkeypatch):
    planned = hsd_plan(*words, "--save", "planned.safetensors")
    ran = []

    def nothing(plan, adapter, out, **options):
        ran.append(
            (plan, hsd.generation.cost(plan, adapter, *(options[n] for n in ("batch_size", "order", "max_slots"))))
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(generation_run, "generate", nothing)
    RUN.invoke(cli.app, ["generate", *words, "--out", "images"])
    [(plan, cost)] = ran
    assert {name: planned[name] for name in cost.numbers()} == json.loads(json.dumps(cost.numbers()))
    saved = hsd.Plan.load("planned.safetensors")
    assert saved.fingerprint == plan.fingerprint
    assert saved.request == plan.request
    shard = "--shard" in words
    assert set(plan.kept) < set(saved.kept) if shard else list(plan.kept) == list(saved.kept)


def test_the_command_of_a_saved_plan_runs(folder):
    """It has the options that the plan does not decide, and none that are refused beside it."""
    words = ["--set", "prior_steps=2", "--width", "32", "--batch-size", "4", "--column", "prompt=prompt"]
    words += ["--steps", "3", "--only", "0-3", "--more", "1", "--save", "a b.safetensors"]
    command = hsd_plan("p.jsonl", *words)["command"]
    kept = "--batch-size 4 --width 32 --set prior_steps=2"
    assert command == f"hsd generate --plan 'a b.safetensors' {kept} --model demo --out FOLDER"
    made = RUN.invoke(cli.app, shlex.split(command.replace("FOLDER", "im"))[1:])
    assert made.exit_code == 0, made.output
    assert "8 images in" in made.output
    np.save("e.npy", np.eye(len(PROMPTS), dtype=np.float32))
    command = hsd_plan("p.txt", "--embeddings", "e.npy", "--device", "cpu", "--save", "e.safetensors")["command"]
    assert command == "hsd generate --plan e.safetensors --device cpu --model MODEL --out FOLDER"


def test_what_a_folder_has_is_counted(folder):
    made = RUN.invoke(cli.app, ["generate", "p.txt", "--out", "im", *QUICK])
    assert made.exit_code == 0, made.output
    assert hsd_plan("p.txt", "--out", "im", *QUICK)["missing"] == 0
    next((folder / "im").glob("*.png")).unlink()
    parts = [hsd_plan("p.txt", "--out", "im", "--shard", f"{i}/3", *QUICK)["missing"] for i in (1, 2, 3)]
    assert sorted(parts) == [0, 0, 1]
    assert RUN.invoke(cli.app, ["generate", "p.txt", "--out", "im", *QUICK]).exit_code == 0
    with open("p.txt", "a") as file:
        file.write("a white heart\n")
    grown = hsd_plan("p.txt", "--out", "im", *QUICK)
    assert (grown["prompts"], grown["missing"], grown["missing_node_steps"]) == (len(PROMPTS) + 1, 1, 3)
    files = {path.name: path.read_bytes() for path in (folder / "im").iterdir() if path.is_file()}
    run = RUN.invoke(cli.app, ["plan", "p.txt", "--out", "im", "--steps", "4", "--set", "prior_steps=2"])
    assert "im has images of another plan, so hsd generate would refuse" in run.stderr
    assert "steps: 3 before, 4 now" in run.stderr
    assert "joins" not in run.stderr  # it does not, if it is refused
    run = RUN.invoke(cli.app, ["plan", "p.txt", "--out", "im", "--model", "stand-in", "--steps", "3"])
    assert "name their model in place of stand-in" in run.stderr
    assert "refuse" not in run.stderr
    assert files == {path.name: path.read_bytes() for path in (folder / "im").iterdir() if path.is_file()}


def test_a_saved_plan(folder):
    first = hsd_plan("p.txt", "--model", "stand-in", "--budget", "0.3", "--save", "p.safetensors")
    again, positional = hsd_plan("--plan", "p.safetensors"), hsd_plan("p.safetensors")
    different = {"command"}
    assert {k: v for k, v in again.items() if k not in different} == {
        k: v for k, v in first.items() if k not in different
    }
    assert again["command"] == "hsd generate --plan p.safetensors --model MODEL --out FOLDER"
    assert positional["command"] == "hsd generate p.safetensors --model MODEL --out FOLDER"
    assert first["command"] == again["command"]
    by_model = hsd_plan("p.safetensors", "--model", "demo")
    assert (by_model["encoder"], by_model["estimate"]) == ("demo", False)
    for words in (["p.safetensors", "--tau", "1"], ["p.txt", "--plan", "p.safetensors"]):
        assert "the plan says it" in str(RUN.invoke(cli.app, ["plan", *words]).exception)
    refused = str(RUN.invoke(cli.app, ["plan", "p.txt", "--save", "none/p.safetensors"]).exception)
    assert refused == "cannot write none/p.safetensors: there is no folder none"  # before the model is loaded
    np.save("e.npy", np.eye(len(PROMPTS), dtype=np.float32))
    for words in (["--embeddings", "e.npy"], ["--column", "prompt=caption"], ["--sample", "3"], ["--split", "train"]):
        refused = str(RUN.invoke(cli.app, ["plan", "p.safetensors", *words]).exception)
        assert refused == f"{words[0]} is for prompts that are read, and the plan has its own: leave it out"
    refused = str(RUN.invoke(cli.app, ["plan", "--out", "im", "--more", "2", "--embeddings", "e.npy"]).exception)
    assert refused == "--embeddings is for prompts that are read, and --more without PROMPTS has its own: leave it out"
    refused = str(RUN.invoke(cli.app, ["plan", "p.txt", "--extend", "im", "--embeddings", "e.npy"]).exception)
    assert refused.startswith("give --extend or --embeddings, not both")
    assert "cannot read the plan no.safetensors" in str(RUN.invoke(cli.app, ["plan", "no.safetensors"]).exception)


def test_the_schedule_is_said():
    np.save("e.npy", np.random.default_rng(0).normal(size=(len(PROMPTS), 4)).astype(np.float32))
    words = ["p.txt", "--embeddings", "e.npy", "--tau", "1"]
    shown = RUN.invoke(cli.app, ["plan", *words, "--linkage", "centroid", "--schedule", "paper-eq7"]).stdout
    assert re.search(r"clustering +centroid on embeddings, paper-eq7 schedule, tau 1\n", shown)
    assert re.search(r"clustering +ward on embeddings, tau 1\n", RUN.invoke(cli.app, ["plan", *words]).stdout)
    assert [hsd_plan(*words, "--schedule", name)["schedule"] for name in ("linear", "log")] == ["linear", "log"]
    custom = hsd.compile(PROMPTS, 1.0, embeddings=np.load("e.npy"), schedule=lambda x: (1 - x) ** 2)
    assert custom.cost().numbers()["schedule"] == "custom"
    assert "on embeddings, custom schedule, tau 1" in str(custom)


def test_an_estimate_is_called_one():
    shown = RUN.invoke(cli.app, ["plan", "p.txt", "--model", "stand-in"]).stdout
    assert re.search(r"estimate +the built-in encoder stands in for the model's own embeddings", shown)
    assert hsd_plan("p.txt", "--model", "stand-in")["estimate"]
    refused = RUN.invoke(cli.app, ["generate", "p.txt", "--out", "im", "--model", "stand-in"])
    assert "--model stand-in is for hsd plan" in str(refused.exception)
    for option in (["--height", "64"], ["--negative-prompt", "x"], ["--set", "a=1"]):
        run = RUN.invoke(cli.app, ["plan", "p.txt", "--model", "stand-in", *option])
        assert "is a setting of a model: name one with --model" in str(run.exception)


@pytest.mark.parametrize("model", ["stand-in", "demo"])
def test_misspelt_keys_are_found_before_the_run(model, folder):
    def planned(path, *words):
        return RUN.invoke(cli.app, ["plan", path, "--model", model, *QUICK[:2], *words])

    (folder / "m.jsonl").write_text('{"prompt": "a star"}\n{"prompt": "a ring", "negative_promt": "grey"}\n')
    (folder / "m.csv").write_text("prompt,negative_promt\na star,\na ring,grey\n")
    for path, place in (("m.jsonl", "m.jsonl, line 2 has"), ("m.csv", "m.csv, line 1 has the column")):
        says = f"{place} 'negative_promt', which is no setting: did you mean 'negative_prompt'?"
        error = str(planned(path).exception)
        assert error.startswith(says)
        assert "--column NAME=negative_promt" in error
        kept = planned(path, "--column", "mine=negative_promt")  # the way out
        assert kept.exit_code == 0, kept.output
        assert "mine: no setting of the model; kept" in kept.stderr
        taken = planned(path, "--column", "negative_prompt=negative_promt")
        assert "settings" in taken.stdout
    (folder / "n.jsonl").write_text('{"prompt": "a star", "negatv_promt": "grey", "guide": 3, "category": "x"}\n')
    run = planned("n.jsonl", "-q")
    assert run.exit_code == 0, run.output
    assert run.stderr.splitlines() == [
        "hsd: WARNING: negatv_promt is kept as a column; if you meant the setting negative_prompt, write --column "
        "negative_prompt=negatv_promt"
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_have_the_same_json_and_help(command):
    [option] = [parameter for parameter in COMMANDS[command].params if "--json" in parameter.opts]
    assert option.is_flag
    assert (
        option.help == "Print the result as one JSON object on standard output, in place of text; messages stay on "
        "standard error. To keep it in a file, write > FILE."
    )
    short, long = (RUN.invoke(cli.app, [command, name]) for name in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output == long.output


def test_json_is_no_file():
    run = RUN.invoke(cli.app, ["plan", "p.txt", "--json", "out.json"], env={"COLUMNS": "200"})
    assert run.exit_code == 2
    assert "--json takes no file: it prints to standard output. Write --json > out.json" in run.stderr


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("plan --model sdx", ["sdxl"]),
        ("plan --model st", ["stand-in"]),
        ("generate --model dem", ["demo", "demo-sd"]),
        ("bench kar", ["karlo"]),
        ("plan --linkage w", ["ward"]),
        ("generate --keep", ["--keep-forks", "--keep-trunks"]),
        ("cal", ["calibrate"]),
    ],
)
def test_completion(line, found):
    words = f"hsd {line}"
    environment = {"_HSD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    run = RUN.invoke(cli.app, [], prog_name="hsd", env=environment)
    assert run.stdout.split() == found


def test_the_list_of_commands_has_the_first_line_of_the_help_of_each():
    listed = " ".join(re.sub("[│╭╮╰╯─]", " ", RUN.invoke(cli.app, ["--help"], env={"COLUMNS": "100"}).output).split())
    for name, command in COMMANDS.items():
        assert f"{name} {' '.join(command.help.partition(chr(10) * 2)[0].split())}" in listed
