"""What a scorer is: the protocol, its errors, and the checks of what a scorer returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, get_args

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import Error
from ..names import ScorerName


class ScorerError(Error, RuntimeError):
    """A scorer that cannot be loaded, or that did not return one number per image."""


class Scorer(Protocol):
    """Scores images for their prompts; higher is better.

    Any object with these members is a scorer. The score of an image must not depend on the other images of the call. If
    the scorer also has a method ``embed(images) -> (n, D)``, diversity is measured too.
    """

    @property
    def name(self) -> str:
        """Letters, digits, dots, dashes and underscores: part of the name of the score file."""

    @property
    def version(self) -> str:
        """Has to change when the scores would change: stored scores of other versions are not used."""

    def score(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) scores of n RGB images; nan for an image without a score: it is counted and left out of the mean."""


def check_scorer(scorer: Any) -> Scorer:
    """Return the object, or raise an error that names what is missing."""
    lacks = [part for part in ("name", "version", "score") if not hasattr(scorer, part)]
    if lacks:
        raise TypeError(
            f"the scorer is {type(scorer).__name__}, without {', '.join(lacks)}: pass one of "
            f"{', '.join(get_args(ScorerName))}, or an object with name, version and score(images, prompts)"
        )
    if not isinstance(scorer.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", scorer.name):
        raise ValueError(f"the scorer's name is {scorer.name!r}: letters, digits, dots, dashes and underscores only")
    if not isinstance(scorer.version, str):
        raise TypeError(f"the version of {scorer.name} is {scorer.version!r}, not a string")
    return scorer


def score_batch(scorer: Scorer, images: list[PIL.Image.Image], prompts: list[str]) -> NDArray[np.float64]:
    """(n,) scores, checked."""
    scores = np.asarray(scorer.score(images, prompts), dtype=np.float64)
    if scores.shape != (len(images),):
        raise ScorerError(f"{scorer.name} gave scores of shape {scores.shape} for {len(images)} images: one per image")
    for i in np.flatnonzero(np.isinf(scores))[:1]:
        raise ScorerError(f"{scorer.name} gave {scores[i]} for {prompts[i]!r}: a finite number, or nan for no score")
    return scores


def embed_batch(scorer: Any, images: list[PIL.Image.Image]) -> NDArray[np.float64]:
    """(n, D) embeddings, checked."""
    rows = np.asarray(scorer.embed(images), dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(images):
        raise ScorerError(
            f"{scorer.name} gave embeddings of shape {rows.shape} for {len(images)} images: one per image"
        )
    return rows
