"""What a CUDA graph forbids, operation by operation, and where in the code it happens."""

from __future__ import annotations

import functools
import os
import random
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

Frame = tuple[str, int]
"""File and line."""

_TORCH, _NUMPY, _PYTHON = (os.path.dirname(module.__file__ or "") + os.sep for module in (torch, np, os))
"""Folders of code that others call. Python's own may contain all other packages."""

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep

_READS_BACK = {
    "_local_scalar_dense": "reads a value back (.item(), .tolist(), bool() or int() of a tensor)",
    "nonzero": "has as many results as the data has nonzero values (nonzero)",
    "masked_select": "has as many results as a mask has true values (masked_select)",
    "repeat_interleave": "repeats as often as a tensor says (repeat_interleave without output_size)",
    "equal": "reads back whether two tensors are equal (torch.equal)",
    "_linalg_check_errors": "reads back whether a decomposition worked (torch.linalg; use the form with _ex)",
    "_nested_tensor_from_mask": "makes a nested tensor of a mask, which is read back",
    "embedding_renorm_": "reads back which embeddings to renormalize (max_norm)",
}
"""Operations whose results the host waits for, besides those that torch marks as such."""


_COPIES = ("_to_copy", "copy_", "copy")

_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


@dataclass(frozen=True)
class Finding:
    """Something that a CUDA graph forbids."""

    what: str
    """What the call does: "reads a value back"."""
    where: str
    """File, from its package on, and line: ``diffusers/models/embeddings.py:120``."""
    times: int = 1
    """How often in one call."""

    def __str__(self) -> str:
        return f"{self.where} {self.what}{f', {self.times} times' if self.times > 1 else ''}"


class Watch(TorchDispatchMode):
    """Looks at every operation before it runs.

    Operations on tensors of the host alone are computed, so that the host can read their values. They write only into
    tensors that were made in the meantime. All other tensors that have values are replaced by imitations.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self._made: dict[int, torch.UntypedStorage] = {}  # by address
        self._found: Counter[tuple[str, str]] = Counter()
        self._imitations: list[weakref.ref[Tensor]] = []
        self.running: Finding | None = None
        """The operation that runs, if a graph forbids it. Without values many such operations fail."""

    def forget(self) -> None:
        """Forget what was found."""
        self._found.clear()

    def has_survivors(self) -> bool:
        """Whether anything still keeps a tensor without values that an operation has made."""
        return any(reference() is not None for reference in self._imitations)

    def findings(self) -> list[Finding]:
        """In the order in which they were first seen."""
        return [Finding(what, where, times) for (what, where), times in self._found.items()]

    def note(self, what: str, where: str | None = None) -> Finding:
        """Record that the call does something, by default at the line that runs."""
        where = _place(_here()) if where is None else where
        self._found[what, where] += 1
        return Finding(what, where)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = _Call(_operation(func), args, kwargs or {})
        leaves, structure = tree_flatten((args, call.kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        drawn = _draws(call) if call.of.draws else None
        if drawn is not None:
            self.note(drawn)
        elif self._is_of_host(call, tensors):
            return self._compute(call, tensors)
        forbidden = _forbidden(call, tensors) if any(tensor.is_cuda for tensor in tensors) else None
        self.running = None if forbidden is None else self.note(forbidden)
        if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            leaves = [self._imitation(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(leaves, structure)
        out = func(*args, **(kwargs or {}))
        self.running = None
        self._imitations += [weakref.ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if isinstance(out, Tensor) and (copied := _copies(call, out)) is not None:
            self.note(copied)
        return out

    def _is_of_host(self, call: _Call, tensors: list[Tensor]) -> bool:
        """Whether an operation reads and makes tensors of the host only, and writes into none that was there before."""
        if any(isinstance(tensor, FakeTensor) or tensor.device.type != "cpu" for tensor in tensors):
            return False
        device = call.argument("device")
        if device is not None and torch.device(device).type != "cpu":
            return False
        written = tree_leaves([call.argument(name) for name in call.of.written])
        return all(_address(tensor) in self._made for tensor in written if isinstance(tensor, Tensor))

    def _compute(self, call: _Call, tensors: list[Tensor]) -> Any:
        with _disable_current_modes():
            out = call.of.func(*call.args, **call.kwargs)
        given = {_address(tensor) for tensor in tensors}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _address(tensor) not in given:
                self._made[_address(tensor)] = tensor.untyped_storage()
        return out

    def _imitation(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._mode.from_tensor(tensor)


@dataclass(frozen=True)
class _Operation:
    """What torch says of an operation."""

    func: Any
    name: str
    """Without the overload: ``index_put_``."""
    arguments: dict[str, tuple[int, Any]]
    """Place and default of each, by name."""
    written: tuple[str, ...]
    """The arguments that it writes into."""
    draws: bool
    """Whether it may draw random numbers."""
    depends_on_data: bool
    """Whether the host has to know values of its result, or the shape of the result."""


@functools.cache
def _operation(func: Any) -> _Operation:
    arguments = func._schema.arguments
    return _Operation(
        func,
        func._schema.name.removeprefix("aten::"),
        {argument.name: (i, argument.default_value) for i, argument in enumerate(arguments)},
        tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
        torch.Tag.nondeterministic_seeded in func.tags,
        torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags,
    )


@dataclass(frozen=True)
class _Call:
    """An operation and what it is called with."""

    of: _Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def argument(self, name: str) -> Any:
        """The value of an argument, its default included; None if the operation has no such argument."""
        if name not in self.of.arguments:
            return None
        place, default = self.of.arguments[name]
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


def _forbidden(call: _Call, tensors: list[Tensor]) -> str | None:
    """What is wrong with an operation that reads a tensor of the device."""
    name = call.of.name
    if name in _INDEXED:
        return _of_indices(call)
    if name == "repeat_interleave" and call.argument("output_size") is not None:
        return None
    if name in _READS_BACK:
        return _READS_BACK[name]
    if call.of.depends_on_data:
        return f"has a result whose shape depends on the data ({name})"
    # A single number of the host is an argument of the kernel, and a copy is looked at by itself.
    host = next((tensor for tensor in tensors if not tensor.is_cuda and tensor.ndim), None)
    if host is not None and name not in _COPIES:
        return f"uses a tensor of the host, {_described(host)}, together with tensors of the device ({name})"
    return None


def _copies(call: _Call, out: Tensor) -> str | None:
    """What is wrong with an operation that copies; None if it stays on one device."""
    if call.of.name in ("lift_fresh", "lift_fresh_copy") and out.is_cuda:
        return f"makes a tensor on the host and copies it to the device, {_described(out)}"
    if call.of.name not in _COPIES:
        return None
    source = call.args[0 if call.of.name == "_to_copy" else 1]
    if source.is_cuda == out.is_cuda:
        return None
    way = "from the device to the host" if source.is_cuda else "from the host to the device"
    return f"copies {way}, {_described(source)}"


def _of_indices(call: _Call) -> str | None:
    """What is wrong with ``args[0][args[1]]``, or with an assignment to it."""
    indices = [index for index in call.args[1] if index is not None]
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    is_put = "put" in call.of.name
    is_fill = is_put and len(indices) == 1 and call.args[2].numel() == 1 and not call.args[2].is_cuda
    if masks and not is_fill:  # a fill with one number is a masked_fill
        return "indexes with a boolean tensor, so that the size depends on the data"
    host = next((index for index in indices if not index.is_cuda), None)
    if host is not None:
        return f"indexes a tensor of the device with a tensor of the host, {_described(host)}, which is copied"
    return None


def _draws(call: _Call) -> str | None:
    """What is wrong with an operation that may draw random numbers; None if it draws none."""
    name = call.of.name
    switches = ("dropout_p", "dropout", "train", "training", *(("p",) if "dropout" in name else ()))
    if any(call.argument(switch) in (0, False) for switch in switches):
        return None
    source = "the global generator" if call.argument("generator") is None else "a generator of its own"
    return f"draws random numbers from {source} ({name})"


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def random_states() -> tuple[Any, ...]:
    """The states of the random generators of Python and numpy."""
    return random.getstate(), np.random.get_state()


def set_random_states(states: tuple[Any, ...]) -> None:
    """Set what :func:`random_states` gave."""
    random.setstate(states[0])
    np.random.set_state(states[1])


def same_states(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two states of the generators are equal."""
    return a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))


# ------------------------------------------------------------------------------- places


def place_of(error: BaseException) -> str:
    """Where an error comes from."""
    return _place(reversed(list(_frames_of(error.__traceback__))))


def _here() -> Iterator[Frame]:
    """The frames of the running code, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _frames_of(trace: TracebackType | None) -> Iterator[Frame]:
    """The frames of an error, innermost last."""
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _place(frames: Iterator[Frame]) -> str:
    """The innermost line of a network or an adapter, else that of HSD: of what the executor calls, not of torch."""
    ours = None
    for file, line in frames:
        of_python = file.startswith(_PYTHON) and "-packages" not in file
        if of_python or file == __file__ or file.startswith((_TORCH, _NUMPY, "<frozen")):
            continue
        if not file.startswith(_OURS):
            return place(file, line)
        ours = ours or place(file, line)
        if file.endswith(os.path.join("replay", "executor.py")):  # what is further out has called the executor
            break
    return ours or "?"


def place(file: str, line: int) -> str:
    """A file's path from its package on, and a line of it."""
    path = Path(file)
    top = path.parent
    while (top / "__init__.py").exists() and top != top.parent:
        top = top.parent
    return f"{path.relative_to(top).as_posix()}:{line}"
