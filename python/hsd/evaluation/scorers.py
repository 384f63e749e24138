"""What gives images their scores: the protocol, and the scorers that have a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, get_args

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import Error
from ..names import ScorerName, check_name


class ScorerError(Error, RuntimeError):
    """A scorer that cannot be loaded, or that gave something else than one number an image."""


class Scorer(Protocol):
    """Gives each image a score for its prompt; higher is better.

    Any object with these will do. What its score of one image is must not depend on the other images of the call. With
    a method ``embed(images) -> (n, D)`` diversity is measured too.
    """

    @property
    def name(self) -> str:
        """Letters, digits, dots, dashes and underscores: it names the file of scores."""

    @property
    def version(self) -> str:
        """Changes whenever the scores would: scores of other versions are not taken from the file."""

    def score(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) scores of n RGB images; nan where there is nothing to say, such images are counted and left out."""


def check_scorer(scorer: Any) -> Scorer:
    """The object, or an error that says what it lacks."""
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


def make_scorer(name: str, *, model: str | None = None, device: str | None = None, python: str | None = None) -> Scorer:
    """A scorer by name; its weights are loaded when they are first needed.

    Parameters
    ----------
    model
        Another model of the scorer's kind than its default, for those that take one.
    device
        Where it runs. Default: CUDA if there is any; the demo's is the CPU.
    python
        For ``vqascore``, ``hpsv2`` and ``imagereward``: the interpreter of the environment that has their package.

    Raises
    ------
    ValueError
        For an unknown name, or an argument that this scorer does not take.
    ScorerError
        If the package is not there. Says what to install.
    """
    check_name("scorer", name, ScorerName)
    in_process = name in ("demo", "clipscore", "pickscore")
    if in_process and python is not None:
        raise ValueError(f"python={python!r}: {name} runs in this process")
    if name == "demo":
        if model is not None:
            raise ValueError(f"model={model!r}: the scorer demo has one model")
        from ..demo.evaluator import DemoEvaluator

        return check_scorer(DemoEvaluator(device or "cpu"))
    if in_process:
        from .clip import ClipScore, PickScore

        return (ClipScore if name == "clipscore" else PickScore)(model, device)
    from .elsewhere import Elsewhere

    return Elsewhere(name, model=model, device=device, python=python)


def score_batch(scorer: Scorer, images: list[PIL.Image.Image], prompts: list[str]) -> NDArray[np.float64]:
    """(n,) scores, checked."""
    scores = np.asarray(scorer.score(images, prompts), dtype=np.float64)
    if scores.shape != (len(images),):
        raise ScorerError(f"{scorer.name} gave scores of shape {scores.shape} for {len(images)} images: one an image")
    for i in np.flatnonzero(np.isinf(scores))[:1]:
        raise ScorerError(f"{scorer.name} gave {scores[i]} for {prompts[i]!r}: a finite number, or nan for no score")
    return scores


def embed_batch(scorer: Any, images: list[PIL.Image.Image]) -> NDArray[np.float64]:
    """(n, D) embeddings, checked."""
    rows = np.asarray(scorer.embed(images), dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(images):
        raise ScorerError(f"{scorer.name} gave embeddings of shape {rows.shape} for {len(images)} images: one an image")
    return rows
