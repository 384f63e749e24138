"""Tensors that are stored once and read often: in memory up to a limit, in a temporary file beyond it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import Error

_DISK_KEPT_FREE = 1 << 30
"""Bytes of the disk that are left free: on a full disk no image could be written."""


@dataclass(frozen=True)
class OnDisk:
    """Where a tensor lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


Chunk = Tensor | OnDisk


class Spool:
    """Holds tensors (T, ...) whose rows are read later: at most ``memory`` bytes of them in host memory.

    The system removes the file when it is closed, however the process ends. It is in ``TMPDIR``, or else in
    ``/var/tmp``: ``/tmp`` is kept in memory on many systems.

    Parameters
    ----------
    memory
        Bytes kept in host memory; further tensors go to the file.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.in_memory = 0
        self.on_disk = 0
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()  # several threads read, each at a different offset

    def put(self, tensor: Tensor) -> Chunk:
        """Store ``tensor`` (T, ...).

        Raises
        ------
        hsd.Error
            If it fits neither in memory nor on the disk.
        """
        tensor = tensor.detach().cpu().contiguous()
        if self.in_memory + tensor.nbytes <= self.memory:
            self.in_memory += tensor.nbytes
            return tensor
        self.check_space(tensor.nbytes)
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=_folder(), prefix="hsd-", buffering=0)  # noqa: SIM115 (see close)
        place = OnDisk(self.on_disk, tuple(tensor.shape), tensor.dtype)
        data = _as_bytes(tensor)
        with self._lock:
            self._file.seek(self.on_disk)
            while data:
                n = self._file.write(data)
                data, self.on_disk = data[n:], self.on_disk + n
        return place

    def read(self, chunk: Chunk, begin: int, end: int) -> Tensor:
        """Rows ``begin`` to ``end`` of what :meth:`put` returned, (end - begin, ...); not to be written to."""
        if isinstance(chunk, Tensor):
            return chunk[begin:end]
        assert self._file is not None
        shape = (end - begin, *chunk.shape[1:])
        out = torch.empty(shape, dtype=chunk.dtype)
        if not out.numel():
            return out
        row = out.nbytes // len(out)
        view = _as_bytes(out)
        with self._lock:
            self._file.seek(chunk.offset + begin * row)
            while view:
                n = self._file.readinto(view)  # type: ignore[attr-defined]
                if not n:
                    raise Error("the temporary file of encoded prompts is shorter than what was written to it")
                view = view[n:]
        return out

    def pick(self, chunk: Chunk, rows: list[int]) -> Tensor:
        """The given rows of a chunk, (n, ...)."""
        if isinstance(chunk, Tensor):
            return chunk[torch.tensor(rows)]
        return torch.cat([self.read(chunk, row, row + 1) for row in rows])

    def check_space(self, nbytes: int) -> None:
        """``hsd.Error`` unless ``nbytes`` more can be stored; the message gives the free space and what to do."""
        beyond = nbytes - max(0, self.memory - self.in_memory)
        folder = _folder()
        free = shutil.disk_usage(folder).free - _DISK_KEPT_FREE
        if beyond > free:
            raise Error(
                f"encoded prompts need {_gib(nbytes)} more, but {_gib(max(0, self.memory - self.in_memory))} of "
                f"conditioning_memory and {_gib(max(0, free))} in {folder} are left: raise conditioning_memory, set "
                "TMPDIR to a folder on a larger disk, or generate a shard of the plan at a time"
            )

    def close(self) -> None:
        """Close the file, which removes it. Nothing can be read after that."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()


def _folder() -> str:
    """The folder for large temporary files."""
    if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK):
        return "/var/tmp"
    return tempfile.gettempdir()


def _as_bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"
