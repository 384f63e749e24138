"""What a session reports while it runs, and who may watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..planning.plan import Plan
from ..planning.span import Span
from ..work.progress import StageReport
from .results import Failure, Image, Run

Part = Literal["encode", "measure", "denoise", "decode", "write"]
"""A part of a run."""


@dataclass(frozen=True)
class Sums:
    """What a session has done so far."""

    evaluations: int
    """Of the denoiser."""
    standard: int
    """Evaluations that the images which are decoded so far need without sharing."""
    batch_size: int
    seconds: Mapping[str, float]
    """Wall time of each part."""
    device: torch.device | None = None
    """Where it runs."""


@dataclass(frozen=True)
class Event:
    """How far a run is: reported when a part begins, while prompts are encoded, and after each call of the denoiser."""

    part: Part
    fraction: float
    """Of the part, 0 to 1. Of the denoiser's part by cost: rows of the network, times the size of their latents."""
    plan: Plan
    """What runs."""
    sums: Sums
    node_steps: int = 0
    """Evaluations of the call that this event reports; 0 if it reports none."""
    finished: int = 0
    """Latents that the call finished."""
    alive: int = 0
    """Latents that a later call reads."""
    slots: int = 0
    """The most of them in this pass."""


Watch = Callable[[Event], object]
"""Called with each :class:`Event`."""


class Watcher:
    """Is told how a run goes. This one passes over everything."""

    watches = False
    """Whether events are wanted."""
    shows = False
    """Whether the user sees the run, and may see downloads."""

    def stage(self, name: str, fraction: float = 0.0) -> None:
        """A stage before the run, with its finished fraction."""

    def began(self, plan: Plan, existing: int, out: Path | str | None, expected: Span | None) -> None:
        """What will run: the missing part of the plan; ``expected`` are the denoiser's seconds, if a guess is known."""

    def event(self, event: Event) -> None:
        """How far it is."""

    def image(self, image: Image) -> None:
        """An image is decoded; it is written next."""
        self.made(image.prompt)

    def made(self, prompt: str) -> None:
        """One more image, of this prompt; its picture may be in another process."""

    def workers(self, alive: int, wanted: int) -> None:
        """How many processes have a model and can make images, and how many there are to be."""

    def failed(self, failure: Failure) -> None:
        """An image cannot be made; from any thread."""

    def writing(self) -> None:
        """All is decoded, and some images may still have to be written."""

    def finished(self, run: Run | None) -> None:
        """The run is over. A stream, which has no folder, has no result."""

    def stopped(self, run: Run) -> None:
        """An error or Ctrl-C has ended the run; this is what it made."""

    def close(self) -> None:
        """Show nothing more, unless more is reported."""


class Told(Watcher):
    """Passes the stages of a run on to a :data:`~hsd.work.progress.StageReport`."""

    watches = True

    def __init__(self, report: StageReport) -> None:
        self._report = report

    def stage(self, name: str, fraction: float = 0.0) -> None:
        """A stage before the run."""
        self._report(name, fraction)

    def event(self, event: Event) -> None:
        """How far the run is."""
        self._report(event.part, event.fraction)

    def writing(self) -> None:
        """The last files."""
        self._report("write", 1.0)


def telling(watcher: Watcher, failed: Callable[[Failure], object] | None) -> Callable[[Failure], None]:
    """Tells the watcher of a failure, and what the user gave as ``failed``."""

    def tell(failure: Failure) -> None:
        watcher.failed(failure)
        if failed is not None:
            failed(failure)

    return tell
