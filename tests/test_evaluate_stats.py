"""Statistics of evaluation: against SciPy and closed forms, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.evaluation.clusters import Clusters, clusters_of
from hsd.evaluation.stats import cluster_bootstrap, mean_cosine, mean_intervals, vendi_score, wilson, win_rate


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_is_scipys(of, confidence):
    k, n = of
    theirs = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_without_pairs():
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_a_bootstrap_of_single_images_is_scipys():
    values = np.random.default_rng(3).gamma(2.0, size=60)
    ((low, high),) = cluster_bootstrap(values, range(60), seed=1)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=2)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_copies_of_an_image_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=25)
    single = cluster_bootstrap(values, range(25))
    copied = cluster_bootstrap(np.repeat(values, 7), np.repeat(range(25), 7))
    assert np.allclose(single, copied, atol=1e-12)


def test_two_clusters_in_closed_form():
    """The draws are twice the first, twice the second, or both, which has the mean of all four images."""
    ((low, high),) = cluster_bootstrap([0.0, 1.0, 2.0, 10.0], ["a", "a", "a", "b"], confidence=0.4)
    assert (low, high) == (3.25, 3.25 if high < 10 else 10.0)
    ((low, high),) = cluster_bootstrap([0.0, 1.0, 2.0, 10.0], ["a", "a", "a", "b"], confidence=0.95)
    assert (low, high) == (1.0, 10.0)


def test_coverage_of_intervals_where_images_of_a_prompt_are_similar():
    """300 samples of 40 prompts with 6 images each that have most of their noise in common."""
    rng = np.random.default_rng(7)
    prompts = np.repeat(np.arange(40), 6)
    covered = {"prompts": 0, "images": 0}
    for _ in range(300):
        values = rng.normal(size=40)[prompts] + 0.3 * rng.normal(size=240)
        for name, clusters in (("prompts", prompts), ("images", range(240))):
            ((low, high),) = cluster_bootstrap(values, clusters, resamples=400)
            covered[name] += low <= 0 <= high
    assert 0.90 < covered["prompts"] / 300 < 0.98
    assert covered["images"] / 300 < 0.7


def test_one_prompt_gives_no_interval():
    assert cluster_bootstrap([1.0, 2.0, 3.0], ["a", "a", "a"]) is None
    assert cluster_bootstrap([], []) is None


scores = st.lists(
    st.tuples(*[st.one_of(st.sampled_from([0.0, 0.5, 1.0, math.nan]), st.floats(-5, 5))] * 2, st.integers(0, 4)),
    max_size=30,
)


@settings(deadline=None)
@given(scores, st.sampled_from([0.0, 1e-6, 0.6]), st.randoms(use_true_random=False))
def test_win_rates(rows, tolerance, random):
    a, b, prompts = ([row[i] for row in rows] for i in range(3))
    there = win_rate(a, b, prompts, tolerance=tolerance, resamples=50)
    back = win_rate(b, a, prompts, tolerance=tolerance, resamples=50)
    assert there.wins + there.ties + there.losses == there.pairs == len(rows) - there.unscored
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    if not there.pairs:
        assert there.win_rate is None
        assert there.difference is None
        return
    assert there.win_rate + back.win_rate + there.ties / there.pairs == pytest.approx(1)
    assert there.win_rate_half_ties + back.win_rate_half_ties == pytest.approx(1)
    assert there.difference == pytest.approx(-back.difference)
    if there.win_rate_half_ties_interval:
        low, high = there.win_rate_half_ties_interval
        assert back.win_rate_half_ties_interval == pytest.approx((1 - high, 1 - low))
    if there.interval == "wilson":
        theirs = scipy.stats.binomtest(there.wins, there.pairs).proportion_ci(method="wilson")
        assert there.win_rate_interval == pytest.approx((theirs.low, theirs.high))
    mixed = random.sample(rows, len(rows))
    other = win_rate(*([row[i] for row in mixed] for i in range(3)), tolerance=tolerance, resamples=50)
    assert (other.wins, other.ties, other.interval) == (there.wins, there.ties, there.interval)
    for name in ("win_rate_interval", "win_rate_half_ties_interval", "difference_interval"):
        assert (getattr(other, name) is None) == (getattr(there, name) is None)
        if getattr(there, name) is not None:
            assert getattr(other, name) == pytest.approx(getattr(there, name), abs=1e-9)


def test_ties_by_hand():
    found = win_rate([1, 2, 3, math.nan], [0, 2, 3.5, 1], "abcd")
    assert (found.wins, found.ties, found.losses, found.unscored) == (1, 1, 1, 1)
    assert found.win_rate == 1 / 3
    assert found.win_rate_half_ties == 0.5
    assert found.difference == pytest.approx(1 / 6)
    assert found.interval == "wilson"
    assert win_rate([1, 2], [0, 3], ["a", "a"]).interval == "bootstrap"
    with pytest.raises(ValueError, match="have to be equal"):
        win_rate([1], [1, 2], "a")


def test_equal_clusters_give_no_interval_without_width():
    """29 ties and 3 losses of ten clusters: the rate of wins is 0 in each of them, and may still be more elsewhere."""
    a, b = np.full(32, 0.1), np.full(32, 0.1)
    b[:3] += 0.5
    found = win_rate(a, b, [i % 10 for i in range(32)])
    assert (found.wins, found.ties, found.losses, found.interval) == (0, 29, 3, "bootstrap")
    assert found.win_rate == 0
    assert found.win_rate_interval is None
    assert found.win_rate_half_ties_interval[0] < found.win_rate_half_ties < found.win_rate_half_ties_interval[1]
    assert found.difference_interval[0] < found.difference < found.difference_interval[1]
    # Clusters of different sizes, and crossed ones: a mean of equal values may be rounded differently.
    equal = np.full(32, 0.1)
    assert mean_intervals(equal, clusters_of([i % 3 for i in range(32)])) == [None]
    crossed = Clusters((np.repeat(list("abcd"), 8), np.tile(list("efgh"), 8)), "prompts and root clusters")
    assert mean_intervals(np.stack([equal, b], axis=1), crossed)[0] is None
    assert mean_intervals(np.stack([equal, b], axis=1), crossed)[1] is not None
    low, high = win_rate(b, a, crossed).win_rate_interval
    assert 0 == low < 3 / 32 < high <= 1  # of 3 wins in 32: no end is below 0


rows = st.tuples(st.integers(2, 30), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda of: np.random.default_rng(of[2]).normal(size=of[:2]) + 1e-3
)


@given(rows)
def test_mean_cosine_is_scipys(e):
    assert mean_cosine(e) == pytest.approx(1 - scipy.spatial.distance.pdist(e, "cosine").mean(), abs=1e-12)


@given(rows)
def test_vendi_is_the_definition(e):
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(e)).clip(0)
    assert vendi_score(e) == pytest.approx(np.exp(scipy.stats.entropy(eigenvalues)), rel=1e-6)
    assert 1 - 1e-9 <= vendi_score(e) <= min(e.shape) + 1e-6
    assert vendi_score(e[::-1] * 3.0) == pytest.approx(vendi_score(e), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_diversity_in_closed_form(n):
    equal, orthogonal = np.tile([0.6, 0.0, -0.8], (n, 1)), np.eye(n)
    assert vendi_score(equal) == pytest.approx(1)
    assert vendi_score(orthogonal) == pytest.approx(n)
    assert vendi_score(np.repeat(orthogonal, 3, axis=0)) == pytest.approx(n)
    assert mean_cosine(equal) == (None if n == 1 else pytest.approx(1))
    assert mean_cosine(orthogonal) == (None if n == 1 else pytest.approx(0))
    # A share p of one kind and the rest of another: the exponential of the entropy of (p, 1 - p).
    kinds = np.repeat(np.eye(2), [n, 3 * n], axis=0)
    assert vendi_score(kinds) == pytest.approx(np.exp(scipy.stats.entropy([0.25, 0.75])))


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf]]), np.ones(3)])
def test_embeddings_without_a_direction(bad):
    for measure_of in (mean_cosine, vendi_score):
        with pytest.raises(ValueError, match=r"embedding"):
            measure_of(bad)
