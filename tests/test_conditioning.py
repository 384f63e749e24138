"""The mean of conditioning, row tables in memory and on disk, and each prompt's own settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.conditioning.rows import Conditioning, Field, Rows
from hsd.conditioning.spool import OnDisk, Spool
from hsd.errors import Error

IN_MEMORY, ON_DISK = 1 << 30, 0


def conditioning(rows, index=None, memory=IN_MEMORY):
    """One field ``e`` with the given rows: a tensor, or tensors of differing lengths."""
    index = np.arange(len(rows)) if index is None else np.array(index)
    spool = Spool(memory)
    table = Rows(spool, ragged=not isinstance(rows, torch.Tensor))
    table.append(rows)
    return Conditioning({"e": Field(table, index)}, np.ones((len(index), 2), np.float32), spool)


def mean(c, prompts):
    return c.mean(np.array(prompts))["e"]


@pytest.mark.parametrize("memory", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_mean(memory):
    rows = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    c = conditioning(rows, memory=memory)
    assert torch.equal(mean(c, [3]), rows[3])
    torch.testing.assert_close(mean(c, [0, 2, 4]), rows[[0, 2, 4]].mean(0))
    assert torch.equal(mean(c, [4, 0, 2]), mean(c, [0, 2, 4]))


@pytest.mark.parametrize("memory", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_mean_of_equal_prompts_is_the_row(memory):
    rows = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    c = conditioning(rows, index=[0, 1, 0, 0], memory=memory)
    assert torch.equal(mean(c, [0, 2, 3]), rows[0])
    torch.testing.assert_close(mean(c, [0, 1, 2]), (2 * rows[0] + rows[1]) / 3)


def test_mean_is_accumulated_in_float32():
    rows = torch.full((600, 4), 1.0, dtype=torch.float16)
    rows[0] = 2048.0  # in float16, 2048 + 1 is 2048
    average = mean(conditioning(rows), range(600))
    assert average.dtype == torch.float16
    torch.testing.assert_close(average.float(), torch.full((4,), (2048 + 599) / 600), rtol=1e-3, atol=0)


@pytest.mark.parametrize("memory", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_mean_of_differing_lengths_counts_the_tokens_that_are_there(memory):
    rows = [torch.full((length, 2), float(length)) for length in (3, 1, 4)]
    out = conditioning(rows, memory=memory).mean(np.array([0, 1, 2]))
    assert out["e"][:, 0].tolist() == pytest.approx([8 / 3, 7 / 2, 7 / 2, 4.0])
    assert out["e_mask"].tolist() == [True] * 4


def test_rows_of_differing_lengths_are_padded_to_the_longest_of_all():
    rows = [torch.ones(3, 2), torch.ones(5, 2)]
    c = conditioning(rows)
    out = c.mean(np.array([0]))
    assert out["e"].shape == (5, 2)
    assert torch.equal(out["e"][:3], rows[0])
    assert not out["e"][3:].any()
    assert out["e_mask"].tolist() == [True] * 3 + [False] * 2
    assert c.shapes() == {"e": ((5, 2), torch.float32), "e_mask": ((5,), torch.bool)}


def test_an_empty_text_among_others():
    out = conditioning([torch.ones(0, 2), torch.ones(2, 2)]).mean(np.array([0, 1]))
    assert out["e_mask"].tolist() == [True, True]
    assert torch.equal(out["e"], torch.ones(2, 2))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    prompts=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    memory=st.sampled_from([IN_MEMORY, ON_DISK, 200]),
    chunk=st.sampled_from([1, 60, 4 << 20]),
    seed=st.integers(0, 99),
)
def test_mean_is_that_of_a_plain_loop(lengths, prompts, memory, chunk, seed):
    """In any chunks: position by position over the members that have a token there, each occurrence counted."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, 3, generator=generator) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsd.conditioning.rows._CHUNK_BYTES", chunk)
        c = conditioning(rows, memory=memory)
    members = [i % len(rows) for i in prompts]
    out = c.mean(np.array(members))
    longest = max(lengths[i] for i in members)
    assert int(out["e_mask"].sum()) == longest
    for position in range(longest):
        there = torch.stack([rows[i][position] for i in members if lengths[i] > position]).double()
        torch.testing.assert_close(out["e"][position].double(), there.mean(0), atol=1e-6, rtol=1e-5)


def test_only_what_fits_stays_in_memory():
    spool = Spool(memory=100)
    first, second, third = (spool.put(torch.full((10, 2), float(i))) for i in range(3))  # 80 bytes each
    assert (spool.in_memory, spool.on_disk) == (80, 160)
    assert isinstance(second, OnDisk)
    for value, chunk in enumerate((first, second, third)):
        assert torch.equal(spool.read(chunk, 3, 7), torch.full((4, 2), float(value)))


def test_the_temporary_file_lies_in_tmpdir_and_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spool = Spool(memory=0)
    chunk = spool.put(torch.ones(3, 2, dtype=torch.bfloat16))
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(spool.read(chunk, 0, 3), torch.ones(3, 2, dtype=torch.bfloat16))


def test_no_room_is_said_with_numbers_and_a_way_out(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 << 30})())
    spool = Spool(memory=1 << 30)
    spool.check_space(3 << 30)
    with pytest.raises(Error, match=r"need 3\.5 GiB.* 1\.0 GiB of conditioning_memory and 2\.0 GiB in .*TMPDIR"):
        spool.check_space(7 << 29)
