"""What `tree.py` has measured so far: a JSON file with one entry per case, read by the tables and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tree_case import Case


class Results:
    """The machine, the measured cases and the comparisons of trees, by key of the case."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path = path
        content: dict[str, Any] = {"machine": machine, "cases": {}, "checks": {}}
        if path.exists():
            content |= json.loads(path.read_text())
        self.content = content
        self.machine: dict[str, Any] = content["machine"]
        self.cases: dict[str, dict[str, Any]] = content["cases"]
        self.checks: dict[str, dict[str, Any]] = content["checks"]

    def of(self, case: Case) -> dict[str, Any] | None:
        """The result of a case; None if it was not measured or failed."""
        found = self.cases.get(case.key)
        return found if found and found["status"] == "ok" else None

    def save(self) -> None:
        """Replace the file in one step, so that an interruption never leaves half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        part.replace(self.path)
