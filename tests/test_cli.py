"""The command line as a user types it, in a separate process where that matters."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.demo import PROMPTS
from hsd.planning.span import Span
from hsd.tuning import speeds

RUN = CliRunner()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS.read_text().splitlines()[:6]) + "\n")
    return path


def hsd_command(*args, **kwargs):
    """Run ``hsd`` as an installed command: exit code, standard output and error."""
    code = "import sys; from hsd.cli import main; sys.argv[0] = 'hsd'; main()"
    run = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, **kwargs)
    return run.returncode, run.stdout, run.stderr


def test_generate_then_continue(prompts, tmp_path):
    out = tmp_path / "images"
    command = [
        "generate",
        str(prompts),
        "--out",
        str(out),
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--seed",
        "9",
    ]
    first = RUN.invoke(cli.app, command)
    assert first.exit_code == 0, first.output
    assert "6 images in" in first.output
    assert re.search(r"\d+ evaluations of the denoiser instead of 18: [\d.]+% saved", first.output)
    entries = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {e["seed"] for e in entries} == set(range(9, 15))
    next(out.glob("*3.png")).unlink()
    second = RUN.invoke(cli.app, command)
    assert second.exit_code == 0, second.output
    assert "1 images in" in second.output
    assert "(5 existed already)" in second.output
    assert "clusters by step" in first.output
    assert "clusters by step" not in second.output  # the plan in the folder is used again
    other = RUN.invoke(cli.app, [*command, "--tau", "1000"])
    assert isinstance(other.exception, hsd.PlanMismatch)


def test_budget(prompts, tmp_path):
    command = ["generate", str(prompts), "--out", str(tmp_path / "images"), "--budget", "0.3", "--steps", "4"]
    result = RUN.invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    saved = float(re.search(r"([\d.]+)% saved", result.output)[1])
    assert saved >= 30
    assert "instead of 24" in result.output


def test_plan_says_the_cost(prompts, tmp_path):
    result = RUN.invoke(
        cli.app,
        ["plan", str(prompts), "--model", "stand-in", "--batch-size", "4", "--save", str(tmp_path / "p.safetensors")],
    )
    assert result.exit_code == 0, result.output
    plan = hsd.compile(prompts.read_text().splitlines(), 1.0)
    assert f"{plan.node_steps:,} instead of 240" in result.output
    assert f"{plan.savings:.1%}" in result.output
    assert f"{plan.program(4).n_slots} latents" in result.output
    assert np.array_equal(hsd.Plan.load(tmp_path / "p.safetensors").segments, plan.segments)


def test_plan_as_json(prompts, tmp_path):
    np.save(tmp_path / "e.npy", np.eye(6))
    result = RUN.invoke(
        cli.app, ["plan", str(prompts), "--json", "--embeddings", str(tmp_path / "e.npy"), "--tau", "0"]
    )
    numbers = json.loads(result.output)
    assert numbers["node_steps"] == numbers["standard_node_steps"] == 240
    assert numbers["active"] == [6] * 40
    assert numbers["seconds"] is None


def test_plan_estimates_the_time_once_a_speed_is_known(prompts, tmp_path):
    command = ["plan", str(prompts), "--model", "demo", "--steps", "3"]
    shown = RUN.invoke(cli.app, command).output
    assert "denoising time" not in shown
    assert re.search(r"time +not known: hsd bench demo measures it", shown)
    speeds.remember(hsd.load("demo"), {16: Span(1.0, 2.0)})
    assert re.search(r"denoising time +\d+\.0 to \d+\.0 s instead of", RUN.invoke(cli.app, command).output)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["plan", "missing.txt"], "cannot read prompts from missing.txt"),
        (["plan", "latin.txt"], "latin.txt, line 2: byte 3 (0xe9) is not UTF-8"),
        (["plan", "empty.txt"], "empty.txt has no prompts"),
        (["plan", "ok.txt", "--tau", "-1"], "tau is -1"),
        (["plan", "ok.txt", "--budget", "2"], "budget is 2"),
        (["plan", "ok.txt", "--steps", "0"], "steps is 0"),
        (["plan", "ok.txt", "--batch-size", "0"], "batch"),
        (["plan", "ok.txt", "--embeddings", "ok.txt"], "cannot read ok.txt as a .npy array"),
        (["generate", "ok.txt", "--out", "ok.txt"], "cannot write to ok.txt"),
        (["generate", "ok.txt", "--out", "i", "--model", "dmeo"], "did you mean 'demo'"),
        (["generate", "ok.txt", "--out", "i", "--guidance-scale", "x"], "guidance-scale"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_and_exit_code_1_or_2(args, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "ok.txt").write_text("a red star\na blue star\n")
    (tmp_path / "latin.txt").write_bytes(b"a red star\nca\xe9\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hsd", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert says in err
    assert out == ""


def test_an_error_is_no_traceback(tmp_path):
    code, out, err = hsd_command("plan", "missing.txt", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "hsd: cannot read prompts from missing.txt" in err
    assert "Traceback" not in err


def test_standard_input_and_version():
    code, out, _ = hsd_command("plan", "-", "--json", "--model", "stand-in", input="a red star\na blue star\n")
    assert code == 0
    assert json.loads(out)["prompts"] == 2
    assert RUN.invoke(cli.app, ["--version"]).output.strip() == f"hsd {hsd.__version__}"


def test_the_built_in_prompts(tmp_path):
    result = RUN.invoke(cli.app, ["plan", "demo", "--json", "--model", "stand-in"])
    numbers = json.loads(result.output)
    assert numbers["prompts"] >= 100
    assert 0.2 < numbers["savings"] < 0.98


INTERRUPTED = """
import signal, sys
from hsd.cli import main
from hsd.generation.writers import Writers

submit, submitted = Writers.submit, []

def submit_and_interrupt(self, *task):
    submit(self, *task)
    submitted.append(task)
    if len(submitted) == 2:
        signal.raise_signal(signal.SIGINT)

Writers.submit = submit_and_interrupt
sys.argv[0] = "hsd"
main()
"""
"""The command, with Ctrl-C while it generates the third image."""


def test_interrupt_keeps_what_is_made_and_continues(prompts, tmp_path, warm_python):
    out = tmp_path / "images"
    command = ["generate", str(prompts), "--out", str(out), "--steps", "4", "--batch-size", "1", "--tau", "0"]
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    first = subprocess.run([warm_python, tmp_path / "interrupted.py", *command], stderr=subprocess.PIPE, text=True)
    assert first.returncode == 130
    assert first.stderr.strip().endswith("hsd: interrupted; run the same command again to continue")
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 2  # queued images are still written
    assert len(list(out.glob("*.png"))) == 2
    second = RUN.invoke(cli.app, command)
    assert second.exit_code == 0, second.output
    assert "4 images in" in second.output
    assert "(2 existed already)" in second.output


def test_a_file_with_seeds_and_settings(tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "images"
    lines = [
        {"prompt": "a red star", "seed": 40},
        {"prompt": "a red ring", "seed": 40, "guidance_scale": 1.0},
        {"prompt": "a blue star"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    command = ["generate", str(path), "--out", str(out), "--steps", "3", "--tau", "9", "--set", "prior_steps=2"]
    first = RUN.invoke(cli.app, command)
    assert first.exit_code == 0, first.output
    assert re.search(r"settings +2 different ones", first.output)
    entries = {e["index"]: e for e in map(json.loads, (out / "metadata.jsonl").read_text().splitlines())}
    assert [entries[i]["seed"] for i in range(3)] == [40, 40, 2]
    assert [entries[i]["guidance_scale"] for i in range(3)] == [2.0, 1.0, 2.0]  # the model's own, but for one
    assert json.loads((out / "run.json").read_text())["identity"]["model"]["settings"]["prior_steps"] == 2
    again = RUN.invoke(cli.app, command)
    assert "0 images in" in again.output
    assert "different ones" not in again.output  # the plan was found, not made
    assert "repeat lines" in str(RUN.invoke(cli.app, [*command, "--images-per-prompt", "2"]).exception)


@pytest.mark.parametrize(
    ("argument", "says"),
    [("prior_steps", "write NAME=VALUE"), ("=3", "write NAME=VALUE"), ("prior_stepps=3", "did you mean 'prior_steps'")],
)
def test_bad_settings_on_the_command_line(prompts, tmp_path, argument, says):
    run = RUN.invoke(cli.app, ["generate", str(prompts), "--out", str(tmp_path / "x"), "--set", argument])
    assert says in str(run.exception)


def test_check():
    run = RUN.invoke(cli.app, ["check", "demo", "--set", "prior_steps=2"])
    assert run.exit_code == 0, run.output
    assert run.output.splitlines() == [
        "demo: encoding, lanes at different steps, and decoding are correct.",
        "CUDA graphs: can capture",
    ]


def test_planning_without_a_model_does_not_import_torch(prompts):
    code = (
        "import sys; from hsd.cli import app; app([*sys.argv[1:]], standalone_mode=False); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'matplotlib', 'jinja2', 'pyarrow', 'datasets', 'PIL'} "
        "& set(sys.modules)))"
    )
    for arguments in (
        ["plan", str(prompts), "--model", "stand-in"],
        ["-h"],
        ["--help"],
        ["plan", "-h"],
        ["generate", "-h"],
    ):
        run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines()[-1] == "[]"


def test_the_summary_is_of_the_program_that_runs(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"a red star number {i}", **({"width": 96} if i % 2 else {})} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    options = ["--steps", "3", "--batch-size", "2", "--order", "breadth", "--max-slots", "5"]
    texts = [line["prompt"] for line in lines]
    settings = [{key: line[key] for key in line if key != "prompt"} for line in lines]
    plan = hsd.compile(texts, model="demo", steps=3, settings=settings)
    programs = [plan.prune(part).program(2, "breadth", 5) for part in ([0, 2, 4], [1, 3, 5])]  # one for each width
    calls = sum(program.n_calls for program in programs)
    shown = RUN.invoke(cli.app, ["plan", str(path), "--model", "demo", *options]).output
    assert re.search(rf"calls of 2 +{calls} \(", shown)
    made = RUN.invoke(cli.app, ["generate", str(path), "--out", str(tmp_path / "i"), *options])
    assert made.exit_code == 0, made.output
    assert re.search(rf"calls of 2 +{calls} \(", made.output)
    numbers = json.loads(RUN.invoke(cli.app, ["plan", str(path), "--model", "demo", "--json", *options]).output)
    assert numbers["slots"] == max(program.n_slots for program in programs)
    refused = RUN.invoke(cli.app, ["plan", str(path), "--max-slots", "1"])
    assert "max_slots" in str(refused.exception)
