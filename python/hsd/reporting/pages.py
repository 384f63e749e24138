"""The pages: what each template is given, and which files belong to the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2

from . import chart
from .compare import Scores
from .figures import cost_rows, figures_of
from .places import BESIDE, FIRST, Places
from .read import Source
from .thumbs import Look
from .urls import folder_url

_TITLES = {"gallery": "Gallery", "compare": "Side by side", "tree": "Tree", "run": "Run"}


class Pages:
    """The pages and the data of one report. What is not added is removed from an earlier report."""

    def __init__(self, places: Places, source: Source, looks: Sequence[Look]) -> None:
        self.tree = False
        """Whether there is a tree to show."""
        self._places, self._source, self._looks = places, source, looks
        self._data: set[str] = set()
        self._other: Source | None = None
        self._compared: dict[str, Any] = {}

    def add_data(self, name: str, value: Any) -> None:
        """Write a file of data."""
        self._data.add(name)
        self._places.write_data(name, value)

    def against(self, other: Source, order: Sequence[int | None], scores: Sequence[Scores]) -> None:
        """Show another folder beside this one."""
        self._other = other
        without = sum(j is None for j in order)
        self._compared = {"pairs": len(order) - without, "without": without, "scores": list(map(_score_row, scores))}

    def write(self) -> None:
        """Write all pages, their style and scripts."""
        for asset in (files("hsd.reporting") / "assets").iterdir():
            self._places.write_asset(asset.name, asset.read_bytes())
        loader = jinja2.PackageLoader("hsd.reporting")
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        names = ["run", *(["tree"] if self.tree else []), *(["compare"] if self._other else []), "gallery"]
        context = self._context()
        for name in names:  # the first page last: what it links to is there
            template = environment.get_template(f"{name}.html")
            file = FIRST if name == "gallery" else f"{name}.html"
            self._places.write_page(file, template.render(context | self._places_of(name), page=name))
        self._places.keep_only(set(names), self._data)

    def _context(self) -> dict[str, Any]:
        source, other = self._source, self._other
        shown = ["gallery", *(["compare"] if other else []), *(["tree"] if self.tree else []), "run"]
        figures = figures_of(source)
        return {
            "titles": {name: _TITLES[name] for name in shown},
            "name": source.name,
            "count": len(source.pictures),
            "expected": source.expected,
            "running": source.running,
            "notes": self._notes(),
            "figures": figures,
            "saved": None if source.plan is None else source.plan.savings,
            "chart": None if source.plan is None else chart.clusters_by_step(source.plan),
            "box": (chart.WIDTH, chart.HEIGHT),
            "tree": self.tree,
            "has_plan": source.plan is not None,
            "other": None if other is None else {"name": other.name, "cost": _side_by_side(source, other)},
            "compared": self._compared,
        }

    def _places_of(self, name: str) -> dict[str, str]:
        first = name == "gallery"
        folder = self._places.out if first else self._places.beside
        return {
            "own": f"{BESIDE}/" if first else "",
            "up": "" if first else "../",
            "images": folder_url(self._source.path, folder),
            "others": "" if self._other is None else folder_url(self._other.path, folder),
        }

    def _notes(self) -> list[str]:
        source, notes = self._source, list(self._source.notes)
        if source.mismatch is not None:
            notes.append(source.mismatch)
        damaged = [i for i, look in enumerate(self._looks) if look.problem is not None]
        if damaged:
            first, reason = source.entries[damaged[0]].file_name, self._looks[damaged[0]].problem
            notes.append(f"{_images(len(damaged))} cannot be shown; the first is {first}: {reason}.")
        changed = sum(
            look.problem is None and len(entry.digest) == len(look.digest) and entry.digest != look.digest
            for entry, look in zip(source.entries, self._looks, strict=True)
        )
        if changed:
            notes.append(f"{_images(changed)} changed after being written; they are shown as they are now.")
        return notes


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _side_by_side(ours: Source, theirs: Source) -> list[tuple[str, str, str, bool]]:
    """Name, value of either folder, and whether they differ."""
    first, second = dict(cost_rows(ours)), dict(cost_rows(theirs))
    names = list(dict.fromkeys([*first, *second]))
    return [(name, a := first.get(name, "–"), b := second.get(name, "–"), a != b) for name in names]


def _score_row(scores: Scores) -> dict[str, str]:
    wins = scores.wins
    both = ~(scores.ours != scores.ours) & ~(scores.theirs != scores.theirs)
    interval = wins.difference_interval
    return {
        "scorer": scores.scorer,
        "pairs": f"{wins.pairs:,}",
        "ours": f"{scores.ours[both].mean():.4g}" if both.any() else "–",
        "theirs": f"{scores.theirs[both].mean():.4g}" if both.any() else "–",
        "wins": f"{wins.wins:,}",
        "ties": f"{wins.ties:,}",
        "losses": f"{wins.losses:,}",
        "difference": "–" if wins.difference is None else f"{wins.difference:+.3g}",
        "interval": "" if interval is None else f"{interval[0]:+.2g} to {interval[1]:+.2g}",
    }
