"""Euclidean trees and the measured schedule: SciPy as the witness, and what compile makes of the names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cophenet, linkage

import hsd
from hsd import _core
from hsd.planning.clustering import Limits, replica_tree
from hsd.planning.schedule import schedule_shape
from hsd.planning.vectors import Vectors

EUCLIDEAN = ["ward", "average", "complete"]
PROMPTS = [f"a {colour} {animal}" for colour in ("red", "blue", "green") for animal in ("cat", "dog", "cow")]
ROWS = np.random.default_rng(4).normal(size=(len(PROMPTS), 6)) * 3.0


def assert_as_in_scipy(tree: _core.Tree, rows: np.ndarray, method: str) -> None:
    """Same heights, and the same height at which any two leaves meet."""
    expected, ours = linkage(rows.astype(np.float64), method), tree.to_scipy()
    least = 1e-9 * np.abs(rows).max()
    np.testing.assert_allclose(ours[:, 2], expected[:, 2], rtol=1e-5, atol=least)
    np.testing.assert_allclose(cophenet(ours), cophenet(expected), rtol=1e-5, atol=least)


def groups(n: int, d: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 8), d))
    return offset + centres[rng.integers(len(centres), size=n)] + 0.2 * rng.normal(size=(n, d))


@pytest.mark.parametrize("method", EUCLIDEAN)
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(("n", "d", "dtype"), [(2, 1, "f8"), (150, 1, "f8"), (150, 7, "f4"), (700, 40, "f8")])
def test_sets_cluster_as_in_scipy(n, d, dtype, offset, method):
    rows = groups(n, d, n, offset).astype(dtype)
    for limits in ({}, {"memory": 3 * n * n}):
        tree = _core.Tree.build(rows, method, metric="euclidean", exact=True, **limits)
        assert_as_in_scipy(tree, rows, method)
        np.testing.assert_array_equal(tree.merges, linkage(rows.astype(np.float64), method)[:, :2])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e-200, 1e200]))
def test_ward_of_any_rows_has_scipys_heights(n, d, seed, scale):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    tree = hsd.build_tree(rows * scale, metric="euclidean")
    np.testing.assert_allclose(tree.heights / scale, linkage(rows, "ward")[:, 2], rtol=1e-5)


@pytest.mark.parametrize("method", EUCLIDEAN)
def test_near_duplicates_and_zeros_cluster_as_in_scipy(method):
    rng = np.random.default_rng(3)
    base = rng.normal(size=(20, 64))
    rows = np.concatenate([base + scale * rng.normal(size=base.shape) for scale in (0, 1e-2, 1e-4, 1e-6)])
    rows = np.concatenate([rows, base, np.zeros((3, 64)), np.full((1, 64), 1e-6)])
    assert_as_in_scipy(hsd.build_tree(rows, method, metric="euclidean"), rows, method)


@pytest.mark.parametrize("method", EUCLIDEAN)
def test_types_of_two_bytes(method):
    half = groups(60, 5, 8).astype(np.float16)
    expected = hsd.build_tree(half.astype(np.float64), method, metric="euclidean")
    np.testing.assert_array_equal(hsd.build_tree(half, method, metric="euclidean").to_scipy(), expected.to_scipy())
    tensor = torch.from_numpy(half).bfloat16()
    expected = hsd.build_tree(tensor.double(), method, metric="euclidean")
    np.testing.assert_array_equal(hsd.build_tree(tensor, method, metric="euclidean").to_scipy(), expected.to_scipy())


def test_an_approximate_ward_tree_saves_about_as_much():
    rows = groups(3000, 12, 5)
    exact = hsd.build_tree(rows, metric="euclidean")
    tree = hsd.build_tree(rows, metric="euclidean", exact=False, memory=4 * 400 * 460)
    assert (exact.exact, tree.exact) == (True, False)
    shape = schedule_shape("linear", 20)
    for tau in np.quantile(exact.heights, [0.9, 0.97, 0.995]):
        ours, best = (one.node_steps(tau * shape) / (20 * 3000) for one in (tree, exact))
        assert ours == pytest.approx(best, abs=0.01)


def test_replicas_share_a_metric():
    twice = replica_tree(
        Vectors(ROWS), np.tile(np.arange(9), 2), np.repeat([0, 1], 9), "ward", Limits(), None, metric="euclidean"
    )
    expected = hsd.build_tree(ROWS, metric="euclidean").heights
    assert np.isinf(twice.heights).sum() == 1
    np.testing.assert_array_equal(np.sort(twice.heights)[:-1], np.sort(np.tile(expected, 2)))
    with pytest.raises(ValueError, match="embedding 3 is all zeros"):
        replica_tree(Vectors(np.zeros((9, 2)) + (np.arange(9) != 3)[:, None]), np.tile(np.arange(9), 2),
                     np.arange(18) // 6, "ward", Limits(), None)  # fmt: skip


def test_zeros_are_refused_by_cosine_only():
    rows = ROWS.copy()
    rows[3] = 0.0
    with pytest.raises(ValueError, match="embedding 3 is all zeros"):
        hsd.build_tree(rows)
    with pytest.raises(ValueError, match="embedding 3 is all zeros"):
        _core.check_embeddings(rows)
    assert _core.check_embeddings(rows, metric="euclidean") is None
    assert hsd.build_tree(rows, metric="euclidean").n_leaves == 9
    rows[4, 2] = np.nan
    with pytest.raises(ValueError, match="embedding 4 holds NaN at column 2"):
        hsd.build_tree(rows, metric="euclidean")


def test_metrics_that_cannot_be():
    with pytest.raises(ValueError, match='unknown metric "no"; choose one of "cosine", "euclidean"$'):
        _core.Tree.build(ROWS, metric="no")
    with pytest.raises(ValueError, match='unknown metric "no"'):
        _core.check_embeddings(ROWS, metric="no")
    with pytest.raises(ValueError, match="unknown metric 'auto': one of cosine, euclidean"):
        hsd.build_tree(ROWS, metric="auto")
    for build in (_core.Tree.build, hsd.build_tree):
        with pytest.raises(ValueError, match="centroid.*cosine distance.*ward"):
            build(ROWS, "centroid", metric="euclidean")
    assert _core.METRICS == ("cosine", "euclidean")


# -- compile


def test_compile_clusters_by_the_metric():
    plan = hsd.compile(PROMPTS, 5.0, embeddings=ROWS, metric="euclidean")
    np.testing.assert_array_equal(plan.tree.to_scipy(), hsd.build_tree(ROWS, metric="euclidean").to_scipy())
    assert plan.metric == plan.request["metric"] == "euclidean"
    assert "ward on embeddings, euclidean metric, tau 5" in plan.summary()
    for usual in (hsd.compile(PROMPTS, embeddings=ROWS), hsd.compile(PROMPTS, embeddings=ROWS, metric="cosine")):
        np.testing.assert_array_equal(usual.tree.to_scipy(), hsd.build_tree(ROWS).to_scipy())
        assert usual.metric == usual.request["metric"] == "cosine"
        assert "ward on embeddings, tau 1" in usual.summary()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("metric", "cosin", 'metric "cosin"; it has to be one of'),
        ("metric", 7, "metric 7"),
        ("tau", 10**400, "out of range"),
    ],
    ids=["name", "number", "tau"],
)
def test_bad_values_in_plan_files(tmp_path, name, value, says):
    plan = hsd.compile(PROMPTS, 0.5, steps=2)
    plan.request[name] = value
    plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(hsd.Error, match=says):
        hsd.Plan.load(tmp_path / "plan.safetensors")


@pytest.mark.parametrize("value", [True, 10**400, "high", 2])
def test_a_correlation_that_is_no_correlation(tmp_path, value):
    plan = hsd.compile(PROMPTS, 0.5, steps=2)
    plan.request["metric_correlation"] = value
    plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(hsd.Error, match=r"metric_correlation|out of range"):
        hsd.Plan.load(tmp_path / "plan.safetensors")


def test_a_plan_without_a_metric_is_of_cosines(tmp_path):
    path = tmp_path / "plan.safetensors"
    plan = hsd.compile(PROMPTS, 0.5)
    request = {name: value for name, value in plan.request.items() if name != "metric"}
    hsd.Plan(plan._core, plan.prompts, plan.seeds, request).save(path)
    old = hsd.Plan.load(path)
    assert "metric" not in old.request
    assert (old.metric, old.fingerprint) == ("cosine", plan.fingerprint)
    assert "metric" not in hsd.compile(PROMPTS, 0.5, reuse=path, progress=pytest.fail).request
    assert hsd.compile(PROMPTS, 0.5, metric="euclidean", reuse=path).metric == "euclidean"
    hsd.compile(PROMPTS, 0.5, metric="euclidean").save(path)
    assert hsd.compile(PROMPTS, 0.5, metric="euclidean", reuse=path, progress=pytest.fail).metric == "euclidean"
    assert hsd.compile(PROMPTS, 0.5, reuse=path).metric == "cosine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "no"}, "unknown metric 'no': one of auto, cosine, euclidean, calibrated, direct"),
        ({"metric": "euclidean"}, "no default tau.*give tau=.*or budget="),
        ({"metric": "euclidean", "linkage": "centroid", "tau": 1.0}, "'centroid' compares.*use metric 'cosine'"),
        ({"schedule": "measured"}, "needs model= with a calibration"),
    ],
)
def test_bad_metrics_are_errors_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        hsd.compile(PROMPTS, encoder=lambda texts: pytest.fail("encoded"), **arguments)


def test_a_budget_needs_no_tau():
    plan = hsd.compile(PROMPTS, embeddings=ROWS, metric="euclidean", budget=0.3)
    assert plan.savings >= 0.3
    assert plan.tau < hsd.compile(PROMPTS, embeddings=100 * ROWS, metric="euclidean", budget=0.3).tau / 99
    assert json.loads(json.dumps(plan.request))["metric"] == "euclidean"


# -- the measured schedule


def test_thresholds_are_one_over_the_roots_of_weights():
    weights = [0.5, 2.0, 8.0, 4.0, 1.0]
    expected = [1.0, 0.5, (0.5 / 6) ** 0.5, (0.5 / 6) ** 0.5, 0.0]  # 8 and 4 fall, so their mean counts
    np.testing.assert_allclose(schedule_shape("measured", 5, weights=weights), expected)
    np.testing.assert_allclose(_core.measured_shape(np.array(weights)), expected)
    assert schedule_shape("measured", 1, weights=[3.0]).tolist() == [0.0]
    phi = 5.0 * schedule_shape("measured", 5, weights=weights)
    assert _core.Plan.compile(hsd.build_tree(ROWS, metric="euclidean"), phi).n_steps == 5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "needs the weights of a calibrated model"),
        ([1.0, 2.0], r"weights have shape \(2,\), but there are 3 steps"),
        ([1.0, np.inf, 2.0], "weight of step 1 is inf"),
        ([0.0, -1.0, 2.0], "none of the 2 weights before the last is over 0"),
    ],
)
def test_bad_weights_are_errors(weights, message):
    with pytest.raises(ValueError, match=message):
        schedule_shape("measured", 3, weights=weights)
