"""Folders that grow, and what may become of them: kills, power cuts, damaged and hostile files, other runs."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading

import numpy as np
import pytest

import hsd
from disk import check_folder, check_lines, copy_of, fill, images, lines, open_folder
from hsd.planning.agree import agreed
from hsd.planning.plan import PLAN_COPY, PLAN_FILE
from hsd.planning.vectors import VECTORS_FILE
from power_cut import Recorder, _File, restore

pytestmark = pytest.mark.faults

OLD = ["a cat", "a cat on a mat", "a dog", "a small dog", "the sea"]
LARGE = [*OLD, "a cat in the sun", "the sea by night"]
EXTRA = {PLAN_COPY, VECTORS_FILE}


def encode(texts):
    """Vectors of letters: equal for equal texts, alike for texts that are."""
    return np.array([[1 + text.count(letter) for letter in "acdeghimnorst"] for text in texts], dtype=np.float64)


def listed(texts, out=None, encoder=encode, **options):
    return hsd.compile(list(texts), 0.9, encoder=encoder, steps=6, seeds=100, extend=out, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "images"
    fill(path, listed(OLD))
    return path


@pytest.fixture(scope="module")
def reference(base):
    path = copy_of(base, base.with_name("reference"))
    plan = listed(LARGE, path)
    assert plan.segments["borrowed"].any()
    assert fill(path, plan) == ([5, 6], [])
    return path


@pytest.fixture
def grown(reference, tmp_path):
    return copy_of(reference, tmp_path / "images")


def check_continues(path, base, reference):
    """The old list makes nothing, the larger one what is missing, and old images stay; in either order."""
    other = copy_of(path, path.with_name(path.name + "-other"))
    assert fill(path, listed(OLD, path))[0] == []
    assert images(base).items() <= images(path).items()
    for folder in (path, other):
        plan = listed(LARGE, folder)
        made = fill(folder, plan)[0]
        assert set(made) <= {5, 6}
        check_folder(folder, plan, reference, extra=EXTRA)
        assert fill(folder, listed(OLD, folder)) == ([], [])
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------- kills and power cuts


@pytest.mark.parametrize("model", ["strict", "torn"])
def test_a_power_cut_at_every_moment_of_growing(base, reference, tmp_path, model, monkeypatch):
    path = copy_of(base, tmp_path / "images")
    with Recorder(path) as disk:
        for file in path.iterdir():
            disk.names[file.name] = _File(file.read_bytes())
        disk.synced_names = dict(disk.names)
        fill(path, listed(LARGE, path))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # recorded; what follows need not be safe too
    seen = {}
    for number, states in enumerate(disk.moments):
        seen.setdefault(tuple(sorted(states[model].items())), number)
    assert len(seen) > 8
    # Among them: the plan has grown and the record does not say so yet.
    plans = {hsd.Plan.load(base / PLAN_FILE).fingerprint, hsd.Plan.load(reference / PLAN_FILE).fingerprint}
    for key, number in seen.items():
        state = dict(key)
        assert json.loads(state["identity.json"])["plan"] in plans
        assert images(base).items() <= state.items()
        check_continues(restore(state, tmp_path / "after" / str(number)), base, reference)


def killed(path, moments):
    """How a process ended that grows a folder until it ends itself, and the file that was to get its name."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        name = os.read(read, 1000).decode()
        os.close(read)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), name
    real, left = os.replace, [moments]

    def replace(source, target):
        for after in (False, True):
            if not left[0]:
                os.write(write, os.path.basename(target).encode())
                os._exit(9)
            left[0] -= 1
            if not after:
                real(source, target)

    try:
        os.replace = replace
        fill(path, listed(LARGE, path))
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the run that is killed is forked")
def test_a_kill_at_every_file_that_gets_its_name(base, reference, tmp_path):
    """Before and after each. A killed run leaves its claim and its temporary files."""
    names = []
    for number in range(60):
        path = copy_of(base, tmp_path / str(number))
        status, name = killed(path, number)
        assert status in (0, 9)
        if status == 0:
            break
        names.append(name)
        check_continues(path, base, reference)
    assert status == 0
    assert {PLAN_COPY, PLAN_FILE, VECTORS_FILE, "run.json", "identity.json", "00005.png"} <= set(names)
    assert names.index(PLAN_COPY) < names.index(PLAN_FILE) < names.index("identity.json") < names.index("00005.png")


def test_an_interrupt_among_the_new_images(base, reference, tmp_path):
    path = copy_of(base, tmp_path / "images")

    def stop(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(path, listed(LARGE, path), after=stop)
    assert [line["index"] for line in lines(path)] == [0, 1, 2, 3, 4, 5]
    check_continues(path, base, reference)


# ------------------------------------------------------------------------------- other runs


def test_growing_beside_a_run_is_refused(base, reference, tmp_path):
    path = copy_of(base, tmp_path / "images")
    (path / "00003.png").unlink()
    entered, go = threading.Event(), threading.Event()

    def first():
        fill(path, listed(OLD, path), after=lambda index: (entered.set(), go.wait(20)))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(20)
    try:
        before = {name: (path / name).read_bytes() for name in (PLAN_FILE, "identity.json")}
        with pytest.raises(hsd.OutputError, match=f"in use by another run of this process {os.getpid()}.*Wait until"):
            open_folder(path, listed(LARGE, path))
        assert {name: (path / name).read_bytes() for name in before} == before
    finally:
        go.set()
        thread.join()
    assert fill(path, listed(LARGE, path))[0] == [5, 6]
    check_folder(path, listed(LARGE, path), reference, extra=EXTRA)


def test_growing_beside_a_run_of_other_images_changes_nothing(base, reference, tmp_path, monkeypatch):
    """A part of the larger plan claims none of the images that the run makes; the plan is the run's all the same."""
    monkeypatch.setattr("hsd.generation.belonging._BEGINNING", 0.05)
    path = copy_of(base, tmp_path / "images")
    part = listed([OLD[0], *LARGE[5:]], path)
    assert part.kept.tolist() == [0, 5, 6]
    with open_folder(path, listed(OLD, path).prune([1, 2])):
        before = {name: (path / name).read_bytes() for name in (PLAN_FILE, "identity.json", "run.json")}
        with pytest.raises(hsd.OutputError, match="cannot grow while another run"):
            open_folder(path, part)
        assert {name: (path / name).read_bytes() for name in before} == before
    assert fill(path, part)[0] == [5, 6]
    check_lines(path, part.origin)


# ------------------------------------------------------------------------------- files


def same(a, b):
    assert a.fingerprint == b.fingerprint
    assert (a.prompts, a.request, a.extensions, a.grown_from) == (b.prompts, b.request, b.extensions, b.grown_from)
    assert a.seeds.tolist() == b.seeds.tolist()
    assert a.kept.tolist() == b.kept.tolist()
    assert np.array_equal(a.segments, b.segments)
    assert a.segments.dtype == b.segments.dtype


def test_a_grown_plan_is_saved_and_loaded(tmp_path):
    plan = listed(OLD).extend(["a hill"], encoder=encode).extend(["a dog, small"], encoder=encode)
    for name, part in (("whole", plan), ("part", plan.prune([0, 6])), ("shard", plan.shard(2)[1])):
        part.save(tmp_path / name)
        same(hsd.Plan.load(tmp_path / name), part)
    again = hsd.Plan.load(tmp_path / "whole").extend(["the sea at noon"], encoder=encode)
    same(again, plan.extend(["the sea at noon"], encoder=encode))


def test_the_extensions_are_part_of_the_fingerprint():
    """They decide what clusters are conditioned on."""
    plan = listed(OLD).extend(["a hill", "a dog, small"], encoder=encode)
    one = plan.fingerprint
    for other in ([4], [5, 6], []):
        plan.request["extensions"] = other
        changed = hsd.Plan(plan._core, plan.prompts, plan.seeds, dict(plan.request))
        assert changed.fingerprint != one


NOT_ASCENDING = "it has to be an ascending list of numbers of its prompts"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extensions": value}, NOT_ASCENDING)
        for value in (
            [0],
            [7],
            [8],
            [5, 5],
            [6, 5],
            [-1],
            [1.0],
            [True],
            ["5"],
            [[5]],
            [None],
            [10**30],
            5,
            "5",
            {},
            None,
        )
    ]
    + [({"grown_from": value}, "it has to be a list of texts") for value in (None, "x", [1], [None], [["x"]], {}, 5)],
    ids=str,
)
def test_metadata_that_is_no_history_is_refused(tmp_path, change, says):
    plan = listed(OLD).extend(LARGE[5:], encoder=encode)
    path = tmp_path / "plan.safetensors"
    path.write_bytes(plan._core.to_bytes(plan.prompts, plan.seeds, json.dumps({**plan.request, **change})))
    if next(iter(change.values())) is None:  # as if it were not there, or refused
        try:
            assert hsd.Plan.load(path).layers().counts().size
        except hsd.Error as error:
            assert says in str(error)  # noqa: PT017
        return
    with pytest.raises(hsd.Error, match=says) as raised:
        hsd.Plan.load(path)
    assert str(path) in str(raised.value)


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "empty", "damaged"])
def test_the_copy_of_the_plan_is_used(grown, reference, how):
    """Which prompts came when cannot be computed again."""
    expected = hsd.Plan.load(grown / PLAN_FILE)
    spoil(grown / PLAN_FILE, how)
    plan = listed(LARGE, grown)
    same(plan, expected)
    made, repaired = fill(grown, plan)
    assert made == []
    assert any("plan.safetensors was damaged or missing" in text for text in repaired)
    check_folder(grown, expected, reference, extra=EXTRA)
    assert fill(grown, listed([*LARGE, "a hill"], grown)) == ([7], [])


def test_a_set_that_grows_in_shards_has_the_copy_of_its_plan(base, reference, tmp_path):
    path = copy_of(base, tmp_path / "images")
    whole = agreed(path, listed(LARGE, path))
    same(hsd.Plan.load(path / PLAN_COPY), whole)
    for shard in whole.shard(3):
        fill(path, shard)
    (path / PLAN_FILE).unlink()
    plan = listed(LARGE, path)
    same(plan, whole)
    assert fill(path, plan)[0] == []
    check_folder(path, plan, reference, extra=EXTRA)


@pytest.mark.parametrize("how", ["missing", "older"])
def test_the_copy_of_the_plan_is_written_again(grown, base, how):
    expected = hsd.Plan.load(grown / PLAN_FILE)
    if how == "missing":
        (grown / PLAN_COPY).unlink()
    else:
        shutil.copy(base / PLAN_FILE, grown / PLAN_COPY)
    fill(grown, listed(LARGE, grown).shard(3)[0])
    same(hsd.Plan.load(grown / PLAN_COPY), expected)


def test_without_the_plan_and_its_copy_nothing_is_mixed(grown):
    before = images(grown)
    for name in (PLAN_FILE, PLAN_COPY):
        spoil(grown / name, "damaged")
    with pytest.raises(hsd.PlanMismatch, match="another plan"):
        fill(grown, listed(LARGE, grown))
    assert images(grown) == before


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_vectors_that_are_lost_are_encoded_again(grown, how):
    counted = []

    @functools.wraps(encode)  # whose name the plan records
    def counting(texts):
        counted.append(len(texts))
        return encode(texts)

    larger = [*LARGE, "a hill"]
    expected = listed(larger, grown, counting)
    assert counted == [1]
    spoil(grown / VECTORS_FILE, how)
    same(listed(larger, grown, counting), expected)
    assert counted == [1, 8]
    assert fill(grown, listed(larger, grown)) == ([7], [])


def test_vectors_of_another_plan_are_not_used(grown, base):
    shutil.copy(base / VECTORS_FILE, grown / VECTORS_FILE)
    expected = listed(LARGE, grown).fingerprint
    plan = listed([*LARGE, "a hill"], grown)
    assert plan.grown_from[-1] == expected
    assert len(plan.vectors.array) == 8


def test_a_folder_of_an_earlier_version_grows(base, reference, tmp_path):
    """Without vectors, and with a plan that says nothing of extensions."""
    path = copy_of(base, tmp_path / "images")
    (path / VECTORS_FILE).unlink()
    assert not {"extensions", "grown_from"} & hsd.Plan.load(path / PLAN_FILE).request.keys()
    assert fill(path, listed(OLD, path)) == ([], [])
    plan = listed(LARGE, path)
    assert fill(path, plan) == ([5, 6], [])
    check_folder(path, plan, reference, extra=EXTRA)


@pytest.mark.parametrize("name", [PLAN_COPY, VECTORS_FILE])
def test_a_folder_in_the_place_of_a_file_is_set_aside(base, reference, tmp_path, name):
    path = copy_of(base, tmp_path / "images")
    (path / name).unlink(missing_ok=True)
    (path / name).mkdir()
    (path / name / "mine.txt").write_text("kept")
    assert fill(path, listed(LARGE, path))[0] == [5, 6]
    assert (path / name).is_file()
    assert (path / f".{name}.damaged" / "mine.txt").read_text() == "kept"
    check_folder(path, listed(LARGE, path), reference, extra={*EXTRA, f".{name}.damaged"})
