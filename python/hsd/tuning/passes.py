"""Passes: prompts whose images may be lanes of one call run together in one pass; passes run one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..models import Adapter, load, variants_of
from ..models.encode import is_remembered, recall
from ..names import Order
from ..planning.plan import Plan
from ..planning.span import Span
from ..planning.summary import Summary
from ..replay.catch_up import catch_up_of
from ..replay.lowering import program_of
from . import speeds


def passes_of(variants: Sequence[Adapter]) -> list[list[int]]:
    """Indices of the ``variants`` of each pass: those that have the same :meth:`Adapter.call_key`."""
    passes: dict[Hashable, list[int]] = {}
    for v, variant in enumerate(variants):
        passes.setdefault(variant.call_key(), []).append(v)
    return list(passes.values())


def plans_of(plan: Plan, passes: Sequence[Sequence[int]]) -> Iterator[tuple[int, Plan]]:
    """The first variant of each pass and the part of ``plan`` that it runs. Passes without a prompt are left out."""
    for members in passes:
        kept = plan.kept[np.isin(plan.setting[plan.kept], members)]
        if len(kept):
            yield members[0], plan if len(kept) == len(plan) else plan.prune(kept)


def cost(
    plan: Plan,
    model: Any,
    batch_size: int | None = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    *,
    compile: bool = False,
    channels_last: bool = False,
    cuda_graphs: bool = True,
) -> Summary:
    """What ``plan`` costs with a model: the calls and slots of the programs that :func:`hsd.generate` will run.

    Parameters
    ----------
    plan
        From :func:`hsd.compile` or :meth:`Plan.load`.
    model
        A loaded model, or anything that :func:`hsd.load` takes. Its time is estimated if its speed was measured on this
        device, by ``hsd bench`` or by a run that was long enough.
    batch_size, order, max_slots, compile, channels_last, cuda_graphs
        As :func:`hsd.generate` takes them. None: the batch size is not known yet, and calls and slots are left out.
        They are also left out for a model whose calls hold texts of one length, if it has not encoded the prompts.
    """
    adapter = load(model)
    variants = variants_of(adapter, plan.settings)
    programs, rows, standard = [], 0, 0
    conditioning = _remembered(plan, adapter) if any(variant.one_length for variant in variants) else None
    known = conditioning is not None
    for v, part in plans_of(plan, passes_of(variants)):
        variant = variants[v]
        if batch_size is not None and (known or not variant.one_length):
            programs.append(program_of(part, variant, conditioning, batch_size, order, max_slots))
        rows += rows_of(part, variant)
        standard += part.standard_node_steps * (2 if variant.guided else 1)
    summary = plan.cost(programs, None, (rows, standard), catch_up_of(plan, adapter))
    ways = {"compile": compile, "channels_last": channels_last, "cuda_graphs": cuda_graphs}
    return replace(summary, **estimated(plan, adapter, batch_size, **ways))


def estimated(plan: Plan, adapter: Adapter, batch_size: int | None, **ways: bool) -> dict[str, Any]:
    """The times of a run by the speeds that are stored: fields of :class:`Summary`; or why there are none.

    ``batch_size`` None: that of the fastest calls that were measured. ``ways`` are those of :func:`speeds.key`.
    """
    none = Span(0.0, 0.0)
    ours = standard = none
    other: Span | None = none
    variants = variants_of(adapter, plan.settings)
    for v, part in plans_of(plan, passes_of(variants)):
        variant = variants[v]
        known = speeds.recall(variant, **ways)
        speed = None if known is None else known.at(batch_size)
        if known is None or speed is None:
            return {"no_time": speeds.how_to_measure(variant, known)}
        ours += speed * (rows_of(part, variant) / (2 if variant.guided else 1))
        standard += speed * part.standard_node_steps
        other = None if other is None or known.image is None else other + known.image * len(part)
    return {"seconds": ours, "standard_seconds": standard, "other_seconds": other}


def _remembered(plan: Plan, adapter: Adapter) -> Conditioning | None:
    """What the plan was compiled with, if this model encoded it."""
    return recall(plan, adapter.encoding_key()) if is_remembered(plan) else None


def rows_of(plan: Plan, adapter: Adapter) -> int:
    """Rows of the network that ``plan`` takes with one variant of a model."""
    return int(plan.counts() @ rows_by_step(adapter, plan.n_steps))


def rows_by_step(adapter: Adapter, n_steps: int) -> NDArray[np.int64]:
    """(K,) rows of a lane at each step: 2 where it is guided, else 1. Also where that is the same at all steps."""
    varying = adapter.rows_by_step(n_steps)
    return np.full(n_steps, 2 if adapter.guided else 1) if varying is None else varying
