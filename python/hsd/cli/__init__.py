"""The command line: ``hsd prompts``, ``generate``, ``plan``, ``calibrate``, ``bench``, ``check``, ``evaluate``,
``tune``, ``reproduce`` and ``report``.

It parses and prints; each command calls one function of the library. Commands are imported when they are asked for, and
import what needs torch when they run: ``hsd plan`` starts without it, and ``hsd --help`` without numpy too.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .._core import __version__
from ..errors import Error
from .signals import exit_code, listening, received

__all__ = ["app", "main"]

# The commands, each a function in the module of its name: what `hsd --help` says of it, which is the first line of its
# own help, and whether the same command continues what was interrupted.
_COMMANDS = {
    "generate": ("Generate an image for every prompt, into a folder.", True),
    "plan": ("Print what hsd generate would cost with the same options, before anything runs.", False),
    "prompts": (
        "Show which prompts would be used: how many, the first ones, what their columns are, repeats, and cut ones.",
        False,
    ),
    "calibrate": (
        "Measure how a model tells prompts apart, so that prompts share steps where the model draws them alike.",
        False,
    ),
    "bench": (
        "Measure a model on this machine: the denoiser by itself, the executor, and images compared with diffusers.",
        False,
    ),
    "check": (
        "Check on a few prompts that a model can share steps: the images of one call do not influence each other.",
        False,
    ),
    "evaluate": (
        "Measure images: how well they match their prompts, how diverse they are, how often they win against another "
        "run.",
        True,
    ),
    "tune": (
        "Find the cheapest settings that are not worse than the standard ones on your prompts, by a scorer.",
        True,
    ),
    "reproduce": (
        "Run the paper's experiments and its open questions on a model and sets of prompts: tables and figures.",
        True,
    ),
    "report": (
        "Write pages that show the images: a gallery, what was shared, the figures of the run, two folders side by "
        "side.",
        True,
    ),
}


@functools.cache
def _command(name: str) -> Any:
    """A command, from its module, which is imported for it."""
    from .console import stoppable

    one = typer.Typer(add_completion=False)
    _, resumable = _COMMANDS[name]
    function = getattr(import_module(f".{name}", __name__), name)
    one.command(name, cls=_Command)(stoppable(function, resumable=resumable))
    return typer.main.get_command(one)


class _Commands(Mapping[str, Any]):
    """The commands by name."""

    def __getitem__(self, name: str) -> Any:
        if name not in _COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Group(TyperGroup):
    """The commands, of which the list in the help is printed without importing them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()  # type: ignore[assignment]  # none is added to it
        self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; for the list, its name and its line."""
        if self._listing:
            return TyperCommand(cmd_name, help=_COMMANDS[cmd_name][0])
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(
    name="hsd",
    cls=_Group,
    help="Generate large sets of images from text prompts. Steps that similar prompts share run once.",
    epilog="hsd COMMAND -h explains a command. After hsd --install-completion, the Tab key completes names.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class _Command(TyperCommand):
    """A command that explains ``--json FILE``, which is not the way to a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        for option, value in itertools.pairwise(args):
            if option == "--json" and value.endswith(".json") and not os.path.exists(value):
                raise typer.BadParameter(
                    f"--json takes no file: it prints to standard output. Write --json > {value}", ctx
                )
        return super().parse_args(ctx, args)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hsd {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors of HSD and of a GPU, bad arguments and unusable files become one line on standard error, and
    exit code 1.

    Other exit codes: 2 for options that cannot be parsed, 3 if some images failed, 130, 143 and 129 for Ctrl-C, SIGTERM
    and SIGHUP.
    """
    with listening():
        try:
            app()
        except (Error, ValueError, TypeError, OSError) as error:
            if (code := received()) is not None:  # a library took the interruption for an error
                typer.echo("hsd: interrupted", err=True)
                sys.exit(code)
            typer.echo(f"hsd: {_told(error)}", err=True)
            sys.exit(1)
        except RuntimeError as error:
            from ..work.faults import told_of_device  # here, because it imports torch, which not all commands need

            if (told := told_of_device(error, "running this command")) is None:
                raise
            typer.echo(f"hsd: {told}", err=True)
            sys.exit(1)
        except KeyboardInterrupt as error:  # outside of any command
            sys.exit(exit_code(error))
        except SystemExit as end:
            if end.code == 130 and (code := received()) is not None:  # while the command line was parsed
                sys.exit(code)
            raise


def _told(error: Exception) -> str:
    """An error of HSD says all; one of the system names the file that the user gave, or is about the output."""
    if not isinstance(error, OSError) or isinstance(error, Error):
        return str(error)
    where = "cannot write the output" if error.filename is None else os.fsdecode(error.filename)
    return f"{where}: {error.strerror or error}"
