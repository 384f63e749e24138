"""``hsd reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from ..names import ExperimentName, ScorerName
from ..planning.summary import duration
from ..work.files import make_folder
from . import options as opt
from .console import print_result, quiet, say


def reproduce(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for images and results; an interrupted study continues here.")
    ],
    model: opt.ModelOption = "demo",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of prompt sets: each .txt or .jsonl file in it is one.",
            show_default="the demo's four sets",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Run only this experiment; can be given several times: {', '.join(get_args(ExperimentName))}.",
            show_default="all",
        ),
    ] = None,
    scorer: Annotated[
        ScorerName | None, typer.Option(help="How to score the images.", show_default="demo for demo, else clipscore")
    ] = None,
    scorer_model: opt.ScorerModel = None,
    python: opt.ScorerPython = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first LIMIT prompts of each set.", show_default="all")
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            help="Tau of Table 1, of diversity and of families, for cosine distances.",
            show_default="1.0; 0.3 for demo",
        ),
    ] = None,
    steps: opt.Steps = 40,
    seed: opt.Seed = 0,
    seeds: Annotated[
        int, typer.Option(help="Seed ranges: every set is generated once for each, and scores are pooled.")
    ] = 1,
    evaluations: Annotated[
        list[int] | None,
        typer.Option(
            help="Only for frontier: the evaluations an image to compare at; can be given several times.",
            show_default="all",
        ),
    ] = None,
    batch_size: opt.Batch = 16,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = None,
    height: opt.Height = None,
    width: opt.Width = None,
    settings: opt.Settings = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Run the paper's experiments and its open questions on a model and sets of prompts: tables and figures.

    Prints first how many images this takes. Images and scores are stored: run the same command again after an
    interruption, or with other experiments, and only missing ones are computed.
    """
    quiet()
    from ..reproduction import reproduce as run_study

    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    make_folder(out)
    study = run_study(
        opt.load(model, device, settings, **common),
        prompts,
        out,
        only=only or None,
        scorer=scorer,
        scorer_model=scorer_model,
        python=python,
        limit=limit,
        tau=tau,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        seeds=seeds,
        evaluations=evaluations or None,
        progress=True,
        say=say,
    )
    skipped = [f"{name} was skipped: {reason}\n" for name, reason in study.skipped.items()]
    counted = "1 experiment" if len(study.results) == 1 else f"{len(study.results)} experiments"
    print_result(
        f"{''.join(skipped)}{study.report}: {counted} in {duration(study.seconds)}.",
        {
            "report": str(study.report),
            "experiments": list(study.results),
            "skipped": study.skipped,
            "seconds": study.seconds,
        },
    )
