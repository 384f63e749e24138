"""WebDataset shards: a finished folder of images as tar files, which training programs read from start to end."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from .. import _core
from ..errors import Error, OutputError
from ..names import check_count
from ..planning.plan import PLAN_FILE, Plan
from ..work import files
from ..work.arguments import explains
from ..work.paths import user_path
from ..work.reading import open_file, parse_json
from ..work.text import listed
from .lines import FORMATS, Entry, encode
from .record import Record
from .union import entries_of

PER_SHARD = 1_000
"""Images of a shard, unless another number is given."""

LIST = "shards.json"
"""What is in the shards, with their names, counts, sizes and SHA-256."""

_SHARD = re.compile(r"images-\d{6,}\.tar")
_IMAGE = re.compile(rf"(\d{{5,}})\.({'|'.join(FORMATS)})")


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    images: int
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Shards:
    """What :func:`write_shards` has written, or found to be right."""

    folder: Path
    shards: tuple[Shard, ...]
    kept: int
    """How many of them were there already."""
    missing: int
    """Images of the plan that do not exist, so that no shard has them."""

    @property
    def images(self) -> int:
        """Images in all shards."""
        return sum(shard.images for shard in self.shards)

    def __str__(self) -> str:
        """One line."""
        some, all_of = len(self.shards), self.images + self.missing
        lacking = f" ({self.missing:,} of {all_of:,} {'does' if self.missing == 1 else 'do'} not exist)"
        return (
            f"{self.images:,} images in {some:,} {'shard' if some == 1 else 'shards'} in {self.folder}"
            f"{lacking if self.missing else ''}."
        )


@explains("hsd.write_shards", {"maxcount": "here it is per_shard="}.get)
def write_shards(folder: str | os.PathLike[str], out: str | os.PathLike[str], *, per_shard: int = PER_SHARD) -> Shards:
    """Write the images of a folder as WebDataset shards: ``out/images-000000.tar`` and so on.

    An image is three files of a shard, named by its index: the image itself (``.png``, ``.webp`` or ``.jpg``), its
    prompt (``.txt``) and its line of metadata (``.json``). The same images give the same bytes. A shard that is there
    already and right is kept; others of an earlier call are replaced.

    Parameters
    ----------
    folder
        Of :func:`hsd.generate`. Images that it lacks are left out, and counted in ``missing``.
    out
        Where the shards go: outside of ``folder``, because ``datasets`` would take them for a part of it.
    per_shard
        Largest number of images of a shard.

    Raises
    ------
    OutputError
        If ``out`` cannot be written to, is in ``folder`` or the other way round, or holds files of someone else.
    Error
        If ``folder`` is none of :func:`hsd.generate`, or if images are damaged: then shards with them are not written.
    """
    check_count("per_shard", per_shard)
    out = check_shards(folder, out)
    folder = user_path(folder)
    source = _source_of(folder)
    if source is None:
        raise Error(f"{folder} is no folder of images of hsd.generate: it has no run record")
    entries, n = _entries(folder)
    made = _Writing(folder, files.make_folder(out), {"source": source, "per_shard": per_shard})
    for begin in range(0, len(entries), per_shard):
        made.shard(entries[begin : begin + per_shard])
    return made.end(missing=n - len(entries))


def check_shards(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """``out`` as a path, if the shards of ``folder`` may be written there.

    Before a run, ``folder`` need not exist. Then ``out`` may not hold shards yet: they are of other images.

    Raises
    ------
    OutputError
        If not: see :func:`write_shards`.
    """
    folder, out = user_path(folder), user_path(out)
    inner, outer = out.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise OutputError(f"the shards cannot be in {out}: it and {folder} have to lie outside of each other")
    if not out.exists():
        return out
    if not out.is_dir():
        raise OutputError(f"the shards cannot be in {out}: it is not a folder")
    document = _list_in(out)
    if document is None:
        others = sorted(name for name in os.listdir(out) if not name.startswith("."))
        if others:
            raise OutputError(
                f"{out} holds files that are no shards of HSD ({listed(others, 3)}): choose another folder"
            )
        return out
    source = _source_of(folder)
    if document.get("source") != source:  # also where it is None: what is there is not of images yet to be made
        raise OutputError(f"{out} holds the shards of other images: choose another folder, or remove that one")
    return out


class _Writing:
    """The shards of one call, one after the other."""

    def __init__(self, folder: Path, out: Path, of: dict[str, Any]) -> None:
        self._folder, self._out = folder, out
        self._document = {"hsd": _core.__version__, **of}
        self._shards: list[Shard] = []
        self._damaged: list[str] = []
        self._kept = 0
        self._changing = False

    def shard(self, entries: Sequence[Entry]) -> None:
        """Write the next shard, unless it is there already."""
        path = self._out / f"images-{len(self._shards):06d}.tar"
        sink = _Sink()
        if files.regular(path) is not None:
            self._pack(entries, sink)
        if sink.size and _digest_of(path) == (sink.size, sink.digest):
            self._kept += 1
        else:
            if not self._changing:  # from here on the list says whose the files are, but not that they are complete
                self._changing = True
                self._put([])
            sink = self._write(entries, path)
        self._shards.append(Shard(path.name, len(entries), sink.size, sink.digest))

    def _write(self, entries: Sequence[Entry], path: Path) -> _Sink:
        if path.is_dir() and not path.is_symlink():
            files.set_aside(path)
        try:
            with files.replacing(path) as file:
                self._pack(entries, sink := _Sink(file))
                if self._damaged:
                    raise _Damaged
        except _Damaged:
            pass
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}; {files.advice(error)}") from error
        return sink

    def _pack(self, entries: Sequence[Entry], sink: _Sink) -> None:
        stream: Any = sink  # it is written to, and nothing else
        with tarfile.open(mode="w|", fileobj=stream, format=tarfile.USTAR_FORMAT) as tar:
            for entry in entries:
                name = entry["file_name"]
                data = files.read_own(self._folder / name) or b""
                if len(data) != entry.get("size") or files.digest_of(data) != entry.get("digest"):
                    self._damaged += [name] if name not in self._damaged else []
                    continue
                key, ending = name.split(".")
                _add(tar, f"{key}.{ending}", data)
                _add(tar, f"{key}.txt", str(entry["text"]).encode("utf-8", "backslashreplace"))
                _add(tar, f"{key}.json", encode(entry))

    def end(self, missing: int) -> Shards:
        """Write the list, and remove what an earlier call had more."""
        if self._damaged:
            raise Error(
                f"images of {self._folder} are damaged ({listed(self._damaged, 3)}), so the "
                "shards are not complete: generate into the same folder again, which makes these images again"
            )
        self._put(self._shards)
        names = {shard.name for shard in self._shards}
        for name in os.listdir(self._out):
            if _SHARD.fullmatch(name) and name not in names:
                (self._out / name).unlink()
        files.sync_folder(self._out)
        return Shards(self._out.absolute(), tuple(self._shards), self._kept, missing)

    def _put(self, shards: Sequence[Shard]) -> None:
        count = sum(shard.images for shard in shards)
        document = {**self._document, "images": count, "shards": [asdict(shard) for shard in shards]}
        if document != _list_in(self._out):
            files.write_json(self._out / LIST, document)


class _Damaged(Exception):
    """A shard would lack images."""


class _Sink:
    """Takes the bytes of a shard: counts and digests them, and writes them to a file if there is one."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.size, self._sha256, self._file = 0, hashlib.sha256(), file

    def write(self, data: bytes) -> int:
        """As a file does."""
        self.size += len(data)
        self._sha256.update(data)
        return len(data) if self._file is None else self._file.write(data)

    @property
    def digest(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._sha256.hexdigest()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member that says nothing of when and by whom it was made."""
    member = tarfile.TarInfo(name)  # mode 644, owner 0, time 0
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _entries(folder: Path) -> tuple[list[Entry], int]:
    """The lines of all images in the order of the index, each once; and how many images the plan has."""
    n = Plan.load(folder / PLAN_FILE).n_prompts
    found: dict[int, Entry] = {}
    for entry in entries_of(folder):
        name = _IMAGE.fullmatch(str(entry.get("file_name")))
        if name is not None and int(name[1]) == entry.get("index") and int(name[1]) < n:
            found[int(name[1])] = entry
    return [found[index] for index in sorted(found)], n


def _source_of(folder: Path) -> dict[str, Any] | None:
    """What the shards of a folder are known by; None if it is no folder of HSD, or not yet one."""
    identity = Record(folder).read()[0].get("identity")
    if identity is None:
        return None
    return {"plan": identity["plan"], "model": identity["model"].get("name")}


def _list_in(out: Path) -> dict[str, Any] | None:
    """What ``shards.json`` says; None if there is none of HSD."""
    try:
        document = parse_json(files.read_own(out / LIST) or b"")
    except ValueError:
        return None
    return document if isinstance(document, dict) and "source" in document and "shards" in document else None


def _digest_of(path: Path) -> tuple[int, str]:
    sink = _Sink()
    with open_file(path, follow=False) as file:
        for chunk in _chunks(file):
            sink.write(chunk)
    return sink.size, sink.digest


def _chunks(file: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    while chunk := file.read(size):
        yield chunk
