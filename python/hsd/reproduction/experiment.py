"""What an experiment is, and the pieces that several of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..evaluation.stats import WinRate, mean_of_known, pair_mean_interval, similarity_to_others, vendi_score
from .lab import Lab, Made, PromptSet, Way
from .results import Column, Estimate, Result

Wanted = list[tuple[PromptSet, Way]]

ALL = "all"
"""The name of the row in which the sets are taken together."""


@dataclass(frozen=True)
class Experiment:
    """A question, the images that it takes, and what comes of them."""

    name: str
    """On the command line."""
    title: str
    asks: str
    """What it asks, and how that is measured: Markdown."""
    wants: Callable[[Lab], Wanted]
    """The images, so that all of them can be counted before any is made."""
    report: Callable[[Lab], list[Result]]


def everywhere(lab: Lab, ways: Iterable[Way]) -> Wanted:
    """Each way on each set."""
    return [(prompt_set, way) for way in ways for prompt_set in lab.sets]


def by_set(lab: Lab, way: Way) -> dict[str, list[Made]]:
    """The images made one way: of each set, and of all sets together where there are several."""
    return grouped(everything(lab, way))


def grouped(made: Sequence[Made]) -> dict[str, list[Made]]:
    """By set, and all of them together where there are several."""
    out = {one.prompt_set.name: [one] for one in made}
    if len(made) > 1:
        out[ALL] = list(made)
    return out


def everything(lab: Lab, way: Way) -> list[Made]:
    """The images made one way, of all sets."""
    return [lab.made(prompt_set, way) for prompt_set in lab.sets]


def images(made: Sequence[Made]) -> int:
    """How many there are."""
    return sum(len(one.prompt_set.prompts) for one in made)


def evaluations(made: Sequence[Made]) -> float:
    """Of the denoiser, an image."""
    return sum(one.plan.node_steps for one in made) / images(made)


def saved(lab: Lab, made: Sequence[Made]) -> float:
    """Share of the evaluations that standard diffusion with the study's steps takes."""
    standard = sum(lab.plan(one.prompt_set, Way()).node_steps for one in made)
    return 1.0 - sum(one.plan.node_steps for one in made) / standard


def score(lab: Lab, made: Sequence[Made]) -> Estimate:
    """Mean score, with a bootstrap over prompts."""
    return Estimate(*mean_of_known(*lab.pooled(made), seed=lab.seed))


def difference(wins: WinRate) -> Estimate:
    """Mean of our score minus the other's, image by image."""
    return Estimate(wins.difference, wins.difference_interval)


def win(wins: WinRate) -> Estimate:
    """Share of the pairs that ours wins; a tie is not won."""
    return Estimate(wins.win_rate, wins.win_rate_interval)


def win_half(wins: WinRate) -> Estimate:
    """The same with ties as half: 50 % is alike."""
    return Estimate(wins.win_rate_half_ties, wins.win_rate_half_ties_interval)


def similarity(lab: Lab, made: Sequence[Made], against: Sequence[Made] | None = None) -> Estimate:
    """Mean cosine of all pairs of images within a set, averaged over sets; or how much more than ``against``."""
    of_each = [_of_each(lab, one, None if against is None else against[i]) for i, one in enumerate(made)]
    if any(h is None for h in of_each):
        return Estimate(None)
    rows = [h for h in of_each if h is not None]
    if len(rows) == 1:
        return Estimate(float(rows[0].mean()), pair_mean_interval(rows[0]))
    # Sets are independent of each other: variances of their means add.
    half = [(high - low) / 2.0 for low, high in map(pair_mean_interval, rows)]
    mean, error = float(np.mean([h.mean() for h in rows])), float(np.sqrt(np.square(half).sum()) / len(rows))
    return Estimate(mean, (mean - error, mean + error))


def _of_each(lab: Lab, made: Made, against: Made | None) -> np.ndarray | None:
    embeddings = lab.embeddings(made)
    ours = None if embeddings is None else similarity_to_others(embeddings)
    if ours is None or against is None:
        return ours
    theirs = _of_each(lab, against, None)
    assert theirs is not None, "two folders of the same prompts"
    return ours - theirs


def vendi(lab: Lab, made: Sequence[Made]) -> float | None:
    """The effective number of different images in a set, averaged over sets."""
    values = [None if (rows := lab.embeddings(one)) is None else vendi_score(rows) for one in made]
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


SET = Column("set", "text")
PROMPTS = Column("prompts", "count")
EVALUATIONS = Column("evaluations an image", "count")
SAVED = Column("saved", "share")
COSINE, VENDI = Column("mean cosine"), Column("Vendi score")


class Standing(NamedTuple):
    """How images made one way stand beside those of a base: cells for the columns of :func:`standing_columns`."""

    evaluations: float
    saved: float
    score: Estimate
    more: Estimate
    wins: Estimate
    cosine: Estimate
    vendi: float | None


def standing(lab: Lab, made: Sequence[Made], base: Sequence[Made]) -> Standing:
    """Of the base itself, too, which is compared with nothing."""
    wins = None if list(made) == list(base) else lab.compared(made, base)
    return Standing(
        evaluations(made),
        saved(lab, made),
        score(lab, made),
        Estimate(None) if wins is None else difference(wins),
        Estimate(None) if wins is None else win_half(wins),
        similarity(lab, made),
        vendi(lab, made),
    )


def standing_columns(base: str) -> tuple[Column, ...]:
    """What heads the cells of a :class:`Standing`."""
    more, wins = Column(f"more than {base}", "signed"), Column(f"win % over {base}, ties as half", "share")
    return (EVALUATIONS, SAVED, Column("score"), more, wins, COSINE, VENDI)
