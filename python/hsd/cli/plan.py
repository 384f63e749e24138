"""``hsd plan``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..errors import Error
from ..names import IMAGE_FILE
from ..planning.differences import plan_differences
from ..planning.plan import Plan
from ..planning.reuse import has_images, plan_in
from ..planning.span import Span
from ..planning.summary import Summary
from ..work.paths import user_path
from ..work.reading import read_array
from ..work.stages import Stages
from ..work.urls import is_url
from . import options as opt
from .console import print_result, say
from .run_line import run_line
from .sources import PromptsOrPlan
from .wanted import Wanted, takes_wanted

_Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="As in hsd generate: demo, a short name, a hub id (org/name) or a folder. Or stand-in: a small offline "
        "encoder in place of a model, for a quick estimate of what a model shares.",
        autocompletion=lambda incomplete: [
            *opt.complete_model(incomplete),
            *([opt.STAND_IN] if opt.STAND_IN.startswith(incomplete) else []),
        ],
    ),
]
_Out = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="As in hsd generate; nothing is written there.", show_default=False),
]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Also say what so many workers (hsd generate --workers N) would compute again, each for its own part.",
        show_default=False,
    ),
]
_PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Print what this plan costs, which --save or Plan.save has written; it can also stand in place of "
        "PROMPTS. Without --model, no model is loaded.",
        show_default=False,
    ),
]


@opt.takes_prompts(PromptsOrPlan)
@takes_wanted(model=_Model, out=_Out, workers=_Workers, plan_file=_PlanFile)
def plan(
    ctx: typer.Context,
    source: opt.Source,
    wanted: Wanted,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Cluster by this .npy file instead, an (N, D) array, and no model.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan to this file (safetensors).", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw savings over tau, clusters by step and the tree into this file: png, svg or pdf, by its ending.",
            show_default=False,
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Print what hsd generate would cost with the same options, before anything runs."""
    if plot is not None:
        from ..planning.charts import file_for  # here, because few plans are drawn

        file_for(plot)  # what is wrong with it is found before the work
    if save is not None and not user_path(save).parent.is_dir():
        raise Error(f"cannot write {save}: there is no folder {user_path(save).parent}")
    size = wanted.size()
    wanted.check(ctx)
    given = opt.is_typed(ctx, "model") or (embeddings is None and wanted.saved(source) is None)
    model = wanted.model if given and wanted.model != opt.STAND_IN else None
    opt.check_of_model(wanted.settings, model, **wanted.of_model())
    more = {} if embeddings is None else {"embeddings": _vectors(embeddings)}
    out = wanted.folder
    recipe, loading = wanted.prepared(ctx, source, out, model, **more)
    adapter = None
    with Stages(total=recipe.images) as stages:
        if model is not None:
            stages("load", 0.0)
            adapter = opt.load(model, wanted.device, wanted.settings, **loading)
        result = recipe.predicted(adapter, stages)
    if save is not None:
        result.save(save)
    if plot is not None:
        result.plot(plot)
    if recipe.shard is not None:
        result = recipe.shard.part(result)
    rows, numbers = _in_folder(result, out)
    if recipe.shard is not None:
        rows.append(("part", f"{recipe.shard}: {len(result):,} of {result.n_prompts:,} images"))
    if adapter is None:
        calls = [] if size == "auto" else [result.program(size, wanted.order, wanted.max_slots)]
        summary = result.cost(calls)
    else:
        from ..tuning.passes import cost  # here, because it imports torch

        names = ("order", "max_slots", "compile", "channels_last", "cuda_graphs")
        own = {name: getattr(wanted, name) for name in names}
        summary = cost(result, adapter, None if size == "auto" else size, **own)
        if "missing" in numbers and (span := _seconds_of(numbers, summary)) is not None:
            rows.append(("time of these", f"{span}, once the model is loaded"))
            numbers["missing_seconds"] = span.ends()
    if wanted.workers is not None:
        found = on_workers(result, wanted.workers)
        rows.append((f"on {wanted.workers:,} workers", _told(found)))
        numbers |= found
    run = run_line(ctx)
    print_result(summary.text([*rows, ("to run it", run)]), {**summary.numbers(), **numbers, "command": run})


def _vectors(path: Path) -> Any:
    """The array of a file."""
    try:
        return read_array(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Error(f"cannot read {path} as a .npy array: {why}") from None


def _in_folder(plan: Plan, out: str | None) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """What a folder of images changes: how much of the plan is made already, as text and as numbers."""
    if out is None or is_url(out) or not has_images(out):
        return [], {}
    begun, folder = plan_in(out), user_path(out)
    if plan.is_estimate and begun is not None and not begun.is_estimate:  # a run would not compare by the stand-in
        say(f"{out} has images: for how many are missing, name their model in place of {opt.STAND_IN}", always=True)
        return [], {}
    if begun is not None and begun.fingerprint not in plan.grown_from and (why := plan_differences(begun, plan)):
        say(
            f"{out} has images of another plan, so hsd generate would refuse to add these: {'; '.join(why)}",
            always=True,
        )
        return [], {}
    found = [int(match[1]) for name in os.listdir(folder) if (match := IMAGE_FILE.fullmatch(name))]
    missing = np.setdiff1d(plan.kept, found)
    node_steps = plan.prune(missing).node_steps if len(missing) else 0
    left = f"{len(missing):,} of {len(plan):,} images, {node_steps:,} node-steps; the others are in {out}"
    return [("to be made", left)], {"missing": len(missing), "missing_node_steps": node_steps}


def _seconds_of(missing: dict[str, Any], whole: Summary) -> Span | None:
    """The time of what is to be made, from that of the whole plan; None if that is not known."""
    if whole.seconds is None:
        return None
    span = whole.seconds * (missing["missing_node_steps"] / whole.node_steps)
    if whole.other_seconds is None:
        return span
    return span + whole.other_seconds * (missing["missing"] / whole.kept)


def on_workers(plan: Plan, workers: int) -> dict[str, Any]:
    """What a plan costs when its units run on so many workers, as JSON can hold it."""
    from ..distributed import recomputed, units

    parts = units(plan, workers)
    again = recomputed(plan, parts)
    saved = 1.0 - plan.node_steps * (1.0 + again) / plan.standard_node_steps
    return {"workers": workers, "units": len(parts), "recomputed": again, "savings_on_workers": saved}


def _told(numbers: dict[str, Any]) -> str:
    units, again, saved = (numbers[name] for name in ("units", "recomputed", "savings_on_workers"))
    return f"{units:,} units, {again:.2%} of the node-steps computed again: {saved:.1%} saved"
