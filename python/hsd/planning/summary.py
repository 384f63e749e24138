"""Plans and runs as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan

_BARS = " ▁▂▃▄▅▆▇█"


def plan_summary(plan: Plan, batch_size: int | None, seconds_per_node_step: float | None = None) -> str:
    """What the plan would cost, before it runs: savings, active clusters by step, calls, slots, time.

    Without a batch size, which may have to be measured yet, nothing is said of calls and slots.
    """
    counts = plan.counts()
    kept = len(plan.kept)
    share = f" ({kept:,} kept)" if kept < plan.n_prompts else ""
    approximate = "" if plan.tree.exact else "approximate "
    groups = len(plan.settings)
    settings = (
        [("settings", f"{groups} different ones; prompts that differ in them share no step")] if groups > 1 else []
    )
    rows = [
        ("prompts", f"{plan.n_prompts:,}{share}"),
        ("steps", f"{plan.n_steps}"),
        ("clustering", f"{approximate}{plan.request['linkage']} on {plan.request['encoder']}, tau {plan.tau:.4g}"),
        *settings,
        ("node-steps", f"{plan.node_steps:,} instead of {plan.standard_node_steps:,}"),
        ("saved", f"{plan.savings:.1%} of the denoiser's evaluations"),
        ("clusters by step", f"{counts[0]:,} {sparkline(counts)} {counts[-1]:,}"),
        ("", step_table(counts)),
    ]
    if batch_size is not None:
        program = plan.program(batch_size)
        calls = f"{program.n_calls:,} ({program.lower_bound:,} at the least), {program.occupancy:.1%} of lanes filled"
        rows += [(f"calls of {batch_size}", calls), ("slots", f"{program.n_slots:,} latents alive at most")]
    if seconds_per_node_step is not None:
        ours, standard = (seconds_per_node_step * n for n in (plan.node_steps, plan.standard_node_steps))
        rows.append(("denoising time", f"about {duration(ours)} instead of {duration(standard)}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def sparkline(counts: object) -> str:
    """One bar a step, scaled to the largest count."""
    values = [int(c) for c in counts]  # type: ignore[attr-defined]
    top = max(values)
    return "".join(_BARS[max(1, round(v / top * (len(_BARS) - 1)))] for v in values)


def step_table(counts: object, columns: int = 8) -> str:
    """Counts at about ``columns`` steps, the first and the last among them: ``0:3  5:8 ...``."""
    values = [int(c) for c in counts]  # type: ignore[attr-defined]
    last = len(values) - 1
    picks = sorted({round(i * last / (columns - 1)) for i in range(columns)})
    return "  ".join(f"{k}:{values[k]:,}" for k in picks)


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
