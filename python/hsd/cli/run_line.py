"""The command that runs what ``hsd plan`` has planned, or ``hsd tune`` has chosen."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import typer

from .options import STAND_IN, is_typed
from .recipe import DECIDED
from .sources import OPTIONS

_NOT_RUN = {"save", "plot", "as_json", "embeddings"}
"""Options of ``hsd plan`` that ``hsd generate`` does not have."""

_IN_PLAN = {*DECIDED, *OPTIONS, "plan_file", "only", "more", "depth", "preview"}
"""What a saved plan brings."""


def run_line(ctx: typer.Context) -> str:
    """``hsd generate`` with the prompts and options of an ``hsd plan``: those that were typed.

    With ``--save``, what runs the saved plan; with ``--embeddings``, which ``hsd generate`` does not take, nothing else
    does. Where no model was used, a place for its name: the default of ``hsd generate``, the bundled model, is for
    trying things out.
    """
    params = ctx.params
    saved = params.get("save") if params.get("extend") is None else None  # a folder's plan grows by prompts only
    no_model = params.get("model") == STAND_IN or (_has_plan(params) and not is_typed(ctx, "model"))
    if saved is None and params.get("embeddings") is not None:
        return "hsd generate --plan FILE --model MODEL --out FOLDER, with the FILE of --save"
    left_out = _NOT_RUN if saved is None else _NOT_RUN | _IN_PLAN
    names = [name for name in params if name not in left_out and not (no_model and name == "model")]
    words = ["hsd generate"]
    if saved is not None:
        words.append(f"--plan {shlex.quote(str(saved))}")
    words.append(typed_words(ctx, names))
    if no_model:
        words.append("--model MODEL")
    elif saved is not None and not is_typed(ctx, "model"):
        words.append(f"--model {params['model']}")
    if not any(params.get(name) for name in ("out", "extend")):
        words.append("--out FOLDER")
    return " ".join(filter(None, words))


def _has_plan(params: dict[str, Any]) -> bool:
    """Whether ``hsd plan`` loads no model unless it is named."""
    of_file = params.get("plan_file") or str(params.get("prompts")).endswith(".safetensors")
    return bool(of_file) or params.get("embeddings") is not None


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
