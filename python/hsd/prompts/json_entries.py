"""Prompts as JSON: one object per line, or one list. Strict: what is odd is refused, with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..errors import PromptError
from .characters import MARK, is_blank
from .entries import Entry, make_entry
from .headings import Columns
from .source import lines

_EXAMPLE = 'such as {"prompt": "a cat", "seed": 3}'

_BEGINS_AS_JSON = re.compile(r"""\{\s*(?:$|["']|\}$)|\[\s*(?:$|"|\{\s*"|\]$)|\[\s*'.*'\s*,?\s*\]?$""")
"""Not ``{a|b}`` and ``[a cat]``, which other programs know and which are text here."""

_SPACE = re.compile(r"[ \t\r\n]*")


def looks_like_json(line: str) -> bool:
    """Whether a line begins as JSON does and no prompt would: an object with a quoted key, or a list of such or of
    quoted texts.
    """
    return _BEGINS_AS_JSON.match(line) is not None


def json_entries(text: str, name: str, columns: Columns | None = None) -> list[Entry]:
    """The prompts of a text that is JSON: an object per line, or one list of texts and objects.

    Parameters
    ----------
    columns
        Keys that have other names in the file.

    Raises
    ------
    PromptError
        If it is not, or an object has no prompt; names the line.
    """
    columns = Columns() if columns is None else columns
    entries = [_entry(item, where, columns) for where, item in _items(text, name)]
    if entries:
        columns.check_seen(name)
    return entries


def _items(text: str, name: str) -> Iterator[tuple[str, Any]]:
    document = text.lstrip(" \t\r\n" + MARK)
    if document.startswith("["):
        yield from _of_list(text, name)
        return
    found = [(where, line) for where, line in lines(text, name) if not is_blank(line)]
    if len(found) > 1 and found[0][1].startswith("{") and not found[0][1].rstrip(",").endswith("}"):
        whole = _whole(text)  # one object over several lines
        if whole is not None:
            yield found[0][0], whole
            return
    for where, line in found:
        yield where, _parsed(line, where)


def _of_list(text: str, name: str) -> Iterator[tuple[str, Any]]:
    at, number, counted = text.index("[") + 1, 1, 0
    first = True

    def where(position: int) -> str:
        nonlocal number, counted
        breaks = text.count("\n", counted, position) or text.count("\r", counted, position)
        number, counted = number + breaks, position
        return f"{name}, line {number}"

    while True:
        at = _space(text, at)
        if text.startswith("]", at) and first:
            break
        here = where(at)
        try:
            item, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _not_json(here, error) from None
        if isinstance(item, str):
            item = {"prompt": item}
        yield here, item
        at, first = _space(text, at), False
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            raise PromptError(f"{where(at)} is not JSON: a comma or the end of the list is missing")
        at += 1
    at = _space(text, at + 1)
    if at < len(text):
        raise PromptError(
            f"{where(at)}: there is something after the end of the list; write one list, or one object per line"
        )


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _whole(text: str) -> Any:
    try:
        return _DECODER.decode(text.lstrip(MARK))
    except (ValueError, RecursionError):
        return None


def _parsed(line: str, where: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, error) from None


def _not_json(where: str, error: Exception) -> PromptError:
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data" and not error.doc[error.pos :].strip(", \t\r"):
            return PromptError(f"{where} ends with a comma: remove it, or write one list [...] of all objects")
        return PromptError(f"{where} is not JSON ({error}): write one object per line, {_EXAMPLE}")
    return PromptError(f"{where}: {'it is nested too deep' if isinstance(error, RecursionError) else error}")


def _entry(item: Any, where: str, columns: Columns) -> Entry:
    """The prompt, seed and other keys of one object."""
    if isinstance(item, dict):
        item = columns.of_object(item, where)
    prompt = item.get("prompt") if isinstance(item, dict) else None
    if not isinstance(prompt, str) or is_blank(prompt):
        other = next((key for key in ("text", "caption") if isinstance(item, dict) and key in item), None)
        rename = "" if other is None else f"rename {other!r} to 'prompt', or "
        raise PromptError(f"{where} has no prompt: {rename}write an object {_EXAMPLE}")
    rest = {key: value for key, value in item.items() if key not in ("prompt", "seed")}
    if "" in rest:
        raise PromptError(f"{where} has a key without a name: remove it, or name it")
    try:
        json.dumps(rest, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise PromptError(f"{where} has a lone surrogate, which is not valid text: decode it again") from None
    return make_entry(where, prompt, item.get("seed"), rest)


# ------------------------------------------------------------------------------- a strict decoder


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ``ValueError`` if it has a key twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON; leave the key out, or write null")


def _finite(digits: str) -> float:
    number = float(digits)
    if abs(number) == float("inf"):
        raise ValueError(f"{digits} is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"an integer of {len(digits)} digits is too large")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
)
