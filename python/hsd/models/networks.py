"""The state of each network of a pipeline: weights, LoRA layers, configuration, and what was switched on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from .configuration import as_json, changes_of, config_of, layers_of
from .precision import own_dtype
from .quantised import form_of
from .weights import digest, weights_of


def network_state(network: nn.Module) -> dict[str, Any]:
    """What the outputs of a network depend on, as JSON. Equal on every device, and in another process.

    ``weights`` is None where some are not in memory and cannot be found. ``lora`` has the active LoRA layers, each with
    its name, which does not count, its digest and its scales. ``layers`` belongs to the versions of the libraries.
    """
    network = getattr(network, "_orig_mod", network)  # torch.compile
    lora_layers = _lora_layers(network)
    added = frozenset(id(module) for layer in lora_layers for module in _added(layer))
    around = frozenset(id(layer) for layer in lora_layers)
    state: dict[str, Any] = {
        "class": type(network).__name__,
        "dtype": dtype_of(network),
        "weights": digest(weights_of(network, lambda module, _: id(module) not in added)),
        "config": config_of(network) or _of_several(network),
        "layers": layers_of(network, skip=added | around, also=form_of),
        **changes_of(network),
    }
    lora = _active_lora(network, lora_layers)
    if lora:
        state["lora"] = lora
    return state


def _of_several(network: Any) -> dict[str, Any]:
    """Configurations of the networks inside one that has none of its own: a ``MultiControlNetModel``."""
    return {"nets": [config_of(net) for net in network.nets]} if hasattr(network, "nets") else {}


def dtype_of(network: nn.Module) -> str | None:
    """The dtype that the network says it has, else that of its first floating weight."""
    dtype = own_dtype(network)
    if not isinstance(dtype, torch.dtype):
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _lora_layers(network: nn.Module) -> list[Any]:
    """The layers that PEFT has put around layers of the network, in their order."""
    return [module for module in network.modules() if hasattr(module, "adapter_layer_names")]


def _added(layer: Any) -> Iterator[nn.Module]:
    """The modules that PEFT has added around a layer: all but the layer itself."""
    for name, child in layer.named_children():
        if name != "base_layer":
            yield from child.modules()


def _active_lora(network: nn.Module, layers: list[Any]) -> list[dict[str, Any]]:
    """The adapters that take part in a call. What is merged is in the weights already, and what is off does nothing."""
    found: dict[str, list[tuple[int, Any]]] = {}  # by name, the number of each layer that has it, and its scale there
    for i, layer in enumerate(layers):
        if getattr(layer, "disable_adapters", False) or getattr(layer, "merged_adapters", None):
            continue
        for name in getattr(layer, "active_adapters", ()):
            if _own(layer, name):
                found.setdefault(name, []).append((i, getattr(layer, "scaling", {}).get(name)))
    states = []
    for name, places in found.items():
        keys = {key for i, _ in places for key in _own(layers[i], name)}
        states.append(
            {
                "name": name,
                "weights": digest(weights_of(network, partial(_is_one_of, keys))),
                "scales": sorted({scale for _, scale in places if isinstance(scale, (int, float))}),
                "places": as_json(places) if len(places) < len(layers) else len(places),
            }
        )
    return sorted(states, key=lambda state: repr((state["weights"], state["scales"])))


def _is_one_of(keys: set[tuple[int, str]], module: nn.Module, name: str) -> bool:
    return (id(module), name) in keys


def _own(layer: Any, adapter: str) -> set[tuple[int, str]]:
    """The weights of one adapter in one layer: the ``id`` of the module that holds each, and its name there."""
    keys = set()
    for name, child in layer.named_children():
        if name == "base_layer" or not hasattr(child, "keys") or adapter not in child.keys():  # noqa: SIM118
            continue
        part = child[adapter]
        if isinstance(part, nn.Module):
            keys |= {(id(module), own) for module in part.modules() for own in (*module._parameters, *module._buffers)}
        else:  # a dict of weights
            keys.add((id(child), adapter))
    return keys
