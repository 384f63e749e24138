"""Paired differences to the standard way with their bounds, and the choice of a setting from them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .grid import Setting

CONFIDENCE = 0.95
"""One-sided: of either bound by itself."""

FEW = 10
"""With fewer independent clusters the sentence warns: the bounds are approximate then."""

Answer = Literal["share", "do not share", "keep the standard settings"]


class Difference(NamedTuple):
    """Mean of paired differences, with one-sided bounds."""

    mean: float
    lower: float
    """Minus infinity with fewer than two clusters, as one cannot show how clusters vary."""
    upper: float
    pairs: int
    clusters: int


def paired(ours: ArrayLike, theirs: ArrayLike, clusters: Sequence[Hashable]) -> Difference:
    """The mean difference of scores (n,) and its one-sided 95 % bounds, for clusters of dependent pairs.

    Cluster-robust variance of a mean, with Student's t of clusters - 1 degrees of freedom: Cameron & Miller, A
    Practitioner's Guide to Cluster-Robust Inference, J. Human Resources 50 (2015), sections II and VI. A percentile
    bootstrap is too narrow for the few clusters that a sample has.

    Parameters
    ----------
    ours, theirs
        Scores of the same prompts and seeds; pairs with a nan are left out.
    clusters
        n labels: pairs with the same label are not taken as independent.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert first.shape == second.shape == (len(clusters),), (first.shape, second.shape, len(clusters))
    known = ~(np.isnan(first) | np.isnan(second))
    delta = (first - second)[known]
    if not len(delta):
        return Difference(math.nan, -math.inf, math.inf, 0, 0)
    index: dict[Hashable, int] = {}
    label = np.array([index.setdefault(c, len(index)) for c, is_known in zip(clusters, known, strict=True) if is_known])
    mean, n = float(delta.mean()), len(index)
    if n < 2:
        return Difference(mean, -math.inf, math.inf, len(delta), n)
    deviation = np.bincount(label, delta - mean)
    error = math.sqrt(n / (n - 1) * float(deviation @ deviation)) / len(delta)
    half = t_quantile(CONFIDENCE, n - 1) * error
    return Difference(mean, mean - half, mean + half, len(delta), n)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, for probabilities above a half, to about five digits.

    With x = sqrt(degrees) tan(angle) its density becomes proportional to cos(angle)^(degrees - 1), which is integrated
    on a grid.
    """
    angle = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2.0)])
    found = float(np.interp(2.0 * probability - 1.0, area / area[-1], angle))
    return math.sqrt(degrees) * math.tan(found)


@dataclass(frozen=True)
class Comparison:
    """A setting compared with the standard way, at the last rung that it reached."""

    setting: Setting
    cost: float
    """Rows of the network for an image of the whole set, the prior's included."""
    saved: float
    """Share of the standard way's cost that is saved."""
    tau: float
    """The threshold that gives ``setting.budget`` on the whole set."""
    rung: int
    score: float
    """Mean score of its images."""
    standard_score: float
    """The standard way's, of the same prompts and seeds."""
    difference: Difference
    cosine: float | None = None
    """Mean cosine of the images to each other: lower is more diverse. None if the scorer does not embed images."""
    standard_cosine: float | None = None

    def hopeful(self, margin: float) -> bool:
        """Whether the interval allows that the setting is not worse by more than ``margin``."""
        return self.difference.upper > -margin

    def passes(self, margin: float) -> bool:
        """Whether it is shown that the setting is not worse by more than ``margin``."""
        return self.difference.lower > -margin


@dataclass(frozen=True)
class Decision:
    """What to do, and why."""

    answer: Answer
    chosen: Setting
    sentence: str
    caveats: tuple[str, ...]


def decide(standard: Comparison, compared: Sequence[Comparison], margin: float, last_rung: int) -> Decision:
    """The cheapest setting that is not worse than standard by more than ``margin``; the standard one if none is.

    Only settings that reached the last rung can be chosen. Of equal cost, the one that scores best; then the first.

    Parameters
    ----------
    standard
        The standard way, compared with itself.
    compared
        All other settings.
    """
    final = [one for one in compared if one.rung == last_rung and one.cost < standard.cost]
    passing = [one for one in final if one.passes(margin)]
    if not passing:
        near = max(final, key=lambda one: (one.difference.lower, -one.cost), default=None)
        return Decision(
            "keep the standard settings", standard.setting, _keep(standard, near, margin), _caveats(near, margin)
        )
    best = min(passing, key=lambda one: (one.cost, -one.difference.mean))
    answer: Answer = "share" if best.setting.budget else "do not share"
    return Decision(answer, best.setting, _take(best, standard, margin), _caveats(best, margin))


def _take(best: Comparison, standard: Comparison, margin: float) -> str:
    what = f"Take {best.setting}" if best.setting.budget else f"Do not share: take {best.setting}"
    return (
        f"{what}: {best.cost:.3g} rows an image instead of {standard.cost:.3g} ({best.saved:.0%} less), score "
        f"{best.score:.3f} against {best.standard_score:.3f}; the difference is {_signed(best.difference)}, "
        f"within the margin of {margin:g}."
    )


def _keep(standard: Comparison, near: Comparison | None, margin: float) -> str:
    what = f"Keep the standard settings ({standard.setting}, no sharing)"
    if near is None:
        return f"{what}: no cheaper setting was compared on the whole sample."
    return (
        f"{what}: no cheaper one is shown to lose less than {margin:g}. The nearest is {near.setting}: score "
        f"{near.score:.3f} against {near.standard_score:.3f}, a difference of {_signed(near.difference)}."
    )


def _signed(found: Difference) -> str:
    clusters = f"{found.clusters} independent cluster{'s' if found.clusters != 1 else ''}"
    if math.isinf(found.lower):
        return f"{found.mean:+.4f} (no bound: {clusters})"
    return f"{found.mean:+.4f} (95 %: above {found.lower:+.4f}; {found.pairs} pairs, {clusters})"


def _caveats(one: Comparison | None, margin: float) -> tuple[str, ...]:
    """What limits the answer: few clusters, or a sample that is too small for the margin."""
    if one is None:
        return ()
    found, out = one.difference, []
    if found.clusters < FEW:
        out.append(
            f"There are only {found.clusters} independent clusters of prompts, too few for a reliable bound: take a "
            "larger --sample, or more --seeds"
        )
    if found.lower <= -margin < found.mean and math.isfinite(found.lower):
        # The width of the interval falls with the square root of the number of clusters.
        times = math.ceil(((found.mean - found.lower) / (found.mean + margin)) ** 2)
        out.append(
            f"The sample is too small to tell: if the difference stays the same, about {times} times as many images "
            "would show it"
        )
    return tuple(out)


def components(labels: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """(n,) labels of the groups of items that are linked by an equal label in any of the ``labels`` (n,)."""
    out = np.unique(labels[0], return_inverse=True)[1]
    for other in labels[1:]:
        while True:
            # Each group takes the lowest label among those that it is linked with, until nothing changes.
            before = out
            _, place = np.unique(other, return_inverse=True)
            lowest = np.full(place.max() + 1, len(out))
            np.minimum.at(lowest, place, out)
            joined = np.full(out.max() + 1, len(out))
            np.minimum.at(joined, out, lowest[place])
            out = joined[out]
            if np.array_equal(out, before):
                break
    return np.unique(out, return_inverse=True)[1]
