"""Power cuts: at every moment of a run, what is on the disk can be continued, and every line has its image."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import hsd
from disk import check_folder, check_lines, fill, lines, make_plan, open_folder, picture
from hsd.generation.lines import parse
from hsd.work import files
from power_cut import MODELS, Recorder, restore

pytestmark = pytest.mark.faults

PLAN = make_plan()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    fill(path, PLAN)
    return path


def recorded_run(path):
    """A run on a recording disk; after each image, a mark: from then on it has to survive."""
    path.mkdir()
    with Recorder(path) as disk:
        fill(path, PLAN, after=lambda index: disk.mark())
    return disk


def whole_lines(state):
    data = state.get("metadata.jsonl", b"")
    return [parse(line) for line in data[: data.rfind(b"\n") + 1].split(b"\n") if line]


@pytest.mark.parametrize("model", MODELS)
def test_every_moment_of_a_run(tmp_path, reference, model, monkeypatch):
    disk = recorded_run(tmp_path / "images")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # recorded; what follows need not be safe too
    assert len(disk.moments) > 60
    seen = set()
    for number, states in enumerate(disk.moments):
        state = states[model]
        key = tuple(sorted(state.items()))
        if key in seen:
            continue
        seen.add(key)
        found = whole_lines(state)
        for entry in found:
            data = state[entry["file_name"]]
            assert (len(data), files.digest_of(data)) == (entry["size"], entry["digest"]), "a line before its image"
        if found:
            assert {"plan.safetensors", "run.json", "identity.json"} <= state.keys()
        promised = sum(mark <= number for mark in disk.marks)
        assert len(found) >= promised, "an image was lost that had been reported as written"
        path = restore(state, tmp_path / "after" / str(number))
        if found:
            with open_folder(path, PLAN) as folder:
                assert folder.done() == {entry["index"] for entry in found}
                assert not folder.lost or model == "torn"  # the end of a half written line
        fill(path, PLAN)
        check_folder(path, PLAN, reference)
        shutil.rmtree(path)
    assert len(seen) > 20


@pytest.mark.parametrize("change", ["no fsync of files", "no fsync of folders", "rename before fsync", "line first"])
def test_the_recording_disk_finds_what_an_unsafe_order_loses(tmp_path, monkeypatch, change):
    """The same run with one part left out, as it was before: the test above would have failed."""
    if change == "no fsync of files":
        sync, folder_sync = files._sync, files.sync_folder
        monkeypatch.setattr(files, "_sync", lambda handle: None)

        def only_folders(path):
            monkeypatch.setattr(files, "_sync", sync)
            folder_sync(path)
            monkeypatch.setattr(files, "_sync", lambda handle: None)

        monkeypatch.setattr(files, "sync_folder", only_folders)
    elif change == "no fsync of folders":
        monkeypatch.setattr(files, "sync_folder", lambda path: None)
    elif change == "rename before fsync":
        monkeypatch.setattr(files, "_sync", lambda handle: None)
    else:
        from hsd.generation.folder import ImageFolder

        def add(self, index, image, extra):
            entry = {**self._lines.expected(index), "size": 1, "digest": "0" * 32}
            self._batches.add(entry)
            image.save(self.path / entry["file_name"])

        monkeypatch.setattr(ImageFolder, "add", add)
    disk = recorded_run(tmp_path / "images")

    def lost(number, states):
        promised = sum(mark <= number for mark in disk.marks)
        found = [whole_lines(states[model]) for model in MODELS]
        broken = any(
            entry["digest"] != files.digest_of(states[model].get(entry["file_name"], b""))
            for model, entries in zip(MODELS, found, strict=True)
            for entry in entries
        )
        return broken or min(map(len, found)) < promised

    assert any(lost(number, states) for number, states in enumerate(disk.moments))


def test_other_results_are_synced_before_they_have_their_name(tmp_path):
    """Settings, plans, numbers, studies, scores: through the same function, or appended and synced."""
    from hsd.planning.chosen import Settings

    with Recorder(tmp_path) as disk:
        Settings(steps=3).save(tmp_path / "settings.json")
        PLAN.save(tmp_path / "plan.safetensors")
        files.claim(tmp_path / "study.json", {"a": 1})
        files.append(tmp_path / "scores.jsonl", b"{}\n")
    for name in ("settings.json", "plan.safetensors", "study.json", "scores.jsonl"):
        data = (tmp_path / name).read_bytes()
        assert data
        assert disk.state("strict")[name] == data
        # With its name, it was never there half.
        assert {m["names first"].get(name, data) for m in disk.moments} <= {data, b""}
        if name != "scores.jsonl":
            assert all(m["names first"].get(name, data) == data for m in disk.moments)


def test_a_file_system_without_fsync_ends_no_run(tmp_path, monkeypatch, reference):
    def refused(handle):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    fill(tmp_path / "images", PLAN)
    check_folder(tmp_path / "images", PLAN, reference)

    def broken(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)  # but a disk that fails is not passed over
    with pytest.raises(OSError, match="Input/output error"):
        fill(tmp_path / "others", PLAN)


def test_new_parents_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", lambda path: synced.append(Path(path)))
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_the_mode_is_that_of_the_umask_which_is_never_changed(tmp_path, monkeypatch):
    old = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask of the whole process was changed"))
        files.write_atomically(tmp_path / "file", b"x")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    finally:
        monkeypatch.undo()
        os.umask(old)


def test_names_that_are_long_or_odd(tmp_path):
    for name in ("a" * 255, "ü" * 127, "new\nline"):
        files.write_atomically(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


# ------------------------------------------------------------------------------- a real file system


def _run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture
def loop(tmp_path):
    """A function that mounts an image of an ext4 file system."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount")
    disk, mounted = tmp_path / "disk", []
    disk.write_bytes(b"")
    os.truncate(disk, 24 << 20)
    _run("mkfs.ext4", "-q", "-F", str(disk))

    def mount(image, name):
        point = tmp_path / name
        point.mkdir()
        try:
            _run("mount", "-o", "loop", str(image), str(point))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no loop mounts here: {getattr(error, 'stderr', error)}")
        mounted.append(point)
        return point

    yield disk, mount
    for point in mounted:
        _run("umount", str(point))


def test_a_copy_of_a_mounted_file_system_can_be_continued(loop, tmp_path, reference):
    """What is on the disk at a moment, without any sync or unmount, as a power cut leaves it."""
    disk, mount = loop
    point = mount(disk, "before")
    copies = []

    def cut(index):
        if index in (0, 4, 7):
            copies.append((index, tmp_path / f"copy-{index}"))
            shutil.copyfile(disk, copies[-1][1])

    fill(point / "images", PLAN, after=cut)
    for index, copy in copies:
        path = mount(copy, f"after-{index}") / "images"
        check_lines(path, PLAN, complete=False)
        assert [entry["index"] for entry in lines(path)] == list(range(index + 1))
        made, repaired = fill(path, PLAN)
        assert (made, repaired) == (list(range(index + 1, 8)), [])
        check_folder(path, PLAN, reference)


def test_a_full_disk_tears_nothing_and_the_next_run_continues(tmp_path, reference):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount")
    point = tmp_path / "small"
    point.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(point))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    try:
        path = point / "images"
        open_folder(path, PLAN).close()
        filler, stopped = point / "filler", set()
        for pages in range(8):  # left free
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            os.truncate(filler, os.path.getsize(filler) // 4096 * 4096 - pages * 4096)
            try:
                fill(path, PLAN)
            except OSError as error:
                stopped.add(str(error).partition("No space left on device")[1])
            if (path / "metadata.jsonl").exists():
                check_lines(path, PLAN, complete=False)
            assert not list(files.leftovers(path))
        assert stopped == {"No space left on device"}
        filler.unlink()
        _, repaired = fill(path, PLAN)
        check_folder(path, PLAN, reference)
        assert repaired == []
    finally:
        _run("umount", str(point))


@pytest.mark.parametrize("bytes_written", [0, 1, 30])
def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch, bytes_written):
    path = tmp_path / "images"
    write, on = os.write, []

    def full(handle, data):
        if on and bytes(data).startswith(b'{"file_name"'):
            if bytes_written and len(on) == 1:
                on.append(1)
                return write(handle, bytes(data)[:bytes_written])
            raise OSError(28, "No space left on device")
        if on and len(on) == 2:
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    with open_folder(path, PLAN) as folder:
        folder.add(0, picture(PLAN, 0), {})
        before = (path / "metadata.jsonl").read_bytes()
        on.append(1)
        with pytest.raises(OSError, match="No space left"):
            folder.add(1, picture(PLAN, 1), {})
        assert (path / "metadata.jsonl").read_bytes() == before
        on.clear()
        folder.add(2, picture(PLAN, 2), {})
    check_lines(path, PLAN, complete=False)
    assert [entry["index"] for entry in lines(path)] == [0, 2]


def test_a_full_disk_is_said_with_what_to_do(plan, model, tmp_path, monkeypatch):
    write = files.write_temporary

    def full(path, data):
        if path.name == "00004.png":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(files, "write_temporary", full)
    with pytest.raises(hsd.OutputError, match="No space left on device.*free some disk space and run the same call"):
        hsd.generate(plan, model, tmp_path / "images", batch_size=2, progress=False)
    monkeypatch.undo()
    kept = len(lines(tmp_path / "images"))
    assert kept
    run = hsd.generate(plan, model, tmp_path / "images", batch_size=2, progress=False)
    assert (run.images, run.existing) == (plan.n_prompts - kept, kept)
    check_lines(tmp_path / "images", plan)
