"""Shrink a scheduler's memory: drop tensors that are never read again, keep one of those that are always equal.

Schedulers keep more than they read (IPNDM keeps every model output; DPM-Solver++ 2M keeps two and reads one), and
each tensor takes as much memory in every slot as a latent.  Both passes are exact: no coefficient is treated as 0
because it is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.sampler.probe import Node, StepMap


def reduce(steps: list[StepMap]) -> list[StepMap]:
    """Return steps that compute the same latents with as few remembered tensors as the two passes find."""
    return _merge_duplicates(steps, _live(steps))


def _live(steps: list[StepMap]) -> list[list[int]]:
    """Return, for every boundary between steps (before step 0 .. after the last), the state entries read later.

    As in a compiler's liveness analysis, from the last step backwards: an entry is live before a step if the step
    reads it to compute something that is live after the step.
    """
    live = [{0}]  # after the last step only the latent matters
    for step in reversed(steps):
        read = _columns_used(step.outputs[sorted(live[0])])
        first_node = step.outputs.shape[1] - len(step.nodes)
        for j in reversed(range(len(step.nodes))):
            if first_node + j in read:
                read |= _columns_used(step.nodes[j].coefficients[None])
        read |= _columns_used(step.scale[None])
        live.insert(0, {0} | {column for column in read if column < step.n_state})
    return [sorted(entries) for entries in live]


def _columns_used(coefficients: Tensor) -> set[int]:
    """Return the columns of (n, n_columns) that have a coefficient other than 0."""
    return set(coefficients.ne(0).any(0).nonzero().flatten().tolist())


def _merge_duplicates(steps: list[StepMap], live: list[list[int]]) -> list[StepMap]:
    """Drop entries that are not `live`, and keep one of the entries that always hold the same value."""
    groups = [[entry] for entry in live[0]]  # groups[g]: original state entries that reduced entry g replaces
    reduced = []
    for step, live_after in zip(steps, live[1:], strict=True):
        outputs = {entry: _fold(step.outputs[entry], groups, step.n_state) for entry in live_after}
        groups_after: list[list[int]] = []
        for entry, output in outputs.items():
            same = next((group for group in groups_after if torch.equal(outputs[group[0]], output)), None)
            if same is None:
                groups_after.append([entry])
            else:
                same.append(entry)
        reduced.append(
            StepMap(
                n_state=len(groups),
                n_noise=step.n_noise,
                scale=_fold(step.scale, groups, step.n_state),
                outputs=torch.stack([outputs[group[0]] for group in groups_after]),
                nodes=[Node(n.kind, _fold(n.coefficients, groups, step.n_state), n.low, n.high) for n in step.nodes],
                log_variance=step.log_variance,
            )
        )
        groups = groups_after
    return reduced


def _fold(coefficients: Tensor, groups: list[list[int]], n_state: int) -> Tensor:
    """Rewrite (n_columns,) from the original state entries to the groups; the other columns do not change.

    The entries of a group are equal, so the group's coefficient is the sum of theirs.
    """
    return torch.cat([torch.stack([coefficients[group].sum() for group in groups]), coefficients[n_state:]])
