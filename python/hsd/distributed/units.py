from __future__ import annotations
from typing import Any


def units(plan: Any, workers: int, *, per_worker: int | None = None) -> list[Any]:
    return plan.shard(workers * (per_worker or 2))


def recomputed(plan: Any, parts: Any) -> float:
    return sum(p.node_steps for p in parts) / plan.node_steps - 1
