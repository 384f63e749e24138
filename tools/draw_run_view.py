"""Draws the picture of the live view in docs/run.md: a run of the bundled model, at the call that is half way through.

    python tools/draw_run_view.py [--out docs/run-view.svg]

The lines are what the view shows; only the folder is another, and rich writes them as SVG in place of a terminal.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

import hsd
from hsd.demo import PROMPTS
from hsd.generation.events import Event
from hsd.generation.live import RunView

WIDTH = 90
"""Columns of the terminal."""


class Drawn(RunView):
    """A view that is drawn once, half way through, on a console that records."""

    svg = ""

    def event(self, event: Event) -> None:
        """Look at the view when half of the work is done."""
        super().event(event)
        if event.fraction >= 0.5 and not self.svg:
            console = Console(
                width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
            )
            self._out = Path("images")
            self._sample()
            console.print(self.body())
            svg = console.export_svg(title="hsd generate demo --out images", unique_id="hsd-run")
            self.svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts from the network


def main() -> None:
    """Generate, and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "run-view.svg")
    out = parser.parse_args().out
    model = hsd.load("demo")
    plan = hsd.compile(PROMPTS.read_text().splitlines(), model=model)
    with tempfile.TemporaryDirectory() as folder, Drawn("none") as view:
        hsd.generate(plan, model, folder, progress=view)
    assert view.svg, "the run never reported that half of its work is done"
    out.write_text(view.svg, encoding="utf-8", newline="\n")
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
