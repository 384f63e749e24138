"""What the parts of a pipeline are set to, as JSON: configurations, tokenizers, and what was changed in a network."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

_LISTED = 256
"""Longest array that is written out; of longer ones a digest is."""

_DEPTH = 8
"""How deep the fields of unknown objects are followed."""

_BOOKKEEPING = frozenset(
    {
        "architectures",
        "attn_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "feature_extractor_type",
        "id2label",
        "image_processor_type",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "processor_class",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Entries of configurations that no image depends on. How weights are quantised the weights themselves say."""

_LIBRARIES = ("accelerate", "diffusers", "hsd", "peft", "torch", "transformers")
"""Packages whose hooks on a network only move, cast or record, or are part of its class."""

_TEXTS = ("a cat", "A CAT, 3 dogs (4k)", "\u00fcber  caf\u00e9 \u6771\u4eac \U0001f600", "<|x|> it's a low-poly #1", "")
"""Texts by whose tokens two tokenizers are told apart: case, digits, spaces, accents, other scripts, signs."""


def as_json(value: Any, depth: int = _DEPTH) -> Any:
    """``value`` as JSON holds it. Objects become their class and their fields, so that the result has no address."""
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has neither infinity nor nan
    if isinstance(value, enum.Enum):
        return as_json(value.value, depth)
    if isinstance(value, np.generic):
        return as_json(value.item(), depth)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, (torch.dtype, torch.device, PurePath)):
        return str(value).removeprefix("torch.")
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(k): as_json(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v, depth - 1) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((as_json(v, depth - 1) for v in value), key=repr)
    if isinstance(value, type) or callable(value):
        return _name(value)
    fields = {k: v for k, v in vars(value).items() if not k.startswith("_")} if hasattr(value, "__dict__") else {}
    return {"class": type(value).__qualname__, **as_json(fields, depth - 1)}


def _array(value: torch.Tensor | np.ndarray) -> Any:
    array = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    array = np.asarray(array.float() if isinstance(array, torch.Tensor) and array.is_floating_point() else array)
    if array.size <= _LISTED:
        return as_json(array.tolist())
    return {"shape": list(array.shape), "digest": _hash(array.tobytes())}


def _name(value: Any) -> str:
    """The name of a class or a function."""
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def config_of(part: Any) -> dict[str, Any]:
    """The configuration of a network, a scheduler or a processor, without private entries and versions."""
    config: Any = getattr(part, "config", None)
    if config is None and hasattr(part, "to_dict"):
        config = part
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        return {}
    return _without_bookkeeping(values)


def _without_bookkeeping(values: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for name, value in values.items():
        if str(name).startswith("_") or name in _BOOKKEEPING:
            continue
        out[str(name)] = _without_bookkeeping(value) if isinstance(value, Mapping) else as_json(value)
    return out


def scheduler_of(scheduler: Any) -> dict[str, Any]:
    """Class and configuration of a scheduler, and the shift that ``set_shift`` may have changed beside it."""
    found: dict[str, Any] = {"class": type(scheduler).__name__, "config": config_of(scheduler)}
    shift = getattr(scheduler, "_shift", None)
    if isinstance(shift, (int, float)):
        found["shift"] = as_json(shift)
    return found


def tokenizer_of(tokenizer: Any, template: Any = None) -> dict[str, Any]:
    """What a tokenizer makes of a text: its vocabulary, the tokens that were added, its settings, and a few examples.

    Not its class: the libraries have several for one tokenizer. ``template`` is the chat template of a processor, which
    counts instead of that of the tokenizer inside it: a folder has one file for both.
    """
    vocabulary = tokenizer.get_vocab()
    found = {
        "vocabulary": _hash(json.dumps(sorted(vocabulary.items())).encode()),
        "tokens": len(vocabulary),
        "added": sorted(str(token) for token in tokenizer.get_added_vocab()),
        "special": as_json({name: str(token) for name, token in tokenizer.special_tokens_map.items()}),
    }
    for name in ("model_max_length", "padding_side", "truncation_side"):
        found[name] = as_json(getattr(tokenizer, name, None))
    template = template or getattr(tokenizer, "chat_template", None)
    if template:
        found["chat_template"] = _hash(json.dumps(as_json(template), sort_keys=True).encode())
    found["examples"] = _hash(json.dumps([_tokens(tokenizer, text) for text in _TEXTS]).encode())
    return found


def _tokens(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return list(tokenizer(text).input_ids)
    except (TypeError, ValueError, NotImplementedError):  # one that takes no plain text
        return None


def changes_of(network: nn.Module) -> dict[str, Any]:
    """What was switched on in a network beside its weights and its configuration, each by name."""
    found: dict[str, Any] = {}
    freeu = [
        [getattr(module, name, None) for name in ("s1", "s2", "b1", "b2")]
        for module in network.modules()
        if getattr(module, "s1", None) is not None and getattr(module, "b1", None) is not None
    ]
    if freeu:
        found["FreeU"] = as_json(freeu[0])
    if getattr(network, "use_tiling", False):
        tiles = {k: v for k, v in vars(network).items() if k.startswith("tile_")}
        found["tiling"] = as_json(dict(sorted(tiles.items()))) or True
    scales = [processor.scale for processor in map(_processor, network.modules()) if hasattr(processor, "to_k_ip")]
    if scales:
        found["IP-Adapter scales"] = as_json(scales if any(each != scales[0] for each in scales) else scales[0])
    processors = sorted(set(_foreign_processors(network)))
    if processors:
        found["attention processors"] = processors
    hooks = sorted(set(_foreign_hooks(network)))
    if hooks:
        found["hooks"] = hooks
    if network.training and any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in network.modules()):
        found["dropout"] = True
    return found


def _foreign_processors(network: nn.Module) -> list[str]:
    """Attention processors that no library defines: those of the libraries compute the same, up to rounding."""
    found = []
    for module in network.modules():
        processor = _processor(module)
        if processor is not None and type(processor).__module__.split(".")[0] not in _LIBRARIES:
            found.append(_with_fields(processor))
    return found


def _processor(module: nn.Module) -> Any:
    return getattr(module, "processor", None)


def _with_fields(processor: Any) -> str:
    """Class and plain fields of a callable object."""
    own = getattr(processor, "__dict__", {})
    fields = {k: v for k, v in own.items() if isinstance(v, (bool, int, float, str))}
    return f"{type(processor).__qualname__}{json.dumps(fields, sort_keys=True)}"


def _foreign_hooks(network: nn.Module) -> list[str]:
    """Functions that the user has put before, after or in place of a module's own."""
    found = []
    for module in network.modules():
        functions = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        own = vars(module).get("forward")
        for function in functions if own is None else [*functions, own]:
            while isinstance(function, functools.partial):
                function = function.func
            home = getattr(function, "__module__", None) or type(function).__module__
            if home.split(".")[0] not in _LIBRARIES:
                found.append(_name(function))
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if type(hook).__module__ not in ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting"):
                found.append(type(hook).__qualname__)
    return found


def layers_of(
    network: nn.Module,
    *,
    skip: frozenset[int] = frozenset(),
    also: Callable[[nn.Module], dict[str, Any]] = lambda module: {},
) -> str:
    """Digest of the layers: their classes, the constants of torch's own, the floats that others hold, and ``also``.

    It finds what is changed in place and is in no configuration: the padding of convolutions, an epsilon, a scale. It
    changes with the versions of the libraries, so it is compared within one version only. Modules whose ``id`` is in
    ``skip`` are left out.
    """
    lines = []
    for module in network.modules():
        kind = type(module)
        if kind.__name__ == "OptimizedModule" or id(module) in skip:
            continue  # the former is what torch.compile puts around a network
        if kind.__module__.startswith("torch."):
            names = [name for name in getattr(kind, "__constants__", ()) if name != "inplace"]
            values = {name: as_json(getattr(module, name, None)) for name in names}
        else:
            values = {k: v for k, v in vars(module).items() if type(v) is float and not k.startswith("_")}
        lines.append(f"{kind.__qualname__} {json.dumps({**values, **also(module)}, sort_keys=True)}")
    return _hash("\n".join(lines).encode())
