"""What the columns of a table, or the keys of JSON, mean: the prompt, a seed, a setting, or something to keep."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import PromptError
from .known_settings import KNOWN, meant, no_setting

_OWN = ("prompt", "seed")
_USUAL = ("caption", "text", "description", "sentence", "input")
"""Names that columns of prompts have elsewhere."""


def plain(heading: str) -> str:
    """A heading as names are written here: ``Negative Prompt`` is ``negative_prompt``."""
    return re.sub(r"[\s-]+", "_", heading.strip().lower())


def is_known(heading: str) -> bool:
    """Whether a heading is found by itself: a prompt, a seed or a setting."""
    name = plain(heading)
    return name in _OWN or name in KNOWN


class Columns:
    """Which column is which, where names alone do not say so: ``--column NAME=COLUMN``."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"columns= has to map names to columns of the file, not {type(given).__name__}")
        self.given: dict[str, str] = {}
        for name, column in (given or {}).items():
            if not isinstance(name, str) or not isinstance(column, str) or not name.strip() or not column.strip():
                raise ValueError(f"columns= has {name!r}: {column!r}: give a name and a column, such as prompt=caption")
            own = plain(name) if is_known(name) else name
            if own in self.given:
                raise ValueError(f"columns= has {own!r} twice")
            self.given[own] = column
        if len(set(self.given.values())) < len(self.given):
            raise ValueError("columns= has one column under two names")
        self._names = {plain(column): (name, column) for name, column in self.given.items()}
        self._seen: set[str] = set()

    def names(self, headings: Sequence[str], where: str, texts: Collection[str] | None = None) -> list[str]:
        """The name here of each column of a table.

        Parameters
        ----------
        where
            The place of the heading, for messages.
        texts
            The columns that hold text, where that is known: one of them may be the prompt.

        Raises
        ------
        PromptError
            If no column is the prompt, two are the same, or one was meant as a setting that there is not.
        """
        chosen = {self._found(column, headings, where): name for name, column in self.given.items()}
        names = [chosen.get(heading) or self._own_name(heading, where) for heading in headings]
        for i, name in enumerate(names):
            if name in names[:i]:
                one, other = headings[names.index(name)], headings[i]
                raise PromptError(f"{where} has two columns that are {name!r}, {one!r} and {other!r}: rename one")
        if "prompt" not in names:
            raise PromptError(f"{where} has no column 'prompt'. {_offer(headings, texts)}")
        return names

    def of_object(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """An object of JSON with its keys by the names here, found as those of a table are.

        Raises
        ------
        PromptError
            If two keys have one name here.
        """
        out: dict[str, Any] = {}
        keys: dict[str, str] = {}
        for key, value in item.items():
            name, column = self._names.get(plain(key), (None, key))
            if name is None or (column != key and column in item):
                name, column = self._not_given(plain(key) if is_known(key) else key), key
            self._seen.add(column)
            if name in out:
                raise PromptError(f"{where} has two keys that are {name!r}, {keys[name]!r} and {key!r}: rename one")
            out[name], keys[name] = value, key
        return out

    def check_seen(self, name: str) -> None:
        """``PromptError`` if no object had one of the columns."""
        missing = [column for column in self.given.values() if column not in self._seen]
        if missing:
            raise PromptError(f"{name} has no key {missing[0]!r}: there are {', '.join(sorted(self._seen)) or 'none'}")

    def _found(self, column: str, headings: Sequence[str], where: str) -> str:
        if column in headings:
            return column
        alike = [heading for heading in headings if plain(heading) == plain(column)]
        if len(alike) == 1:
            return alike[0]
        near = difflib.get_close_matches(column, headings, 1)
        told = f"did you mean {near[0]!r}?" if near else f"its columns are: {', '.join(headings)}"
        raise PromptError(f"{where} has no column {column!r}: {told}")

    def _own_name(self, heading: str, where: str) -> str:
        name = plain(heading)
        if name in _OWN or name in KNOWN:
            return self._not_given(name)
        advice = meant(heading)
        if advice is not None:
            raise PromptError(f"{where} has the column {no_setting(heading, advice)}")
        return self._not_given(heading)

    def _not_given(self, name: str) -> str:
        """A name that no column was given; what has it is kept beside the images."""
        while name in self.given:
            name = f"given_{name}"
        return name


def _offer(headings: Sequence[str], texts: Collection[str] | None) -> str:
    """What could be the prompt. It is never taken without being asked for."""
    usual = [heading for heading in headings if plain(heading) in _USUAL]
    only = list(texts) if texts is not None and len(texts) == 1 else []
    likely = (usual + only + ["NAME"])[0]
    return f"Its columns are: {', '.join(headings)}. Say which one holds the prompts: --column prompt={likely}"
