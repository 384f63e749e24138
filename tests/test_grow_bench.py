"""``benches/grow.py``: what it counts, by closed forms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import hsd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))

import grow


def test_costs_are_in_their_order_and_those_of_plans():
    old, new, rows = grow.small_set(None, 10, 0)
    ways, _ = grow.costs(old, new, rows, 0.5)
    base = hsd.compile(old, budget=0.5, embeddings=rows[:50], steps=40)
    together = hsd.compile(old + new, base.tau, embeddings=rows, steps=40)
    assert ways["without sharing"] == 40
    assert ways["anew"] == together.node_steps / 10
    assert ways["at once"] == (together.node_steps - base.node_steps) / 10
    assert ways["all trunks"] <= ways["trunks 1,000"] <= ways["trunks 100"] <= ways["added"]
    assert ways["all trunks"] < ways["added"]


def test_a_kept_fork_is_worth_the_steps_before_it():
    """Two pairs far apart, and a prompt beside the first: it needs the pair's trunk, unless its end is kept."""
    rows = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.05]], dtype=np.float32)
    base = hsd.compile(list("abcd"), 0.5, embeddings=rows[:4], steps=10)
    part = base.extend(["e"], embeddings=rows[4:]).prune([4])
    path = part.segments
    assert part.node_steps == 10
    kept = base.segments["end_step"] < 10
    (begin,) = {int(row["end_step"]) for row in path} & {int(end) for end in base.segments["end_step"][kept]}
    assert grow.added(part, base, kept) == 10 - begin
    assert grow.added(part, base, ~kept & kept) == 10
