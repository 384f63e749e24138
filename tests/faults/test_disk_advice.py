"""Every message about a folder is followed by doing what it says; what can be repaired needs no message."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

import hsd
from disk import MADE_BY, TEXTS, check_folder, check_lines, copy_of, fill, lines, make_plan, open_folder, picture
from hsd.cli import app
from hsd.evaluation.folder import read_folder
from hsd.generation import folder as folders
from hsd.work import locks

pytestmark = pytest.mark.faults

PLAN = make_plan()
OTHER = make_plan(tau=0.2)
OTHER_MODEL = {"name": "painted", "settings": {"guidance_scale": 5.0}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    fill(path, PLAN)
    return path


@pytest.fixture
def folder(reference, tmp_path):
    return copy_of(reference, tmp_path / "images")


# ------------------------------------------------------------------------------- repaired, without a question

DAMAGED = {
    "empty": b"",
    "half": b'{"identity": {"plan": "abc", "mod',
    "no JSON": b"garbage",
    "NULs": b"\0" * 500,
    "no object": b"[1, 2]",
    "another object": b'{"name": "of another program"}',
    "nested too deeply": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "too many digits": b'{"identity": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "identity without a plan": b'{"identity": {"model": {}}, "runs": []}',
    "runs are a number": b'{"identity": {"plan": "x", "model": {}}, "runs": 7}',
    "missing": None,
}


@pytest.mark.parametrize("name", ["run.json", "identity.json"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_set_aside_and_nothing_is_made_again(folder, reference, name, damage):
    data = DAMAGED[damage]
    if name == "run.json" and damage == "runs are a number":  # its identity can be read, so it has to be the right one
        data = json.dumps({**json.loads((folder / name).read_bytes()), "runs": 7}).encode()
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    made, repaired = fill(folder, PLAN)
    assert made == []
    aside = ["run.json.damaged"] if name == "run.json" and data else []
    assert any("run.json.damaged" in text for text in repaired) == bool(aside)
    check_folder(folder, PLAN, reference, extra=aside)
    assert all((folder / name).read_bytes() == data for name in aside)
    assert fill(folder, PLAN) == ([], [])


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "another plan", "nested"])
def test_a_damaged_plan_file_is_written_again(folder, reference, damage):
    path = folder / "plan.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "another plan":
        OTHER.save(path)
    elif damage == "nested":
        deep = b'{"__metadata__": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
        path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
    made, repaired = fill(folder, PLAN)
    assert made == []
    assert any("plan.safetensors" in text for text in repaired)
    check_folder(folder, PLAN, reference)


def test_a_folder_of_an_earlier_version_after_a_power_cut(folder, reference):
    """Nearly all files have 0 bytes: nothing can be known, nothing is lost, and the folder can be used."""
    (folder / "identity.json").unlink()
    for path in folder.iterdir():
        os.truncate(path, 0)
    assert fill(folder, PLAN)[0] == list(range(8))
    check_folder(folder, PLAN, reference)


@pytest.mark.parametrize("left", [".hsd.lock", ".hsd.claim-00", ".00000.png.0123456789abcdef.tmp"])
def test_files_that_a_killed_run_leaves_are_in_no_ones_way(folder, reference, left):
    (folder / left).write_text("left by a killed run")
    assert fill(folder, PLAN) == ([], [])
    check_folder(folder, PLAN, reference)


@pytest.mark.parametrize(("plan", "made_by", "image_format"), [(OTHER, MADE_BY, "png"), (PLAN, OTHER_MODEL, "png")])
def test_a_folder_without_an_image_can_be_taken_over(tmp_path, plan, made_by, image_format):
    """A corrected file of prompts does not meet the plan of the wrong one again."""
    path = tmp_path / "images"
    open_folder(path, PLAN).close()
    fill(path, plan, made_by, image_format)
    check_lines(path, plan)
    assert hsd.Plan.load(path / "plan.safetensors").fingerprint == plan.fingerprint
    with pytest.raises(hsd.PlanMismatch):
        fill(path, PLAN, MADE_BY)


def test_a_folder_without_an_image_is_not_taken_from_a_run_that_lives(tmp_path):
    with open_folder(tmp_path / "images", PLAN.prune([0])), pytest.raises(hsd.PlanMismatch, match="another plan"):
        open_folder(tmp_path / "images", OTHER.prune([1]))
    fill(tmp_path / "images", PLAN)


# ------------------------------------------------------------------------------- messages, and what they advise


def another_plan(path):
    return lambda: fill(path, OTHER)


def another_model(path):
    return lambda: fill(path, PLAN, OTHER_MODEL)


def another_format(path):
    return lambda: fill(path, PLAN, image_format="webp")


def no_record(path):
    for name in ("run.json", "identity.json"):
        (path / name).unlink()
    return lambda: fill(path, PLAN)


def images_alone(path):
    for name in ("run.json", "identity.json", "metadata.jsonl", "plan.safetensors"):
        (path / name).unlink()
    return lambda: fill(path, PLAN)


def another_data_set(path):
    for file in path.iterdir():
        file.unlink()
    (path / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    return lambda: fill(path, PLAN)


def linked_data_set(path):
    for file in path.iterdir():
        file.unlink()
    (path / "metadata.jsonl").symlink_to(path.parent / "elsewhere.jsonl")
    return lambda: fill(path, PLAN)


def damaged_record_alone(path):
    (path / "identity.json").unlink()
    (path / "run.json").write_bytes(b"{")
    return lambda: fill(path, PLAN)


def a_file(path):
    shutil.rmtree(path)
    path.write_text("")
    return lambda: fill(path, PLAN)


def below_a_file(path):
    return lambda: fill(path / "run.json" / "images", PLAN)


MISMATCHES = {
    "another plan": (another_plan, hsd.PlanMismatch, "holds images of another plan"),
    "another model": (another_model, hsd.PlanMismatch, "guidance_scale: 3.0 before, 5.0 now"),
    "another format": (another_format, hsd.PlanMismatch, r"another format \(png before, webp now\)"),
    "metadata without a record": (no_record, hsd.PlanMismatch, "holds another data set"),
    "images without a record": (images_alone, hsd.PlanMismatch, "holds another data set"),
    "another data set": (another_data_set, hsd.PlanMismatch, "holds another data set"),
    "a linked data set": (linked_data_set, hsd.PlanMismatch, "holds another data set"),
    "a damaged record, of an earlier version": (damaged_record_alone, hsd.PlanMismatch, "run.json cannot be used"),
    "a file": (a_file, hsd.OutputError, "cannot write to"),
    "below a file": (below_a_file, hsd.OutputError, "cannot write to"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_choose_another_folder(folder, reference, tmp_path, name):
    damage, kind, message = MISMATCHES[name]
    attempt = damage(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder.is_dir() else None
    with pytest.raises(kind, match=message) as refused:
        attempt()
    assert "choose another folder" in str(refused.value)
    after = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder.is_dir() else None
    if before is not None:
        before.setdefault(".hsd.lock", b"")
        assert after == before  # a refusal changes nothing
    with pytest.raises(kind, match=message):
        attempt()  # and leads to no other message
    fill(tmp_path / "another", PLAN)
    check_folder(tmp_path / "another", PLAN, reference)


def test_continue_with_the_same_prompts(folder, reference):
    os.unlink(folder / "00002.png")
    for attempt in (another_plan(folder), another_model(folder), another_format(folder)):
        with pytest.raises(hsd.PlanMismatch, match="continue with the same prompts, seeds and settings"):
            attempt()
    assert fill(folder, PLAN)[0] == [2]
    check_folder(folder, PLAN, reference)


def test_wait_until_it_ends_or_use_disjoint_parts(tmp_path):
    path = tmp_path / "images"
    with open_folder(path, PLAN.prune([0, 1, 2, 3])):
        with pytest.raises(
            hsd.OutputError, match="in use by .* it makes 4 of the 8 images.*Wait until it ends"
        ) as said:
            open_folder(path, PLAN)
        assert "Plan.shard" in str(said.value)
        fill(path, PLAN.prune([4, 5, 6, 7]))  # disjoint parts
        fill(tmp_path / "separate", PLAN)  # separate folders
    fill(path, PLAN)  # it has ended
    check_lines(path, PLAN)


def test_a_lock_that_is_never_free(tmp_path, monkeypatch):
    path = tmp_path / "images"
    fill(path, PLAN)
    lock = locks.Lock(path / ".hsd.lock")
    assert lock.acquire()
    monkeypatch.setattr("hsd.generation.folder._WAIT", 0.05)
    with pytest.raises(hsd.OutputError, match="has been locked for a minute: another process. .*continue or end it"):
        fill(path, PLAN)
    lock.release()
    assert fill(path, PLAN) == ([], [])


@pytest.mark.parametrize("what", ["all of it", "its files", "its metadata"])
def test_a_folder_removed_under_a_run(tmp_path, reference, what):
    path = tmp_path / "images"

    def remove(index):
        if index == 3 and what == "all of it":
            shutil.rmtree(path)
        elif index == 3:
            for file in path.glob("*" if what == "its files" else "metadata.jsonl"):
                file.unlink()

    with pytest.raises(hsd.OutputError, match="removed.*run the same call again"):
        fill(path, PLAN, after=remove)
    assert not path.exists() or not (path / "metadata.jsonl").exists()
    fill(path, PLAN)  # the advice
    check_folder(path, PLAN, reference)


def test_a_folder_made_anew_under_a_run_belongs_to_the_new_run(tmp_path, reference):
    path, one, go, errors = tmp_path / "images", threading.Event(), threading.Event(), []

    def first():
        try:
            fill(path, PLAN, after=lambda index: (one.set(), go.wait(10)))
        except hsd.OutputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    assert one.wait(10)
    path.rename(tmp_path / "moved")
    fill(path, PLAN)
    go.set()
    thread.join()
    assert "removed" in errors[0]
    check_folder(path, PLAN, reference)


@contextlib.contextmanager
def not_root():
    """Root may write anywhere: for this, the process is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all(tmp_path_factory):
    """A folder that nobody may use too."""
    path = tmp_path_factory.mktemp("open")
    parents = [p for p in path.parents if p != Path("/") and not p.stat().st_mode & 0o001]
    modes = [(p, p.stat().st_mode) for p in parents]
    for p in parents:
        p.chmod(0o711)
    path.chmod(0o777)
    yield path
    for p, mode in modes:
        p.chmod(mode)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o555, 0o666, 0o000, 0o333])  # the last: claims of other runs could not be seen
def test_permissions(open_to_all, mode):
    path = open_to_all / "images"
    with not_root():
        path.mkdir()
        path.chmod(mode)
        try:
            with pytest.raises(hsd.OutputError, match="Permission denied; choose another folder"):
                fill(path, PLAN)
        finally:
            path.chmod(0o777)
        fill(path, PLAN)  # mended
    check_lines(path, PLAN)


def test_remove_the_plan_file(model, tmp_path):
    path = tmp_path / "plan.safetensors"
    path.write_bytes(b"damaged")
    for reuse in (path, tmp_path):
        with pytest.raises(hsd.Error, match="Compile it again: delete this file"):
            hsd.compile(["a cat"], model=model, steps=2, reuse=reuse)
    path.unlink()
    assert len(hsd.compile(["a cat"], model=model, steps=2, reuse=path)) == 1


# ------------------------------------------------------------------------------- paths


def test_the_users_home_folder(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill("~/images", PLAN)
    check_folder(tmp_path / "images", PLAN, reference)
    PLAN.save("~/plan.safetensors")
    assert hsd.Plan.load("~/plan.safetensors").fingerprint == PLAN.fingerprint
    assert read_folder("~/images").prompts == TEXTS
    assert not Path("~").exists()


def test_the_users_home_folder_in_a_real_run(plan, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = hsd.generate(plan.prune([0]), model, "~/images", progress=False)
    assert run.out == tmp_path / "images"
    assert len(lines(tmp_path / "images")) == 1
    again = hsd.compile(plan.prompts, 0.9, model=model, steps=6, seeds=100, reuse="~/images")
    assert again.fingerprint == plan.fingerprint


@pytest.mark.parametrize("name", ["a[b]", "a?b", "a*b", "[x]", "a b", "ü"])
def test_a_folder_name_that_datasets_reads_as_a_pattern(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for other in ("axb", "ab", name):
        fill(tmp_path / other, PLAN)
    with open_folder(tmp_path / name, PLAN) as folder:
        notes = folder.notes
    assert bool(notes) == (name not in ("a b", "ü"))
    data_dir = str(tmp_path / name)
    if notes:  # the advice
        data_dir = re.search(r"give it data_dir='(.*)'", notes[0]).group(1)
    data = datasets.load_dataset("imagefolder", data_dir=data_dir, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == len(TEXTS)
    assert data.column_names[:4] == ["image", "text", "index", "seed"]


def test_the_command_line_says_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    command = ["generate", str(prompts), "--out", str(tmp_path / "a[b]"), "--steps", "2"]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "as a pattern: give it data_dir=" in run.output
    os.truncate(tmp_path / "a[b]" / "00000.png", 9)
    os.truncate(tmp_path / "a[b]" / "run.json", 9)
    os.truncate(tmp_path / "a[b]" / "plan.safetensors", 9)
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "00000.png has 9 bytes" in run.output
    assert "1 images in" in run.output


def test_a_record_that_is_removed_under_a_run_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_REMOVING", 0.1)
    path = tmp_path / "images"
    with open_folder(path, PLAN) as folder:
        folder.add(0, picture(PLAN, 0), {})
        (path / "run.json").unlink()
        (path / "identity.json").unlink()
        folder.add(1, picture(PLAN, 1), {})
        assert any("written again" in text for text in folder.repaired)
    assert fill(path, PLAN)[0] == [i for i in range(len(PLAN)) if i > 1]


def test_a_program_may_change_its_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_folder(Path("images"), PLAN) as folder:
        monkeypatch.chdir("/")
        folder.add(0, picture(PLAN, 0), {})
    assert (tmp_path / "images" / "00000.png").is_file()


def test_images_without_lines_are_said(tmp_path):
    fill(tmp_path / "images", PLAN)
    (tmp_path / "images" / "metadata.jsonl").unlink()
    with open_folder(tmp_path / "images", PLAN) as folder:
        assert folder.done() == set()
        assert f"{len(PLAN)} images (00000.png, ...) have no line in metadata.jsonl" in folder.report()[0]


def test_a_folder_in_the_place_of_the_lock(tmp_path):
    (tmp_path / "images" / ".hsd.lock").mkdir(parents=True)
    with pytest.raises(hsd.OutputError, match=r"\.hsd\.lock has to be a file.*remove it"):
        open_folder(tmp_path / "images", PLAN)
    (tmp_path / "images" / ".hsd.lock").rmdir()
    fill(tmp_path / "images", PLAN)
