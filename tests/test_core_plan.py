"""Plans: invariants checked again in plain Python, pruning, sharding, and files."""

import contextlib
import hashlib
import itertools
import json
import pickle

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from core_cases import assert_snapshot, chain, plans, thresholds, tree_of, trees
from hsd import _core

METADATA = '{"encoder": "any", "linkage": "ward", "noise": "shared", "steps": 3, "tau": 1}'
"""The least that a reader needs."""


def check_plan(plan: _core.Plan) -> None:
    """The invariants, prompt by prompt."""
    rows = plan.segments
    order = plan.tree.leaf_order
    kept = set(plan.kept.tolist())
    members = [order[row["leaf_begin"] : row["leaf_end"]] for row in rows]
    for row, (segment, leaves) in enumerate(zip(rows, members, strict=True)):
        assert 0 <= segment["first_step"] < segment["end_step"] <= plan.n_steps
        assert segment["representative"] == leaves.min() == leaves[0]
        assert kept & set(leaves.tolist())
        parent = segment["parent"]
        if parent == -1:
            assert segment["first_step"] == 0
        else:
            assert parent < row
            assert rows[parent]["end_step"] == segment["first_step"]
            assert set(leaves.tolist()) < set(members[parent].tolist())
        if segment["end_step"] == plan.n_steps:
            assert len(leaves) == 1
    for prompt in range(plan.n_prompts):
        path = [row for row, leaves in enumerate(members) if prompt in leaves] if prompt in kept else []
        steps = [step for row in path for step in range(rows[row]["first_step"], rows[row]["end_step"])]
        assert steps == (list(range(plan.n_steps)) if prompt in kept else [])
        assert all(rows[below]["parent"] == above for above, below in itertools.pairwise(path))
    keys = [(segment["first_step"], segment["leaf_begin"]) for segment in rows]
    assert keys == sorted(set(keys))


@given(plans())
def test_plans_are_sound(plan):
    check_plan(plan)
    steps = plan.segments["end_step"] - plan.segments["first_step"]
    assert plan.node_steps == steps.sum() == plan.counts().sum()
    for step in range(plan.n_steps):
        active = plan.active(step)
        assert (active >= 0).sum() == len(plan.kept)
        assert len(set(active[plan.kept].tolist())) == plan.counts()[step]


@given(trees(), thresholds())
def test_active_segments_are_the_cut(tree, phi):
    plan = _core.Plan.compile(tree, phi)
    for step, threshold in enumerate(phi):
        pairs = set(zip(plan.active(step).tolist(), tree.cut(threshold).tolist(), strict=True))
        assert len(pairs) == tree.counts(phi)[step] == plan.counts()[step]


@given(plans(), st.data())
def test_pruning_keeps_full_clusters(plan, data):
    keep = sorted(data.draw(st.sets(st.sampled_from(plan.kept.tolist()), min_size=1)))
    pruned = plan.prune(np.array(data.draw(st.permutations(keep))))
    check_plan(pruned)
    assert pruned.kept.tolist() == keep
    for step in range(plan.n_steps):
        for before, after in zip(plan.active(step)[keep], pruned.active(step)[keep], strict=True):
            assert plan.segments[before].tolist()[1:] == pruned.segments[after].tolist()[1:]
    dropped = set(range(plan.n_prompts)) - set(keep)
    if dropped:
        prompt = min(dropped)
        with pytest.raises(ValueError, match=f"prompt {prompt} is not kept"):
            pruned.prune(np.array([prompt]))


def shared_steps(plan: _core.Plan, left: int, right: int) -> int:
    """Steps at which two prompts are in one cluster."""
    return sum(active[left] == active[right] for active in map(plan.active, range(plan.n_steps)))


@given(plans(), st.integers(1, 9), st.sampled_from([0.0, 0.02, 0.5]))
def test_shards_make_every_prompt_once(plan, n, slack):
    shards = plan.shard(n, slack)
    assert len(shards) == min(n, len(plan.kept))
    assert sorted(np.concatenate([shard.kept for shard in shards]).tolist()) == plan.kept.tolist()
    place = np.argsort(plan.tree.leaf_order)
    ends = [(place[shard.kept].min(), place[shard.kept].max()) for shard in shards]
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ends))
    # A cut costs the steps that its two neighbours share, and nothing else.
    order = plan.tree.leaf_order
    cuts = [shared_steps(plan, order[left[1]], order[right[0]]) for left, right in itertools.pairwise(ends)]
    assert sum(shard.node_steps for shard in shards) == plan.node_steps + sum(cuts)
    # Even, then cheap.
    even = plan.shard(n, 0.0)
    least = max(shard.node_steps for shard in even)
    assert max(shard.node_steps for shard in shards) <= least * (1 + slack)
    assert sum(shard.node_steps for shard in shards) <= sum(shard.node_steps for shard in even)


@given(plans(), st.integers(1, 5), st.none() | st.integers(1, 5))
def test_units_make_every_prompt_once(plan, workers, per_worker):
    units = plan.units(workers, per_worker)
    assert sorted(np.concatenate([unit.kept for unit in units]).tolist()) == plan.kept.tolist()
    costs = [unit.node_steps for unit in units]
    assert costs == sorted(costs, reverse=True)
    assert len(units) <= workers * (per_worker or 8)
    for unit in units:
        check_plan(unit)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "no prompts to keep"),
        ([0, 5], "prompt 5 is out of range; there are 5"),
        ([-1], "prompt -1 is out of range"),
        ([3, 3], "prompt 3 is given twice"),
    ],
)
def test_bad_prunes_are_refused(keep, message):
    plan = _core.Plan.compile(chain(5), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=message):
        plan.prune(np.array(keep, np.int64))


def test_bad_numbers_are_refused():
    plan = _core.Plan.compile(chain(5), np.array([1.0, 0.0]))
    for step in (-1, 2):
        with pytest.raises(IndexError, match=f"step {step} is out of range; steps run from 0 to 1"):
            plan.active(step)
    with pytest.raises(ValueError, match="number of shards is 0"):
        plan.shard(0)
    for slack in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="slack is .* must be a finite number >= 0"):
            plan.shard(2, slack)
    with pytest.raises(ValueError, match="number of workers is 0"):
        plan.units(0)
    with pytest.raises(ValueError, match="per_worker is -1"):
        plan.units(2, -1)
    for batch_size in (0, -4):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
            plan.lower_bound(batch_size)
    with pytest.raises(ValueError, match="read-only"):
        plan.segments["parent"] = 0


@given(plans(20), st.text(max_size=5), st.integers(-(2**63), 2**63 - 1))
def test_files_hold_the_whole_plan(plan, word, seed):
    prompts = [f"{word}{i}" for i in range(plan.n_prompts)]
    seeds = np.full(plan.n_prompts, seed)
    data = plan.to_bytes(prompts, seeds, METADATA)
    again, texts, numbers, metadata = _core.Plan.from_bytes(data)
    assert (texts, numbers.tolist(), metadata) == (prompts, seeds.tolist(), METADATA)
    assert again.segments.tolist() == plan.segments.tolist()
    assert again.kept.tolist() == plan.kept.tolist()
    assert again.phi.tolist() == plan.phi.tolist()
    assert again.tree.merges.tolist() == plan.tree.merges.tolist()
    assert again.to_bytes(texts, numbers, metadata) == data


def test_files_are_plain_safetensors():
    plan = _core.Plan.compile(chain(5), np.array([1.0, 0.5, 0.0]))
    data = plan.to_bytes(["é", "", "b", "c", "d"], np.arange(5), METADATA)
    arrays = safetensors.numpy.load(data)
    assert arrays["segments"].tolist() == [list(row) for row in plan.segments.tolist()]
    assert arrays["segments"].dtype == np.int32
    assert arrays["phi"].tolist() == [1.0, 0.5, 0.0]
    assert arrays["seeds"].tolist() == list(range(5))
    assert arrays["prompt_bytes"].tobytes().decode() == "ébcd"
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["hsd"])
    assert header["format"] == 2
    assert header["exact"] is True
    assert header["linkage"] == "ward"
    assert len(header["sha256"]) == len(header["prompts_sha256"]) == 64


@given(plans(8), st.data())
def test_damaged_files_are_refused_or_harmless(plan, data):
    good = plan.to_bytes(["p"] * plan.n_prompts, np.arange(plan.n_prompts), METADATA)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(bad[: data.draw(st.integers(0, len(bad)))]) if data.draw(st.booleans()) else bytes(bad)
    with contextlib.suppress(ValueError):
        again, texts, seeds, metadata = _core.Plan.from_bytes(bad)
        assert again.to_bytes(texts, seeds, metadata) == good


def forged(change) -> bytes:
    """A file with changed arrays and a digest that fits them: only the checks behind the digest can tell."""
    plan = _core.Plan.compile(chain(4), np.array([1.0, 0.5, 0.0]))
    data = plan.to_bytes(["a", "b", "c", "d"], np.arange(4), METADATA)
    arrays = safetensors.numpy.load(data)
    change(arrays)
    digest = hashlib.sha256()
    parts = [
        b"ward",
        b"\x01",
        METADATA.encode(),
        *(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays)),
    ]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["hsd"])
    header["sha256"] = digest.hexdigest()
    return safetensors.numpy.save(arrays, {"hsd": json.dumps(header)})


def set_entry(name, index, value):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


def set_array(name, value):
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("segments", (0, 2), 2), "segments are not those"),
        (set_entry("merges", (0, 0), 9), "merge 0 joins node 9"),
        (set_entry("scores", 1, np.nan), "merge 1 has score NaN"),
        (set_entry("phi", 2, 0.1), "last step 2 is 0.1"),
        (set_entry("kept", 0, 2), "do not ascend"),
        (set_entry("kept", 3, 7), "kept prompts are not prompts"),
        (set_array("kept", np.array([1, 7])), "prompt 7 is out of range"),
        (set_array("kept", np.zeros(0, np.int64)), "no prompts to keep"),
        (set_entry("prompt_ends", 1, 9), "prompt 1 ends at byte 9 of 4"),
        (set_entry("prompt_ends", 1, -1), "prompt 1 ends at byte -1"),
        (set_entry("prompt_ends", 3, 3), "prompts end at byte 3 of 4"),
        (set_entry("prompt_bytes", 0, 255), "prompt 0: invalid utf-8"),
        (set_entry("prompt_bytes", 0, 98), "digest of its prompts"),
        (set_entry("seeds", 0, 5), "digest of its prompts"),
        (set_array("seeds", np.arange(5)), "fits 4 prompts, but there are 5 seeds"),
        (set_array("phi", np.zeros((1, 1))), r"phi has shape \[1, 1\]"),
        (set_array("merges", np.zeros((2, 3), np.int64)), r"merges has shape \[2, 3\]"),
        (set_array("scores", np.zeros(3, np.float32)), "scores has type F32"),
    ],
)
def test_forged_files_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _core.Plan.from_bytes(forged(change))
    _core.Plan.from_bytes(forged(lambda arrays: None))


def test_what_does_not_fit_is_not_written():
    plan = _core.Plan.compile(chain(3), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="prompts has length 2, but 3 is needed"):
        plan.to_bytes(["a", "b"], np.arange(3), "{}")
    with pytest.raises(ValueError, match="seeds has length 4, but 3 is needed"):
        plan.to_bytes(["a", "b", "c"], np.arange(4), "{}")
    with pytest.raises(ValueError, match="not JSON"):
        plan.to_bytes(["a", "b", "c"], np.arange(3), "tau=1")
    with pytest.raises(ValueError, match="sound plan file"):
        _core.Plan.from_bytes(b"")


@given(plans(20))
def test_plans_pickle(plan):
    again = pickle.loads(pickle.dumps(plan))
    assert again.segments.tolist() == plan.segments.tolist()
    assert again.kept.tolist() == plan.kept.tolist()
    assert repr(again) == repr(plan)


def test_an_approximate_tree_stays_one():
    exact = chain(3)
    tree = _core.Tree.from_merges(exact.merges, exact.scores, exact=False)
    plan = _core.Plan.compile(tree, np.array([1.0, 0.0]))
    again, *_ = _core.Plan.from_bytes(plan.to_bytes(["a", "b", "c"], np.arange(3), METADATA))
    for other in (tree, plan.tree, again.tree, pickle.loads(pickle.dumps(tree)), pickle.loads(pickle.dumps(plan)).tree):
        assert not other.exact
    assert exact.exact
    assert pickle.loads(pickle.dumps(exact)).exact


def test_a_chain_of_ten_thousand():
    tree = chain(10_000)
    phi = _core.schedule_shape("linear", 40)
    plan = _core.Plan.compile(tree, phi)
    assert plan.counts().tolist() == tree.counts(phi).tolist()
    assert plan.prune(np.array([0, 9_999])).node_steps <= 80


EXAMPLES = {
    "one_prompt": (tree_of(1, "chain", "zero", 0), 4),
    "duplicates": (tree_of(4, "balanced", "zero", 0), 4),
    "chain": (chain(6), 6),
    "two_far_clusters": (
        _core.Tree.from_merges(
            np.array([[0, 2], [3, 5], [1, 6], [4, 7], [8, 9]]), np.array([0.1, 0.2, 0.3, 0.35, 2.0])
        ),
        6,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_descriptions_are_as_they_were(name):
    tree, steps = EXAMPLES[name]
    plan = _core.Plan.compile(tree, _core.schedule_shape("linear", steps))
    text = plan.describe()
    for order in ("depth", "breadth"):
        text += "\n" + plan.program(2, order).describe()
    assert_snapshot(name, text)


def test_long_descriptions_are_cut():
    plan = _core.Plan.compile(chain(50), _core.schedule_shape("linear", 10))
    text = plan.describe(max_rows=3)
    assert len(text.splitlines()) == 6
    assert text.endswith(f"... {len(plan.segments) - 3} more\n")
    assert plan.program(4).describe(max_rows=2).count("\n") == 5
