"""Catch-up conditioning in a run: the difference of each segment to what its path was given before."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from ..conditioning.rows import MASK, Conditioning
from ..planning.catch_up import check_catch_up, differences_left
from ..planning.plan import Plan
from .denoiser import Denoiser


def catch_up_of(plan: Plan, denoiser: Denoiser) -> float:
    """The gamma that ``plan`` runs with: the plan's own, or the default of the model where the plan has none."""
    return denoiser.default_catch_up if plan.catch_up is None else plan.catch_up


def caught_up_fields(plan: Plan, conditioning: Conditioning, gamma: float, given: Collection[str] = ()) -> list[str]:
    """Names of the fields that catch-up changes: floating-point ones whose rows differ within some root cluster, and
    those that an earlier run found to, which computed what is ``given``.

    In all other fields, and in all fields of a plan without sharing, each segment has the mean of its parent.
    """
    if not check_catch_up(gamma):
        return []
    roots = plan.segments[plan.segments["parent"] < 0]
    names = []
    for name, field in conditioning.fields.items():
        if field.rows.dtype.is_floating_point:
            # (N + 1,) how often the row changes up to each leaf, in leaf order
            changes = np.concatenate([[0], np.cumsum(np.diff(field.index[plan.tree.leaf_order]) != 0)])
            if name in given or (changes[roots["leaf_end"] - 1] != changes[roots["leaf_begin"]]).any():
                names.append(name)
    return names


class History:
    """What each path was given up to where a segment begins, h, and the segment's difference to it, d = m - h.

    An h is kept from the begin of the segment whose end it belongs to until the last child of that segment has begun.
    Segments have to begin in an order in which parents come first.

    Parameters
    ----------
    plan
        What runs.
    fields
        From :func:`caught_up_fields`.
    gamma
        Above 0.
    """

    def __init__(self, plan: Plan, fields: list[str], gamma: float) -> None:
        segments = plan.segments
        self._fields = fields
        self._parent, self._first, self._end = segments["parent"], segments["first_step"], segments["end_step"]
        self._origin = plan.layers().origins(self._parent, self._first)
        parents = self._parent[self._parent >= 0]
        self._children = np.bincount(parents, minlength=len(segments))
        self._left = differences_left(plan.n_steps, gamma)
        self._given: dict[int, dict[str, Tensor]] = {}
        self._differences: dict[int, dict[str, Tensor]] = {}  # of the same segments

    def __len__(self) -> int:
        """Number of segments whose h is kept."""
        return len(self._given)

    def given(self, segment: int) -> dict[str, Tensor]:
        """The h at the end of a segment that has begun and of which some child has not: by field, float32. A field of
        differing lengths is as long as its row, without padding.
        """
        return self._given[segment]

    def begin(
        self, segment: int, means: dict[str, Tensor], before: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The row d of each field, (...) in the dtype of its mean; none for a segment that begins at step 0.

        ``means`` are the segment's rows, ``before`` is :meth:`given` of the parent where an earlier run has computed
        it. Where a row is padded, d is 0, and where it is longer than h: nothing was given there. A segment of the same
        mean as its parent goes on with the parent's d.
        """
        rows = {name: _unpadded(means, name).float() for name in self._fields}
        parent = int(self._parent[segment])
        differences: dict[str, Tensor] = {}
        if parent >= 0:
            before = self._given[parent]
        if self._origin[segment] < self._first[segment]:
            differences = self._differences[parent]
        elif before is not None:  # of a field that is not in it, all that share a step have one row
            differences = {name: _difference(row, before.get(name, row)) for name, row in rows.items()}
        if parent >= 0:
            self._children[parent] -= 1
            if not self._children[parent]:
                del self._given[parent], self._differences[parent]
        if self._children[segment]:
            left = float(self._left[self._origin[segment], self._end[segment]])
            self._given[segment] = {
                name: row - left * differences[name] if name in differences else row for name, row in rows.items()
            }
            self._differences[segment] = differences
        return {name: _padded(row, means[name]) for name, row in differences.items()}


def _unpadded(means: dict[str, Tensor], name: str) -> Tensor:
    mask = means.get(name + MASK)
    return means[name] if mask is None else means[name][: int(mask.sum())]


def _difference(row: Tensor, before: Tensor) -> Tensor:
    if not row.ndim or len(before) >= len(row):
        return row - (before[: len(row)] if row.ndim else before)
    difference = torch.zeros_like(row)
    difference[: len(before)] = row[: len(before)] - before
    return difference


def _padded(row: Tensor, mean: Tensor) -> Tensor:
    """A row in the dtype and the length of ``mean``."""
    if row.shape == mean.shape:
        return row.to(mean.dtype)
    padded = torch.zeros_like(mean)
    padded[: len(row)] = row.to(mean.dtype)
    return padded
