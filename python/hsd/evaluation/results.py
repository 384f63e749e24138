"""The result of an evaluation: its numbers, and the table that is printed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .clusters import ClusterKind
from .stats import Interval, WinRate


@dataclass(frozen=True)
class Fidelity:
    """How well the images show what their prompts describe, by the scorer."""

    images: int
    """Images with a score."""
    unscored: int
    """Images without a score (nan): not in the mean."""
    prompts: int
    """Different prompts of the images with a score."""
    mean: float | None
    interval: Interval | None
    """95 %, by resampling clusters (:func:`hsd.evaluation.stats.mean_intervals`); None with fewer than two, and where
    the mean is equal in all of them."""
    clusters: int
    """The number of clusters of images that are not independent."""
    clustered_by: ClusterKind
    """What these clusters are: prompts, or also root clusters, whose images began from one trunk."""
    few_clusters: bool
    """Whether the interval rests on so few clusters that it is rough: a bootstrap's is too narrow."""


@dataclass(frozen=True)
class Spread:
    """How dissimilar the images of a set are, by the scorer's embeddings."""

    images: int
    mean_cosine: float
    """Mean cosine similarity of all pairs; lower is more diverse."""
    vendi: float
    """Effective number of different images, from 1 to ``images``; higher is more diverse."""


@dataclass(frozen=True)
class SpreadWithin:
    """How dissimilar the images of one prompt are: means over prompts."""

    prompts: int
    images_a_prompt: float
    mean_cosine: float
    interval: Interval | None
    """95 %, for ``mean_cosine``, by resampling prompts, or the root clusters that they are in; None as for a score."""
    vendi: float


@dataclass(frozen=True)
class Diversity:
    """Diversity of a random sample of the folder, and of the images of one prompt where prompts have several images."""

    sample: Spread | None
    within_prompts: SpreadWithin | None


@dataclass(frozen=True)
class Measured:
    """The measurements of one folder."""

    folder: str
    images: int
    fidelity: Fidelity
    diversity: Diversity | None
    """None if the scorer does not embed images."""


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`hsd.evaluate`. ``print`` it, or use :meth:`numbers`."""

    scorer: str
    version: str
    measured: Measured
    against: Measured | None
    wins: WinRate | None
    """Wins of ``measured`` over ``against``."""

    def numbers(self) -> dict[str, Any]:
        """All numbers, for programs; a number that could not be computed is None."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        ours = self.measured
        against = "" if self.against is None else f" against {self.against.folder}"
        score = _number(ours.fidelity.mean)
        return f"<hsd.Evaluation: {ours.folder}{against}, {ours.images:,} images, mean score {score} by {self.scorer}>"

    def __str__(self) -> str:
        lines = [("scorer", f"{self.scorer} ({self.version})"), *_folder(self.measured)]
        if self.against is not None:
            lines += [("", ""), ("against", self.against.folder), *_folder(self.against)[1:]]
        if self.wins is not None:
            lines += [("", ""), *_wins(self.wins)]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _folder(found: Measured) -> list[tuple[str, str]]:
    score = found.fidelity
    left_out = f"; {score.unscored:,} without a score" if score.unscored else ""
    lines = [
        ("folder", found.folder),
        ("images", f"{found.images:,}{left_out}"),
        ("mean score", f"{_number(score.mean)}{_between(score.interval, score)}, {score.prompts:,} prompts"),
        *_clusters(score),
    ]
    if found.diversity is None:
        return [*lines, ("diversity", "not measured: this scorer does not embed images")]
    sample, within = found.diversity.sample, found.diversity.within_prompts
    if sample is not None:
        lines.append(
            (
                "diversity",
                f"mean cosine {sample.mean_cosine:.4g} (lower is more diverse), "
                f"Vendi score {sample.vendi:.4g} of {sample.images:,}",
            )
        )
    if within is not None:
        lines.append(
            (
                "within prompts",
                f"mean cosine {within.mean_cosine:.4g}{_between(within.interval)}, Vendi score {within.vendi:.3g} of "
                f"{within.images_a_prompt:.3g}; {within.prompts:,} prompts",
            )
        )
    return lines


def _wins(found: WinRate) -> list[tuple[str, str]]:
    left_out = f"; {found.unscored:,} without a score" if found.unscored else ""
    return [
        ("pairs", f"{found.pairs:,}: {found.wins:,} wins, {found.ties:,} ties, {found.losses:,} losses{left_out}"),
        ("win rate", f"{_share(found.win_rate)}{_between(found.win_rate_interval, found, _share)}"),
        (
            "  ties as half",
            f"{_share(found.win_rate_half_ties)}{_between(found.win_rate_half_ties_interval, found, _share)}",
        ),
        ("difference", f"{_number(found.difference, '+')}{_between(found.difference_interval, found, _signed)}"),
        *_clusters(found),
    ]


def _clusters(found: Fidelity | WinRate) -> list[tuple[str, str]]:
    """What was resampled, where this is not one cluster for each prompt, or where it is little."""
    few = "; few: the intervals are rough" if found.few_clusters and found.clusters > 1 else ""
    if found.clustered_by == "prompts":
        return [("  intervals", f"by {found.clusters:,} prompts{few}")] if few else []
    kind = found.clustered_by if found.clusters != 1 else found.clustered_by.replace("clusters", "cluster")
    return [("  intervals", f"by {found.clusters:,} {kind}{few}")]


def _number(value: float | None, sign: str = "") -> str:
    return "none" if value is None else f"{value:{sign}.4g}"


def _signed(value: float | None) -> str:
    return _number(value, "+")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _between(interval: Interval | None, of: Fidelity | WinRate | None = None, show: Any = _number) -> str:
    """The interval of a mean over the clusters ``of``, or why there is none."""
    if interval is not None:
        return f" (95 %: {show(interval[0])} to {show(interval[1])})"
    return f" (no interval: equal in all {of.clustered_by})" if of is not None and of.clusters > 1 else ""
