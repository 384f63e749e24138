"""Units in, images out: the class for ``map_batches`` by itself, and a program of Ray Data."""

from __future__ import annotations

import runpy
import sys
import threading
from pathlib import Path

import pytest

import hsd
import warm
from disk import check_lines, check_pixels, images
from hsd.distributed import UnitRows, data, unit_rows
from hsd.generation.folder import ImageFolder

pytestmark = pytest.mark.filterwarnings("ignore:.* images are too few for")

ROOT = Path(__file__).resolve().parents[1]
COLOURS, SHAPES = ("red", "blue", "green"), ("star", "ring", "cross")
TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
HOW = {"batch_size": 1}
"""One lane a call, so that the same images have the same bytes in any units."""


@pytest.fixture(scope="module")
def demo():
    return hsd.load("demo")


@pytest.fixture(scope="module")
def plan(demo):
    return hsd.compile(TEXTS, 2.0, model=demo, steps=3)


@pytest.fixture(scope="module")
def one(plan, demo, tmp_path_factory):
    """What one run makes."""
    path = tmp_path_factory.mktemp("one")
    hsd.generate(plan, demo, path, **HOW)
    return path


def made(rows_of, rows):
    """The rows of some units, as the batches of Ray Data have them."""
    found = [rows_of({"unit": [row["unit"]], "indices": [row["indices"]]}) for row in rows]
    return [dict(zip(batch, values, strict=True)) for batch in found for values in zip(*batch.values(), strict=True)]


def test_units_make_what_one_run_makes(plan, demo, one, tmp_path):
    rows = unit_rows(plan, 2, per_worker=2)
    assert len(rows) > 2
    assert sorted(index for row in rows for index in row["indices"]) == list(range(len(plan)))
    found = made(UnitRows(plan, lambda: demo, tmp_path / "images", **HOW), rows)
    check_pixels(tmp_path / "images", one)
    check_lines(tmp_path / "images", plan)
    for row in found:
        assert Path(row["path"]) == tmp_path / "images" / f"{row['index']:05d}.png"
        assert (row["prompt"], row["seed"], row["error"]) == (plan.prompts[row["index"]], row["index"], "")
    assert sorted(row["index"] for row in found) == list(range(len(plan)))


def test_what_is_there_is_not_made_again(plan, demo, tmp_path, monkeypatch):
    """After a process died, Ray Data gives a whole unit to another one; and a program may be run again."""
    (row,) = unit_rows(plan, 1, per_worker=1)
    add, added = ImageFolder.add, []

    def dies(self, index, *rest):
        if len(added) == 4:
            raise KeyboardInterrupt
        added.append(index)
        return add(self, index, *rest)

    with monkeypatch.context() as context:
        context.setattr(ImageFolder, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            made(UnitRows(plan, lambda: demo, tmp_path / "images", **HOW), [row])
    before = {name: (tmp_path / "images" / name).stat().st_mtime_ns for name in images(tmp_path / "images")}
    assert len(before) == 4
    found = made(UnitRows(plan, lambda: demo, tmp_path / "images", **HOW), [row])
    assert [row["error"] for row in found] == [""] * len(plan)
    after = {name: (tmp_path / "images" / name).stat().st_mtime_ns for name in images(tmp_path / "images")}
    assert after.items() >= before.items()
    check_lines(tmp_path / "images", plan)


def test_what_fails_becomes_rows(plan, demo, tmp_path, monkeypatch):
    """A failed image, and an exception that ends a unit; the others are made."""
    rows = unit_rows(plan, 2, per_worker=2)
    bad, worse = rows[0]["indices"][0], rows[1]["indices"][0]
    add = ImageFolder.add

    def fails(self, index, *rest):
        if index == bad:
            raise ValueError("no such colour")
        if index == worse:
            raise OSError(28, "No space left on device")
        return add(self, index, *rest)

    monkeypatch.setattr(ImageFolder, "add", fails)
    found = {row["index"]: row for row in made(UnitRows(plan, lambda: demo, tmp_path / "images", **HOW), rows)}
    assert len(found) == len(plan)
    assert found[bad]["error"] == "write: ValueError: no such colour"
    assert "No space left on device" in found[worse]["error"]
    for row in found.values():
        assert bool(row["error"]) != Path(row["path"]).is_file()
        assert not row["error"] or row["index"] in (bad, *rows[1]["indices"])


def test_a_claim_of_a_process_that_has_just_died(plan, demo, tmp_path, monkeypatch):
    """On another host it lives for a while after the process, and is waited for."""
    monkeypatch.setattr(data, "_AGAIN", 0.05)
    rows_of = UnitRows(plan, lambda: demo, tmp_path / "images", **HOW)
    (row,) = unit_rows(plan, 1, per_worker=1)
    held = data.open_folder(tmp_path / "images", plan, rows_of._runner.identity, "png")
    timer = threading.Timer(0.3, held.close)
    timer.start()
    assert {row["error"] for row in made(rows_of, [row])} == {""}
    timer.join()

    monkeypatch.setattr(data, "PATIENCE", 0.0)
    with data.open_folder(tmp_path / "images", plan, rows_of._runner.identity, "png"):
        assert "is in use by another run of this process" in made(rows_of, [row])[0]["error"]


@pytest.mark.parametrize("what", ["model", "pipeline"])
def test_a_loaded_model_is_refused(plan, demo, tmp_path, what):
    with pytest.raises(TypeError, match="give its name, its folder, or a function that loads it"):
        UnitRows(plan, demo if what == "model" else demo.pipe, tmp_path)


def test_a_folder_of_another_plan_ends_the_job(plan, demo, one):
    other = hsd.compile(TEXTS, 2.0, model=demo, steps=3, seeds=5)
    rows_of = UnitRows(other, lambda: demo, one, **HOW)
    with pytest.raises(hsd.PlanMismatch, match="seed of prompt 0"):
        made(rows_of, unit_rows(other, 1))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_example(tmp_path, monkeypatch, capsys, warm_python):
    """From a Parquet file to a dataset, with a real Ray. In this process, which has imported what it needs."""
    ray = pytest.importorskip("ray")
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    table = datasets.Dataset.from_dict({"prompt": TEXTS, "id": [f"c-{i}" for i in range(len(TEXTS))]})
    table.to_parquet(str(tmp_path / "prompts.parquet"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", warm.for_ray(warm_python))
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster of another test, which it would join
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else the worker waits for the tests that run beside this one
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")
    words = ["prompts.parquet", "images", "--steps", "2", "--workers", "1"]  # two would load the model twice
    monkeypatch.setattr(sys, "argv", ["ray_data.py", *words])
    try:
        runpy.run_path(str(ROOT / "examples" / "ray_data.py"), run_name="__main__")
    finally:
        ray.shutdown()
    assert "9 of 9 images in images" in capsys.readouterr().out
    made = pandas.read_parquet("images-rows.parquet")
    assert sorted(made["prompt"]) == sorted(TEXTS)
    assert set(made["error"]) == {""}
    found = datasets.load_dataset("imagefolder", data_dir="images", split="train", cache_dir=str(tmp_path))
    assert sorted(zip(found["text"], found["id"], strict=True)) == sorted(zip(TEXTS, table["id"], strict=True))
