"""``benches/grow.py``: what it counts is what a run computes, and all of it on a small setting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import hsd
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))

import grow

NEW = ["a cat in the sun", "the sea by night", "a purple elephant"]
OLD = ["a cat", "a cat on a mat", "the sea", "the sea at night", "an elephant", "a blue elephant"]


def test_counted_node_steps_are_those_of_a_run(tmp_path):
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    base = hsd.compile(OLD, budget=0.4, model=model, steps=6)
    assert hsd.generate(base, model, tmp_path, keep_trunks=True).record["trunks"]["kept"] > 0
    plan = base.extend(NEW, model=model)
    part = plan.prune(np.arange(len(OLD), len(plan)))
    kept = grow.most_valuable(base, base.segments["end_step"] < 6, 1, len(base.segments))
    counted = grow.added(part, base, kept)
    assert hsd.generate(plan, model, tmp_path).node_steps == counted < part.node_steps
    assert grow.added(part, base, np.zeros(len(base.segments), bool)) == part.node_steps


def test_folds_have_every_prompt_new_once():
    found = list(grow.folds(False))
    new = [prompt for _, prompts in found for prompt in prompts]
    assert len(found) == 8
    assert len(new) == len(set(new)) == 256
    assert all((len(old), len(one)) == (128, 32) and not set(old) & set(one) for old, one in found)


def test_the_parts_in_one_document(tmp_path, capsys):
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"quality": {"images": 7}}))
    grow.main(["--quick", "--only", "cost", "--json", str(file)])
    found = json.loads(file.read_text())
    (row,) = found["cost"]
    steps = {way: values[0] for way, values in row["node_steps"].items()}
    assert steps["without sharing"] == 40
    assert steps["all trunks"] <= steps["trunks"] <= steps["trunks 100"] <= steps["added"] <= 40
    assert steps["at once"] < steps["anew"] == pytest.approx(steps["at once"] + 0.7 * 40 * 50 / 10, abs=1)
    assert found["quality"] == {"images": 7}  # that part was not measured now
    assert "small 50 + 10" in capsys.readouterr().out


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
