"""Images and plans in object stores: S3 as moto imitates it, a store in this process, and folders behind a URL."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

import hsd
import stores
from disk import MADE_BY, TEXTS, check_folder, check_pixels, fill, lines, make_plan, picture
from hsd import cli
from hsd.errors import Error, OutputError, PlanMismatch
from hsd.generation import store_claims, store_lines
from hsd.generation.claims import content_of
from hsd.generation.failures import entry_of
from hsd.generation.forks import read_forks
from hsd.generation.lines import encode
from hsd.generation.living import claim_of
from hsd.generation.results import Failure
from hsd.generation.shards import write_shards
from hsd.generation.store import StoreFolder, StorePart
from hsd.work.files import digest_of
from hsd.work.objects import Objects
from hsd.work.urls import filesystem_of, is_url
from stores import add, download

PLAN = make_plan()
HALVES = PLAN.shard(2)
FIRST, SECOND = (half.kept.tolist() for half in HALVES)


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as patch:
        server = stores.start_s3(patch)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def forks(s3):
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked, so that they import HSD once")
    with stores.forks() as run:
        yield run


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {
        "memory": f"memory://{tmp_path.name}/x",
        "file": f"file://{tmp_path}/x",
        "s3": f"s3://bucket/{tmp_path.name}",
    }[request.param]


@pytest.fixture
def memory(tmp_path):
    return f"memory://{tmp_path.name}/x"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    fill(path, PLAN)
    return path


@pytest.fixture
def waiting(monkeypatch):
    """Lines are written only when that is asked for."""
    monkeypatch.setattr(store_lines, "_SHORTEST", 600.0)


def parts(url):
    return [name for name in Objects(url).sizes_below("__parts__") if name.endswith(".jsonl")]


def in_metadata(url):
    data = Objects(url).get("metadata.jsonl") or b""
    return [json.loads(line)["index"] for line in data.split(b"\n") if line]


def record(url):
    return json.loads(Objects(url).get("run.json"))


# ------------------------------------------------------------------------------- one writer, and several


def test_an_interrupted_run_is_continued_to_what_one_run_leaves(url, tmp_path, reference):
    assert stores.fill(url, PLAN, [0, 5]) == ([0, 5], [])
    assert stores.fill(url, PLAN)[0] == [1, 2, 3, 4, 6, 7]
    assert stores.fill(url, PLAN) == ([], [])
    check_folder(download(url, tmp_path / "copy"), PLAN, reference)
    assert [run["images"] for run in record(url)["runs"]] == [2, 6, 0]
    assert not list(tmp_path.glob("x/__*")), "no folders are left where a URL is one of this machine"


def test_two_writers_side_by_side(url, tmp_path, reference):
    one, two = (StoreFolder(url, half, MADE_BY) for half in HALVES)
    add(one, *FIRST)
    one.flush()
    assert two.refresh() == set(FIRST), "lines of others are found"
    assert two.refresh() == set(), "once"
    add(two, *SECOND)
    one.record_run({"images": len(FIRST)})
    one.close()
    assert parts(url), "while another run lives, nothing is removed: it may replace metadata.jsonl by what it has read"
    two.record_run({"images": len(SECOND)})
    two.close()
    check_folder(download(url, tmp_path / "copy"), PLAN, reference)
    assert sorted(run["images"] for run in record(url)["runs"]) == sorted([len(FIRST), len(SECOND)])


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_two_processes_at_once(forks, url, tmp_path, reference):
    assert forks((url, 0, False), (url, 1, False)) == [0, 0]
    assert stores.fill(url, PLAN)[0] == []
    check_folder(download(url, tmp_path / "copy"), PLAN, reference)


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_killed_run_is_continued_at_once(forks, url, tmp_path, reference):
    assert forks((url, 0, True)) == [-9]
    assert Objects(url).sizes_below("__claims__"), "its claim is still there"
    with StoreFolder(url, PLAN, MADE_BY) as folder:
        assert folder.done() == {FIRST[0]}, "the line of the other image waited, so it is made again"
    stores.fill(url, PLAN)
    check_folder(download(url, tmp_path / "copy"), PLAN, reference)


def test_parts_stay_if_another_run_replaces_the_lines(memory, monkeypatch):
    """What it has read earlier, it writes between the joining and the removing."""

    def replaced(claim):
        Objects(memory).put("metadata.jsonl", b"")
        return []

    folder = StoreFolder(memory, PLAN, MADE_BY)
    add(folder, *FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(store_claims.StoreClaim, "others", replaced)
        folder.close()
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        assert folder.done() == set(FIRST)


def test_a_run_that_slept_keeps_what_others_have_joined(memory):
    """Its claim has ended, another run has made the rest and removed all parts; then it wakes up and joins too."""
    slept = StoreFolder(memory, HALVES[0], MADE_BY)
    add(slept, *FIRST)
    slept.flush()
    Objects(memory).remove([slept._held.name])
    stores.fill(memory, PLAN)
    assert not parts(memory)
    slept.close()
    assert in_metadata(memory) == list(range(PLAN.n_prompts))


# ------------------------------------------------------------------------------- lines


def test_lines_wait_for_each_other(memory, waiting):
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        add(folder, 0, 1)
        assert (folder.done(), parts(memory)) == (set(), []), "only what is written counts"
        folder.flush()
        assert (folder.done(), len(parts(memory))) == ({0, 1}, 1)
        add(folder, 2)
    assert in_metadata(memory) == [0, 1, 2], "closing leaves none behind"


def test_lines_are_written_without_asking(memory, monkeypatch):
    monkeypatch.setattr(store_lines, "_SHORTEST", 0.001)
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        add(folder, 0)
        end = time.monotonic() + 30
        while not folder.done() and time.monotonic() < end:
            time.sleep(0.001)
        assert folder.done() == {0}


def test_lines_that_cannot_be_written_are_an_error_and_are_tried_again(memory, monkeypatch, waiting):
    folder = StoreFolder(memory, PLAN, MADE_BY)
    add(folder, 0)
    with monkeypatch.context() as patch:
        patch.setattr(folder._objects._system, "pipe_file", fails(ConnectionError("the network is gone")))
        with pytest.raises(OutputError, match="the network is gone"):
            folder.flush()
        with pytest.raises(OutputError, match=r"00001\.png.*the network is gone"):
            add(folder, 1)
    folder.close()
    assert in_metadata(memory) == [0]


def test_closing_says_what_it_leaves_behind(memory, monkeypatch, waiting):
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        worker = StorePart(memory, PLAN, MADE_BY)
        add(worker, 0)
        with monkeypatch.context() as patch:
            patch.setattr(worker._objects._system, "pipe_file", fails(ConnectionError("the network is gone")))
            with pytest.raises(OutputError, match="the network is gone"):
                worker.close()
        worker.close()
        assert folder.refresh() == {0}


def test_an_error_in_the_thread_ends_the_run(memory, monkeypatch):
    monkeypatch.setattr(store_lines, "_SHORTEST", 0.001)
    folder = StoreFolder(memory, PLAN, MADE_BY)

    def put(path, data, **options):
        if "__parts__" in path:
            raise PermissionError("no")
        real(path, data, **options)

    real = folder._objects._system.pipe_file
    with monkeypatch.context() as patch:
        patch.setattr(folder._objects._system, "pipe_file", put)
        with pytest.raises(OutputError, match="no; see to the address"):
            add(folder, *[0] * 100_000)
    folder.close()
    assert in_metadata(memory) == [0]


def test_images_and_lines_that_do_not_fit(url):
    stores.fill(url, PLAN)
    objects = Objects(url)
    objects.remove(["00001.png"])
    objects.put("00002.png", b"cut")
    found = [json.loads(line) for line in objects.get("metadata.jsonl").split(b"\n") if line]
    found[3]["text"] = "another"
    objects.put("metadata.jsonl", b"".join(map(encode, found)) + b"half a li")
    with StoreFolder(url, PLAN, MADE_BY) as folder:
        assert folder.done() == set(range(PLAN.n_prompts)) - {1, 2}
        (said,) = folder.report()
        for text in ("00001.png is missing", "00002.png has 3 bytes", "text of its line corrected", "are made again"):
            assert text in said
    assert in_metadata(url) == [0, 3, 4, 5, 6, 7], "no line without its image"
    assert stores.fill(url, PLAN)[0] == [1, 2]


@pytest.mark.parametrize("first", ["right", "wrong"])
def test_of_two_lines_the_one_of_the_image_counts(memory, first):
    """Two runs have made one image, though it was claimed, and the bytes of one are there."""
    stores.fill(memory, PLAN)
    objects = Objects(memory)
    line = json.loads(objects.get("metadata.jsonl").split(b"\n")[0])
    files = "__parts__/other-1/000000.jsonl", "metadata.jsonl"
    right, wrong = files if first == "right" else reversed(files)
    objects.put(right, encode(line))
    objects.put(wrong, encode({**line, "digest": "0" * 32}))
    with StoreFolder(memory, PLAN, MADE_BY):
        pass
    assert json.loads(objects.get("metadata.jsonl").split(b"\n")[0]) == line


def test_failures(memory):
    failures = [Failure(index, PLAN.prompts[index], int(PLAN.seeds[index]), "decode", "black") for index in (1, 2)]
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        add(folder, 0)
        folder.record_run({"images": 1}, failures)
    assert Objects(memory).get("failed.jsonl") == b"".join(encode(entry_of(failure)) for failure in failures)
    stores.fill(memory, PLAN, [1])
    assert Objects(memory).get("failed.jsonl") == encode(entry_of(failures[1]))
    stores.fill(memory, PLAN)
    assert Objects(memory).get("failed.jsonl") is None


# ------------------------------------------------------------------------------- workers without a claim


def test_a_worker_writes_into_an_open_folder(url, waiting):
    with pytest.raises(PlanMismatch, match=r"not yet a folder of this plan: it has no run\.json"):
        StorePart(url, PLAN, MADE_BY)
    with StoreFolder(url, PLAN, MADE_BY) as folder:
        with pytest.raises(PlanMismatch, match="another model .*guidance_scale"):
            StorePart(url, PLAN, {**MADE_BY, "settings": {"guidance_scale": 8.0}})
        with StorePart(url, HALVES[0], MADE_BY) as worker:
            assert worker.add(FIRST[0], picture(PLAN, FIRST[0]), {}) == f"{url}/{FIRST[0]:05d}.png"
            assert folder.refresh() == set()
            worker.flush()
            assert folder.refresh() == {FIRST[0]}
            add(worker, FIRST[1])
        assert folder.refresh() == {FIRST[1]}
        assert folder.done() == set(FIRST[:2])
    assert in_metadata(url) == FIRST[:2]
    assert not parts(url)


# ------------------------------------------------------------------------------- claims


def test_a_run_that_lives_is_not_disturbed(url):
    with (
        StoreFolder(url, HALVES[0], MADE_BY),
        pytest.raises(OutputError, match="in use by another run of this process"),
    ):
        StoreFolder(url, PLAN, MADE_BY)
    with StoreFolder(url, PLAN, MADE_BY):
        assert len(Objects(url).sizes_below("__claims__")) == 1
    assert not Objects(url).sizes_below("__claims__")


def test_of_runs_that_begin_together_one_goes_on(memory):
    start = threading.Barrier(4)

    def open_it(_):
        start.wait()
        try:
            return StoreFolder(memory, PLAN, MADE_BY)
        except OutputError:
            return None

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            opened = [folder for folder in pool.map(open_it, range(4)) if folder is not None]
        for folder in opened:
            folder.close()
        assert len(opened) == 1


@pytest.mark.parametrize(("name", "goes_on"), [("~", True), ("A", False)])
def test_of_two_claims_at_the_same_moment_the_lower_name_has_it(memory, monkeypatch, name, goes_on):
    """The other one gives way meanwhile."""
    rival = claim_of(name, {**content_of(PLAN.kept, 0.0), "sure": False}, 0.0)
    looks = iter([[rival], []])
    monkeypatch.setattr(store_claims.StoreClaim, "others", lambda claim: next(looks, []))
    if goes_on:
        StoreFolder(memory, PLAN, MADE_BY).close()
    else:
        with pytest.raises(OutputError, match="in use by"):
            StoreFolder(memory, PLAN, MADE_BY)


def test_the_claim_of_another_host_lives_for_a_lease(url, monkeypatch):
    folder = StoreFolder(url, PLAN, MADE_BY)
    claim = json.loads(Objects(url).get(folder._held.name))
    folder.close()
    Objects(url).put("__claims__/far-1.json", json.dumps({**claim, "host": "far"}).encode())
    with pytest.raises(OutputError, match=r"on far, since .* 60 seconds after that"):
        StoreFolder(url, PLAN, MADE_BY)
    monkeypatch.setattr(store_claims, "LEASE", -1.0)
    stores.fill(url, PLAN, [0])
    assert not Objects(url).sizes_below("__claims__"), "what a dead run has left is removed"


def test_a_claim_is_kept_alive(memory, monkeypatch):
    monkeypatch.setattr(store_claims, "LEASE", 0.004)
    with StoreFolder(memory, PLAN, MADE_BY) as folder:
        name, before = folder._held.name, Objects(memory).changed(folder._held.name)
        end = time.monotonic() + 30
        while Objects(memory).changed(name) == before and time.monotonic() < end:
            time.sleep(0.001)
        assert Objects(memory).changed(name) > before


# ------------------------------------------------------------------------------- whose a folder is


def test_a_folder_belongs_to_one_plan_and_one_model(memory):
    stores.fill(memory, PLAN, [0])
    other = make_plan([*TEXTS[:-1], "a whale"])
    with pytest.raises(PlanMismatch, match=r"another plan \(prompt 7: 'a cat' before"):
        StoreFolder(memory, other, MADE_BY)
    with pytest.raises(PlanMismatch, match=r"another model \(model: 'painted' before, 'drawn' now"):
        StoreFolder(memory, PLAN, {**MADE_BY, "name": "drawn"})
    with pytest.raises(PlanMismatch, match=r"another format \(png before, webp now"):
        StoreFolder(memory, PLAN, MADE_BY, "webp")


def test_a_folder_without_images_is_given_to_another_plan(memory):
    stores.fill(memory, PLAN, [])
    other = make_plan([*TEXTS[:-1], "a whale"])
    stores.fill(memory, other)
    assert hsd.Plan.load(f"{memory}/plan.safetensors").fingerprint == other.fingerprint
    assert record(memory)["identity"]["plan"] == other.fingerprint


def test_images_of_someone_else_are_not_touched(memory):
    Objects(memory).put("00000.png", b"theirs")
    with pytest.raises(PlanMismatch, match=r"holds another data set \(images"):
        StoreFolder(memory, PLAN, MADE_BY)
    assert list(Objects(memory).sizes()) == ["00000.png"]


@pytest.mark.parametrize("damage", [None, b"cut"])
def test_a_plan_that_is_missing_or_damaged_is_written_again(memory, damage):
    stores.fill(memory, PLAN)
    for name in ("plan.safetensors", "run.json"):
        Objects(memory).remove([name])
        if damage:
            Objects(memory).put(name, damage)
    assert stores.fill(memory, PLAN)[0] == []
    assert hsd.Plan.load(f"{memory}/plan.safetensors").fingerprint == PLAN.fingerprint
    assert len(record(memory)["runs"]) == 1


# ------------------------------------------------------------------------------- plans


def test_plans_are_saved_and_loaded_and_used_again(url):
    texts = ["a red star", "a blue star", "a green ring"]
    plan = hsd.compile(texts, 1.0)
    plan.save(f"{url}/plan.safetensors")
    loaded = hsd.Plan.load(f"{url}/plan.safetensors")
    assert loaded.fingerprint == plan.fingerprint
    hsd.Plan(plan._core, plan.prompts, plan.seeds, {**plan.request, "hsd_version": "0"}).save(f"{url}/plan.safetensors")
    for given in (url, f"{url}/", f"{url}/plan.safetensors"):
        assert hsd.compile(texts, 1.0, reuse=given).request["hsd_version"] == "0", "it was not compiled"
    assert hsd.compile(texts[:2], 1.0, reuse=url).request["hsd_version"] != "0", "of other prompts"
    assert hsd.compile(texts, 1.0, reuse=f"{url}/nothing").fingerprint == plan.fingerprint
    Objects(url).put("plan.safetensors", b"\x08" + bytes(7) + b"{}      and more")
    with pytest.raises(Error, match="is not a plan that can be used"):
        hsd.compile(texts, 1.0, reuse=f"{url}/plan.safetensors")
    with pytest.raises(FileNotFoundError):
        hsd.Plan.load(f"{url}/none.safetensors")


# ------------------------------------------------------------------------------- URLs, and what cannot use them


def test_what_is_a_url():
    assert all(map(is_url, ["s3://b/x", "gs://b/x", "memory://x", "file:///x", "S3://b", "simplecache::s3://b/x"]))
    assert not any(map(is_url, ["x", "/x", "C://x", "s3:/b/x", "", None, Path("s3://b/x"), "a b://c"]))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "names no folder: write s3://bucket/folder"),
        ("memory://", "names no folder"),
        ("foo://bucket/x", "Protocol not known: foo"),
        ("simplecache::s3://bucket/x", "names several file systems: name the one alone that keeps the files, s3://"),
    ],
)
def test_urls_that_name_nothing(url, said):
    with pytest.raises(Error, match=said):
        filesystem_of(url)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    with pytest.raises(Error, match="gs://bucket/x needs a package that is not installed: pip install gcsfs"):
        hsd.generate(PLAN, "demo", "gs://bucket/x")


def test_stores_that_do_not_answer(s3, monkeypatch):
    with pytest.raises(OutputError, match="cannot use s3://none/x.*bucket does not exist"):
        StoreFolder("s3://none/x", PLAN, MADE_BY)
    objects = Objects("memory://unreachable")
    with monkeypatch.context() as patch:  # as gcsfs raises it
        patch.setattr(objects._system, "pipe_file", fails(FileNotFoundError("https://storage/b/none/o")))
        with pytest.raises(OutputError, match="cannot use memory://unreachable/a: not found: https://storage/b/none/o"):
            objects.put("a", b"")
    # What packages raise besides OSError: that of botocore without credentials is none.
    monkeypatch.setattr(objects._system, "ls", fails(RuntimeError("Unable to locate credentials")))
    with pytest.raises(OutputError, match="cannot use memory://unreachable: Unable to locate credentials; see to"):
        objects.sizes()


def test_a_file_is_no_folder(url):
    Objects(url).put("file", b"x")
    with pytest.raises(OutputError):
        StoreFolder(f"{url}/file", PLAN, MADE_BY)


def test_files_of_a_store(url):
    objects = Objects(url)
    assert [objects.create("a/b", data) for data in (b"1", b"2")] == [True, False]
    assert (objects.get("a/b"), objects.get("none"), objects.changed("none")) == (b"1", None, None)
    objects.put("a/b", b"three")
    objects.put("c", b"")
    assert (objects.sizes(), objects.sizes_below("a")) == ({"c": 0}, {"a/b": 5})
    assert objects.get_all(["a/b", "c", "d"]) == {"a/b": b"three", "c": b""}
    objects.remove(["a/b", "d"])
    assert (objects.sizes(), objects.sizes_below("a"), objects.has("c"), objects.has("d")) == (
        {"c": 0},
        {},
        True,
        False,
    )


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_what_other_processes_write_is_seen(url):
    """Packages for stores remember listings."""
    objects = Objects(url)
    objects.put("a", b"1")
    assert objects.sizes() == {"a": 1}
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{url}/b", b"2")
    assert objects.sizes() == {"a": 1, "b": 1}


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_markers_of_folders_are_no_files(url):
    """Consoles and programs that copy files write an empty file with the name of a folder and a slash."""
    system, path = filesystem_of(url)
    bucket, key = path.split("/", 1)
    for name in ("", "__parts__/", "__claims__/"):
        system.call_s3("put_object", Bucket=bucket, Key=f"{key}/{name}", Body=b"")
    assert stores.fill(url, PLAN)[0] == list(range(PLAN.n_prompts))
    assert stores.fill(url, PLAN)[0] == []


def test_one_creates_where_the_package_cannot(memory, monkeypatch):
    objects = Objects(memory)
    real = objects._system.pipe_file
    monkeypatch.setattr(objects._system, "pipe_file", lambda path, data: real(path, data))
    assert [objects.create("a", data) for data in (b"1", b"2")] == [True, False]
    assert objects.get("a") == b"1"


def test_a_store_may_say_in_its_own_way_that_a_file_is_there(memory, monkeypatch):
    objects = Objects(memory)
    objects.put("a", b"1")
    monkeypatch.setattr(objects._system, "pipe_file", fails(OSError(22, "pre-conditions did not hold")))
    assert not objects.create("a", b"2")
    with pytest.raises(OutputError, match="pre-conditions"):
        objects.create("b", b"2")


@pytest.mark.parametrize("path", ["s3://bucket/x", Path("s3://bucket/x")])
@pytest.mark.parametrize(
    "read",
    [
        hsd.evaluate,
        hsd.report,
        read_forks,
        lambda path: write_shards(path, "out"),
        lambda path: write_shards("in", path),
        lambda path: hsd.compile(["a star"], 1.0).plot(path),
    ],
)
def test_what_needs_a_disk_refuses_a_url(read, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        Error, match=r"s3://bucket/x\S* is a URL, and this needs a file or folder of this machine: copy"
    ):
        read(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["report"], ["evaluate"]])
def test_commands_that_need_a_disk(command):
    result = CliRunner().invoke(cli.app, [*command, "s3://bucket/x"])
    assert result.exit_code
    assert "s3://bucket/x is a URL" in f"{result.output}{result.exception}"


def test_a_folder_may_have_a_name_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("s3:/bucket")
    path.mkdir(parents=True)
    fill(path, PLAN)
    assert len(lines(path)) == PLAN.n_prompts


@pytest.mark.parametrize("begin", [hsd.distributed.generate, hsd.distributed.UnitRows])
def test_workers_need_a_store_that_all_reach(begin):
    with pytest.raises(Error, match="memory://x is in the memory of one process"):
        begin(PLAN, "demo", "memory://x")


def test_forks_need_a_disk():
    with pytest.raises(ValueError, match="keep_forks needs a folder on a disk"):
        hsd.generate(PLAN, "demo", "memory://x", keep_forks=True)


# ------------------------------------------------------------------------------- with a model


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_generate(url, tmp_path):
    """All images, byte for byte, and a data set."""
    from datasets import load_dataset

    texts = ["a red star", "a blue star", "a green ring", "a red ring"]
    model = hsd.load("demo")
    plan = hsd.compile(texts, 1.0, model=model, steps=3)
    hsd.generate(plan, model, tmp_path / "disk")
    first = hsd.generate(plan.shard(2)[0], model, url)
    run = hsd.generate(hsd.compile(texts, 1.0, steps=3), model, url)
    assert (run.images, run.existing, run.out) == (len(texts) - first.images, first.images, url)
    assert hsd.generate(plan, model, url).images == 0
    copy = tmp_path / "copy"
    download(url, copy)
    check_pixels(copy, tmp_path / "disk")
    assert [entry["digest"] for entry in lines(copy)] == [
        digest_of((copy / entry["file_name"]).read_bytes()) for entry in lines(copy)
    ]
    data = load_dataset("imagefolder", data_dir=str(copy), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["text"][:] == texts


def fails(error):
    def fail(*_, **__):
        raise error

    return fail
