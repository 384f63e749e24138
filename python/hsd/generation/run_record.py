"""What ``run.json`` keeps of a run."""

from __future__ import annotations

import platform
from collections import Counter
from datetime import datetime, timezone
from typing import Any

from ..models import Adapter
from ..models.identity import versions
from ..planning.plan import Plan
from ..work.device import describe
from ..work.faults import described
from .options import Options
from .results import Run


def outcome(error: BaseException | None) -> str:
    """``finished``; ``failed`` by an error; ``interrupted`` by anything else, such as Ctrl-C."""
    if error is None:
        return "finished"
    return "failed" if isinstance(error, Exception) else "interrupted"


def facts_of(adapter: Adapter, catch_up: float) -> dict[str, Any]:
    """What a record says of a loaded model; can be sent from one process to another."""
    device = adapter.device
    return {
        "catch_up": catch_up,
        "cuda": device.type == "cuda",
        "scheduler": type(adapter.scheduler()).__name__,
        "device": describe(device),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "versions": {**versions(), "python": platform.python_version()},
    }


def record(
    run: Run,
    plan: Plan,
    options: Options,
    facts: dict[str, Any],
    error: BaseException | None,
    workers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run: how it ended, what it made, with what.

    Parameters
    ----------
    facts
        From :func:`facts_of`.
    error
        What ended it before its end.
    workers
        Of a run on several: how many there were, and how many were lost.
    """
    reasons = Counter(f"{failure.stage}: {failure.reason}" for failure in run.failed)
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "outcome": outcome(error),
        **({} if error is None else {"error": described(error)}),
        "images": run.images,
        "existing": run.existing,
        "failed": len(run.failed),
        **({"reasons": dict(reasons.most_common(20))} if reasons else {}),
        "nsfw": run.nsfw,
        "upcast": run.upcast,
        "node_steps": run.node_steps,
        "standard_node_steps": run.standard_node_steps,
        "savings": run.savings,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        **({} if workers is None else {"workers": workers}),
        "plan": {
            "node_steps": plan.node_steps,
            "savings": plan.savings,
            "n_steps": plan.n_steps,
            "tau": plan.tau,
            "encoder": str(plan.request.get("encoder")),
        },
        "catch_up": facts["catch_up"],
        "batch_size": run.batch_size,
        "order": options.order,
        "compile": options.compile,
        "cuda_graphs": options.cuda_graphs and facts["cuda"],
        "channels_last": options.channels_last,
        **{name: facts[name] for name in ("scheduler", "device", "dtype", "versions")},
    }
