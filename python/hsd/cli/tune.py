"""``hsd tune``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..names import ScorerName
from . import options as opt
from .console import print_result, quiet, say
from .run_line import typed_words

_AS_GENERATE = ("seed", "batch_size", "guidance_scale", "negative_prompt", "height", "width", "settings", "device")
"""Options that ``hsd generate`` has too: those that were typed are repeated in the command that is printed."""


@opt.takes_prompts(without=["sample", "sample_seed"])
def tune(
    ctx: typer.Context,
    model: opt.Model,
    source: opt.Source,
    out: Annotated[
        Path, typer.Option(help="Folder for images, scores and results; an interrupted run continues here.")
    ] = Path("tuning"),
    scorer: Annotated[ScorerName, typer.Option(help="How to score the images.")] = "demo",
    scorer_model: opt.ScorerModel = None,
    python: opt.ScorerPython = None,
    steps: Annotated[int, typer.Option(help="Inference steps of the standard way, which all is compared with.")] = 40,
    try_steps: Annotated[
        list[int] | None,
        typer.Option(metavar="INTEGER", help="Also this number of steps.", show_default="all, 1/2, 3/10, 1/5 of them"),
    ] = None,
    try_budget: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="This share of evaluations saved by sharing.", show_default="0, 0.3, 0.5"),
    ] = None,
    try_catch_up: Annotated[
        list[float] | None,
        typer.Option(metavar="GAMMA", help="This strength of catch-up; 0 is off.", show_default="0, 1"),
    ] = None,
    try_metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="This metric: cosine or calibrated.", show_default="calibrated if possible"),
    ] = None,
    try_schedule: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This schedule.", show_default="linear")
    ] = None,
    try_guidance: Annotated[
        list[str] | None,
        typer.Option(metavar="A:B", help="Guidance in this part of the run only.", show_default="0:1, 0:0.6"),
    ] = None,
    try_scheduler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="This scheduler: own, deterministic, stochastic, or a class of diffusers.",
            show_default="own",
        ),
    ] = None,
    sample: Annotated[int, typer.Option(help="Largest number of prompts to compare on, in whole neighbourhoods.")] = 64,
    seeds: Annotated[int, typer.Option(help="Images of each of these prompts, with different seeds.")] = 1,
    margin: Annotated[float, typer.Option(help="By how much the score may be lower.")] = 0.01,
    seed: opt.Seed = 0,
    batch_size: opt.Batch = 16,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = None,
    height: opt.Height = None,
    width: opt.Width = None,
    settings: opt.Settings = None,
    device: opt.Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and stop.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Find the cheapest settings that are not worse than the standard ones on your prompts, by a scorer.

    Compares numbers of steps, shares of shared steps and more on a sample, and writes hsd-settings.json, which hsd
    generate --settings takes. Each --try option can be given several times, and replaces the default values.
    """
    quiet()
    from ..choice import Tuning
    from ..choice.grid import Axes

    axes = Axes(
        steps=try_steps or None,
        budgets=try_budget or None,
        catch_up=try_catch_up or None,
        metrics=try_metric or None,
        schedules=try_schedule or None,
        guidance_intervals=[opt.parse_interval(text) for text in try_guidance] if try_guidance else None,
        schedulers=[None if name == "own" else name for name in try_scheduler or ["own"]],
    )
    file = opt.read(source)
    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    adapter = opt.load(model, device, settings, **common)
    file = opt.fit(file, adapter)
    tuning = Tuning(
        adapter,
        file.prompts,
        scorer=scorer,
        scorer_model=scorer_model,
        python=python,
        out=out,
        steps=steps,
        axes=axes,
        sample=sample,
        images_per_prompt=seeds,
        margin=margin,
        seeds=file.seeds_from(seed),
        seed=seed,
        batch_size=batch_size,
        prompt_settings=file.settings,
        progress=True,
        say=say,
    )
    if dry_run:
        for note in tuning.notes:
            say(note)
        estimate = tuning.estimate()
        print_result(str(estimate), asdict(estimate))
        return
    choice = tuning.run()
    chosen = shlex.quote(str(choice.out / "hsd-settings.json"))
    words = [source.typed(), "--model", shlex.quote(model), typed_words(ctx, _AS_GENERATE), "--settings", chosen]
    command = f"hsd generate {' '.join(filter(None, words))} --out images"
    print_result(f"{choice}\n{command}", {**choice.numbers(), "command": command})
