"""Small files from anywhere: JSON, lines of metadata, arrays, calibrations. Each error names its file; none hangs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import platformdirs
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.choice import trials
from hsd.evaluation.cache import ScoreCache
from hsd.evaluation.folder import FolderError, load_image, read_folder
from hsd.generation import living
from hsd.generation.differences import claim_model
from hsd.generation.union import PartFiles, entries_of
from hsd.planning.chosen import SettingsError
from hsd.planning.span import Span
from hsd.tuning import speeds
from hsd.work.files import claim
from hsd.work.reading import MOST_LEVELS, parse_json, read_file, read_object

pytestmark = pytest.mark.faults

NO_OBJECTS = {
    "empty": b"",
    "zeros": b"\0" * 64,
    "cut": b'{"a": [1, {"b": ',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 900 + b"1" + b"}" * 900,
    "deeper than can be printed": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "digits": b'{"a": ' + b"1" * 10_000 + b"}",
    "latin-1": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "half a character": b'{"a": "\\ud800"}',
    "list": b"[1]",
    "number": b"1e999",
    "null": b"null",
    "two": b"{} {}",
    "pickle": b"\x80\x04\x95\x00",
}


@pytest.mark.parametrize("name", NO_OBJECTS)
def test_files_that_are_no_objects(tmp_path, name):
    path = tmp_path / "file.json"
    path.write_bytes(NO_OBJECTS[name])
    with pytest.raises(ValueError, match=r"\w"):
        read_object(path)
    with pytest.raises(SettingsError, match=r"file\.json"):
        hsd.load_settings(path)
    with pytest.raises(hsd.Error, match=r"file\.json cannot be read .*choose another folder"):
        claim(path, {"a": 1})
    path.unlink()
    assert claim(path, {"a": 1}) is None  # choosing another folder does help


@pytest.fixture
def images(tmp_path):
    """A folder of two images, and a function that writes a line of its metadata."""
    for i in range(2):
        PIL.Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    first = json.dumps({"file_name": "0.png", "text": "a cat", "index": 0}).encode()

    def write(line: bytes) -> Path:
        (tmp_path / "metadata.jsonl").write_bytes(first + b"\n" + line + b"\n")
        return tmp_path

    return write


@pytest.mark.parametrize("name", [name for name in NO_OBJECTS if name != "empty"])
def test_lines_that_are_no_objects(images, name):
    folder = images(NO_OBJECTS[name].replace(b"\n", b" "))
    with pytest.raises(FolderError, match=r"metadata\.jsonl, line 2"):
        read_folder(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"file_name": ["0.png"]},
        {"file_name": "1.png\0"},
        {"file_name": "x" * 5000},
        {"file_name": "."},
        {"file_name": "/dev/zero"},
        {"file_name": "pipe"},
        {"file_name": "metadata.jsonl"},
        {"text": 5},
        {"text": " "},
        {"index": 1.5},
        {"index": True},
        {"seed": "7"},
        {"seed": [[1]]},
    ],
    ids=str,
)
@pytest.mark.timeout(60)
def test_lines_with_odd_values(images, tmp_path, entry):
    os.mkfifo(tmp_path / "pipe")
    line = {"file_name": "1.png", "text": "a dog", "index": 1, **entry}
    with pytest.raises(FolderError, match=r"metadata\.jsonl, line 2"):
        read_folder(images(json.dumps(line).encode()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["file_name", "text", "index", "seed", "x"]), JSON, max_size=3), st.data())
def test_any_line_is_read_or_named(tmp_path_factory, entry, data):
    folder = tmp_path_factory.mktemp("lines")
    PIL.Image.new("RGB", (4, 4)).save(folder / "0.png")
    line = json.dumps({"file_name": "0.png", "text": "a cat", **entry}).encode()
    line = line[: data.draw(st.integers(1, len(line)))] + data.draw(st.binary(max_size=2))
    (folder / "metadata.jsonl").write_bytes(line)
    try:
        said = f"metadata.jsonl {len(read_folder(folder).entries)}"
    except FolderError as error:
        said = str(error)
    assert "metadata.jsonl" in said


def png(width: int, body: bytes) -> bytes:
    """The beginning of an image that says it is very large."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue().replace(b"\0\0\0\1\0\0\0\1", width.to_bytes(4, "big") * 2) + body


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 99, b"II*\0\xff\xff\xff\xff", b"GIF89a" + b"\xff" * 20, b"\x89PNG\r\n\x1a\n", png(60_000, b"x")],
    ids=range(6),
)
def test_images_that_are_none(images, tmp_path, data):
    (tmp_path / "1.png").write_bytes(data)
    folder = images(json.dumps({"file_name": "1.png", "text": "a dog", "index": 1}).encode())
    with pytest.raises(FolderError, match=r"1\.png .*(metadata\.jsonl|an image)"):
        [load_image(entry) for entry in read_folder(folder).entries]


def test_odd_lines_of_stored_scores_are_scored_again(images, tmp_path):
    folder = read_folder(images(b""))
    cache = ScoreCache(tmp_path / "scores", "any", "1")
    cache.add(folder.entries, np.array([0.5]))
    good = cache.path.read_bytes()
    fields = json.loads(good)
    odd = [{**fields, "score": value} for value in (10**400, 1e999, True, "0.5", [0.5], float("nan"))]
    odd += [{**fields, "digest": {}}, {**fields, "version": []}, {"text": "a"}]
    lines = [json.dumps(line).encode() for line in odd] + list(NO_OBJECTS.values())
    cache.path.write_bytes(b"\n".join(lines) + b"\n" + good)
    again = ScoreCache(tmp_path / "scores", "any", "1")
    assert again.scores(folder.entries).tolist() == [0.5]
    cache.path.write_bytes(b"\n".join(lines))
    assert ScoreCache(tmp_path / "scores", "any", "1").missing(folder.entries) == list(folder.entries)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), True, "3", [1], -1, 0, None], ids=str)
def test_odd_speeds_are_no_speeds(tmp_path, monkeypatch, value):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path))
    monkeypatch.setattr(speeds, "key", lambda _, **ways: "key")
    entry = {"sizes": {"4": [[0.5, 0.5]]}, "image": [], "flat": False}
    parts = ({"sizes": value}, {"sizes": {"4": [[value, value]]}}, {"image": [-1]})
    for odd in (value, *({**entry, **part} for part in parts)):
        (tmp_path / "speeds.json").write_text(json.dumps({"key": odd}))
        assert speeds.recall(None) is None
    for data in NO_OBJECTS.values():
        (tmp_path / "speeds.json").write_bytes(data)
        assert speeds.recall(None) is None
    speeds.remember(None, {4: Span(0.5, 0.6)}, 0.1)
    assert speeds.recall(None) == speeds.Speeds({4: Span(0.5, 0.6)}, Span(0.1, 0.1))


def test_settings_of_a_billion_steps(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('{"steps": 1000000000}')
    with pytest.raises(SettingsError, match=r"own\.json: steps is 1000000000: it has to be at most"):
        hsd.load_settings(path)


# ---------------------------------------------------------------------------------------- arrays


def arrays() -> dict[str, bytes]:
    def saved(array, **options) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, **options)
        return buffer.getvalue()

    whole = saved(np.eye(3))
    return {
        "empty": b"",
        "short": whole[:5],
        "header only": whole[:60],
        "cut": whole[:-9],
        "objects": saved(np.array([{}, {}], dtype=object), allow_pickle=True),
        "pickle": b"\x80\x04\x95" + bytes(99),
        "text": b"1 2 3\n",
        "npz": b"PK\x03\x04" + bytes(99),
        "version": whole.replace(b"NUMPY\x01", b"NUMPY\x09"),
        "huge": whole.replace(b"(3, 3), }   ", b"(3, 1" + b"0" * 4 + b"),}"),
        "negative": whole.replace(b"(3, 3)", b"(-3,3)"),
        "deep": whole.replace(b"(3, 3), }" + b" " * 40, b"(" * 24 + b"3" + b")" * 24),
        "no literal": whole.replace(b"'fortran_order': False", b"'fortran_order': print"),
        "texts": saved(np.array([["a"], ["b"]])),
        "records": saved(np.zeros(2, dtype=[("a", "f4")])),
        "one axis": saved(np.zeros(2)),
        "no columns": saved(np.zeros((2, 0))),
        "not finite": saved(np.array([[np.nan], [1.0]])),
        "dates": saved(np.zeros((2, 1), dtype="M8[s]")),
        "complex": saved(np.zeros((2, 1), dtype=complex)),
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays_that_cannot_be_used(tmp_path, name):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    path = tmp_path / "rows.npy"
    path.write_bytes(arrays()[name])
    run = CliRunner().invoke(cli.app, ["plan", str(tmp_path / "prompts.txt"), "--embeddings", str(path)])
    assert isinstance(run.exception, (hsd.Error, ValueError, TypeError)), run.output
    assert "embedding" in str(run.exception) or "rows.npy" in str(run.exception)


def test_arrays_of_any_order_are_read(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 3))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\nd\n")
    seen = set()
    for i, array in enumerate((rows, np.asfortranarray(rows), rows.astype(">f8"), rows[::1].astype("<f8"))):
        np.save(tmp_path / f"{i}.npy", array)
        command = ["plan", str(prompts), "--embeddings", str(tmp_path / f"{i}.npy"), "--save", str(tmp_path / "plan")]
        assert CliRunner().invoke(cli.app, command).exit_code == 0
        seen.add(hsd.Plan.load(tmp_path / "plan").fingerprint)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "text", "no rows", "other version", "not finite", "lengths", "objects", "one axis"]
)
def test_stored_embeddings_that_cannot_be_used_are_computed_again(tmp_path, damage):
    path = tmp_path / "embeddings.npz"
    known = {"a": np.ones(3), "b": np.zeros(3)}
    trials._write_embeddings(path, "1", known)
    assert {key: row.tolist() for key, row in trials._read_embeddings(path, "1").items()} == {
        key: row.tolist() for key, row in known.items()
    }
    data, digests, rows = path.read_bytes(), np.array(["a", "b"]), np.ones((2, 3))
    if damage == "no rows":
        np.savez(path, version=np.array("1"), digests=digests)
    elif damage == "other version":
        trials._write_embeddings(path, "2", known)
    elif damage == "not finite":
        np.savez(path, version=np.array("1"), digests=digests, rows=rows * np.nan)
    elif damage == "lengths":
        np.savez(path, version=np.array("1"), digests=digests, rows=np.ones((3, 3)))
    elif damage == "objects":
        np.savez(path, version=np.array("1"), digests=digests, rows=np.array([{}, {}], dtype=object))
    elif damage == "one axis":
        np.savez(path, version=np.array("1"), digests=digests, rows=np.ones(2))
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"a cat"}[damage])
    assert trials._read_embeddings(path, "1") == {}


# ---------------------------------------------------------------------------------------- calibrations


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too small"),
        ((2).to_bytes(8, "little") + b"{}", "no metadata"),
        ((22).to_bytes(8, "little") + b'{"__metadata__": null}', "calibration"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "short header"),
        ((1 << 21).to_bytes(8, "little") + b'{"a":' * (1 << 19), "short header"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "invalid JSON"),
        (safetensors.numpy.save({"a": np.zeros(1)}, {"hsd_calibration": "[" * 5000}), "nested deeper"),
        (safetensors.numpy.save({"a": np.zeros(1)}, {"hsd_calibration": '{"format": ' + "1" * 9000 + "}"}), "digits"),
        (safetensors.numpy.save({"a": np.zeros(1)}, {"hsd_calibration": '{"format": 1}'}), "'matrix' is missing"),
        (safetensors.numpy.save({"a": np.zeros(1)}, {"hsd_calibration": "3"}), "no metadata"),
    ],
    ids=range(10),
)
def test_files_that_are_no_calibrations(tmp_path, data, says):
    path = tmp_path / "calibration"
    path.write_bytes(data)
    with pytest.raises(hsd.Error, match=f"{path} is not a calibration .*{says}.*Delete this file"):
        hsd.Calibration.load(path)


# ---------------------------------------------------------------------------------------- the reader itself


def test_what_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for reader in (lambda path: read_file(path, 100), hsd.Calibration.load):
            with pytest.raises(OSError, match="device or a pipe"):
                reader(path)
        with pytest.raises(hsd.Error, match="device or a pipe"):
            hsd.load_settings(path)
        with pytest.raises(hsd.Error, match="cannot be read"):
            claim(path, {})
        run = CliRunner().invoke(cli.app, ["plan", "demo", "--embeddings", str(path)])
        assert isinstance(run.exception, hsd.Error)
        assert "device or a pipe" in str(run.exception)
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    with pytest.raises(FolderError, match="device or a pipe"):
        read_folder(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_stored_scores_are_a_file(tmp_path, kind):
    path = tmp_path / "scores-any.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(hsd.OutputError, match="not a file: remove it"):
        ScoreCache(tmp_path, "any", "1")


def test_the_record_of_a_model_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "model.json")
    with pytest.raises(hsd.Error, match="device or a pipe.*choose another folder"):
        claim_model(tmp_path, {})


def test_claims_that_cannot_be_read_claim_everything(tmp_path):
    for i, data in enumerate([b"[" * 100_000, b'{"pid": 1e999}', b'{"prompts": 3}', b""]):
        (tmp_path / f"{living.PREFIX}{i}").write_bytes(data)
        assert living._parsed(tmp_path / f"{living.PREFIX}{i}").ranges is None


@pytest.mark.parametrize("begun", ["1e999", "NaN", '"x"', "null", "1e30"])
def test_a_claim_did_not_begin_after_its_file_was_changed(tmp_path, begun):
    """Newer temporary files are those of a run that lives."""
    path = tmp_path / f"{living.PREFIX}0"
    path.write_text(f'{{"pid": 1, "host": "x", "since": "", "prompts": [[0, 8]], "begun": {begun}}}')
    claim = living._parsed(path)
    assert (claim.begun, claim.ranges) == (path.stat().st_mtime, ((0, 8),))


def test_what_is_no_part_is_passed_over(tmp_path):
    (tmp_path / "__parts__" / "a-1.jsonl").mkdir(parents=True)
    os.mkfifo(tmp_path / "__parts__" / "b-1.jsonl")
    os.mkfifo(tmp_path / "__parts__" / "b-1.json")
    (tmp_path / "__parts__" / "c-1.json").symlink_to(tmp_path / "elsewhere")
    lines = (
        b'[]\n{"file_name": "../x.png"}\n{"file_name": 7}\n{"file_name": "a\\u0000b.png"}\n' + b"[" * 100_000 + b"\n"
    )
    (tmp_path / "__parts__" / "d-1.jsonl").write_bytes(lines)
    (tmp_path / "__parts__" / "d-1.json").write_bytes(b'{"run": 3}')
    (tmp_path.parent / "x.png").write_bytes(b"")
    assert entries_of(tmp_path) == []
    assert PartFiles(tmp_path).records() == {}


def test_large_files_are_refused_by_their_size(tmp_path):
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 1 << 42)
    with pytest.raises(OSError, match="bytes, and at most 100 are read"):
        read_file(tmp_path / "large", 100)
    with pytest.raises(OSError, match="are read"):
        hsd.Calibration.load(tmp_path / "large")
    with pytest.raises(hsd.Error, match="are read"):
        hsd.load_settings(tmp_path / "large")


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode), JSON.map(json.dumps).map(str.encode)))
def test_whatever_is_parsed_can_be_written_again(data):
    try:
        value = parse_json(data)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False).encode()


def test_levels_up_to_the_limit_are_read():
    for levels in (1, MOST_LEVELS):
        assert parse_json("[" * levels + "]" * levels) is not None
    with pytest.raises(ValueError, match="deeper than 100"):
        parse_json("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1))
    wide = "[" + ",".join(["[]"] * 1000) + "]"
    assert len(parse_json(wide)) == 1000
    assert parse_json('{"a": "' + "[" * 1000 + '"}')["a"] == "[" * 1000
