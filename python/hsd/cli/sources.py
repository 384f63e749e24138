"""Where the prompts of a command come from: a file, a table, a data set, or templates."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..demo import PROMPTS
from ..errors import PromptError
from ..prompts.files import PromptFile, read_prompts
from ..prompts.hints import hint_for
from ..prompts.source import lines, read_text
from ..prompts.templates import MOST, Templates
from .console import say
from .groups import with_group

_HELP = (
    "A text file with one prompt per line; a table (CSV, TSV, Parquet) or JSON lines (prompt, seed, settings for this "
    "prompt; other columns are kept beside the images); a data set's folder, or hf://datasets/ORG/NAME; '-' for "
    "standard input; 'demo' for the built-in prompts. Not with --template."
)

Prompts = Annotated[str | None, typer.Argument(metavar="PROMPTS", help=_HELP, show_default=False)]
PromptsOrPlan = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPTS",
        help=f"{_HELP} Or a plan that hsd plan --save has written, FILE.safetensors, as with --plan.",
        show_default=False,
    ),
]

_PANEL = "Prompts"

OPTIONS: dict[str, Any] = {
    "template": Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEMPLATE",
            help='Instead of PROMPTS: all combinations of "a {red|blue} __animal__"; @FILE: one template per line of a '
            "file. Can be given several times.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
    "sample": Annotated[
        int | None,
        typer.Option(
            help="Draw this many different combinations of the templates.", show_default="all", rich_help_panel=_PANEL
        ),
    ],
    "sample_seed": Annotated[int, typer.Option(help="Which combinations --sample draws.", rich_help_panel=_PANEL)],
    "wildcards": Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Files for __name__ in templates: name.txt with one value per line; JSON; YAML.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
    "column": Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="A column of PROMPTS that has another name: prompt=caption. Can be given several times.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
    "split": Annotated[
        str | None,
        typer.Option(
            help="Of a data set with several splits: the one to use.", show_default=False, rich_help_panel=_PANEL
        ),
    ],
    "yes": Annotated[
        bool,
        typer.Option(
            "--yes", help=f"Do not ask before more than {MOST:,} combinations are made.", rich_help_panel=_PANEL
        ),
    ],
}
"""Options of every command that takes prompts, by name."""


@dataclass(frozen=True)
class Source:
    """Where prompts come from, as it was typed."""

    prompts: str | None = None
    template: list[str] | None = None
    sample: int | None = None
    sample_seed: int = 0
    wildcards: Path | None = None
    column: list[str] | None = None
    split: str | None = None
    yes: bool = False

    def typed(self) -> str:
        """What was typed, for a command that a message shows."""
        words = [] if self.prompts is None else [self.prompts]
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            name = f"--{option.name.replace('_', '-')}"
            if value is True:
                words.append(name)
            elif value not in (None, False, option.default):
                words += [word for one in (value if isinstance(value, list) else [value]) for word in (name, str(one))]
        return shlex.join(words)


def takes_prompts(
    prompts: Any = Prompts, default: str | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameter ``source`` is typed as ``PROMPTS`` and the options of ``OPTIONS``.

    Parameters
    ----------
    prompts, default
        The type and the default of ``PROMPTS``.
    without
        Options that the command does not have.
    """
    defaults = {field.name: field.default for field in fields(Source)} | {"prompts": default}
    kinds = {"prompts": prompts, **{name: kind for name, kind in OPTIONS.items() if name not in without}}

    def made(given: dict[str, Any]) -> Source:
        if given["prompts"] == default and given["template"]:
            given["prompts"] = None  # a default is not in the way of templates
        return Source(**given)

    return lambda command: with_group(command, "source", kinds, defaults, made)


def read(source: Source) -> PromptFile:
    """The prompts of a command. Says how many combinations templates have, before any is made, and what is taken
    literally in prompts and may not be meant so.
    """
    file = _of_templates(source) if source.template else _of_file(source)
    hint = hint_for(file.prompts, file.places)
    if hint is not None:
        say(hint)
    return file


def _of_file(source: Source) -> PromptFile:
    if source.prompts is None:
        raise ValueError("there are no prompts: name a file, PROMPTS, or give --template")
    for option, value in (("--sample", source.sample), ("--wildcards", source.wildcards)):
        if value is not None:
            raise ValueError(f"{option} is for --template, which is not given")
    columns = {}
    for item in source.column or []:
        name, equals, column = item.partition("=")
        if not equals:
            raise ValueError(f"--column {item}: write NAME=COLUMN, such as prompt=caption")
        if name in columns:
            raise ValueError(f"--column {item}: {name} is given twice")
        columns[name] = column
    path = PROMPTS if source.prompts == "demo" and not Path("demo").exists() else source.prompts
    return read_prompts(path, columns=columns or None, split=source.split)


def _of_templates(source: Source) -> PromptFile:
    if source.prompts is not None:
        raise ValueError(f"give PROMPTS ({source.prompts}) or --template, not both")
    for option, value in (("--column", source.column), ("--split", source.split)):
        if value:
            raise ValueError(f"{option} is for PROMPTS, and not for --template")
    texts, places = [], []
    for number, text in enumerate(source.template or [], start=1):
        if text.startswith("@"):
            found = [(place, line) for place, line in lines(read_text(text[1:]), text[1:]) if not line.startswith("#")]
            if not found:
                raise PromptError(f"{text[1:]} has no templates: write one per line")
        else:
            found = [("--template" if len(source.template or []) == 1 else f"--template {number}", text)]
        places += [place for place, _ in found]
        texts += [text for _, text in found]
    templates = Templates(texts, source.wildcards, places)
    drawn = source.sample is not None and source.sample < templates.count
    rest = f", of which {source.sample:,} are drawn" if drawn else ""
    say(f"{templates.count:,} combination{'s' if templates.count > 1 else ''}{rest}")
    if templates.count > MOST and not drawn and not source.yes:
        if not _on_terminal():
            raise ValueError(
                f"{templates.count:,} combinations are more than {MOST:,}: give --sample N to draw some, or --yes"
            )
        typer.confirm("Make them all?", abort=True, err=True)
    return templates.expand(source.sample, source.sample_seed)


def _on_terminal() -> bool:
    """Whether someone can answer."""
    return sys.stdin is not None and sys.stdin.isatty()
