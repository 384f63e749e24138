"""Lines of metadata: what the line of an image has to say, and whether a line and its image do.

A line is written from the plan and the bytes of its image. So a line that was edited is known by the plan, and an image
that was damaged, changed or swapped by its size and digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..names import ImageFormat
from ..planning.plan import Plan
from ..planning.rows import alone_from, columns_beside, setting_names
from ..work.files import digest_of, read_own, regular
from ..work.text import shortened

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95}),
    "webp": ("WEBP", {"quality": 95}),
}
"""Pillow's name of the format, and options for saving, by file ending."""

Entry = dict[str, Any]
"""One line of metadata."""


def ending(image_format: ImageFormat) -> str:
    """The ending of a format's files, by which folders know it: ``jpeg`` and ``jpg`` are the same."""
    return "jpg" if image_format == "jpeg" else image_format


@dataclass(frozen=True)
class Checked:
    """What became of a line."""

    entry: Entry | None
    """The line as it has to be; None if its image has to be made again."""
    finding: str | None = None
    """What was wrong with it, for people; None if it was right."""
    index: int | None = None
    """Which image it is of; None if it does not say."""


class Lines:
    """What lines of a plan's images say.

    Parameters
    ----------
    folder
        Where the images are.
    plan
        Their plan, or a part of it: only images of that part are compared with their digests, others may be written
        by another run at this moment.
    image_format
        The ending of the images' names.
    model
        What made the images: its settings are those of the prompts that have none of their own. Without it, lines are
        only compared with what they have to be of, not written.
    """

    def __init__(self, folder: Path, plan: Plan, image_format: str, model: dict[str, Any] | None = None) -> None:
        self._folder, self._plan, self._format = folder, plan, image_format
        self._common = (model or {}).get("settings") or {}
        self._kept = np.zeros(plan.n_prompts, dtype=bool)
        self._kept[plan.kept] = True
        self._alone = alone_from(plan)
        self._settings, self._setting = plan.settings, plan.setting
        self._columns = setting_names(plan)  # every image has all columns
        self._beside = columns_beside(plan)

    def name(self, index: int) -> str:
        """The name of an image's file: the only one that its line may have."""
        first = self._plan.extensions[0] if self._plan.extensions else self._plan.n_prompts  # names stay where it grows
        return f"{index:0{max(5, len(str(first - 1)))}d}.{self._format}"

    def expected(self, index: int) -> Entry:
        """The columns that follow from the plan. For images of other parts, those that every part knows."""
        plan = self._plan
        entry: Entry = {"file_name": self.name(index), "text": plan.prompts[index], "index": index}
        entry["seed"] = int(plan.seeds[index])
        if self._kept[index]:
            own = self._settings[self._setting[index]]
            entry.update((name, own.get(name, self._common.get(name))) for name in self._columns)
            entry.update((name, values[index]) for name, values in self._beside.items())
            entry["alone_from"] = int(self._alone[index])
        return entry

    def stands(self, entry: Entry) -> bool:
        """Whether a line is of an image of the plan, which is there with as many bytes."""
        index = entry.get("index")
        if type(index) is not int or not 0 <= index < self._plan.n_prompts:
            return False
        name = self.name(index)
        status = regular(self._folder / name) if entry.get("file_name") == name else None
        return status is not None and status.st_size == entry.get("size")

    def check(self, entry: Entry) -> Checked:
        """Compare a parsed line with the plan and with its image."""
        index, n = entry.get("index"), self._plan.n_prompts
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n:
            return Checked(None, f"a line has the index {_short(index)}, which is not one of 0 to {n - 1}")
        return replace(self._check(entry, index), index=index)

    def _check(self, entry: Entry, index: int) -> Checked:
        name = self.name(index)
        if entry.get("file_name") != name:
            return Checked(None, f"{name}: its line names {_short(entry.get('file_name'))}")
        status = regular(self._folder / name)
        if status is None:
            return Checked(None, f"{name} {_in_its_place(self._folder / name)}")
        if "size" not in entry and "digest" not in entry:
            return self._check_unsigned(entry, index) if self._kept[index] else Checked(entry)
        if status.st_size != entry.get("size"):
            return Checked(None, f"{name} has {status.st_size:,} bytes, and its line says {_short(entry.get('size'))}")
        if self._kept[index]:
            data = read_own(self._folder / name)
            if data is None or digest_of(data) != entry.get("digest"):
                return Checked(None, f"{name} has other bytes than those that were written")
        return self.corrected(entry, index)

    def corrected(self, entry: Entry, index: int) -> Checked:
        """The line with the columns that follow from the plan; columns that others added stay."""
        expected = self.expected(index)
        alone = entry.get("alone_from")
        if type(alone) is int and 0 <= alone <= expected.get("alone_from", -1):
            expected["alone_from"] = alone  # a run sets images apart whose conditioning turns out to be equal
        wrong = [key for key, value in expected.items() if key not in entry or not same(entry[key], value)]
        if not wrong:
            return Checked(entry)
        if set(wrong) <= set(self._beside):  # edited in the list, which is no damage
            return Checked({**entry, **expected})
        return Checked({**entry, **expected}, f"{self.name(index)}: {', '.join(wrong)} of its line corrected")

    def _check_unsigned(self, entry: Entry, index: int) -> Checked:
        """A line of an earlier version, without size and digest: it has them if its image is complete and its own."""
        name, expected = self.name(index), self.expected(index)
        if not (same(entry.get("text"), expected["text"]) and same(entry.get("seed"), expected["seed"])):
            return Checked(None, f"{name}: its line has another text or seed than the plan")
        data = read_own(self._folder / name) or b""
        try:
            PIL.Image.open(BytesIO(data)).verify()
            with PIL.Image.open(BytesIO(data)) as image:
                image.load()
                told = {"text": image.info.get("prompt"), "seed": image.info.get("seed")}  # as a PNG of HSD has
                known = image.format == FORMATS[self._format][0]
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
            return Checked(None, f"{name} is not a complete image")
        if not known or any(value not in (None, str(expected[key])) for key, value in told.items()):
            return Checked(None, f"{name} is another image")
        return self.corrected({**entry, "size": len(data), "digest": digest_of(data)}, index)


def encode(entry: Entry) -> bytes:
    """A line of metadata. Text that has no UTF-8 form, half a surrogate pair, is escaped."""
    try:
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(entry).encode() + b"\n"


def parse(line: bytes) -> Entry | None:
    """A line of metadata; None if it is not a JSON object that can be written again."""
    try:
        entry = json.loads(line)
        if isinstance(entry, dict):
            encode(entry)
            return entry
    except (ValueError, RecursionError):
        pass
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON: 1, 1.0 and true are not."""
    if type(a) is type(b) and isinstance(a, (str, int, type(None))):
        return bool(a == b)
    return json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True, default=str)


def _in_its_place(path: Path) -> str:
    if path.is_symlink():
        return "is a link"
    return "is not a file" if path.exists() else "is missing"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return shortened(text)
