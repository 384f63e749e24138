"""``hsd generate`` in many processes and on many workers, as a user types it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hsd
import warm
from disk import TEXTS, check_lines, check_pixels, make_plan
from hsd import cli, distributed
from hsd.cli.recipe import Recipe, Shard
from hsd.demo import PROMPTS
from hsd.planning.plan import PLAN_FILE

ROOT = Path(__file__).resolve().parents[1]
RUN = CliRunner()
FIXED = ["--steps", "4", "--tau", "2", "--batch-size", "1"]
"""One lane a call, so that the same images have the same bytes in any parts."""

FORKS = """
import json, os, sys
import hsd.cli
import hsd.generation
hsd.load("demo")  # with all that it imports, once

def begin(arguments, dies):
    child = os.fork()
    if child:
        return child
    if dies:
        from hsd.generation.folder import ImageFolder
        def add(self, index, *rest, add=ImageFolder.add):
            path = add(self, index, *rest)
            os.kill(os.getpid(), 9)
        ImageFolder.add = add
    sys.argv = ["hsd", *arguments]
    hsd.cli.main()
    os._exit(99)

for together in json.loads(sys.argv[1]):
    children = [begin(*one) for one in together]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
"""Runs commands, those of a list at the same moment, and prints their exit codes."""


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS.read_text().splitlines()[:9]) + "\n")
    return path


def generate(prompts, out, *options):
    given = [] if prompts is None else [str(prompts)]
    return RUN.invoke(cli.app, ["generate", *given, "--out", str(out), *map(str, options)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_parts_that_begin_at_once_make_what_one_run_makes(prompts, tmp_path, warm_python):
    """On an empty folder; one of them is killed, and started again."""
    out, one = tmp_path / "images", tmp_path / "one"

    def command(folder, *options):
        return ["generate", str(prompts), "--out", str(folder), *FIXED, "-q", *options]

    parts = [command(out, "--shard", f"{i}/3", "--json") for i in (1, 2, 3)]
    steps = [[[part, i == 1] for i, part in enumerate(parts)], [[parts[1], False]], [[command(one), False]]]
    (tmp_path / "forks.py").write_text(FORKS)
    done = subprocess.run([warm_python, tmp_path / "forks.py", json.dumps(steps)], capture_output=True, text=True)
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert codes == [[0, -9, 0], [0], [0]], done.stderr
    plan = hsd.Plan.load(one / PLAN_FILE)
    assert hsd.Plan.load(out / PLAN_FILE).fingerprint == plan.fingerprint
    check_pixels(out, one)
    check_lines(out, plan)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [record["existing"] for record in records] == [0, 0, 1]  # the killed one has printed nothing
    assert sum(record["images"] + record["existing"] for record in records) == 9
    again = generate(prompts, out, *FIXED)
    assert "0 images in" in again.output
    assert "(9 existed already)" in again.output


def test_a_saved_plan_is_run_in_parts(prompts, tmp_path):
    """It brings its prompts. One of the built-in encoder is compiled again by the model's own, once for all parts."""
    saved, out = tmp_path / "p.safetensors", tmp_path / "images"
    planned = RUN.invoke(
        cli.app, ["plan", str(prompts), "--model", "stand-in", "--steps", "4", "--tau", "2", "--save", str(saved)]
    )
    assert planned.exit_code == 0, planned.output
    for part in ("1/2", "2/2"):
        run = generate(None, out, "--plan", saved, "--shard", part, "--json")
        assert run.exit_code == 0, run.output
        assert re.search(rf"[45] images to {out}, ", run.output)  # of this part, none exists
        record = json.loads((out / "run.json").read_bytes())
        assert record["runs"][-1].items() >= json.loads(run.stdout).items()
    plan = hsd.Plan.load(out / PLAN_FILE)
    assert (plan.request["encoder"], plan.prompts) == ("demo", prompts.read_text().splitlines())
    check_lines(out, plan)

    other = hsd.compile(plan.prompts, 0, model="demo", steps=4)
    other.save(tmp_path / "other.safetensors")
    refused = generate(None, out, "--plan", tmp_path / "other.safetensors", "--shard", "1/2")
    assert isinstance(refused.exception, hsd.PlanMismatch)
    assert "has another plan (tau: 2.0 before, 0.0 now" in str(refused.exception)


def test_a_part_is_that_of_the_plan_that_all_agree_on(tmp_path):
    plan = make_plan()
    for i, part in enumerate(plan.shard(3), start=1):
        found = Recipe(str(tmp_path), None, {}, plan, Shard.parse(f"{i}/3"))(None)
        assert found.kept.tolist() == part.kept.tolist()
        assert found.fingerprint == plan.fingerprint
    some = plan.prune([0, 1, 6])
    parts = [Recipe(str(tmp_path), None, {}, some, Shard(i, 2))(None).kept.tolist() for i in (1, 2)]
    assert sorted(parts[0] + parts[1]) == [0, 1, 6]


def test_a_plan_from_a_file_has_to_be_the_one_of_the_folder(tmp_path):
    """Also where it has the same prompts and arguments: its embeddings may be others."""
    Recipe(str(tmp_path), None, {}, make_plan(), Shard(1, 2))(None)
    vectors = np.random.default_rng(1).normal(size=(len(TEXTS), 6))
    other = hsd.compile(TEXTS, 0.9, embeddings=vectors, steps=6, seeds=100)
    with pytest.raises(hsd.PlanMismatch, match="another tree"):
        Recipe(str(tmp_path), None, {}, other, Shard(2, 2))(None)


def test_a_plan_that_each_part_computes_may_be_rounded_differently(tmp_path, monkeypatch):
    """As one from a file is, if it is of the built-in encoder: then the model compiles it again."""
    asked = []

    def agreed(out, plan, *, exactly):
        asked.append(exactly)
        return plan

    monkeypatch.setattr("hsd.cli.recipe.agreed", agreed)
    estimate = hsd.compile(TEXTS, 1.0, steps=3)
    for recipe in (Recipe("", None, {}, make_plan(), Shard(1, 2)), Recipe("", None, {}, estimate, Shard(1, 2))):
        recipe(hsd.load("demo"))
    assert asked == [True, False]


def test_other_arguments_than_those_of_the_first_part(prompts, tmp_path):
    generate(prompts, tmp_path / "images", *FIXED, "--shard", "1/9")
    refused = generate(prompts, tmp_path / "images", *FIXED, "--shard", "2/9", "--seed", "5")
    assert isinstance(refused.exception, hsd.PlanMismatch)
    assert "seed of prompt 0: 0 before, 5 now" in str(refused.exception)


def test_more_parts_than_images(prompts, tmp_path):
    """Nothing is wrong: the images are in the other parts."""
    run = generate(prompts, tmp_path / "images", "--shard", "12/12")
    assert (run.exit_code, run.output) == (0, "hsd: shard 12/12 has no images: there are 9, in as many parts at most\n")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shard", "0/8"], "--shard 0/8: parts are counted from 1, so the first is 1/8"),
        (["--shard", "9/8"], "--shard 9/8: part 9 of 8 does not exist.*write the number of parts itself"),
        (["--shard", "1"], "--shard 1: write I/N, such as 1/8"),
        (["--shard", "1/0"], "--shard 1/0: there has to be at least one part"),
        (["--tar", "memory://tar"], r"^--tar: memory://tar is a URL"),
        (["--shard", "1/8", "--tar", "tar"], "--tar with --shard 1/8: .*run the same command without --shard"),
        (
            ["--workers", "8", "--device", "cuda:1"],
            "cuda:1 names one device, and --workers gives.*CUDA_VISIBLE_DEVICES",
        ),
        (["--ray", "auto", "--device", "cuda:1"], "cuda:1 names one device, and --ray gives"),
        (["--ray", "ray://head:10001", "--out", "images"], "--out images with --ray .*give its whole name"),
        (["--ray", "ray://head:10001", "--tar", "tar"], "the images are not on this machine"),
        (["--workers", "8", "--keep-forks"], "--keep-forks is for a run of one process: leave out --workers"),
    ],
)
def test_options_that_do_not_go_together(prompts, tmp_path, options, why, monkeypatch):
    monkeypatch.setattr("hsd.cli.generate.Job", None)
    run = generate(prompts, tmp_path / "images", *options)
    assert isinstance(run.exception, ValueError)
    assert re.search(why, str(run.exception))
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("option", [["--shard", "4/3"], ["--tar", "memory://tar"]])
def test_what_needs_no_torch_is_checked_before_it_is_loaded(prompts, tmp_path, option, monkeypatch):
    monkeypatch.setattr("hsd.cli.generate.quiet", lambda: pytest.fail("what follows imports torch"))
    assert isinstance(generate(prompts, tmp_path / "images", *option).exception, ValueError)


@pytest.mark.parametrize("option", [["--tau", "1"], ["--steps", "9"], ["--template", "a {b|c}"], ["prompts.txt"]])
def test_a_saved_plan_has_decided_these(tmp_path, option):
    hsd.compile(["a cat", "a dog"], 1.0).save(tmp_path / "p.safetensors")
    run = generate(None, tmp_path / "images", "--plan", tmp_path / "p.safetensors", *option)
    assert isinstance(run.exception, ValueError)
    assert re.search(r"give --plan or (--\w+|PROMPTS), not both: the plan says it", str(run.exception))


def test_a_plan_that_is_not_there(tmp_path):
    run = generate(None, tmp_path / "images", "--plan", tmp_path / "none.safetensors")
    assert isinstance(run.exception, hsd.Error)
    assert "cannot read the plan" in str(run.exception)


def test_the_record_is_written_when_the_run_is_stopped(prompts, tmp_path, monkeypatch):
    from hsd.generation.folder import ImageFolder

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFolder, "add", stopped)
    run = generate(prompts, tmp_path / "images", *FIXED, "--json")
    assert run.exit_code == 130, run.output
    assert json.loads(run.stdout)["outcome"] == "interrupted"


# ------------------------------------------------------------------------------- what the documents say


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A command ``hsd`` that writes down how it was called: the GPU, and its arguments."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "hsd"
    command.write_text(f'#!/bin/sh\necho "GPU=$CUDA_VISIBLE_DEVICES $*" >> {shlex.quote(str(tmp_path / "calls"))}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return lambda: sorted((tmp_path / "calls").read_text().splitlines())


def bash(*arguments, **variables):
    done = subprocess.run(["bash", *arguments], env={**os.environ, **variables}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_the_script_for_slurm(noted):
    for task in ("1", "2"):
        bash(str(ROOT / "examples" / "slurm.sbatch"), SLURM_ARRAY_TASK_ID=task, MODEL="demo", PARTS="2")
    assert noted() == [f"GPU= generate prompts.txt --model demo --out images --shard {i}/2" for i in (1, 2)]
    bash(str(ROOT / "examples" / "slurm.sbatch"), SLURM_ARRAY_TASK_ID="3", PLAN="a plan")
    assert noted()[0] == "GPU= generate --plan a plan --model sdxl --out images --shard 3/8"
    script = (ROOT / "examples" / "slurm.sbatch").read_text()
    assert re.search(r"#SBATCH --array=1-(\d+)", script)[1] == re.search(r"PARTS:-(\d+)", script)[1]


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_the_loop_of_a_shell(noted):
    page = (ROOT / "docs" / "many-gpus.md").read_text()
    (loop,) = re.findall(r"^```sh\n(for .*?)^```", page, re.M | re.S)
    bash("-c", loop)
    common = "generate prompts.txt --model sdxl --out images --shard"
    assert noted() == [f"GPU={i - 1} {common} {i}/2" for i in (1, 2)]


# ------------------------------------------------------------------------------- workers


@pytest.fixture
def workers(monkeypatch):
    """How ``hsd.distributed.generate`` was called; it does the work in this process, after a journey by pickle."""
    calls = []

    def here(plan, model, out, *, workers, address, device, progress, failed, **options):
        assert os.path.isabs(out)
        assert plan.out == out
        calls.append({"workers": workers, "address": address, "device": device, **options})
        settings = {name: options.pop(name) for name in ("prior_steps", "guidance_scale") if name in options}
        adapter = hsd.load(model, device=device, **settings)
        found = pickle.loads(pickle.dumps(plan))(adapter, progress.stage)
        return hsd.generate(found, adapter, out, progress=progress, failed=failed, **options)

    monkeypatch.setitem(vars(distributed), "generate", here)
    return calls


def test_the_first_worker_makes_the_plan(prompts, tmp_path, workers, monkeypatch):
    """The driver sends the prompts and the arguments: the plan is the one that a run here would have."""
    monkeypatch.chdir(tmp_path)
    run = generate(prompts, "many", *FIXED, "--workers", "2", "--format", "webp", "--set", "prior_steps=3", "-q")
    assert run.exit_code == 0, run.output
    assert f"9 images in {tmp_path / 'many'}" in run.output
    (call,) = workers
    assert {call[name] for name in ("workers", "batch_size", "prior_steps")} == {2, 1, 3}
    assert (call["address"], call["image_format"]) == (None, "webp")
    one = generate(prompts, tmp_path / "one", *FIXED, "--format", "webp", "--set", "prior_steps=3")
    assert one.exit_code == 0, one.output
    check_pixels(tmp_path / "many", tmp_path / "one")
    plans = [hsd.Plan.load(tmp_path / folder / PLAN_FILE) for folder in ("many", "one")]
    assert plans[0].fingerprint == plans[1].fingerprint


def test_a_cluster_with_a_saved_plan_in_parts(tmp_path, workers):
    hsd.compile(["a red star", "a blue star", "a ring"], 1.0, model="demo", steps=4).save(tmp_path / "p.safetensors")
    given = ["--plan", tmp_path / "p.safetensors", "--ray", "ray://head:10001", "--shard", "2/3"]
    run = generate(None, tmp_path / "images", *given, "--json")
    assert run.exit_code == 0, run.output
    assert (workers[0]["workers"], workers[0]["address"]) == (None, "ray://head:10001")
    assert json.loads(run.stdout)["images"] == 1


def test_a_time_on_many_devices_is_explained(prompts, tmp_path, workers):
    run = generate(prompts, tmp_path / "images", "--steps", "4", "--workers", "2", "--gpu-hours", "1")
    assert run.exit_code == 0, run.output
    assert "hsd: --gpu-hours is the time of one device: several make the same images sooner" in run.output


@pytest.mark.filterwarnings("ignore:.* images are too few for")
def test_a_plan_says_what_workers_compute_again(prompts):
    run = RUN.invoke(cli.app, ["plan", str(prompts), "--model", "stand-in", "--workers", "2", "--json"])
    assert run.exit_code == 0, run.output
    numbers = json.loads(run.stdout)
    plan = hsd.compile(prompts.read_text().splitlines(), 1.0)
    parts = distributed.units(plan, 2)
    again = sum(part.node_steps for part in parts) - plan.node_steps
    assert numbers["units"] == len(parts)
    assert numbers["recomputed"] == pytest.approx(again / plan.node_steps)
    assert again > 0
    saved = 1 - (plan.node_steps + again) / plan.standard_node_steps
    assert numbers["savings_on_workers"] == pytest.approx(saved)
    assert numbers["command"].endswith("--workers 2 --model MODEL --out FOLDER")
    text = RUN.invoke(cli.app, ["plan", str(prompts), "--model", "stand-in", "--workers", "2"]).output
    assert re.search(rf"on 2 workers +{len(parts)} units, [\d.]+% of the node-steps computed again: {saved:.1%}", text)


def test_a_plan_by_embeddings_says_how_it_is_run(prompts, tmp_path):
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(9, 4)))
    command = ["plan", str(prompts), "--embeddings", str(tmp_path / "e.npy")]
    saved = RUN.invoke(cli.app, [*command, "--save", str(tmp_path / "p.safetensors")])
    assert f"hsd generate --plan {tmp_path / 'p.safetensors'} --model MODEL --out FOLDER\n" in saved.output
    assert (
        "hsd generate --plan FILE --model MODEL --out FOLDER, with the FILE of --save"
        in RUN.invoke(cli.app, command).output
    )


def test_workers_of_this_machine(prompts, tmp_path, monkeypatch, warm_python):
    """With a real Ray: the images of one run, and nothing but the result on standard output."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", warm.for_ray(warm_python))
    script = tmp_path / "hsd.py"
    script.write_text("import sys; from hsd.cli import main; sys.argv[0] = 'hsd'; main()")
    many = tmp_path / "many"
    command = ["generate", prompts, "--out", many, *FIXED, "--workers", "2", "--json"]
    done = subprocess.run([warm_python, script, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert generate(prompts, tmp_path / "one", *FIXED).exit_code == 0
    check_pixels(many, tmp_path / "one")
    check_lines(many, hsd.Plan.load(many / PLAN_FILE))
    document = json.loads(done.stdout)
    assert (document["outcome"], document["images"]) == ("finished", 9)
    assert document.items() <= json.loads((many / "run.json").read_bytes())["runs"][-1].items()
