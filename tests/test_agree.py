"""Processes that share a folder and nothing else: all of them get the plan of one of them, whoever it is."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hsd
from disk import TEXTS, make_plan
from hsd.planning import agree
from hsd.planning.agree import agreed
from hsd.planning.plan import PLAN_FILE

N = 6


def rounded(i, **options):
    """The same prompts and arguments, and clusters that another processor's rounding might have found."""
    vectors = np.random.default_rng(i).normal(size=(len(TEXTS), 6)) + 2.0
    return hsd.compile(TEXTS, 0.9, embeddings=vectors, steps=6, **{"seeds": 100, **options})


def no_links(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def slowly(*names, rename=agree.files.rename):
    time.sleep(0.01)
    rename(*names)


@pytest.mark.parametrize("links", [True, False])
def test_all_that_begin_at_once_get_one_plan(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
        monkeypatch.setattr(agree.files, "rename", slowly)
    plans = [rounded(i) for i in range(N)]
    assert len({plan.fingerprint for plan in plans}) == N
    for attempt in range(10):
        out, together = tmp_path / str(attempt), threading.Barrier(N)

        def begin(plan, out=out, together=together):
            together.wait()
            return agreed(out, plan).fingerprint

        with ThreadPoolExecutor(N) as pool:
            found = set(pool.map(begin, plans))
        assert found == {hsd.Plan.load(out / PLAN_FILE).fingerprint}
        assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_one_that_comes_later_says_that_it_computed_another_by_rounding(tmp_path, caplog):
    first, second = rounded(0), rounded(1, columns={"id": list("abcdefgh")})
    with caplog.at_level(logging.INFO, "hsd"):
        assert agreed(tmp_path, first).fingerprint == first.fingerprint
        assert not caplog.records
        found = agreed(tmp_path, second)
    assert found.fingerprint == first.fingerprint
    assert found.columns == {"id": list("abcdefgh")}
    (record,) = caplog.records
    assert f"{first.node_steps:,} evaluations, here {second.node_steps:,}" in record.getMessage()


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (make_plan(tau=0.5), "tau: 0.9 before, 0.5 now"),
        (make_plan(seeds=7), "seed of prompt 0: 100 before, 7 now"),
        (make_plan([*TEXTS[:-1], "a hat"]), "prompt 7: 'a cat' before, 'a hat' now"),
    ],
)
def test_other_arguments_are_refused(tmp_path, other, what):
    agreed(tmp_path, make_plan())
    with pytest.raises(hsd.PlanMismatch, match=f"has another plan .*{what}"):
        agreed(tmp_path, other)
    assert hsd.Plan.load(tmp_path / PLAN_FILE).fingerprint == make_plan().fingerprint


def test_a_plan_that_was_read_has_to_be_the_same(tmp_path):
    agreed(tmp_path, rounded(0))
    assert agreed(tmp_path, rounded(0), exactly=True).fingerprint == rounded(0).fingerprint
    with pytest.raises(hsd.PlanMismatch, match="another tree"):
        agreed(tmp_path, rounded(1), exactly=True)


def test_who_died_before_the_plan_was_there_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(agree, "_PATIENCE", 0.3)
    (tmp_path / agree.TICKET).touch()
    assert agreed(tmp_path, rounded(0)).fingerprint == rounded(0).fingerprint
    assert hsd.Plan.load(tmp_path / PLAN_FILE).fingerprint == rounded(0).fingerprint


def test_a_file_that_is_no_plan_is_refused_and_stays(tmp_path):
    (tmp_path / PLAN_FILE).write_bytes(b"mine")
    with pytest.raises(hsd.PlanMismatch, match=f"{PLAN_FILE} is not a plan.*choose another folder"):
        agreed(tmp_path, rounded(0))
    assert (tmp_path / PLAN_FILE).read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(hsd.OutputError, match="cannot write to"):
        agreed(tmp_path / "file", rounded(0))
