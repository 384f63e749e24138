"""``hsd calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..calibration.store import keep
from ..work.stages import Stages
from . import options as opt
from .console import print_result, quiet

_PromptsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A few hundred prompts like those that you will generate: text, a table, JSON lines or a data set.",
        show_default="the bundled model's own",
    ),
]


@opt.takes_prompts(_PromptsOption)
def calibrate(
    model: opt.Model,
    source: opt.Source,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the calibration to this file.", show_default="the user's data folder"),
    ] = None,
    seed: opt.Seed = 0,
    settings: opt.Settings = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Measure how a model tells prompts apart, so that prompts share steps where the model draws them alike.

    Done once per model. hsd plan and hsd generate then find the calibration by the model's weights.
    """
    quiet()
    from ..probing import calibrate as measure

    given = opt.read(source).prompts if source.prompts or source.template else None
    adapter = opt.load(model, device, settings)
    with Stages() as stages:
        calibration = measure(adapter, given, seeds=seed, progress=stages)
    if out is None:
        path = keep(calibration)
    else:
        calibration.save(out)
        path = out
    names = ("model", "correlation", "cosine_correlation", "prompts", "rank", "tau")
    print_result(
        f"{calibration.model}: on prompts that it was not fitted to, distances after the map predict the model's own "
        f"with a correlation of {calibration.correlation:.2f}; cosine distances do with "
        f"{calibration.cosine_correlation:.2f}.\n"
        f"{calibration.prompts} prompts, rank {calibration.rank}, default tau {calibration.tau:.3g}: {path}",
        {**{name: getattr(calibration, name) for name in names}, "file": str(path)},
    )
