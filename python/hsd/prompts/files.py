"""Prompts from a file, a folder or the hub: which kind it is, and what its columns are."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import PromptError
from ..work.paths import user_path
from .arrow_rows import parquet_entries
from .characters import is_blank, not_one_line, unusable
from .data_sets import HUB, data_set_entries
from .entries import Entry
from .headings import Columns
from .json_entries import json_entries, looks_like_json
from .known_settings import KNOWN, checked_settings, meant, no_setting
from .source import TAKEN, lines, read_text, source_name
from .tables import looks_like_table, table_entries


@dataclass(frozen=True)
class PromptFile:
    """The contents of a file of prompts."""

    prompts: list[str]
    seeds: list[int | None]
    """One per prompt; None where the file gives none."""
    settings: list[dict[str, Any]]
    """One per prompt: settings of the model for its images only, as ``hsd.compile(settings=...)`` takes them."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Other keys of the file, each with a value per prompt or None, as ``hsd.compile(columns=...)`` takes them."""
    places: list[str] = field(default_factory=list)
    """File and line of each prompt, for messages."""
    choices: frozenset[str] = frozenset()
    """The columns that a template chose: never settings, whatever their names."""

    def __repr__(self) -> str:
        seeds = sum(seed is not None for seed in self.seeds)
        own = sorted({name for settings in self.settings for name in settings})
        parts = [f"{len(self.prompts):,} prompts"]
        parts += [f"seeds of {seeds:,}"] if seeds else []
        parts += [f"settings {', '.join(own)}"] if own else []
        parts += [f"columns {', '.join(self.columns)}"] if self.columns else []
        return f"<hsd.PromptFile: {'; '.join(parts)}>"

    def seeds_from(self, seed: int, images_per_prompt: int = 1) -> int | list[int]:
        """The seeds for ``hsd.compile``: those of the file, and ``seed + i`` for a prompt i without one.

        Raises
        ------
        ValueError
            If the file gives seeds and ``images_per_prompt`` is not 1: the images of a prompt need different seeds.
        """
        if all(own is None for own in self.seeds):
            return seed
        if images_per_prompt > 1:
            raise ValueError(
                f"images_per_prompt is {images_per_prompt}, but the file gives seeds: repeat lines instead, each with "
                "its own seed, or take the seeds for a column (--column given_seed=seed), so that --seed gives them all"
            )
        return [seed + i if own is None else own for i, own in enumerate(self.seeds)]

    def with_settings(self, names: Collection[str]) -> PromptFile:
        """Also take the columns with these ``names`` for settings: those of a model from outside of this package.

        Raises
        ------
        PromptError
            If a column has nearly such a name.
        """
        own = {name: values for name, values in self.columns.items() if name not in self.choices}
        for name, values in own.items():
            advice = None if name in names else meant(name, names)
            if advice is not None:
                at = next(i for i, value in enumerate(values) if value is not None)
                raise PromptError(f"{self.places[at]} has {no_setting(name, advice)}")
        moved = {name: values for name, values in own.items() if name in names}
        if not moved:
            return self
        settings = [
            {**given, **{name: values[i] for name, values in moved.items() if values[i] is not None}}
            for i, given in enumerate(self.settings)
        ]
        columns = {name: values for name, values in self.columns.items() if name not in moved}
        return replace(self, settings=settings, columns=columns)


def read_prompts(path: str | Path, *, columns: Mapping[str, str] | None = None, split: str | None = None) -> PromptFile:
    """Read prompts from a file, a folder or the hub; ``-`` is standard input. See ``docs/prompts.md``.

    A text file has one prompt per line; blank lines are passed over. JSON (recognised by its content, or by a name
    that ends in ``.jsonl``, ``.ndjson`` or ``.json``) has an object per line, or one list of texts or objects. A table
    is CSV or TSV (by its name, or by its heading), or Parquet. A folder is a data set of Hugging Face, and so is
    ``hf://datasets/ORG/NAME``. Text is UTF-8, or UTF-16 with a byte order mark.

    The columns ``prompt`` and ``seed`` and those of settings (``negative_prompt``, ``guidance_scale``, ``width``...)
    are found by their names; other columns are kept as they are.

    Parameters
    ----------
    columns
        Columns that have other names in the file: ``{"prompt": "caption"}``.
    split
        Of a data set with several.

    Raises
    ------
    PromptError
        If it cannot be read; if a line cannot be meant as it is (names the line), or no line has a prompt.
    """
    name, given = source_name(path), Columns(columns)
    entries = _entries(path, name, given, split)
    if not entries:
        raise PromptError(f"{name} has no prompts: write one per line")
    return _file(entries)


def _entries(path: str | Path, name: str, columns: Columns, split: str | None) -> list[Entry]:
    """The prompts, by what kind of file it is."""
    if str(path).startswith(HUB):
        return data_set_entries(path, columns, split)
    if str(path) != "-" and os.path.isdir(user_path(path)):  # False for what is no name at all
        return data_set_entries(user_path(path), columns, split)
    if split is not None:
        raise PromptError(f"{name} has no splits, which only data sets have: leave out --split {split}")
    kind = kind_of(name)
    if kind == "parquet":
        return parquet_entries(path, columns)
    text = read_text(path)
    if kind == "json":
        return json_entries(text, name, columns)
    return table_entries(text, name, columns) if kind == "table" else _text_entries(text, name, columns)


def _file(entries: list[Entry]) -> PromptFile:
    """What the entries say, by column."""
    settings: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {}
    for i, entry in enumerate(entries):
        own = {key: value for key, value in entry.rest.items() if key in KNOWN}
        try:
            settings.append(checked_settings(own))
        except (TypeError, ValueError) as error:
            raise PromptError(f"{entry.where}: {error}") from None
        for key, value in entry.rest.items():
            if key in KNOWN:
                continue
            if key not in columns:
                advice = meant(key)
                if advice is not None:
                    raise PromptError(f"{entry.where} has {no_setting(key, advice)}")
                if len(columns) == _MOST_COLUMNS:
                    raise PromptError(f"{entry.where}: the file has more than {_MOST_COLUMNS:,} different keys")
                columns[key] = [None] * len(entries)
            columns[key][i] = value
    return PromptFile(
        [entry.prompt for entry in entries],
        [entry.seed for entry in entries],
        settings,
        {name: values for name, values in columns.items() if any(value is not None for value in values)},
        [entry.where for entry in entries],
    )


_MOST_COLUMNS = 1000
"""Every prompt has a value in each of them."""

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonlines", ".ldjson", ".jl")
_TABLE_ENDINGS = (".csv", ".tsv", ".tab")
_PARQUET_ENDINGS = (".parquet", ".pq")
_SHEET_ENDINGS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_OTHER_ENDINGS = frozenset(
    (
        *(".arrow", ".feather", ".sqlite", ".db"),
        *(".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml"),
        *(".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz"),
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".safetensors"),
    )
)


def kind_of(name: str) -> Literal["text", "json", "table", "parquet"]:
    """What a file is by its name, in any case; Windows may have added ``.txt``.

    Raises
    ------
    PromptError
        If the name says that it is something that is not read here.
    """
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    while suffixes and suffixes[-1] == ".txt":
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in _SHEET_ENDINGS:
        raise PromptError(f"{name} is a {last} file by its name, which is not read: save the sheet as CSV (UTF-8)")
    if last in _OTHER_ENDINGS:
        raise PromptError(f"{name} cannot be read, because it is a {last} file by its name: {TAKEN}")
    if last in _JSON_ENDINGS:
        return "json"
    if last in _TABLE_ENDINGS:
        return "table"
    return "parquet" if last in _PARQUET_ENDINGS else "text"


def _text_entries(text: str, name: str, columns: Columns) -> list[Entry]:
    """One prompt per line; JSON or a table, if that is what the first line is."""
    if looks_like_table(text, name, columns):
        return table_entries(text, name, columns)
    entries: list[Entry] = []
    for where, line in lines(text, name):
        if looks_like_json(line):
            if not entries:
                return json_entries(text, name, columns)
            raise PromptError(
                f"{where} is JSON, but the lines before it are text: write all lines in one of the two ways"
            )
        if is_blank(line):
            continue
        wrong = unusable(line) or not_one_line(line)
        if wrong is not None:
            raise PromptError(f"{where} {wrong}")
        entries.append(Entry(where, line))
    if entries and columns.given:
        column = next(iter(columns.given.values()))
        raise PromptError(f"{name} has no columns, so none is {column!r}: it is text, with a prompt per line")
    return entries
