"""Damage: what is in a folder is believed only where it holds; the rest is made again or corrected, and said."""

from __future__ import annotations

import json
import os

import pytest

import hsd
from disk import (
    TEXTS,
    check_folder,
    check_lines,
    copy_of,
    fill,
    images,
    lines,
    make_plan,
    open_folder,
    picture,
    write_lines,
)
from hsd.evaluation.folder import FolderError, read_folder

pytestmark = pytest.mark.faults

PLAN = make_plan()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    fill(path, PLAN)
    return path


@pytest.fixture
def folder(reference, tmp_path):
    return copy_of(reference, tmp_path / "images")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def swap(folder):
    a, b = folder / "00002.png", folder / "00003.png"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


def replaced_by(make):
    def damage(folder):
        path = folder / "00002.png"
        data = path.read_bytes()
        path.unlink()
        make(folder, path, data)

    return damage


def link(folder, path, data):
    outside = folder.parent / "outside.png"
    outside.write_bytes(data)  # the right bytes: a link is not an image of this folder all the same
    path.symlink_to(outside)


def full_folder(folder, path, data):
    path.mkdir()
    (path / "of-the-user.txt").write_text("kept")


IMAGES = {
    "cut in half": (lambda f: os.truncate(f / "00002.png", (f / "00002.png").stat().st_size // 2), {2}),
    "0 bytes": (lambda f: os.truncate(f / "00002.png", 0), {2}),
    "a byte more": (lambda f: (f / "00002.png").write_bytes((f / "00002.png").read_bytes() + b"\0"), {2}),
    "a flipped byte": (lambda f: flip(f / "00002.png"), {2}),
    "missing": (lambda f: (f / "00002.png").unlink(), {2}),
    "two swapped": (swap, {2, 3}),
    "a link to another image": (replaced_by(lambda f, p, d: p.symlink_to(f / "00003.png")), {2}),
    "a link to its own bytes": (replaced_by(link), {2}),
    "a link to nothing": (replaced_by(lambda f, p, d: p.symlink_to("nowhere")), {2}),
    "a second name of another": (replaced_by(lambda f, p, d: os.link(f / "00003.png", p)), {2}),
    "an empty folder": (replaced_by(lambda f, p, d: p.mkdir()), {2}),
    "a folder": (replaced_by(full_folder), {2}),
    "a pipe": (replaced_by(lambda f, p, d: os.mkfifo(p)), {2}),
    "all of them": (lambda f: [os.truncate(f / name, 10) for name in images(f)], set(range(8))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_damaged_image_is_made_again_and_said(folder, reference, name):
    damage, which = IMAGES[name]
    damage(folder)
    made, repaired = fill(folder, PLAN)
    assert set(made) == which
    assert all(any(f"{index:05d}.png" in text for text in repaired) for index in which)
    aside = [entry for entry in os.listdir(folder) if entry.startswith(".00002.png.damaged")]
    check_folder(folder, PLAN, reference, extra=aside)
    assert not aside or os.listdir(folder / aside[0]) in (["of-the-user.txt"], [])
    assert json.loads((folder / "run.json").read_bytes())["runs"][-1]["repaired"] == len(repaired)
    assert fill(folder, PLAN) == ([], [])  # and once it is said, it is in order


def edited(**columns):
    return lambda entry: {**entry, **columns}


def renamed(entry):
    return {**entry, "index": 3}


DEEP = b'{"index": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"

LINES = {
    "name: another folder": (edited(file_name="../x.png"), {2}),
    "name: absolute": (edited(file_name="/etc/passwd"), {2}),
    "name: of another index": (edited(file_name="00003.png"), {2}),
    "name: another ending": (edited(file_name="00002.jpg"), {2}),
    "name: the same file, otherwise": (edited(file_name="./00002.png"), {2}),
    "name: a number": (edited(file_name=2), {2}),
    "name: a NUL": (edited(file_name="00002.png\0"), {2}),
    "index: a fraction": (edited(index=2.0), {2}),
    "index: a truth value": (edited(index=True), {2}),
    "index: text": (edited(index="2"), {2}),
    "index: none": (edited(index=None), {2}),
    "index: too large": (edited(index=8), {2}),
    "index: negative": (edited(index=-6), {2}),
    "index: huge": (edited(index=10**300), {2}),
    "index: of another": (renamed, {2}),
    "size": (edited(size=7), {2}),
    "size: a truth value": (edited(size=True), {2}),
    "digest": (edited(digest="0" * 32), {2}),
    "digest: not text": (edited(digest=[1]), {2}),
    "digest: none": (edited(digest=None), {2}),
    "no line": (lambda entry: b"", {2}),
    "no JSON": (lambda entry: b"garbage\n", {2}),
    "half a line": (lambda entry: json.dumps(entry).encode()[:40] + b"\n", {2}),
    "no UTF-8": (lambda entry: json.dumps({**entry, "text": "x"}).encode().replace(b'"x"', b'"\xff"') + b"\n", {2}),
    "no object": (lambda entry: b'["00002.png", 2]\n', {2}),
    "NULs": (lambda entry: b"\0" * 200 + b"\n", {2}),
    "nested too deeply": (lambda entry: DEEP, {2}),
    "too many digits": (lambda entry: b'{"index": ' + b"1" * 10_000 + b"}\n", {2}),
    # What follows from the plan is corrected; the image itself holds.
    "text": (edited(text="a wolf"), set()),
    "text: half a surrogate pair": (edited(text="\ud800"), set()),
    "seed": (edited(seed=7), set()),
    "seed: a fraction": (edited(seed=102.0), set()),
    "alone_from": (edited(alone_from=99), set()),
    "no text": (lambda entry: {k: v for k, v in entry.items() if k != "text"}, set()),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_does_not_hold_is_put_right(folder, reference, name):
    change, which = LINES[name]
    entries = [change(entry) if entry["index"] == 2 else entry for entry in lines(folder)]
    data = b"".join(e if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in entries)
    (folder / "metadata.jsonl").write_bytes(data)
    made, repaired = fill(folder, PLAN)
    assert set(made) == which
    assert repaired or name == "no line"
    check_folder(folder, PLAN, reference)
    assert lines(folder) == lines(reference)
    assert fill(folder, PLAN) == ([], [])


def test_an_image_has_one_line_whatever_the_file_says(folder, reference):
    entries = lines(reference)
    write_lines(folder, [*entries, entries[4], {**entries[5], "digest": "0" * 32}, *reversed(entries)])
    made, repaired = fill(folder, PLAN)
    assert made == []
    assert any("00004.png had more than one line" in text for text in repaired)
    check_folder(folder, PLAN, reference)


def test_columns_of_others_stay(folder, reference):
    entries = [{**entry, "stars": 3 if entry["index"] == 1 else {"odd": "\ud800"}} for entry in lines(folder)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in reversed(entries)))
    assert fill(folder, PLAN) == ([], [])
    assert lines(folder) == entries


NAMES = {"file_name": "y.png", "text": "t", "index": -1, "size": 1, "digest": "d", "seed": 0.5, "alone_from": None}


def test_columns_of_the_plan_are_put_right(folder):
    """Other columns make no other plan. A name that a line has already is never overwritten."""
    before = [entry for entry in lines(folder) if entry["index"] < 4]
    own = {"id": [f"a{i}" for i in range(8)], **{name: [value] * 8 for name, value in NAMES.items()}}
    first, other = make_plan(columns=own), make_plan(columns={**own, "id": [f"b{i}" for i in range(8)]})
    assert first.fingerprint == PLAN.fingerprint
    assert fill(folder, first) == ([], [])  # given or edited in a list, which is no damage
    check_lines(folder, PLAN)
    for entry, old in zip(lines(folder), before, strict=False):
        assert {name: entry[name] for name in old} == old
        assert entry["id"] == f"a{entry['index']}"
        assert entry["given_index"] == -1
        assert entry["given_filename"] == "y.png"
    assert fill(folder, first) == ([], [])
    # A run of a part puts right its own lines only: another run may be at the others.
    fill(folder, other.prune([1, 2]))
    assert [entry["id"] for entry in lines(folder)] == ["a0", "b1", "b2", *(f"a{i}" for i in range(3, 8))]
    kept = lines(folder)
    assert fill(folder, PLAN) == ([], [])  # without columns, those that are there stay
    assert lines(folder) == kept


def test_images_are_made_with_the_columns_of_the_plan(tmp_path):
    plan = make_plan(columns={"id": list(range(8))})
    for part in plan.shard(2):
        fill(tmp_path / "images", part)
    assert [entry["id"] for entry in lines(tmp_path / "images")] == list(range(8))


def test_a_file_without_its_last_line_feed_a_mark_and_empty_lines_lose_nothing(folder, reference):
    data = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n").rstrip())
    assert fill(folder, PLAN) == ([], [])
    check_folder(folder, PLAN, reference)


def test_lines_of_an_earlier_version_get_size_and_digest(folder, reference):
    old = [{k: v for k, v in entry.items() if k not in ("size", "digest")} for entry in lines(folder)]
    write_lines(folder, old)
    (folder / "identity.json").unlink()
    document = json.loads((folder / "run.json").read_bytes())
    del document["identity"]["image_format"]
    (folder / "run.json").write_text(json.dumps(document))
    assert fill(folder, PLAN) == ([], [])
    check_folder(folder, PLAN, reference)
    # Without a digest, an image is known by what its file says.
    write_lines(folder, old)
    swap(folder)
    os.truncate(folder / "00005.png", 300)
    flip(folder / "00006.png")
    made, repaired = fill(folder, PLAN)
    assert (set(made), len(repaired)) == ({2, 3, 5, 6}, 4)
    check_folder(folder, PLAN, reference)
    write_lines(folder, [{**entry, "text": "a wolf"} if entry["index"] == 1 else entry for entry in old])
    assert fill(folder, PLAN)[0] == [1]


def test_an_earlier_versions_fingerprint_of_the_same_plan_is_no_other_plan(folder, reference):
    document = json.loads((folder / "run.json").read_bytes())
    (folder / "identity.json").unlink()
    document["identity"] = {"plan": "computed otherwise", "model": document["identity"]["model"]}
    (folder / "run.json").write_text(json.dumps(document))
    assert fill(folder, PLAN)[0] == []
    check_folder(folder, PLAN, reference)


@pytest.mark.parametrize("name", ["metadata.jsonl", "run.json", "plan.safetensors", "identity.json"])
def test_a_link_is_neither_read_nor_written_through(folder, reference, name, tmp_path):
    target = tmp_path / "target"
    target.write_bytes((folder / name).read_bytes())
    before = target.read_bytes()
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    made, repaired = fill(folder, PLAN)
    assert made == (list(range(len(TEXTS))) if name == "metadata.jsonl" else [])
    assert repaired or name == "identity.json"  # which is a copy
    assert target.read_bytes() == before
    assert not (folder / name).is_symlink()
    check_folder(folder, PLAN, reference)


@pytest.mark.parametrize("name", ["metadata.jsonl", "run.json", "plan.safetensors", "identity.json"])
def test_a_folder_in_the_place_of_a_file_is_kept_aside(folder, reference, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    (folder / name / "of-the-user.txt").write_text("kept")
    fill(folder, PLAN)
    check_folder(folder, PLAN, reference, extra=[f".{name}.damaged"])
    assert (folder / f".{name}.damaged" / "of-the-user.txt").read_text() == "kept"


def test_a_copy_made_of_hard_links_is_not_appended_to(folder, tmp_path):
    (folder / "00002.png").unlink()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        os.link(path, copy / path.name)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert fill(folder, PLAN)[0] == [2]
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_leftovers_are_removed_at_the_next_start_and_nothing_else(folder, reference):
    ours = [
        ".00002.png.0123456789abcdef.tmp",
        ".metadata.jsonl.00000000000000ff.tmp",
        ".00007.png.k2_x9abc",  # as an earlier version named them
        ".run.json.aaaaaaaa",
        ".hsd.claim-0123456789abcdef",
    ]
    others = [".00002.png.tmp", ".DS_Store", ".notes.tmp", "x.0123456789abcdef.tmp", ".00002.png.backup-of-mine"]
    for name in [*ours, *others]:
        (folder / name).write_text("")
    fill(folder, PLAN)
    check_folder(folder, PLAN, reference, extra=others)
    assert set(others) <= set(os.listdir(folder))


def test_evaluation_refuses_what_generation_would_make_again(folder):
    assert len(read_folder(folder).entries) == len(TEXTS)
    flip(folder / "00002.png")
    with pytest.raises(FolderError, match=r"00002\.png is not the image .*run the same command"):
        read_folder(folder)
    fill(folder, PLAN)  # the advice
    assert len(read_folder(folder).entries) == len(TEXTS)


@pytest.mark.parametrize("name", ["../x.png", "/tmp/x.png", "a/../../x.png"])
def test_evaluation_reads_no_image_outside_its_folder(folder, name):
    write_lines(folder, [{"file_name": name, "text": "x"}])
    with pytest.raises(FolderError, match="outside"):
        read_folder(folder)


def test_a_real_run_makes_what_is_damaged_and_says_so(plan, model, tmp_path, caplog):
    path = tmp_path / "images"
    hsd.generate(plan, model, path, batch_size=4, progress=False)
    before = images(path)
    os.truncate(path / "00003.png", 100)
    run = hsd.generate(plan, model, path, batch_size=4)
    assert "00003.png has 100 bytes" in caplog.text
    assert (run.images, run.existing, len(run.repaired)) == (1, plan.n_prompts - 1, 1)
    after = images(path)
    assert {k: v for k, v in after.items() if k != "00003.png"} == {k: v for k, v in before.items() if k != "00003.png"}


def test_only_the_part_of_a_run_is_compared_byte_for_byte(folder, reference):
    """A shard does not touch the images of the others, which may be written at this moment."""
    flip(folder / "00002.png")
    with open_folder(folder, PLAN.prune([0, 1])) as part:
        assert part.repaired == []
    with open_folder(folder, PLAN.prune([2])) as part:
        assert (part.done() & {2}, len(part.repaired)) == (set(), 1)


def test_a_new_file_with_the_number_of_the_one_before(tmp_path):
    """Another run replaced the lines, and the system gave the new file the number of the one that this run knew."""
    path, other = tmp_path / "images", tmp_path / "other"
    first, *rest = sorted(PLAN.shard(2)[0].kept.tolist(), reverse=True)
    with open_folder(path, PLAN) as folder:
        folder.add(first, picture(PLAN, first), {})
        known = tmp_path / "known"
        os.link(path / "metadata.jsonl", known)
        fill(other, PLAN.shard(2)[1])
        for name, data in images(other).items():
            (path / name).write_bytes(data)
        write_lines(path, sorted([*lines(path), *lines(other)], key=lambda entry: entry["index"]))
        known.write_bytes((path / "metadata.jsonl").read_bytes())
        os.replace(known, path / "metadata.jsonl")
        for index in rest:
            folder.add(index, picture(PLAN, index), {})
    check_lines(path, PLAN)
