"""The folder: a data set that others can open, complete files only, resumable, for one plan only."""

from __future__ import annotations

import json
import os
import threading
from typing import get_args

import numpy as np
import PIL.Image
import pytest

import hsd
import tiny
from helpers import Calls
from hsd.generation.folder import ImageFolder
from hsd.generation.lines import FORMATS, ending
from hsd.generation.writers import Writers
from hsd.names import ImageFormat
from hsd.work.files import digest_of


@pytest.fixture
def made(plan, model, tmp_path):
    run = hsd.generate(plan, model, tmp_path / "images", batch_size=4, progress=False)
    return tmp_path / "images", run


def pictures(folder):
    return {path.name: np.array(PIL.Image.open(path)) for path in sorted(folder.glob("*.png"))}


def metadata(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_opens_as_an_imagefolder(made, plan, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder, _ = made
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == plan.n_prompts
    assert {row["index"]: row["text"] for row in data} == dict(enumerate(plan.prompts))
    assert {row["index"]: row["seed"] for row in data} == {i: 100 + i for i in range(plan.n_prompts)}
    assert data[0]["image"].size == (32, 32)


def test_everything_is_there(made, plan):
    folder, run = made
    assert (run.images, run.existing) == (plan.n_prompts, 0)
    assert run.node_steps == plan.node_steps
    assert run.savings == pytest.approx(plan.savings)
    assert len(pictures(folder)) == plan.n_prompts
    loaded = hsd.Plan.load(folder / "plan.safetensors")
    assert loaded.prompts == plan.prompts
    assert np.array_equal(loaded.segments, plan.segments)
    record = json.loads((folder / "run.json").read_text())
    assert record["runs"][0]["savings"] == pytest.approx(plan.savings)
    assert set(record["runs"][0]["versions"]) >= {"hsd", "torch", "diffusers", "transformers", "numpy", "python"}
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != ".hsd.lock"]
    assert [entry["index"] for entry in metadata(folder)] == list(range(plan.n_prompts))
    for entry in metadata(folder):
        data = (folder / entry["file_name"]).read_bytes()
        assert (entry["size"], entry["digest"]) == (len(data), digest_of(data))
        image = PIL.Image.open(folder / entry["file_name"])
        assert image.text["prompt"] == entry["text"] == plan.prompts[entry["index"]]
        alone = entry["alone_from"]
        labels = [plan.active(k) for k in range(plan.n_steps)]
        together = [int((row == row[entry["index"]]).sum()) for row in labels]
        assert together[alone:] == [1] * (plan.n_steps - alone)
        assert alone == 0 or together[alone - 1] > 1


class Interrupt(Exception):
    pass


def test_resumes_with_what_is_missing(plan, model, made, tmp_path):
    reference, _ = made
    folder = tmp_path / "resumed"

    def stop_after_two(_, images, seen=[0]):  # noqa: B006
        seen[0] += images
        if seen[0] >= 5:
            raise Interrupt

    with pytest.raises(Interrupt):
        hsd.generate(plan, model, folder, batch_size=2, progress=Calls(stop_after_two))
    first = metadata(folder)
    assert 2 <= len(first) < plan.n_prompts  # images decoded before the interruption exist
    run = hsd.generate(plan, model, folder, batch_size=3, order="breadth", progress=False)
    assert run.existing == len(first)
    assert run.images == plan.n_prompts - len(first)
    assert run.node_steps < plan.node_steps
    ours, theirs = pictures(folder), pictures(reference)
    assert ours.keys() == theirs.keys()
    for name, image in ours.items():
        assert np.abs(image.astype(int) - theirs[name].astype(int)).max() <= 1
    again = hsd.generate(plan, model, folder, progress=False)
    assert (again.images, again.node_steps, again.savings) == (0, 0, 0.0)


def test_half_written_metadata_and_lost_images_are_made_again(plan, model, made):
    folder, _ = made
    lines = (folder / "metadata.jsonl").read_bytes().splitlines(keepends=True)
    (folder / json.loads(lines[2])["file_name"]).unlink()
    (folder / "metadata.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:17])
    run = hsd.generate(plan, model, folder, progress=False)
    assert run.images == 2
    assert sorted(entry["index"] for entry in metadata(folder)) == list(range(plan.n_prompts))


def test_a_damaged_image_is_made_again(plan, model, made):
    folder, _ = made
    before, size = pictures(folder), (folder / "00003.png").stat().st_size
    os.truncate(folder / "00003.png", 99)
    run = hsd.generate(plan, model, folder, progress=False)
    assert (run.images, run.repaired) == (1, (f"00003.png has 99 bytes, and its line says {size}",))
    assert np.abs(before["00003.png"].astype(int) - pictures(folder)["00003.png"].astype(int)).max() <= 1


def test_a_second_run_is_refused_while_the_first_lives(plan, model, tmp_path):
    def second(*_):
        hsd.generate(plan, model, tmp_path / "images", progress=False)

    with pytest.raises(hsd.OutputError, match="in use by another run of this process"):
        hsd.generate(plan, model, tmp_path / "images", batch_size=2, progress=second)
    hsd.generate(plan, model, tmp_path / "images", progress=False)  # the first has ended


def test_shards_fill_one_folder(plan, model, made, tmp_path):
    folder = tmp_path / "sharded"
    for shard in plan.shard(3):
        hsd.generate(shard, model, folder, progress=False)
    assert [e["index"] for e in metadata(folder)] == list(range(plan.n_prompts))
    for name, image in pictures(folder).items():
        assert np.abs(image.astype(int) - pictures(made[0])[name].astype(int)).max() <= 1


def test_refuses_another_plan_and_another_model(plan, model, made):
    folder, _ = made
    other = hsd.compile(plan.prompts, 0.1, model=model, steps=6, seeds=100)
    with pytest.raises(hsd.PlanMismatch, match="another plan"):
        hsd.generate(other, model, folder, progress=False)
    with pytest.raises(hsd.PlanMismatch, match=r"guidance_scale: 3.0 before, 8.0 now"):
        hsd.generate(plan, model, folder, progress=False, guidance_scale=8.0)
    reseeded = hsd.compile(plan.prompts, 0.9, model=model, steps=6, seeds=101)
    with pytest.raises(hsd.PlanMismatch, match="another plan"):
        hsd.generate(reseeded, model, folder, progress=False)


def test_refuses_a_folder_with_another_data_set(plan, model, tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    with pytest.raises(hsd.PlanMismatch, match="another data set"):
        hsd.generate(plan, model, tmp_path, progress=False)
    assert (tmp_path / "metadata.jsonl").read_text() == '{"file_name": "x.png"}\n'


def test_unwritable_output_is_said_before_any_work(plan, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded before the folder was checked"))
    with pytest.raises(hsd.OutputError, match=r"file.*choose another folder"):
        hsd.generate(plan, model, tmp_path / "file" / "images", progress=False)
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(hsd.OutputError, match="choose another folder"):
            hsd.generate(plan, model, tmp_path / "locked", progress=False)


def test_a_full_disk_stops_the_run_with_what_is_written_kept(plan, model, tmp_path, monkeypatch):
    add = ImageFolder.add

    def full(self, index, *rest):
        if len(self.done()) >= 3:
            raise OSError(28, "No space left on device")
        return add(self, index, *rest)

    monkeypatch.setattr(ImageFolder, "add", full)
    with pytest.raises(hsd.OutputError, match="No space left on device.*run the same call again"):
        hsd.generate(plan, model, tmp_path / "full", batch_size=2, progress=False)
    assert len(metadata(tmp_path / "full")) >= 3
    assert len(pictures(tmp_path / "full")) == len(metadata(tmp_path / "full"))


def test_writers_wait_instead_of_filling_memory():
    full, submitted, written, unwritten = threading.Event(), [], [], []

    def write(i):
        full.wait()  # the first one, until the queue is full
        unwritten.append(len(submitted) - len(written))
        written.append(i)

    with Writers(threads=1, queue=2) as writers:
        for i in range(300):
            writers.submit(write, i)
            submitted.append(i)
            if i == 1:
                full.set()
    assert written == list(range(300))
    assert max(unwritten) == 2  # submit waits while two are not written


def test_every_format_has_a_name_for_pillow():
    assert set(FORMATS) == {ending(name) for name in get_args(ImageFormat)}


@pytest.mark.parametrize("image_format", ["jpg", "jpeg", "webp"])
def test_other_formats(plan, model, tmp_path, image_format):
    hsd.generate(plan.prune([0]), model, tmp_path, progress=False, image_format=image_format)
    with PIL.Image.open(tmp_path / f"00000.{ending(image_format)}") as image:
        assert image.size == (32, 32)
        assert image.format == FORMATS[ending(image_format)][0]


def test_jpg_and_jpeg_are_one_format(plan, model, tmp_path):
    """Folders of earlier versions say jpg."""
    hsd.generate(plan.prune([0]), model, tmp_path, progress=False, image_format="jpg")
    run = hsd.generate(plan, model, tmp_path, progress=False, image_format="jpeg")
    assert (run.existing, run.images) == (1, plan.n_prompts - 1)
    assert json.loads((tmp_path / "identity.json").read_text())["image_format"] == "jpg"
    with pytest.raises(hsd.PlanMismatch, match="jpg before, webp now"):
        hsd.generate(plan, model, tmp_path, progress=False, image_format="webp")


def test_stream_yields_as_images_finish():
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    plan = hsd.compile([f"prompt number {i}" for i in range(12)], 0.5, model=model, steps=4)
    steps = []
    indices = []
    for image in hsd.stream(plan, model, batch_size=2, progress=Calls(lambda n, _: steps.append(n))):
        indices.append(image.index)
        if len(indices) == 1:
            assert sum(steps) < plan.node_steps  # the first comes before the last is computed
    assert sorted(indices) == list(range(12))
    assert sum(steps) == plan.node_steps
