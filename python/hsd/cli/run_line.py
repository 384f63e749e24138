"""The command that runs what ``hsd plan`` has planned."""

from __future__ import annotations

import shlex

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
    words = ["hsd", "generate"]
    for parameter in ctx.command.params:
        name, value = parameter.name or "", ctx.params.get(parameter.name or "")
        if name in _NOT_RUN or not is_typed(ctx, name) or value is None:
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
    line = shlex.join(words)
    return line + ("" if ctx.params.get("model") is not None else " --model MODEL") + " --out FOLDER"
