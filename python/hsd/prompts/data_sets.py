"""Data sets of Hugging Face: a folder that ``save_to_disk`` wrote, a folder of tables, or one on the hub."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PromptError
from .arrow_rows import AT_ONCE, arrow_entries, readable, say_left_out
from .entries import Entry
from .headings import Columns

HUB = "hf://datasets/"
"""How an address on the hub begins: ``hf://datasets/ORG/NAME``, with ``@revision`` if wanted."""


def data_set_entries(source: str | Path, columns: Columns, split: str | None) -> list[Entry]:
    """The prompts of one split of a data set. Needs ``datasets``. Pictures are not decoded.

    Parameters
    ----------
    source
        A folder, or an address on the hub.
    split
        Its name; not needed where there is one split.

    Raises
    ------
    PromptError
        If ``datasets`` is missing, or it cannot read this; if there are several splits, or none of this name.
    """
    try:
        import datasets
    except ImportError:
        raise PromptError(
            f'{source} is read by datasets, which is not installed: pip install "hsd-diffusion[datasets]"'
        ) from None
    with _without_bars(datasets):
        try:
            found = _opened(datasets, source)
            one, name = _of_split(found, str(source), split)
            return _entries(one, name, columns)
        except PromptError:
            raise
        except Exception as error:  # it has many kinds, and those of the network
            told = str(error).strip().split("\n")[0] or type(error).__name__
            raise PromptError(f"cannot read {source} as a data set: {told}") from error


def _opened(datasets: Any, source: str | Path) -> Any:
    """A data set, or several by split. What comes from elsewhere is streamed, so that nothing is copied."""
    if not str(source).startswith(HUB):
        folder = Path(source)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        return _streamed(datasets, str(folder))
    org, _, rest = str(source).removeprefix(HUB).strip("/").partition("/")
    name, _, inside = rest.partition("/")
    name, _, revision = name.partition("@")
    if not org or not name:
        raise PromptError(f"{source} is no data set on the hub: write {HUB}ORG/NAME, or {HUB}ORG/NAME@REVISION")
    more = {"data_files" if Path(inside).suffix else "data_dir": inside} if inside else {}
    return _streamed(datasets, f"{org}/{name}", revision=revision or None, **more)


def _streamed(datasets: Any, path: str, **more: Any) -> Any:
    """The splits, of which nothing is read yet. Of Parquet, columns with pictures are not even fetched."""
    found = datasets.load_dataset(path, streaming=True, **more)
    features = next(iter(found.values())).features
    if features is None:
        return found
    kept = readable(features.arrow_schema)
    if len(kept) == len(features):
        return found
    say_left_out(features.arrow_schema, path)
    try:
        return datasets.load_dataset(path, streaming=True, columns=kept, **more)
    except (TypeError, ValueError):  # only Parquet has this
        return {split: one.select_columns(kept) for split, one in found.items()}


def _of_split(found: Any, source: str, split: str | None) -> tuple[Any, str]:
    """The one split that is meant, and its name for messages."""
    if not isinstance(found, dict):
        own = str(found.split) if found.split is not None else None
        if split is not None and split != own:
            raise PromptError(f"{source} has no split {split!r}: it is one list" + (f", {own!r}" if own else ""))
        return found, source
    names = ", ".join(found)
    if split is None and len(found) > 1:
        raise PromptError(f"{source} has several splits: {names}. Take one: --split {next(iter(found))}")
    chosen = next(iter(found)) if split is None else split
    if chosen not in found:
        raise PromptError(f"{source} has no split {chosen!r}: there are {names}")
    return found[chosen], f"{source}, {chosen}"


def _entries(one: Any, name: str, columns: Columns) -> list[Entry]:
    if one.features is not None:
        schema = one.features.arrow_schema
        kept = readable(schema)
        batches = one.select_columns(kept).with_format("arrow").iter(AT_ONCE)
        return arrow_entries(batches, schema, kept, name, columns)
    batches = _batches(one)  # tables as text, whose columns show when they are read
    first = next(batches, None)
    if first is None:
        return []
    return arrow_entries(itertools.chain([first], batches), first.schema, readable(first.schema), name, columns)


def _batches(one: Any) -> Iterator[Any]:
    """Tables of Arrow from rows. Those that ``datasets`` makes itself need the same types in all files."""
    from pyarrow import Table

    rows = iter(one)
    while some := list(itertools.islice(rows, AT_ONCE)):
        yield Table.from_pylist(some)


@contextlib.contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Without the progress bars of ``datasets``; those that a user had are there again afterwards."""
    had = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had:
            datasets.enable_progress_bars()
