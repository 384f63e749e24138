"""The figures of a folder's runs, from its run record and its plan, as text for the pages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..work.reading import is_number
from .read import Source

Rows = list[tuple[str, str]]

_PARTS = ("encode", "measure", "denoise", "decode")
_MOST_FAILURES = 200


@dataclass(frozen=True)
class Figures:
    """What is told of a folder. Whatever its files do not say is left out."""

    main: list[tuple[str, str, str]]
    """Figures to show large: name, value and a remark."""
    parts: list[tuple[str, str, float]] = field(default_factory=list)
    """Parts of the time: name, time, and share in per cent."""
    made_by: Rows = field(default_factory=list)
    """Model, scheduler, sharing, machine."""
    settings: Rows = field(default_factory=list)
    versions: Rows = field(default_factory=list)
    runs: list[dict[str, str]] = field(default_factory=list)
    reasons: Rows = field(default_factory=list)
    """Why images failed, and how many."""
    failed: list[dict[str, str]] = field(default_factory=list)
    n_failed: int = 0


def figures_of(source: Source) -> Figures:
    """The figures of all runs that filled the folder."""
    runs = [run for run in _list(source.record.get("runs")) if isinstance(run, dict)]
    last = runs[-1] if runs else {}
    reasons = Counter(f"{line.get('stage', 'failed')}: {line.get('reason', 'unknown')}" for line in source.failed)
    return Figures(
        main=_main(source, runs),
        parts=_parts(runs),
        made_by=_made_by(source, last),
        settings=_settings(source),
        versions=[(str(name), str(value)) for name, value in _dict(last.get("versions")).items()],
        runs=[_run(run) for run in reversed(runs)],
        reasons=[(reason, f"{count:,}") for reason, count in reasons.most_common(20)],
        failed=[_failure(line) for line in source.failed[:_MOST_FAILURES]],
        n_failed=len(source.failed),
    )


def cost_rows(source: Source) -> Rows:
    """What a folder cost and with what it was made, in few lines, to be set beside another's."""
    runs = [run for run in _list(source.record.get("runs")) if isinstance(run, dict)]
    found = [(name, value if not remark else f"{value} ({remark})") for name, value, remark in _main(source, runs)]
    return [*found, *_made_by(source, runs[-1] if runs else {}), *_settings(source)]


def seconds_text(seconds: float) -> str:
    """A time as people say it: ``43.4 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _main(source: Source, runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    n, expected = len(source.pictures), source.expected
    found = [("Images", f"{n:,}", "" if n == expected else f"of {expected:,}")]
    plan = source.plan
    if plan is not None:
        found.append(("Evaluations saved", f"{plan.savings:.1%}", "by sharing" if plan.savings else "nothing shared"))
        found.append(("Evaluations", f"{plan.node_steps:,}", f"instead of {plan.standard_node_steps:,}"))
    total, made = _sum(runs, "total"), sum(_count(run.get("images")) for run in runs)
    if total:
        remark = f"in {len(runs)} runs" if len(runs) > 1 else ""
        found.append(("Time", seconds_text(total), remark))
        if made:
            found.append(("Images a second", _rate(made / total), ""))
    denoise, spent = _sum(runs, "denoise"), sum(_count(run.get("node_steps")) for run in runs)
    standard = sum(_count(run.get("standard_node_steps")) for run in runs)
    if denoise and spent and standard > spent:
        saved = denoise * (standard - spent) / spent
        found.append(("Time saved", seconds_text(saved), "estimated by the denoiser's speed"))
    return found


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _parts(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, float]]:
    seconds = [(name, _sum(runs, name)) for name in _PARTS]
    rest = _sum(runs, "total") - sum(value for _, value in seconds)
    seconds = [(name, value) for name, value in [*seconds, ("other", max(rest, 0.0))] if value > 0.0005]
    whole = sum(value for _, value in seconds)
    return [(name, seconds_text(value), 100 * value / whole) for name, value in seconds]


def _made_by(source: Source, run: dict[str, Any]) -> Rows:
    identity = _dict(source.record.get("identity"))
    model, plan = _dict(identity.get("model")), source.plan
    rows: list[tuple[str, Any]] = [
        ("Model", model.get("name")),
        ("Pipeline", ", ".join(map(str, _list(model.get("pipeline"))))),
        ("Scheduler", run.get("scheduler") or _dict(model.get("scheduler")).get("class")),
        ("Steps", None if plan is None else plan.n_steps),
        ("Tau", None if plan is None else f"{plan.tau:.4g}"),
        ("Clustering", None if plan is None else f"{plan.request.get('linkage')}, {plan.metric} distances"),
        ("Catch-up", run.get("catch_up")),
        ("Batch size", run.get("batch_size")),
        ("Device", run.get("device")),
        ("Precision", run.get("dtype")),
        ("Format", identity.get("image_format")),
    ]
    return [(name, _text(value)) for name, value in rows if value not in (None, "")]


def _settings(source: Source) -> Rows:
    model = _dict(_dict(source.record.get("identity")).get("model"))
    return [(str(name), _text(value)) for name, value in _dict(model.get("settings")).items() if value is not None]


def _run(run: dict[str, Any]) -> dict[str, str]:
    savings = run.get("savings")
    return {
        "finished": str(run.get("finished", "")).replace("T", " ").replace("+00:00", " UTC"),
        "outcome": str(run.get("outcome", "")) + (f": {run['error']}" if run.get("error") else ""),
        "images": f"{_count(run.get('images')):,}",
        "existing": f"{_count(run.get('existing')):,}",
        "failed": f"{_count(run.get('failed')):,}",
        "evaluations": f"{_count(run.get('node_steps')):,}",
        "saved": f"{savings:.1%}" if is_number(savings) else "",
        "time": seconds_text(_sum([run], "total")),
    }


def _failure(line: dict[str, Any]) -> dict[str, str]:
    return {name: _text(line.get(name)) for name in ("index", "text", "seed", "stage", "reason")}


def _text(value: Any) -> str:
    """A value for people: numbers without needless digits, texts as they are, all else as JSON."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sum(runs: Sequence[dict[str, Any]], part: str) -> float:
    values = [_dict(run.get("seconds")).get(part) for run in runs]
    return float(sum(float(value) for value in values if value is not None and is_number(value)))


def _count(value: Any) -> int:
    return value if type(value) is int else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
