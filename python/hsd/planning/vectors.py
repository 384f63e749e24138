"""Vectors that prompts are clustered by: arrays of any kind, without a second copy of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..work.files import digest_of, read_own, write_atomically


class Vectors(NamedTuple):
    """(N, D) floats that the core reads in place."""

    array: NDArray[Any]
    """float16, float32 or float64; uint16 for the bits of bfloat16, which NumPy does not have."""
    bfloat16: bool = False

    def rows(self, index: Any) -> NDArray[np.float64]:
        """Some of the rows, in double precision."""
        return _single(self._replace(array=self.array[index])).astype(np.float64)


def as_vectors(values: Any, n: int | None, what: str) -> Vectors:
    """``values`` as (N, D) floats that the core can read; copied only if the core cannot read them in place."""
    bfloat16 = False
    if hasattr(values, "detach"):  # a torch tensor, on any device and in any float type
        import torch  # here, so that planning with NumPy arrays does not import it

        values = values.detach().cpu()
        bfloat16 = values.dtype == torch.bfloat16
        if bfloat16:
            values = values.view(torch.uint16)
        elif values.dtype.is_floating_point and values.dtype.itemsize < 2:
            values = values.half()
        values = values.numpy()
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} has shape {array.shape}: it has to be (N, D), one row per prompt")
    if n is not None and len(array) != n:
        raise ValueError(f"{what} has {len(array)} rows for {n} prompts: give one row per prompt")
    if array.shape[1] == 0:
        raise ValueError(f"{what} has shape {array.shape}: the rows are empty")
    if bfloat16:
        return Vectors(array, True)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{what} holds {array.dtype}: it has to be numbers")
    if np.issubdtype(array.dtype, np.integer):
        return Vectors(array.astype(np.float32))
    if array.dtype.itemsize > 8:
        return Vectors(array.astype(np.float64))
    native = array.dtype.newbyteorder("=")
    return Vectors(array if array.dtype == native and array.flags.aligned else array.astype(native))


VECTORS_FILE = "vectors.safetensors"
"""In a folder of images: the vectors that its plan was clustered by. Nothing depends on it: what is missing is encoded
again when prompts are added.
"""

_MOST = 4 << 30
"""Bytes of vectors that are kept beside the images."""


def write_vectors(path: Path, vectors: Vectors, fingerprint: str) -> None:
    """Write the vectors of the plan with this ``fingerprint`` to a safetensors file, unless they are very large."""
    array = np.ascontiguousarray(vectors.array)
    if array.nbytes > _MOST:
        return
    about = json.dumps({"plan": fingerprint, "bfloat16": vectors.bfloat16, "digest": digest_of(array.tobytes())})
    write_atomically(path, save({"vectors": array}, metadata={"hsd": about}))


def read_vectors(path: Path, fingerprint: str, n: int) -> Vectors | None:
    """The ``n`` vectors of the plan with this ``fingerprint``; None if the file does not have them, or is damaged."""
    try:
        data = read_own(path)
        if data is None:
            return None
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["hsd"])
        array = load(data)["vectors"]
        bfloat16 = about["bfloat16"] is True
        right = about["plan"] == fingerprint and array.ndim == 2 and len(array) == n
        right = right and about["digest"] == digest_of(array.tobytes())
        return as_vectors(array, n, "vectors")._replace(bfloat16=bfloat16) if right else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return None


def joined(old: Vectors, new: Vectors) -> Vectors:
    """The rows of both, in one dtype.

    Raises
    ------
    ValueError
        If the rows differ in length.
    """
    if old.array.shape[1] != new.array.shape[1]:
        raise ValueError(
            f"the new prompts have vectors of {new.array.shape[1]} numbers, and those of the plan have "
            f"{old.array.shape[1]}: give embeddings= of the same encoder"
        )
    if old.bfloat16 and new.bfloat16:
        return Vectors(np.concatenate([old.array, new.array]), True)
    rows = [_single(one) for one in (old, new)]
    return Vectors(np.concatenate(rows))


def _single(vectors: Vectors) -> NDArray[Any]:
    """The numbers, in a type that NumPy has."""
    return (vectors.array.astype(np.uint32) << 16).view(np.float32) if vectors.bfloat16 else vectors.array
