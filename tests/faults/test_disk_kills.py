"""Kills, and two runs at once: every image once, and the same images whatever happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hsd
from disk import check_folder, check_lines, fill, images, lines, make_plan, open_folder, picture
from hsd.generation import claims
from hsd.work.locks import Lock
from runs_server import Server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked, so that a test needs no seconds for each"),
]

PLAN = make_plan()


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


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def count(path):
    return sum(1 for _ in path.glob("*.png"))


# A run that continues encodes and decodes fewer at once, which may round differently: the images that it makes are the
# same up to one step of 1/255. Those that had a line are not made again: the same bytes.
def test_twenty_kills(server, served, reference, tmp_path):
    path, chance, killed, kept = tmp_path / "images", random.Random(7), 0, {}
    for _ in range(20):
        pid = server.start(path, batch_size=1, slow=0.01)
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(pid, signal.SIGKILL)
        status, error = server.wait(pid)
        assert (status, error) in ((-signal.SIGKILL, ""), (0, ""))
        killed += status != 0
        if (path / "metadata.jsonl").exists():
            assert kept.items() <= images(path).items()
            kept = check_lines_after_a_kill(path, served)
        if status == 0:  # it was finished already: begin again with other moments
            shutil.rmtree(path)
            kept = {}
    assert killed >= 10
    assert server.run(path, batch_size=1) == (0, "")
    assert kept.items() <= images(path).items()
    check_folder_up_to_rounding(path, served, reference)


def check_lines_after_a_kill(path, plan):
    """The last line may be half written; all others are complete, with their images, which are returned."""
    data = (path / "metadata.jsonl").read_bytes()
    whole = path.with_name("whole")
    shutil.copytree(path, whole)
    (whole / "metadata.jsonl").write_bytes(data[: data.rfind(b"\n") + 1])
    check_lines(whole, plan, complete=False)
    names = {entry["file_name"] for entry in lines(whole)}
    shutil.rmtree(whole)
    return {name: data for name, data in images(path).items() if name in names}


def test_the_same_command_twice_is_refused_naming_the_first(server, served, reference, tmp_path):
    path = tmp_path / "images"
    first = server.start(path, held=True)
    until(lambda: count(path))
    status, error = server.run(path)
    assert status == 1
    assert f"is in use by process {first} on " in error
    assert f"it makes {len(served.prompts)} of the {len(served.prompts)} images" in error
    # What the message advises: wait until it ends.
    os.kill(first, signal.SIGKILL)
    server.wait(first)
    assert server.run(path) == (0, "")
    check_folder_up_to_rounding(path, served, reference)


def test_a_stopped_run_keeps_its_claim_and_can_be_continued(server, served, reference, tmp_path):
    path = tmp_path / "images"
    first = server.start(path, slow=0.05)
    until(lambda: count(path))
    os.kill(first, signal.SIGSTOP)
    try:
        status, error = server.run(path)
        assert status == 1  # at once, although it may have been stopped while it held the folder's lock
        assert f"process {first} on " in error
    finally:
        os.kill(first, signal.SIGCONT)
    assert server.wait(first) == (0, "")
    check_folder(path, served, reference)  # byte for byte: it was one run


def test_three_shards_at_once(server, served, reference, tmp_path):
    path = tmp_path / "images"
    runs = [server.start(path, shard=[i, 3], slow=0.02) for i in range(3)]
    assert [server.wait(pid) for pid in runs] == [(0, "")] * 3
    check_folder_up_to_rounding(path, served, reference)
    shutil.rmtree(path)
    # One is killed; what it left is not taken for that of a run that lives.
    runs = [server.start(path, shard=[i, 3], slow=0.05) for i in range(3)]
    until(lambda: count(path) >= 2)
    os.kill(runs[0], signal.SIGKILL)
    server.wait(runs[0])
    assert [server.wait(pid) for pid in runs[1:]] == [(0, "")] * 2
    assert server.run(path) == (0, "")
    check_folder_up_to_rounding(path, served, reference)


def check_folder_up_to_rounding(path, plan, reference):
    """Other calls were made: the same pictures up to one step of 1/255."""
    import PIL.Image

    check_lines(path, plan)
    assert images(path).keys() == images(reference).keys()
    for name in images(path):
        a, b = (np.asarray(PIL.Image.open(Path(folder) / name), dtype=int) for folder in (path, reference))
        assert np.abs(a - b).max() <= 1
    check_folder(path, plan, path)


def test_a_folder_that_is_removed_under_a_run(server, served, reference, tmp_path):
    path = tmp_path / "images"
    first = server.start(path, slow=0.05)
    until(lambda: len(lines(path)) >= 2 if (path / "metadata.jsonl").exists() else False)
    # Again and again: a file may be written while those beside it are removed.
    until(lambda: shutil.rmtree(path, ignore_errors=True) or not path.exists())
    status, error = server.wait(first)
    assert status == 1
    assert "was removed" in error
    assert "run the same call again" in error
    assert server.run(path) == (0, "")
    check_folder(path, served, reference)  # byte for byte: nothing was left


# ------------------------------------------------------------------------------- in one process


def test_two_threads(tmp_path):
    entered, go, refused = threading.Event(), threading.Event(), []

    def first():
        fill(tmp_path / "images", PLAN, after=lambda index: (entered.set(), go.wait(10)))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    try:
        with pytest.raises(hsd.OutputError, match=f"in use by another run of this process {os.getpid()}") as refused:
            open_folder(tmp_path / "images", PLAN)
        with pytest.raises(hsd.OutputError, match=r"it makes 2 of the 2 images"):
            open_folder(tmp_path / "images", PLAN.prune([1, 5]))
    finally:
        go.set()
        thread.join()
    assert "Wait until it ends" in str(refused.value)
    assert fill(tmp_path / "images", PLAN) == ([], [])


def test_a_run_is_refused_before_anything_is_encoded(plan, model, tmp_path, monkeypatch):
    with open_folder(tmp_path / "images", plan):
        monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded"))
        with pytest.raises(hsd.OutputError, match="in use by"):
            hsd.generate(plan, model, tmp_path / "images", progress=False)


@pytest.mark.parametrize("end", ["no error", "an error", "Ctrl-C"])
def test_a_run_that_ends_in_any_way_gives_its_claim_up(plan, model, tmp_path, end):
    def stop(_, images):
        if end == "an error":
            raise ZeroDivisionError
        if end == "Ctrl-C":
            raise KeyboardInterrupt

    path = tmp_path / "images"
    try:
        hsd.generate(plan, model, path, batch_size=2, progress=stop)
    except (ZeroDivisionError, KeyboardInterrupt):
        assert end != "no error"
    assert not list(path.glob(".hsd.claim*"))
    with open_folder(path, plan, {"name": "x", "settings": {}}) if end != "no error" else open_nothing():
        pass


class open_nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_bad_settings_do_not_claim_the_folder(plan, model, tmp_path):
    path = tmp_path / "images"
    with pytest.raises(ValueError, match="batch_size"):
        hsd.generate(plan, model, path, batch_size=0, progress=False)
    assert not path.exists()


def test_never_two_lines_even_if_a_claim_is_defeated(tmp_path):
    path = tmp_path / "images"
    first = open_folder(path, PLAN)
    first.add(0, picture(PLAN, 0), {})
    for name in list(path.glob(".hsd.claim*")):
        name.unlink()
    second = open_folder(path, PLAN)  # as on a file system that lost its locks
    assert second.done() == {0}
    for index in (1, 2, 3):
        first.add(index, picture(PLAN, index), {})
    for index in (3, 2, 4):  # 2 and 3 are made twice, the second time with other bytes
        second.add(index, picture(PLAN, index + 1), {})
    first.add(4, picture(PLAN, 4), {})
    first.close()
    second.close()
    check_lines(path, PLAN, complete=False)
    assert [entry["index"] for entry in lines(path)] == [0, 1, 2, 3, 4]


def test_what_a_killed_run_left_of_its_claim_is_removed(tmp_path):
    path = tmp_path / "images"
    fill(path, PLAN)
    (path / ".hsd.claim-00").write_text("")  # killed before it wrote what it claims
    (path / ".hsd.claim-01").write_text('{"pid": 1, "prompts": [[0, 8]]}')  # another process has this number now
    assert fill(path, PLAN) == ([], [])
    assert not list(path.glob(".hsd.claim*"))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"prompts": 7}', '{"pid": "x", "prompts": [[0, 1e999]]}'])
def test_a_claim_that_lives_but_cannot_be_read_claims_everything(tmp_path, content):
    path = tmp_path / "images"
    fill(path, PLAN)
    (path / ".hsd.claim-00").write_text(content)
    lock = Lock(path / ".hsd.claim-00")
    assert lock.acquire()
    with pytest.raises(hsd.OutputError, match="in use by another process"):
        open_folder(path, PLAN)
    lock.release()
    fill(path, PLAN)


def test_a_live_runs_new_temporary_files_stay_and_older_ones_go(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    old, new = path / ".00001.png.0123456789abcdef.tmp", path / ".00002.png.0123456789abcdef.tmp"
    with open_folder(path, PLAN.prune([0])):
        old.write_text("")
        os.utime(old, (1, 1))
        new.write_text("")
        with open_folder(path, PLAN.prune([1])):
            assert (old.exists(), new.exists()) == (False, True)
    open_folder(path, PLAN).close()
    assert not new.exists()


def test_without_locks_a_living_process_is_known_by_its_number(tmp_path, monkeypatch):
    from hsd.work import locks

    def none(handle, shared=False):
        raise locks.Unsupported(38, "Function not implemented")

    monkeypatch.setattr(locks, "_lock", none)
    path = tmp_path / "images"
    fill(path, PLAN)
    with open_folder(path, PLAN), pytest.raises(hsd.OutputError, match="in use by"):
        open_folder(path, PLAN)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with open_folder(path, PLAN) as folder:
        claim = next(path.glob(".hsd.claim*"))
        claim.write_text(claim.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {ended.pid}'))
        assert claims.living(path) == []
        del folder
    assert fill(path, PLAN) == ([], [])


def test_shards_that_begin_at_the_same_moment(tmp_path):
    for attempt in range(25):
        together, path = threading.Barrier(2), tmp_path / str(attempt)

        def begin(shard, together=together, path=path):
            together.wait()
            with open_folder(path, shard) as folder:
                return len(folder.done())

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(begin, PLAN.shard(2))) == [0, 0]
