"""``hsd check``."""

from __future__ import annotations

import typer

from . import options as opt
from .console import quiet


def check(model: opt.Model, settings: opt.Settings = None, device: opt.Device = None) -> None:
    """Check on a few prompts that a model can share steps: the images of one call do not influence each other.

    Also says whether its calls can be captured as CUDA graphs, which needs no GPU.
    """
    quiet()
    from ..models import check as check_model

    adapter = opt.load(model, device, settings)
    graphs = check_model(adapter)
    typer.echo(f"{adapter.name}: encoding, lanes at different steps, and decoding are correct.")
    typer.echo(f"CUDA graphs: {graphs}")
