"""Digests of all weights of a network: exact, cheap, and the same on the host and on a GPU.

Bytes are read as 64-bit integers and summed with fixed odd weights, modulo 2^64. Integer sums do not depend on the
order in which a device adds, so no weight has to be copied from a GPU.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .precision import own_tensors
from .quantised import is_wrapper, scales_of

_WORDS = 1 << 15
"""Words of 64 bits in a row: 256 KiB, so that a row and its products stay in a processor's cache."""

_ROWS_ON_DEVICE = 128
"""Rows that a GPU sums at once: 32 MiB."""

_MASK = (1 << 64) - 1

_THREADED = 1 << 28
"""Bytes from which the host sums in several threads."""


def digest(weights: Iterable[Tensor | None]) -> str | None:
    """Hex digest of the shapes, dtypes and values of weights, in their order; None if one of them is None.

    Names do not enter: they change with the versions of the libraries. The layout in memory and the device do not
    enter either.
    """
    tensors: list[Tensor] = []
    for weight in weights:
        if weight is None:
            return None
        tensors += _plain(weight)
    result = hashlib.sha256()
    for tensor, sums in zip(tensors, _all_sums(tensors), strict=True):
        result.update(f"{tuple(tensor.shape)} {tensor.dtype} {sums[0] & _MASK:x} {sums[1] & _MASK:x}\n".encode())
    return result.hexdigest()[:32]


def weights_of(
    network: nn.Module, wanted: Callable[[nn.Module, str], bool] = lambda module, name: True
) -> Iterator[Tensor | None]:
    """All parameters and stored buffers, module by module; tied ones each time, since libraries tie them differently.

    What bitsandbytes keeps beside a weight comes after it. Buffers that are not stored follow from the configuration.
    Weights that accelerate or diffusers has offloaded are read from where they are; None stands for one that cannot be
    found. While a run has a network in float32, its own weights are given.

    Parameters
    ----------
    network
        Any network.
    wanted
        Which weights, by the module that holds them and their name in it; all by default.
    """
    maps = _offloaded(network)
    on_disk, own = _groups_on_disk(network), own_tensors(network)
    for path, module in network.named_modules():
        buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, tensor in (*module._parameters.items(), *buffers.items()):
            if tensor is None or not wanted(module, name):
                continue
            where = f"{path}.{name}" if path else name
            yield _read(own.get(id(tensor), tensor), where, maps, on_disk)
            yield from scales_of(module, name)


def _read(tensor: Tensor, name: str, maps: dict[str, Any], on_disk: dict[int, tuple[str, str]]) -> Tensor | None:
    """``tensor`` itself, or its values from where they are offloaded to; None if that is not known."""
    if id(tensor) in on_disk:
        from safetensors import safe_open

        path, key = on_disk[id(tensor)]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except OSError:
            return None
    if not tensor.is_meta:
        return tensor
    for prefix, values in maps.items():
        if prefix and not name.startswith(f"{prefix}."):
            continue
        try:
            return values[name[len(prefix) + 1 :] if prefix else name]
        except (KeyError, OSError):
            continue
    return None


def _offloaded(network: nn.Module) -> dict[str, Any]:
    """Where accelerate keeps offloaded weights, by the name of the module whose hook says so; innermost first."""
    found = {}
    for path, module in network.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            values = getattr(part, "weights_map", None)
            if values is not None:
                found[path] = values
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _groups_on_disk(network: nn.Module) -> dict[int, tuple[str, str]]:
    """File and key of each tensor that diffusers' group offloading keeps on disk: in memory it has no values then."""
    found = {}
    for module in network.modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            group: Any = getattr(hook, "group", None)
            if getattr(group, "_is_offloaded_to_disk", False):
                for tensor, key in group.tensor_to_key.items():
                    found[id(tensor)] = (group.safetensors_file_path, key)
    return found


def _plain(tensor: Any) -> list[Tensor]:
    """The tensors that hold the values: a quantised weight has scales beside its codes."""
    if is_wrapper(tensor):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _plain(getattr(tensor, name))]
    if tensor.is_quantized:
        return [tensor.detach().int_repr()]
    return [tensor.detach().as_subclass(Tensor)]


def _all_sums(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """The sums of each tensor."""
    on_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    threads = min(8, os.cpu_count() or 1) if sum(tensor.nbytes for tensor in on_host) >= _THREADED else 1
    if threads == 1:
        sums = [_sums(tensor) for tensor in tensors]
    else:
        with ThreadPoolExecutor(threads) as pool:
            sums = list(pool.map(_sums, tensors))
    values = [0] * (2 * len(sums))
    for device in {pair.device for pair in sums}:  # one transfer from each device
        at = [i for i, pair in enumerate(sums) if pair.device == device]
        for i, (first, second) in zip(at, torch.stack([sums[i] for i in at]).tolist(), strict=True):
            values[2 * i], values[2 * i + 1] = first, second
    return list(zip(values[::2], values[1::2], strict=True))


@torch.no_grad()
def _sums(tensor: Tensor) -> Tensor:
    """(2,) int64: the words of a tensor, and their upper halves, each summed with weights by position.

    The upper halves have a sum of their own: in the first, changes of the highest bits (signs) can cancel out.
    """
    try:
        return _sums_of(_words(tensor))
    except torch.OutOfMemoryError:  # the device is full of weights
        return _sums_of(_words(tensor.cpu()))


def _sums_of(words: Tensor) -> Tensor:
    first, second = _weights(words.device)
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    at_once = 1 if words.device.type == "cpu" else _ROWS_ON_DEVICE
    rows = -(-len(words) // _WORDS)
    for row in range(0, rows, at_once):
        piece = words[row * _WORDS : (row + at_once) * _WORDS]
        if len(piece) % _WORDS:  # the end: rows that are full, then the last one
            full = len(piece) // _WORDS
            if full:
                total += _row_sums(piece[: full * _WORDS].view(full, _WORDS), first, second, row)
            rest = piece[full * _WORDS :]
            total += _row_sums(rest[None], first[: len(rest)], second[: len(rest)], row + full)
        else:
            total += _row_sums(piece.view(-1, _WORDS), first, second, row)
    return total


def _row_sums(rows: Tensor, first: Tensor, second: Tensor, start: int) -> Tensor:
    """(2,) the sums of rows (R, W) of which the first has the number ``start``."""
    if len(rows) == 1:
        factor = int(_odd(2, start, 1)[0])
        return torch.stack([(rows[0] * first).sum(), ((rows[0] >> 32) * second).sum()]) * factor
    factors = torch.from_numpy(_odd(2, start, len(rows))).to(rows.device)
    return torch.stack([((rows * first).sum(1) * factors).sum(), (((rows >> 32) * second).sum(1) * factors).sum()])


def _words(tensor: Tensor) -> Tensor:
    """(n,) int64: the bytes of a tensor in the order of its indices, filled up with zeros to a whole word."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)  # copies only layouts such as channels_last
    if flat.nbytes % 8:
        flat = nn.functional.pad(flat, (0, 8 - flat.nbytes % 8))
    elif flat.storage_offset() % 8:
        flat = flat.clone()
    return flat.view(torch.int64)


@cache
def _weights(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two odd weights for each position in a row: an odd one loses no change of a single word."""
    first, second = (torch.from_numpy(_odd(stream, 0, _WORDS)).to(device) for stream in (0, 1))
    return first, second


def _odd(stream: int, start: int, count: int) -> NDArray[np.int64]:
    """Odd numbers ``start``, ``start + 1``... of a stream that is the same everywhere (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(stream * 0xD1B54A32D192ED03 & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)
