"""``hsd plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Error
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..work.reading import read_array
from ..work.stages import Stages
from . import options as opt
from .run_line import run_line


@opt.takes_prompts()
def plan(
    ctx: typer.Context,
    source: opt.Source,
    model: Annotated[
        str | None,
        typer.Option(
            help="Cluster by this model's embeddings, and estimate its time if a run has measured its speed.",
            show_default="a small offline text encoder that stands in for a model",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Cluster by this .npy file instead, an (N, D) array.", show_default=False)
    ] = None,
    tau: opt.Tau = None,
    budget: opt.Budget = None,
    images_per_hour: opt.ImagesPerHour = None,
    gpu_hours: opt.GpuHours = None,
    steps: opt.Steps = 40,
    batch_size: opt.Batch = 16,
    seed: opt.Seed = 0,
    images_per_prompt: opt.Images = 1,
    linkage: opt.LinkageOption = "ward",
    metric: opt.MetricOption = "auto",
    schedule: opt.ScheduleOption = "linear",
    noise: opt.NoiseOption = "independent",
    catch_up: opt.CatchUp = None,
    order: opt.OrderOption = "depth",
    max_slots: opt.MaxSlots = None,
    guidance_interval: opt.GuidanceInterval = None,
    settings: opt.Settings = None,
    settings_file: opt.SettingsFile = None,
    device: opt.Device = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Also say what so many workers (hsd generate --workers N) would compute again, each for its own part.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan to this file (safetensors).")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw savings over tau, clusters by step and the tree into this file: png, svg or pdf, by its ending.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Print the cost of a set of prompts, before anything runs."""
    if plot is not None:
        from ..planning.charts import file_for  # here, because few plans are drawn

        file_for(plot)  # what is wrong with it is found before the work
    file = opt.read(source)
    if model is None and guidance_interval is not None:
        raise ValueError("--guidance-interval is a setting of a model: give --model too")
    opt.check_of_model(settings, model)
    own = {"tau": tau, "budget": budget, "steps": steps, "catch_up": catch_up, "metric": metric, "schedule": schedule}
    own |= {"images_per_hour": images_per_hour, "gpu_hours": gpu_hours}
    planned, of_model = opt.with_file(ctx, settings_file, model, **own)
    of_model = {"guidance_interval": guidance_interval, **of_model}
    adapter = opt.load(model, device, settings, **of_model) if model is not None else None
    file = opt.fit(file, adapter)
    vectors = None
    if embeddings is not None:
        try:
            vectors = read_array(embeddings)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Error(f"cannot read {embeddings} as a .npy array: {why}") from None
    with Stages(total=len(file.prompts)) as stages:
        result = compile_plan(
            file,
            model=adapter,
            embeddings=vectors,
            linkage=linkage,
            seeds=seed,
            images_per_prompt=images_per_prompt,
            noise=noise,
            progress=stages,
            **planned,
        )
    if save is not None:
        result.save(save)
    if plot is not None:
        result.plot(plot)
    if adapter is None:
        summary = result.cost([result.program(batch_size, order, max_slots)])
    else:
        from ..tuning.passes import cost  # here, because it imports torch

        summary = cost(result, adapter, batch_size, order, max_slots)
    run, more, numbers = run_line(ctx), [], {}
    if workers is not None:
        numbers = on_workers(result, workers)
        more.append((f"on {workers:,} workers", _told(numbers)))
    if as_json:
        typer.echo(json.dumps({**summary.numbers(), **numbers, "command": run}))
    else:
        typer.echo(summary.text([*more, ("to run it", run)]))


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
