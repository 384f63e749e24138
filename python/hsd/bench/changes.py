"""Changes of a denoiser's networks that ``hsd bench`` can try: fused projections, and numbers of 8 bits.

``hsd generate`` has no option for them. Whoever wants one makes it in the pipeline, before :func:`hsd.load`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import Error
from ..models.base import Adapter
from ..names import Quantization, check_name

_CONFIGS: dict[str, str] = {
    "int8": "Int8WeightOnlyConfig",
    "float8": "Float8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "float8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
"""The class of torchao for each kind. The dynamic ones multiply in 8 bits; the others only store weights so."""

_FLOAT8_PRODUCTS = (8, 9)
"""The first CUDA compute capability with products of float8 (Ada); Hopper has 9.0."""

EIGHT_BITS = 0.05
"""Largest relative difference of one call with numbers of 8 bits.

A weight in float8 is rounded by about 3 %, one in int8 by about 0.5 % of its row. In a trained network most of that
cancels out: one guided call of the bundled model differs by 0.6 % with int8, 2.0 % with float8 and 2.7 % with
int8-dynamic. A network that amplifies it to more than 5 % gives other images, which only the user can judge.
"""

_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUNDING_IN_HALF = 2e-2


def rounding(dtype: torch.dtype) -> float:
    """Largest relative difference of one call that computes the same in another order."""
    return _ROUNDING.get(dtype, _ROUNDING_IN_HALF)


def check_kinds(kinds: Iterable[str], adapter: Adapter) -> tuple[Quantization, ...]:
    """The kinds of numbers of 8 bits, each once; an error if torchao, this device or the model cannot have them.

    Raises
    ------
    ValueError
        For an unknown kind, and for float8 products on a device without them.
    hsd.Error
        If torchao is missing, or if the weights are moved to the device for each call.
    """
    names = dict.fromkeys(check_name("quantization", kind, Quantization) for kind in kinds)
    wanted = cast(tuple[Quantization, ...], tuple(names))
    if not wanted:
        return ()
    device = adapter.device
    if "float8-dynamic" in wanted:
        has = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if has is None or has < _FLOAT8_PRODUCTS:
            where = device.type if has is None else f"compute capability {has[0]}.{has[1]}"
            raise ValueError(
                f"float8-dynamic multiplies in float8, which needs a GPU of compute capability 8.9 or more (Ada, "
                f"Hopper), but this device is {where}: try float8, which only stores the weights in it"
            )
    if adapter.offloads:
        raise Error("weights that are moved to the device for each call cannot be quantized here: load without offload")
    for kind in wanted:
        _config(kind)
    return wanted


def _config(kind: Quantization) -> Any:
    """The configuration of torchao for a kind."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise Error(f'quantized networks need torchao ({error}): pip install "hsd-diffusion[quantize]"') from None
    # By default some of these set options of torch's compiler for the whole process, and leave them so.
    return getattr(quantization, _CONFIGS[kind])(set_inductor_config=False)


def quantize(networks: Sequence[nn.Module], kind: Quantization) -> None:
    """Replace the weights of all linear layers by numbers of 8 bits. Convolutions stay."""
    from torchao.quantization import quantize_

    before = {id(weight) for network in networks for weight in network.parameters()}
    for network in networks:
        quantize_(network, _config(kind))
    if before >= {id(weight) for network in networks for weight in network.parameters()}:
        raise Error(f"no layer of the denoiser can be {kind}")


def fuse_qkv(networks: Sequence[nn.Module]) -> None:
    """Compute query, key and value of each attention in one product, with weights that are copies."""
    for network in networks:
        if any(_is_fused(part) for part in network.modules()):
            raise Error(f"{type(network).__name__} is fused already")
        fuse: Any = getattr(network, "fuse_qkv_projections", None)
        if fuse is None:
            raise Error(f"{type(network).__name__} has no fuse_qkv_projections")
        fuse()
    if not any(_is_fused(part) for network in networks for part in network.modules()):
        raise Error("no attention of the denoiser can be fused")


def _is_fused(part: nn.Module) -> bool:
    return getattr(part, "fused_projections", False) is True


def weight_bytes(networks: Sequence[nn.Module]) -> int:
    """Bytes of all parameters that the networks hold, each once."""
    weights = {id(weight): weight for network in networks for weight in network.parameters()}
    return sum(part.nbytes for weight in weights.values() for part in _plain(weight))


def _plain(tensor: Any) -> Iterator[Tensor]:
    """The tensors that hold the values: a quantized weight says that it has the size of what it stands for."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor


def how_to(adapter: Adapter, kind: Quantization | None) -> str:
    """The Python lines that make the change in a pipeline; without ``kind``, those that fuse the projections."""
    names = [
        f"pipe.{name}"
        for pipe in adapter.pipes()
        for name, part in pipe.components.items()
        if any(part is network for network in adapter.modules())
    ]
    if kind is None:
        return "; ".join(f"{name}.fuse_qkv_projections()" for name in names)
    return "; ".join(f"torchao.quantize_({name}, torchao.quantization.{_CONFIGS[kind]}())" for name in names)
