"""Console output other than results: progress bars, messages, and suppressed notices."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from tqdm.auto import tqdm

from ..errors import OtherVersions
from ..work.files import write_atomically


class Stages:
    """A progress bar for each stage of planning, on a terminal; removed when the stage is done."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    @property
    def started(self) -> bool:
        """Whether any stage was reported."""
        return bool(self._stage)

    def __call__(self, stage: str, fraction: float) -> None:
        """Show that ``fraction`` of ``stage`` is done."""
        if stage != self._stage:
            self.close()
            self._stage = stage
            form = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
            self._bar = tqdm(total=1.0, desc=stage, bar_format=form, disable=None, leave=False)
        self._bar.update(fraction - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def say(text: str) -> None:
    """A message on standard error."""
    typer.echo(f"hsd: {text}", err=True)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """For commands that can be continued: Ctrl-C prints how to continue, and exits with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        raise typer.Exit(130) from None


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write the file of ``--json``, if one is given."""
    if path is not None:
        write_atomically(path, (json.dumps(numbers, indent=1) + "\n").encode())


_show_elsewhere = warnings.showwarning


def _show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
    """A warning that is a message for the user as one line, without the place in the code."""
    if issubclass(category, OtherVersions):
        say(str(message))
    else:
        _show_elsewhere(message, category, *args, **options)


def quiet() -> None:
    """Suppress the notices and loading bars of the libraries. Downloads still show theirs."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # from torch, about the libraries that use it
    warnings.filterwarnings("always", category=OtherVersions)
    warnings.showwarning = _show
    import diffusers  # here, because both import torch
    import transformers

    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
