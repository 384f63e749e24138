"""A file of prompts, as text or as JSON: which of the two it is, and what its keys are."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import PromptError
from .characters import is_blank, not_one_line, unusable
from .json_entries import Entry, json_entries, looks_like_json
from .known_settings import KNOWN, checked_settings, meant
from .source import TAKEN, lines, read_text, source_name


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
                "its own seed"
            )
        return [seed + i if own is None else own for i, own in enumerate(self.seeds)]

    def with_settings(self, names: Collection[str]) -> PromptFile:
        """Also take the columns with these ``names`` for settings: those of a model from outside of this package.

        Raises
        ------
        PromptError
            If a column has nearly such a name.
        """
        for name, values in self.columns.items():
            advice = None if name in names else meant(name, names)
            if advice is not None:
                at = next(i for i, value in enumerate(values) if value is not None)
                raise PromptError(f"{self.places[at]} has {name!r}, which is no setting: {advice}")
        moved = {name: values for name, values in self.columns.items() if name in names}
        if not moved:
            return self
        settings = [
            {**own, **{name: values[i] for name, values in moved.items() if values[i] is not None}}
            for i, own in enumerate(self.settings)
        ]
        columns = {name: values for name, values in self.columns.items() if name not in moved}
        return replace(self, settings=settings, columns=columns)


def read_prompts(path: str | Path) -> PromptFile:
    """Read a file of prompts; ``-`` is standard input. Blank lines are skipped.

    In a text file every line is a prompt. In JSON lines (recognised by their content, or by a name that ends in
    ``.jsonl``, ``.ndjson`` or ``.json``) every line is an object: ``prompt``, optionally ``seed``, and optionally
    settings of the model for the images of this prompt (``negative_prompt``, ``guidance_scale``, ``width``...); other
    keys are kept as columns. One JSON list of texts or of such objects is taken too. Text is UTF-8, or UTF-16 with a
    byte order mark.

    Raises
    ------
    PromptError
        If the file cannot be read or is neither; if a line cannot be meant as it is (names the line), or no line has a
        prompt.
    """
    name = source_name(path)
    as_json = name_says_json(name)
    text = read_text(path)
    entries = json_entries(text, name) if as_json else _text_entries(text, name)
    if not entries:
        raise PromptError(f"{name} has no prompts: write one per line")
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
                    raise PromptError(f"{entry.where} has {key!r}, which is no setting: {advice}")
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
_OTHER_ENDINGS = frozenset(
    (
        *(".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".sqlite", ".db"),
        *(".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml"),
        *(".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz"),
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".safetensors"),
    )
)


def name_says_json(name: str) -> bool:
    """Whether a file is JSON by its name, in any case; Windows may have added ``.txt``.

    Raises
    ------
    PromptError
        If the name says that it is something else than text and JSON.
    """
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    while suffixes and suffixes[-1] == ".txt":
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in _OTHER_ENDINGS:
        raise PromptError(f"{name} cannot be read, because it is a {last} file by its name: {TAKEN}")
    return last in _JSON_ENDINGS


def _text_entries(text: str, name: str) -> list[Entry]:
    """One prompt per line; JSON, if that is what the first line is."""
    entries: list[Entry] = []
    for where, line in lines(text, name):
        if looks_like_json(line):
            if not entries:
                return json_entries(text, name)
            raise PromptError(
                f"{where} is JSON, but the lines before it are text: write all lines in one of the two ways"
            )
        if not entries:
            _refuse_table(line, where)
        if is_blank(line):
            continue
        wrong = unusable(line) or not_one_line(line)
        if wrong is not None:
            raise PromptError(f"{where} {wrong}")
        entries.append(Entry(where, line))
    return entries


def _refuse_table(line: str, where: str) -> None:
    """``PromptError`` if the first line is the heading of a table: names with commas, semicolons or tabs between."""
    for separator in ",;\t":
        cells = [cell.strip().strip("\"'").lower() for cell in line.split(separator)]
        if len(cells) > 1 and "prompt" in cells and all(re.fullmatch(r"[a-z_][\w .-]{0,40}", cell) for cell in cells):
            known = sum(cell in KNOWN or cell in ("prompt", "seed") for cell in cells)
            if known > 1 or all(" " not in cell for cell in cells):
                raise PromptError(f"{where} is the heading of a table (CSV or TSV): {TAKEN}")
