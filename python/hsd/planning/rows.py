"""What a plan (:class:`hsd.Plan`) says of each of its prompts: with whom it shares steps, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from .columns import renamed

if TYPE_CHECKING:
    import pandas


def setting_names(plan: Any) -> list[str]:
    """The settings that any prompt has of its own."""
    return sorted({name for own in plan.settings for name in own})


def columns_beside(plan: Any) -> dict[str, list[Any]]:
    """The columns of a plan that are no settings, by their names in ``metadata.jsonl``."""
    return renamed(plan.columns, setting_names(plan))


def alone_from(plan: Any) -> NDArray[np.int64]:
    """(N,) the first step at which each prompt is alone in its cluster; before it, its latent was shared."""
    segments = plan.segments
    leaf = segments[segments["end_step"] == plan.n_steps]
    single = leaf["leaf_end"] - leaf["leaf_begin"] == 1
    out = np.full(plan.n_prompts, plan.n_steps, dtype=np.int64)
    out[leaf["representative"][single]] = leaf["first_step"][single]
    return out


def shared_with(plan: Any, index: int) -> dict[int, int]:
    """What :meth:`hsd.Plan.shared_with` does."""
    if not 0 <= index < plan.n_prompts:
        raise IndexError(f"prompt {index} is not one of the plan's, which are 0 to {plan.n_prompts - 1}")
    segments, order = plan.segments, plan.tree.leaf_order
    number = int(plan.active(plan.n_steps - 1)[index])
    if number < 0:
        raise ValueError(f"the plan does not keep prompt {index}: ask the plan that it was pruned from, plan.origin")
    out: dict[int, int] = {}
    begin = end = int(np.flatnonzero(order == index)[0])
    end += 1
    while number >= 0:  # up the path, where each cluster contains the one below it
        segment = segments[number]
        first, last = int(segment["leaf_begin"]), int(segment["leaf_end"])
        others = np.sort(np.concatenate([order[first:begin], order[end:last]]))
        out.update(dict.fromkeys(others.tolist(), int(segment["end_step"])))
        begin, end, number = first, last, int(segment["parent"])
    return out


def node_steps_of(plan: Any) -> NDArray[np.float64]:
    """(N,) the node-steps that each kept prompt is charged for: its part of those of its clusters; 0 for others.

    Each node-step is divided equally among the kept prompts of its cluster, so that the sum is ``plan.node_steps``.
    """
    segments, kept = plan.segments, np.zeros(plan.n_prompts, dtype=bool)
    kept[plan.kept] = True
    before = np.concatenate([[0], np.cumsum(kept[plan.tree.leaf_order])])
    members = before[segments["leaf_end"]] - before[segments["leaf_begin"]]
    on_path = (segments["end_step"] - segments["first_step"]) / members
    for number, parent in enumerate(segments["parent"].tolist()):  # parents first
        if parent >= 0:
            on_path[number] += on_path[parent]
    out = np.zeros(plan.n_prompts)
    out[plan.kept] = on_path[plan.active(plan.n_steps - 1)[plan.kept]]
    return out


def data_frame(plan: Any) -> pandas.DataFrame:
    """What :meth:`hsd.Plan.to_dataframe` does."""
    try:
        import pandas
    except ImportError:
        raise Error("Plan.to_dataframe needs pandas, which is not installed: pip install pandas") from None
    kept, own, which = plan.kept, plan.settings, plan.setting
    table: dict[str, Any] = {
        "index": kept,
        "prompt": [plan.prompts[i] for i in kept],
        "seed": plan.seeds[kept],
        "cluster": plan.segments["representative"][plan.active(0)[kept]].astype(np.int64),
        "alone_from": alone_from(plan)[kept],
        "node_steps": node_steps_of(plan)[kept],
    }
    table.update((name, [own[which[i]].get(name) for i in kept]) for name in setting_names(plan))
    for name, values in columns_beside(plan).items():
        table[name if name not in table else f"given_{name}"] = [values[i] for i in kept]
    return pandas.DataFrame(table)
