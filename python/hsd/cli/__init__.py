"""The command line: ``hsd prompts``, ``generate``, ``plan``, ``calibrate``, ``bench``, ``check``, ``evaluate``,
``tune``, ``reproduce`` and ``report``.

It parses and prints; each command calls one function of the library. Commands import what needs torch when they run, so
that ``hsd plan`` and ``hsd --help`` start without it.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .._core import __version__
from ..errors import Error
from . import bench, calibrate, check, evaluate, generate, plan, prompts, report, reproduce, tune
from .console import stoppable
from .signals import exit_code, listening, received

__all__ = ["app", "main"]

app = typer.Typer(
    name="hsd",
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


for command, resumable in (
    (generate.generate, True),
    (plan.plan, False),
    (prompts.prompts, False),
    (calibrate.calibrate, False),
    (bench.bench, False),
    (check.check, False),
    (evaluate.evaluate, True),
    (tune.tune, True),
    (reproduce.reproduce, True),
    (report.report, True),
):
    app.command(cls=_Command)(stoppable(command, resumable=resumable))


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
