"""Shrink a scheduler's memory: forget what is never read again, hold once what it holds twice.

Schedulers are generous (IPNDM keeps every model output; DPM-Solver++ 2M keeps two and reads one), and each tensor
kept is a latent's worth of memory in every slot.  Both passes are exact: no coefficient is judged "small".
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.sampler.probe import Node, StepMap


def reduce(steps: list[StepMap]) -> list[StepMap]:
    """Return steps that compute the same latents with as few remembered tensors as the two passes find."""
    return _merge_duplicates(steps, _live(steps))


def _live(steps: list[StepMap]) -> list[list[int]]:
    """Return, for every boundary between steps (before step 0 .. after the last), the state entries read later."""
    live = [{0}]  # after the last step only the latent matters
    for step in reversed(steps):
        read = _columns(step.rows[sorted(live[0])])
        first_node = step.rows.shape[1] - len(step.nodes)
        for j in reversed(range(len(step.nodes))):
            if first_node + j in read:
                read |= _columns(step.nodes[j].row[None])
        read |= _columns(step.scale[None])
        live.insert(0, {0} | {column for column in read if column < step.n_state})
    return [sorted(entries) for entries in live]


def _columns(rows: Tensor) -> set[int]:
    """Return the columns in which any of `rows` (n, n_columns) is not 0."""
    return set(rows.ne(0).any(0).nonzero().flatten().tolist())


def _merge_duplicates(steps: list[StepMap], live: list[list[int]]) -> list[StepMap]:
    """Drop entries that are not `live`, and let one entry stand for all those that always hold the same value."""
    groups = [[entry] for entry in live[0]]  # groups[g]: entries of the original state that reduced entry g is
    reduced = []
    for step, live_after in zip(steps, live[1:], strict=True):
        rows = {entry: _fold(step.rows[entry], groups, step.n_state) for entry in live_after}
        groups_after: list[list[int]] = []
        for entry, row in rows.items():
            same = next((group for group in groups_after if torch.equal(rows[group[0]], row)), None)
            if same is None:
                groups_after.append([entry])
            else:
                same.append(entry)
        reduced.append(
            StepMap(
                n_state=len(groups),
                n_noise=step.n_noise,
                scale=_fold(step.scale, groups, step.n_state),
                rows=torch.stack([rows[group[0]] for group in groups_after]),
                nodes=[Node(n.kind, _fold(n.row, groups, step.n_state), n.low, n.high) for n in step.nodes],
                log_variance=step.log_variance,
            )
        )
        groups = groups_after
    return reduced


def _fold(row: Tensor, groups: list[list[int]], n_state: int) -> Tensor:
    """Rewrite `row` (n_columns,) from the original state entries to the groups; other columns stay."""
    return torch.cat([torch.stack([row[group].sum() for group in groups]), row[n_state:]])
