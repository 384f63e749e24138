"""The folder of images: an ``imagefolder`` data set, with the plan and a run record.

An image appears by atomic rename, then its line in ``metadata.jsonl`` is written. So an interrupted run leaves complete
images only, and the same call again generates the missing ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from filelock import FileLock, Timeout
from PIL.PngImagePlugin import PngInfo

from ..errors import Error, OutputError, PlanMismatch
from ..names import ImageFormat, check_name
from ..planning.plan import PLAN_FILE, Plan
from ..work.files import METADATA, make_folder, write_atomically
from .differences import compared, listed, plan_differences, warn_of_rounding

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95}),
    "webp": ("WEBP", {"quality": 95}),
}
"""Pillow's name of the format, and options for saving, by file ending."""

RUN = "run.json"


class ImageFolder:
    """An output folder, opened for one plan. Raises before any expensive work if it cannot be used.

    Parameters
    ----------
    path
        The folder; created if it does not exist.
    plan
        The plan of the images. A folder belongs to one plan (all of its shards) and one model with its settings.
    model
        Name and settings of the model, compared with those of an earlier run and recorded.

    Raises
    ------
    OutputError
        If the folder cannot be created or written to.
    PlanMismatch
        If it holds images of another plan, or of another model.
    """

    def __init__(
        self, path: str | os.PathLike[str], plan: Plan, model: dict[str, Any], image_format: ImageFormat = "png"
    ):
        check_name("image format", image_format, ImageFormat)
        self.path = make_folder(path)
        self.plan = plan
        self.format = image_format
        self._pil_format, self._save_options = FORMATS[image_format]
        self._mutex = threading.Lock()  # between our threads; the file lock, which polls, is for other processes
        self._lock = FileLock(self.path / ".hsd.lock", timeout=60, thread_local=False)
        self._identity = {"plan": plan.fingerprint, "model": json.loads(json.dumps(model, default=str))}
        with self._locked():
            self._claim()
            self._entries = self._read_metadata()

    def done(self) -> set[int]:
        """Indices of the images that are complete, with their line of metadata."""
        return set(self._entries)

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> Path:
        """Write one image and its line of metadata. Safe to call from several threads and processes."""
        name = f"{index:0{max(5, len(str(self.plan.n_prompts - 1)))}d}.{self.format}"
        text, seed = self.plan.prompts[index], int(self.plan.seeds[index])
        entry = {"file_name": name, "text": text, "index": index, "seed": seed, **extra}
        buffer = BytesIO()
        options = {**self._save_options, "pnginfo": _png_info(entry)} if self.format == "png" else self._save_options
        image.save(buffer, self._pil_format, **options)
        write_atomically(self.path / name, buffer.getvalue())
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        with self._locked(), open(self.path / METADATA, "ab") as file:
            file.write(line)
            self._entries[index] = entry
        return self.path / name

    def record_run(self, record: dict[str, Any]) -> None:
        """Add one run (versions, parameters, savings, timings) to ``run.json``."""
        with self._locked():
            document = self._read_run()
            document["runs"] = [*document.get("runs", []), record]
            self._write_run(document)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            try:
                self._lock.acquire()
            except Timeout:
                raise OutputError(
                    f"{self.path} has been locked by another process for a minute: check whether it still runs"
                ) from None
            try:
                yield
            finally:
                self._lock.release()

    def _claim(self) -> None:
        """Record the plan as the folder's, or check that it is the one recorded."""
        document = self._read_run()
        before = document.get("identity")
        if before is not None:
            self._check(before)
            if "networks" not in before["model"]:  # from before that was recorded
                self._write_run({**document, "identity": self._identity})
        if before is None:
            if (self.path / METADATA).exists():
                raise PlanMismatch(
                    f"{self.path} holds another data set ({METADATA} without {RUN}): choose another folder"
                )
            self.plan.whole().save(self.path / PLAN_FILE)
            self._write_run({"identity": self._identity, "request": self.plan.request, "runs": []})

    def _check(self, before: dict[str, Any]) -> None:
        """Raise unless the folder's identity is that of this plan and model."""
        own = self._identity
        found = {
            "plan": [] if before.get("plan") == own["plan"] else self._plan_differences(),
            "model": compared(before["model"], own["model"]),
        }
        others = [name for name, differences in found.items() if differences]
        if others:
            what = listed([text for differences in found.values() for text in differences])
            raise PlanMismatch(
                f"{self.path} holds images of another {' and another '.join(others)} ({what}): continue with the same "
                "prompts, seeds and settings and the same model, or choose another folder"
            )
        warn_of_rounding(self.path, before["model"], own["model"])

    def _plan_differences(self) -> list[str]:
        try:
            return plan_differences(Plan.load(self.path / PLAN_FILE), self.plan.whole())
        except (Error, OSError):
            return [f"its {PLAN_FILE} cannot be read"]

    def _read_run(self) -> dict[str, Any]:
        try:
            document = json.loads((self.path / RUN).read_bytes())
            if not isinstance(document, dict):
                raise ValueError("it is not a JSON object")
            return document
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Error(f"{self.path / RUN} cannot be read ({error}): move it away to start again") from None

    def _write_run(self, document: dict[str, Any]) -> None:
        write_atomically(self.path / RUN, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")

    def _read_metadata(self) -> dict[int, dict[str, Any]]:
        """Entries whose image exists. An incomplete last line and entries without an image are removed."""
        path = self.path / METADATA
        data = path.read_bytes() if path.exists() else b""
        entries: dict[int, dict[str, Any]] = {}
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                index, name = int(entry["index"]), str(entry["file_name"])
            except (ValueError, KeyError, TypeError):
                continue
            if 0 <= index < self.plan.n_prompts and (self.path / name).is_file():
                entries[index] = entry
        valid = b"".join((json.dumps(e, ensure_ascii=False) + "\n").encode() for e in entries.values())
        if valid != data:
            write_atomically(path, valid)
        return entries


def _png_info(entry: dict[str, Any]) -> PngInfo:
    info = PngInfo()
    info.add_itxt("prompt", entry["text"])
    info.add_text("seed", str(entry["seed"]))
    info.add_text("Software", "hsd")
    return info
