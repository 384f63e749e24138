"""Two folders side by side: which images belong together, how different they look, and which of them scored higher."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.cache import stored_scores
from ..evaluation.clusters import clusters_of
from ..evaluation.folder import Folder, FolderError, partners
from ..evaluation.stats import WinRate, win_rate
from ..planning.plan import Plan
from .read import Source
from .thumbs import Look
from .urls import url_of

_TOLERANCE = 1e-6
"""As the default of ``hsd evaluate``."""


@dataclass(frozen=True)
class Scores:
    """The stored scores of one scorer, of both folders."""

    scorer: str
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]
    """(n,) by the images of the first folder; nan where there is none."""
    wins: WinRate


def matched(ours: Source, theirs: Source) -> list[int | None]:
    """For each image of ``ours`` the position in ``theirs`` of the image that it is compared with, or None.

    As :func:`hsd.evaluate` matches them: by index, else by text and seed, else by text. Files without metadata are
    matched by the numbers that are their names, else by name, else by the text that is their name.

    Raises
    ------
    FolderError
        If no image has a partner.
    """
    if ours.plain or theirs.plain:
        found = _by_name(ours, theirs)
    else:
        found = partners(Folder(ours.path, ours.entries), Folder(theirs.path, theirs.entries))
    if all(j is None for j in found):
        raise FolderError(
            f"{ours.path} and {theirs.path} have no image in common: they are matched by index, else by text and seed, "
            "else by text, and files without metadata by their names"
        )
    return found


def _by_name(ours: Source, theirs: Source) -> list[int | None]:
    both = [*ours.entries, *theirs.entries]
    if all(entry.index is not None for entry in both):
        by_index = {entry.index: j for j, entry in enumerate(theirs.entries)}
        return [by_index.get(entry.index) for entry in ours.entries]
    names = [[_names(entry.file_name, entry.text) for entry in source.entries] for source in (ours, theirs)]
    place: dict[Hashable, int] = {}
    for j, several in enumerate(names[1]):
        for name in several:
            place.setdefault(name, j)
    return [next((place[name] for name in several if name in place), None) for several in names[0]]


def _names(file_name: str, text: str) -> list[Hashable]:
    """What a file may be known by, the surest first."""
    stem = str(PurePosixPath(file_name).with_suffix(""))
    return [("stem", stem), *([("stem", text)] if text else []), ("stem", stem.replace("_", " "))]


def scores_of(
    ours: Source, our_looks: Sequence[Look], theirs: Source, their_looks: Sequence[Look], order: Sequence[int | None]
) -> list[Scores]:
    """What ``hsd evaluate`` stored in both folders. Nothing is scored here.

    The wins count pairs of which both images have a score, with intervals as ``hsd evaluate`` gives them.
    """
    first, second = stored_scores(ours.path), stored_scores(theirs.path)
    texts = [entry.text for entry in ours.entries]
    paired = [i for i, j in enumerate(order) if j is not None]
    found = []
    for scorer in sorted(first.keys() & second.keys()):
        a, b = np.full(len(order), np.nan), np.full(len(order), np.nan)
        for i, j in enumerate(order):
            a[i] = first[scorer].get((our_looks[i].digest, texts[i]), math.nan)
            if j is not None:
                b[i] = second[scorer].get((their_looks[j].digest, theirs.entries[j].text), math.nan)
        if np.isnan(a).all() or np.isnan(b).all():
            continue
        roots = _roots(ours, paired), _roots(theirs, [order[i] or 0 for i in paired])
        clusters = clusters_of([texts[i] for i in paired], *roots)
        found.append(Scores(scorer, a, b, win_rate(a[paired], b[paired], clusters, tolerance=_TOLERANCE)))
    return found


def _roots(source: Source, positions: Sequence[int]) -> NDArray[np.int64] | None:
    """The root cluster of each of these images; None where no plan tells."""
    plan: Plan | None = source.plan
    if plan is None or source.mismatch is not None:
        return None
    return plan.active(0)[[source.entries[i].index or 0 for i in positions]]


def overview(
    our_looks: Sequence[Look], their_looks: Sequence[Look], order: Sequence[int | None], scores: Sequence[Scores]
) -> dict[str, Any]:
    """What the pages sort pairs by: values for each image of the first folder, None where there is none."""
    differences = [
        None if j is None else _rounded(our_looks[i].difference(their_looks[j])) for i, j in enumerate(order)
    ]
    return {
        "differences": differences,
        "paired": [int(j is not None) for j in order],
        "scores": [
            {"scorer": one.scorer, "ours": _numbers(one.ours), "theirs": _numbers(one.theirs)} for one in scores
        ],
        "tolerance": _TOLERANCE,
    }


def pages_of_partners(
    theirs: Source, looks: Sequence[Look], order: Sequence[int | None], page_size: int
) -> Iterator[list[Any]]:
    """The second image of each pair, for the same pages as the first; None where there is none."""
    for begin in range(0, len(order), page_size):
        page: list[Any] = []
        for j in order[begin : begin + page_size]:
            if j is None:
                page.append(None)
                continue
            look = looks[j]
            thumb = look.digest if look.has_thumbnail else 0
            page.append(
                [url_of(theirs.entries[j].file_name), look.width, look.height, thumb, look.colour, look.problem or 0]
            )
        yield page


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [_rounded(value) for value in values.tolist()]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
