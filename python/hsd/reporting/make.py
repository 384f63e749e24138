"""``hsd.report``: read the folders, make the thumbnails, write the pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError
from ..names import check_count
from ..work.files import advice
from ..work.paths import user_path
from ..work.progress import Progress, ProgressOption, of_stage, shows_stages
from . import compare, data
from .pages import Pages
from .places import FIRST, Places
from .read import Source, read_source
from .thumbs import Look, Thumbs
from .tree import tree_of

Path_ = str | os.PathLike[str]

MOST_ON_A_PAGE = 500
"""Images on one page: a browser shows more of them at once only slowly."""


@shows_stages
def report(
    folder: Path_,
    against: Path_ | None = None,
    *,
    out: Path_ | None = None,
    page_size: int = MOST_ON_A_PAGE,
    progress: ProgressOption = False,
) -> Path:
    """Write pages that show a folder of images: a gallery, the tree of what was shared, the figures of its runs, and
    another folder side by side.

    The pages are files: a browser opens them without a server and without a network. The first one is ``report.html``
    in the folder; all others are in ``__report__``. Calling again makes thumbnails of new images only.

    Parameters
    ----------
    folder
        Written by :func:`hsd.generate`, an ``imagefolder`` data set, or any files of images. It may be unfinished, and
        a run may be writing to it.
    against
        Another such folder with images of the same prompts, to show beside it.
    out
        Where to write the pages, for a folder that cannot be written to. Default: the folder of images.
    page_size
        Images on one page of the gallery: 1 to 500.
    progress
        See :data:`hsd.ProgressOption`. Stages: ``thumbnails``, and ``thumbnails beside them`` of ``against``.

    Returns
    -------
    Path
        The first page.

    Raises
    ------
    FolderError
        If a folder does not exist or has no images, or if the two have no image in common.
    OutputError
        If the pages cannot be written, or would overwrite a file of someone else.
    ValueError, TypeError
        For another page size.
    """
    if check_count("page_size", page_size) > MOST_ON_A_PAGE:
        raise ValueError(f"page_size is {page_size}: at most {MOST_ON_A_PAGE}, so that every page opens at once")
    ours = read_source(folder)
    theirs = None if against is None else read_source(against)
    order = None if theirs is None else compare.matched(ours, theirs)
    places = Places(Path(os.path.abspath(ours.path if out is None else user_path(out))))
    places.prepare()
    try:
        our_looks, their_looks = _looks(places, ours, theirs, progress)
        pages = Pages(places, ours, our_looks)
        _write_images(pages, ours, our_looks, page_size)
        if theirs is not None and order is not None:
            _write_pairs(pages, (ours, our_looks), (theirs, their_looks), order, page_size)
        pages.write()
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the report: {error.filename}: {error.strerror}; {advice(error)}") from error
    return places.out / FIRST


def _looks(
    places: Places, ours: Source, theirs: Source | None, progress: ProgressOption
) -> tuple[list[Look], list[Look]]:
    """Look at all images; after an interruption, what was made is kept."""
    thumbs = Thumbs(places.beside / "thumbs")
    finished = False
    try:
        first = thumbs.looks(ours.pictures, Progress(of_stage(progress, "thumbnails")))
        second = (
            []
            if theirs is None
            else thumbs.looks(theirs.pictures, Progress(of_stage(progress, "thumbnails beside them")))
        )
        finished = True
        return first, second
    finally:
        thumbs.save(finished=finished)


def _write_images(pages: Pages, source: Source, looks: Sequence[Look], page_size: int) -> None:
    columns = data.columns_of(source.pictures)
    pages.add_data("overview", data.overview(source, looks, columns, page_size))
    for number, page in enumerate(data.pages_of_images(source, looks, columns, page_size)):
        pages.add_data(f"images-{number}", page)
    tree = tree_of(source)
    if tree is not None:
        pages.add_data("tree", tree)
        pages.tree = True


def _write_pairs(
    pages: Pages,
    ours: tuple[Source, Sequence[Look]],
    theirs: tuple[Source, Sequence[Look]],
    order: Sequence[int | None],
    page_size: int,
) -> None:
    scores = compare.scores_of(*ours, *theirs, order)
    pages.add_data("pairs", compare.overview(ours[1], theirs[1], order, scores))
    for number, page in enumerate(compare.pages_of_partners(*theirs, order, page_size)):
        pages.add_data(f"partners-{number}", page)
    pages.against(theirs[0], order, scores)
