"""Console output other than results: progress bars, messages, and suppressed notices."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import typer
from tqdm.auto import tqdm

from ..errors import Notice
from ..work.files import write_json
from ..work.paths import user_path
from .signals import exit_code

P = ParamSpec("P")
T = TypeVar("T")


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


def stoppable(command: Callable[P, T], *, resumable: bool) -> Callable[P, T]:
    """A command that Ctrl-C and its like end with one line and the signal's exit code, whatever it was doing.

    What HSD warns of is printed as its messages, see :func:`notices`.

    ``resumable``: whether the same command continues what was interrupted; the line says so.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with notices():
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            with contextlib.suppress(OSError):  # the terminal may be gone: SIGHUP
                say("interrupted; run the same command again to continue" if resumable else "interrupted")
            raise typer.Exit(exit_code(error)) from None

    return run


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write the file of ``--json``, if one is given."""
    if path is not None:
        write_json(user_path(path), numbers)


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Inside, each :class:`hsd.Notice` is a message of the command, without the place in the code."""
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                say(str(message))
            else:
                elsewhere(message, category, *args, **options)

        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = show
        yield


def quiet() -> None:
    """Suppress the notices and loading bars of the libraries. Downloads still show theirs."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # from torch, about the libraries that use it
    import diffusers  # here, because both import torch
    import transformers

    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
