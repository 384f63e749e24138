"""Weights in few bits, as torchao, bitsandbytes, GGUF and optimum-quanto keep them: what they hold beside their codes.

None of these packages is imported here. What is asked for is what their tensors and layers have.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .configuration import as_json

_DISTRIBUTIONS = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "optimum": "optimum-quanto"}
"""Packages that quantise, by the first part of their modules' names. GGUF is read by code of diffusers."""


def is_wrapper(tensor: Any) -> bool:
    """Whether a tensor only stands for the tensors that it consists of, as torchao's and optimum-quanto's do."""
    return hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter)


def held_by(weight: Any) -> dict[str, Any]:
    """Codes, scales and options of a quantised weight, by the names of its attributes; empty for a plain tensor."""
    return vars(weight) if is_wrapper(weight) or hasattr(weight, "quant_state") or hasattr(weight, "SCB") else {}


def scales_of(module: nn.Module, name: str) -> Iterator[Tensor]:
    """What bitsandbytes keeps beside the codes of a weight: a number for each row (8 bits) or block (4 bits).

    Parameters
    ----------
    module, name
        The layer and the name of its weight. In 8 bits the first call of a layer moves the numbers from the weight to
        the layer.
    """
    weight: Any = module._parameters.get(name)
    state = getattr(weight, "quant_state", None)
    while state is not None:  # the numbers may be quantised in turn
        for part in (getattr(state, "absmax", None), getattr(state, "offset", None)):
            if isinstance(part, Tensor):
                yield part
        state = getattr(state, "state2", None)
    if hasattr(weight, "SCB"):
        rows = weight.SCB if weight.SCB is not None else getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(rows, Tensor):
            yield rows


def form_of(module: nn.Module) -> dict[str, Any]:
    """How the weights of a layer are read and multiplied, as JSON; empty for weights that are plain tensors.

    Two networks may have the same codes and scales and compute something else: torchao rounds the inputs of a layer to
    8 bits or does not, bitsandbytes leaves inputs above ``threshold`` out of that.
    """
    found: dict[str, Any] = {}
    weights: dict[str, Any] = dict(module._parameters)
    for name, weight in weights.items():
        kind = type(weight)
        if weight is None or kind in (Tensor, nn.Parameter):
            continue
        found[name] = {"class": kind.__name__}
        if is_wrapper(weight):
            found[name]["is"] = as_json(weight.__tensor_flatten__()[1])
        state = getattr(weight, "quant_state", None)
        for owner, key in ((weight, "quant_type"), (state, "quant_type"), (state, "blocksize")):
            value = getattr(owner, key, None)
            if value is not None:
                found[name][key] = as_json(value)
    threshold = _threshold(module)
    return {**found, "threshold": threshold} if threshold else found


def mix_rows(network: nn.Module) -> bool:
    """Whether a row of a batch is rounded by what the other rows hold, so that its result depends on them.

    bitsandbytes in 8 bits keeps those columns of a layer's input apart that are large (``llm_int8_threshold``) in any
    row; torchao may round a layer's input by its largest value (``PerTensor``).
    """
    return any(_threshold(module) or any(map(_by_largest, module._parameters.values())) for module in network.modules())


def _threshold(module: nn.Module) -> float:
    """The ``llm_int8_threshold`` of a layer of bitsandbytes; 0 if it is off, and for all other layers."""
    state = getattr(module, "state", None)
    return float(getattr(state, "threshold", 0.0)) if hasattr(module._parameters.get("weight"), "SCB") else 0.0


def _by_largest(weight: Any) -> bool:
    options = getattr(weight, "act_quant_kwargs", None)
    return type(getattr(options, "granularity", None)).__name__ == "PerTensor"


def packages_of(networks: Iterable[nn.Module]) -> dict[str, str]:
    """The versions of the packages that hold weights of ``networks``, by name."""
    kinds = {type(weight) for network in networks for weight in network.parameters()}
    names = {_DISTRIBUTIONS.get(kind.__module__.split(".")[0]) for kind in kinds}
    return {name: importlib.metadata.version(name) for name in sorted(name for name in names if name)}
