"""Trunks: what a segment leaves to its children at its end, and which ends of segments are worth their bytes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Trunk:
    """What a child needs to begin where its parent ended. All tensors are on the host."""

    state: Tensor
    """(S, *latent) float32: the latent and what the sampler remembers."""
    generator: Tensor
    """(G,) uint8: the state of the representative's generator after the last step."""
    given: dict[str, Tensor] = field(default_factory=dict)
    """By field name, float32: the mean h of what the path was given before the end. Empty without catch-up."""
    predicted: Tensor | None = None
    """(*latent) float32: the image (x0) that the last step predicts, where the scheduler tells."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        own = [self.state, self.generator, *self.given.values()]
        return sum(tensor.nbytes for tensor in (own if self.predicted is None else [*own, self.predicted]))


@dataclass(frozen=True)
class Start:
    """What a segment without a parent, that does not begin at step 0, begins from."""

    trunk: Trunk
    continues: bool
    """Whether it goes on with the generator: its representative is that of the segment before it."""


class Trunks(Protocol):
    """Where an executor finds and leaves what segments begin from."""

    def starts(self, segment: int) -> Start:
        """What a segment of the plan that runs begins from."""

    def fields(self) -> set[str]:
        """The fields of which some of them have an h."""

    def wanted(self) -> NDArray[np.bool_]:
        """(segments,) of the plan that runs: whose state at their end is to be kept."""

    def keep(
        self,
        segment: int,
        state: Tensor,
        generator: Tensor,
        given: dict[str, Tensor],
        predicted: Tensor | None,
    ) -> None:
        """Keep a state (S, *latent) float32 on the device, and the x0 (*latent) that its last step predicts, if that is
        known. Both belong to the callee.
        """


def most_valuable(
    plan: Plan,
    candidates: NDArray[np.bool_],
    nbytes: int,
    budget: int,
    present: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Which fork points to keep, so that prompts that are added later are expected to save the most steps.

    A prompt that is added later is taken to be like those that are there: it passes a fork point with the share of the
    prompts under it, and saves all steps up to the deepest kept point on its path. So a set is worth the sum over the
    prompts of the end step of the deepest kept point above them, over N.

    Points are taken one by one, each time the one that adds most. What a point adds never grows while others are
    taken (the worth is submodular and monotone), and all points take the same bytes. So the worth is at least 1 - 1/e
    of the best (Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions",
    Mathematical Programming 14, 1978); with ``present``, this holds of what is added to their worth.

    Parameters
    ----------
    plan
        Whose segments end in the fork points.
    candidates
        (segments,) which of them may be kept.
    nbytes
        Bytes of one fork point.
    budget
        Bytes that may be added. Less than ``nbytes`` keeps nothing.
    present
        (segments,) which are kept already. They take none of the budget.

    Returns
    -------
    NDArray[np.bool_]
        (segments,) what to add: candidates that are not present. A point that adds nothing is left out, also where
        there is room; of points that add the same, the one with the lowest index is taken first.

    Raises
    ------
    ValueError
        If a mask does not have one entry for each segment, or ``nbytes`` is not positive.
    """
    segments = plan.segments
    kept = np.zeros(len(segments), np.bool_) if present is None else present
    for name, mask in (("candidates", candidates), ("present", kept)):
        if mask.shape != (len(segments),):
            raise ValueError(f"{name} has shape {mask.shape}, but the plan has {len(segments):,} segments")
    if nbytes < 1:
        raise ValueError(f"nbytes is {nbytes}: a fork point takes at least one byte")
    chosen = np.zeros(len(segments), np.bool_)
    leaves = segments["leaf_end"] - segments["leaf_begin"]
    points = _Points(segments["parent"].tolist(), segments["end_step"].tolist(), leaves.tolist())
    for point in np.flatnonzero(kept).tolist():
        points.keep(point)
    chosen[points.greedy(np.flatnonzero(candidates & ~kept).tolist(), budget // nbytes)] = True
    return chosen


class _Points:
    """The fork points of a plan, some of which are kept.

    Lists and not arrays: all work is on single elements.

    Parameters
    ----------
    parent, end, leaves
        By segment: its parent (-1: none), its end step, the number of prompts under it.
    """

    def __init__(self, parent: list[int], end: list[int], leaves: list[int]) -> None:
        self._parent, self._end, self._leaves = parent, end, leaves
        self._kept = [False] * len(parent)
        self._covered = [0] * len(parent)
        """By segment, prompts that are under kept points below it."""

    def keep(self, point: int) -> None:
        """Keep a point that is not kept."""
        self._kept[point] = True
        # Those under kept points below this one were covered before. Above the nearest kept ancestor nothing changes:
        # all that is under it was covered.
        added, above = self._leaves[point] - self._covered[point], self._parent[point]
        while above >= 0:
            self._covered[above] += added
            if self._kept[above]:
                break
            above = self._parent[above]

    def gain(self, point: int) -> int:
        """What keeping a point adds to the worth, times N: prompts for which it is the deepest, by steps it adds."""
        above = self._parent[point]
        while above >= 0 and not self._kept[above]:
            above = self._parent[above]
        steps = self._end[point] - (self._end[above] if above >= 0 else 0)
        return (self._leaves[point] - self._covered[point]) * steps

    def greedy(self, candidates: list[int], most: int) -> list[int]:
        """Keep up to ``most`` candidates, each time the one with the largest gain; returns them in that order."""
        taken: list[int] = []
        heap = [(-gain, point) for point in candidates if (gain := self.gain(point)) > 0]
        heapq.heapify(heap)
        while heap and len(taken) < most:
            known, point = heap[0]
            gain = self.gain(point)
            # A gain never grows. If this one is as large as it was, it is not below any other's, whatever those are.
            if gain == -known:
                heapq.heappop(heap)
                self.keep(point)
                taken.append(point)
            elif gain > 0:
                heapq.heapreplace(heap, (-gain, point))
            else:
                heapq.heappop(heap)
        return taken
