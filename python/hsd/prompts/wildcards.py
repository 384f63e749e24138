"""A folder of wildcard files: ``animal.txt`` with a value per line is ``__animal__``; JSON and YAML hold several."""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..work.paths import user_path
from ..work.text import listed
from .source import lines, read_text

_WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+)::(.+)", re.DOTALL)

Value = tuple[str, float, str]
"""A text, its weight, and the place where it stands."""


class Wildcards:
    """The wildcards below a folder, by name: ``animal``, or ``sea/fish`` for a file in a folder.

    Names with ``*``, ``?`` and ``[...]`` stand for all that match. Values are in alphabetical order and each is there
    once, as in dynamicprompts.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else user_path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise PromptError(f"cannot read wildcards from {self.folder}: it is no folder")
        self._values: dict[str, list[Value]] | None = None
        self._unreadable: dict[str, PromptError] = {}
        """Why a file cannot be read, by its name: that matters only where the name is asked for, or is not found."""

    def values(self, name: str, place: str) -> list[Value]:
        """The values of ``__name__``, which stands at ``place``.

        Raises
        ------
        PromptError
            If there are none.
        """
        if self.folder is None:
            raise PromptError(
                f"{place}: __{name}__ is a wildcard: give the folder of its files, --wildcards FOLDER (wildcards=)"
            )
        if self._values is None:
            self._values = {}
            for file in self._files():
                try:
                    self._values.update(_of_file(file, self.folder))
                except PromptError as error:
                    self._unreadable[_name_of(file, self.folder)] = error
        pattern = re.sub(r"[\\/]+", "/", name).strip("/")
        found = self._matching(pattern) or self._matching(f"*/{pattern}")
        asked = [own for own in self._unreadable if fnmatch.fnmatchcase(f"/{own}", f"*/{pattern}")]
        if asked or (self._unreadable and not found):
            raise self._unreadable[(asked or list(self._unreadable))[0]]
        if not found:
            names = sorted(name for name, values in self._values.items() if values)
            near = difflib.get_close_matches(pattern, names, 1)
            meant = f"did you mean __{near[0]}__?" if near else f"there are {listed(names) or 'none'}"
            raise PromptError(f"{place}: {self.folder} has no wildcard {name!r}: {meant}")
        every = {value[0]: value for one in reversed(found) for value in reversed(self._values[one])}
        return sorted(every.values())

    def _matching(self, pattern: str) -> list[str]:
        assert self._values is not None
        return [name for name, values in self._values.items() if values and fnmatch.fnmatchcase(name, pattern)]

    def _files(self) -> Iterator[Path]:
        assert self.folder is not None
        for base, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            yield from (Path(base) / name for name in sorted(names) if not name.startswith("."))


def _name_of(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _of_file(path: Path, root: Path) -> Iterator[tuple[str, list[Value]]]:
    """The wildcards of one file, by their names; none for a file of another kind."""
    ending = path.suffix.lower()
    name = _name_of(path, root)
    if ending == ".txt":
        found = [(line, where) for where, line in lines(read_text(path), str(path)) if not line.startswith("#")]
        yield name, [_weighted(line, where) for line, where in found]
    elif ending in (".json", ".yaml", ".yml"):
        data = _parsed(path, ending)
        if isinstance(data, list):
            yield name, list(_of_list(data, str(path)))
        elif isinstance(data, dict):
            folder = path.relative_to(root).parent.as_posix()
            yield from _of_mapping(data, "" if folder == "." else folder, str(path))
        elif data is not None:
            raise PromptError(f"{path} holds neither a list of values nor lists by name")


def _parsed(path: Path, ending: str) -> Any:
    text = read_text(path)
    try:
        if ending == ".json":
            return json.loads(text)
        import yaml  # type: ignore[import-untyped]  # here: few folders have YAML

        return yaml.safe_load(text)
    except ImportError:
        raise PromptError(f"{path} is YAML: pip install pyyaml, or write it as JSON") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path} is not JSON: {error}") from None
    except yaml.YAMLError as error:
        raise PromptError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _of_mapping(data: dict[Any, Any], folder: str, path: str) -> Iterator[tuple[str, list[Value]]]:
    for key, inner in data.items():
        name = f"{folder}/{key}" if folder else str(key)
        if isinstance(inner, dict):
            yield from _of_mapping(inner, name, path)
        elif inner is not None:
            yield name, list(_of_list(inner if isinstance(inner, list) else [inner], f"{path}, {name}"))


def _of_list(items: list[Any], where: str) -> Iterator[Value]:
    for number, item in enumerate(items, start=1):
        place = f"{where}, item {number}"
        if isinstance(item, dict):
            text, weight = item.get("text", item.get("content")), item.get("weight", 1)
            if not isinstance(text, str) or isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise PromptError(f'{place}: write a text, or an object such as {{"text": "a fox", "weight": 2}}')
            if not 0 <= weight < float("inf"):
                raise PromptError(f"{place}: the weight is {weight}: it has to be 0 or more")
            yield text, float(weight), place
        elif isinstance(item, (str, int, float)) and not isinstance(item, bool):
            yield _weighted(str(item), place)
        elif item is not None:
            raise PromptError(f"{place} is a {type(item).__name__}, not a text: put quotes around it")


def _weighted(text: str, place: str) -> Value:
    found = _WEIGHTED.fullmatch(text)
    return (text, 1.0, place) if found is None else (found[2], float(found[1]), place)
