"""Several processes that fill one folder where locks are missing, or do not reach the other host: really started,
killed and continued. After each, the folder is what one run gives.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time

import pytest

import hsd
from disk import check_folder, check_lines, check_pixels, images
from hsd.generation.metadata import complete
from hsd.generation.union import entries_of
from runs_server import Server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are imitated by locks that Linux alone has"),
]

WAYS = {
    "locks": [{}, {}, {}],
    "no locks": [{"locks": False}] * 3,
    "locks that do not reach": [{"host": "one"}, {"host": "two"}, {"host": "three"}],
    "no locks, other hosts": [{"host": name, "locks": False} for name in ("one", "two", "three")],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    assert server.run(path) == (0, "")
    return path


@pytest.fixture(scope="module")
def served(server):
    return hsd.Plan.load(server.plan)


def check(path, plan, reference):
    """What one run gives, image for image, and one line an image; parts may stay where a lock may not reach them."""
    check_lines(path, plan)
    check_pixels(path, reference, within=1)
    check_folder(path, plan, path, extra={"__parts__"})
    assert [entry["index"] for entry in entries_of(path)] == list(range(plan.n_prompts))


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def opens(path, plan, cache, monkeypatch):
    """As a data set, without the parts."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset("imagefolder", data_dir=str(path), split="train", cache_dir=str(cache))
    assert sorted(data["index"]) == list(range(plan.n_prompts))
    assert len(data.features) == len({"image", *entries_of(path)[0]} - {"file_name"})


@pytest.mark.parametrize("way", WAYS)
def test_three_at_once(server, served, reference, tmp_path, monkeypatch, way):
    path = tmp_path / "images"
    runs = [server.start(path, shard=[i, 3], slow=0.01, **how) for i, how in enumerate(WAYS[way])]
    assert [server.wait(pid) for pid in runs] == [(0, "")] * 3
    check(path, served, reference)
    assert (path / "__parts__").exists() == (way != "locks")
    if way == "locks that do not reach":
        opens(path, served, tmp_path / "cache", monkeypatch)
    assert server.run(path) == (0, "")
    check(path, served, reference)


@pytest.mark.parametrize("way", WAYS)
def test_one_of_three_is_killed(server, served, reference, tmp_path, way):
    path, chance = tmp_path / "images", random.Random(way)
    for _ in range(2):
        runs = [server.start(path, shard=[i, 3], slow=0.02, batch_size=1, **how) for i, how in enumerate(WAYS[way])]
        until(lambda: images(path) if path.exists() else False)
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(runs[1], signal.SIGKILL)
        assert server.wait(runs[1])[0] in (-signal.SIGKILL, 0)
        known = complete(path, served)
        assert [server.wait(pid) for pid in (runs[0], runs[2])] == [(0, "")] * 2
        assert known <= complete(path, served), "no line was lost"
        before = images(path)
        assert server.run(path, shard=[1, 3], **WAYS[way][1]) == (0, ""), "on the host where it was killed: at once"
        check(path, served, reference)
        names = [f"{index:05d}.png" for index in known]
        assert {name: before[name] for name in names}.items() <= images(path).items(), "not made again"
        shutil.rmtree(path)


def test_the_same_images_on_two_hosts(server, served, reference, tmp_path):
    path = tmp_path / "images"
    first = server.start(path, held=True, host="one")
    until(lambda: images(path) if path.exists() else False)
    status, error = server.run(path, host="two")
    assert status == 1
    assert f"is in use by process {first} on one" in error
    os.kill(first, signal.SIGKILL)
    server.wait(first)
    status, error = server.run(path, host="two")
    assert status == 1, "from there it looks as if it may live"
    assert "if it was killed: 60 seconds after that" in error
    (claim,) = path.glob(".hsd.claim-*")
    os.utime(claim, (claim.stat().st_mtime - 61,) * 2)
    assert server.run(path, host="two") == (0, "")
    check(path, served, reference)


def test_two_runs_that_do_not_know_of_each_other(server, served, reference, tmp_path):
    """Their claims are removed: all images may be made twice, and each has one line, that of its bytes."""
    path = tmp_path / "images"
    assert server.run(path, shard=[0, 8]) == (0, "")
    runs = []
    for host in ("one", "two"):
        runs.append(server.start(path, shard=[0, 1], slow=0.02, batch_size=2, host=host, locks=False))
        until(lambda: any(path.glob(".hsd.claim-*")))
        time.sleep(0.02)
        for claim in path.glob(".hsd.claim-*"):
            claim.unlink()
    assert [server.wait(pid)[0] for pid in runs] == [0, 0]
    assert complete(path, served) == set(range(served.n_prompts))
    assert server.run(path) == (0, "")
    check(path, served, reference)
