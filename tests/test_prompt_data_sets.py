"""Prompts from Parquet files and data sets: columns, splits, and pictures that are never read."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd.prompts import data_sets
from hsd.prompts.files import read_prompts

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def stored(path, **columns):
    parquet.write_table(arrow.table(columns), path, compression="none", write_statistics=False)
    return path


def test_parquet(tmp_path):
    path = stored(
        tmp_path / "p.parquet",
        **{
            "Prompt": ["a cat", None, "a dog\nasleep"],
            "SEED": [1.0, None, None],
            "width": arrow.array([64, None, None], arrow.int16()),
            "tags": [["x", "y"], None, []],
            "made": [datetime.date(2026, 1, 2), None, None],
            "price": [decimal.Decimal("1.50"), None, None],
            "id": arrow.array(["u", None, "v"]).dictionary_encode(),
            "score": [float("nan"), None, 0.5],
        },
    )
    file = read_prompts(path)
    assert file.prompts == ["a cat", "a dog\nasleep"]  # a row without any value is passed over
    assert (file.seeds, file.settings) == ([1, None], [{"width": 64}, {}])
    assert file.columns == {
        "tags": [["x", "y"], []],
        "made": ["2026-01-02", None],
        "price": ["1.50", None],
        "id": ["u", "v"],
        "score": [None, 0.5],
    }
    assert file.places == [f"{path}, row 1", f"{path}, row 3"]
    assert hsd.compile(file, 1.0).request["columns"]["tags"] == ['["x", "y"]', "[]"]


def test_pandas_writes_its_index(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a", "b"], "n": [1, 2]}, index=[5, 9])
    frame.to_parquet(tmp_path / "p.pq")
    assert read_prompts(tmp_path / "p.pq").columns == {"n": [1, 2]}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": ["a", ""], "id": [1, 2]}, "row 2 has no prompt"),
        ({"prompt": ["a", None], "id": [1, 2]}, "row 2 has no prompt"),
        ({"prompt": [12]}, r"row 1: the prompt is 12 \(int\), not text"),
        ({"prompt": ["a"], "seed": [-1]}, "row 1: the seed is -1"),
        ({"prompt": ["a"], "Prompt": ["b"]}, "two columns that are 'prompt'"),
        ({"caption": ["a"], "id": [1]}, "Its columns are: caption, id. .*--column prompt=caption"),
        ({"words": ["a"], "id": [1]}, "--column prompt=words"),
        ({"prompt": ["a"], "width": [0]}, "row 1: width is 0"),
        ({"prompt": arrow.array([], arrow.string())}, "has no prompts"),
    ],
)
def test_parquet_that_cannot_be_meant(tmp_path, columns, says):
    with pytest.raises(hsd.PromptError, match=says):
        read_prompts(stored(tmp_path / "p.parquet", **columns))


def with_broken_pictures(path):
    """A Parquet file whose pictures cannot be read: their bytes are overwritten."""
    picture = b"PICTURE" * 50
    stored(path, caption=["a cat", "a dog"], image=[{"bytes": picture, "path": None}] * 2, raw=[picture] * 2)
    data = path.read_bytes()
    broken = data[: data.index(picture)]
    end = data.rindex(picture) + len(picture)
    chunk = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    path.write_bytes(broken[:begin] + b"\xff" * (end - begin) + data[end:])
    with pytest.raises(OSError, match="."):
        parquet.read_table(path)
    return path


def test_pictures_are_not_read(tmp_path):
    path = with_broken_pictures(tmp_path / "p.parquet")
    with pytest.warns(hsd.Notice, match="image, raw left out: pictures and other bytes are not read"):
        assert read_prompts(path, columns={"prompt": "caption"}).columns == {}


def test_a_folder_of_tables(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    with_broken_pictures(tmp_path / "set" / "train-00000-of-00001.parquet")
    with pytest.warns(hsd.Notice, match="image, raw left out"):
        file = read_prompts(tmp_path / "set", columns={"prompt": "caption"})
    assert file.prompts == ["a cat", "a dog"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("prompt,seed\na cat,5\n,\n")
    (tmp_path / "csv" / "b.csv").write_text("prompt,seed\na dog,6\n")
    assert read_prompts(tmp_path / "csv").seeds == [5, 6]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(hsd.PromptError, match="cannot read .*nothing as a data set: "):
        read_prompts(tmp_path / "nothing")


def test_what_save_to_disk_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"prompt": ["a cat", "a dog"], "picture": [{"bytes": b"no picture", "path": None}] * 2}
    )
    rows = rows.cast_column("picture", datasets.Image())
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"only": rows.select([1])}).save_to_disk(tmp_path / "three")
    for name, split, prompts in (
        ("one", None, ["a cat", "a dog"]),
        ("two", "test", ["a dog"]),
        ("three", None, ["a dog"]),
    ):
        with pytest.warns(hsd.Notice, match="picture left out"):
            assert read_prompts(tmp_path / name, split=split).prompts == prompts
    with pytest.raises(hsd.PromptError, match="several splits: train, test. Take one: --split train"):
        read_prompts(tmp_path / "two")
    with pytest.raises(hsd.PromptError, match="no split 'valid': there are train, test"):
        read_prompts(tmp_path / "two", split="valid")
    with pytest.raises(hsd.PromptError, match="no split 'valid': it is one list"):
        read_prompts(tmp_path / "one", split="valid")


def test_the_hub_without_a_network(tmp_path):
    """From the cache of ``datasets``, which is made here as a download leaves it."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["a cat"], "seed": [4]})
    (tmp_path / "name").mkdir()
    rows.to_csv(tmp_path / "name" / "train.csv")
    datasets.load_dataset(str(tmp_path / "name"), cache_dir=str(tmp_path / "made"))
    cache = tmp_path / "datasets" / "org___name"
    shutil.copytree(next((tmp_path / "made").glob("*/default")), cache / "default")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import hsd; f = hsd.read_prompts('hf://datasets/org/name'); print(f.prompts, f.seeds, f.places)\n"
            "try: hsd.read_prompts('hf://datasets/org/other')\n"
            "except hsd.PromptError as error: print(error)",
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")},
        capture_output=True,
        text=True,
    )
    assert "['a cat'] [4] ['hf://datasets/org/name, train, row 1']" in run.stdout, run.stdout + run.stderr
    assert "cannot read hf://datasets/org/other as a data set" in run.stdout


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("hf://datasets/org/name", ("org/name", {"revision": None})),
        ("hf://datasets/org/name@v1/", ("org/name", {"revision": "v1"})),
        ("hf://datasets/org/name@v1/sub", ("org/name", {"revision": "v1", "data_dir": "sub"})),
        ("hf://datasets/org/name/a/b.csv", ("org/name", {"revision": None, "data_files": "a/b.csv"})),
    ],
)
def test_addresses_on_the_hub(monkeypatch, address, asked):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(path, *, streaming, **more):
        calls.append((path, more))
        return {"train": datasets.Dataset.from_dict({"prompt": ["a"]}).to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_prompts(address).prompts == ["a"]
    assert calls == [asked]


def test_addresses_that_are_none():
    for address in ("hf://datasets/", "hf://datasets/name"):
        with pytest.raises(hsd.PromptError, match="write hf://datasets/ORG/NAME"):
            read_prompts(address)


@pytest.mark.parametrize(("name", "extra"), [("pyarrow", "tables"), ("datasets", "datasets")])
def test_what_is_missing_is_named(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "p.parquet" if name == "pyarrow" else tmp_path
    how = rf'pip install "hsd-diffusion\[{extra}\]"'
    with pytest.raises(hsd.PromptError, match=f"read by {name}, which is not installed: {how}"):
        read_prompts(path)


def test_bars_of_datasets_come_back():
    datasets = pytest.importorskip("datasets")
    assert not datasets.are_progress_bars_disabled()
    with data_sets._without_bars(datasets):
        assert datasets.are_progress_bars_disabled()
    assert not datasets.are_progress_bars_disabled()


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10).map(lambda text: f"a{text}b")
ROWS = st.lists(st.tuples(TEXT, st.none() | st.integers(0, 2**63 - 1), TEXT | st.none()), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rows_come_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    prompts, seeds, notes = map(list, zip(*rows, strict=True))
    columns = {"prompt": prompts, "seed": arrow.array(seeds, arrow.int64()), "note": arrow.array(notes, arrow.string())}
    lines = [{"prompt": p, "seed": s, "note": n} for p, s, n in rows]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in (read_prompts(stored(folder / "p.parquet", **columns)), read_prompts(folder / "p.jsonl")):
        assert (file.prompts, file.seeds) == (prompts, seeds)
        assert file.columns.get("note", [None] * len(rows)) == notes
