"""What :func:`hsd.generate` and :func:`hsd.stream` are given: a plan, or prompts, of which they make one."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from ..models import Adapter
from ..planning.compile import compile
from ..planning.grow import what_grew
from ..planning.plan import Plan
from ..planning.reuse import begun_in
from ..prompts.files import PromptFile
from ..work.faults import device_errors
from ..work.files import make_folder
from ..work.progress import StageReport
from ..work.urls import is_url
from .clustering import on_steps
from .options import Options
from .session import check

_LOG = logging.getLogger(__name__)

Prompts = Iterable[str] | PromptFile
"""What :func:`hsd.compile` makes a plan of."""

_OF_RUN = ("prompts", "model", "conditioning_memory", "reuse", "extend", "progress")

COMPILES = tuple(name for name in inspect.signature(compile).parameters if name not in _OF_RUN)
"""Arguments of :func:`hsd.compile` that a run takes beside prompts. The others it has itself."""


def divided(plan: Plan | Prompts, keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of :func:`hsd.compile` among the keywords of a run, and the settings of the model.

    Raises
    ------
    TypeError
        If there are arguments of :func:`hsd.compile` beside a plan, which has decided them.
    """
    arguments = {name: value for name, value in keywords.items() if name in COMPILES}
    if arguments and isinstance(plan, Plan):
        names = ", ".join(f"{name}=" for name in arguments)
        raise TypeError(
            f"{names} cannot be given with a plan, which has decided it: give it to hsd.compile, or give the prompts "
            "in place of the plan"
        )
    for name in ("reuse", "extend"):
        if name in keywords:
            raise TypeError(
                f"{name}= is an argument of hsd.compile: hsd.generate(prompts, ..., out=FOLDER) continues the folder, "
                "or lets it grow, by itself"
            )
    return arguments, {name: value for name, value in keywords.items() if name not in arguments}


def compiled(
    prompts: Prompts,
    load: Callable[[], Adapter],
    arguments: dict[str, Any],
    options: Options,
    report: StageReport,
    out: str | os.PathLike[str] | None = None,
) -> tuple[Plan, Adapter]:
    """The plan of prompts by a model's own embeddings, and the model.

    Bad arguments are found before the model is loaded, and bad options before prompts are encoded. With ``out``, the
    images that are there count, as for ``hsd generate``: the plan is that of the earlier run, if it was compiled from
    the same prompts and arguments; with other prompts it is that plan, with what is new in the list.
    """
    models: list[Adapter] = []

    def loaded() -> Adapter:
        if out is not None and not is_url(out):
            make_folder(out)
        models.append(load())
        steps = {name: value for name, value in arguments.items() if name in ("steps", "num_inference_steps")}
        check(models[0], options, on_steps(compile(["-"], 0.0, **steps), models[0]))
        return models[0]

    begun = begun_in(out)
    with device_errors(lambda: "encoding the prompts"):
        plan = compile(
            prompts,
            model=loaded,
            reuse=out,
            extend=begun,
            conditioning_memory=options.conditioning_memory,
            progress=report,
            **arguments,
        )
    for line in [] if begun is None else what_grew(begun, plan):
        _LOG.info(line)
    return plan, models[0]
