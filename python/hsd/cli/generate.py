"""``hsd generate``."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..demo import MODELS as DEMO_MODELS
from ..names import ImageFormat
from ..planning.summary import duration
from ..work.files import METADATA, make_folder
from ..work.objects import Objects
from ..work.urls import is_url
from . import many
from . import options as opt
from .console import quiet, say, tell
from .job import Job
from .options import is_typed
from .recipe import NothingToDo, Recipe, Shard, check_added, check_planned, of_folder

SOME_FAILED = 3
"""Exit code if some images could not be made."""


@opt.takes_prompts()
def generate(
    ctx: typer.Context,
    source: opt.Source,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the images, or a URL such as s3://bucket/images; an interrupted run continues here, and a "
            "longer list of prompts too.",
            show_default=False,
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead of --out: add PROMPTS to this folder, by its plan. What it has already is not made again.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Make these images only: prompts by number (3,10-20), or a cluster that --preview names "
            "(cluster:17@9). Can be given several times.",
            show_default=False,
        ),
    ] = None,
    more: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make N variations of each image, or of those of --only: they share its first steps. Without PROMPTS, "
            "of the images of the folder.",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[
        float,
        typer.Option(help="With --more: the part of its steps that a variation shares, above 0 and below 1."),
    ] = 0.7,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make one image of each of at most N clusters, that of the prompt in the middle, and name the "
            "clusters. The images are those of the whole set.",
            show_default=False,
        ),
    ] = None,
    model: opt.ModelOption = "demo",
    tau: opt.Tau = None,
    budget: opt.Budget = None,
    images_per_hour: opt.ImagesPerHour = None,
    gpu_hours: opt.GpuHours = None,
    steps: opt.Steps = 40,
    batch_size: opt.BatchOrAuto = "16",
    seed: opt.Seed = 0,
    images_per_prompt: opt.Images = 1,
    linkage: opt.LinkageOption = "ward",
    metric: opt.MetricOption = "auto",
    schedule: opt.ScheduleOption = "linear",
    noise: opt.NoiseOption = "independent",
    catch_up: opt.CatchUp = None,
    order: opt.OrderOption = "depth",
    max_slots: opt.MaxSlots = None,
    guidance_scale: opt.Guidance = None,
    guidance_interval: opt.GuidanceInterval = None,
    negative_prompt: opt.Negative = None,
    height: opt.Height = None,
    width: opt.Width = None,
    settings: opt.Settings = None,
    settings_file: opt.SettingsFile = None,
    plan_file: opt.PlanFile = None,
    device: opt.Device = None,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Format of the image files.")] = "png",
    keep_forks: Annotated[
        bool,
        typer.Option(
            "--keep-forks",
            help="Also keep the picture that each cluster was heading for when it split, in OUT/__forks__. At most one "
            "more latent is decoded for each image; the images stay the same.",
        ),
    ] = False,
    keep_trunks: Annotated[
        str,
        typer.Option(
            "--keep-trunks",
            metavar="BYTES",
            help="Keep states of latents where clusters split, in OUT/__trunks__, at most so many bytes (500M, 2G): "
            "prompts that are added later, and --only, begin there. 0: none.",
            show_default="0; with --preview 1G",
        ),
    ] = "",
    tar: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="When the run ends, write the images as WebDataset shards of 1,000 to this folder, outside of OUT.",
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the denoiser through torch.compile, which takes minutes to start.")
    ] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Store the denoiser's weights in channels-last layout.")
    ] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="On a GPU, replay calls as CUDA graphs where possible.")] = True,
    workers: many.Workers = None,
    ray: many.Ray = None,
    shard: many.ShardOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the record of the run, as in run.json, to this file."),
    ] = None,
) -> None:
    """Generate an image for every prompt, into a folder.

    The folder opens with datasets.load_dataset("imagefolder", data_dir=...). Run the same command again after an
    interruption: only missing images are generated.

    Exit codes: 0 if all images exist; 3 if some failed: failed.jsonl in the folder says which and why, and the same
    command tries them again; 1 after an error; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    quiet()
    from ..generation.failures import listed
    from ..generation.shards import check_shards, write_shards

    size = opt.parse_batch_size(batch_size)
    part = Shard.parse(shard)
    out, kept = _place(out, extend), _trunk_bytes(keep_trunks, preview)
    by_time = [name for name, value in (("--images-per-hour", images_per_hour), ("--gpu-hours", gpu_hours)) if value]
    many.check(workers, ray, part, device=device, keep_forks=keep_forks, tar=tar, by_time=by_time)
    many.check_trunks(workers, ray, part, kept if is_typed(ctx, "keep_trunks") else 0, preview)
    own = {"tau": tau, "budget": budget, "steps": steps, "catch_up": catch_up, "metric": metric, "schedule": schedule}
    own |= {"images_per_hour": images_per_hour, "gpu_hours": gpu_hours}
    planned, of_model = opt.with_file(ctx, settings_file, model, **own)
    if many.is_many(workers, ray):
        out = many.for_workers(out, ray)
    if more is None and is_typed(ctx, "depth"):
        raise ValueError("--depth is for --more, which is not given")
    if extend is not None:
        check_added(ctx, "--extend")
    if plan_file is not None:
        check_planned(ctx)
        recipe = Recipe.read(plan_file, out, part)
    elif more is not None and extend is None and source.prompts is None and not source.template:
        check_added(ctx, "--more without PROMPTS", ["images_per_prompt"])
        recipe = Recipe(out, None, {}, of_folder(out), part)
    else:
        file = opt.read(source)
        planned |= {"seeds": file.seeds_from(seed, images_per_prompt), "images_per_prompt": images_per_prompt}
        recipe = Recipe(out, file, {**planned, "linkage": linkage, "noise": noise}, shard=part)
    recipe = replace(recipe, adds=extend is not None, only=tuple(only or ()), more=more, depth=depth, preview=preview)
    if tar is not None:
        check_shards(out, tar)
    if is_url(out):  # an unusable folder is reported before the model is loaded and prompts are encoded
        Objects(out).check()
    elif not many.is_afar(ray) and extend is None:
        make_folder(out)
    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    job = Job(
        recipe,
        model,
        out,
        loading={**common, "guidance_interval": guidance_interval, **of_model},
        settings=settings,
        device=device,
        options={
            "batch_size": size,
            "order": order,
            "max_slots": max_slots,
            "compile": compile,
            "cuda_graphs": cuda_graphs,
            "channels_last": channels_last,
            "image_format": image_format,
        },
    )
    try:
        if many.is_many(workers, ray):
            run = job.on_workers(workers, ray, json_file)
        else:
            run = job.here(json_file, keep_forks=keep_forks, keep_trunks=kept)
    except NothingToDo as nothing:
        say(str(nothing), always=True)
        return
    if size == "auto" and run.images and "measure" in run.seconds:
        say(f"batch size {run.batch_size}, measured in {duration(run.seconds['measure'])}")
    typer.echo(run.result())
    if run.nsfw:
        say(f"{run.nsfw:,} images were made black by the model's safety checker: nsfw in {METADATA}", always=True)
    if preview is not None:
        say("to make all images of a cluster: the same command with --only NAME in place of --preview")
    if tar is not None:
        typer.echo(str(write_shards(out, tar)))
    if run.failed:
        tried = run.images + len(run.failed)
        say(
            f"{len(run.failed):,} of {tried:,} images failed; run the same command again to try them again:",
            always=True,
        )
        tell(listed(run.failed), always=True)
        raise typer.Exit(SOME_FAILED)
    if sys.stdout.isatty() and run.images:
        folder, scorer = shlex.quote(out), "" if model in DEMO_MODELS else " --scorer clipscore"
        say(f"to look at them: hsd report {folder}; to measure them: hsd evaluate {folder}{scorer}")


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _place(out: str | None, extend: str | None) -> str:
    """The folder of the images."""
    if out is not None and extend is not None:
        raise ValueError("give --out or --extend, not both: --extend adds prompts to a folder, and writes there")
    if out is None and extend is None:
        raise typer.BadParameter("say where the images go: --out FOLDER", param_hint="--out")
    return out if out is not None else str(extend)


def _trunk_bytes(text: str, preview: int | None) -> int:
    """The bytes of ``--keep-trunks``."""
    if not text:
        return 0 if preview is None else 1 << 30
    found = re.fullmatch(r"(\d+)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"--keep-trunks {text}: write a number of bytes, such as 500M or 2G; 0 keeps none")
    return int(found[1]) * _UNITS[found[2].upper()]
