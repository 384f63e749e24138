"""Trees that grow, against SciPy and exhaustive searches in NumPy."""

import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import cdist, pdist

from hsd import _core

KINDS = [(by, metric) for by in _core.LINKAGES for metric in _core.METRICS if (by, metric) != ("centroid", "euclidean")]


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    """Float32 rows around a centre for about ten of them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 10), d))
    return (centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, d))).astype(np.float32)


def one_group(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), np.int64)


def members(tree: _core.Tree) -> list[list[int]]:
    """The leaves below each node."""
    sets = [[leaf] for leaf in range(tree.n_leaves)]
    for a, b in tree.merges:
        sets.append(sorted(sets[a] + sets[b]))
    return sets


def above(tree: _core.Tree) -> np.ndarray:
    """The height of each node's parent, infinite for the root."""
    heights = np.full(2 * tree.n_leaves - 1, np.inf)
    for height, pair in zip(tree.heights, tree.merges, strict=True):
        heights[pair] = height
    return heights


def distance(rows: np.ndarray, by: str, metric: str, u: list[int], c: list[int]) -> float:
    """The linkage's distance of two clusters, by its definition."""
    rows = rows.astype(np.float64)
    if by == "centroid":
        return cdist(rows[u].sum(0, keepdims=True), rows[c].sum(0, keepdims=True), "cosine").item()
    across = cdist(rows[u], rows[c], metric)
    if by == "ward":
        # SciPy's update of ward on these distances comes to the sum of squares of all pairs, by size.
        spread = [(pdist(rows[s], metric) ** 2).sum() / len(s) for s in (u, c, u + c)]
        return np.sqrt(max(0.0, 2 * (spread[2] - spread[0] - spread[1])))
    return across.mean() if by == "average" else across.max()


def assert_old_stays(old: _core.Tree, new: _core.Tree) -> None:
    """The tree restricted to the old leaves is the old one: merges, scores, heights and order."""
    n = old.n_leaves
    name = [*range(n), *[None] * (new.n_leaves - n)]
    merges, scores, heights = [], [], []
    for pair, score, height in zip(new.merges, new.scores, new.heights, strict=True):
        a, b = (name[child] for child in pair)
        if a is None or b is None:
            name.append(b if a is None else a)
            continue
        name.append(n + len(merges))
        merges.append(sorted([a, b]))
        scores.append(score)
        heights.append(height)
    np.testing.assert_array_equal(np.array(merges).reshape(-1, 2), np.sort(old.merges, axis=1))
    np.testing.assert_array_equal(scores, old.scores)
    np.testing.assert_array_equal(heights, old.heights)
    np.testing.assert_array_equal(new.leaf_order[new.leaf_order < n], old.leaf_order)
    assert (new.linkage, new.exact) == (old.linkage, old.exact)


@pytest.mark.parametrize(("by", "metric"), KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_one_leaf_joins_the_node_that_it_meets_first(by, metric, seed):
    rows = clustered(61, 9, seed)
    old = _core.Tree.build(rows[:60], by, metric=metric)
    new = old.insert(rows, one_group(rows), metric=metric)
    assert_old_stays(old, new)
    heights = np.concatenate([np.zeros(60), old.heights])
    sets = members(old)
    keys = np.maximum([distance(rows, by, metric, [60], c) for c in sets], heights)
    keys[keys > above(old)] = np.inf
    merge = np.flatnonzero((new.merges == 60).any(1)).item()
    assert new.scores[merge] == pytest.approx(keys.min(), rel=1e-5)
    host = [leaf for leaf in members(new)[61 + merge] if leaf != 60]
    assert host == sets[keys.argmin()]


@pytest.mark.parametrize(("by", "metric"), KINDS)
def test_new_clusters_are_as_far_as_the_linkage_says(by, metric):
    rows = clustered(150, 12, 5)
    old = _core.Tree.build(rows[:110], by, metric=metric)
    new = old.insert(rows, one_group(rows), metric=metric)
    assert_old_stays(old, new)
    own = _core.Tree.build(rows[110:], by, metric=metric)
    own_heights = dict(zip(map(tuple, members(own)), [*np.zeros(40), *own.heights], strict=True))
    old_heights = dict(zip(map(tuple, members(old)), [*np.zeros(110), *old.heights], strict=True))
    sets, attached = members(new), []
    for pair, score in zip(new.merges, new.scores, strict=True):
        sides = sorted((sets[child] for child in pair), key=min)
        host = [leaf for leaf in sides[0] if leaf < 110]
        if not host or min(sides[1]) < 110:
            continue
        guest = sides[1]
        attached.append(guest)
        key = max(
            distance(rows, by, metric, guest, host),
            old_heights[tuple(host)],
            own_heights[tuple(leaf - 110 for leaf in guest)],
        )
        assert score == pytest.approx(key, rel=1e-5, abs=1e-7)
    assert sorted(leaf for guest in attached for leaf in guest) == list(range(110, 150))
    assert max(map(len, attached)) > 1


@pytest.mark.parametrize("by", ["ward", "average", "complete"])
@pytest.mark.parametrize("metric", _core.METRICS)
@pytest.mark.parametrize("groups", [0, 1])
def test_a_set_far_from_all_is_the_tree_of_scipy(by, metric, groups):
    rng = np.random.default_rng(0)
    centre = 9 * rng.normal(size=8)
    rows = np.concatenate([centre + rng.normal(size=(50, 8)), rng.normal(size=(30, 8)) - centre])
    old = _core.Tree.build(rows[:50], by, metric=metric)
    new = old.insert(rows, np.repeat([0, groups], [50, 30]), metric=metric)
    assert_old_stays(old, new)
    sets = members(new)
    assert sorted(sets[child] for child in new.merges[-1]) == [list(range(50)), list(range(50, 80))]
    assert (new.scores[-1] == np.inf) == bool(groups)
    at = [merge for merge in range(79) if min(sets[80 + merge]) >= 50]
    name = {leaf: leaf - 50 for leaf in range(50, 80)} | {80 + merge: 30 + i for i, merge in enumerate(at)}
    merges = np.array([[name[child] for child in new.merges[merge]] for merge in at])
    own = _core.Tree.from_merges(merges, np.ascontiguousarray(new.scores[at])).to_scipy()
    Z = linkage(pdist(rows[50:], metric), by)
    np.testing.assert_allclose(own[:, 2], Z[:, 2], rtol=1e-5)
    np.testing.assert_allclose(cophenet(own), cophenet(Z), rtol=1e-5)


@pytest.mark.parametrize(("by", "metric"), KINDS)
def test_a_copy_joins_its_original(by, metric):
    rows = clustered(80, 16, 2)
    old = _core.Tree.build(rows, by, metric=metric)
    grown = np.concatenate([rows, rows[[17]]])
    new = old.insert(grown, one_group(grown), metric=metric)
    merge = np.flatnonzero((new.merges == 80).any(1)).item()
    assert new.merges[merge].tolist() == [17, 80]
    assert new.scores[merge] < 1e-7


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 3))
def test_groups_are_kept_apart(seed, kind, n_parts):
    by, metric = kind
    rng = np.random.default_rng(seed)
    n, new = 30, 12
    rows = clustered(n + new, 6, seed)
    part = np.sort(rng.integers(n_parts, size=n))
    leaves = [np.flatnonzero(part == p) for p in np.unique(part)]
    old = _core.Tree.join([_core.Tree.build(rows, by, metric=metric, rows=own) for own in leaves], leaves)
    groups = np.concatenate([part, rng.integers(n_parts + 2, size=new)])
    tree = old.insert(rows, groups, metric=metric)
    assert_old_stays(old, tree)
    labels = tree.cut(np.inf)
    for group in np.unique(groups):
        assert len(np.unique(labels[groups == group])) == 1
    assert len(np.unique(labels)) == len(np.unique(groups))


@pytest.mark.parametrize(("by", "metric"), KINDS)
def test_it_is_the_same_for_any_threads_and_layout(by, metric):
    rows = clustered(400, 20, 7)
    old = _core.Tree.build(rows[:330], by, metric=metric)
    one, two = (old.insert(rows, one_group(rows), metric=metric, threads=threads) for threads in (1, 2))
    strided = np.asfortranarray(np.repeat(rows, 2, axis=0))[::2]
    for other in (two, old.insert(strided, one_group(rows), metric=metric), pickle.loads(pickle.dumps(one))):
        np.testing.assert_array_equal(one.merges, other.merges)
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("metric", _core.METRICS)
def test_half_precision_is_read_as_it_is(metric):
    rows = clustered(90, 10, 3)
    half = rows.astype(np.float16)
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    brain = (bits.astype(np.uint32) << 16).view(np.float32)
    for given_rows, same, options in [(half, half.astype(np.float64), {}), (bits, brain, {"bfloat16": True})]:
        old = _core.Tree.build(same[:70], metric=metric)
        one = old.insert(given_rows, one_group(rows), metric=metric, **options)
        other = old.insert(same, one_group(rows), metric=metric)
        np.testing.assert_array_equal(one.merges, other.merges)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_an_approximate_tree_stays_approximate():
    rows = clustered(900, 16, 4)
    old = _core.Tree.build(rows[:800], exact=False, memory=400_000)
    new = old.insert(rows, one_group(rows))
    assert not new.exact
    assert_old_stays(old, new)


def test_progress_rises_to_one_and_stops_the_work():
    rows = clustered(500, 16, 0)
    old = _core.Tree.build(rows[:400])
    seen = []
    old.insert(rows, one_group(rows), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def stop(_fraction):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        old.insert(rows, one_group(rows), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        old.insert(rows, one_group(rows), progress=lambda _: signal.raise_signal(signal.SIGINT))


def test_bad_input_is_named():
    rows = clustered(12, 5, 1)
    old = _core.Tree.build(rows[:10])
    groups = one_group(rows)
    with pytest.raises(ValueError, match="there are 10 rows of embeddings and 10 leaves"):
        old.insert(rows[:10], groups[:10])
    with pytest.raises(ValueError, match="there are 9 rows of embeddings and 10 leaves"):
        old.insert(rows[:9], groups[:9])
    with pytest.raises(ValueError, match="groups has length 11, but 12 is needed"):
        old.insert(rows, groups[:11])
    with pytest.raises(TypeError, match="groups must be a NumPy int64 array"):
        old.insert(rows, groups.astype(np.int32))
    with pytest.raises(TypeError, match="embeddings must be a NumPy float16, float32 or float64 array"):
        old.insert(rows.astype(np.int64), groups)
    with pytest.raises(ValueError, match="unknown metric"):
        old.insert(rows, groups, metric="manhattan")
    with pytest.raises(ValueError, match="threads"):
        old.insert(rows, groups, threads=0)
    bad = rows.copy()
    bad[11, 3] = np.nan
    with pytest.raises(ValueError, match="embedding 11 holds NaN at column 3"):
        old.insert(bad, groups)
    mixed = _core.Tree.from_merges(old.merges, old.scores, "mixed")
    with pytest.raises(ValueError, match='the tree\'s linkage is "mixed"; only trees of "ward"'):
        mixed.insert(rows, groups)
    centroid = _core.Tree.from_merges(old.merges, old.scores, "centroid")
    with pytest.raises(ValueError, match="no Euclidean form"):
        centroid.insert(rows, groups, metric="euclidean")
    two = np.array([0, 1, *[0] * 8, 0, 1])
    with pytest.raises(ValueError, match="are in one cluster, but in two groups that both grow"):
        old.insert(rows, two)
