"""Finished latents to images, in batches; on a GPU at the same time as the denoiser runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import PIL.Image
import torch

from ..models.base import Adapter
from ..replay.executor import Finished
from ..work.device import FittingSize
from ..work.threads import BoundedPool

BATCH = 8
"""Latents decoded at once. More are not faster for images of 512 pixels or above, and take memory."""

PATIENCE = 4
"""Largest number of calls that a latent waits for others. Counted in calls, not in time, so that all runs are the same.

The first latent does not wait, so that the first image is finished early."""

_MOST = 3
"""Batches being decoded (one) or waiting: a slow decoder slows the run down, but does not fill the memory."""


@dataclass(frozen=True)
class Decoded:
    """An image, and the prompt it belongs to."""

    index: int
    pil: PIL.Image.Image


class Decoder:
    """Decodes the latents that the executor finishes, in the same order. Use as a context manager.

    Parameters
    ----------
    adapter
        The model.
    batch_size
        Largest number of latents decoded at once; halved when they do not fit into the memory.
    threaded
        Decode in a thread, on a separate CUDA stream, while the denoiser runs. Default: on a GPU, unless the model is
        offloaded: then decoder and denoiser would move each other's weights away. On a CPU the thread would take cores
        from the denoiser.
    """

    def __init__(self, adapter: Adapter, batch_size: int = BATCH, *, threaded: bool | None = None) -> None:
        self._adapter = adapter
        device = adapter.device
        self._device = device if device.type == "cuda" else None
        self._size = FittingSize(batch_size, "images to decode", device)
        self._waiting: list[Finished] = []
        self._waited = 0
        self._patience = 0
        in_thread = threaded if threaded is not None else self._device is not None and not adapter.offloads
        self._pool = BoundedPool[list[Decoded]](1, _MOST, "hsd-decoder") if in_thread else None
        self._stream = torch.cuda.Stream(self._device) if in_thread and self._device is not None else None

    def put(self, finished: Iterable[Finished]) -> list[Decoded]:
        """Queue the latents that a call finished, if any; return the images that are ready."""
        self._waiting += finished
        self._waited = self._waited + 1 if self._waiting else 0
        images = self._ready(wait=False)
        while len(self._waiting) >= self._size.most or (self._waiting and self._waited > self._patience):
            images += self._send()
        return images

    def rest(self) -> list[Decoded]:
        """Decode what is left after the last call."""
        images = []
        while self._waiting:
            images += self._send()
        return images + self._ready(wait=True)

    def _send(self) -> list[Decoded]:
        most = self._size.most
        batch, self._waiting, self._waited = self._waiting[:most], self._waiting[most:], 0
        self._patience = PATIENCE
        if self._pool is None:
            return self._decode(batch)
        event = torch.cuda.current_stream(self._device).record_event() if self._device is not None else None
        self._pool.submit(self._decode_in_thread, batch, event)
        return []

    def _ready(self, wait: bool) -> list[Decoded]:
        results = () if self._pool is None else self._pool.results(wait=wait)
        return [image for images in results for image in images]

    def _decode_in_thread(self, batch: list[Finished], event: torch.cuda.Event | None) -> list[Decoded]:
        """Decode one batch in the thread, on its stream."""
        if self._stream is None:
            return self._decode(batch)
        assert event is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(event)
            for finished in batch:
                finished.latent.record_stream(self._stream)
            return self._decode(batch)

    def _decode(self, batch: list[Finished]) -> list[Decoded]:
        """Decode one batch, in several parts if it does not fit into the memory."""
        images: list[Decoded] = []
        while batch:
            states = [f.generator.get_state() for f in batch]
            pictures, n = self._size.run(partial(self._decode_first, batch, states), len(batch))
            images += [Decoded(f.index, picture) for f, picture in zip(batch[:n], pictures, strict=True)]
            batch = batch[n:]
        return images

    def _decode_first(self, batch: list[Finished], states: list[torch.Tensor], n: int) -> list[PIL.Image.Image]:
        """Images of the first ``n`` latents. Some models draw noise for it: generators begin at ``states``."""
        for f, state in zip(batch, states, strict=True):
            f.generator.set_state(state)
        return self._adapter.decode(torch.cat([f.latent for f in batch[:n]]), [f.generator for f in batch[:n]])

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread. After an error, waiting batches are dropped."""
        if self._pool is not None:
            self._pool.close(cancel=kind is not None)
