"""Trunks on disk: as they were written or not at all, whatever became of the files; and which are worth keeping."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

import hsd
from hsd.generation import claims, trunk_blocks, trunks
from hsd.generation.trunks import TRUNKS, TrunkFolder
from hsd.generation.writers import Writers
from hsd.replay.trunks import Trunk, _Points, most_valuable
from hsd.work import files

ROOM = 1 << 30


def key(i):
    return hashlib.sha256(str(i).encode()).hexdigest()


def trunk(i, *, predicted=True, fields=("text", "pooled"), latent=(4, 3, 2), memory=2):
    random = torch.Generator().manual_seed(i)
    lengths = {name: (2 + i % 3, 5) if name == "text" else (5,) for name in fields}
    return Trunk(
        state=torch.randn(memory, *latent, generator=random),
        generator=torch.randint(0, 256, (16,), generator=random).byte(),
        given={name: torch.randn(shape, generator=random) for name, shape in lengths.items()},
        predicted=torch.randn(latent, generator=random) if predicted else None,
    )


def bits(one):
    """All that a trunk holds, for comparison bit for bit."""
    parts = {"state": one.state, "generator": one.generator, "predicted": one.predicted, **one.given}
    return {k: v if v is None else (str(v.dtype), tuple(v.shape), v.numpy().tobytes()) for k, v in parts.items()}


def same(a, b):
    return a is not None and bits(a) == bits(b)


def write(out, numbers, submit=None, budget=ROOM, **kind):
    """A folder with some trunks, written and closed."""
    folder = TrunkFolder(out, submit, budget)
    for i in numbers:
        folder.keep(key(i), trunk(i, **kind))
    folder.flush()
    folder.close()
    return folder


def blocks(out):
    return sorted(path for path in (out / TRUNKS).iterdir() if path.name.startswith("block-"))


def block(out):
    (path,) = blocks(out)
    return path


def found(out, numbers):
    """Which trunks a new folder reads; each is the right one. Tells nothing."""
    folder = TrunkFolder(out)
    read = {i: folder.read(key(i)) for i in numbers}
    assert all(one is None or same(one, trunk(i)) for i, one in read.items())
    return [i for i, one in read.items() if one is not None]


# ------------------------------------------------------------------------------- what is written is read


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"predicted": False},
        {"fields": ()},
        {"predicted": False, "fields": (), "memory": 1},
        {"fields": ("text.1", "text", "größe")},
        {"latent": (7,)},
    ],
    ids=str,
)
def test_round_trip(tmp_path, kind):
    folder = write(tmp_path, range(5), **kind)
    assert folder.written == 5
    for reader in (folder, TrunkFolder(tmp_path)):
        for i in range(5):
            assert key(i) in reader
            assert same(reader.read(key(i)), trunk(i, **kind))
        assert key(9) not in reader
        assert reader.read(key(9)) is None
        reader.close()  # tells nothing: warnings are errors


def test_scalars_empty_tensors_and_values_that_are_not_finite(tmp_path):
    odd = dataclasses.replace(trunk(0), given={"scalar": torch.tensor(2.5), "empty": torch.empty(0, 5)})
    odd.state[0, 0, 0] = torch.tensor([float("nan"), -0.0])
    folder = TrunkFolder(tmp_path, budget=ROOM)
    folder.keep(key(0), odd)
    folder.flush()
    assert same(TrunkFolder(tmp_path).read(key(0)), odd)


def test_a_trunk_is_copied_when_it_is_kept(tmp_path):
    """A run writes the next state where this one was."""
    folder, one = TrunkFolder(tmp_path, budget=ROOM), trunk(1)
    folder.keep(key(1), one)
    one.state.zero_()
    one.given["text"].zero_()
    folder.flush()
    assert same(folder.read(key(1)), trunk(1))


def test_tensors_that_share_memory_are_written(tmp_path):
    base = torch.arange(48.0).reshape(2, 4, 3, 2)
    shared = Trunk(base.transpose(0, 1), torch.zeros(3, dtype=torch.uint8), {"a": base[0], "b": base[0, 0]}, base[:, 0])
    folder = TrunkFolder(tmp_path, budget=ROOM)
    folder.keep(key(0), shared)
    folder.keep(key(1), shared)
    folder.flush()
    assert same(folder.read(key(0)), shared)
    assert same(folder.read(key(1)), shared)


def test_a_block_is_a_safetensors_file_as_documented(tmp_path):
    write(tmp_path, range(3))
    data = block(tmp_path).read_bytes()
    assert block(tmp_path).name == f"block-{files.digest_of(data)[:16]}.safetensors"
    assert TrunkFolder(tmp_path).used == len(data)
    with safe_open(block(tmp_path), framework="pt") as file:
        known = json.loads(file.metadata()["hsd"])
        assert set(file.keys()) == {"state", "generator", "predicted"} | {
            f"given.{name}.{row}" for name in ("text", "pooled") for row in range(3)
        }
        assert torch.equal(file.get_slice("state")[1], trunk(1).state)
        assert torch.equal(file.get_tensor("given.text.2"), trunk(2).given["text"])
    assert known["format"] == 1
    assert known["keys"] == [key(i) for i in range(3)]
    assert known["given"] == [["pooled", "text"]] * 3
    assert len(set(known["digests"])) == 3


def test_one_row_is_read_without_the_others(tmp_path, monkeypatch):
    write(tmp_path, range(40), latent=(4, 32, 32))
    reader, read = TrunkFolder(tmp_path), []
    exactly = trunk_blocks._exactly
    monkeypatch.setattr(trunk_blocks, "_exactly", lambda file, size: (read.append(size), exactly(file, size))[1])
    assert same(reader.read(key(7)), trunk(7, latent=(4, 32, 32)))
    assert sum(read) < reader.used / 10


def test_the_bytes_of_a_trunk():
    assert trunk(0).nbytes == 4 * (2 * 24 + 2 * 5 + 5 + 24) + 16
    assert trunk(0, predicted=False, fields=()).nbytes == 4 * 2 * 24 + 16


@pytest.mark.parametrize(
    "change",
    [
        {"state": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"generator": torch.zeros(3)},
        {"given": {"text": torch.zeros(3, dtype=torch.float64)}},
        {"predicted": torch.zeros(4, 3, 2).half()},
        {"predicted": torch.zeros(4)},
        {"state": torch.zeros(3)},
    ],
)
def test_what_is_no_trunk_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="trunk"):
        TrunkFolder(tmp_path, budget=ROOM).keep(key(0), dataclasses.replace(trunk(0), **change))


@pytest.mark.parametrize("name", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_what_is_no_key_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not the key"):
        TrunkFolder(tmp_path, budget=ROOM).keep(name, trunk(0))


# ------------------------------------------------------------------------------- blocks


def test_a_block_is_sealed_when_it_is_full(tmp_path, monkeypatch):
    tasks = []
    folder = TrunkFolder(tmp_path, lambda *task: tasks.append(task), ROOM)
    for i in range(130):
        folder.keep(key(i), trunk(i))
    assert [len(rows.rows) for _, rows in tasks] == [64, 64]
    folder.flush()
    folder.flush()  # nothing is left
    assert [len(rows.rows) for _, rows in tasks] == [64, 64, 2]
    assert key(0) not in folder  # it cannot be read yet
    for write_block, rows in tasks:
        write_block(rows)
    assert folder.written == 130
    assert found(tmp_path, range(130)) == list(range(130))
    tasks.clear()
    monkeypatch.setattr(trunks, "_MOST_BYTES", 2 * trunk_blocks.most_bytes(trunk(2)) + trunk_blocks.HEADER_BYTES)
    for i in range(130, 134):
        folder.keep(key(i), trunk(2))
    assert [len(rows.rows) for _, rows in tasks] == [2, 2]


def test_other_shapes_seal_the_block(tmp_path):
    kinds = [{}, {"latent": (4, 5, 2)}, {"predicted": False}, {"memory": 3}, {"fields": ("text",)}, {"memory": 2}]
    folder = TrunkFolder(tmp_path, budget=ROOM)
    for i, kind in enumerate(kinds):
        folder.keep(key(i), trunk(i, **kind))
    folder.flush()
    assert len(blocks(tmp_path)) == 5  # what the last two were given may differ within a block
    reader = TrunkFolder(tmp_path)
    assert all(same(reader.read(key(i)), trunk(i, **kind)) for i, kind in enumerate(kinds))


def test_a_trunk_is_written_once(tmp_path):
    folder = write(tmp_path, [0, 1, 1, 0])
    assert folder.written == 2
    again = write(tmp_path, [0, 1])
    assert again.written == 0
    assert len(blocks(tmp_path)) == 1


def test_two_blocks_may_hold_one_key(tmp_path):
    """Two runs at one moment: either is right, and where one is damaged the other is read."""
    first, second = TrunkFolder(tmp_path, budget=ROOM), TrunkFolder(tmp_path, budget=ROOM)
    for folder, numbers in ((first, (0, 1)), (second, (1, 2))):
        for i in numbers:
            folder.keep(key(i), trunk(i))
        folder.flush()
    assert len(blocks(tmp_path)) == 2
    assert found(tmp_path, range(3)) == [0, 1, 2]
    for path in blocks(tmp_path):
        data = path.read_bytes()
        path.write_bytes(data.replace(trunk(1).state.numpy().tobytes(), bytes(trunk(1).state.nbytes)))
        reader = TrunkFolder(tmp_path)
        read = reader.read(key(1))
        if path == blocks(tmp_path)[0]:
            assert same(read, trunk(1))
            assert key(1) in reader
        else:
            assert read is None
            assert key(1) not in reader


def test_the_same_block_is_not_written_twice(tmp_path, monkeypatch):
    first, second = TrunkFolder(tmp_path, budget=ROOM), TrunkFolder(tmp_path, budget=ROOM)
    first.keep(key(0), trunk(0))
    second.keep(key(0), trunk(0))
    first.flush()
    monkeypatch.setattr(files, "write_atomically", lambda *_: pytest.fail("written twice"))
    second.flush()
    second.close()
    assert second.used == first.used == block(tmp_path).stat().st_size


def test_writers_write_while_the_run_goes_on(tmp_path):
    with Writers(threads=3) as writers:
        folder = TrunkFolder(tmp_path, writers.submit, ROOM)
        for i in range(300):
            folder.keep(key(i), trunk(i))
        folder.flush()
    folder.close()
    assert folder.written == 300
    assert folder.used == sum(path.stat().st_size for path in blocks(tmp_path))
    assert all(same(folder.read(key(i)), trunk(i)) for i in range(0, 300, 7))


def test_a_slow_disk_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(trunks, "_MOST_WAITING", 100 * trunk_blocks.most_bytes(trunk(1)))
    tasks = []
    folder = TrunkFolder(tmp_path, lambda *task: tasks.append(task), ROOM)
    for i in range(64 * 5):
        folder.keep(key(i), trunk(i))
    assert len(tasks) == 1
    assert folder.written == 64 * 4


# ------------------------------------------------------------------------------- the budget


def test_without_a_budget_nothing_is_written(tmp_path):
    folder = write(tmp_path, range(3), budget=0)
    assert (folder.written, folder.used, folder.room()) == (0, 0, 0)
    assert os.listdir(tmp_path) == []
    write(tmp_path, range(3))
    reader = TrunkFolder(tmp_path)
    assert same(reader.read(key(1)), trunk(1))
    assert reader.used > 0 == reader.room()


@pytest.mark.parametrize("kind", [{}, {"fields": ()}, {"fields": ("größe" * 9, 'a"\\b')}, {"latent": (32,)}], ids=str)
@pytest.mark.parametrize("budget", [500, 5_000, 20_000, 300_000])
def test_blocks_stay_within_the_budget(tmp_path, budget, kind):
    folder = write(tmp_path, range(200), budget=budget, **kind)
    on_disk = sum(path.stat().st_size for path in (tmp_path / TRUNKS).iterdir()) if folder.written else 0
    assert folder.used == on_disk <= budget
    assert folder.room() == budget - on_disk
    # It is used, but for what one trunk and what is not known of a header take.
    assert folder.written == 200 or on_disk > 0.5 * (budget - 2 * trunk(0).nbytes - 3000)
    more = write(tmp_path, range(200, 400), budget=budget, **kind)
    assert more.used <= budget
    assert write(tmp_path, [], budget=1).room() == (1 if not folder.written else 0)


# ------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("trunks")
    write(out, range(6))
    return out


@pytest.fixture
def copy(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "copy")
    return tmp_path / "copy"


def check_every_trunk_or_none(out):
    """No trunk is another one, and what is missing is told, if anything says that it was there."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        folder = TrunkFolder(out)
        lost = []
        for i in range(6):
            known = key(i) in folder
            read = folder.read(key(i))
            assert read is None or same(read, trunk(i))
            assert (key(i) in folder) == (read is not None)
            lost += [i] if known and read is None else []
        folder.close()
    assert all(one.category is hsd.Notice for one in told)
    assert not lost or f"{len(lost)} that are damaged or gone" in str(told[0].message)
    return len(told)


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_byte_is_never_another_trunk(reference, tmp_path_factory, data):
    out = tmp_path_factory.getbasetemp() / "flipped"
    (out / TRUNKS).mkdir(parents=True, exist_ok=True)
    whole = bytearray(block(reference).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    region = data.draw(st.sampled_from([(0, 8), (8, header), (8, header), (header, len(whole))]))
    for place in data.draw(st.lists(st.integers(region[0], region[1] - 1), min_size=1, max_size=3)):
        whole[place] ^= data.draw(st.integers(1, 255))
    (out / TRUNKS / block(reference).name).write_bytes(whole)
    check_every_trunk_or_none(out)


def test_each_byte_of_the_tensors_is_compared(reference, copy):
    whole = block(reference).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole), 97):
        block(copy).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert len(found(copy, range(6))) == 5


def change(path, edit):
    """Write a block again with other arrays or another metadata entry."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    known, arrays = json.loads(header["__metadata__"]["hsd"]), load(data)
    known = edit(known, arrays) or known
    path.write_bytes(save(arrays, {"hsd": known if isinstance(known, str) else json.dumps(known)}))


def swap_keys(known, arrays):
    known["keys"][:2] = known["keys"][1::-1]


def swap_rows(known, arrays):
    arrays["state"][[0, 1]] = arrays["state"][[1, 0]]


def swap_given(known, arrays):
    arrays["given.text.0"], arrays["given.text.3"] = arrays["given.text.3"], arrays["given.text.0"]


def other_type(known, arrays):
    arrays["state"] = arrays["state"].astype(np.float16)


def other_shape(known, arrays):
    arrays["state"] = arrays["state"].reshape(6, 2, 3, 4, 2)


def swap_fields(known, arrays):
    known["given"][2] = ["text"]


def other_shape_of_given(known, arrays):
    arrays["given.text.0"] = arrays["given.text.0"].reshape(-1)


EDITS = {
    "another shape of what was given": (other_shape_of_given, 5),
    "keys of two swapped": (swap_keys, 4),
    "states of two swapped": (swap_rows, 4),
    "given of two swapped": (swap_given, 4),
    "a field less": (swap_fields, 5),
    "another dtype": (other_type, 0),
    "another shape": (other_shape, 0),
    "no prediction": (lambda known, arrays: arrays.__delitem__("predicted"), 0),
    "no state": (lambda known, arrays: arrays.__delitem__("state"), 0),
    "fewer rows": (lambda known, arrays: arrays.update(state=arrays["state"][:5]), 0),
    "a tensor that is missing": (lambda known, arrays: arrays.pop("given.text.4") is None, 5),
    "another digest": (lambda known, arrays: known["digests"].__setitem__(1, "0" * 64), 5),
    "fewer digests": (lambda known, arrays: known["digests"].pop() and None, 0),
    "a later format": (lambda known, arrays: known | {"format": 2}, 0),
    "a format that is true": (lambda known, arrays: known | {"format": True}, 0),
    "a key that is none": (lambda known, arrays: known["keys"].__setitem__(3, "../../etc/passwd"), 5),
    "a key that is a number": (lambda known, arrays: known["keys"].__setitem__(3, 7), 0),
    "names that are no list": (lambda known, arrays: known["given"].__setitem__(0, "text"), 0),
    "no JSON": (lambda known, arrays: "{", 0),
    "no object": (lambda known, arrays: "[]", 0),
    "nested too deeply": (lambda known, arrays: "[" * 100_000 + "]" * 100_000, 0),
    "too many digits": (lambda known, arrays: '{"format": ' + "1" * 10_000 + "}", 0),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_block_whose_parts_do_not_belong_together(copy, name):
    edit, left = EDITS[name]
    change(block(copy), edit)
    assert len(found(copy, range(6))) == left
    check_every_trunk_or_none(copy)


def test_what_is_no_key_is_not_known(copy):
    change(block(copy), EDITS["a key that is none"][0])
    assert "../../etc/passwd" not in TrunkFolder(copy)


@pytest.mark.parametrize("change", [{"state": torch.zeros(3)}, {"predicted": torch.zeros(5)}], ids=str)
def test_shapes_that_do_not_belong_together_are_not_read(tmp_path, change):
    """Though the digest is theirs."""
    odd = dataclasses.replace(trunk(0), **change)
    path = tmp_path / TRUNKS / "block-0000000000000000.safetensors"
    path.parent.mkdir()
    path.write_bytes(trunk_blocks.encoded([(key(0), odd)]))
    folder = TrunkFolder(tmp_path)
    assert folder.read(key(0)) is None
    with pytest.warns(hsd.Notice, match="shapes of a trunk"):
        folder.close()


def test_a_block_that_is_written_again_as_it_was_holds(copy):
    """The edits above are what is found, not the writing."""
    change(block(copy), lambda known, arrays: None)
    assert found(copy, range(6)) == list(range(6))


def raw(header, tail=b""):
    return len(header).to_bytes(8, "little") + header + tail


def header_of(shape, offsets, dtype="F32"):
    known = {"format": 1, "keys": [key(0)], "digests": ["0" * 64], "given": [[]]}
    state = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    generator = {"dtype": "U8", "shape": [1, 4], "data_offsets": [0, 4]}
    entries = {"__metadata__": {"hsd": json.dumps(known)}, "state": state, "generator": generator}
    return raw(json.dumps(entries).encode(), bytes(64))


FOREIGN = {
    "empty": b"",
    "7 bytes": b"\0" * 7,
    "zeros": b"\0" * 1000,
    "a huge header": b"\xff" * 8 + b"{}",
    "a header of a gigabyte": (1 << 30).to_bytes(8, "little") + b"{}",
    "text": b"not a block\n" * 50,
    "no object": raw(b"[]"),
    "no metadata": raw(b'{"state": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "metadata of others": raw(b'{"__metadata__": {"format": "pt"}}'),
    "metadata that is text": raw(b'{"__metadata__": "hsd"}'),
    "nested too deeply": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "no UTF-8": raw(b'{"\xff": 1}'),
    "a huge shape": header_of([1, 1 << 40, 1 << 40], [0, 1 << 60]),
    "a shape that overflows": header_of([1, *[1 << 61] * 9, 0], [0, 0]),
    "a negative shape": header_of([1, -1, -4], [0, 16]),
    "a shape with a fraction": header_of([1, 1.0, 4], [0, 16]),
    "offsets beyond the end": header_of([1, 1, 4], [1000, 1016]),
    "offsets that go back": header_of([1, 1, 4], [16, 0]),
    "negative offsets": header_of([1, 1, 4], [-16, 0]),
    "three offsets": header_of([1, 1, 4], [0, 16, 32]),
    "an unknown dtype": header_of([1, 1, 4], [0, 16], "F77"),
    "no rows": header_of([], [0, 4]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_passed_over(copy, name):
    (copy / TRUNKS / "block-0000000000000000.safetensors").write_bytes(FOREIGN[name])
    assert found(copy, range(6)) == list(range(6))
    for path in blocks(copy)[1:]:
        path.unlink()
    assert found(copy, range(6)) == []
    assert check_every_trunk_or_none(copy) == 1


@pytest.mark.parametrize("left", [0, 5, 8, 100, 0.3, 0.6, -100, -1])
def test_a_truncated_block(copy, left):
    path = block(copy)
    size = path.stat().st_size
    os.truncate(path, int(left * size) if isinstance(left, float) else left % size)
    assert found(copy, range(6)) == []
    assert check_every_trunk_or_none(copy) == 1


def test_a_block_that_is_cut_while_it_is_read(copy, monkeypatch):
    """A mapped file would end the process here."""
    folder = TrunkFolder(copy)
    regular = files.regular
    with pytest.MonkeyPatch.context() as patch:
        exactly = trunk_blocks._exactly

        def cut(file, size):
            data = exactly(file, size)
            if size > 8:
                os.truncate(block(copy), 8 + size)  # after the header
            return data

        patch.setattr(trunk_blocks, "_exactly", cut)
        assert folder.read(key(0)) is None
    assert regular(block(copy)) is not None
    with pytest.warns(hsd.Notice, match="1 that are damaged or gone .*it was cut"):
        folder.close()


def test_a_block_that_is_removed_meanwhile(copy):
    folder = TrunkFolder(copy)
    assert same(folder.read(key(0)), trunk(0))
    block(copy).unlink()
    assert folder.read(key(1)) is folder.read(key(1)) is None  # the second time it is known
    assert key(1) not in folder
    with pytest.warns(hsd.Notice, match=r"there are 1 that are damaged or gone .*it is gone.*computed again"):
        folder.close()


def test_a_disk_that_cannot_be_read(copy, monkeypatch):
    def broken(path, *, follow=True):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(trunk_blocks, "open_file", broken)
    folder = TrunkFolder(copy)
    assert folder.read(key(0)) is None
    with pytest.warns(hsd.Notice, match=r"there are 1 files that cannot be read \(block-.*Input/output error"):
        folder.close()


def test_what_is_damaged_is_written_again(copy):
    """Also as the same block, whose name is that of the damaged one."""
    path, expected = block(copy), block(copy).read_bytes()
    path.write_bytes(expected[:-50] + bytes(50))
    folder = TrunkFolder(copy, budget=ROOM)
    lost = [i for i in range(6) if folder.read(key(i)) is None]
    assert 0 < len(lost) < 6
    for i in lost:
        folder.keep(key(i), trunk(i))
    folder.flush()
    assert folder.written == len(lost)
    assert all(same(folder.read(key(i)), trunk(i)) for i in range(6))
    os.truncate(path, 20)
    for other in blocks(copy):
        if other != path:
            other.unlink()
    write_again = TrunkFolder(copy, budget=ROOM)
    for i in range(6):
        write_again.keep(key(i), trunk(i))
    write_again.flush()
    assert block(copy).read_bytes() == expected
    assert write_again.used == len(expected)


# ------------------------------------------------------------------------------- what is in the way


def test_links_and_folders_in_the_place_of_a_block_are_passed_over(copy, tmp_path):
    path, outside = block(copy), tmp_path / "outside.safetensors"
    shutil.move(path, outside)
    path.symlink_to(outside)  # the right bytes: it is not a file of this folder all the same
    os.mkfifo(path.with_name("block-1111111111111111.safetensors"))
    (path.parent / "block-2222222222222222.safetensors").mkdir()
    (path.parent / "notes.txt").write_text("kept")
    assert found(copy, range(6)) == []
    before = outside.read_bytes()
    write(copy, range(6))
    assert not path.is_symlink()
    assert path.read_bytes() == before == outside.read_bytes()
    path.unlink()
    path.mkdir()
    (path / "of-the-user.txt").write_text("kept")
    write(copy, range(6))
    assert found(copy, range(6)) == list(range(6))
    assert (path.parent / f".{path.name}.damaged" / "of-the-user.txt").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system has no flag for links")
def test_a_link_that_appears_before_the_block_is_opened(copy, tmp_path, monkeypatch):
    folder, path = TrunkFolder(copy), block(copy)
    shutil.move(path, tmp_path / "outside.safetensors")
    path.symlink_to(tmp_path / "outside.safetensors")
    monkeypatch.setattr(files, "regular", os.stat)
    assert folder.read(key(0)) is None
    with pytest.warns(hsd.Notice, match="damaged or gone"):
        folder.close()


@pytest.mark.parametrize("what", ["link", "link to nothing", "file"])
def test_what_stands_in_the_place_of_the_folder_is_set_aside(reference, tmp_path, what):
    path = tmp_path / TRUNKS
    path.write_text("mine") if what == "file" else path.symlink_to(reference / TRUNKS if what == "link" else "nowhere")
    before = sorted(os.listdir(reference / TRUNKS))
    assert found(tmp_path, range(6)) == []
    write(tmp_path, range(3), budget=0)
    assert path.is_symlink() == (what != "file")  # who only reads moves nothing
    write(tmp_path, range(3))
    assert path.is_dir()
    assert not path.is_symlink()
    assert found(tmp_path, range(6)) == [0, 1, 2]
    assert os.path.lexists(tmp_path / f"{TRUNKS}.damaged")
    assert sorted(os.listdir(reference / TRUNKS)) == before


def test_a_folder_that_was_never_there(tmp_path):
    folder = TrunkFolder(tmp_path / "missing")
    assert folder.read(key(0)) is None
    folder.close()
    assert not (tmp_path / "missing").exists()


# ------------------------------------------------------------------------------- what cannot be written


def test_a_full_disk_gives_the_block_up(tmp_path, monkeypatch):
    put, full = files.write_atomically, [True]

    def write_atomically(path, data):
        if full[0]:
            raise OSError(28, "No space left on device")
        put(path, data)

    monkeypatch.setattr(files, "write_atomically", write_atomically)
    folder = TrunkFolder(tmp_path, budget=ROOM)
    for i in range(70):
        folder.keep(key(i), trunk(i))
    full[0] = False  # the images that are decoded meanwhile were moved
    folder.flush()
    assert (folder.written, key(0) in folder, key(69) in folder) == (6, False, True)
    folder.keep(key(0), trunk(0))  # it may be kept again
    folder.flush()
    assert same(folder.read(key(0)), trunk(0))
    with pytest.warns(hsd.Notice, match=r"there are 64 that could not be written \(OSError: \[Errno 28\] No space"):
        folder.close()


def test_a_folder_that_cannot_be_made_is_told_at_the_end(tmp_path, monkeypatch):
    def refused(path):
        raise hsd.OutputError(f"cannot write to {path}")

    monkeypatch.setattr(files, "make_folder", refused)
    folder = TrunkFolder(tmp_path, budget=ROOM)
    folder.keep(key(0), trunk(0))
    folder.flush()
    with pytest.warns(hsd.Notice, match="1 that could not be written .*cannot write to"):
        folder.close()


def test_what_could_not_be_written_takes_none_of_the_budget(tmp_path, monkeypatch):
    folder = TrunkFolder(tmp_path, budget=4 * trunk(0).nbytes + 4000)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        for i in range(3):
            folder.keep(key(i), trunk(i))
            folder.flush()
    for i in range(10, 13):
        folder.keep(key(i), trunk(i))
    folder.flush()
    assert folder.written == 3


def test_what_a_killed_write_left_is_passed_over_and_removed(copy):
    """Complete blocks are all that a killed run leaves under their names."""
    left = copy / TRUNKS / ".block-0123456789abcdef.safetensors.0123456789abcdef.tmp"
    own = copy / TRUNKS / ".notes.tmp"
    for path in (left, own):
        path.write_bytes(b"half a block")
        os.utime(path, (time.time() - 60,) * 2)
    assert found(copy, range(6)) == list(range(6))
    assert left.exists()  # who only reads removes nothing
    TrunkFolder(copy, budget=ROOM).close()
    assert not left.exists()
    assert own.exists()


def test_what_a_run_that_lives_is_writing_is_not_removed(copy):
    held, _ = claims.take(copy, np.arange(2))
    try:
        writing = files.write_temporary(copy / TRUNKS / "block-0123456789abcdef.safetensors", b"half")
        os.utime(writing, (held.begun + 0.001,) * 2)
        time.sleep(0.01)
        TrunkFolder(copy, budget=ROOM).close()
        assert writing.exists()
    finally:
        held.release()
    TrunkFolder(copy, budget=ROOM).close()
    assert not writing.exists()


# ------------------------------------------------------------------------------- which are worth it


def make_plan(n, seed, steps=6, tau=1.2):
    vectors = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    return hsd.compile([f"prompt {i}" for i in range(n)], tau, embeddings=vectors, steps=steps)


def worth(plan, kept):
    """By the definition: the steps up to the deepest kept point above each prompt."""
    total = 0
    for leaf in range(plan.n_prompts):
        rows = plan.segments[kept]
        above = rows[(rows["leaf_begin"] <= leaf) & (leaf < rows["leaf_end"])]
        total += max(above["end_step"].tolist(), default=0)
    return total


def greedy(plan, candidates, most, kept):
    """Without a heap, and without counts that are kept."""
    start = kept.copy()
    kept = kept.copy()
    for _ in range(most):
        gains = []
        for c in np.flatnonzero(candidates & ~kept).tolist():
            more = kept.copy()
            more[c] = True
            gains.append((worth(plan, more) - worth(plan, kept), -c))
        best, c = max(gains, default=(0, 0))
        if best <= 0:
            break
        kept[-c] = True
    return kept & ~start


def forks(plan):
    return plan.segments["end_step"] < plan.n_steps


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(0, 10_000), st.integers(0, 5), st.floats(0, 1), st.booleans())
def test_it_is_what_a_plain_greedy_choice_takes_and_near_the_best(n, seed, most, share, some):
    plan = make_plan(n, seed)
    random = np.random.default_rng(seed)
    present = random.random(len(plan.segments)) < share * 0.3
    candidates = (forks(plan) if some else np.ones(len(plan.segments), bool)) & (random.random(len(present)) < 0.9)
    candidates[np.flatnonzero(candidates)[9:]] = False  # all subsets are tried below
    chosen = most_valuable(plan, candidates, 10, 10 * most + 9, present)
    assert np.array_equal(chosen, greedy(plan, candidates, most, present))
    assert chosen.sum() <= most
    assert not (chosen & (present | ~candidates)).any()
    before, best = worth(plan, present), 0
    free = np.flatnonzero(candidates & ~present).tolist()
    for subset in itertools.combinations(free, min(most, len(free))):  # a larger set is never worth less
        kept = present.copy()
        kept[list(subset)] = True
        best = max(best, worth(plan, kept) - before)
    assert worth(plan, chosen | present) - before >= (1 - 1 / math.e) * best - 1e-9


def test_gains_of_a_larger_plan_are_those_of_the_definition():
    plan = make_plan(40, 3, steps=12)
    present = np.zeros(len(plan.segments), bool)
    present[[1, 5]] = True
    for most in (1, 4, 15, 1000):
        chosen = most_valuable(plan, forks(plan), 1, most, present)
        assert np.array_equal(chosen, greedy(plan, forks(plan), most, present))
    assert forks(plan).sum() > 20


@settings(max_examples=30)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_gains_are_right_in_whatever_order_points_are_kept(seed, random):
    """Below one that is kept, above it and between two."""
    plan = make_plan(12, seed, steps=12)
    kept, rows = np.zeros(len(plan.segments), bool), plan.segments
    leaves = rows["leaf_end"] - rows["leaf_begin"]
    points = _Points(rows["parent"].tolist(), rows["end_step"].tolist(), leaves.tolist())
    for c in random.sample(range(len(rows)), 8):
        points.keep(c)
        kept[c] = True
        for other in np.flatnonzero(~kept).tolist():
            more = kept.copy()
            more[other] = True
            assert points.gain(other) == worth(plan, more) - worth(plan, kept)


def test_without_present_it_is_as_with_none_of_them():
    plan = make_plan(20, 1)
    none = np.zeros(len(plan.segments), bool)
    chosen = most_valuable(plan, forks(plan), 100, 450)
    assert np.array_equal(chosen, most_valuable(plan, forks(plan), 100, 450, none))
    assert chosen.sum() == 4
    assert not none.any()  # it is not written to


def test_a_point_that_adds_nothing_is_left_out():
    """The end of a segment whose only prompts are under kept points that are deeper."""
    plan = make_plan(8, 2)
    everything = most_valuable(plan, forks(plan), 1, 10**9)
    for c in np.flatnonzero(everything).tolist():
        less = everything.copy()
        less[c] = False
        assert worth(plan, less) <= worth(plan, everything)
    parents = plan.segments["parent"]
    children = np.flatnonzero((parents >= 0) & forks(plan))
    covered = np.zeros(len(plan.segments), bool)
    root = int(np.flatnonzero(parents < 0)[0])
    covered[parents == root] = True
    alone = np.zeros(len(plan.segments), bool)
    alone[root] = True
    assert len(children)
    assert not most_valuable(plan, alone, 1, 100, covered).any()


@pytest.mark.parametrize(("nbytes", "budget", "count"), [(10, 0, 0), (10, 9, 0), (10, -5, 0), (10, 10, 1), (10, 29, 2)])
def test_the_budget_is_kept(nbytes, budget, count):
    plan = make_plan(20, 1)
    assert most_valuable(plan, forks(plan), nbytes, budget).sum() == count


def test_of_equal_points_the_first_is_taken():
    vectors = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [0.1, 0, 1]], np.float32)
    plan = hsd.compile([str(i) for i in range(6)], 0.3, embeddings=vectors, steps=6)
    rows = np.flatnonzero(forks(plan))
    assert len({(row["end_step"], row["leaf_end"] - row["leaf_begin"]) for row in plan.segments[rows]}) == 1
    assert np.flatnonzero(most_valuable(plan, forks(plan), 1, 2)).tolist() == rows[:2].tolist()


@pytest.mark.parametrize("wrong", ["candidates", "present", "nbytes"])
def test_wrong_arguments(wrong):
    plan = make_plan(4, 0)
    masks = {name: np.ones(len(plan.segments) - (name == wrong), bool) for name in ("candidates", "present")}
    with pytest.raises(ValueError, match=wrong):
        most_valuable(plan, nbytes=0 if wrong == "nbytes" else 1, budget=5, **masks)


def test_a_large_plan():
    """200,000 segments take some seconds at most, and each is asked a few times: not for each that is taken."""

    class Large:
        n_prompts, n_steps = 1 << 17, 60

    depth = np.concatenate([np.full(1 << level, level) for level in range(18)])
    number = np.arange(len(depth))
    width = (1 << 17) >> depth
    begin = (number + 1 - (1 << depth)) * width
    columns = {"parent": (number + 1) // 2 - 1, "end_step": 3 * depth + 3, "leaf_begin": begin}
    plan = Large()
    plan.segments = np.zeros(len(depth), [(name, np.int32) for name in (*columns, "leaf_end")])
    for name, column in {**columns, "leaf_end": begin + width}.items():
        plan.segments[name] = column
    began = time.process_time()
    chosen = most_valuable(plan, np.ones(len(depth), bool), 1, 1 << 13)
    assert time.process_time() - began < 20  # about 2
    assert chosen.sum() == 1 << 13
    deepest = np.zeros(len(depth), int)
    for level in range(18):  # parents come first
        rows = np.flatnonzero(depth == level)
        above = deepest[(rows + 1) // 2 - 1] if level else 0
        deepest[rows] = np.where(chosen[rows], plan.segments["end_step"][rows], above)
    assert deepest[depth == 17].mean() >= 42 * (1 - 1 / math.e)  # 42: level 13, which has as many
