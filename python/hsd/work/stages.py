"""Stages of a piece of work, each with its finished fraction: a bar on a terminal, few lines in a log."""

from __future__ import annotations

import time

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text

from .terminal import Mode, Pace, Screen

NAMES = {
    "load": "loading the model",
    "encode": "encoding prompts",
    "cluster": "clustering",
    "calibrate": "measuring the model",
    "measure": "measuring the batch size",
    "denoise": "denoising",
    "decode": "decoding",
    "write": "writing images",
}
"""What people read for each stage."""

_BAR = 40
"""Largest width of a bar."""


class Stage:
    """The stage that runs now: its name, how much is finished, and since when it runs."""

    def __init__(self, name: str = "", total: int = 0) -> None:
        self.name, self.total, self.fraction = name, total, 0.0
        self.began = time.monotonic()

    def __str__(self) -> str:
        name = NAMES.get(self.name, self.name)
        return f"{name} {round(self.fraction * self.total):,} of {self.total:,}" if self.total else name

    def text(self) -> str:
        """One line for a log."""
        left = clock(self.left())
        return f"hsd: {self}, {self.fraction:.0%}{f', {left} left' if left else ''}"

    def left(self) -> float | None:
        """Seconds until it ends, if it goes on as until now."""
        if not 0.01 <= self.fraction <= 1.0:
            return None
        return (time.monotonic() - self.began) * (1.0 - self.fraction) / self.fraction


class BarLine:
    """One line: a text, a bar and what stands after it. The bar takes what is left of the width."""

    def __init__(self, text: str, fraction: float | None, end: str = "") -> None:
        self.text, self.fraction, self.end = text, fraction, end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        share = "" if self.fraction is None else f" {self.fraction:4.0%}"
        end = f"{share}  {self.end}" if self.end else share
        width = min(_BAR, options.max_width - len(self.text) - len(end) - 2)
        if width < 4 or self.fraction is None:
            yield line_of(f"{self.text}{end}", options)
            return
        yield Text(f"{self.text} ", end="")
        yield ProgressBar(total=1.0, completed=self.fraction, width=width)
        yield Text(end)


def line_of(text: str, options: ConsoleOptions) -> Text:
    """A text that is cut to the width."""
    return Text(text, no_wrap=True, overflow="crop" if options.ascii_only else "ellipsis")


def clock(seconds: float | None) -> str:
    """``0:12`` or ``3:07:45``, as people read it from a clock; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Stages:
    """Shows the stage that runs: a :data:`~hsd.work.progress.StageReport`. It leaves nothing on a terminal."""

    def __init__(self, mode: Mode | None = None, *, total: int = 0) -> None:
        self._total, self._stage, self._pace = total, Stage(), Pace()
        self._screen = Screen(self.body, mode)

    @property
    def started(self) -> bool:
        """Whether any stage was reported."""
        return bool(self._stage.name)

    def __call__(self, stage: str, fraction: float) -> None:
        """Show that ``fraction`` of ``stage`` is done."""
        if stage != self._stage.name:
            self._stage, self._pace = Stage(stage, self._total if stage == "encode" else 0), Pace()
        self._stage.fraction = fraction
        self._screen.start()
        if self._screen.mode == "plain" and self._pace.due(fraction):
            self._screen.line(self._stage.text())

    def body(self) -> RenderableType:
        """What is drawn in place."""
        if not self.started:
            return ""
        left = clock(self._stage.left())
        return BarLine(str(self._stage), self._stage.fraction, f"{left} left" if left else "")

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()
