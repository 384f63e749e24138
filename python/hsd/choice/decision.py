"""Paired differences to the standard way with their bounds, and the choice of a setting from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluation.clusters import Clusters
from ..evaluation.stats import crossed_intervals
from .grid import Setting

CONFIDENCE = 0.95
"""One-sided: of either bound by itself."""

FEW = 10
"""With fewer independent clusters the sentence warns: the bounds are approximate then."""

MOST_TIMES = 100
"""The largest factor by which the sentence says that a sample should be larger."""

Answer = Literal["share", "do not share", "keep the standard settings"]


class Difference(NamedTuple):
    """Mean of paired differences, with one-sided bounds."""

    mean: float
    lower: float
    """Minus infinity with fewer than two clusters, as one cannot show how clusters vary."""
    upper: float
    pairs: int
    clusters: int
    """The number of clusters of equal size that show as much, rounded down."""


def paired(ours: ArrayLike, theirs: ArrayLike, *groupings: NDArray[np.int64]) -> Difference:
    """The mean difference of scores (n,) and its one-sided 95 % bounds, where pairs depend on each other.

    Parameters
    ----------
    ours, theirs
        Scores of the same prompts and seeds; pairs with a nan are left out.
    groupings
        Each (n,): pairs are independent if they have different labels in all of them. The bounds are those of
        :func:`hsd.evaluation.stats.crossed_intervals`: a percentile bootstrap is too narrow for the few clusters that a
        sample has.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert first.shape == (len(first),), first.shape
    assert all(labels.shape == first.shape for labels in (second, *groupings)), first.shape
    known = ~(np.isnan(first) | np.isnan(second))
    delta = (first - second)[known]
    if not len(delta):
        return Difference(math.nan, -math.inf, math.inf, 0, 0)
    clusters = Clusters(tuple(labels[known].astype(str) for labels in groupings), "prompts and root clusters")
    found = crossed_intervals(delta, clusters, confidence=2.0 * CONFIDENCE - 1.0)
    lower, upper = (-math.inf, math.inf) if found is None else found[0]
    return Difference(float(delta.mean()), lower, upper, len(delta), int(clusters.effective))


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
        f"{best.score:.3f} against {best.standard_score:.3f}; the difference is {_with_bound(best.difference)}, "
        f"within the margin of {margin:g}."
    )


def _keep(standard: Comparison, near: Comparison | None, margin: float) -> str:
    what = f"Keep the standard settings ({standard.setting}, no sharing)"
    if near is None:
        return f"{what}: no cheaper setting was compared on the whole sample."
    return (
        f"{what}: no cheaper one is shown to lose less than {margin:g}. The nearest is {near.setting}: score "
        f"{near.score:.3f} against {near.standard_score:.3f}, a difference of {_with_bound(near.difference)}."
    )


def _with_bound(found: Difference) -> str:
    clusters = f"{found.clusters} independent cluster{'s' if found.clusters != 1 else ''}"
    if math.isinf(found.lower):
        return f"{signed(found.mean)} (no bound: {clusters})"
    return f"{signed(found.mean)} (95 %: above {signed(found.lower)}; {found.pairs} pairs, {clusters})"


def signed(value: float) -> str:
    """Four digits with a sign; what rounds to zero is not negative."""
    return f"{round(value, 4) + 0.0:+.4f}"


def _caveats(one: Comparison | None, margin: float) -> tuple[str, ...]:
    """What limits the answer: few clusters, or a sample that is too small for the margin."""
    if one is None:
        return ()
    found, out = one.difference, []
    if found.clusters < FEW:
        out.append(
            f"Independent clusters of prompts: {found.clusters}, too few for a reliable bound. Take a larger --sample, "
            "or more --seeds"
        )
    if found.lower <= -margin < found.mean and math.isfinite(found.lower):
        # The width of the interval falls with the square root of the number of clusters.
        ratio = (found.mean - found.lower) / (found.mean + margin)
        times = f"about {math.ceil(ratio**2)}" if ratio < MOST_TIMES**0.5 else f"more than {MOST_TIMES}"
        out.append(
            f"The sample is too small to tell: if the difference stays the same, {times} times as many images would "
            "show it"
        )
    return tuple(out)
