"""Networks whose weights are float32 for a while, and then again exactly what they were."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


@dataclass
class _Upcast:
    """A network that is in float32 now."""

    dtype: Any
    """What the network said before, if it says anything."""
    kept: dict[str, Tensor]
    """The tensors in half precision, by name."""
    casting: list[tuple[Any, torch.dtype]]
    """The hooks of diffusers' layerwise casting, and the dtype in half precision that each computes in."""
    ready: list[tuple[torch.device, torch.cuda.Event]]
    """What follows the conversion on each CUDA device: other streams wait for it."""
    users: int = 0


_lock = threading.Lock()
_upcast: WeakKeyDictionary[nn.Module, _Upcast] = WeakKeyDictionary()


def in_half_precision(networks: Sequence[nn.Module]) -> bool:
    """Whether some weights are in half precision, so that a network may give more in float32."""
    return any(
        bool(_casting(network)) or any(tensor.dtype in HALF for _, tensor in _named(network)) for network in networks
    )


def own_dtype(network: nn.Module) -> Any:
    """The network's ``dtype``, the one from before if it is :func:`in_float32` now; None if it has none."""
    with _lock:
        state = _upcast.get(network)
    return getattr(network, "dtype", None) if state is None else state.dtype


def own_tensors(network: nn.Module) -> dict[int, Tensor]:
    """What is put back when the network is no longer :func:`in_float32`, by the ``id`` of parameter or buffer."""
    with _lock:
        state = _upcast.get(network)
        return {} if state is None else {id(t): state.kept[name] for name, t in _named(network) if name in state.kept}


@contextlib.contextmanager
def in_float32(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, weights in half precision are float32; the others keep their dtype.

    Weights that diffusers converts to half precision for each call (layerwise casting) are converted to float32.

    Nothing is rounded, and no memory that another stream of a GPU may still read is given back: the tensors in half
    precision are kept, and are the weights again when the last one has left that has entered, in whichever thread: two
    runs may decode with one network. The copies in float32 belong to the stream that is current when the first enters,
    and the current streams of the others wait for it. Work on other streams may use them if it waits for one of these
    streams first, and is done before the end.

    Networks whose weights hooks move meanwhile (offloading) are converted back instead, where their weights are then.
    """
    with contextlib.ExitStack() as stack:
        for network in networks:
            stack.enter_context(_in_float32(network))
        yield


@contextlib.contextmanager
def _in_float32(network: nn.Module) -> Iterator[None]:
    with _lock:
        state = _upcast.get(network)
        if state is None:
            _upcast[network] = state = _converted(network)
        state.users += 1
    try:
        for device, event in state.ready:
            torch.cuda.current_stream(device).wait_event(event)
        yield
    finally:
        with _lock:
            state.users -= 1
            if not state.users:
                del _upcast[network]
                _put_back(network, state.kept, state.casting)


def _converted(network: nn.Module) -> _Upcast:
    """Convert the weights; those of other networks that it shares with this one are converted with it."""
    dtype = getattr(network, "dtype", None)
    kept = {name: tensor.data for name, tensor in _named(network) if tensor.dtype in HALF}
    casting = _casting(network)
    try:
        for hook, _ in casting:
            hook.compute_dtype = torch.float32
        for name, tensor in _named(network):
            if name in kept:
                tensor.data = _float32(tensor.data)
        real = torch.cuda.is_available()  # tensors may only claim to be on a GPU, see models/capture.py
        devices = {tensor.device for tensor in kept.values() if tensor.is_cuda and real}
        ready = [(device, torch.cuda.current_stream(device).record_event()) for device in devices]
    except BaseException:
        _put_back(network, kept, casting)
        raise
    return _Upcast(dtype, kept, casting, ready)


def _float32(values: Tensor) -> Tensor:
    """The same in float32; quantised weights of optimum-quanto, which cannot say another dtype, stay as they are."""
    try:
        return values.float()
    except ValueError:
        return values


def _casting(network: nn.Module) -> list[tuple[Any, torch.dtype]]:
    """The hooks that convert weights to half precision for each call, and what they convert to."""
    registries = [getattr(module, "_diffusers_hook", None) for module in network.modules()]
    hooks = [hook for registry in registries for hook in getattr(registry, "hooks", {}).values()]
    return [(hook, hook.compute_dtype) for hook in hooks if getattr(hook, "compute_dtype", None) in HALF]


def _put_back(network: nn.Module, kept: dict[str, Tensor], casting: list[tuple[Any, torch.dtype]]) -> None:
    for hook, dtype in casting:
        hook.compute_dtype = dtype
    for name, tensor in _named(network):  # found again: hooks replace the parameters too
        if name in kept:
            same_place = tensor.device == kept[name].device
            tensor.data = kept[name] if same_place else tensor.data.to(kept[name].dtype)


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())
