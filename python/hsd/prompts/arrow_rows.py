"""Columns of Arrow, from Parquet files and data sets, to prompts. Pictures in them are not read."""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

from ..errors import Notice, PromptError
from ..work.paths import user_path
from .entries import Entry, make_entry
from .headings import Columns

_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")
"""How pandas calls the column of its index."""

AT_ONCE = 16_384
"""Rows of one batch."""


def parquet_entries(path: str | Path, columns: Columns) -> list[Entry]:
    """The prompts of a Parquet file, one per row. Needs pyarrow.

    Raises
    ------
    PromptError
        If pyarrow is missing, or the file cannot be read; for a row that has no prompt.
    """
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError:
        raise PromptError(
            f'{path} is read by pyarrow, which is not installed: pip install "hsd-diffusion[tables]"'
        ) from None
    try:
        with parquet.ParquetFile(user_path(path)) as file:
            kept = readable(file.schema_arrow)
            batches = file.iter_batches(batch_size=AT_ONCE, columns=kept)
            return arrow_entries(batches, file.schema_arrow, kept, str(path), columns)
    except (ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise PromptError(f"cannot read {path} as a Parquet file: {why}") from None


def readable(schema: Any) -> list[str]:
    """The columns that can stand beside an image: without bytes such as pictures, and without the index of pandas."""
    return [column.name for column in schema if not _INDEX.fullmatch(column.name) and not _has_bytes(column.type)]


def say_left_out(schema: Any, name: str) -> None:
    """A notice about columns that hold bytes."""
    left_out = [column.name for column in schema if _has_bytes(column.type)]
    if left_out:
        warn(f"{name}: {', '.join(left_out)} left out: pictures and other bytes are not read", Notice, stacklevel=2)


def arrow_entries(batches: Iterable[Any], schema: Any, kept: Sequence[str], name: str, columns: Columns) -> list[Entry]:
    """The prompts of batches (or tables) of Arrow with the columns ``kept`` of ``schema``.

    Rows without any value are passed over.
    """
    repeated = [column for column in kept if list(kept).count(column) > 1]
    if repeated:
        raise PromptError(f"{name} has the column {repeated[0]!r} twice: rename one or remove it")
    texts = [column for column in kept if _is_text(schema.field(column).type)]
    say_left_out(schema, name)
    names = columns.names(kept, name, texts)
    out: list[Entry] = []
    number = 0
    for batch in batches:
        for row in zip(*(_values(batch, column, name) for column in kept), strict=True):
            number += 1
            cells = {own: cell for own, cell in zip(names, row, strict=True) if cell is not None and cell == cell}
            if any(cell != "" for cell in cells.values()):
                out.append(_entry(cells, f"{name}, row {number}"))
    return out


def _values(batch: Any, column: str, name: str) -> list[Any]:
    """The values of a column as Python has them."""
    try:
        return list(batch.column(column).to_pylist())
    except (OverflowError, ValueError) as error:  # a date after the year 9999, an unknown time zone
        raise PromptError(
            f"{name}: the column {column!r} has a value that Python cannot hold ({error}): write it as text, or leave "
            "the column out"
        ) from None


def _entry(cells: dict[str, Any], where: str) -> Entry:
    prompt = cells.pop("prompt", "")
    if not isinstance(prompt, str):
        raise PromptError(f"{where}: the prompt is {prompt!r:.60} ({type(prompt).__name__}), not text")
    return make_entry(where, prompt, cells.pop("seed", None), {name: _plain(value) for name, value in cells.items()})


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: times and exact decimals as text, NaN as nothing."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _has_bytes(kind: Any) -> bool:
    """Whether a type is of bytes, or of something that is no plain value, anywhere inside."""
    from pyarrow import types

    if types.is_nested(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_dictionary(kind):
        return _has_bytes(kind.value_type)
    return "binary" in str(kind) or isinstance(kind, _extension())


def _extension() -> type:
    from pyarrow import BaseExtensionType

    return BaseExtensionType
