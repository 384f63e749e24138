"""Finished latents to images, in batches; on a GPU at the same time as the denoiser runs.

What is not finite is no image: latents are checked before they are decoded, pixels before they become numbers of 8
bits. A latent that makes the decoder raise is found, and the others of its batch are decoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType

import numpy as np
import PIL.Image
import torch

from ..errors import Error
from ..models.base import Adapter
from ..models.precision import in_float32, in_half_precision
from ..replay.executor import Finished
from ..replay.feed import copied
from ..replay.kept import drop_everywhere
from ..work.device import FittingSize, finish, to_host
from ..work.faults import NOT_FINITE, described, one_by_one
from ..work.threads import BoundedPool
from .pixels import finite_rows, watching
from .results import Stage

BATCH = 8
"""Latents decoded at once, for images of up to 512 x 512 pixels. More are not faster, and take memory."""

_PIXELS = BATCH * 512 * 512
"""Pixels decoded at once, because the memory grows with them.

The widest tensors in the decoder of Stable Diffusion's and SDXL's VAE have 256 channels at the image's full size: 1 GiB
for 1024 x 1024 pixels in float32, and several of them are alive at once."""

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
    nsfw: bool | None = None
    """Whether a safety checker made it black."""
    upcast: bool = False
    """Whether it was decoded in float32, because it was not finite in half precision."""
    is_fork: bool = False
    """Whether it is the picture of a fork, and ``index`` the segment that forks."""


@dataclass(frozen=True)
class Undecoded:
    """A prompt whose latent gave no image."""

    index: int
    stage: Stage
    reason: str
    is_fork: bool = False


@dataclass
class _Queue:
    """Latents that wait to be decoded together."""

    size: FittingSize
    latents: list[Finished] = field(default_factory=list)

    def take(self) -> list[Finished]:
        batch, self.latents = self.latents[: self.size.most], self.latents[self.size.most :]
        return batch


@dataclass(frozen=True)
class _Picture:
    """What the decoder gave for one latent."""

    pil: PIL.Image.Image
    nsfw: bool | None
    finite: bool


def decoded_at_once(adapter: Adapter) -> int:
    """How many latents of a model are decoded at once: as many as the pixels of their images allow, 1 to ``BATCH``.

    ``BATCH`` if the model does not say how large its images are.
    """
    size = adapter.decoded_size()
    return BATCH if size is None else max(1, min(BATCH, _PIXELS // (size[0] * size[1])))


def _free_room(on_gpu: bool) -> bool:
    """Whether the same batch may fit now: on a GPU, without what models keep between runs, and with empty caches.

    When the run has ended, but for its last images, its own captured calls are among that.
    """
    drop_everywhere()
    return on_gpu


class _SomeNotFinite(ValueError):
    """Some image of a batch is not finite, and it cannot be told which one."""


class Decoder:
    """Decodes the latents that the executor finishes, in the same order. Use as a context manager.

    Parameters
    ----------
    adapter
        The model.
    batch_size
        Largest number of latents decoded at once, by default :func:`decoded_at_once`; halved when they do not fit into
        the memory.
    threaded
        Decode in a thread, on a separate CUDA stream, while the denoiser runs. Default: on a GPU, unless the model is
        offloaded: then decoder and denoiser would move each other's weights away. On a CPU the thread would take cores
        from the denoiser.
    """

    def __init__(self, adapter: Adapter, batch_size: int | None = None, *, threaded: bool | None = None) -> None:
        self._adapter = adapter
        self._networks = adapter.decoding_networks()
        device = adapter.device
        on_gpu = device.type == "cuda"
        self._device = device if on_gpu else None
        most = decoded_at_once(adapter) if batch_size is None else batch_size
        room = partial(_free_room, on_gpu)
        self._images = _Queue(FittingSize(most, "images to decode", device, make_room=room))
        # By themselves, so that images are decoded in the same batches with and without them.
        self._forks = _Queue(FittingSize(most, "pictures of forks to decode", device, make_room=room))
        self._waited = 0
        self._patience = 0
        self._threaded = threaded if threaded is not None else self._device is not None and not adapter.offloads
        self._pool: BoundedPool[list[Decoded | Undecoded]] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._opened = contextlib.ExitStack()

    def put(self, finished: Iterable[Finished]) -> list[Decoded | Undecoded]:
        """Queue the latents that a call finished, if any; return the images that are ready, and pictures of forks."""
        for one in finished:
            (self._forks if one.is_fork else self._images).latents.append(one)
        waiting = self._images
        self._waited = self._waited + 1 if waiting.latents else 0
        images = self._ready(wait=False)
        while len(waiting.latents) >= waiting.size.most or (waiting.latents and self._waited > self._patience):
            images += self._send(waiting)
            self._waited, self._patience = 0, PATIENCE
        while len(self._forks.latents) >= self._forks.size.most:
            images += self._send(self._forks)
        return images

    def rest(self) -> list[Decoded | Undecoded]:
        """Decode what is left after the last call."""
        images = []
        for queue in (self._images, self._forks):
            while queue.latents:
                images += self._send(queue)
        return images + self._ready(wait=True)

    def make_room(self) -> bool:
        """Wait for what is being decoded, because that takes memory; whether there was anything, or just has been.

        For the thread that calls :meth:`put`, when its own memory runs out.
        """
        if self._pool is None or not self._pool.wait():
            return False
        if self._stream is not None:
            finish(self._stream)
        return True

    def _send(self, queue: _Queue) -> list[Decoded | Undecoded]:
        batch = queue.take()
        if self._pool is None:
            return self._decode(batch)
        event = torch.cuda.current_stream(self._device).record_event() if self._device is not None else None
        self._pool.submit(self._decode_in_thread, batch, event)
        return []

    def _ready(self, wait: bool) -> list[Decoded | Undecoded]:
        results = () if self._pool is None else self._pool.results(wait=wait)
        return [image for images in results for image in images]

    def _decode_in_thread(self, batch: list[Finished], event: torch.cuda.Event | None) -> list[Decoded | Undecoded]:
        """Decode one batch in the thread, on its stream."""
        if self._stream is None:
            return self._decode(batch)
        assert event is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(event)
            for finished in batch:
                finished.latent.record_stream(self._stream)
            return self._decode(batch)

    def _decode(self, batch: list[Finished]) -> list[Decoded | Undecoded]:
        """Decode one batch, of images or of forks. Whatever happens to forks, the run goes on."""
        if not batch[0].is_fork:
            return self._decoded(batch)
        try:
            found = self._decoded(batch)
        except Exception as error:  # where it concerns the images too, one of them raises it again
            found = [Undecoded(fork.index, "decode", described(error)) for fork in batch]
        return [replace(one, is_fork=True) for one in found]

    @torch.no_grad()
    def _decoded(self, batch: list[Finished]) -> list[Decoded | Undecoded]:
        images: dict[int, Decoded | Undecoded] = {}  # by position
        finite = to_host(torch.isfinite(torch.cat([f.latent for f in batch])).flatten(1).all(dim=1)).tolist()
        for i, f in enumerate(batch):
            if not finite[i]:
                images[i] = Undecoded(f.index, "denoise", f"the latent has {NOT_FINITE}")
        # In their place zeros are decoded: a batch of another size may be rounded differently.
        given = [
            f if good else replace(f, latent=torch.zeros_like(f.latent)) for f, good in zip(batch, finite, strict=True)
        ]
        if any(finite):
            self._pictures_of(given, [i for i, good in enumerate(finite) if good], images)
        return [images[i] for i in range(len(batch))]

    def _pictures_of(self, batch: list[Finished], wanted: list[int], images: dict[int, Decoded | Undecoded]) -> None:
        """Decode a batch, and add the images at the positions ``wanted``."""
        pictures, errors = self._one_by_one(batch)
        for i in wanted:
            if i in errors:
                images[i] = Undecoded(batch[i].index, "decode", described(errors[i]))
            elif pictures[i].finite:
                images[i] = Decoded(batch[i].index, pictures[i].pil, pictures[i].nsfw)
        left = [i for i in wanted if i not in images]
        again: dict[int, _Picture] = {}
        errors_again: dict[int, Exception] = {}
        if left and (half := in_half_precision(self._networks)):
            with in_float32(self._networks):
                again, errors_again = self._one_by_one([batch[i] for i in left])
        for place, i in enumerate(left):
            picture = again.get(place)
            if picture is not None and picture.finite:
                images[i] = Decoded(batch[i].index, picture.pil, picture.nsfw, upcast=True)
            else:
                reason = f"the decoder gave {NOT_FINITE}" + (", in float32 too" if half else "")
                if place in errors_again:
                    reason = f"{reason}: {described(errors_again[place])}"
                images[i] = Undecoded(batch[i].index, "decode", reason)

    def _one_by_one(self, batch: list[Finished]) -> tuple[dict[int, _Picture], dict[int, Exception]]:
        """What each latent gave, and which ones made the decoder raise, by position."""
        done, errors = one_by_one(batch, self._pictures)
        return {i: one for at, some in done for i, one in zip(at, some, strict=True) if i not in errors}, errors

    def _pictures(self, batch: list[Finished]) -> list[_Picture]:
        """Decode latents, in several parts if they do not fit into the memory."""
        pictures: list[_Picture] = []
        size = (self._forks if batch[0].is_fork else self._images).size
        while batch:
            some, n = size.run(partial(self._decode_first, batch), len(batch))
            pictures += some
            batch = batch[n:]
        return pictures

    def _decode_first(self, batch: list[Finished], n: int) -> list[_Picture]:
        """Decode the first ``n`` latents. Some models draw noise for it, each time from the same state."""
        latents, generators = torch.cat([f.latent for f in batch[:n]]), [copied(f.generator) for f in batch[:n]]
        with watching(self._networks) as seen, np.errstate(invalid="ignore"):  # NaN becomes uint8; it is found below
            images = self._adapter.decode(latents, generators)
        if len(images) != n:
            raise Error(f"decode gave {len(images)} images for {n} latents")
        finite = finite_rows(seen, n)
        if finite is None:
            raise _SomeNotFinite(f"the decoder gave {NOT_FINITE}")
        flags = getattr(images, "nsfw", None) or [None] * n
        return [_Picture(*each) for each in zip(images, flags, finite, strict=True)]

    def __enter__(self) -> Decoder:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._adapter.decoding())
            if self._threaded:
                stack.push(self._end_thread)
                if self._device is not None:
                    self._stream = torch.cuda.Stream(self._device)
                    # The networks may have been prepared just now.
                    self._stream.wait_stream(torch.cuda.current_stream(self._device))
                self._pool = BoundedPool(1, _MOST, "hsd-decoder", device=self._device)
            self._opened = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread. After an error, waiting batches are dropped."""
        self._opened.__exit__(kind, value, trace)

    def _end_thread(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of the networks is read any more afterwards, neither by the thread nor by its stream."""
        try:
            if self._pool is not None:
                self._pool.close(cancel=kind is not None)
        except BaseException:  # Ctrl-C
            if self._pool is not None:
                self._pool.close(cancel=True)
            raise
        finally:
            if self._stream is not None:
                # After an error of the device this fails too. What ended the run is what has to be said.
                with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
                    finish(self._stream)
