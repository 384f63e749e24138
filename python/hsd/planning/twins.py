"""Twins: different prompts that nothing in their vectors tells apart. Their images are replicas, as repeats are.

Prompts at distance 0 would share every step but the last and come out as one picture. So they count as one prompt that is
given twice: the second is another image, in a tree of its own (``planning/clustering.py``: ``replica_tree``).

Equal means equal up to rounding. One text encoded in two batches, or at two places of one batch, may differ in its last
bits. How near is near enough therefore depends on the numbers, see :data:`ROUNDING`. It is far below the distance of
prompts that a model tells apart: the largest cosine distance that counts as 0 is 5e-11 in single precision, 2e-6 in
half and 5e-5 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .clustering import Vectors
from .prompts import occurrences

ROUNDING = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Length of the difference of two vectors, as a share of their own, up to which they are equal. Double precision counts
as single: embeddings were computed in single precision at best."""

_CHUNK = 4096
"""Rows that are read at a time: vectors may be memory-mapped."""

_DIRECTIONS = 32
"""Numbers that a row is projected to."""

_AXES = 12
"""How many of them the cells of a grid are made of."""

_GRIDS = 12

_BLOCK = 256
"""Rows of a cell that are compared with all others at once."""


def replicas(labels: NDArray[np.int64], variant: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(N,) the replica of each image, for ``replica_tree``: the r-th with a label and a variant is in the r-th replica
    of the variant. Images of different variants (settings) are in different replicas.
    """
    if variant is None:
        return occurrences(labels.tolist())
    earlier = occurrences(list(zip(labels.tolist(), variant.tolist(), strict=True)))
    return earlier * (int(variant.max()) + 1) + variant


def same_texts(prompts: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the index of the first prompt with the same text."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(prompt, i) for i, prompt in enumerate(prompts)], dtype=np.int64)


def same_vectors(vectors: Vectors, *, cosine: bool, rounding: float | None = None) -> NDArray[np.int64]:
    """(M,) the index of the first row that is equal to each row up to rounding: its own for most.

    Rows are projected to a few numbers, and only those that are in one cell of a grid are compared: the time is linear in
    M, unless very many are nearly equal. All rows have to be finite.

    Parameters
    ----------
    vectors
        (M, D) as clustered.
    cosine
        Whether only directions count, not lengths.
    rounding
        Default: that of the dtype of the vectors, see :data:`ROUNDING`.
    """
    array = vectors.array
    limit = ROUNDING["bfloat16" if vectors.bfloat16 else array.dtype.name] if rounding is None else rounding
    label = np.arange(len(array), dtype=np.int64)
    projected = _projections(vectors)
    # Projected to one of D dimensions, two equal rows differ by limit / sqrt(D). A boundary may still part them, but not
    # the boundaries of all grids, each of which is moved at random.
    cell = 8 * limit / np.sqrt(array.shape[1])
    random = np.random.default_rng(1)
    for _ in range(_GRIDS):
        alone = np.flatnonzero(label == np.arange(len(label)))  # one of each group that was found
        cells = np.floor(projected[alone, :_AXES] / cell + random.random(_AXES)).astype(np.int64)
        key = cells @ (random.integers(0, 2**62, _AXES) * 2 + 1)  # wraps; equal by chance: compared in vain
        order = np.argsort(key, kind="stable")
        begins = np.flatnonzero(np.diff(key[order], prepend=key[order[:1]] - 1))
        ends = np.append(begins[1:], len(order))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if end - begin > 1:
                _label_equal(vectors, projected, alone[order[begin:end]], label, cosine, limit)
    return label[label]


def joined(*labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the least index that each is joined with, by any of ``labels`` (N,) each, over any number of others."""
    groups = [np.unique(label, return_inverse=True)[1] for label in labels]
    least, before = np.arange(len(groups[0]), dtype=np.int64), None
    while before is None or not np.array_equal(before, least):
        before = least
        for group in groups:
            lowest = np.full(len(group), len(group), dtype=np.int64)
            np.minimum.at(lowest, group, least)
            least = lowest[group]
    return least


def _label_equal(
    vectors: Vectors,
    projected: NDArray[np.float32],
    members: NDArray[np.int64],
    label: NDArray[np.int64],
    cosine: bool,
    limit: float,
) -> None:
    """Give each of ``members``, which ascend and have their own label, that of the first one that it is equal to."""
    points = projected[members].astype(np.float64)  # differences of near ones have few digits left in single precision
    squares = np.einsum("ij,ij->i", points, points)
    # The squared difference of two projections is _DIRECTIONS / D of that of the rows, give or take some: four times is far
    # beyond chance.
    most = 4 * limit**2 * _DIRECTIONS / vectors.array.shape[1]
    for start in range(0, len(members), _BLOCK):
        block = slice(start, start + _BLOCK)
        if (label[members[block]] < members[block]).all():
            continue
        near = squares[block, None] + squares - 2 * points[block] @ points.T <= most
        for i in np.flatnonzero(near.sum(axis=1) > 1) + start:
            others = np.flatnonzero(near[i - start])
            others = others[(others > i) & (label[members[others]] == members[others])]
            if not len(others) or label[members[i]] < members[i]:
                continue
            rows = _read(vectors, members[np.concatenate([[i], others])])
            rows = _unit(rows) if cosine else rows / (np.abs(rows).max() or 1.0)
            lengths = np.linalg.norm(rows, axis=1)
            equal = np.linalg.norm(rows - rows[0], axis=1) <= limit * np.maximum(lengths, lengths[0])
            label[members[others[equal[1:]]]] = members[i]


def _projections(vectors: Vectors) -> NDArray[np.float32]:
    """(M, directions) the direction of each row, projected: nearly the same for rows that are equal."""
    n, columns = vectors.array.shape
    directions = np.random.default_rng(0).normal(size=(columns, _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    out = np.empty((n, _DIRECTIONS), dtype=np.float32)
    for start in range(0, n, _CHUNK):
        at = slice(start, min(start + _CHUNK, n))
        out[at] = _unit(_read(vectors, at)) @ directions
    return out


def _read(vectors: Vectors, rows: NDArray[np.int64] | slice) -> NDArray[np.float64]:
    """Rows in double precision."""
    picked = vectors.array[rows]
    if vectors.bfloat16:
        picked = (picked.astype(np.uint32) << 16).view(np.float32)
    return picked.astype(np.float64)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; rows of zeros stay. Without overflow, whatever their length."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1.0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)  # 1 at least, unless all are 0
