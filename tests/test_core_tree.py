"""Trees against SciPy, the paper's formula written out, and bad input."""

import ast
import inspect
import json
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.cluster.hierarchy import cophenet, fcluster, linkage
from scipy.spatial.distance import pdist

from hsd import _core

DATA = Path(__file__).parents[2] / "shared/data"
SETS = ["animals", "genai_bench", "prompt_templates", "style_variations"]
REDUCIBLE = [name for name in _core.LINKAGES if name != "centroid"]  # its scores may fall on the way up
LINKAGES = _core.LINKAGES


def real(name: str) -> np.ndarray:
    """Sentence embeddings of a real prompt set, (N, 384) float32."""
    path = DATA / "embeddings" / f"{name}.minilm384.npy"
    if not path.exists():
        pytest.skip(f"NO REAL EMBEDDINGS: {path} does not exist, so only random sets are compared with SciPy")
    return np.load(path)


def clustered(n: int, d: int, seed: int, dtype=np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 10), d))
    return (centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, d))).astype(dtype)


def assert_same_tree(tree: _core.Tree, Z: np.ndarray) -> None:
    """Same heights, and the same height at which any two leaves meet."""
    ours = tree.to_scipy()
    np.testing.assert_allclose(ours[:, 2], Z[:, 2], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(cophenet(ours), cophenet(Z), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("method", REDUCIBLE)
@pytest.mark.parametrize("name", SETS)
def test_real_sets_cluster_as_in_scipy(name, method):
    E = real(name)
    tree = _core.Tree.build(E, method)
    Z = linkage(pdist(E.astype(np.float64), "cosine"), method)
    assert_same_tree(tree, Z)
    np.testing.assert_array_equal(tree.scores, tree.heights)


@pytest.mark.parametrize("method", REDUCIBLE)
@pytest.mark.parametrize(
    ("n", "d", "dtype"), [(2, 3, "f8"), (3, 2, "f4"), (150, 7, "f4"), (300, 40, "f8"), (700, 5, "f8")]
)
def test_random_sets_cluster_as_in_scipy(n, d, dtype, method):
    E = clustered(n, d, seed=n, dtype=dtype)
    tree = _core.Tree.build(E, method)
    Z = linkage(pdist(E.astype(np.float64), "cosine"), method)
    assert_same_tree(tree, Z)
    np.testing.assert_array_equal(tree.merges, Z[:, :2])


@pytest.mark.parametrize("method", REDUCIBLE)
def test_near_duplicates_cluster_as_in_scipy(method):
    rng = np.random.default_rng(3)
    base = rng.normal(size=(20, 64))
    E = np.concatenate([base + scale * rng.normal(size=base.shape) for scale in (0, 1e-2, 1e-3, 1e-4)])
    assert_same_tree(_core.Tree.build(E, method), linkage(pdist(E, "cosine"), method))


@pytest.mark.parametrize("name", SETS)
def test_active_clusters_are_the_recorded_ones(name):
    expected = json.loads((DATA / "expected/ward_minilm.json").read_text()) if DATA.exists() else None
    tree = _core.Tree.build(real(name))
    assert tree.scores[-1] == pytest.approx(expected["datasets"][name]["root_score"], rel=1e-5)
    for tau in (0.5, 1.0, 1.5):
        record = expected["datasets"][name][f"tau={tau}"]
        phi = tau * _core.schedule_shape("linear", expected["steps"])
        assert tree.counts(phi).tolist() == record["active"]
        assert tree.node_steps(phi) == record["node_steps"]
        plan = _core.Plan.compile(tree, phi)
        assert plan.counts().tolist() == record["active"]
        assert plan.node_steps == record["node_steps"]


def naive_centroid(E: np.ndarray) -> list[tuple[int, int, float]]:
    """The paper's Eqs. 3-5 directly: join the two clusters whose means are nearest by cosine."""
    sums = dict(enumerate(E))
    merges = []
    for merge in range(len(E) - 1):
        ids = list(sums)
        S = np.array([sums[i] for i in ids])
        S /= np.linalg.norm(S, axis=1, keepdims=True)
        distance = 1 - S @ S.T
        distance[np.tril_indices(len(ids))] = np.inf
        a, b = np.unravel_index(distance.argmin(), distance.shape)
        merges.append((ids[a], ids[b], distance[a, b]))
        sums[len(E) + merge] = sums.pop(ids[a]) + sums.pop(ids[b])
    return merges


@pytest.mark.parametrize(("n", "d"), [(2, 3), (3, 3), (40, 5), (160, 30)])
def test_centroid_is_the_papers_formula(n, d):
    # Rows of different lengths: the mean is of the embeddings as given.
    E = clustered(n, d, seed=n) * np.random.default_rng(n).uniform(0.3, 3, size=(n, 1))
    tree = _core.Tree.build(E, "centroid")
    expected = naive_centroid(E)
    assert tree.merges.tolist() == [[a, b] for a, b, _ in expected]
    np.testing.assert_allclose(tree.scores, [score for *_, score in expected], rtol=1e-5)


def test_centroid_scores_fall_but_heights_do_not():
    tree = _core.Tree.build(real("style_variations"), "centroid")
    assert (np.diff(tree.scores) < 0).any()
    children = np.concatenate([np.zeros(tree.n_leaves), tree.heights])[tree.merges]
    np.testing.assert_array_equal(tree.heights, np.maximum(tree.scores, children.max(axis=1)))


@pytest.mark.parametrize("method", REDUCIBLE)
def test_cut_is_fcluster(method):
    E = clustered(120, 6, seed=1)
    tree = _core.Tree.build(E, method)
    Z = tree.to_scipy()
    for height in [0.0, *np.quantile(Z[:, 2], [0.1, 0.5, 0.9]), 1e9]:
        labels = tree.cut(height)
        # fcluster keeps a node whose height is exactly the threshold; here such a node is split.
        theirs = fcluster(Z, np.nextafter(height, -1), "distance") if height else np.arange(120)
        pairs = set(zip(labels.tolist(), theirs.tolist(), strict=True))
        assert len(pairs) == len(set(labels.tolist())) == len(set(theirs.tolist()))
        assert list(dict.fromkeys(labels[tree.leaf_order].tolist())) == list(range(labels.max() + 1))


@given(
    tau=st.floats(0, 3),
    steps=st.integers(1, 60),
    name=st.sampled_from(_core.SCHEDULES),
    seed=st.integers(0, 5),
)
def test_node_steps_have_a_closed_form(tau, steps, name, seed):
    tree = _core.Tree.build(clustered(50, 4, seed))
    phi = tau * _core.schedule_shape(name, steps)
    counts = 1 + (tree.heights[None, :] >= phi[:, None]).sum(axis=1)
    assert tree.counts(phi).tolist() == counts.tolist()
    assert tree.node_steps(phi) == counts.sum() == _core.Plan.compile(tree, phi).node_steps


@given(target=st.integers(0, 2100), seed=st.integers(0, 3))
def test_tau_is_the_smallest_that_meets_a_budget(target, seed):
    tree = _core.Tree.build(clustered(50, 4, seed))
    shape = _core.schedule_shape("linear", 40)
    least = 39 * 1 + 50
    if target < least:
        with pytest.raises(ValueError, match=f"{target} node-steps cannot be reached.*at least {least}"):
            tree.tau_for_node_steps(shape, target)
        return
    tau = tree.tau_for_node_steps(shape, target)
    assert tree.node_steps(tau * shape) <= target
    assert tau == 0 or tree.node_steps(np.nextafter(tau, 0) * shape) > target


def test_schedules():
    x = np.arange(40) / 39
    np.testing.assert_allclose(_core.schedule_shape("linear", 40), 1 - x, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(_core.schedule_shape("paper-eq7", 40), 1 - np.arange(1, 41) / 40, atol=1e-15)
    np.testing.assert_allclose(_core.schedule_shape("cosine", 40), np.cos(x * np.pi / 2), atol=1e-15)
    np.testing.assert_allclose(_core.schedule_shape("log", 40), np.log1p((np.e - 1) * (1 - x)), rtol=1e-12)
    np.testing.assert_allclose(_core.schedule_shape("quadratic", 40), (1 - x) ** 2, atol=1e-15)
    for name in _core.SCHEDULES:
        assert _core.schedule_shape(name, 1).tolist() == [0.0]
        assert _core.schedule_shape(name, 40)[-1] == 0.0
    with pytest.raises(ValueError, match='"step".*linear'):
        _core.schedule_shape("step", 4)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            _core.schedule_shape("linear", steps)


@given(
    E=hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-3, 3).map(float)),
    method=st.sampled_from(LINKAGES),
)
@settings(deadline=None)
def test_duplicates_opposites_and_ties(E, method):
    E[(E == 0).all(axis=1)] = 1
    tree = _core.Tree.build(E, method)
    assert (tree.heights >= 0).all()
    assert (tree.heights >= tree.scores).all()
    assert sorted(tree.leaf_order.tolist()) == list(range(len(E)))
    # Equal rows meet at exactly 0.
    _, group = np.unique(E, axis=0, return_inverse=True)
    assert (tree.heights == 0).sum() >= len(E) - group.max() - 1
    again = _core.Tree.build(E.astype(np.float64), method)
    np.testing.assert_array_equal(again.merges, tree.merges)
    np.testing.assert_array_equal(again.scores, tree.scores)


@pytest.mark.parametrize("method", LINKAGES)
def test_one_two_and_equal_prompts(method):
    one = _core.Tree.build(np.ones((1, 4)), method)
    assert one.n_leaves == 1
    assert one.merges.shape == (0, 2)
    assert one.to_scipy().shape == (0, 4)
    assert one.cut(0.5).tolist() == [0]
    equal = _core.Tree.build(np.full((6, 3), 0.1, np.float32), method)
    assert equal.heights.tolist() == [0] * 5
    assert equal.counts(np.array([1.0, 0.0])).tolist() == [1, 6]
    opposite = _core.Tree.build(np.array([[1.0], [-1.0]]), method)
    assert opposite.scores.tolist() == [2.0]


def test_join_keeps_trees_apart():
    left = _core.Tree.build(clustered(5, 3, 0))
    right = _core.Tree.build(clustered(4, 3, 1))
    joined = _core.Tree.join([left, right], [np.array([8, 1, 2, 3, 4]), np.array([0, 5, 6, 7])])
    assert joined.n_leaves == 9
    assert np.isinf(joined.heights[-1])
    assert joined.counts(np.array([1e9, 0.0])).tolist() == [2, 9]
    labels = joined.cut(1e9)
    assert len(set(labels[[8, 1, 2, 3, 4]])) == len(set(labels[[0, 5, 6, 7]])) == 1
    with pytest.raises(ValueError, match="leaf 9 is out of range"):
        _core.Tree.join([left, right], [np.array([9, 1, 2, 3, 4]), np.array([0, 5, 6, 7])])
    with pytest.raises(ValueError, match="leaf 1 is given twice"):
        _core.Tree.join([left, right], [np.array([8, 1, 2, 3, 4]), np.array([0, 1, 6, 7])])


def test_trees_pickle_and_print():
    tree = _core.Tree.build(clustered(20, 3, 0), "average")
    again = pickle.loads(pickle.dumps(tree))
    np.testing.assert_array_equal(again.merges, tree.merges)
    np.testing.assert_array_equal(again.scores, tree.scores)
    assert again.linkage == "average"
    assert repr(tree).startswith("Tree(n_leaves=20, linkage='average'")
    with pytest.raises(AttributeError):
        tree.linkage = "ward"


GOOD = np.ones((3, 4), np.float32)


def broken(row: int, column: int, value: float, dtype=np.float32) -> np.ndarray:
    E = np.ones((3, 4), dtype)
    E[row, column] = value
    return E


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((0, 4)),), ValueError, r"shape \(0, 4\)"),
        ((np.ones((4, 0)),), ValueError, r"shape \(4, 0\)"),
        ((broken(2, 1, np.nan),), ValueError, "embedding 2 holds NaN at column 1"),
        ((broken(1, 3, -np.inf, np.float64),), ValueError, "embedding 1 holds -inf at column 3"),
        ((np.array([[1.0, 2], [0, 0]]),), ValueError, "embedding 1 is all zeros"),
        ((GOOD, "no-such"), ValueError, '"no-such".*ward.*centroid'),
        ((np.ones((3, 4), ">f4"),), TypeError, r"not >f4 of shape \(3, 4\)"),
        ((np.frombuffer(bytes(97), np.uint8)[1:].view(np.float64).reshape(3, 4),), TypeError, "aligned"),
        ((np.ones((3, 4), np.int64),), TypeError, r"not int64 of shape \(3, 4\)"),
        ((np.ones(4),), TypeError, r"not float64 of shape \(4,\)"),
        (([[1.0, 2.0]],), TypeError, "not list"),
    ],
)
def test_bad_embeddings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        _core.Tree.build(*arguments)
    if len(arguments) == 1:
        with pytest.raises(error, match=message):
            _core.check_embeddings(*arguments)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_checking_finds_the_first_bad_row(dtype):
    E = np.ones((5000, 6), dtype)
    assert _core.check_embeddings(E) is None
    assert _core.check_embeddings(E[::-2, ::-1], threads=3) is None
    E[4321, 2] = np.nan
    E[4999] = 0
    with pytest.raises(ValueError, match="embedding 4321 holds NaN at column 2; every entry must be finite"):
        _core.check_embeddings(E)
    with pytest.raises(ValueError, match="embedding 78 holds NaN at column 3"):
        _core.check_embeddings(E[4399::-1, ::-1], threads=2)
    with pytest.raises(ValueError, match="threads is 0"):
        _core.check_embeddings(E, threads=0)


def test_checking_reads_bfloat16():
    bits = np.full((4, 2), 0x3F80, np.uint16)  # 1.0
    assert _core.check_embeddings(bits, bfloat16=True) is None
    bits[3] = 0
    with pytest.raises(ValueError, match="embedding 3 is all zeros"):
        _core.check_embeddings(bits, bfloat16=True)
    bits[1, 1] = 0xFF80
    with pytest.raises(ValueError, match="embedding 1 holds -inf at column 1"):
        _core.check_embeddings(bits, bfloat16=True)
    with pytest.raises(TypeError, match="not uint16"):
        _core.check_embeddings(bits)
    with pytest.raises(TypeError, match="for bfloat16=True, not float32"):
        _core.check_embeddings(GOOD, bfloat16=True)


@pytest.mark.parametrize(
    ("merges", "scores", "message"),
    [
        ([[0, 1], [2, 2]], [0.1, 0.2], "merge 1 joins node 2, which has been joined before"),
        ([[0, 1], [2, 4]], [0.1, 0.2], "merge 1 joins node 4, which does not exist yet"),
        ([[0, -1], [2, 3]], [0.1, 0.2], "merge 0 joins node -1, which is negative"),
        ([[0, 1], [2, 3]], [0.1, -0.2], "merge 1 has score -0.2"),
        ([[0, 1], [2, 3]], [np.nan, 0.2], "merge 0 has score NaN"),
        ([[0, 1], [2, 3]], [0.1], "scores has length 1, but 2 is needed"),
        ([[0, 1, 2]], [0.1], "merges has 3 columns; two are needed"),
    ],
)
def test_bad_merges_are_refused(merges, scores, message):
    with pytest.raises(ValueError, match=message):
        _core.Tree.from_merges(np.array(merges), np.array(scores))


def test_sets_beyond_memory_are_refused():
    # The distances of that many prompts take more than any address space has.
    with pytest.raises(MemoryError, match=r"distances between all prompts need 576000\.0 GB"):
        _core.Tree.build(np.ones((12_000_000, 1), np.float32), exact=True)
    with pytest.raises(MemoryError, match=r"distances between all prompts need 20\.0 GB"):
        _core.Tree.build(np.ones((100_000, 1), np.float32), exact=True, memory=10**10)


def test_wrong_types_are_named():
    tree = _core.Tree.build(GOOD)
    with pytest.raises(TypeError, match=r"phi must be a NumPy float64 array of shape \(n,\), not list"):
        tree.counts([1.0, 0.0])
    with pytest.raises(
        TypeError, match=r"shape must be a NumPy float64 array of shape \(n,\), not float32 of shape \(2,\)"
    ):
        tree.tau_for_node_steps(np.zeros(2, np.float32), 6)
    with pytest.raises(TypeError, match=r"merges must be a NumPy int64 array of shape \(n, 2\), not float64"):
        _core.Tree.from_merges(np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(TypeError, match="leaves must be a NumPy int64 array"):
        _core.Tree.join([tree], [[0, 1, 2]])
    # Nothing has to be contiguous.
    assert tree.counts(np.array([1.0, 9.0, 0.0])[::2]).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        ([], "0 steps"),
        ([1.0, 0.5], "last step 1 is 0.5"),
        ([0.5, 1.0, 0.0], "rises from 0.5 to 1 at step 1"),
        ([np.inf, 0.0], "step 0 is inf"),
        ([1.0, np.nan, 0.0], "step 1 is NaN"),
        ([1.0, -1.0], "step 1 is -1"),
    ],
)
def test_bad_thresholds_are_refused(phi, message):
    tree = _core.Tree.build(GOOD)
    for use in (_core.check_thresholds, tree.counts, tree.node_steps, lambda phi: _core.Plan.compile(tree, phi)):
        with pytest.raises(ValueError, match=message):
            use(np.array(phi, np.float64))
    with pytest.raises(ValueError, match=message):
        tree.tau_for_node_steps(np.array(phi, np.float64), 1)


@pytest.mark.parametrize("height", [-0.5, np.nan])
def test_bad_heights_are_refused(height):
    with pytest.raises(ValueError, match="height is"):
        _core.Tree.build(GOOD).cut(height)


def test_progress_rises_to_one():
    seen = []
    _core.Tree.build(clustered(400, 16, 0), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in seen)


@pytest.mark.parametrize("n", [2, 600])
def test_what_progress_raises_comes_out(n):
    class Stop(Exception):
        pass

    def stop(fraction):
        raise Stop(fraction)

    with pytest.raises(Stop):
        _core.Tree.build(clustered(n, 8, 0), progress=stop)


def test_the_interpreter_lock_is_released():
    """Another thread runs while a tree is built: it is seen to run between two reports of progress.

    The interpreter never takes the lock from a thread here, so it is the build that releases it. Whether the other
    thread then gets a core depends on the machine, so trees are built until it does.
    """
    ticks = 0
    done = threading.Event()

    def tick():
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0)

    thread = threading.Thread(target=tick)
    seen = [0]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    try:
        thread.start()
        while seen[-1] == seen[0]:
            seen.clear()
            _core.Tree.build(clustered(2000, 64, 0), progress=lambda _: seen.append(ticks))
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_ctrl_c_stops_the_work():
    def interrupt(fraction):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        _core.Tree.build(clustered(300, 8, 0), progress=interrupt)


def test_ctrl_c_stops_a_check():
    # Two million overlapping rows, seconds of work. The last one is bad, which an uninterrupted check would report.
    numbers = np.ones(2_001_000)
    numbers[-1] = np.nan
    E = np.lib.stride_tricks.sliding_window_view(numbers, 1000)
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _core.check_embeddings(E, threads=1)


def test_names_are_those_that_are_taken():
    assert _core.LINKAGES == ("ward", "centroid", "average", "complete")
    assert _core.ORDERS == ("depth", "breadth")
    assert _core.SCHEDULES == ("linear", "paper-eq7", "cosine", "log", "quadratic")
    for name in _core.LINKAGES:
        assert _core.Tree.build(GOOD, name).linkage == name
    plan = _core.Plan.compile(_core.Tree.build(GOOD), _core.schedule_shape(_core.SCHEDULES[0], 3))
    for name in _core.ORDERS:
        assert plan.program(2, name).order == name
    for taken, use in [
        (_core.LINKAGES, lambda: _core.Tree.build(GOOD, "no")),
        (_core.ORDERS, lambda: plan.program(2, "no")),
        (_core.SCHEDULES, lambda: _core.schedule_shape("no", 3)),
    ]:
        with pytest.raises(ValueError, match='"no"; choose one of ' + ", ".join(f'"{name}"' for name in taken) + "$"):
            use()


def test_build_info():
    info = _core.build_info()
    assert info["version"] == _core.__version__
    assert all(isinstance(value, str) for value in info.values())


@pytest.mark.parametrize("cls", ["Tree", "Plan", "Program"])
def test_help_says_what_the_stub_says(cls):
    """Docstrings are written in the stub, for type checkers and editors, and in Rust, for ``help(hsd.Tree)``."""
    stub = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text())
    [found] = [node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == cls]
    written = {node.name: ast.get_docstring(node) for node in found.body if isinstance(node, ast.FunctionDef)}
    public = {name: member for name, member in vars(getattr(_core, cls)).items() if not name.startswith("_")}
    assert set(public) == set(written)
    for name, member in public.items():
        doc = member.__func__.__doc__ if isinstance(member, staticmethod) else member.__doc__
        assert doc, name
        assert inspect.cleandoc(doc) == written[name], name
