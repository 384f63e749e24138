"""Prompts that a model cannot tell apart, by what it made of them: their encoded conditioning."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..planning.twins import ROUNDING, same_vectors
from ..planning.vectors import Vectors
from .rows import Conditioning, Field

_TOKENS = 4
"""How much further than vectors two rows of one token may be apart: vectors are means, or pooled. Rows of different
tokens differ by about their own length."""


def rounding_of(conditioning: Conditioning) -> float:
    """Up to which share of their length two encodings of one text may differ, for the least exact dtype of the rows."""
    names = [str(field.rows.dtype).removeprefix("torch.") for field in conditioning.fields.values()]
    return max((ROUNDING.get(name, 0.0) for name in names), default=ROUNDING["float32"])


def same_prompts(conditioning: Conditioning, prompts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """For each of ``prompts`` (n,), all by default, the position of the first whose vector is equal up to rounding.

    Where a prior draws each image's embedding from its seed, the vectors are those of the text that the prior reads.
    Prompts that could not be encoded are equal to none: the vectors in their places are those of others.
    """
    vectors = conditioning.vectors if conditioning.texts is None else conditioning.texts
    rounding = rounding_of(conditioning)
    if not conditioning.failed:
        chosen = vectors if prompts is None else vectors[prompts]
        return same_vectors(Vectors(chosen), cosine=False, rounding=rounding)
    every = np.arange(len(vectors)) if prompts is None else prompts
    label = np.arange(len(every))
    good = np.flatnonzero(~np.isin(every, list(conditioning.failed)))
    label[good] = good[same_vectors(Vectors(vectors[every[good]]), cosine=False, rounding=rounding)]
    return label


def same_rows(conditioning: Conditioning, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of ``prompts`` (n,), the position of the first whose whole conditioning is equal up to rounding.

    Equal vectors are where it begins: a vector may be that of the first 77 tokens, where a second encoder reads more.
    The rows of a prior's output differ with the seed; there the texts decide alone.
    """
    label = same_prompts(conditioning, prompts)
    if conditioning.texts is not None:
        return label
    rounding = _TOKENS * rounding_of(conditioning)
    for first in np.unique(label[label != np.arange(len(label))]).tolist():
        members = np.flatnonzero(label == first)
        while len(members):  # of those with equal vectors, the first stands for all that have its rows
            equal = np.array([_equal(conditioning, prompts[members[0]], prompts[i], rounding) for i in members])
            label[members[equal]] = members[0]
            members = members[~equal]
    return label


def _equal(conditioning: Conditioning, i: int, j: int, rounding: float) -> bool:
    return all(_equal_in(field, int(i), int(j), rounding) for field in conditioning.fields.values())


def _equal_in(field: Field, i: int, j: int, rounding: float) -> bool:
    """Whether two prompts have equal rows of one field: each vector of it, which is one token."""
    a, b = int(field.index[i]), int(field.index[j])
    if a == b:
        return True
    if min(a, b) < 0:
        return False
    one, other = field.rows[a], field.rows[b]
    if one.shape != other.shape:
        return False
    return bool(torch.all(_length(one.float() - other.float()) <= rounding * _length(one.float())))


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1) if rows.ndim else rows.abs()
