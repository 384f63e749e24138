"""Units for workers: sizes, what is computed again, what is said of small plans; and the benchmark of cuts."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hsd
from core_cases import plans, tree_of
from hsd import _core, distributed
from hsd.distributed.units import ENOUGH, in_use

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))

import shards as bench

PLACES = ("in a garden", "at the sea", "in the snow", "on a mountain", "in a city at night", "under a tree")
ANIMALS = ("cat", "dog", "fox", "owl", "horse", "whale", "frog", "bear")
STYLES = ("a photo of", "an oil painting of", "a pencil drawing of", "a blue", "a very old", "a small", "a robot")


def plan_of(core: _core.Plan) -> hsd.Plan:
    n = core.n_prompts
    request = {"tau": 1.0, "steps": core.n_steps, "linkage": "ward", "noise": "independent", "encoder": "none"}
    return hsd.Plan(core, [f"prompt {i}" for i in range(n)], np.arange(n), request)


def apart(n: int, steps: int = 10) -> hsd.Plan:
    """``n`` prompts that share nothing."""
    return plan_of(_core.Plan.compile(tree_of(n, "balanced", "zero", 0), np.zeros(steps)))


def alike(n: int, steps: int = 10) -> hsd.Plan:
    """``n`` prompts that share all steps but the last."""
    tree = _core.Tree.from_merges(tree_of(n, "balanced", "zero", 0).merges, np.full(n - 1, 0.5))
    return plan_of(_core.Plan.compile(tree, np.array([1.0] * (steps - 1) + [0.0])))


@pytest.fixture(scope="module")
def templates() -> hsd.Plan:
    prompts = [f"{style} {animal} {place}" for style, animal, place in itertools.product(STYLES, ANIMALS, PLACES)]
    return hsd.compile(prompts, 1.0, steps=20)


@given(plans(), st.integers(1, 5), st.none() | st.integers(1, 4))
def test_units_are_those_of_the_plan(core, workers, per_worker):
    plan = plan_of(core)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsd.Notice)
        units = distributed.units(plan, workers, per_worker=per_worker)
    assert sorted(np.concatenate([unit.kept for unit in units]).tolist()) == plan.kept.tolist()
    assert all(unit.fingerprint == plan.fingerprint for unit in units)
    # Clusters of each step, counted unit by unit.
    clusters = sum(len(np.unique(core.active(k)[unit.kept])) for unit in units for k in range(core.n_steps))
    assert distributed.recomputed(plan, units) == pytest.approx(clusters / core.node_steps - 1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5))
def test_use_is_that_of_workers_which_take_the_next_unit(sizes, workers):
    plan = apart(sum(sizes))
    ends = np.cumsum(sizes)
    parts = [plan.prune(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    free = [0] * workers
    for size in sizes:
        free[free.index(min(free))] += size
    assert in_use(plan, parts, workers) == pytest.approx(sum(sizes) / (workers * max(free)))


def test_units_travel_alone():
    plan = apart(40)
    unit = distributed.units(plan, 2)[-1]
    again = pickle.loads(pickle.dumps(unit))
    assert again.kept.tolist() == unit.kept.tolist()
    assert unit.origin is plan


def test_sizes_halve():
    sizes = [len(unit) for unit in distributed.units(apart(128), 2)]
    assert sizes == [32, 32, 16, 16, 8, 8, 4, 4, 4, 4]
    assert [len(unit) for unit in distributed.units(apart(128), 2, per_worker=2)] == [32] * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("plan", "workers"), [(apart(128), 8), (apart(8), 8), (alike(10).prune([3, 7]), 2)])
def test_nothing_is_said_of_what_fits_or_is_left(plan, workers):
    distributed.units(plan, workers)


@pytest.mark.parametrize(
    ("plan", "workers", "said"),
    [
        # 9 shared steps and 91 others: 8 workers compute the shared ones 7 times again.
        (alike(91), 8, r"91 images are too few for 8 workers, which are 4\.\d times as fast as one: 63\.0% of"),
        (apart(5), 8, r"5 images are too few for 8 workers, which are 5\.0 times as fast as one: 0\.0% of"),
    ],
)
def test_a_plan_too_small_is_said(plan, workers, said):
    with pytest.warns(hsd.Notice, match=said) as caught:
        distributed.units(plan, workers)
    (notice,) = caught
    assert notice.filename == __file__
    fewer = int(str(notice.message).split("wait. ")[1].split()[0])
    assert 1 <= fewer < workers
    assert in_use(plan, plan.units(fewer), fewer) >= ENOUGH
    if plan.savings == 0:
        assert fewer == 5


@pytest.mark.parametrize("workers", [0, -3])
def test_bad_numbers_are_refused(workers):
    with pytest.raises(ValueError, match=f"the number of workers is {workers}; it must be at least 1"):
        distributed.units(apart(4), workers)
    with pytest.raises(ValueError, match="per_worker is 0"):
        distributed.units(apart(4), 2, per_worker=0)
    with pytest.raises(TypeError, match="plan is a list: compile it first"):
        distributed.units(["a cat"], 2)


def test_cuts_of_templates_are_cheap(templates):
    """The steps that 8 shards compute again: under 1 %, and fewer than with the largest one as small as possible."""
    even, cheap = (distributed.recomputed(templates, templates.shard(8, slack)) for slack in (0.0, 0.02))
    assert cheap < min(0.01, even)
    assert max(len(part) for part in templates.shard(8)) < len(templates)
    earlier = sum(bench.before(templates._core, 8)) / templates.node_steps - 1
    assert cheap < earlier
    assert distributed.recomputed(templates, distributed.units(templates, 8)) < 0.01


def test_the_benchmark_simulates_waiting():
    rng = np.random.default_rng(0)
    assert bench.end([4, 3, 2, 1], 2, False, 0.0, rng) == 5
    assert bench.end([4, 3, 2, 1], 2, True, 0.0, rng) == 8  # the first has half the speed
    table = bench.call_seconds()
    assert table[1] < table[8] < table[16] < 16 * table[1]
    plan = apart(20)._core
    assert bench.seconds(plan, np.arange(17.0)) == plan.node_steps


def test_the_benchmark_runs(tmp_path, capsys):
    bench.main(["--quick", "--json", str(tmp_path / "figures.json")])
    assert "the rule" in capsys.readouterr().out
    rows = json.loads((tmp_path / "figures.json").read_text())["sets"]["artificial"]
    cheap = [row["again"] for row in rows["cuts"] if row["n"] == 8]
    assert cheap[0] >= cheap[1] >= cheap[2] >= cheap[3]  # before, and with more and more slack
    assert all(row["lost"][0] > row["again"] for row in rows["simulated"])
