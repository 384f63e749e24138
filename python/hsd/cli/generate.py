"""``hsd generate``."""

from __future__ import annotations

import re
import shlex
import sys
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
from .console import print_result, quiet, say, tell
from .job import Job
from .options import is_typed
from .recipe import NothingToDo, Shard
from .sources import PromptsOrPlan
from .wanted import Wanted, takes_wanted

SOME_FAILED = 3
"""Exit code if some images could not be made."""


@opt.takes_prompts(PromptsOrPlan)
@takes_wanted()
def generate(
    ctx: typer.Context,
    source: opt.Source,
    wanted: Wanted,
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
    ray: many.Ray = None,
    as_json: opt.Json = False,
) -> None:
    """Generate an image for every prompt, into a folder.

    The folder opens with datasets.load_dataset("imagefolder", data_dir=...). Run the same command again after an
    interruption: only missing images are generated.

    Exit codes: 0 if all images exist; 3 if some failed: failed.jsonl in the folder says which and why, and the same
    command tries them again; 1 after an error; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    size, part, workers = wanted.size(), Shard.parse(wanted.shard), wanted.workers
    wanted.check(ctx)
    if tar is not None:
        many.check_tar(tar, wanted.folder)
    quiet()
    from ..generation.failures import listed  # here, because it imports torch
    from ..generation.shards import check_shards, write_shards

    out, kept = wanted.folder, _trunk_bytes(keep_trunks, wanted.preview)
    if out is None:
        raise typer.BadParameter("say where the images go: --out FOLDER", param_hint="--out")
    if wanted.model == opt.STAND_IN:
        raise ValueError(f"--model {opt.STAND_IN} is for hsd plan: it compares prompts, and makes no images")
    by_time = [f"--{name.replace('_', '-')}" for name in ("images_per_hour", "gpu_hours") if getattr(wanted, name)]
    many.check(workers, ray, part, device=wanted.device, keep_forks=keep_forks, tar=tar, by_time=by_time)
    many.check_trunks(workers, ray, part, kept if is_typed(ctx, "keep_trunks") else 0, wanted.preview)
    if many.is_many(workers, ray):
        out = many.for_workers(out, ray)
    recipe, loading = wanted.prepared(ctx, source, out, wanted.model)
    if tar is not None:
        check_shards(out, tar)
    if is_url(out):  # an unusable folder is reported before the model is loaded and prompts are encoded
        Objects(out).check()
    elif not many.is_afar(ray) and wanted.extend is None:
        make_folder(out)
    job = Job(
        recipe,
        wanted.model,
        out,
        loading=loading,
        settings=wanted.settings,
        device=wanted.device,
        options={
            "batch_size": size,
            "order": wanted.order,
            "max_slots": wanted.max_slots,
            "compile": wanted.compile,
            "cuda_graphs": wanted.cuda_graphs,
            "channels_last": wanted.channels_last,
            "image_format": image_format,
        },
    )
    try:
        if many.is_many(workers, ray):
            run = job.on_workers(workers, ray)
        else:
            run = job.here(keep_forks=keep_forks, keep_trunks=kept)
    except NothingToDo as nothing:
        say(str(nothing), always=True)
        print_result(None, {"outcome": "finished", "images": 0, "existing": 0, "failed": 0})
        return
    if size == "auto" and run.images and "measure" in run.seconds:
        say(f"batch size {run.batch_size}, measured in {duration(run.seconds['measure'])}")
    print_result(run.result(), run.record)
    if run.nsfw:
        say(f"{run.nsfw:,} images were made black by the model's safety checker: nsfw in {METADATA}", always=True)
    if wanted.preview is not None:
        say("to make all images of a cluster: the same command with --only NAME in place of --preview")
    if tar is not None:
        shards = write_shards(out, tar)
        print_result(str(shards))
        others = shards.images - run.images - run.existing  # the folder keeps the images of prompts that were dropped
        if others > 0 and not (wanted.only or wanted.more or wanted.preview):
            say(
                f"images in the shards whose prompts are not in this list: {others:,} of {shards.images:,}. The folder "
                "keeps them; for shards without them, generate this list into a new folder",
                always=True,
            )
    if run.failed:
        tried = run.images + len(run.failed)
        say(
            f"{len(run.failed):,} of {tried:,} images failed; run the same command again to try them again:",
            always=True,
        )
        tell(listed(run.failed), always=True)
        raise typer.Exit(SOME_FAILED)
    if sys.stdout.isatty() and run.images:
        folder, scorer = shlex.quote(out), "" if wanted.model in DEMO_MODELS else " --scorer clipscore"
        say(f"to look at them: hsd report {folder}; to measure them: hsd evaluate {folder}{scorer}")


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _trunk_bytes(text: str, preview: int | None) -> int:
    """The bytes of ``--keep-trunks``."""
    if not text:
        return 0 if preview is None else 1 << 30
    found = re.fullmatch(r"(\d+)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"--keep-trunks {text}: write a number of bytes, such as 500M or 2G; 0 keeps none")
    return int(found[1]) * _UNITS[found[2].upper()]
