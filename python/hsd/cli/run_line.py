"""The command that runs what ``hsd plan`` has planned, or ``hsd tune`` has chosen."""

from __future__ import annotations

import shlex
from collections.abc import Collection

import typer

from .options import is_typed

_NOT_RUN = {"save", "plot", "as_json", "embeddings"}
"""Options of ``hsd plan`` that ``hsd generate`` does not have."""


def run_line(ctx: typer.Context) -> str:
    """``hsd generate`` with the prompts and options of an ``hsd plan``: those that were typed.

    Without ``--model``, a place for its name: the default of ``hsd generate``, the bundled model, is for trying things
    out. With ``--embeddings``, which ``hsd generate`` does not take, how to run a plan that was saved.
    """
    if ctx.params.get("embeddings") is not None:
        saved = ctx.params.get("save")
        path = "FILE" if saved is None else shlex.quote(str(saved))
        line = f"hsd generate --plan {path} --model MODEL --out FOLDER"
        return line if saved is not None else f"{line}, with the FILE of --save"
    line = f"hsd generate {typed_words(ctx, [name for name in ctx.params if name not in _NOT_RUN])}"
    return line + ("" if ctx.params.get("model") is not None else " --model MODEL") + " --out FOLDER"


def typed_words(ctx: typer.Context, names: Collection[str]) -> str:
    """The parameters of a command that were typed, of those with these ``names``, in the order of its help."""
    words: list[str] = []
    for parameter in ctx.command.params:
        name, value = parameter.name or "", ctx.params.get(parameter.name or "")
        if name not in names or not is_typed(ctx, name) or value is None:
            continue
        values = [str(one) for one in value] if isinstance(value, (tuple, list)) else [str(value)]
        if parameter.param_type_name == "argument":
            words += values
        elif value is True:
            words.append(parameter.opts[0])
        elif getattr(parameter, "multiple", False):
            words += [word for one in values for word in (parameter.opts[0], one)]
        else:
            words += [parameter.opts[0], *values]
    return shlex.join(words)
