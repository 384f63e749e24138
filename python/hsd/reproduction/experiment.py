"""What an experiment is, and the parts that several experiments use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..evaluation.stats import WinRate, pair_mean_interval, similarity_to_others, vendi_score
from .lab import GeneratedSet, Lab, PromptSet, Variant
from .results import Column, Estimate, Result

Needed = list[tuple[PromptSet, Variant]]
"""The images that an experiment needs."""

ALL = "all"
"""The name of the row for all sets together."""


@dataclass(frozen=True)
class Experiment:
    """A question, the images that are needed to answer it, and the report."""

    name: str
    """Its name on the command line."""
    title: str
    question: str
    """The question, and how it is measured: Markdown."""
    needs: Callable[[Lab], Needed]
    """Returns the images, so that those of all experiments can be counted before any is generated."""
    report: Callable[[Lab], list[Result]]
    """Returns the tables and figures."""


def for_all_sets(lab: Lab, variants: Iterable[Variant]) -> Needed:
    """Each variant on each set."""
    return [(prompt_set, variant) for variant in variants for prompt_set in lab.sets]


def by_set(lab: Lab, variant: Variant) -> dict[str, list[GeneratedSet]]:
    """The images of one variant, by set, with all seed ranges; under ``ALL`` those of all sets if there are several."""
    return grouped(generate_all_sets(lab, variant))


def grouped(generated: Sequence[GeneratedSet]) -> dict[str, list[GeneratedSet]]:
    """Generated sets by name, and under ``ALL`` all of them if there are several names."""
    out: dict[str, list[GeneratedSet]] = {}
    for one in generated:
        out.setdefault(one.prompt_set.name, []).append(one)
    if len(out) > 1:
        out[ALL] = list(generated)
    return out


def generate_all_sets(lab: Lab, variant: Variant) -> list[GeneratedSet]:
    """The images of one variant, for all sets."""
    return [lab.generate(prompt_set, variant) for prompt_set in lab.sets]


def count_images(generated: Sequence[GeneratedSet]) -> int:
    """Number of images."""
    return sum(len(one.prompt_set.prompts) for one in generated)


def evaluations(generated: Sequence[GeneratedSet]) -> float:
    """Evaluations of the denoiser per image."""
    return sum(one.plan.node_steps for one in generated) / count_images(generated)


def saved(lab: Lab, generated: Sequence[GeneratedSet]) -> float:
    """Share of evaluations saved, compared with standard diffusion with the study's steps."""
    standard = sum(lab.plan(one.prompt_set, Variant()).node_steps for one in generated)
    return 1.0 - sum(one.plan.node_steps for one in generated) / standard


def score(lab: Lab, generated: Sequence[GeneratedSet], *, within_sets: bool = False) -> Estimate:
    """Mean score; its interval resamples :meth:`Lab.clusters`, and ``within_sets`` is as in :meth:`Lab.mean`."""
    mean, interval, clusters = lab.mean(generated, within_sets=within_sets)
    return Estimate(mean, interval, clusters.few)


def difference(wins: WinRate) -> Estimate:
    """Mean of our score minus the other's, image by image."""
    return Estimate(wins.difference, wins.difference_interval, wins.few_clusters)


def mean_difference(
    lab: Lab, ours: Sequence[GeneratedSet], theirs: Sequence[GeneratedSet], *, within_sets: bool = False
) -> Estimate:
    """The mean of :func:`difference` without the win rates; ``within_sets`` is as in :meth:`Lab.mean`."""
    mean, interval, clusters = lab.mean(ours, theirs, within_sets=within_sets)
    return Estimate(mean, interval, clusters.few)


def win(wins: WinRate) -> Estimate:
    """Share of the pairs that our image wins; a tie does not count as a win."""
    return Estimate(wins.win_rate, wins.win_rate_interval, wins.few_clusters and wins.interval != "wilson")


def win_half(wins: WinRate) -> Estimate:
    """The same with ties as half: 50 % means that both score equally well."""
    return Estimate(wins.win_rate_half_ties, wins.win_rate_half_ties_interval, wins.few_clusters)


def similarity(lab: Lab, generated: Sequence[GeneratedSet], against: Sequence[GeneratedSet] | None = None) -> Estimate:
    """Mean cosine of all pairs of images within a set, averaged over sets; or its difference to ``against``."""
    found = [_similarities(lab, one, None if against is None else against[i]) for i, one in enumerate(generated)]
    known = [values for values in found if values is not None]
    if len(known) < len(found):
        return Estimate(None)
    mean = float(np.mean([values.mean() for values in known]))
    # Sets are independent of each other, so the variances of their means add. Seed ranges of one set are not.
    halves, few = [], False
    for name in dict.fromkeys(one.prompt_set.name for one in generated):
        at = [i for i, one in enumerate(generated) if one.prompt_set.name == name]
        clusters = lab.clusters([generated[i] for i in at], None if against is None else [against[i] for i in at])
        starts = np.cumsum([0, *(len(generated[i].prompt_set.prompts) for i in at)])
        clusters = clusters.take(
            np.concatenate([s + lab.sample(generated[i]) for s, i in zip(starts, at, strict=False)])
        )
        interval = pair_mean_interval(np.concatenate([known[i] for i in at]), clusters=clusters)
        if interval is None:
            return Estimate(mean)
        halves.append((interval[1] - interval[0]) / 2.0)
        few = few or clusters.few
    error = float(np.sqrt(np.square(halves).sum()) / len(halves))
    if error == 0.0:  # equal images, for example: no interval, as in :func:`hsd.evaluation.stats.mean_intervals`
        return Estimate(mean)
    return Estimate(mean, (mean - error, mean + error), few)


def _similarities(lab: Lab, generated: GeneratedSet, against: GeneratedSet | None) -> np.ndarray | None:
    """(m,) mean cosine of each image to the others of its set, less that of the same prompt in ``against``."""
    embeddings = lab.embeddings(generated)
    ours = None if embeddings is None else similarity_to_others(embeddings)
    if ours is None or against is None:
        return ours
    theirs = _similarities(lab, against, None)
    assert theirs is not None, "two folders of the same prompts"
    return ours - theirs


def vendi(lab: Lab, generated: Sequence[GeneratedSet]) -> float | None:
    """Effective number of different images in a set, averaged over sets; None if the scorer does not embed images."""
    values = [None if (rows := lab.embeddings(one)) is None else vendi_score(rows) for one in generated]
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


SET = Column("set", "text")
PROMPTS = Column("prompts", "count")
EVALUATIONS = Column("evaluations an image", "count")
SAVED = Column("saved", "share")
COSINE, VENDI = Column("mean cosine"), Column("Vendi score")


class Comparison(NamedTuple):
    """A variant compared with a base: the cells of the columns of :func:`comparison_columns`."""

    evaluations: float
    saved: float
    score: Estimate
    difference: Estimate
    wins: Estimate
    cosine: Estimate
    vendi: float | None


def compare(lab: Lab, generated: Sequence[GeneratedSet], base: Sequence[GeneratedSet]) -> Comparison:
    """Compare a variant's images with a base. If they are the base itself, difference and wins are empty."""
    wins = None if list(generated) == list(base) else lab.win_rate(generated, base)
    return Comparison(
        evaluations(generated),
        saved(lab, generated),
        score(lab, generated),
        Estimate(None) if wins is None else difference(wins),
        Estimate(None) if wins is None else win_half(wins),
        similarity(lab, generated),
        vendi(lab, generated),
    )


def comparison_columns(base: str) -> tuple[Column, ...]:
    """The columns of a :class:`Comparison`."""
    more, wins = Column(f"more than {base}", "signed"), Column(f"win % over {base}, ties as half", "share")
    return (EVALUATIONS, SAVED, Column("score"), more, wins, COSINE, VENDI)
