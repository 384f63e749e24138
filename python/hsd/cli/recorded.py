"""What ``hsd generate --json`` prints: the record of the run, as in ``run.json``, however the run ends."""

from __future__ import annotations

from ..generation.live import RunView
from ..generation.results import Run
from .console import print_result


class RecordedView(RunView):
    """Shows a run; with ``--json`` its record is printed also when an error or a signal ends it."""

    def stopped(self, run: Run) -> None:
        """After an error or Ctrl-C."""
        super().stopped(run)
        print_result(None, run.record)
