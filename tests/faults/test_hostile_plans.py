"""Plan files from anywhere: refused by name, at once, whatever they hold; and the advice of the error holds."""

from __future__ import annotations

import inspect
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd import _core
from hsd.generation.clustering import _arguments

pytestmark = pytest.mark.faults

PROMPTS = ["a cat", "a dog", "the sea"]
E = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])


@pytest.fixture
def plan():
    return hsd.compile(PROMPTS, 1.0, embeddings=E, steps=4)


def forged(path: Path, plan: hsd.Plan, metadata: str) -> Path:
    """The plan with other metadata, and digests that fit."""
    path.write_bytes(plan._core.to_bytes(plan.prompts, plan.seeds, metadata))
    return path


def refused(path: Path, says: str) -> None:
    with pytest.raises(hsd.Error, match=says) as raised:
        hsd.Plan.load(path)
    assert str(path) in str(raised.value)
    assert "delete this file" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"linkage": None}, "linkage null"),
        ({"linkage": "mixed"}, 'linkage "mixed"; it has to be one of ward'),
        ({"linkage": 3}, "linkage 3"),
        ({"tau": 10**400}, "cannot be read: number out of range"),
        ({"tau": -0.5}, "tau -0.5; it has to be a finite number >= 0"),
        ({"tau": True}, "tau true"),
        ({"tau": "1"}, 'tau "1"'),
        ({"steps": 10**9}, "steps 1000000000; it has to be an integer from 1 to 1000"),
        ({"steps": 0}, "steps 0"),
        ({"steps": -3}, "steps -3"),
        ({"steps": 4.0}, "steps 4.0"),
        ({"steps": False}, "steps false"),
        ({"steps": 10**30}, "steps 1e"),
        ({"noise": "loud"}, 'noise "loud"'),
        ({"noise": ["shared"]}, "noise a list"),
        ({"metric": None}, "metric null"),
        ({"metric": "manhattan"}, 'metric "manhattan"'),
        ({"schedule": {}}, "schedule an object"),
        ({"encoder": 5}, "encoder 5"),
        ({"encoder": None}, "no encoder"),
        ({"catch_up": -1}, "catch_up -1"),
        ({"catch_up": "1"}, 'catch_up "1"'),
        ({"catch_up": False}, "catch_up false"),
        ({"asked_tau": -1}, "asked_tau -1; it has to be a finite number >= 0"),
        ({"asked_tau": "x"}, 'asked_tau "x"'),
        ({"asked_tau": True}, "asked_tau true"),
        ({"asked_metric": None}, "asked_metric null"),
        ({"asked_metric": [1]}, "asked_metric a list"),
        ({"asked_metric": "manhattan"}, 'asked_metric "manhattan"'),
        ({"columns": 5}, "columns= has to map names"),
        ({"columns": {"id": [1]}}, "column 'id' has 1 values for 3 prompts"),
        ({"budget": -1}, "budget -1"),
        ({"images_per_prompt": 10**9}, "images_per_prompt 1000000000"),
        ({"metric_correlation": 1e300}, "metric_correlation"),
        ({"hsd_version": [1]}, "hsd_version a list"),
        ({"settings": 5}, "settings are not a list of objects"),
        ({"settings": {"values": [{}] * 9, "index": [0, 0, 0]}}, "9 settings for 3 prompts"),
        ({"settings": {"values": [{}], "index": [0, 0, True]}}, "prompt 2 has settings true of 1"),
        ({"settings": {"values": [{}], "index": [0, 0, 1e9]}}, "prompt 2 has settings"),
        ({"settings": {"values": [{}, {"width": 8}], "index": [0, 1, 0]}}, "segment .* of different settings"),
    ],
    ids=str,
)
def test_metadata_that_a_later_use_would_trip_over(plan, tmp_path, change, says):
    path = tmp_path / "plan.safetensors"
    refused(forged(path, plan, json.dumps({**plan.request, **change})), says)


def test_what_is_no_json_is_not_written(plan, tmp_path):
    plan.request["tau"] = float("nan")
    with pytest.raises(ValueError, match="metadata is not JSON"):
        plan.save(tmp_path / "plan")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tau", "steps", "noise", "linkage", "encoder"])
def test_metadata_that_is_missing_is_named(plan, tmp_path, name):
    request = {key: value for key, value in plan.request.items() if key != name}
    refused(forged(tmp_path / "plan", plan, json.dumps(request)), f"(no|has) {name}")


@pytest.mark.parametrize(
    "metadata",
    ["[]", "null", "3", '"tau"', "[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "{}"],
    ids=lambda text: text[:9],
)
def test_metadata_of_another_form(plan, tmp_path, metadata):
    refused(forged(tmp_path / "plan", plan, metadata), "metadata")
    with pytest.raises(ValueError, match="metadata"):
        _core.Plan.from_bytes((tmp_path / "plan").read_bytes())


def test_keys_of_later_versions_are_kept(plan, tmp_path):
    later = {**plan.request, "from_later": [1, {"x": None}], "é": "\u2028"}
    again = hsd.Plan.load(forged(tmp_path / "plan", plan, json.dumps(later)))
    assert again.request == later
    assert again.fingerprint == plan.fingerprint


def test_null_is_an_argument_that_was_not_given(plan, tmp_path):
    """Also where a run reads it: in the arguments of a plan that its model clusters again."""
    plan = hsd.compile(PROMPTS, 1.0, steps=4)
    own = dict.fromkeys(("columns", "images_per_prompt", "settings", "budget", "asked_tau"))
    again = hsd.Plan.load(forged(tmp_path / "plan", plan, json.dumps({**plan.request, **own})))
    assert again.columns == {}
    assert again.is_estimate
    assert hsd.compile(**_arguments(again)).fingerprint == plan.fingerprint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    "tau",
    "steps",
    "noise",
    "linkage",
    "encoder",
    "metric",
    "catch_up",
    "settings",
    "schedule",
    "columns",
    "images_per_prompt",
    "asked_tau",
    "asked_metric",
    "other",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_what_is_loaded_can_be_used(tmp_path_factory, change):
    plan = hsd.compile(PROMPTS, 1.0, embeddings=E, steps=4)
    path = tmp_path_factory.mktemp("hostile") / "plan"
    try:
        again = hsd.Plan.load(forged(path, plan, json.dumps({**plan.request, **change})))
    except hsd.Error:
        return
    for text in (str(again), repr(again), again.fingerprint):
        assert text
    assert again.catch_up is None or again.catch_up >= 0
    assert again.metric in ("cosine", "euclidean", "auto", "calibrated", "direct")
    assert len(again.setting) == again.whole().n_prompts == 3
    assert all(isinstance(own, dict) for own in again.settings)
    assert all(len(values) == 3 for values in again.columns.values())
    assert set(_arguments(again)) <= set(inspect.signature(hsd.compile).parameters)
    again.cost([again.program(2)]).numbers()
    assert hsd.compile(PROMPTS, 1.0, embeddings=E, steps=4, reuse=path).prompts == PROMPTS


# ---------------------------------------------------------------------------------------- the file itself


def header_only(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.timeout(20)
def test_a_header_of_many_names_is_refused_at_its_first(tmp_path):
    tensor = '"x{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    header = "{" + ",".join(tensor.format(i) for i in range(300_000)) + "}"
    (tmp_path / "plan").write_bytes(header_only(header.encode()))
    refused(tmp_path / "plan", 'array "x0", which no plan has')


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"\0" * 7, "7 bytes"),
        (b"\xff" * 8, "length of a header"),
        (b"\0" * 100, "header"),
        ((1 << 20).to_bytes(8, "little") + b"{}", "ends within its header"),
        (header_only(b"[" * 1_000_000), "header"),
        (header_only(b'{"__metadata__":' + b'{"a":' * 1_000_000), "header"),
        (header_only(b"{}"), 'no "hsd" entry'),
        (header_only(b'{"kept":{"dtype":"I64","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'), "hsd"),
        (b"\x80\x04\x95" + b"a" * 99, "length of a header"),
        (b"PK\x03\x04" + b"a" * 99, "length of a header"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_files_that_are_no_plans(tmp_path, data, says):
    (tmp_path / "plan").write_bytes(data)
    refused(tmp_path / "plan", says)
    with pytest.raises(ValueError, match="not a sound plan file"):
        _core.Plan.from_bytes(data)


def test_a_large_file_that_is_no_plan_is_not_read(plan, tmp_path):
    path = tmp_path / "plan"
    plan.save(path)
    os.truncate(path, 1 << 42)  # a hole: it takes no place on the disk
    tracemalloc.start()
    refused(path, "it was cut, or is another file")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.timeout(20)
def test_what_is_no_file_is_named_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match=f"device or a pipe.*{path}"):
            hsd.Plan.load(path)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        hsd.Plan.load(tmp_path)
    with pytest.raises(OSError, match="not the name of a file"):
        hsd.Plan.load("a\0b")
    with pytest.raises(FileNotFoundError, match="none"):
        hsd.Plan.load(tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(plan, tmp_path):
    plan.save(tmp_path / "plan")
    (tmp_path / "plan").chmod(0)
    with pytest.raises(PermissionError):
        hsd.Plan.load(tmp_path / "plan")


def test_the_advice_holds(plan, tmp_path):
    """Deleting the file is enough: it is compiled again."""
    path = tmp_path / "plan.safetensors"
    arguments = {"prompts": PROMPTS, "tau": 1.0, "steps": 4, "reuse": path}
    first = hsd.compile(**arguments)
    first.save(path)
    assert hsd.compile(**arguments).segments.tolist() == first.segments.tolist()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(hsd.Error, match="Compile it again: delete this file"):
        hsd.compile(**arguments)
    path.unlink()
    again = hsd.compile(**arguments)
    again.save(path)
    assert again.fingerprint == first.fingerprint == hsd.Plan.load(path).fingerprint


# ---------------------------------------------------------------------------------------- seeds of the fuzz targets

SEEDS = Path(__file__).resolve().parents[2] / "fuzz" / "seeds"


@pytest.mark.parametrize("path", sorted((SEEDS / "plan_file").iterdir()), ids=lambda path: path.name)
def test_seeds_are_plans(path):
    plan = hsd.Plan.load(path)
    assert str(plan)
    assert plan.fingerprint
    data = path.read_bytes()
    assert plan._core.to_bytes(plan.prompts, plan.seeds, _core.Plan.from_bytes(data)[3]) == data


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted((SEEDS / "plan_file").iterdir())), st.data())
def test_changed_seeds_are_refused_or_the_same(path, data):
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(bad) - 1))
        bad[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        plan, *rest = _core.Plan.from_bytes(bytes(bad))
    except ValueError:
        return
    assert plan.to_bytes(*rest) == good


# ---------------------------------------------------------------------------------------- the fingerprint


def test_the_last_bits_of_the_distances_do_not_matter():
    """As on a processor with other vector instructions, which adds up in another order."""
    rng = np.random.default_rng(5)
    prompts = [f"prompt {i}" for i in range(200)]
    table = rng.normal(size=(20, 16))[np.arange(200) % 20] + 0.3 * rng.normal(size=(200, 16))
    table[150:] = table[100:150]  # equal embeddings: distances of 0
    plan = hsd.compile(prompts, 0.8, embeddings=table)
    for _ in range(3):
        noise = 1 + np.finfo(np.float64).eps * rng.integers(-2, 3, len(plan.tree.scores))
        scores = np.maximum(plan.tree.scores, 1e-17) * noise  # nor is a distance of 0 exactly 0 everywhere
        tree = _core.Tree.from_merges(plan.tree.merges[:, ::-1].copy(), scores)
        assert tree.scores.tobytes() != plan.tree.scores.tobytes()
        other = hsd.Plan(_core.Plan.compile(tree, plan.phi), plan.prompts, plan.seeds, plan.request)
        assert other.fingerprint == plan.fingerprint == other.shard(3)[1].fingerprint
    assert hsd.compile(prompts, 0.79, embeddings=table).fingerprint != plan.fingerprint


def test_a_part_that_was_loaded_has_the_fingerprint_of_the_whole(plan, tmp_path):
    plan.prune([1]).save(tmp_path / "part")
    assert hsd.Plan.load(tmp_path / "part").fingerprint == plan.fingerprint
