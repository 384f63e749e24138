"""Arguments and outputs of networks: tensors, and lists, tuples and dictionaries of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .unfit import Unfit


def nested(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):  # diffusers' outputs are dictionaries too
        made = {name: nested(each, change) for name, each in value.items()}
        return type(value)(**made) if type(value) is not dict else made
    if isinstance(value, (list, tuple)):
        return type(value)(nested(each, change) for each in value)
    return value


_DOT = " of "


def flattened(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments, those of dictionaries among them by names of their own."""
    out: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and value:
            out |= {f"{key}{_DOT}{name}": each for key, each in value.items()}
        else:
            out[name] = value
    return out


def unflattened(arguments: dict[str, Any]) -> dict[str, Any]:
    """What :func:`flattened` was given."""
    out: dict[str, Any] = {}
    for name, value in arguments.items():
        key, dot, owner = name.partition(_DOT)
        if dot:
            out.setdefault(owner, {})[key] = value
        else:
            out[name] = value
    return out


def stacked(value: Any) -> Tensor:
    """(rows, ...) the tensor that ``value`` is, or the first that it holds; a list of tensors counts as rows."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict) and value:
        return stacked(next(iter(value.values())))
    if isinstance(value, tuple) and value:
        return stacked(value[0])
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, Tensor) and each.shape == value[0].shape for each in value)
    ):
        return torch.stack(value)
    raise Unfit(f"gives or takes {type(value).__name__} where a tensor was expected")


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, bit for bit."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of their dtype; bit for bit, if they are whole numbers."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    return error_of(a, b) <= tolerance_of(b.dtype)


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest difference that counts as rounding, as a share of the root mean square."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 0.1


def error_of(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors, as a share of the root mean square of ``b``."""
    size = float(b.double().pow(2).mean().sqrt())
    return float((a.double() - b.double()).abs().max()) / max(size, 1e-12)


def described(value: Any) -> str:
    """A short text for a message: the shape of a tensor, or the value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} {value!r:.60}"
