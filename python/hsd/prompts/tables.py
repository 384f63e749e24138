"""Tables as text, as spreadsheets and pandas write them: CSV with commas, semicolons, bars or tabs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import PromptError
from .characters import MARK, is_blank
from .entries import Entry, make_entry
from .headings import Columns, is_known, plain
from .known_settings import KNOWN
from .setting_values import takes_text
from .source import lines

SEPARATORS = ",;\t|"
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAYS = re.compile(r"\s*\"?sep=(.)\"?\s*")
"""A first line by which Excel is told the separator."""
_HEADING = re.compile(r"[^\W\d][\w .()-]{0,40}")
_NUMBER = re.compile(r"[+-]?[\d.,]*(?:[eE][+-]?\d+)?%?")
_INDEX = re.compile(r"(?:Unnamed: \d+)?")
"""How pandas calls the column of its index."""
_LOOKED_AT = 20
"""Lines that show whether a text is a table."""


def looks_like_table(text: str, name: str, columns: Columns) -> bool:
    """Whether a text is a table by its first line: a heading of several cells with a ``prompt``, or with a column that
    was asked for.

    Raises
    ------
    PromptError
        If it is a table by its first lines, but without such a heading.
    """
    found = [line for _, line in zip(range(_LOOKED_AT), lines(text, name), strict=False)]
    if not found:
        return False
    if _SAYS.fullmatch(found[0][1]):
        return True
    where, first = found[0]
    asked = {plain(column) for column in columns.given.values()}
    for separator in SEPARATORS:
        cells = [cell.strip().strip("\"'").strip() for cell in first.split(separator)]
        if len(cells) < 2 or not all(not cell or _HEADING.fullmatch(cell) for cell in cells):
            continue
        names = [plain(cell) for cell in cells]
        if "prompt" in names and (sum(map(is_known, cells)) > 1 or all(" " not in cell for cell in cells)):
            return True
        if asked & set(names):
            return True
        usual = {"caption", "text", "description"} & set(names)
        if usual and len(found) > 1 and all(_cells(line, separator) == len(cells) for _, line in found):
            raise PromptError(
                f"{where} looks like the heading of a table with {_NAMES[separator]} between the columns "
                f"{', '.join(cells)}, and none is 'prompt': say which one holds the prompts, --column "
                f"prompt={cells[names.index(min(usual))]}, or remove the line if it is a prompt"
            )
    return False


def _cells(line: str, separator: str) -> int:
    return len(next(csv.reader([line], delimiter=separator), []))


def table_entries(text: str, name: str, columns: Columns) -> list[Entry]:
    """The prompts of a table: one per row, under a heading.

    The separator is that of a first line ``sep=;``, else that with which the heading has a prompt or the most cells.
    Rows without any text are passed over; an empty cell is not given. A prompt has no white space around it.

    Raises
    ------
    PromptError
        For a table that cannot be meant as it is. Names the line on which the row begins.
    """
    text = text.removeprefix(MARK)
    first, _, rest = text.partition("\n")
    says, begin = _SAYS.fullmatch(first), 0
    if says is not None:
        text, begin = rest, 1
    separator = _separator(text, columns) if says is None else says[1]
    rows = _rows(text, separator, name, begin)
    where, heading = next(((where, row) for where, row in rows if any(map(str.strip, row))), ("", []))
    if not heading:
        return []
    heading = [cell.replace(MARK, "").strip() for cell in heading]
    found = [(place, _of_width(row, heading, place)) for place, row in rows if any(map(str.strip, row))]
    kept = _named(heading, [row for _, row in found])
    names = columns.names([title for _, title in kept], where, _texts(kept, [row for _, row in found]))
    out = []
    for place, row in found:
        cells = {own: row[i] for own, (i, _) in zip(names, kept, strict=True) if row[i] != ""}
        if not any(map(str.strip, cells.values())):  # only the index of pandas
            continue
        prompt = cells.pop("prompt", "").replace("\r\n", "\n").strip()
        if is_blank(prompt):
            raise PromptError(f"{place} has no prompt, but {', '.join(cells)}: write one, or empty the row")
        seed = cells.pop("seed", "").strip()
        out.append(make_entry(place, prompt, seed, {own: _value(own, cell) for own, cell in cells.items()}))
    return out


def _separator(text: str, columns: Columns) -> str:
    """The separator with which the first row has a prompt, and the most cells."""
    asked = {"prompt", *(plain(column) for column in columns.given.values())}

    def fits(separator: str) -> tuple[bool, int]:
        try:
            cells = next((row for _, row in _rows(text, separator, "", 0) if any(map(str.strip, row))), [])
        except PromptError:
            return False, 0
        return bool(asked & set(map(plain, cells))), len(cells)

    return max(SEPARATORS, key=fits)


def _rows(text: str, separator: str, name: str, begin: int) -> Iterator[tuple[str, list[str]]]:
    """The rows, each with the line of the file on which it begins; ``begin`` lines were before."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        where = f"{name}, line {begin + reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise PromptError(f"{where}: {_told(str(error))}") from None
        yield where, row


def _told(error: str) -> str:
    if "field larger" in error:
        most = csv.field_size_limit()
        return f'a cell has more than {most:,} characters: shorten it, or close a quote (") that is open before it'
    if "unexpected end of data" in error:
        return 'a quote (") at the beginning of a cell is not closed: close it, or write it twice inside of quotes ("")'
    if "expected after" in error:
        return 'there is something after the closing quote (") of a cell: write a quote inside of quotes twice ("")'
    return f"it is no row of a table ({error})"


def _of_width(row: list[str], heading: Sequence[str], where: str) -> list[str]:
    """A row with as many cells as the heading; empty ones at its end may be too many."""
    while len(row) > len(heading) and not row[-1].strip():
        row = row[:-1]
    if len(row) != len(heading):
        raise PromptError(
            f"{where} has {len(row)} cells, but the heading has {len(heading)}: put quotes around a cell with a "
            "separator or a line break in it"
        )
    return row


def _named(heading: Sequence[str], rows: list[list[str]]) -> list[tuple[int, str]]:
    """Columns with their names. The index of pandas is left out."""
    kept = []
    for i, title in enumerate(heading):
        if _INDEX.fullmatch(title):
            cells = [row[i].strip() for row in rows]
            if i == 0 and cells == [str(number) for number in range(len(cells))]:
                continue
            title = title or f"column_{i + 1}"
        kept.append((i, title))
    return kept


def _texts(kept: list[tuple[int, str]], rows: list[list[str]]) -> list[str]:
    """The columns that hold more than numbers."""
    some = rows[:_LOOKED_AT]
    return [title for i, title in kept if any(not _NUMBER.fullmatch(row[i].strip()) for row in some)]


def _value(name: str, cell: str) -> Any:
    """A cell as it is; a list or an object of JSON where the setting is one."""
    if name in KNOWN and not takes_text(KNOWN[name]):
        if cell.strip().lower() in ("yes", "no"):
            return cell.strip().lower() == "yes"
        if cell.strip()[:1] in ("[", "{"):
            try:
                return json.loads(cell)
            except ValueError:
                return cell  # the message about the setting shows it
        return cell.strip()
    return cell
