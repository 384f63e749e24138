"""``hsd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..names import ScorerName
from . import options as opt
from .console import print_result, quiet


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images with a metadata.jsonl file.", show_default=False)
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="Another folder with images of the same prompts, to compare with.", show_default=False),
    ] = None,
    scorer: Annotated[ScorerName, typer.Option(help="How to score the images.")] = "demo",
    model: opt.ScorerModel = None,
    device: opt.Device = None,
    python: opt.ScorerPython = None,
    batch_size: Annotated[int, typer.Option(help="Images scored at once.")] = 16,
    samples: Annotated[int, typer.Option(help="Number of randomly drawn images to measure diversity on.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the samples and of the intervals.")] = 0,
    tolerance: Annotated[float, typer.Option(help="Largest difference of two scores that counts as a tie.")] = 1e-6,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the score files.", show_default="the folder of images")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Measure images: how well they match their prompts, how diverse they are, how often they win against another run.

    Scores are stored: run the same command again after an interruption, and only missing scores are computed.
    """
    from ..evaluation import evaluate as measure

    if scorer in ("clipscore", "pickscore"):
        quiet()
    result = measure(
        folder,
        against=against,
        scorer=scorer,
        model=model,
        device=device,
        python=python,
        batch_size=batch_size,
        samples=samples,
        seed=seed,
        tolerance=tolerance,
        cache=cache,
        progress=True,
    )
    print_result(str(result), result.numbers())
