"""What the pages read: files of JavaScript that hand one value over. Pages on a disk may not read JSON files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .read import Picture, Source
from .thumbs import Look
from .urls import url_of

NONE = "(none)"
"""What stands for the value of a column where there is none."""

_MOST_CHOICES = 1000
_ANY_CHOICES = 20
"""Of so many different values of a column one chooses at most, and in any case; in between if half of the images have
a value that another has. Of other columns, text is searched."""


def script(name: str, value: Any) -> bytes:
    """The file that gives pages a ``value``. ASCII, so that no character of a text ends a line or the script."""
    return f"hsd.put({json.dumps(name)},{json.dumps(value, separators=(',', ':'), allow_nan=False)});\n".encode("ascii")


@dataclass(frozen=True)
class Column:
    """A column of the metadata, for filters."""

    name: str
    values: list[str] | None
    """The different values, the most frequent first; None if they are too many to choose from."""
    counts: list[int]
    codes: dict[str, int]
    """Positions in ``values``."""

    def coded(self, value: Any) -> int | str:
        """A value as the data hold it: its position, or the text itself where there are too many."""
        text = shown(value)
        return text if self.values is None else self.codes[text]


def columns_of(pictures: Sequence[Picture]) -> list[Column]:
    """The columns of the metadata that differ between images: one that does not cannot be chosen by."""
    names = list(dict.fromkeys(name for picture in pictures for name in picture.columns))
    found = []
    for name in names:
        counted = Counter(shown(picture.columns.get(name)) for picture in pictures)
        if len(counted) < 2:
            continue
        if len(counted) > max(_ANY_CHOICES, min(_MOST_CHOICES, len(pictures) // 2)):
            found.append(Column(name, None, [], {}))
            continue
        ordered = sorted(counted, key=lambda text: (-counted[text], text))
        codes = {text: code for code, text in enumerate(ordered)}
        found.append(Column(name, ordered, [counted[text] for text in ordered], codes))
    return found


def shown(value: Any) -> str:
    """A value of a column as people read it."""
    if value is None or value == "":
        return NONE
    return str(value).lower() if isinstance(value, bool) else str(value)


def overview(source: Source, looks: Sequence[Look], columns: Sequence[Column], page_size: int) -> dict[str, Any]:
    """What every page needs: how many images there are, and by what one can choose."""
    shapes = {(look.width, look.height) for look in looks if look.problem is None}
    ratios = {round(width / height, 3) for width, height in shapes}
    indices = [picture.entry.index for picture in source.pictures]
    return {
        "images": len(source.pictures),
        "page": page_size,
        "columns": [{"name": one.name, "values": one.values, "counts": one.counts} for one in columns],
        "settings": settings_of(source.pictures),
        "keys": None if indices == list(range(len(indices))) or None in indices else indices,
        "ratio": ratios.pop() if len(ratios) == 1 else None,
        "small": max((max(shape) for shape in shapes), default=0) <= 128,
        "steps": None if source.plan is None else source.plan.n_steps,
    }


def settings_of(pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """The different settings of single images."""
    return list({json.dumps(own): own for own in map(_settings, pictures)}.values())


def _settings(picture: Picture) -> dict[str, str]:
    return {
        name: shown(value) if not isinstance(value, (list, dict)) else json.dumps(value, ensure_ascii=False)
        for name, value in picture.settings.items()
    }


def pages_of_images(
    source: Source, looks: Sequence[Look], columns: Sequence[Column], page_size: int
) -> Iterator[dict[str, Any]]:
    """The images of each page, in the order of the folder."""
    numbers = {json.dumps(own): number for number, own in enumerate(settings_of(source.pictures))}
    for begin in range(0, len(source.pictures), page_size):
        texts: dict[str, int] = {}
        rows = []
        for i in range(begin, min(begin + page_size, len(source.pictures))):
            picture, look = source.pictures[i], looks[i]
            rows.append(
                [
                    url_of(picture.entry.file_name),
                    texts.setdefault(picture.entry.text, len(texts)),
                    picture.entry.seed,
                    look.width,
                    look.height,
                    look.digest if look.has_thumbnail else 0,
                    look.colour,
                    picture.alone_from,
                    numbers[json.dumps(_settings(picture))],
                    [column.coded(picture.columns.get(column.name)) for column in columns],
                    look.problem or (1 if picture.nsfw else 0),
                ]
            )
        yield {"texts": list(texts), "rows": rows}
