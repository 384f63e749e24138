"""Reading a folder of images for its report: whatever is there is used, and what is not is said.

Evaluation refuses a folder with a damaged line, because a score of the rest would be another number. People want to
look at the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import Error
from ..evaluation.folder import Entry, FolderError
from ..generation.union import Line, PartFiles, lines_of
from ..planning.columns import OWN
from ..planning.plan import PLAN_FILE, Plan
from ..prompts.known_settings import KNOWN
from ..work.files import FAILED, IDENTITY, METADATA, RUN, read_own
from ..work.paths import user_path
from ..work.reading import parse_json, read_file

ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"))
"""What browsers show. Of a folder without metadata, these files are its images."""

_MOST = 1 << 32


@dataclass(frozen=True)
class Picture:
    """One image, with what its line of metadata says."""

    entry: Entry
    """As evaluation reads it; the digest is empty where the line has none, and the text where there is no line."""
    alone_from: int | None = None
    nsfw: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of this prompt, where they are not those of the run."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What else is in the line, such as the choices of a template."""
    size: int | None = None
    """Bytes of the file, as written."""


@dataclass(frozen=True)
class Source:
    """A folder of images, as far as it can be read."""

    path: Path
    pictures: tuple[Picture, ...]
    """By index if all have one, else by text, seed and name."""
    plain: bool
    """Whether there is no metadata, so that nothing is known but the names of the files."""
    plan: Plan | None
    record: dict[str, Any]
    """``run.json``; empty if there is none."""
    failed: tuple[dict[str, Any], ...]
    """Lines of ``failed.jsonl``."""
    running: str | None
    """The run that writes to the folder at this moment, for people."""
    notes: tuple[str, ...]
    """What could not be used, and why; a sentence each."""

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The images as evaluation has them."""
        return tuple(picture.entry for picture in self.pictures)

    @cached_property
    def mismatch(self) -> str | None:
        """Why the plan is not that of the images, if so: a sentence."""
        plan = self.plan
        if plan is None:
            return None
        for entry in self.entries:
            index = entry.index
            if index is None or not 0 <= index < plan.n_prompts or plan.prompts[index] != entry.text:
                return (
                    f"The plan in this folder is not that of its images ({entry.file_name}), so the tree is left out."
                )
        return None

    @property
    def name(self) -> str:
        """What the folder is called on the pages."""
        return self.path.resolve().name or str(self.path)

    @property
    def expected(self) -> int:
        """How many images there will be when no run is missing one."""
        return len(self.pictures) if self.plan is None else max(self.plan.n_prompts, len(self.pictures))


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a folder that :func:`hsd.generate` wrote, an ``imagefolder`` data set, or plain files of images.

    Nothing is locked or changed: a run may be writing to the folder.

    Raises
    ------
    FolderError
        If there is no such folder, or it has no images.
    """
    path = user_path(path)
    if not path.is_dir():
        raise FolderError(f"{path} is not a folder: name one with images")
    notes: list[str] = []
    plan = _plan(path, notes)
    plain = not os.path.lexists(path / METADATA) and not PartFiles(path).names()
    pictures = _files(path) if plain else _lines(path, plan, notes)
    if not pictures:
        raise FolderError(_no_images(path, plain))
    if all(picture.entry.index is not None for picture in pictures):
        pictures.sort(key=lambda one: one.entry.index or 0)
    else:
        pictures.sort(key=lambda one: (one.entry.text, one.entry.seed or 0, one.entry.file_name))
    record = _record(path, notes)
    failed = tuple(_objects(path / FAILED))
    return Source(path, tuple(pictures), plain, plan, record, failed, _running(path), tuple(notes))


def _no_images(path: Path, plain: bool) -> str:
    if plain and any(path.glob("*.tar")):
        return f"{path} holds tar files and no images: unpack them into a folder, and make the report of that"
    what = f"no images ({', '.join(sorted(ENDINGS))})" if plain else f"{METADATA}, but none of the images that it names"
    return f"{path} has {what}: make some with hsd generate, or name another folder"


def _plan(path: Path, notes: list[str]) -> Plan | None:
    if not os.path.lexists(path / PLAN_FILE):
        return None
    try:
        return Plan.load(path / PLAN_FILE).whole()
    except (Error, OSError) as error:
        notes.append(f"{PLAN_FILE} cannot be read, so the tree is left out: {error}.")
        return None


def _record(path: Path, notes: list[str]) -> dict[str, Any]:
    for name in (RUN, IDENTITY):
        if not os.path.lexists(path / name):
            continue
        try:
            document = parse_json(read_own(path / name) or b"")
            if isinstance(document, dict):
                return document if name == RUN else {"identity": document}
            raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            notes.append(f"{name} cannot be read: {error}.")
    return {}


def _running(path: Path) -> str | None:
    """The claim of a living run. Looked at only where there is a claim's file, because this imports torch."""
    if os.name == "nt" or not any(name.startswith(".hsd.claim-") for name in os.listdir(path)):
        return None
    from ..generation.claims import living

    claims = living(path)
    return str(claims[0]) if claims else None


# ---------------------------------------------------------------------------------------------------------- images


def _files(path: Path) -> list[Picture]:
    """The images of a folder without metadata, those in folders below it too; names that are numbers are indices."""
    names = []
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith(("__", ".")))
        inside = PurePosixPath(Path(folder).relative_to(path).as_posix())
        names += [str(inside / name) for name in files if Path(name).suffix.lower() in ENDINGS and name[0] != "."]
    stems = [Path(name).stem for name in names]
    numbered = all(stem.isascii() and stem.isdigit() and len(stem) < 16 for stem in stems)
    numbered = numbered and len({int(stem) for stem in stems}) == len(stems)
    return [
        Picture(Entry(path / name, name, "", int(stem) if numbered else None, None, 0, ""))
        for name, stem in zip(names, stems, strict=True)
    ]


def _lines(path: Path, plan: Plan | None, notes: list[str]) -> list[Picture]:
    own = set(KNOWN) if plan is None else {name for settings in plan.settings for name in settings}
    pictures: dict[str, Picture] = {}
    unusable, missing = 0, []
    for line in _metadata(path):
        picture = _picture(path, line.entry, line.number, own)
        if picture is None:
            unusable += 1
        elif not os.path.lexists(picture.entry.path):
            missing.append(picture.entry.file_name)
        else:
            pictures[picture.entry.file_name] = picture  # of two lines for an image, the later one
    if unusable:
        notes.append(f"{_lines_of(unusable)} of {METADATA} name no image in this folder and are left out.")
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        notes.append(f"{METADATA} names images that are missing: {names}.")
    return list(_one_an_index(pictures.values()))


def _metadata(path: Path) -> list[Line]:
    with contextlib.suppress(OSError):  # then there are no images, which is said
        return lines_of(path, follow=True)
    return []


def _lines_of(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


def _one_an_index(pictures: Any) -> Iterator[Picture]:
    seen: set[int] = set()
    for picture in pictures:
        index = picture.entry.index
        if index is None or index not in seen:
            yield picture
        if index is not None:
            seen.add(index)


def _picture(path: Path, fields: dict[str, Any] | None, number: int, own: set[str]) -> Picture | None:
    """What a line says; None if it names no file inside the folder."""
    name = None if fields is None else fields.get("file_name")
    if fields is None or not isinstance(name, str) or not name or "\0" in name:
        return None
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # no file can have this name
        return None
    if Path(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return None
    text = fields.get("text", fields.get("prompt"))
    index, seed, alone = (_integer(fields.get(key)) for key in ("index", "seed", "alone_from"))
    digest, size = fields.get("digest"), _integer(fields.get("size"))
    entry = Entry(
        path / name, name, _clean(text) if isinstance(text, str) else "", index, seed, number, str(digest or "")
    )
    return Picture(
        entry,
        alone,
        fields.get("nsfw") is True,
        {key: value for key, value in fields.items() if key in own and key not in OWN and value is not None},
        {_clean(key): _clean(value) for key, value in fields.items() if key not in own and key not in OWN},
        size,
    )


def _integer(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 63 else None


def _clean(value: Any) -> Any:
    """Text that can be written as UTF-8: half a surrogate pair becomes a question mark. Lists become their JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _clean(json.dumps(value, ensure_ascii=False))


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of a file that are not empty, as objects; None for a line that is none."""
    try:
        data = read_file(path, _MOST)
    except OSError:
        return
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield number, value if isinstance(value, dict) else None


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    for _, value in _numbered(path):
        if value is not None:
            yield value
