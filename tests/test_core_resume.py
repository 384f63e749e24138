"""Plans that continue from given states, by the compiled core."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cases import thresholds, trees
from hsd import _core


def runs(plan: _core.Plan, states: np.ndarray) -> np.ndarray:
    """Which segments have to run, from the last to the first."""
    segments = plan.segments
    needed = segments["end_step"] == plan.n_steps
    for row in range(len(segments))[::-1]:
        is_last = segments["end_step"][row] == plan.n_steps
        needed[row] &= is_last or not states[row]
        parent = segments["parent"][row]
        if needed[row] and parent >= 0:
            needed[parent] = True
    return needed


@settings(max_examples=150, deadline=None)
@given(trees(), thresholds(), st.data())
def test_what_is_given_is_left_out(tree, phi, data):
    plan = _core.Plan.compile(tree, phi)
    n = len(plan.segments)
    states = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    resumed = plan.resume(states)
    needed = runs(plan, states)
    fields = ["first_step", "end_step", "leaf_begin", "leaf_end", "representative"]
    np.testing.assert_array_equal(resumed.segments[fields], plan.segments[needed][fields])
    parent = plan.segments["parent"][needed]
    row = np.cumsum(needed) - 1
    expected = np.where((parent >= 0) & needed[parent], row[parent], -1)
    np.testing.assert_array_equal(resumed.segments["parent"], expected)
    assert resumed.node_steps == resumed.counts().sum()
    for order in _core.ORDERS:
        for mixed_steps in (True, False):
            program = resumed.program(3, order, mixed_steps=mixed_steps)
            lanes = program.calls[program.calls["segment"] >= 0]
            assert len(np.unique(lanes[["segment", "step"]])) == len(lanes) == resumed.node_steps
            roots = resumed.segments["parent"][lanes["segment"]] == -1
            np.testing.assert_array_equal(lanes["fresh"], roots & lanes["begins"])
            assert program.n_calls >= resumed.lower_bound(3, mixed_steps=mixed_steps)
            assert resumed.program(3, order, resumed.least_slots(), mixed_steps=mixed_steps).n_slots >= 1


def test_a_resumed_plan_is_not_written_or_pickled():
    tree = _core.Tree.from_merges(np.array([[0, 1]]), np.array([0.5]))
    plan = _core.Plan.compile(tree, np.array([1.0, 0.0]))
    resumed = plan.resume(np.array([True, False, False]))
    assert resumed.segments["first_step"].tolist() == [1, 1]
    assert resumed.segments["parent"].tolist() == [-1, -1]
    assert resumed.active(0).tolist() == [-1, -1]
    assert resumed.describe().count(" 1..2 ") == 3
    with pytest.raises(ValueError, match="cannot be written to a file; use the plan that it was resumed from"):
        resumed.to_bytes(["a", "b"], np.array([0, 1]), "{}")
    for how in (pickle.dumps, copy.copy):
        with pytest.raises(ValueError, match="cannot be pickled"):
            how(resumed)
    prompts, seeds = ["a", "b"], np.array([0, 1])
    assert resumed.fingerprint(prompts, seeds, "") == plan.fingerprint(prompts, seeds, "")
    same = plan.resume(np.zeros(3, bool))
    assert pickle.loads(pickle.dumps(same)).segments.tolist() == plan.segments.tolist()


def test_bad_input_is_named():
    plan = _core.Plan.compile(_core.Tree.from_merges(np.array([[0, 1]]), np.array([0.5])), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="given has length 2, but 3 is needed"):
        plan.resume(np.zeros(2, bool))
    with pytest.raises(TypeError, match="given must be a NumPy bool array"):
        plan.resume(np.zeros(3, np.int64))
