"""The command that runs what ``hsd plan`` has planned, or ``hsd tune`` has chosen."""

from __future__ import annotations

import shlex
from collections.abc import Collection

import typer

from .options import STAND_IN, is_typed

_NOT_RUN = {"save", "plot", "as_json", "embeddings"}
"""Options of ``hsd plan`` that ``hsd generate`` does not have."""


def run_line(ctx: typer.Context) -> str:
    """``hsd generate`` with the prompts and options of an ``hsd plan``: those that were typed.

    Where no model was used, a place for its name: the default of ``hsd generate``, the bundled model, is for trying
    things out. With ``--embeddings``, which ``hsd generate`` does not take, how to run a plan that was saved.
    """
    if ctx.params.get("embeddings") is not None:
        saved = ctx.params.get("save")
        path = "FILE" if saved is None else shlex.quote(str(saved))
        line = f"hsd generate --plan {path} --model MODEL --out FOLDER"
        return line if saved is not None else f"{line}, with the FILE of --save"
    stands_in = ctx.params.get("model") == STAND_IN
    names = [name for name in ctx.params if name not in _NOT_RUN and not (stands_in and name == "model")]
    words = ["hsd generate", typed_words(ctx, names)]
    of_plan = ctx.params.get("plan_file") or str(ctx.params.get("prompts")).endswith(".safetensors")
    if stands_in or (of_plan and not is_typed(ctx, "model")):
        words.append("--model MODEL")
    if not any(ctx.params.get(name) for name in ("out", "extend")):
        words.append("--out FOLDER")
    return " ".join(filter(None, words))


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
