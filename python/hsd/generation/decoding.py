"""Finished latents to images, in batches of their own; on a GPU beside the denoiser."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import PIL.Image
import torch

from ..errors import OutOfMemory
from ..models.base import Adapter
from ..replay.executor import Finished

BATCH = 8
"""Latents decoded at once: more is no faster for an image of 512 pixels or above, and takes memory."""

PATIENCE = 4
"""Calls that a latent waits for others, at most: counted in calls, not in time, so that every run is the same.

The first does not wait: somebody may want to see it."""

_QUEUE = 2
"""Batches that wait for the decoder, at most: a slow decoder slows the run, it does not fill memory."""


@dataclass(frozen=True)
class Decoded:
    """An image, and the prompt it belongs to."""

    index: int
    pil: PIL.Image.Image


class Decoder:
    """Decodes what the executor finishes, in its order. Use as a context manager.

    Parameters
    ----------
    adapter
        The model.
    batch_size
        Latents at once, at most; halved where they do not fit into the memory.
    beside
        Decode in a thread, on a CUDA stream of its own. Default: on a GPU, unless parts of the model move between host
        and device, where each would bring its own networks back. On a CPU a thread would take the denoiser's cores.
    """

    def __init__(self, adapter: Adapter, batch_size: int = BATCH, *, beside: bool | None = None) -> None:
        self._adapter, self._most = adapter, batch_size
        device = adapter.device
        self._device = device if device.type == "cuda" else None
        self._waiting: list[Finished] = []
        self._waited = 0
        self._patience = 0
        self._thread: threading.Thread | None = None
        self._todo: queue.Queue[tuple[list[Finished], Any] | None] = queue.Queue(_QUEUE)
        self._done: queue.SimpleQueue[list[Decoded] | BaseException] = queue.SimpleQueue()
        self._under_way = 0
        if beside if beside is not None else self._device is not None and adapter.stays:
            self._thread = threading.Thread(target=self._work, name="hsd-decoder", daemon=True)
            self._thread.start()

    def put(self, finished: Iterable[Finished]) -> list[Decoded]:
        """Take what a call finished, nothing included; return the images that are ready."""
        self._waiting += finished
        self._waited = self._waited + 1 if self._waiting else 0
        images = self._ready(wait=False)
        while len(self._waiting) >= self._most or (self._waiting and self._waited > self._patience):
            images += self._send()
        return images

    def rest(self) -> list[Decoded]:
        """All that is left, when the calls are over."""
        images = []
        while self._waiting:
            images += self._send()
        return images + self._ready(wait=True)

    def _send(self) -> list[Decoded]:
        batch, self._waiting, self._waited = self._waiting[: self._most], self._waiting[self._most :], 0
        self._patience = PATIENCE
        if self._thread is None:
            return self._decode(batch)
        event = torch.cuda.current_stream(self._device).record_event() if self._device is not None else None
        self._under_way += 1
        while True:
            try:
                self._todo.put((batch, event), timeout=0.1)
                return []
            except queue.Full:  # go on waiting, unless it has failed
                if not self._thread.is_alive():
                    return self._ready(wait=True)

    def _ready(self, wait: bool) -> list[Decoded]:
        images: list[Decoded] = []
        while self._under_way and (wait or not self._done.empty()):
            result = self._done.get()
            if isinstance(result, BaseException):
                self._under_way = 0
                raise result
            self._under_way -= 1
            images += result
        return images

    def _work(self) -> None:
        """The thread: takes batches until there is nothing more, or one fails."""
        stream = torch.cuda.Stream(self._device) if self._device is not None else None
        try:
            while (item := self._todo.get()) is not None:
                batch, event = item
                if stream is None:
                    self._done.put(self._decode(batch))
                    continue
                with torch.cuda.stream(stream):
                    stream.wait_event(event)
                    for latent in batch:
                        latent.latent.record_stream(stream)
                    self._done.put(self._decode(batch))
        except BaseException as error:  # raised again where the images are asked for
            self._done.put(error)

    def _decode(self, batch: list[Finished]) -> list[Decoded]:
        """One batch, in as many parts as the memory makes it."""
        images: list[Decoded] = []
        while batch:
            part, failed = batch[: self._most], None
            states = [f.generator.get_state() for f in part]  # some models draw while they decode
            try:
                pictures = self._adapter.decode(torch.cat([f.latent for f in part]), [f.generator for f in part])
            except torch.OutOfMemoryError as error:
                failed = str(error)
            if failed is not None:  # out here, where the error no longer holds on to what was being computed
                self._halve(len(part), failed)
                for f, state in zip(part, states, strict=True):
                    f.generator.set_state(state)
                continue
            images += [Decoded(f.index, picture) for f, picture in zip(part, pictures, strict=True)]
            batch = batch[len(part) :]
        return images

    def _halve(self, images: int, error: str) -> None:
        if images == 1:
            raise OutOfMemory(f"not even one image can be decoded in the memory there is: {error}")
        self._most = (images + 1) // 2
        warnings.warn(f"out of memory decoding {images} images: going on with {self._most}", stacklevel=2)
        if self._device is not None:
            torch.cuda.empty_cache()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; what it still has to do is dropped if something went wrong."""
        if self._thread is None:
            return
        while self._thread.is_alive():
            try:
                self._todo.put(None, timeout=0.1)
                break
            except queue.Full:
                if kind is not None:
                    with contextlib.suppress(queue.Empty):
                        self._todo.get_nowait()
        self._thread.join()
