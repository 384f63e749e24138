"""What a choice leaves: the file of settings, the frontier as numbers, as a table and as a picture."""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _core
from ..planning.chosen import SETTINGS_FILE, Settings
from ..work.files import write_atomically, write_json
from .decision import Comparison, Decision, signed
from .halving import fronts

FRONTIER_FILE = "frontier.json"
PICTURE_FILE = "frontier.png"


@dataclass(frozen=True)
class Choice:
    """The result of :func:`hsd.tune`. ``print`` it, or use :attr:`settings`."""

    out: Path
    model: str
    scorer: str
    margin: float
    decision: Decision
    compared: tuple[Comparison, ...]
    """The standard way first, then all settings, by cost."""
    sample: int
    """Prompts in the sample."""
    of: int
    """All prompts."""
    neighbourhoods: int
    last_rung: int
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def __repr__(self) -> str:
        return f"<hsd.Choice: {self.decision.answer}, {len(self.compared)} settings compared by {self.scorer}>"

    @property
    def sentence(self) -> str:
        """The answer with its numbers."""
        return self.decision.sentence

    @property
    def standard(self) -> Comparison:
        """The standard way."""
        return self.compared[0]

    @property
    def best(self) -> Comparison:
        """The chosen setting."""
        return next(one for one in self.compared if one.setting == self.decision.chosen)

    @property
    def frontier(self) -> list[Comparison]:
        """What no other setting dominates in cost and difference, by cost."""
        number = fronts([one.cost for one in self.compared], [one.difference.mean for one in self.compared])
        return sorted((o for o, n in zip(self.compared, number, strict=True) if n == 0), key=lambda one: one.cost)

    @property
    def _facts(self) -> dict[str, Any]:
        """The answer and what it rests on, as JSON: for both files."""
        return {
            "answer": self.decision.answer,
            "sentence": self.sentence,
            "caveats": list(self.decision.caveats),
            "model": self.model,
            "scorer": self.scorer,
            "margin": self.margin,
            "prompts": self.of,
            "sample": self.sample,
            "neighbourhoods": self.neighbourhoods,
        }

    @property
    def settings(self) -> Settings:
        """For :func:`hsd.compile` and :func:`hsd.load`, and what ``hsd-settings.json`` holds."""
        best, chosen = self.best, self.best.setting
        shared: dict[str, Any] = {"tau": 0.0}
        if chosen.budget:
            shared = {
                "tau": best.tau,
                "catch_up": chosen.catch_up,
                "metric": chosen.metric,
                "schedule": chosen.schedule,
            }
        return Settings(
            steps=chosen.steps,
            guidance_interval=chosen.guidance_interval,
            scheduler=chosen.scheduler,
            evidence={
                **self._facts,
                "chosen": row(best),
                "standard": row(self.standard),
                "hsd_version": _core.__version__,
            },
            **shared,
        )

    def numbers(self) -> dict[str, Any]:
        """All comparisons and the answer, for programs."""
        on_frontier = {one.setting for one in self.frontier}
        return {
            **self._facts,
            "notes": list(self.notes),
            "last_rung": self.last_rung,
            "settings": [{**row(one), "frontier": one.setting in on_frontier} for one in self.compared],
        }

    def save(self) -> None:
        """Write the settings, the numbers and, if matplotlib is installed, the picture to the folder."""
        self.settings.save(self.out / SETTINGS_FILE)
        write_json(self.out / FRONTIER_FILE, self.numbers())
        image = picture(self)
        if image is not None:
            write_atomically(self.out / PICTURE_FILE, image)

    def __str__(self) -> str:
        return "\n".join([*_table(self), "", self.sentence, *(f"{one}." for one in self.decision.caveats)])


def row(one: Comparison) -> dict[str, Any]:
    """A comparison as JSON; an infinite bound is None."""
    return {
        **dataclasses.asdict(one.setting),
        "tau": one.tau,
        "cost": one.cost,
        "saved": one.saved,
        "rung": one.rung,
        "score": _finite(one.score),
        "standard_score": _finite(one.standard_score),
        "difference": _finite(one.difference.mean),
        "lower": _finite(one.difference.lower),
        "upper": _finite(one.difference.upper),
        "pairs": one.difference.pairs,
        "clusters": one.difference.clusters,
        "cosine": one.cosine,
        "standard_cosine": one.standard_cosine,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _table(choice: Choice) -> list[str]:
    """The frontier, the finalists and the standard way, by cost."""
    frontier = {one.setting for one in choice.frontier}
    shown = [
        one
        for one in choice.compared
        if one.setting in frontier or one.rung == choice.last_rung or one.setting == choice.standard.setting
    ]
    head = ["", "rows", "saved", "score", "difference", "95 % above", "pairs", "cosine", "setting"]
    lines = [head]
    for one in sorted(shown, key=lambda one: one.cost):
        mark = ">" if one.setting == choice.decision.chosen else "*" if one.setting in frontier else ""
        is_standard = one.setting == choice.standard.setting
        lines.append(
            [
                mark,
                f"{one.cost:.3g}",
                f"{one.saved:.0%}",
                f"{one.score:.3f}",
                "" if is_standard else signed(one.difference.mean),
                "" if is_standard or math.isinf(one.difference.lower) else signed(one.difference.lower),
                f"{one.difference.pairs}",
                "" if one.cosine is None or one.standard_cosine is None else f"{one.cosine - one.standard_cosine:+.3f}",
                f"{one.setting}{' (standard)' if is_standard else ''}",
            ]
        )
    width = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return ["  ".join([*(f"{t:>{w}}" for t, w in zip(line, width, strict=False)), line[-1]]).rstrip() for line in lines]


def picture(choice: Choice) -> bytes | None:
    """A PNG of difference against cost; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    drawing = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for label, shared in (("own steps", False), ("shared steps", True)):
        some = [one for one in choice.compared if bool(one.setting.budget) == shared]
        axes.plot(
            [one.cost for one in some],
            [one.difference.mean for one in some],
            "s" if shared else "o",
            label=label,
            alpha=0.6,
        )
    front = choice.frontier
    axes.plot([one.cost for one in front], [one.difference.mean for one in front], "-", color="0.5", label="frontier")
    best = choice.best
    axes.plot([best.cost], [best.difference.mean], "*", markersize=16, color="black", label="chosen", zorder=-1)
    axes.axhline(-choice.margin, linestyle=":", color="0.3", label=f"margin {choice.margin:g}")
    axes.set(
        xscale="log",
        xlabel="rows of the network for an image",
        ylabel=f"{choice.scorer}: difference to standard",
    )
    axes.legend()
    out = io.BytesIO()
    drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
