"""Embeddings to tree: arrays of any kind without a second copy, the available memory, and what is approximate."""

from __future__ import annotations

import signal
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

import hsd
from helpers import SHARED, needs_shared
from hsd import _core
from hsd.planning import clustering
from hsd.planning.encoders import default_encoder
from hsd.planning.vectors import as_vectors
from hsd.work import memory
from hsd.work.memory import memory_budget

LINKAGES = _core.LINKAGES
REDUCIBLE = [name for name in LINKAGES if name != "centroid"]  # its scores may fall on the way up


def unique_prompts(n):
    return [f"prompt {i}" for i in range(n)]


def grouped(n, d, seed=0):
    """Rows about one centre for every ten of them, in float16, so that any float type holds the same numbers."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 10), d))
    return (centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, d))).astype(np.float16)


def mapped(path, array):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def assert_equal(tree, other):
    np.testing.assert_array_equal(tree.merges, other.merges)
    np.testing.assert_array_equal(tree.scores, other.scores)


def meeting_heights(tree, pairs):
    """The height at which the two leaves of each pair meet."""
    parent = np.full(2 * tree.n_leaves - 1, -1)
    parent[tree.merges.ravel()] = np.repeat(np.arange(tree.n_leaves - 1) + tree.n_leaves, 2)
    out = []
    for x, y in pairs:
        above = set()
        while x != -1:
            above.add(x)
            x = parent[x]
        while y not in above:
            y = parent[y]
        out.append(tree.heights[y - tree.n_leaves])
    return np.array(out)


# -- arrays of any kind


def misaligned(e):
    room = np.zeros(e.nbytes + 1, np.uint8)[1:]
    out = room.view(np.float64).reshape(e.shape)
    out[:] = e
    assert not out.flags.aligned
    return out


FORMS = {
    "float16": lambda e: e.astype(np.float16),
    "float32": lambda e: e.astype(np.float32),
    "long double": lambda e: e.astype(np.longdouble),
    "big-endian": lambda e: e.astype(">f4"),
    "big-endian half": lambda e: e.astype(">f2"),
    "misaligned": misaligned,
    "Fortran": np.asfortranarray,
    "transposed": lambda e: np.ascontiguousarray(e.T).T,
    "reversed": lambda e: np.ascontiguousarray(e[::-1, ::-1])[::-1, ::-1],
    "every other row": lambda e: np.repeat(e.astype(np.float32), 2, axis=0)[::2],
    "every third column": lambda e: np.repeat(e, 3, axis=1)[:, ::3],
    "half, strided": lambda e: np.repeat(e.astype(np.float16), 2, axis=1)[:, 1::2],
    "read-only": lambda e: np.frombuffer(e.tobytes()).reshape(e.shape),
    "torch": torch.from_numpy,
    "torch, not contiguous": lambda e: torch.from_numpy(np.ascontiguousarray(e.T)).T,
    "torch, half": lambda e: torch.from_numpy(e).half(),
    "torch, with gradients": lambda e: torch.from_numpy(e).requires_grad_(),
    "list": lambda e: e.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_the_same_numbers_gives_the_same_tree(form):
    e = grouped(60, 5).astype(np.float64)
    for method in LINKAGES:
        assert_equal(hsd.build_tree(FORMS[form](e), method), hsd.build_tree(e, method))
    ours, expected = (hsd.compile(unique_prompts(60), 0.7, embeddings=x) for x in (FORMS[form](e), e))
    assert_equal(ours.tree, expected.tree)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_memory_mapped_files(tmp_path, dtype):
    e = grouped(60, 5)
    for name, array in (("c", e.astype(dtype)), ("f", np.asfortranarray(e.astype(dtype)))):
        found = mapped(tmp_path / f"{name}.npy", array)
        assert isinstance(found, np.memmap)
        assert_equal(hsd.build_tree(found), hsd.build_tree(e.astype(np.float64)))
        assert_equal(hsd.build_tree(found[10:50:2, ::-1]), hsd.build_tree(e[10:50:2, ::-1].astype(np.float64)))


def test_bfloat16_is_read_as_it_is():
    half = torch.from_numpy(grouped(60, 5).astype(np.float32)).to(torch.bfloat16)
    expected = half.double().numpy()
    for method in LINKAGES:
        assert_equal(hsd.build_tree(half, method), hsd.build_tree(expected, method))
        assert_equal(hsd.build_tree(half.T.contiguous().T, method), hsd.build_tree(expected, method))
        assert_equal(hsd.build_tree(half[::2, 1:], method), hsd.build_tree(expected[::2, 1:], method))


def test_equal_rows_that_are_one_row_in_memory():
    assert hsd.build_tree(np.broadcast_to(np.arange(1.0, 4.0), (9, 3))).heights.tolist() == [0] * 8


def test_integers_are_numbers():
    e = np.random.default_rng(0).integers(-9, 9, size=(30, 4))
    for dtype in (np.int64, np.int8, ">i2"):
        assert_equal(hsd.build_tree(e.astype(dtype)), hsd.build_tree(e.astype(np.float32)))


def peak(work):
    """The most bytes that Python and NumPy hold at a time during ``work``."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "form",
    ["mapped half", "mapped", "float16", "Fortran", "strided", "every other row", "reversed", "torch", "bfloat16"],
)
def test_nothing_is_copied(tmp_path, form):
    n, d = 200, 20_000  # 16 MB in float32; the tree is small
    e = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    array = {
        "mapped half": lambda: mapped(tmp_path / "e.npy", e.astype(np.float16)),
        "mapped": lambda: mapped(tmp_path / "e.npy", e),
        "float16": lambda: e.astype(np.float16),
        "Fortran": lambda: np.asfortranarray(e),
        "strided": lambda: np.repeat(e, 2, axis=1)[:, ::2],
        "every other row": lambda: np.repeat(e, 2, axis=0)[::2],
        "reversed": lambda: e[::-1, ::-1],
        "torch": lambda: torch.from_numpy(np.ascontiguousarray(e.T)).T,
        "bfloat16": lambda: torch.from_numpy(e).to(torch.bfloat16),
    }[form]()
    size = e.nbytes // 2 if form in ("mapped half", "float16", "bfloat16") else e.nbytes
    # The check can fail: a copy is seen.
    assert peak(lambda: np.array(as_vectors(array, n, "embeddings").array)) >= size
    prompts = unique_prompts(n)
    for work in (
        lambda: hsd.build_tree(array),
        lambda: hsd.compile(prompts, 1.0, embeddings=array),
        lambda: hsd.compile(prompts, 1.0, embeddings=array, images_per_prompt=2),
    ):
        work()  # imports at first use must not be counted
        assert peak(work) < size / 10


@pytest.mark.parametrize("bfloat16", [False, True])
def test_rows_are_checked_in_place(bfloat16):
    rows = np.random.default_rng(0).integers(0, 100, size=(400_000, 32)).astype(np.uint16)
    array = rows if bfloat16 else rows.view(np.float16)
    assert peak(lambda: _core.check_embeddings(array, bfloat16=bfloat16)) < rows.nbytes / 10


def test_rows_are_leaves_in_the_order_given():
    e = grouped(80, 6)
    rows = np.random.default_rng(1).permutation(80)[:50]
    rows[7] = rows[3]
    for method in LINKAGES:
        assert_equal(hsd.Tree.build(e, method, rows=rows), hsd.Tree.build(e[rows], method))
        assert_equal(hsd.Tree.build(e, method, rows=rows[::2]), hsd.Tree.build(e[rows[::2]], method))


# -- bad arguments


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rows": np.array([0, -1])}, ValueError, "row -1 is out of range; there are 4"),
        ({"rows": np.array([3, 4])}, ValueError, "row 4 is out of range; there are 4"),
        ({"rows": np.array([], np.int64)}, ValueError, r"shape \(0, 3\)"),
        ({"rows": np.array([0.5])}, TypeError, "rows must be a NumPy int64 array.*not float64"),
        ({"rows": [0, 1]}, TypeError, "rows must be a NumPy int64 array.*not list"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"memory": 0}, ValueError, "memory is 0"),
        ({"memory": -8}, ValueError, "memory is -8"),
        ({"bfloat16": True}, TypeError, "uint16 array.*bfloat16=True"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_core(options, error, says):
    with pytest.raises(error, match=says):
        hsd.Tree.build(np.ones((4, 3)), **options)


BAD_LIMITS = [
    ({"threads": 0}, ValueError, "threads is 0"),
    ({"threads": -2}, ValueError, "threads is -2"),
    ({"threads": 1.5}, TypeError, "threads has to be an integer, not 1.5"),
    ({"memory": 0}, ValueError, "memory is 0"),
    ({"memory": -1}, ValueError, "memory is -1"),
    ({"memory": True}, TypeError, "memory has to be an integer, not True"),
    ({"memory": 1e9}, TypeError, "memory has to be an integer"),
    ({"exact": "no"}, TypeError, "exact has to be True, False or None, not 'no'"),
    ({"exact": 1}, TypeError, "exact has to be True, False or None, not 1"),
]


@pytest.mark.parametrize(("options", "error", "says"), BAD_LIMITS, ids=str)
def test_bad_limits_are_named_before_anything_is_encoded(options, error, says):
    with pytest.raises(error, match=says):
        hsd.build_tree(np.eye(3), **options)
    with pytest.raises(error, match=says):
        hsd.compile(["a", "b"], encoder=lambda _: pytest.fail("encoded"), **options)


def test_a_bad_row_of_a_million_is_named_before_anything_is_clustered(tmp_path):
    e = np.lib.format.open_memmap(tmp_path / "e.npy", "w+", np.float16, (1_000_000, 2))
    e[:] = 1
    e[734_211, 1] = np.nan
    e[900_000, 0] = np.inf
    e.flush()
    del e
    seen = []
    with pytest.raises(ValueError, match="embedding 734211 holds NaN at column 1"):
        hsd.build_tree(np.load(tmp_path / "e.npy", mmap_mode="r"), progress=lambda *stage: seen.append(stage))
    assert max(seen, default=("cluster", 0.0)) < ("cluster", 0.1)
    with pytest.raises(ValueError, match="embedding 900000 holds inf at column 0"):
        hsd.Tree.build(np.load(tmp_path / "e.npy", mmap_mode="r"), rows=np.arange(999_999, 734_211, -1))


class Watched:
    """Counts what is built."""

    built: list

    @classmethod
    def build(cls, *arguments, **options):
        cls.built.append(options)
        return hsd.Tree.build(*arguments, **options)

    join = staticmethod(hsd.Tree.join)


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(Watched, "built", [], raising=False)
    monkeypatch.setattr(clustering, "Tree", Watched)
    return Watched.built


@pytest.mark.parametrize("form", [np.float16, np.float32, "bfloat16"])
@pytest.mark.parametrize(
    ("bad", "says"),
    [(np.nan, "holds [Nn]a[Nn] at column 2"), (-np.inf, "holds -inf at column 2"), (0.0, "is all zeros")],
)
def test_a_bad_row_of_a_late_replica_is_named_before_anything_is_clustered(built, form, bad, says):
    prompts = [*unique_prompts(70), "prompt 3", "prompt 5"]
    e = np.random.default_rng(0).normal(size=(72, 4)).astype(np.float32)
    e[71, :] = bad if bad == 0 else 1
    e[71, 2:] = bad
    e = torch.from_numpy(e).to(torch.bfloat16) if form == "bfloat16" else e.astype(form)
    events = []
    with pytest.raises(ValueError, match=f"embedding 71 {says}"):
        hsd.compile(prompts, 1.0, embeddings=e, progress=lambda *event: events.append(event))
    assert built == []
    assert not [event for event in events if event[0] == "cluster"]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bad_rows_are_found_wherever_they_are(threads):
    e = np.ones((10, 2), np.float32)
    for row in range(10):
        bad = e.copy()
        bad[row:, 1] = np.inf
        with pytest.raises(ValueError, match=f"embedding {row} holds inf at column 1"):
            _core.check_embeddings(bad, threads=threads)
        bad[row] = -0.0
        with pytest.raises(ValueError, match=f"embedding {row} is all zeros"):
            _core.check_embeddings(bad, threads=threads)
    _core.check_embeddings(e, threads=threads)


# -- replicas


def test_replicas_of_the_same_rows_are_clustered_once(built):
    e = grouped(20, 4).astype(np.float32)
    plan = hsd.compile(unique_prompts(20), 1.0, embeddings=e, images_per_prompt=3)
    assert len(built) == 1
    once = hsd.Tree.build(e)
    expected = hsd.Tree.join([once] * 3, [np.arange(20) * 3 + r for r in range(3)])
    assert_equal(plan.tree, expected)
    # A repeated prompt may have a different row.
    built.clear()
    hsd.compile([*unique_prompts(20)] * 2, 1.0, embeddings=np.concatenate([e, e[::-1]]))
    assert len(built) == 2
    built.clear()
    plan = hsd.compile(["a", "b", "a"], 1.0, embeddings=e[:3], images_per_prompt=2)
    # a a b b a a: replicas {a0, b0}, {a1, b1}, {a2}, {a3}, of two different sets of rows
    assert len(built) == 2
    assert plan.counts()[0] == 4


@pytest.mark.parametrize("images", [1, 4])
def test_each_given_prompt_is_encoded_once(images):
    calls = []

    def encoder(prompts):
        calls.append(list(prompts))
        return np.eye(len(prompts)) + 1

    given = ["a", "b", "c", "a"]
    plan = hsd.compile(given, 1.0, encoder=encoder, images_per_prompt=images)
    assert calls == [given]
    assert plan.n_prompts == 4 * images


def test_clustering_of_replicas_is_one_progress():
    seen = []
    prompts = [*unique_prompts(40), *unique_prompts(30), *unique_prompts(20)]
    e = np.random.default_rng(0).normal(size=(90, 4))
    hsd.compile(prompts, 1.0, embeddings=e, progress=lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [fraction for stage, fraction in seen if stage == "cluster"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(abs(fraction - 1 / 3) < 1e-9 for fraction in fractions)  # the first of three is done


# -- exact and approximate


def test_limits_say_what_is_exact(tmp_path):
    n = 300
    e = grouped(n, 8)
    prompts = unique_prompts(n)
    assert hsd.build_tree(e).exact
    assert hsd.build_tree(e, memory=2 * n * n).exact
    assert not hsd.build_tree(e, memory=2 * n * n - 1).exact
    with pytest.raises(MemoryError, match=r"distances between all prompts need 0\.0 GB"):
        hsd.build_tree(e, exact=True, memory=2 * n * n - 1)
    with pytest.raises(MemoryError, match="distances between all prompts"):
        hsd.compile(prompts, embeddings=e, exact=True, memory=1000)
    plan = hsd.compile(prompts, 1.0, embeddings=e, exact=False)
    assert not plan.tree.exact
    assert "approximate ward" in plan.summary()
    plan.save(tmp_path / "plan.safetensors")
    again = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert not again.tree.exact
    assert again.summary() == plan.summary()
    assert_equal(again.tree, plan.tree)
    exact = hsd.compile(prompts, 1.0, embeddings=e)
    assert exact.tree.exact
    assert "approximate" not in exact.summary()
    # One approximate replica makes the whole approximate.
    assert not hsd.compile([*prompts, *prompts], 1.0, embeddings=np.concatenate([e, e]), exact=False).tree.exact


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("exact", [True, False])
def test_threads_do_not_change_a_bit(method, exact):
    e = grouped(900, 12)
    memory = None if exact else 4 * 100**2
    trees = [hsd.build_tree(e, method, exact=exact, threads=threads, memory=memory) for threads in (1, 2, 5)]
    assert_equal(trees[1], trees[0])
    assert_equal(trees[2], trees[0])
    assert trees[0].exact == exact


@given(
    n=st.integers(1, 60),
    d=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    scatter=st.sampled_from([1e-3, 0.1, 3.0]),
    clusters=st.integers(1, 30),
)
@settings(deadline=None, max_examples=60)
def test_both_shapes_have_scipys_heights_and_what_is_approximate_is_a_tree(n, d, seed, scatter, clusters):
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(n // 5 + 1, d))[rng.integers(n // 5 + 1, size=n)] + scatter * rng.normal(size=(n, d))
    # From unit rows pdist keeps digits that 1 - cos has lost.
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    for method in LINKAGES:
        if n > 1 and method in REDUCIBLE:
            expected = linkage(pdist(unit, "sqeuclidean") / 2, method)[:, 2]
            for memory in (4 * n * n, 2 * n * n):
                tree = hsd.build_tree(e, method, exact=True, memory=memory)
                assert tree.exact
                np.testing.assert_allclose(tree.heights, expected, rtol=1e-5, atol=1e-12)
        tree = hsd.build_tree(e, method, exact=False, memory=4 * clusters**2)
        assert not tree.exact
        assert sorted(tree.leaf_order.tolist()) == list(range(n))
        again = hsd.Tree.from_merges(tree.merges, tree.scores)
        np.testing.assert_array_equal(again.heights, tree.heights)
        children = np.concatenate([np.zeros(n), tree.heights])[tree.merges]
        assert (tree.heights >= children.max(axis=1, initial=0)).all()


@pytest.mark.parametrize("method", LINKAGES)
def test_approximate_trees_keep_near_duplicates_together(method):
    e = np.random.default_rng(2).normal(size=(1000, 16))
    near = e * (1 + 1e-9) + 1e-6
    tree = hsd.build_tree(np.concatenate([e, near]), method, exact=False, memory=4 * 150**2)
    heights = meeting_heights(tree, [(i, i + 1000) for i in range(1000)])
    assert heights.max() < 1e-9, f"{(heights >= 1e-9).sum()} pairs are parted"


@needs_shared
@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("name", ["genai_bench", "prompt_templates"])
def test_an_approximate_tree_saves_what_the_exact_one_does(name, method):
    """Within one point of the savings, with memory for a quarter of the clusters."""
    e = np.load(SHARED / "embeddings" / f"{name}.minilm384.npy")
    exact = hsd.build_tree(e, method)
    clusters = len(e) // 4
    tree = hsd.build_tree(e, method, exact=False, memory=4 * clusters * (clusters + 4 * e.shape[1]))
    assert (exact.exact, tree.exact) == (True, False)
    for tau in (0.5, 1.0, 1.5):
        phi = tau * hsd._core.schedule_shape("linear", 40)
        saved, expected = (1 - each.node_steps(phi) / (len(e) * 40) for each in (tree, exact))
        assert saved == pytest.approx(expected, abs=0.01), f"tau {tau}"


# -- interruption


@pytest.fixture(scope="module")
def many():
    return np.random.default_rng(0).normal(size=(150_000, 64)).astype(np.float16)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of processor time")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("method", ["ward", "centroid"])
@pytest.mark.parametrize("after", [0.2, 0.7])
def test_ctrl_c_is_answered_within_about_a_second(many, exact, method, after):
    """In processor time, which does not depend on other processes. Its signal is handled as Ctrl-C is."""
    n = 16_000 if exact else len(many)
    handled = signal.signal(signal.SIGPROF, signal.default_int_handler)
    sent = time.process_time() + after
    signal.setitimer(signal.ITIMER_PROF, after)
    try:
        with pytest.raises(KeyboardInterrupt):
            hsd.build_tree(many[:n], method, exact=exact, memory=2 * n * n if exact else 4 * 4000**2, threads=2)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handled)
    assert time.process_time() - sent < 2, "it is a tenth of that"


@pytest.mark.parametrize("limits", [{"exact": True}, {"exact": False, "memory": 4 * 300**2}], ids=str)
def test_what_progress_raises_ends_the_work_at_any_report(limits):
    e = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)

    class Stop(Exception):
        pass

    for last in range(2):  # the first report and the last are always sent
        seen = []

        def report(stage, fraction, seen=seen, last=last):
            seen.append(stage)
            if len(seen) > last:
                raise Stop

        with pytest.raises(Stop):
            hsd.build_tree(e, progress=report, **limits)
        assert len(seen) == last + 1


# -- memory


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000_000_000})())

    def write(limit, used):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)

    return write


@pytest.mark.parametrize(
    ("limit", "used", "budget"),
    [
        ("1000000\n", "400000\n", 360_000),
        ("max\n", "400000\n", 6_000_000_000),
        ("20000000000\n", "0\n", 6_000_000_000),  # more than the machine has
        ("1000\n", "5000\n", 1),  # nothing is left
        ("no number\n", "0\n", 6_000_000_000),
    ],
)
def test_memory_is_a_share_of_what_is_free(cgroup, limit, used, budget):
    assert memory_budget() == 6_000_000_000  # no container
    cgroup(limit, used)
    assert memory_budget() == budget


def test_the_budget_decides_what_is_exact(cgroup):
    e = grouped(300, 8)
    for free, exact in ((300_001, True), (299_000, False)):  # 180,000 bytes are needed
        cgroup(str(free), "0")
        assert hsd.build_tree(e).exact == exact
        assert hsd.compile(unique_prompts(300), embeddings=e).tree.exact == exact
        assert hsd.build_tree(e, memory=10**9).exact  # a given limit has precedence
    with pytest.raises(MemoryError):
        hsd.build_tree(e, exact=True)


# -- the default encoder


PROMPTS = ["a cat", "a cat on a mat, in oil, by night", "犬", "a", "\u200b", "naïve café ☕", "the sea " * 200]


def test_chunks_of_the_encoder_do_not_show(monkeypatch):
    encoder = default_encoder()
    whole = encoder(PROMPTS)
    assert whole.shape == (7, 512)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, np.concatenate([encoder([prompt]) for prompt in PROMPTS]))
    for chunk in (1, 3, 7):
        monkeypatch.setattr("hsd.planning.encoders.CHUNK", chunk)
        seen = []
        np.testing.assert_array_equal(encoder(PROMPTS, seen.append), whole)
        assert seen == [*range(chunk, 7, chunk), 7]


def test_the_encoder_takes_the_mean_of_its_tokens_and_their_order():
    encoder = default_encoder()
    ids = encoder._tokenizer.encode("a cat on a mat", add_special_tokens=False).ids
    tokens = encoder._table[ids].astype(np.float64)
    mean = tokens.mean(axis=0)
    x = np.linspace(-1, 1, len(ids))
    weights = x + x**2 / 8
    order = ((weights - weights.mean())[:, None] * tokens).sum(axis=0)
    expected = np.concatenate([mean / np.linalg.norm(mean), 0.2 * order / np.linalg.norm(order)])
    np.testing.assert_allclose(encoder(["a cat on a mat"])[0], expected, rtol=1e-4, atol=1e-6)


FAR = "in the middle of the large and quiet square of an old town with a fountain and many people"
REORDERED = [
    ("a red star on a blue background", "a blue star on a red background"),
    ("dog bites man", "man bites dog"),
    (f"a red star {FAR} on a blue cloth", f"a blue star {FAR} on a red cloth"),
    ("dog cat cat dog", "cat dog dog cat"),  # weights that are odd about the middle give both 0
]


@pytest.mark.parametrize("pair", REORDERED, ids=lambda pair: pair[0][:20])
def test_the_encoder_depends_on_the_order_of_words(pair):
    """Two orders of the same words are apart, but nearer than anything else: the mean of the tokens is the same."""
    encoder = default_encoder()
    ids = [sorted(encoder._tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt in pair]
    assert ids[0] == ids[1]
    a, b, other = encoder([*pair, "the stock market fell"]).astype(np.float64)
    distance = lambda x, y: 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    assert 0.01 < distance(a, b) < 0.1
    assert distance(a, other) > 0.5


def test_one_token_repeated_has_no_order():
    rows = default_encoder()(["cat", "cat cat", "cat cat cat"])
    assert np.abs(rows[:, 256:]).max() < 1e-4


def test_a_prompt_without_tokens_is_named(monkeypatch):
    # compile() refuses blank prompts before, and the tokenizer reads everything else, zero-width characters too.
    for chunk in (2, 4096):
        monkeypatch.setattr("hsd.planning.encoders.CHUNK", chunk)
        with pytest.raises(hsd.PromptError, match="prompt 3 .''. has nothing that the default encoder reads"):
            default_encoder()(["a", "b", "c", "", "d", ""])
