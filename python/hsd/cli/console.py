"""What a command prints besides its results: messages, progress, and what it keeps quiet."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from ..errors import Notice
from ..work.quiet import quiet as quiet_libraries
from ..work.terminal import VARIABLE, Mode, mode_of
from .signals import exit_code

P = ParamSpec("P")
T = TypeVar("T")

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "progress": (
        Annotated[
            Mode | None,
            typer.Option(
                "--progress",
                envvar=VARIABLE,
                help="How progress is shown: live, in place on a terminal; plain, a few lines; none.",
                show_default="auto: live on a terminal, else plain",
            ),
        ],
        None,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Print more about what happens.")], False),
}
"""Type and default of the options that every command has."""

_quiet = _json = False
_until_the_end = contextlib.ExitStack()


def say(text: str, *, always: bool = False) -> None:
    """A message on standard error; with ``--quiet`` only if it is printed ``always``."""
    tell(f"hsd: {text}", always=always)


def tell(text: str, *, always: bool = False) -> None:
    """A text of several lines on standard error, as :func:`say` prints one.

    Not by ``typer.echo``, which writes past what draws in place on a terminal.
    """
    if always or not _quiet:
        print(text, file=sys.stderr, flush=True)


def stoppable(command: Callable[..., T], *, resumable: bool) -> Callable[..., T]:
    """A command that Ctrl-C and its like end with one line and the signal's exit code, whatever it was doing.

    It has the options ``--progress``, ``--quiet`` and ``--verbose`` too. What HSD warns of and logs is printed as its
    messages, see :func:`notices` and :func:`_logged`.

    ``resumable``: whether the same command continues what was interrupted; the line says so.
    """

    @wraps(command)
    def run(*args: Any, progress: Mode | None, quiet: bool, verbose: bool, **kwargs: Any) -> T:
        try:
            as_json = bool(kwargs.get("as_json"))
            with _printing("none" if quiet else progress, quiet, as_json), notices(), _logged(quiet, verbose):
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            with contextlib.suppress(OSError):  # the terminal may be gone: SIGHUP
                text = "interrupted; run the same command again to continue" if resumable else "interrupted"
                say(text, always=True)
            raise typer.Exit(exit_code(error)) from None

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **{name: kind for name, (kind, _) in _OPTIONS.items()}}
    return run


@contextlib.contextmanager
def _printing(mode: Mode | None, quiet: bool, as_json: bool) -> Iterator[None]:
    """How this command prints. The mode is in the environment: what shows progress finds it there."""
    global _quiet, _json, _until_the_end
    before, _quiet, _json = os.environ.get(VARIABLE), quiet, as_json
    if mode is not None:
        os.environ[VARIABLE] = mode
    try:
        with contextlib.ExitStack() as _until_the_end:
            yield
    finally:
        _quiet = _json = False
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


class _Messages(logging.Handler):
    """Prints what HSD logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            say(record.getMessage(), always=True)


@contextlib.contextmanager
def _logged(quiet: bool, verbose: bool) -> Iterator[None]:
    """Inside, what HSD logs is printed: with ``quiet`` warnings alone, with ``verbose`` all of it."""
    logger, handler = logging.getLogger("hsd"), _Messages()
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def print_result(text: str | None, numbers: dict[str, Any] | None = None) -> None:
    """What a command is for, on standard output: its text, or with ``--json`` its numbers as one JSON object.

    Without ``numbers`` it is a text beside the result, which goes to standard error with ``--json``.
    """
    if _json and numbers is not None:
        typer.echo(json.dumps(numbers, ensure_ascii=False))
    elif text is not None:
        typer.echo(text, err=_json)


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Inside, each :class:`hsd.Notice` is a message of the command, without the place in the code."""
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                say(str(message), always=True)
            else:
                elsewhere(message, category, *args, **options)

        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = show
        yield


def quiet() -> None:
    """Keep the libraries quiet until the command ends. Downloads show their bars where progress is shown in place."""
    _until_the_end.enter_context(quiet_libraries(downloads=shows_progress()))


def shows_progress() -> bool:
    """Whether progress is shown in place, so that downloads may show bars too."""
    return mode_of() == "live"


def says() -> bool:
    """Whether messages are printed."""
    return not _quiet
