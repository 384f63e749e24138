"""How many latents of a program are alive after each call."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._core import Program
from ..planning.plan import Plan

_CHUNK = 1024
"""Calls that are looked at together."""


def alive_after(plan: Plan, program: Program) -> Iterator[int]:
    """For each call, the number of latents that a later call reads.

    A segment's latent is one from the call in which the segment begins until its last child has begun, or until it is
    finished. Goes through the program chunk by chunk, and does not keep it.
    """
    parent = plan.segments["parent"].astype(np.int64)
    waiting = np.bincount(parent[parent >= 0], minlength=len(parent))  # children that have not begun
    alive = 0
    for chunk in program.chunks(_CHUNK):
        real = chunk["segment"] >= 0
        begins, final = real & (chunk["begins"] != 0), real & (chunk["final"] != 0)
        change = begins.sum(axis=1) - final.sum(axis=1)
        call, lane = np.nonzero(begins)
        for at, one in zip(call.tolist(), parent[chunk["segment"][call, lane]].tolist(), strict=True):
            if one >= 0:
                waiting[one] -= 1
                if not waiting[one]:
                    change[at] -= 1
        for step in change.tolist():
            alive += step
            yield alive
