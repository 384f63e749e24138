"""Statistics of scores and embeddings: intervals, win rates, diversity. NumPy only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .clusters import ClusterKind, Clusters, clusters_of

Interval = tuple[float, float]

RESAMPLES = 10_000
"""Resamples of a bootstrap. The ends of an interval then differ by about 1 % of its width from seed to seed."""

_DRAWS = 10**9
"""Limit of resamples x clusters in one bootstrap, which bounds its time; there are always at least 1,000 resamples."""


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object],
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[Interval] | None:
    """Percentile intervals of means, by drawing whole clusters with replacement.

    The images of one prompt resemble each other, so they are drawn together: with m similar images per prompt, a
    bootstrap of single images would give an interval that is too narrow by up to a factor of sqrt(m). A resampled mean
    is the sum over the drawn clusters divided by their number of values.

    Percentile intervals: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Drawing clusters:
    Field & Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 69 (2007), "cluster bootstrap".

    Parameters
    ----------
    values
        (n,) or (n, c): c means over the same images are resampled together.
    clusters
        n labels, for example the prompts.

    Returns
    -------
    list of (low, high) or None
        One interval per column; None with fewer than two clusters, as one cluster cannot show how clusters vary.
    """
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    assert len(columns) == len(clusters), (columns.shape, len(clusters))
    if len(columns) == 0:
        return None
    # The labels are sorted, so that the same images in another order give the same interval.
    _, label = np.unique(np.array([str(c) for c in clusters]), return_inverse=True)
    count = np.bincount(label).astype(np.float64)
    n = len(count)
    if n < 2:
        return None
    sums = np.stack([np.bincount(label, column) for column in columns.T])  # [c, n]
    rng = np.random.default_rng(seed)
    resamples = min(resamples, max(1_000, _DRAWS // n))
    at_once = max(1, 2**20 // n)
    means = np.empty((len(sums), resamples))
    for start in range(0, resamples, at_once):
        drawn = rng.integers(n, size=(min(at_once, resamples - start), n))
        size = count[drawn].sum(axis=1)
        for mean, total in zip(means, sums, strict=True):
            mean[start : start + len(drawn)] = total[drawn].sum(axis=1) / size
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=1)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def mean_intervals(
    values: ArrayLike,
    clusters: Clusters,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[Interval | None] | None:
    """Intervals of the means of (n,) or (n, c) values: a bootstrap of whole clusters, or :func:`crossed_intervals`.

    Returns
    -------
    list of (low, high) or None
        One interval per column. None for a column whose mean is equal in all clusters: neither method can say how much
        it varies, and an interval without width would say that it does not. None for all with fewer than two clusters.
    """
    found = (
        crossed_intervals(values, clusters, confidence=confidence)
        if len(clusters.groupings) > 1
        else cluster_bootstrap(
            values, clusters.groupings[0].tolist(), seed=seed, confidence=confidence, resamples=resamples
        )
    )
    if found is None:
        return None
    # Means of equal values may differ by rounding.
    return [None if high - low <= 1e-12 * max(abs(low), abs(high)) else (low, high) for low, high in found]


def crossed_intervals(values: ArrayLike, clusters: Clusters, *, confidence: float = 0.95) -> list[Interval] | None:
    """Intervals of means where images depend on each other in several ways, for example by prompt and by trunk.

    mean -+ t sqrt(V), with Student's t of G - 1 degrees of freedom, where G is the smallest effective number of groups
    of a grouping (Cameron & Miller, J. Hum. Resour. 50, 2015, section VI), and V of :func:`clustered_variance`.

    A bootstrap that draws the groups of each grouping is no alternative: it counts the noise of single images once for
    each grouping and once more for both (Owen, Ann. Appl. Stat. 1, 2007: three times for two groupings).

    Returns
    -------
    list of (low, high) or None
        One interval per column of ``values``; None if a grouping has fewer than two groups.
    """
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if clusters.count < 2:
        return None
    half = student(max(1, int(clusters.effective) - 1), confidence) * np.sqrt(clustered_variance(columns, clusters))
    mean = columns.mean(axis=0)
    return [(float(low), float(high)) for low, high in zip(mean - half, mean + half, strict=True)]


def clustered_variance(columns: NDArray[np.float64], clusters: Clusters) -> NDArray[np.float64]:
    """(c,) variance of the means of (n, c) values: the products of deviations, summed over pairs with a common group.

    Multiway clustering of Cameron, Gelbach & Miller, J. Bus. Econ. Stat. 29 (2011), equation 2.13: each grouping's
    variance, less that of the groups that two have in common, and so on, each with its factor G / (G - 1). The
    estimate can be smaller than that of one grouping alone, even negative. So the largest of all of these is returned,
    which is the cautious choice. Every grouping needs at least two groups.
    """
    deviation = columns - columns.mean(axis=0)
    codes = [np.unique(labels, return_inverse=True)[1] for labels in clusters.groupings]
    single: list[NDArray[np.float64]] = []
    total = np.zeros(columns.shape[1])
    for size in range(1, len(codes) + 1):
        for chosen in itertools.combinations(codes, size):
            group = np.unique(np.stack(chosen), axis=1, return_inverse=True)[1].reshape(-1)
            count = int(group.max()) + 1
            sums = np.stack([np.bincount(group, column) for column in deviation.T], axis=1)  # [groups, c]
            variance = np.square(sums).sum(axis=0) / len(columns) ** 2 * count / (count - 1)
            total += variance if size % 2 else -variance
            if size == 1:
                single.append(variance)
    return np.max([total, *single], axis=0)


def student(degrees: int, confidence: float = 0.95) -> float:
    """The two-sided quantile of Student's t. With t = sqrt(degrees) tan(a), a has the density cos(a)^(degrees - 1)."""
    if degrees > 1_000:  # there the difference to the normal quantile is below 0.2 %
        return NormalDist().inv_cdf(0.5 + confidence / 2.0)
    angle = np.linspace(0.0, np.pi / 2.0, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2.0)])
    return float(math.sqrt(degrees) * math.tan(np.interp(confidence, mass / mass[-1], angle)))


def mean_of_known(
    scores: NDArray[np.float64], clusters: Sequence[object] | Clusters, *, seed: int = 0
) -> tuple[float | None, Interval | None]:
    """Mean of the scores (n,) that are not nan, and its interval by :func:`mean_intervals`; None if all are nan."""
    known = ~np.isnan(scores)
    if not known.any():
        return None, None
    clusters = clusters if isinstance(clusters, Clusters) else clusters_of(clusters)
    found = mean_intervals(scores[known], clusters.take(known), seed=seed)
    return float(scores[known].mean()), None if found is None else found[0]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927): valid for few pairs and for shares near 0 or 1.

    Without continuity correction, and for independent pairs. None if ``n`` is 0.
    """
    if n == 0:
        return None
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return low, 1.0 if successes == n else min(1.0, middle + half)


@dataclass(frozen=True)
class WinRate:
    """Image by image, how often A scores higher than B."""

    pairs: int
    """Pairs of which both images have a score."""
    unscored: int
    """Pairs that were left out because at least one image has no score."""
    wins: int
    ties: int
    losses: int
    tolerance: float
    """Two scores that differ by at most this are a tie."""
    win_rate: float | None
    """wins / pairs: a tie does not count as a win."""
    win_rate_interval: Interval | None
    """None where the rate is equal in all clusters, and with fewer than two of them; so are the other intervals."""
    interval: str
    """The method of ``win_rate_interval``: ``wilson`` if all pairs are independent, else ``bootstrap`` of clusters, or
    ``crossed`` (:func:`crossed_intervals`)."""
    win_rate_half_ties: float | None
    """(wins + ties / 2) / pairs: 0.5 means that A and B score equally well."""
    win_rate_half_ties_interval: Interval | None
    """Bootstrap of clusters, or ``crossed``."""
    difference: float | None
    """Mean of A's score minus B's."""
    difference_interval: Interval | None
    """Bootstrap of clusters, or ``crossed``, for the mean difference of pairs."""
    clusters: int
    """The number of clusters of pairs that are not independent."""
    clustered_by: ClusterKind
    """What these clusters are: prompts, or also root clusters of either side."""
    few_clusters: bool
    """Whether the intervals, but not Wilson's, rest on so few clusters that they are rough."""


def win_rate(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[object] | Clusters,
    *,
    tolerance: float = 0.0,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> WinRate:
    """Compare scores (n,) of A with those (n,) of B, pair by pair.

    ``win_rate`` is the win percentage of Decatur et al. (arXiv 2508.21032): the share of images whose VQAScore is above
    that of the other method's image for the same prompt. VQAScore is a probability and seldom ties. Scores with
    few different values do, and so do identical images. So ties are counted separately, and ``win_rate_half_ties``
    counts half of each tie for either side.

    Parameters
    ----------
    a, b
        (n,) scores, nan for images without a score; their pairs are left out.
    clusters
        n labels, for example prompts: pairs with the same label are not taken as independent. Or :class:`Clusters`.
    tolerance
        Two scores that differ by at most this are a tie.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    clusters = clusters if isinstance(clusters, Clusters) else clusters_of(clusters)
    labelled = len(clusters.groupings[0])
    if first.shape != second.shape or first.ndim != 1 or len(first) != labelled:
        raise ValueError(f"scores {first.shape} and {second.shape} of {labelled} pairs: their numbers have to be equal")
    known = ~(np.isnan(first) | np.isnan(second))
    kept = clusters.take(known)
    delta = (first - second)[known]
    won, lost = delta > tolerance, delta < -tolerance
    n, wins, losses = len(delta), int(won.sum()), int(lost.sum())
    columns = np.stack([won, (won - 1.0 * lost + 1.0) / 2.0, delta], axis=1)  # [pairs, 3]
    found = mean_intervals(columns, kept, seed=seed, confidence=confidence, resamples=resamples)
    strict, half, difference = (None, None, None) if found is None else found
    independent = kept.singles
    return WinRate(
        pairs=n,
        unscored=len(first) - n,
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        tolerance=tolerance,
        win_rate=wins / n if n else None,
        win_rate_interval=wilson(wins, n, confidence) if independent else _share(strict),
        interval="wilson" if independent else "bootstrap" if len(kept.groupings) == 1 else "crossed",
        win_rate_half_ties=(2 * wins + (n - wins - losses)) / (2 * n) if n else None,
        win_rate_half_ties_interval=_share(half),
        difference=float(delta.mean()) if n else None,
        difference_interval=difference,
        clusters=kept.count,
        clustered_by=kept.by,
        few_clusters=kept.few,
    )


def _share(interval: Interval | None) -> Interval | None:
    """The interval of a share: no end is outside [0, 1]."""
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def unit_rows(embeddings: ArrayLike) -> NDArray[np.float64]:
    """Rows (n, D) scaled to length 1.

    Raises
    ------
    ValueError
        If the array is not (n, D), or a row has no direction: all zeros, or not finite.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings of shape {rows.shape}: they have to be (n, D)")
    with np.errstate(over="ignore"):  # an overflow is not finite, and is reported below
        length = np.linalg.norm(rows, axis=1)
    for i in np.flatnonzero(~(np.isfinite(length) & (length > 0)))[:1]:
        raise ValueError(f"embedding {i} has length {length[i]}: it has no direction")
    return rows / length[:, None]


def mean_cosine(embeddings: ArrayLike) -> float | None:
    """Mean cosine similarity over all pairs of different rows of (n, D); lower is more diverse. None if n < 2.

    The diversity measure of the supplement of Decatur et al. (arXiv 2508.21032), which uses 100 samples. Computed as
    (||sum of unit rows||^2 - n) / (n (n - 1)), which gives the same mean without computing every pair.
    """
    rows = unit_rows(embeddings)
    n = len(rows)
    if n < 2:
        return None
    total = rows.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def similarity_to_others(embeddings: ArrayLike) -> NDArray[np.float64] | None:
    """(n,) mean cosine similarity of each row of (n, D) to all other rows. Their mean is :func:`mean_cosine`.

    None if n < 2.
    """
    rows = unit_rows(embeddings)
    n = len(rows)
    return None if n < 2 else (rows @ rows.sum(axis=0) - 1.0) / (n - 1)


def pair_mean_interval(
    of_items: ArrayLike, confidence: float = 0.95, clusters: Clusters | None = None
) -> Interval | None:
    """Normal interval of a mean over all pairs, from the mean (n,) that each item has over its pairs.

    Pairs that have an item in common are not independent: the variance of such a mean is 4 Var(of_items) / n to first
    order (Hoeffding, Ann. Math. Stat. 19, 1948, theorem 7.1). For two sets of the same n prompts, the difference of
    their ``of_items`` gives the paired interval of the difference. A bootstrap would not work here: an item that is
    drawn twice forms a pair with itself.

    Where items are not independent of each other (``clusters``), Var(of_items) / n is that of
    :func:`clustered_variance`, and the quantile is Student's; None with fewer than two clusters.
    """
    values = np.asarray(of_items, dtype=np.float64)
    quantile, error = NormalDist().inv_cdf(0.5 + confidence / 2.0), values.std(ddof=1) / math.sqrt(len(values))
    if clusters is not None and not clusters.singles:
        if clusters.count < 2:
            return None
        error = math.sqrt(clustered_variance(values[:, None], clusters)[0])
        quantile = student(max(1, int(clusters.effective) - 1), confidence)
    half = 2.0 * quantile * error
    return float(values.mean() - half), float(values.mean() + half)


def vendi_score(embeddings: ArrayLike) -> float | None:
    """Effective number of different rows of (n, D), from 1 (all equal) to n (all orthogonal). None if n = 0.

    exp of the Shannon entropy of the eigenvalues of K / n, where K is the cosine kernel: Friedman & Dieng, The Vendi
    Score, TMLR 2023, definition 3.1.
    """
    rows = unit_rows(embeddings)
    n = len(rows)
    if n == 0:
        return None
    # K / n and the D x D matrix of second moments have the same nonzero eigenvalues: use the smaller matrix.
    kernel = rows @ rows.T if n <= rows.shape[1] else rows.T @ rows
    values = np.linalg.eigvalsh(kernel / n)
    values = values[values > 0]  # 0 log 0 = 0; rounding makes some zeros negative
    return float(np.exp(-(values * np.log(values)).sum()))
