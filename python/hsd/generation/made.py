"""Writing the images of a run, one by one: what is written, and what cannot be."""

from __future__ import annotations

import threading
from typing import Any

from ..work.faults import described, ends_run
from .failures import Failures
from .folders import Writer
from .results import Image


class Made:
    """Writes the images of a run, and counts them. Its methods run in several threads."""

    def __init__(self, folder: Writer, failures: Failures) -> None:
        self.failures = failures
        self.indices: list[int] = []
        self.nsfw = self.upcast = 0
        self._folder, self._lock = folder, threading.Lock()

    def write(self, image: Image, extra: dict[str, Any]) -> None:
        """Write one image. What is wrong with the image fails it; what is wrong with the disk is raised."""
        if image.nsfw is not None:
            extra = {**extra, "nsfw": image.nsfw}
        try:
            self._folder.add(image.index, image.pil, extra)
        except Exception as error:
            # Pillow's own errors are OSErrors without a number: "cannot write mode F as PNG".
            if ends_run(error) or (isinstance(error, OSError) and error.errno is not None):
                raise
            self.failures.add(image.index, "write", described(error))
            return
        self.failures.passed("write")
        with self._lock:
            self.indices.append(image.index)
            self.nsfw += bool(image.nsfw)
            self.upcast += image.upcast
