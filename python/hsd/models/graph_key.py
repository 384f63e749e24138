"""What a captured call of an adapter depends on: while it is equal, a replay does what the Python code would do now.

A replay reads the weights from where they were and runs the kernels that were chosen when it was captured. So the key
has the address of each weight, not its values: what is changed in place is seen by a replay. It also has whatever may
lead the code of a network to other kernels. What it cannot look into counts by identity, so in doubt a key is another,
and calls are captured again. What a hook reads from the variables of its module, it does not see. It reads nothing from
the device; a thousand modules take about 0.05 s, once in a run.
"""

from __future__ import annotations

import enum
import functools
import os
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from ..replay.denoiser import Denoiser
from .quantised import held_by
from .restoring import caches_cleared
from .state import AFTER_DENOISER, parts_of

_DEPTH = 6
"""How deep lists, dicts and objects are followed."""

_NOT_IN_CALLS = frozenset({"pipe", "name", "default_tau", "calibration", "_running_dtype", "_kept_graphs", "_moments"})
"""Attributes of an adapter that no call depends on, or that the key has already."""


def graph_key(
    denoiser: Denoiser, pipes: Iterable[Any], call_key: Hashable, lane_settings: frozenset[str]
) -> Hashable | None:
    """A key for :meth:`Adapter.graph_key`; None for an offloaded model, whose weights move with each call.

    Parameters
    ----------
    denoiser
        The adapter.
    pipes, call_key, lane_settings
        What it drives; its :meth:`call_key`, and the settings that are not in it since they reach a call by its rows.
    """
    if denoiser.offloads:
        return None
    kind, pipes = type(denoiser), tuple(pipes)
    left_out = _NOT_IN_CALLS | lane_settings
    return (
        call_key,
        denoiser.dtype,
        denoiser.device,
        Same(kind),
        Same(getattr(kind, "denoise", None)),
        _plain({name: value for name, value in vars(denoiser).items() if name not in left_out}),
        tuple(_pipe(pipe) for pipe in pipes),
        tuple((name, _network(part)) for name, part in _networks(denoiser, pipes)),
        _switches(),
    )


class Same:
    """Equal to another one of the same object, as long as that lives: an address may be used again afterwards.

    The object is not kept alive, unless it cannot be referred to weakly.
    """

    __slots__ = ("_hash", "_object")

    def __init__(self, value: Any) -> None:
        self._hash = hash((type(value).__qualname__, id(value)))
        self._object: Callable[[], Any]
        try:
            self._object = weakref.ref(value)
        except TypeError:
            self._object = functools.partial(_itself, value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        mine = self._object()
        return self is other or (mine is not None and mine is other._object())


def _itself(value: Any) -> Any:
    return value


def _pipe(pipe: Any) -> Hashable:
    """What a pipeline has beside its parts: its configuration, and what was switched on."""
    state = {k: v for k, v in vars(pipe).items() if k not in pipe.components and k != "_progress_bar_config"}
    return Same(pipe), _plain(state)


def _networks(denoiser: Denoiser, pipes: tuple[Any, ...]) -> Iterator[tuple[str, nn.Module]]:
    """All networks that may take part in a call: those the adapter names, and whatever runs before the decoder."""
    denoisers = denoiser.modules()
    yield from ((f"denoiser {i}", module) for i, module in enumerate(denoisers))
    for name, part in parts_of(pipes):
        known = any(part is network for network in denoisers)
        if isinstance(part, nn.Module) and not known and not name.startswith(AFTER_DENOISER):
            yield name, part


def _network(network: nn.Module) -> Hashable:
    """All modules of a network: their classes, the code that they run, where their weights are, and what they hold."""
    classes = {type(module) for module in network.modules()}
    code = frozenset((Same(kind), _function(kind.forward), _function(kind.__call__)) for kind in classes)
    return code, tuple((name, _module(module)) for name, module in network.named_modules(remove_duplicate=False))


def _module(module: nn.Module) -> Hashable:
    return type(module).__qualname__, tuple(
        (name, _plain(value)) for name, value in vars(module).items() if name != "_modules" and not _is_empty(value)
    )


def _is_empty(value: Any) -> bool:
    """Whether a module is the same without this attribute: no hooks, as most modules have; diffusers' empty list."""
    return (isinstance(value, dict) and not value) or (isinstance(value, HookRegistry) and not value.hooks)


def _plain(value: Any, depth: int = _DEPTH) -> Hashable:
    """``value`` as something hashable: numbers and texts by value, tensors by place and form, the rest by identity."""
    if value is None or type(value) in (bool, str, int):
        return type(value), value  # 1 and True are equal
    if isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return type(value), repr(value)  # nan is not equal to itself
    if isinstance(value, Tensor):
        return _tensor(value)
    if depth and isinstance(value, Mapping):
        return tuple((_plain(k, depth - 1), _plain(v, depth - 1)) for k, v in value.items())
    if depth and isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(_plain(v, depth - 1) for v in value)
    if depth and isinstance(value, (FunctionType, MethodType)):
        return _with_state(value, min(depth - 1, 2))
    if depth and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type, enum.Enum)):
        return Same(value), _plain(vars(value), min(depth - 1, 2))  # an attention processor, a hook, a configuration
    return Same(value)


def _function(function: Any) -> Hashable:
    """A function; of a bound method its function and its object."""
    inner = getattr(function, "__func__", None)
    return Same(function) if inner is None else (Same(inner), Same(function.__self__))


def _with_state(function: FunctionType | MethodType, depth: int) -> Hashable:
    """A function, with the values of the variables that it closes over, or the attributes of the object it is bound to.

    A hook's strength, for example, which its owner may change: a replay has that of the capture.
    """
    if isinstance(function, MethodType):
        owner = function.__self__
        inside = None if isinstance(owner, (nn.Module, type)) else _plain(getattr(owner, "__dict__", None), depth)
        return _function(function), inside
    return Same(function), tuple(_plain(_inside(cell), depth) for cell in function.__closure__ or ())


def _inside(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return None


def _tensor(value: Tensor) -> Hashable:
    form: tuple[Hashable, ...] = (tuple(value.shape), value.dtype, value.device, value.requires_grad)
    inside = held_by(value)
    if inside:  # its own address is 0, or that of the codes alone
        form = (*form, Same(type(value)), _plain(inside, _DEPTH - 2))
    try:
        return (*form, value.stride(), value.data_ptr())
    except RuntimeError:  # a subclass without a storage of its own
        return (*form, Same(value))


def _switches() -> Hashable:
    """What torch and diffusers choose kernels by, for the whole process; and whether tensors in caches may be gone."""
    return tuple((name, _read(read)) for name, read in _SWITCHES.items())


def _read(read: Callable[[], Any]) -> str:
    """A switch that this version does not have is one more value: some are read by functions that came later."""
    try:
        return repr(read())
    except (AttributeError, ImportError, RuntimeError) as error:
        return type(error).__name__


def _attention_backend() -> Any:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry._active_backend


_SWITCHES: dict[str, Callable[[], Any]] = {
    "matmul precision": torch.get_float32_matmul_precision,
    "matmul TF32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "matmul fp32": lambda: torch.backends.cuda.matmul.fp32_precision,
    "matmul fp16": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    "matmul bf16": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    "matmul fp16 accumulation": lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    "blas": lambda: torch.backends.cuda.preferred_blas_library(),
    "linalg": lambda: torch.backends.cuda.preferred_linalg_library(),
    "cudnn": lambda: torch.backends.cudnn.enabled,
    "cudnn benchmark": lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit),
    "cudnn deterministic": lambda: torch.backends.cudnn.deterministic,
    "cudnn TF32": lambda: torch.backends.cudnn.allow_tf32,
    "convolution fp32": lambda: torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    "deterministic": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ),
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
    "cudnn attention": lambda: torch.backends.cuda.cudnn_sdp_enabled(),
    "attention order": lambda: torch._C._get_sdp_priority_order(),
    "attention function": lambda: id(torch.nn.functional.scaled_dot_product_attention),  # some packages replace it
    "math fp16": lambda: torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    "autocast": lambda: (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
    "inference mode": torch.is_inference_mode_enabled,  # outside, the buffers of a run inside cannot be written
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "attention backend": _attention_backend,
    "attention by environment": lambda: os.environ.get("DIFFUSERS_ATTN_BACKEND"),
    "caches cleared": caches_cleared,
}
