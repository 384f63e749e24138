"""The file of ``hsd generate --json``: the record of the run, as in ``run.json``, however the run ends."""

from __future__ import annotations

from pathlib import Path

from ..generation.live import RunView
from ..generation.results import Run
from .console import write_numbers


class RecordedView(RunView):
    """Shows a run, and writes its record to a file, also when an error or a signal ends it."""

    def __init__(self, path: Path | None, *, prompts: int) -> None:
        super().__init__(prompts=prompts)
        self._path = path

    def record(self, run: Run) -> None:
        """Write it, if there is a file for it."""
        write_numbers(self._path, run.record)

    def stopped(self, run: Run) -> None:
        """After an error or Ctrl-C."""
        super().stopped(run)
        self.record(run)
