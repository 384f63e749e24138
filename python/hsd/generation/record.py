"""The run record ``run.json``, and the identity of a folder: what decides its images.

The identity is in a file of its own too, which is written once and then stays: with it, a damaged run record costs
nothing but the list of earlier runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..work.exclusive import create
from ..work.files import IDENTITY, RUN, as_json, read_own, regular, set_aside, write_json
from ..work.reading import parse_json

Document = dict[str, Any]


class Record:
    """Both files of a folder. Use while its lock is held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> tuple[Document, str | None]:
        """What ``run.json`` says, with the identity from either file; and why that file cannot be used, if so.

        Without any identity the document has no ``identity``.
        """
        document, why = self._object(RUN)
        if document is None:
            document = {}
        elif not is_identity(document.get("identity")):
            why = "it does not say what made the images"
            document.pop("identity", None)
        if not isinstance(document.get("runs", []), list):
            why = "its runs are not a list"
            del document["runs"]
        if "identity" not in document:
            copy, _ = self._object(IDENTITY)
            document = {"identity": copy} if is_identity(copy) else {}
        return document, why

    def copy(self) -> Document | None:
        """The identity in its own file, if that says one in full."""
        found, _ = self._object(IDENTITY)
        return found if is_identity(found) and found is not None and "image_format" in found else None

    def begin(self, identity: Document) -> bool:
        """Say what decides the images of a folder that has no record; False if others were quicker.

        Needs no lock: the first of several has it.
        """
        return create(self._folder / IDENTITY, as_json(identity))

    def write(self, document: Document) -> str | None:
        """Write both; returns what became of a damaged ``run.json``: it is set aside, not overwritten."""
        finding = None
        _, why = self.read()
        if why is not None:
            finding = f"{RUN} could not be used ({why})"
            if os.path.lexists(self._folder / RUN) and not (self._folder / RUN).is_symlink():
                finding += f" and is now {set_aside(self._folder / RUN).name}"
        copy, _ = self._object(IDENTITY)
        if copy != document["identity"]:
            self._put(IDENTITY, document["identity"])
        self._put(RUN, document)
        return finding

    def _put(self, name: str, document: Document) -> None:
        path = self._folder / name
        if path.is_dir() and not path.is_symlink():
            set_aside(path)
        write_json(path, document)

    def _object(self, name: str) -> tuple[Document | None, str | None]:
        """The JSON object in a file, or why there is none; neither if there is no file, or an empty one."""
        path = self._folder / name
        data = read_own(path)
        if data is None:
            return None, "it is not a file" if os.path.lexists(path) else None
        if not data:  # as power cuts leave them: nothing is lost with it
            return None, None
        try:
            document = parse_json(data)
        except ValueError as error:
            return None, str(error)
        return (document, None) if isinstance(document, dict) else (None, "it is not a JSON object")

    def files(self) -> int:
        """How many of the two files are there."""
        return sum(regular(self._folder / name) is not None for name in (RUN, IDENTITY))


def is_identity(value: Any) -> bool:
    """Whether a value has the form of an identity."""
    return isinstance(value, dict) and isinstance(value.get("plan"), str) and isinstance(value.get("model"), dict)
