"""Arguments and options of several commands, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..demo import MODELS as DEMO_MODELS
from ..names import MODELS, BatchSize, Linkage, Metric, Noise, Order, ScheduleName
from ..planning.chosen import load_settings
from ..planning.settings import check_settings
from ..prompts.files import PromptFile
from ..prompts.known_settings import KNOWN, perhaps_meant
from ..work.reading import parse_json
from .console import quiet, say, shows_progress
from .sources import Source as Source
from .sources import read as read
from .sources import takes_prompts as takes_prompts


def complete_model(incomplete: str) -> list[str]:
    """Names of models that begin so, for completion in a shell. Folders and hub ids are not known here."""
    return [name for name in (*DEMO_MODELS, *MODELS) if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="demo, a short name, a hub id (org/name) or a folder.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
STAND_IN = "stand-in"
"""In place of a model: the built-in encoder, which needs no torch. For estimates."""

ModelOption = Annotated[
    str,
    typer.Option("--model", help="demo, a short name, a hub id (org/name) or a folder.", autocompletion=complete_model),
]
Tau = Annotated[
    float | None,
    typer.Option(
        help="Largest dissimilarity of prompts that share the first step; 0 shares nothing.",
        show_default="the model's or its calibration's; else 1.0",
    ),
]
Budget = Annotated[
    float | None, typer.Option(help="Instead of --tau: the share of evaluations to save, between 0 and 1.")
]
ImagesPerHour = Annotated[
    float | None,
    typer.Option(
        "--images-per-hour",
        help="Instead of --tau: as little sharing as makes this many images an hour on this machine, by the measured "
        "speed of the model.",
    ),
]
GpuHours = Annotated[
    float | None,
    typer.Option(
        "--gpu-hours",
        help="Instead of --tau: as little sharing as makes all images in this time on one device like this one.",
    ),
]
Steps = Annotated[int, typer.Option(help="Inference steps of the scheduler.")]
Seed = Annotated[int, typer.Option(help="Prompt i gets the seed SEED + i.")]
Images = Annotated[int, typer.Option("--images-per-prompt", help="Number of different images of each prompt.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Latents per call of the denoiser.")]
BatchOrAuto = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="INTEGER|auto",
        help="Latents per call of the denoiser; auto measures the model for some seconds and uses the fastest size.",
    ),
]
OrderOption = Annotated[
    Order, typer.Option(help="depth: first images early, few latents in memory; breadth: fewest calls.")
]
MaxSlots = Annotated[
    int | None, typer.Option(help="Largest number of latents in memory at once.", show_default="as needed")
]
LinkageOption = Annotated[Linkage, typer.Option(help="How the dissimilarity of two clusters is computed.")]
MetricOption = Annotated[
    Metric,
    typer.Option(
        help="How prompts are compared. cosine, euclidean: their embeddings; calibrated: as hsd calibrate measured; "
        "direct: by the model's own first predictions; auto: calibrated if possible, else cosine."
    ),
]
ScheduleOption = Annotated[ScheduleName, typer.Option(help="How the threshold falls from tau to 0 over the steps.")]
NoiseOption = Annotated[
    Noise, typer.Option(help="independent: one first latent per root cluster; shared: one for all images.")
]
CatchUp = Annotated[
    float | None,
    typer.Option(
        "--catch-up",
        help="After a split, condition an image beyond its own prompt, away from what it shared before; 0 is off.",
        show_default="1 for families with an adapter in HSD; else 0",
    ),
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="A B",
        help="The part of the run that is guided: fractions, 0 to 1. Steps outside of it cost half as much.",
        show_default="0 1: all of it",
    ),
]
Negative = Annotated[str | None, typer.Option(help="What the images should not show.", show_default=False)]
Height = Annotated[int | None, typer.Option(help="Height of the images in pixels.", show_default="the model's")]
Width = Annotated[int | None, typer.Option(help="Width of the images in pixels.", show_default="the model's")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of the model; can be given several times: prior_steps=10, share_prior=true...",
        show_default=False,
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="Defaults of the other options, as hsd tune writes them; options that are given win.",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Run this plan, which hsd plan --save or Plan.save has written: the prompts, and all that decides the "
        "plan, come from it.",
        show_default=False,
    ),
]
ScorerModel = Annotated[
    str | None, typer.Option(help="Another model of the scorer's kind.", show_default="the scorer's")
]
ScorerPython = Annotated[
    str | None,
    typer.Option(help="Python interpreter of an environment with the scorer's package.", show_default="this one"),
]
Device = Annotated[
    str | None, typer.Option(help="Where to run: cuda, cuda:1, cpu...", show_default="cuda if available, else cpu")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON object on standard output, in place of text; messages stay on standard "
        "error. To keep it in a file, write > FILE.",
    ),
]


def fit(file: PromptFile, adapter: Any | None) -> PromptFile:
    """The file as a loaded model takes it: its settings checked, their lines named. Says which keys are no settings."""
    if adapter is not None:
        from ..models import variants_of  # here, because it imports torch

        file = file.with_settings(adapter.setting_names())
        values, index = check_settings(file.settings, len(file.prompts))
        _, first = np.unique(index, return_index=True)
        variants_of(adapter, values, [file.places[i] for i in first])
    kept = [name for name in file.columns if name not in file.choices]
    if kept:
        what = (
            "no setting of the model; kept as a column"
            if len(kept) == 1
            else "no settings of the model; kept as columns"
        )
        say(f"{', '.join(kept)}: {what} of metadata.jsonl")
    for name in kept:
        near = perhaps_meant(name, KNOWN if adapter is None else adapter.setting_names())
        if near is not None:
            say(
                f"WARNING: {name} is kept as a column; if you meant the setting {near}, write --column {near}={name}",
                always=True,
            )
    return file


def with_file(
    ctx: typer.Context, path: Path | None, model: str | None, **values: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords for ``hsd.compile``, and those for ``hsd.load``, with the file of ``--settings`` as defaults.

    ``values`` are options of the command by the names of ``hsd.compile``. The file replaces those that were not typed;
    a typed ``--tau``, ``--budget`` or time replaces the threshold of the file. Says so if they were chosen for another
    model.
    """
    if path is None:
        return values, {}
    settings = load_settings(path)
    chosen_for = settings.evidence.get("model", model)
    if chosen_for != model:
        say(f"{path} was chosen for {chosen_for}: its threshold may not suit {model or 'embeddings of no model'}")
    of_model = settings.model_arguments()
    typed = {name for name in (*values, *of_model) if is_typed(ctx, name)}
    if typed & {"tau", "budget", "images_per_hour", "gpu_hours"}:
        typed |= {"tau", "budget"}
    own = {name: value for name, value in settings.compile_arguments().items() if name not in typed}
    return {**values, **own}, {name: value for name, value in of_model.items() if name not in typed}


def is_typed(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    return getattr(ctx.get_parameter_source(name), "name", None) == "COMMANDLINE"


def parse_interval(text: str) -> tuple[float, float] | None:
    """The guidance interval of ``A:B``; None for the whole run."""
    try:
        begin, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"{text!r}: write A:B, two fractions of the run such as 0:0.6") from None
    return None if (begin, end) == (0.0, 1.0) else (begin, end)


def load(model: str, device: str | None, settings: list[str] | None = None, **common: Any) -> Any:
    """A loaded model with the settings of ``--set`` and the ``common`` ones that are not None."""
    quiet()
    from ..models import load as load_model  # here, because it imports torch

    return load_model(model, device=device, progress=shows_progress(), **given(settings, **common))


def given(settings: list[str] | None, **common: Any) -> dict[str, Any]:
    """Keywords for a model: the settings of ``--set``, and the ``common`` ones that are not None."""
    return {**{name: value for name, value in common.items() if value is not None}, **parse(settings or [])}


def check_of_model(settings: list[str] | None, model: str | None, **own: Any) -> None:
    """``ValueError`` for settings of ``--set``, and ``own`` ones with options of their own, where there is no model."""
    if model is not None:
        return
    names = [f"--set {setting}" for setting in settings or []]
    names += [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
    if names:
        raise ValueError(f"{names[0]} is a setting of a model: name one with --model")


def parse(settings: list[str]) -> dict[str, Any]:
    """Names and values of NAME=VALUE. A value is JSON if it can be read as JSON, else text."""
    out: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {item}: write NAME=VALUE")
        if name in out:
            raise ValueError(f"--set {item}: {name} is given twice")
        try:
            out[name] = parse_json(value)
        except ValueError:
            out[name] = value
    return out


def parse_batch_size(value: str) -> BatchSize:
    """The value of ``--batch-size`` where it may be ``auto``."""
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"--batch-size is {value!r}: it has to be an integer or auto") from None
