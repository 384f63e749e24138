"""hsd tune without a model: neighbourhoods, halving, bounds and the choice, on constructed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd._core import Tree
from hsd.choice.decision import Comparison, Difference, decide, paired
from hsd.choice.grid import Setting
from hsd.choice.halving import Rung, fronts, rungs, survivors
from hsd.choice.neighbourhoods import draw, largest_size, neighbourhoods

STANDARD = Setting(40)


def compared(setting, cost, difference, *, rung=2, lower=None, upper=None, clusters=20):
    found = Difference(
        difference,
        difference - 0.005 if lower is None else lower,
        difference + 0.005 if upper is None else upper,
        50,
        clusters,
    )
    return Comparison(setting, cost, 1 - cost / 40, 0.0, rung, 0.9 + difference, 0.9, found)


def standard():
    return compared(STANDARD, 40.0, 0.0, lower=0.0, upper=0.0)


# Neighbourhoods.


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 10**6))
def test_neighbourhoods_are_the_largest_whole_subtrees(n, largest, seed):
    tree = hsd.build_tree(np.random.default_rng(seed).normal(size=(n, 5)))
    found = neighbourhoods(tree, largest)
    assert sorted(np.concatenate(found).tolist()) == list(range(n))
    leaves = [{i} for i in range(n)]
    parent = {}
    for merge, (a, b) in enumerate(tree.merges):
        parent[int(a)] = parent[int(b)] = n + merge
        leaves.append(leaves[a] | leaves[b])
    for some in found:
        (node,) = [i for i, below in enumerate(leaves) if below == set(some.tolist())]
        assert len(some) <= largest
        assert node not in parent or len(leaves[parent[node]]) > largest
        assert some.tolist() == sorted(some.tolist())


def test_no_neighbourhood_spans_prompts_that_never_share():
    part = hsd.build_tree(np.random.default_rng(0).normal(size=(3, 4)))
    tree = Tree.join([part, part], [np.array([0, 2, 4]), np.array([1, 3, 5])])
    assert [some.tolist() for some in neighbourhoods(tree, 32)] == [[0, 2, 4], [1, 3, 5]]


def test_the_sample_is_whole_neighbourhoods_in_random_order():
    parts = [np.arange(8 * i, 8 * i + 8) for i in range(10)]
    drawn = draw(parts, 40, seed=1)
    assert len(drawn) == 5
    assert all(any(np.array_equal(some, part) for part in parts) for some in drawn)
    assert not all(np.array_equal(a, b) for a, b in zip(drawn, draw(parts, 40, seed=2), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, draw(parts, 40, seed=1), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(drawn[:3], draw(parts, 24, seed=1), strict=True))  # they nest
    assert len(draw(parts, 3, seed=1)) == 1  # never an empty sample
    assert [largest_size(n) for n in (4, 64, 128, 10_000)] == [8, 8, 16, 32]


# Halving.


def test_rungs_double():
    assert rungs(8, 1) == [Rung(2, 1), Rung(4, 1), Rung(8, 1)]
    assert rungs(8, 6) == [Rung(2, 1), Rung(4, 1), Rung(8, 1), Rung(8, 2), Rung(8, 4), Rung(8, 6)]
    assert rungs(1, 1) == [Rung(1, 1)]
    assert rungs(3, 2) == [Rung(1, 1), Rung(2, 1), Rung(3, 1), Rung(3, 2)]


def test_fronts():
    assert fronts([1, 2, 3, 3, 2], [0.5, 0.8, 0.9, 0.7, 0.4]).tolist() == [0, 0, 0, 1, 1]
    assert fronts([1, 1], [0.5, 0.5]).tolist() == [0, 0]  # equals do not dominate each other


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-9, 9), st.booleans()), min_size=1, max_size=20))
def test_what_is_dropped_is_dominated_or_less_promising(found):
    costs, gains, hopeful = zip(*found, strict=True)
    kept = survivors(costs, gains, hopeful)
    assert len(kept) == -(-len(found) // 2)
    front = fronts(costs, gains)
    for out in set(range(len(found))) - set(kept):
        for i in kept:
            assert (not hopeful[i], front[i], -gains[i]) <= (not hopeful[out], front[out], -gains[out])


# Bounds.


def test_the_bounds_of_independent_pairs_are_those_of_a_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 12))
    found = paired(ours, theirs, np.arange(12))
    test = scipy.stats.ttest_rel(ours, theirs)
    lower = test.confidence_interval(0.90).low
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.lower == pytest.approx(lower, rel=1e-4)
    assert (found.pairs, found.clusters) == (12, 12)
    assert found.upper - found.mean == pytest.approx(found.mean - found.lower)


def test_pairs_of_a_cluster_count_once():
    ours = np.array([0.1, 0.2, 0.4, 0.9])
    one = paired(ours, np.zeros(4), np.arange(4))
    twice = paired(np.repeat(ours, 5), np.zeros(20), np.repeat(np.arange(4), 5))
    assert twice[:3] == pytest.approx(one[:3])
    assert paired(np.repeat(ours, 5), np.zeros(20), np.arange(20)).lower > one.lower


def test_one_cluster_and_missing_scores_show_nothing():
    assert paired([0.5, 0.6], [0.1, 0.1], np.zeros(2, int)).lower == -math.inf
    nothing = paired([math.nan], [0.1], np.zeros(1, int))
    assert math.isnan(nothing.mean)
    assert nothing.lower == -math.inf
    assert nothing.pairs == 0
    assert paired([0.5, math.nan, 0.7], [0.1, 0.1, 0.3], np.arange(3)).pairs == 2


def test_the_bound_holds_as_often_as_it_says():
    """Eight clusters with trunks of their own, no difference at all: below 0 in about one of twenty samples only."""
    rng, wrong, repeats = np.random.default_rng(3), 0, 2_000
    labels = np.repeat(np.arange(8), 8)
    for _ in range(repeats):
        trunk = rng.normal(size=8)[labels]
        wrong += paired(trunk + rng.normal(size=64), np.zeros(64), labels).lower > 0
    assert 0.035 < wrong / repeats < 0.065


# The choice.

ROWS = st.tuples(
    st.integers(1, 50),  # cost
    st.floats(-0.1, 0.1),  # difference
    st.floats(0.0, 0.1),  # half a width
    st.sampled_from([1, 2]),  # rung
    st.sampled_from([0.0, 0.3, 0.5]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS, max_size=15), st.sampled_from([0.0, 0.01, 0.05]))
def test_the_choice_is_the_cheapest_that_passes(table, margin):
    some = [
        compared(Setting(i + 1, budget), float(cost), mean, rung=rung, lower=mean - half, upper=mean + half)
        for i, (cost, mean, half, rung, budget) in enumerate(table)
    ]
    decision = decide(standard(), some, margin, 2)
    allowed = [one for one in some if one.rung == 2 and one.difference.lower > -margin and one.cost < 40]
    if not allowed:
        assert decision.chosen == STANDARD
        assert decision.answer == "keep the standard settings"
        return
    (best,) = [one for one in some if one.setting == decision.chosen]
    assert best in allowed
    assert best.cost == min(one.cost for one in allowed)
    assert decision.answer == ("share" if best.setting.budget else "do not share")
    assert decide(standard(), some, margin, 2) == decision
    shuffled = [some[i] for i in np.random.default_rng(0).permutation(len(some))]
    assert next(o.cost for o in some if o.setting == decide(standard(), shuffled, margin, 2).chosen) == best.cost


def test_the_answer_may_be_not_to_share():
    some = [compared(Setting(20, 0.5), 10.0, -0.06), compared(Setting(12), 12.0, -0.002)]
    decision = decide(standard(), some, 0.01, 2)
    assert decision.answer == "do not share"
    assert decision.sentence.startswith("Do not share: take 12 steps: 12 rows an image instead of 40 (70% less)")
    assert "-0.0020 (95 %: above -0.0070; 50 pairs, 20 independent clusters)" in decision.sentence
    assert decision.caveats == ()


def test_the_answer_may_be_to_share():
    some = [compared(Setting(20, 0.5, 1.0, "calibrated"), 10.0, 0.001), compared(Setting(12), 12.0, -0.002)]
    decision = decide(standard(), some, 0.01, 2)
    assert decision.answer == "share"
    assert decision.sentence.startswith("Take 20 steps, 50% shared, catch-up 1, calibrated metric: 10 rows an image")


def test_too_small_a_sample_is_said():
    some = [compared(Setting(12), 12.0, 0.0, lower=-0.04, clusters=4)]
    decision = decide(standard(), some, 0.01, 2)
    assert decision.answer == "keep the standard settings"
    few, small = decision.caveats
    assert "Independent clusters of prompts: 4, too few" in few
    assert "about 16 times as many images" in small  # (0.04 / 0.01)²
    one = decide(standard(), [compared(Setting(12), 12.0, 0.0, lower=-math.inf, upper=math.inf, clusters=1)], 0.01, 2)
    assert "no bound: 1 independent cluster)" in one.sentence


def test_nothing_cheaper_to_choose_from():
    assert "no cheaper setting was compared" in decide(standard(), [], 0.01, 2).sentence
    dear = compared(Setting(80), 80.0, 0.2)
    assert decide(standard(), [dear], 0.01, 2).chosen == STANDARD
