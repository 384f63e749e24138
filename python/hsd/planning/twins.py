"""Twins: different prompts that nothing in their vectors tells apart. Their images are replicas, as repeats are.

Prompts at distance 0 would share every step but the last and come out as one picture. So they count as one prompt that
is given twice: the second is another image, in another tree (``planning/clustering.py``: ``replica_tree``).

Equal means equal up to rounding. One text encoded in two batches, or at two places of one batch, may differ in its last
bits. How near is near enough therefore depends on the numbers, see :data:`ROUNDING`. It is far below the distance of
prompts that a model tells apart: the largest cosine distance that counts as 0 is 5e-11 in single precision, 2e-6 in
half and 5e-5 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .vectors import Vectors

ROUNDING = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Length of the difference of two vectors, as a share of their own, up to which they are equal. Double precision counts
as single: embeddings were computed in single precision at best."""

_CHUNK = 2**14
"""Numbers that are read at a time: vectors may be memory-mapped, and are never copied as a whole."""

_WIDTH = 512
"""Columns that are read at a time."""

_DIRECTIONS = 32
"""Numbers that a row is projected to."""

_AXES = 12
"""How many of them the cells of a grid are made of."""

_GRIDS = 12

_BLOCK = 256
"""Rows of a cell that are compared with all others at once."""


def replicas(
    labels: Sequence[NDArray[np.int64]], variant: NDArray[np.int64], alone: Sequence[int] = ()
) -> NDArray[np.int64]:
    """(N,) the replica of each image, for ``replica_tree``. Two images are in different ones if they have an equal
    label, in any of ``labels`` (N,) each, or different settings, which is their ``variant`` (N,).

    With one kind of label the r-th image with a label and a variant is in the r-th replica of the variant. Each of the
    images ``alone`` is in a replica by itself, and their labels do not count.
    """
    if len(alone):
        rest = np.setdiff1d(np.arange(len(variant)), alone)
        out = np.empty(len(variant), dtype=np.int64)
        out[rest] = replicas([label[rest] for label in labels], variant[rest])
        out[list(alone)] = out[rest].max() + 1 + np.arange(len(alone))
        return out
    following: dict[tuple[int, int, int], int] = {}
    out = np.empty(len(variant), dtype=np.int64)
    for i, (which, *own) in enumerate(zip(variant.tolist(), *(label.tolist() for label in labels), strict=True)):
        keys = [(kind, label, which) for kind, label in enumerate(own)]
        out[i] = max(following.get(key, 0) for key in keys)
        following.update(dict.fromkeys(keys, int(out[i]) + 1))
    return out * (int(variant.max()) + 1) + variant


def same_texts(prompts: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the index of the first prompt with the same text."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(prompt, i) for i, prompt in enumerate(prompts)], dtype=np.int64)


def same_vectors(vectors: Vectors, *, cosine: bool, rounding: float | None = None) -> NDArray[np.int64]:
    """(M,) the index of the first row that is equal to each row up to rounding: its own for most.

    Rows are projected to a few numbers, and only those that are in one cell of a grid are compared: the time is linear
    in M, unless very many are nearly equal. All rows have to be finite.

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
    # Projected to one of D dimensions, two equal rows differ by limit / sqrt(D). A boundary may still part them, but
    # not the boundaries of all grids, each of which is moved at random.
    cell = 8 * limit / np.sqrt(array.shape[1])
    random = np.random.default_rng(1)
    for _ in range(_GRIDS):
        alone = np.flatnonzero(label == np.arange(len(label)))  # one of each group that was found
        cells = np.floor(projected[alone, :_AXES] / cell + random.random(_AXES)).astype(np.int64)
        key = cells @ (random.integers(0, 2**62, _AXES) * 2 + 1)  # wraps; unequal cells with one key cost only time
        order = np.argsort(key, kind="stable")
        begins = np.flatnonzero(np.diff(key[order], prepend=key[order[:1]] - 1))
        ends = np.append(begins[1:], len(order))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if end - begin > 1:
                _label_equal(vectors, projected, alone[order[begin:end]], label, cosine, limit)
    return label[label]


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
    # The squared difference of two projections is about _DIRECTIONS / D of that of the rows. It varies, but is
    # practically never four times as much.
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
            label[members[others[_equal(vectors, int(members[i]), members[others], cosine, limit)]]] = members[i]


def _equal(vectors: Vectors, row: int, others: NDArray[np.int64], cosine: bool, limit: float) -> NDArray[np.bool_]:
    """(m,) which rows of ``others`` (m,) are equal to ``row``."""
    equal = np.empty(len(others), dtype=bool)
    step = max(1, _CHUNK // vectors.array.shape[1])
    for start in range(0, len(others), step):
        rows = vectors.rows(np.concatenate([[row], others[start : start + step]]))
        largest = np.abs(rows).max(axis=1 if cosine else None, keepdims=True)
        rows /= np.where(largest > 0, largest, 1.0)  # lengths do not overflow, however large the numbers are
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if cosine:
            rows /= np.maximum(lengths, 1.0)  # 1 at least, unless all are 0
            lengths = np.minimum(lengths, 1.0)
        rows -= rows[0].copy()
        apart = np.linalg.norm(rows, axis=1)
        equal[start : start + step] = (apart <= limit * np.maximum(lengths[:, 0], lengths[0]))[1:]
    return equal


def _projections(vectors: Vectors) -> NDArray[np.float32]:
    """(M, directions) the direction of each row, projected: nearly the same for rows that are equal."""
    n, columns = vectors.array.shape
    starts = range(0, columns, _WIDTH)
    few = [_directions(start, columns) for start in starts] if len(starts) <= 16 else None
    out = np.empty((n, _DIRECTIONS), dtype=np.float32)
    step = max(1, _CHUNK // min(columns, _WIDTH))
    for first in range(0, n, step):
        at = slice(first, min(first + step, n))
        blocks = [(at, slice(start, start + _WIDTH)) for start in starts]
        largest = np.max([np.abs(vectors.rows(block)).max(axis=1) for block in blocks], axis=0)
        scale = np.where(largest > 0, largest, 1.0)[:, None]
        sums, squares = np.zeros((len(scale), _DIRECTIONS)), np.zeros(len(scale))
        for k, block in enumerate(blocks):
            rows = vectors.rows(block)
            rows /= scale
            squares += np.einsum("ij,ij->i", rows, rows)
            sums += rows @ (_directions(starts[k], columns) if few is None else few[k])
        out[at] = sums / np.sqrt(np.maximum(squares, 1.0))[:, None]  # 1 at least, unless all are 0
    return out


def _directions(start: int, columns: int) -> NDArray[np.float64]:
    """Rows of a (columns, directions) matrix of random directions, of about unit length: at most ``_WIDTH`` of them."""
    count = min(_WIDTH, columns - start)
    return np.random.default_rng(start).normal(size=(count, _DIRECTIONS)) / np.sqrt(columns)
