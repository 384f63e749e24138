"""Columns of a prompt file that are no settings: kept beside the images, in ``metadata.jsonl``.

They decide nothing: prompts with different columns share steps, and the fingerprint of a plan does not contain them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

OWN = frozenset(("file_name", "text", "index", "seed", "alone_from", "nsfw", "size", "digest", "image", "label"))
"""Names that a line of ``metadata.jsonl`` has already, or that ``datasets`` gives to something else."""

_LARGEST = 2**63 - 1


def check_columns(columns: Mapping[str, Sequence[Any]] | None, n: int) -> dict[str, list[Any]]:
    """Columns as they can be saved: one value per prompt, of one simple type in each column, so that ``datasets`` can
    read them; what is mixed or nested becomes its JSON text.

    Raises
    ------
    TypeError, ValueError
        Unless there is one value per prompt, all of which JSON can hold.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
        raise TypeError(f"columns= has to map names to lists of values, not {type(columns).__name__}")
    out = {}
    for name, given in columns.items():
        single = isinstance(given, (str, Mapping)) or not isinstance(given, Iterable)
        values = [] if single else [_plain(value) for value in given]
        if len(values) != n:
            count = "one value" if single else f"{len(values)} values"
            raise ValueError(f"column {name!r} has {count} for {n} prompts: give one per prompt")
        if any(value is not None for value in values):
            out[name] = _simple(name, values)
    return out


def repeated(columns: Mapping[str, Sequence[Any]] | None, n: int, repeats: int) -> dict[str, list[Any]]:
    """Columns of ``n`` prompts, checked, with a value per image: ``repeats`` of each prompt."""
    return {name: [value for value in own for _ in range(repeats)] for name, own in check_columns(columns, n).items()}


def renamed(columns: Mapping[str, list[Any]], taken: Collection[str] = ()) -> dict[str, list[Any]]:
    """The columns with names for ``metadata.jsonl``: ``given_...`` where the name is one of ``OWN`` or ``taken``.

    A name that ends in ``file_name`` would be opened as a file by ``datasets``.
    """
    out: dict[str, list[Any]] = {}
    for name, values in columns.items():
        free = name if name in OWN else name.replace("file_name", "filename")
        while free in OWN or free in taken or free in out or (free != name and free in columns):
            free = "given_" + free.replace("file_name", "filename")
        out[free] = values
    return out


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; NaN, a missing cell of a table, as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def _simple(name: str, values: list[Any]) -> list[Any]:
    try:
        texts = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
        "".join(texts).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"column {name!r} cannot be saved as JSON: {error}") from None
    kinds = {type(value) for value in values if value is not None}
    if kinds in ({str}, {bool}) or (kinds <= {int, float} and all(map(_fits, values))):
        return values
    return [None if value is None else text for value, text in zip(values, texts, strict=True)]


def _fits(value: Any) -> bool:
    return value is None or abs(value) <= _LARGEST
