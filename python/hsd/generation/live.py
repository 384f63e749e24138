"""What a run looks like: in place on a terminal, as a few lines in a log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from ..planning.plan import Plan
from ..planning.span import Span
from ..planning.summary import duration
from ..work.progress import ProgressOption, check_progress
from ..work.stages import BarLine, Stage, clock, line_of
from ..work.terminal import Mode, Pace, Screen, printable
from .events import Event, Sums, Told, Watcher
from .rates import Rate, Remaining
from .results import Failure, Run

_PROMPTS = 3
"""Prompts that are shown."""

_LONGEST = 400
"""Characters of a prompt that are looked at: more than a line has."""

_SAMPLED = 1.0
"""Seconds between two looks at the memory."""


class RunView(Watcher):
    """Shows a run, from loading the model to the last file. Use as a context manager.

    Parameters
    ----------
    mode
        ``auto``, ``live``, ``plain`` or ``none``; by default what ``HSD_PROGRESS`` says, else ``auto``.
    prompts
        Their number, for the time before there is a plan.
    """

    watches = True

    def __init__(self, mode: Mode | None = None, *, prompts: int = 0) -> None:
        self.screen = Screen(self.body, mode)
        self.shows = self.screen.mode == "live"
        self._prompts = prompts
        self._stage = Stage()
        self._lock = threading.Lock()
        self._images = self._failures = self._lost = self._total = 0
        self._out: Path | str | None = None
        self._plan: Plan | None = None
        self._planned = 0.0  # savings
        self._last: deque[str] = deque(maxlen=_PROMPTS)
        self._rate, self._remaining = Rate(), Remaining(None)
        self._pace, self._stage_pace = Pace(), Pace()  # of plain lines
        self._event: Event | None = None  # the latest of the denoiser
        self._sums = Sums(0, 0, 0, {})
        self._expected: float | None = None
        self._workers: tuple[int, int] | None = None  # that live, and that are wanted
        self._process = psutil.Process()
        self._memory, self._looked = "", -_SAMPLED

    @property
    def started(self) -> bool:
        """Whether any stage but loading was reported."""
        return self._stage.name not in ("", "load")

    # ------------------------------------------------------------------------------- what happens

    def stage(self, name: str, fraction: float = 0.0) -> None:
        """A stage before the run, with its finished fraction: a :data:`~hsd.work.progress.StageReport`."""
        if name != self._stage.name:
            self._stage = Stage(name, self._prompts if name == "encode" else 0)
            self._stage_pace = Pace()
        self._stage.fraction = fraction
        if name == "load":  # not drawn in place: downloads show bars of their own
            if self.screen.mode == "live":
                self.screen.line("hsd: loading the model")
            return
        self.screen.start()
        if self.screen.mode == "plain" and self._event is None and self._stage_pace.due(fraction):
            self.screen.line(self._stage.text())

    def began(self, plan: Plan, existing: int, out: Path | str | None, expected: Span | None) -> None:
        """The run begins: a line in a log says what it will do."""
        self._plan, self._planned, self._total, self._out = plan, plan.savings, len(plan), out
        self._prompts, self._expected = len(plan.covered()), None if expected is None else expected.middle
        self._remaining = Remaining(self._expected)
        self._pace = Pace()
        if self.screen.mode == "plain":
            more = f" ({existing:,} exist already)" if existing else ""
            time_left = "" if expected is None else f", {expected}"
            where = "" if out is None else f" to {out}"
            self.screen.line(f"hsd: {self._total:,} images{where}{more}, {plan.node_steps:,} evaluations{time_left}")

    def event(self, event: Event) -> None:
        """How far the run is."""
        if event.plan is not self._plan:
            self._plan, self._planned = event.plan, event.plan.savings
        self._sums = event.sums
        if event.part == "denoise" and event.node_steps:
            if self._event is None:
                self._rate = Rate()
            self._event = event
            seconds = event.sums.seconds
            self._remaining.measure(event.fraction, seconds["denoise"], self._images, seconds["decode"])
            if self.screen.mode == "plain" and self._pace.due(event.fraction):
                self.screen.line(f"hsd: {self.text()}")
        self.stage(event.part, event.fraction)
        self._look()

    def made(self, prompt: str) -> None:
        """One more image."""
        with self._lock:
            self._images += 1
            self._last.append(printable(prompt[:_LONGEST], self.screen.console))
        self._rate.add()

    def workers(self, alive: int, wanted: int) -> None:
        """How many live."""
        before, self._workers = self._workers, (alive, wanted)
        if self.screen.mode == "plain" and before is not None and alive < before[0]:
            self.screen.line(f"hsd: {self._alive()}")

    def failed(self, failure: Failure) -> None:
        """One more failure; those of writing were counted as images before, unless workers write."""
        with self._lock:
            self._failures += 1
            self._lost += failure.stage == "write" and self._workers is None

    def writing(self) -> None:
        """The last images are written."""
        self.stage("write", 1.0)

    def finished(self, run: Run | None) -> None:
        """The result, in one line."""
        self.close()
        own = f"images {self._done():,} of {self._total:,}, {self._sums.evaluations:,} evaluations"
        self.screen.line(f"hsd: {own if run is None else ' '.join(str(run).splitlines())}")

    def stopped(self, run: Run) -> None:
        """After an error or Ctrl-C: what stands now."""
        self.close()
        done, every = run.images + run.existing, self._total + run.existing
        self.screen.line(f"hsd: stopped: {done:,} of {every:,} images are in {run.out}")

    # ------------------------------------------------------------------------------- what is shown

    def _done(self) -> int:
        return self._images - self._lost

    def left(self) -> float | None:
        """Seconds until the end of the run, if that can be said."""
        event, stage = self._event, self._stage
        if event is not None:
            return self._remaining.seconds(event.fraction, self._total - self._done() - self._failures)
        own = stage.left()
        if stage.name != "encode" or own is None or self._expected is None:
            return None
        return own + self._expected

    def saved(self) -> str:
        """Evaluations that are saved so far, and what it will be at the end."""
        sums, end = self._sums, f"{self._planned:.1%}"
        if not sums.evaluations:
            return f"{end} at the end"
        # Before the first images, what they share is paid for, and nothing is saved yet.
        now = 1.0 - sums.evaluations / sums.standard if sums.standard else 0.0
        return f"{now:.1%} so far, {end} at the end" if now > 0.0 else f"nothing yet, {end} at the end"

    def counts(self) -> str:
        """Images: done, speed, failed."""
        failed = f", {self._failures:,} failed" if self._failures else ""
        rate = self._rate.value()
        speed = f", {rate:.1f} a second" if rate >= 1.0 else f", {rate * 60:.1f} a minute" if rate else ""
        return f"{self._done():,} of {self._total:,}{speed}{failed}"

    def _alive(self) -> str:
        assert self._workers is not None
        return "workers {:,} of {:,}".format(*self._workers)

    def text(self) -> str:
        """One line for a log."""
        event, left = self._event, self.left()
        assert event is not None
        ends = "" if left is None else f", about {duration(left)} left"
        many = "" if self._workers is None else f"{self._alive()}, "
        return f"{many}images {self.counts()}, {event.fraction:.0%} of the evaluations{ends}, saved {self.saved()}"

    def _look(self) -> None:
        """The memory, now and then; from the thread that runs, since on a GPU it must not be asked during a capture."""
        now = time.monotonic()
        # The memory of workers is elsewhere.
        if self.screen.mode != "live" or self._workers is not None or now - self._looked < _SAMPLED:
            return
        self._looked = now
        self._sample()

    def _sample(self) -> None:
        text, device = _gigabytes(self._process.memory_info().rss), self._sums.device
        if device is not None and device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # it has failed, and the run ends soon
                free, _ = torch.cuda.mem_get_info(device)
                text += f", GPU {_gigabytes(torch.cuda.memory_allocated(device))}, {_gigabytes(free)} free"
        self._memory = text

    def rows(self) -> list[tuple[str, str]]:
        """Names and values below the bar."""
        if self._plan is None:
            return []
        event = self._event
        rows = [("images", self.counts()), ("saved", self.saved())]
        if self._workers is not None:
            rows.append(("workers", "{:,} of {:,}".format(*self._workers)))
        else:
            if event is not None:
                batches = f"batches of {event.sums.batch_size}"
                rows.append(("latents", f"{event.alive:,} alive, {event.slots:,} at most, {batches}"))
            rows.append(("memory", self._memory))
        if self._out is not None:
            rows.append(("folder", printable(str(self._out), self.screen.console)))
        with self._lock:
            last = list(self._last)
        return rows + [("" if i else "last", prompt) for i, prompt in enumerate(reversed(last))]

    def body(self) -> RenderableType:
        """What is drawn in place."""
        return _Body(self)

    def bar(self) -> BarLine | None:
        """The first line: what happens now, and when all of it ends."""
        if not self._stage.name:
            return None
        left = clock(self.left() if self._event is not None else self.left() or self._stage.left())
        known = self._stage.name in ("encode", "cluster", "denoise")
        return BarLine(str(self._stage), self._stage.fraction if known else None, f"{left} left" if left else "")

    def close(self) -> None:
        """Remove what is drawn in place; the next stage draws again."""
        self.screen.close()

    def __enter__(self) -> RunView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Body:
    """Lines that are cut to the width, so that their number does not depend on it."""

    def __init__(self, view: RunView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = self._view.bar()
        if bar is not None:
            yield bar
        for name, value in self._view.rows():
            yield line_of(f"{name:<8} {value}", options)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB"


@contextlib.contextmanager
def watching(progress: ProgressOption | Watcher) -> Iterator[Watcher]:
    """Who watches a run, by its argument ``progress``: a view of its own for True, which is closed at the end."""
    if isinstance(progress, Watcher):
        yield progress
        return
    check_progress(progress)
    if progress is True:
        with RunView() as view:
            yield view
    else:
        yield Told(progress) if callable(progress) else Watcher()
