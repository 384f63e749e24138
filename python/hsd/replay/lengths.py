"""Lengths of token rows where a call holds one length of each: what calls are grouped by, and what a call reads.

Some networks read the padding behind a text, or place the image behind it. For them a prompt that is padded to the
longest of its call would get another image than by itself (``Denoiser.one_length``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..planning.plan import Plan
from .denoiser import Denoiser


@dataclass(frozen=True)
class Lengths:
    """How long the token rows of each segment are.

    Attributes
    ----------
    kinds
        (S,) int64, the kind of each segment. Segments of one kind have the same lengths.
    of_kind
        For each kind, the length of each ragged field by name.
    """

    kinds: NDArray[np.int64]
    of_kind: list[dict[str, int]]

    def run(self, segments: NDArray[np.integer], begin: int) -> int:
        """How many lanes from ``begin`` on have the kind of the first of them; ``segments`` (B,) are the lanes'."""
        other = np.flatnonzero(self.kinds[segments[begin:]] != self.kinds[segments[begin]])
        return int(other[0]) if len(other) else len(segments) - begin


def lengths_of(plan: Plan, conditioning: Conditioning, denoiser: Denoiser) -> Lengths | None:
    """Lengths of the means of the plan's segments; None for a denoiser that reads padded tokens under a mask.

    A mean is as long as its longest member. Fields that all prompts share have one length, and are left out.
    """
    if not denoiser.one_length:
        return None
    names, lengths = lengths_of_prompts(conditioning, plan.covered())
    counted = lengths.copy()
    counted[list(conditioning.failed)] = 0  # they take no part in means
    layers = plan.layers()
    longest, any_longest = layers.longest(counted), layers.longest(lengths)
    table = np.where(longest == 0, any_longest, longest)  # where none was encoded: of what stands in their place
    distinct, kinds = np.unique(table, axis=0, return_inverse=True)
    of_kind = [dict(zip(names, row, strict=True)) for row in distinct.tolist()]
    return Lengths(kinds.reshape(-1).astype(np.int64), of_kind)


def read_by(denoiser: Denoiser, conditioning: Conditioning) -> Conditioning:
    """``conditioning`` as the denoiser reads it: tokens padded, with a mask, or neither where padding would be read."""
    return replace(conditioning, padded=not denoiser.one_length)


def kinds_of(plan: Plan, conditioning: Conditioning, denoiser: Denoiser) -> NDArray[np.int64] | None:
    """(S,) what :meth:`hsd.Plan.program` takes as ``kinds``; None where lanes of any length may share a call."""
    lengths = lengths_of(plan, conditioning, denoiser)
    return None if lengths is None else lengths.kinds


def lengths_of_prompts(conditioning: Conditioning, prompts: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the F ragged fields in which ``prompts`` (n,) differ, and (N, F) their length for each prompt.

    It is 0 for prompts that lack the field.
    """
    _, own = conditioning.split(prompts)
    lengths = {name: field.rows.lengths for name, field in own.fields.items() if field.rows.ragged}
    table = np.zeros((conditioning.n_prompts, len(lengths)), dtype=np.int64)
    for column, (name, of_row) in enumerate(lengths.items()):
        index = own.fields[name].index
        table[:, column] = np.where(index < 0, 0, of_row[index])
    return list(lengths), table


def of_one_length(
    denoiser: Denoiser, conditioning: Conditioning, prompts: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Places in ``prompts`` (n,) of those that may share a call: of each length, or all where lengths may differ."""
    if not denoiser.one_length:
        return [np.arange(len(prompts))]
    own = lengths_of_prompts(conditioning, prompts)[1][prompts]
    return [np.flatnonzero((own == each).all(axis=1)) for each in np.unique(own, axis=0)]
