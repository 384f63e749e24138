"""``hsd report``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..work.stages import Stages
from . import options as opt
from .console import print_result


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images of hsd generate.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(help="Another folder with images of the same prompts, to show beside it.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the pages.", show_default="the folder of images")
    ] = None,
    page_size: Annotated[int, typer.Option(help="Images on one page, at most 500.")] = 500,
    open_page: Annotated[bool, typer.Option("--open", help="Open the first page in the browser.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Write pages that show the images: a gallery, what was shared, the figures of the run, two folders side by side.

    The pages need no server and no network. Run it again after more images are made: thumbnails are kept.
    """
    from ..reporting import report as write

    with Stages() as stages:
        page = write(folder, against, out=out, page_size=page_size, progress=stages)
    print_result(str(page), {"page": str(page)})
    if open_page:
        webbrowser.open(page.as_uri())
