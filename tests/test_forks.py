"""Pictures of forks: the right ones, beside images that stay the same, whatever becomes of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import IPNDMScheduler

import hsd
import tiny
from device import emulated
from device.runs import on_the_device, padded
from disk import images
from families import FAMILIES
from helpers import Calls, executor_of, make_scheduler
from hsd.generation.forks import FORKS, ForkFolder, forking, read_forks
from hsd.planning.apart import set_apart
from hsd.replay.executor import Forks
from hsd.reproduction.watching import watch

PROMPTS = ["a cat", "a cat on a mat", "a dog", "a small dog", "the sea at night", "the sea by day"]


def generate(plan, model, out, **options):
    return hsd.generate(plan, model, out, **{"batch_size": 4, "progress": False, **options})


def keys_of(plan):
    """End step and leaf range of each segment that forks."""
    rows = plan.segments[forking(plan)]
    return sorted((int(row["end_step"]), int(row["leaf_begin"]), int(row["leaf_end"])) for row in rows)


def keys_in(folder):
    return [fork.key for fork in read_forks(folder)]


def files_of(folder):
    return {fork.file_name: (Path(folder) / FORKS / fork.file_name).read_bytes() for fork in read_forks(folder)}


@pytest.fixture(scope="module")
def with_and_without(plan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("forks")
    runs = {keep: generate(plan, model, out / str(keep), keep_forks=keep) for keep in (False, True)}
    return out / "True", out / "False", runs


# ------------------------------------------------------------------------------- what they are


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler-ancestral", "dpm++2m", "unipc"])
def test_it_is_what_diffusers_predicts_at_the_last_shared_step(name):
    pipe = tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config))
    model = hsd.load(pipe, height=32, width=32, guidance_scale=3.0)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=6, seeds=100)
    trace = watch(plan, model, batch_size=4)
    theirs = [found for found, predicted in trace.predictions() if predicted]
    assert len(theirs) == plan.n_steps
    execution = {"forks": Forks(forking(plan), model.predictions(6))}
    forks = {f.index: f for _, done in executor_of(plan, model, execution).run() for f in done if f.is_fork}
    assert sorted(forks) == np.flatnonzero(forking(plan)).tolist() != []
    for segment, fork in forks.items():
        row = plan.segments[segment]
        expected = theirs[row["end_step"] - 1][row["representative"]]
        assert (fork.latent[0] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_its_generator_is_in_the_state_after_the_step(plan, model):
    """Decoders may draw from it, while its prompt's own goes on."""
    execution = {"forks": Forks(forking(plan), model.predictions(6))}
    forks = [f for _, done in executor_of(plan, model, execution).run() for f in done if f.is_fork]
    for fork in forks:
        row = plan.segments[fork.index]
        own = model.generator(int(plan.seeds[row["representative"]]))
        for _ in range(row["end_step"] + 1):  # the first latent, and one draw a step
            model.first_noise(own)
        assert torch.equal(fork.generator.get_state(), own.get_state())


def test_buffers_are_filled_again_for_the_next_run(plan, model):
    executor = executor_of(plan, model, {"forks": Forks(forking(plan), model.predictions(6))})
    place, buffers = executor.buffers.predictions.of_latent.data_ptr(), executor.buffers
    buffers.predicted.fill_(1.0)
    other = model.predictions(6)
    other.of_latent.add_(1.0)
    buffers.refill(dataclasses.replace(executor._contents, predictions=other))
    assert torch.equal(buffers.predictions.of_latent, other.of_latent.float())
    assert buffers.predictions.of_latent.data_ptr() == place  # captured calls read it there
    assert not buffers.predicted.any()


def test_one_picture_for_each_segment_that_forks(with_and_without, plan):
    folder, without, _ = with_and_without
    assert keys_in(folder) == keys_of(plan) != []
    assert not (without / FORKS).exists()
    segments = {(int(r["end_step"]), int(r["leaf_begin"]), int(r["leaf_end"])): r for r in plan.segments}
    for fork in read_forks(folder):
        row = segments[fork.key]
        assert (fork.representative, fork.first_step) == (row["representative"], row["first_step"])
        with PIL.Image.open(folder / FORKS / fork.file_name) as picture:
            assert (picture.format, picture.size) == ("WEBP", (32, 32))
    named = {fork.file_name for fork in read_forks(folder)} | {"forks.jsonl"}
    assert set(os.listdir(folder / FORKS)) == named
    assert json.loads((folder / "run.json").read_text())["runs"][0]["forks"] == len(keys_of(plan))


def test_a_picture_shows_what_its_images_became(plan, model, tmp_path):
    """Late forks are near the images that come from them, nearer than to the others."""
    model = hsd.load("demo")
    prompts = ["a large red star on a plain white background", "a large red heart on a plain white background"]
    prompts += ["a small blue ring on a plain black background", "a small green ring on a plain black background"]
    plan = hsd.compile(prompts, 0.6, model=model, steps=8)
    generate(plan, model, tmp_path, keep_forks=True)
    forks = [fork for fork in read_forks(tmp_path) if fork.leaf_end - fork.leaf_begin == 2]
    assert len(forks) == 2

    def pixels(path):
        return np.asarray(PIL.Image.open(path).convert("RGB"), dtype=float)

    for fork in forks:
        shown = pixels(tmp_path / FORKS / fork.file_name)
        distance = [np.abs(shown - pixels(tmp_path / f"{i:05d}.png")).mean() for i in range(4)]
        assert set(np.argsort(distance)[:2]) == set(plan.tree.leaf_order[fork.leaf_begin : fork.leaf_end])


def test_large_pictures_are_made_small(plan, tmp_path):
    forks = ForkFolder(tmp_path, plan, lambda task, *args: task(*args))
    segment = int(np.flatnonzero(forking(plan))[0])
    forks.keep(plan, segment, PIL.Image.new("RGB", (1024, 640), (200, 10, 10)))
    (fork,) = read_forks(tmp_path)
    with PIL.Image.open(tmp_path / FORKS / fork.file_name) as picture:
        assert picture.size == (256, 160)


# ------------------------------------------------------------------------------- beside the images


def test_images_and_counts_are_the_same(with_and_without, plan):
    folder, without, runs = with_and_without
    assert images(folder) == images(without)
    assert (folder / "metadata.jsonl").read_bytes() == (without / "metadata.jsonl").read_bytes()
    for name in ("node_steps", "standard_node_steps", "images", "failed"):
        assert getattr(runs[True], name) == getattr(runs[False], name)
    assert runs[True].node_steps == plan.node_steps


def test_progress_counts_images_alone(plan, model, tmp_path):
    seen = []
    generate(plan, model, tmp_path, keep_forks=True, progress=Calls(lambda *call: seen.append(call)))
    assert tuple(map(sum, zip(*seen, strict=True))) == (plan.node_steps, plan.n_prompts)


def test_nothing_is_predicted_unless_forks_are_kept(plan, model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "predictions", lambda *_: pytest.fail("predicted"))
    generate(plan, model, tmp_path)
    executor = executor_of(plan, model)
    assert executor.buffers.predicted is None


def test_it_opens_as_an_imagefolder(with_and_without, plan, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder, _, _ = with_and_without
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(data["index"]) == list(range(plan.n_prompts))


# ------------------------------------------------------------------------------- continued, shared, damaged


class Interrupt(Exception):
    pass


def test_a_folder_is_continued(plan, model, with_and_without, tmp_path):
    """Also one that was begun without them: segments that are computed again leave their pictures."""

    def stop(_, n, seen=[0]):  # noqa: B006
        seen[0] += n
        if seen[0] >= 5:
            raise Interrupt

    with pytest.raises(Interrupt):
        generate(plan, model, tmp_path, batch_size=2, progress=Calls(stop))
    assert not (tmp_path / FORKS).exists()
    run = generate(plan, model, tmp_path, batch_size=2, keep_forks=True)
    assert 0 < run.images < plan.n_prompts
    assert keys_in(tmp_path) == keys_of(run.plan)
    assert set(keys_of(run.plan)) < set(keys_of(plan))


def test_shards_fill_one_folder(plan, model, tmp_path):
    for shard in plan.shard(3):
        generate(shard, model, tmp_path, keep_forks=True)
    assert keys_in(tmp_path) == keys_of(plan)


def test_what_is_there_is_not_made_again(plan, model, with_and_without, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(with_and_without[0], folder)
    before = (folder / FORKS / "forks.jsonl").read_bytes()
    (folder / "00001.png").unlink()
    generate(plan, model, folder, keep_forks=True)
    assert (folder / FORKS / "forks.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["cut", "removed", "other bytes", "no lines", "half a line", "link", "file", "folder"])
def test_damage_is_no_error_and_is_mended_by_the_next_run(plan, model, with_and_without, tmp_path, how):
    folder = tmp_path / "copy"
    shutil.copytree(with_and_without[0], folder)
    expected, forks = files_of(folder), folder / FORKS
    first = forks / sorted(expected)[0]
    if how == "cut":
        os.truncate(first, 10)
    elif how == "removed":
        first.unlink()
    elif how == "other bytes":
        first.write_bytes(bytes(first.stat().st_size))
    elif how == "no lines":
        (forks / "forks.jsonl").unlink()
    elif how == "half a line":
        data = (forks / "forks.jsonl").read_bytes()
        (forks / "forks.jsonl").write_bytes(b"null\n[1]\n" + data[: data.rindex(b"{") + 20])
    elif how == "folder":
        first.unlink()
        first.mkdir()
    else:
        shutil.move(forks, tmp_path / "elsewhere")
        forks.symlink_to(tmp_path / "elsewhere") if how == "link" else forks.write_bytes(b"")
    assert len(read_forks(folder)) < len(expected)
    for name in images(folder):
        (folder / name).unlink()
    generate(plan, model, folder, keep_forks=True)
    assert files_of(folder) == expected
    assert forks.is_dir()
    assert not forks.is_symlink()


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": "../00000.png"},
        {"file_name": "/etc/passwd"},
        {"end_step": -1},
        {"end_step": "1"},
        {"size": 3},
        {"digest": None},
        {"leaf_end": True},
    ],
)
def test_lines_that_do_not_hold_are_passed_over(with_and_without, tmp_path, change):
    folder = tmp_path / "copy"
    shutil.copytree(with_and_without[0], folder)
    path = folder / FORKS / "forks.jsonl"
    first, *others = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in [{**first, **change}, *others]))
    assert len(read_forks(folder)) == len(others)


def test_a_folder_without_forks_has_none(tmp_path):
    assert read_forks(tmp_path) == []
    assert read_forks(tmp_path / "missing") == []


def test_images_that_are_set_apart_keep_the_names_of_the_folders_plan(plan, model, tmp_path):
    """A run may set images of equal conditioning apart; its leaf order is another one then."""
    apart = set_apart(plan, np.array([0, 0, 2, 3, 4, 5, 6, 7, 8]), [])
    assert apart.tree.leaf_order.tolist() != plan.tree.leaf_order.tolist()
    forks = ForkFolder(tmp_path, plan, lambda task, *args: task(*args))
    wanted = np.flatnonzero(forks.wanted(apart, model.predictions(6)))
    for segment in wanted.tolist():
        forks.keep(apart, segment, PIL.Image.new("RGB", (8, 8)))
    order, rows = plan.tree.leaf_order, apart.segments[wanted]
    shown = [set(order[fork.leaf_begin : fork.leaf_end]) for fork in read_forks(tmp_path)]
    members = [set(apart.tree.leaf_order[row["leaf_begin"] : row["leaf_end"]]) for row in rows]
    assert len(shown) == len(wanted) == sum(one in shown for one in members) > 0
    assert len(wanted) < forking(apart).sum()  # some have no place in the folder's plan


# ------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no picture"), "ValueError: no picture"),
        (hsd.Error("no picture"), "Error: no picture"),
        (
            torch.OutOfMemoryError("no room"),
            "OutOfMemory: a single one of the pictures of forks to decode does not fit",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:out of memory with")
def test_a_fork_that_fails_fails_no_image(plan, model, tmp_path, monkeypatch, error, told):
    decode, forks = type(model).decode, len(keys_of(plan))
    calls = []

    def broken(self, latents, generators):
        calls.append(len(latents))
        if sum(calls) > plan.n_prompts:  # images come first in the last batches; forks are decoded by themselves
            raise error
        return decode(self, latents, generators)

    monkeypatch.setattr(type(model), "decode", broken)
    with pytest.warns(hsd.Notice, match=rf"^{forks} pictures of forks are left out: {told}"):
        run = generate(plan, model, tmp_path, batch_size=16, keep_forks=True)
    assert run.failed == ()
    assert len(images(tmp_path)) == plan.n_prompts
    assert read_forks(tmp_path) == []


def test_a_fork_that_is_not_finite_is_left_out(plan, model, tmp_path):
    predictions = model.predictions(6)
    segments = np.flatnonzero(forking(plan))
    predictions.of_output[int(plan.segments["end_step"][segments[0]]) - 1] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "predictions", lambda self, steps: predictions)
        with pytest.warns(hsd.Notice, match="left out: the latent has NaN or infinite values"):
            run = generate(plan, model, tmp_path, keep_forks=True)
    assert run.failed == ()
    lost = plan.segments["end_step"][segments[0]]
    assert keys_in(tmp_path) == [key for key in keys_of(plan) if key[0] != lost]


def test_a_disk_that_takes_no_fork_fails_no_image(plan, model, with_and_without, tmp_path, monkeypatch):
    append = hsd.work.files.append

    def full(path, data):
        if path.name == "forks.jsonl":
            raise OSError(28, "No space left on device")
        append(path, data)

    monkeypatch.setattr(hsd.work.files, "append", full)
    with pytest.warns(hsd.Notice, match=r"left out: OSError: \[Errno 28\] No space left"):
        run = generate(plan, model, tmp_path, keep_forks=True)
    assert run.images == plan.n_prompts
    assert images(tmp_path) == images(with_and_without[0])


def test_a_scheduler_that_does_not_say_what_it_predicts(tmp_path):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = IPNDMScheduler()
    model = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=6)
    n = len(keys_of(plan))
    with pytest.warns(hsd.Notice, match=f"no picture of {n} of {n} forks is kept: the scheduler does not say"):
        run = generate(plan, model, tmp_path, keep_forks=True)
    assert run.images == len(PROMPTS)
    assert read_forks(tmp_path) == []


def test_without_a_fork_there_is_no_folder(model, tmp_path):
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=3)
    generate(plan, model, tmp_path, keep_forks=True)
    assert not (tmp_path / FORKS).exists()


# ------------------------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("seed", range(3))
def test_on_an_emulated_gpu(tmp_path, seed):
    """Bit for bit what the CPU makes: predictions are computed in captured calls, and calls of runs do not mix."""
    pipe = tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))

    def load():
        return hsd.load(pipe, height=32, width=32, guidance_scale=3.0)

    with padded():
        model = load()
        plan = hsd.compile(PROMPTS[:5], 0.9, model=model, steps=6)
        generate(plan, model, tmp_path / "cpu", batch_size=2, keep_forks=True)
    with emulated(seed, (0.3, 0.0, 1.0)[seed]) as device, on_the_device():
        device.adopt(pipe)
        model = load()
        for name, keep in (("kept", True), ("plain", False), ("again", True), ("replayed", True)):
            before = device.counts["captures"]
            generate(plan, model, tmp_path / name, batch_size=2, keep_forks=keep)
            captured = device.counts["captures"] - before
            # Captured calls of a run are those of the next one if both keep forks, and only then.
            assert (captured == 0) == (name == "replayed")
        assert device.counts["replays"] > 0
    for name in ("kept", "plain", "again", "replayed"):
        assert images(tmp_path / name) == images(tmp_path / "cpu")
        if name != "plain":
            assert files_of(tmp_path / name) == files_of(tmp_path / "cpu") != {}


def test_a_lane_that_raises_has_no_prediction(plan, model, monkeypatch):
    """A captured prediction of an earlier step, or of another lane, must not be taken for that of a lane that fails."""
    denoise = type(model).denoise
    bad = int(np.flatnonzero(forking(plan))[-1])
    last = int(plan.segments["end_step"][bad]) - 1
    timestep = float(model.sampler(6).timesteps[last])

    def raising(self, latents, timesteps, rows):
        if bool((timesteps == timestep).any()):
            raise ValueError("no")
        return denoise(self, latents, timesteps, rows)

    monkeypatch.setattr(type(model), "denoise", raising)
    execution = {"forks": Forks(forking(plan), model.predictions(6))}
    found = {f.index: f.latent for _, done in executor_of(plan, model, execution).run() for f in done if f.is_fork}
    assert torch.isnan(found[bad]).all()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family(family, tmp_path):
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    plan = hsd.compile(PROMPTS[:4], 0.9, model=model, steps=family.steps)
    for keep in (False, True):
        generate(plan, model, tmp_path / str(keep), keep_forks=keep)
    assert images(tmp_path / "True") == images(tmp_path / "False")
    assert keys_in(tmp_path / "True") == keys_of(plan) != []


def test_a_finished_folder_has_no_forks_to_keep_and_says_so(plan, model, tmp_path, caplog):
    hsd.generate(plan, model, tmp_path / "images")
    hsd.generate(plan, model, tmp_path / "images", keep_forks=True)
    assert "all images exist, so no pictures of forks are kept" in caplog.text
