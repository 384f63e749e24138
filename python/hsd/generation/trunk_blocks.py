"""Blocks: files that hold some trunks each, and are read with the checks that a file from anywhere needs.

A block is a safetensors file. The rows of ``state`` (n, S, *latent) float32, ``generator`` (n, G) uint8 and, where the
scheduler tells, ``predicted`` (n, *latent) float32 are its trunks; ``given.<name>.<row>``, float32, is what one of them
was given. Its metadata has one entry ``hsd``, in JSON: the ``format``, and by row ``keys``, ``digests`` and the names
in ``given``.

One trunk is read without the others, and by reading: safetensors' own reader maps the file, and then a bad sector, or
a file that is cut at this moment, ends the process and is no error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..replay.trunks import Trunk
from ..work import files
from ..work.reading import open_file, parse_json

FORMAT = 1

KEY = re.compile(r"[0-9a-f]{64}")
"""What a trunk is known by: a SHA-256 in hex."""

_MOST_HEADER = 1 << 22
"""Bytes of a header, the largest that is read: that of a block of 64 trunks has some ten thousand."""

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
"""By safetensors' name."""


def encoded(rows: Sequence[tuple[str, Trunk]]) -> bytes:
    """The bytes of a block. Its trunks have equal shapes, but for what they were given.

    Raises
    ------
    ValueError
        If its header would be larger than what is read.
    """
    from safetensors.numpy import save

    keys, trunks = [key for key, _ in rows], [trunk for _, trunk in rows]
    arrays = {
        "state": np.stack([trunk.state.numpy() for trunk in trunks]),
        "generator": np.stack([trunk.generator.numpy() for trunk in trunks]),
    }
    if trunks[0].predicted is not None:
        arrays["predicted"] = np.stack([trunk.predicted.numpy() for trunk in trunks if trunk.predicted is not None])
    for row, trunk in enumerate(trunks):
        arrays |= {_given(name, row): tensor.numpy() for name, tensor in trunk.given.items()}
    known = {
        "format": FORMAT,
        "keys": keys,
        "digests": [digest(key, trunk) for key, trunk in rows],
        "given": [sorted(trunk.given) for trunk in trunks],
    }
    data: bytes = save(arrays, {"hsd": json.dumps(known)})
    if (size := int.from_bytes(data[:8], "little")) > _MOST_HEADER:
        raise ValueError(f"the header has {size:,} bytes, and at most {_MOST_HEADER:,} are read")
    return data


def most_bytes(trunk: Trunk) -> int:
    """An upper bound of the bytes that a trunk takes in a block, its part of the header included."""
    # By row: key and digest, and of each tensor that was given its name twice, once of them in JSON within JSON, its
    # dtype, shape and place.
    header = 160
    for name, value in trunk.given.items():
        header += 128 + len(json.dumps(json.dumps(name))) + len(json.dumps(name)) + 16 * value.ndim
    return trunk.nbytes + header


HEADER_BYTES = 1024
"""An upper bound of the bytes of a header that belong to no trunk."""


def shapes(trunk: Trunk) -> tuple[Any, ...]:
    """What is equal for all trunks of a block."""
    return trunk.state.shape, trunk.generator.shape, None if trunk.predicted is None else trunk.predicted.shape


def check_shapes(trunk: Trunk) -> None:
    """``ValueError`` unless its tensors have shapes that belong together."""
    state, predicted = trunk.state.shape, trunk.predicted
    if len(state) < 2 or trunk.generator.ndim != 1 or (predicted is not None and predicted.shape != state[1:]):
        raise ValueError("its tensors do not have the shapes of a trunk")


def digest(key: str, trunk: Trunk) -> str:
    """SHA-256, in hex, over the key and all that a trunk holds: names, dtypes, shapes and bytes.

    The key is among it. Else one that is damaged could name the state of another cluster.
    """
    found = hashlib.sha256(key.encode())
    parts = {"state": trunk.state, "generator": trunk.generator}
    if trunk.predicted is not None:
        parts["predicted"] = trunk.predicted
    parts |= {f"given.{name}": trunk.given[name] for name in sorted(trunk.given)}
    for name, tensor in parts.items():
        values = tensor.numpy()
        found.update(json.dumps([name, values.dtype.name, values.shape]).encode() + b"\n")  # so no two texts are equal
        found.update(values.tobytes())
    return found.hexdigest()


def read_keys(path: Path) -> list[str]:
    """The keys of the trunks that a block holds. What is no key is passed over.

    Raises
    ------
    OSError
        If it cannot be read, or is a link or not a file.
    ValueError
        If it is no block.
    """
    with _opened(path) as file:
        return [key for key in _Header.read(file).keys if KEY.fullmatch(key)]


def read_trunk(path: Path, key: str) -> Trunk:
    """One trunk of a block, compared with its digest. The others are not read.

    Raises
    ------
    OSError
        If the block cannot be read, or is a link or not a file.
    ValueError
        If it is no block, does not hold the trunk, or holds other bytes of it than were written.
    """
    with _opened(path) as file:
        header = _Header.read(file)
        if key not in header.keys:
            raise ValueError("it does not hold this trunk any more")
        row = header.keys.index(key)
        state = header.row(file, "state", row, "F32")
        generator = header.row(file, "generator", row, "U8")
        predicted = header.row(file, "predicted", row, "F32") if "predicted" in header.tensors else None
        given = {name: header.tensor(file, _given(name, row), "F32") for name in header.given[row]}
    trunk = Trunk(state, generator, given, predicted)
    check_shapes(trunk)
    if digest(key, trunk) != header.digests[row]:
        raise ValueError("a trunk has other bytes than were written")
    return trunk


def _given(name: str, row: int) -> str:
    return f"given.{name}.{row}"


def _opened(path: Path) -> BinaryIO:
    if files.regular(path) is None:  # where the system has no flag for links
        raise OSError("it is gone, or not a file any more")
    return open_file(path, follow=False)


@dataclass(frozen=True)
class _Header:
    """The header of a block whose values have the right types; its tensors lie within the file."""

    keys: list[str]
    digests: list[str]
    given: list[list[str]]
    tensors: dict[str, tuple[str, list[int], int]]
    """By name: dtype, shape and place in the file."""

    @classmethod
    def read(cls, file: BinaryIO) -> _Header:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(_exactly(file, 8), "little")
        if length > min(size - 8, _MOST_HEADER):
            raise ValueError(f"its header would have {length:,} bytes")
        entries = _an_object(parse_json(bytes(_exactly(file, length))))
        text = _an_object(entries.pop("__metadata__", None)).get("hsd")
        known = _an_object(parse_json(text) if isinstance(text, str) else None)
        if type(known.get("format")) is not int or known["format"] != FORMAT:
            raise ValueError(f"its format is {known.get('format')!r}, and this version of HSD reads {FORMAT}")
        keys, digests, given = _texts(known.get("keys")), _texts(known.get("digests")), known.get("given")
        if not isinstance(given, list) or not len(keys) == len(digests) == len(given):
            raise ValueError("its keys, digests and names are not equally many")
        begin = 8 + length
        tensors = {name: _place(_an_object(entry), begin, size) for name, entry in entries.items()}
        return cls(keys, digests, [_texts(names) for names in given], tensors)

    def tensor(self, file: BinaryIO, name: str, dtype: str) -> Tensor:
        found, shape, place = self._of(name, dtype)
        return _read(file, found, shape, place)

    def row(self, file: BinaryIO, name: str, row: int, dtype: str) -> Tensor:
        found, shape, place = self._of(name, dtype)
        if not shape or shape[0] != len(self.keys):
            raise ValueError(f"{name} has shape {shape}, but there are {len(self.keys)} trunks")
        return _read(file, found, shape[1:], place + row * math.prod(shape[1:]) * _DTYPES[found].itemsize)

    def _of(self, name: str, dtype: str) -> tuple[str, list[int], int]:
        if name not in self.tensors or self.tensors[name][0] != dtype:
            raise ValueError(f"{name} is missing, or not {dtype}")
        return self.tensors[name]


def _place(entry: dict[str, Any], begin: int, size: int) -> tuple[str, list[int], int]:
    """Dtype, shape and place in the file of a tensor of a header; the tensors begin at ``begin``."""
    dtype, shape, (first, end) = entry.get("dtype"), _integers(entry.get("shape")), _integers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES or math.prod(shape) * _DTYPES[dtype].itemsize != end - first:
        raise ValueError(f"a tensor of {dtype} and shape {shape} has {end - first:,} bytes")
    if begin + end > size:
        raise ValueError(f"it has {size:,} bytes, but its header tells of {begin + end:,} or more: it was cut")
    return dtype, shape, begin + first


def _read(file: BinaryIO, dtype: str, shape: list[int], place: int) -> Tensor:
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    file.seek(place)
    # Not torch.frombuffer, which takes no buffer that is empty.
    return torch.from_numpy(np.ndarray(tuple(shape), _DTYPES[dtype], _exactly(file, size)))


def _exactly(file: BinaryIO, size: int) -> bytearray:
    values = bytearray(size)
    if file.readinto(values) != size:  # type: ignore[attr-defined]
        raise ValueError("it was cut")
    return values


def _an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its header is not that of a block")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("its header has something else in the place of a list of texts")
    return value


def _integers(value: Any) -> list[int]:
    """Few integers of a header, none of which is negative or larger than any file."""
    if (
        not isinstance(value, list)
        or len(value) > 16
        or not all(type(one) is int and 0 <= one < 1 << 62 for one in value)
    ):
        raise ValueError("its header has something else in the place of a list of integers")
    return value
