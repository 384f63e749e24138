"""What one call of a denoiser does, counted on tensors without storage: operations, launches, bytes.

``python benches/gpu/counting.py [MODEL...]`` counts again and writes ``counts.json``: a minute, no GPU, no weights.

* FLOPs: by torch's own formulas, a multiply-add as two; attention by its formula for any kernel.
* Launches: one for each operation of torch's dispatcher that is no view, and what is known to be more: three for a
  group norm, two for a convolution with a bias. Attention and RMS norm are one, as on a GPU. What cuDNN and cuBLAS
  start beside (conversions of layouts, sums of split matrices) is not seen.
* Bytes, ``most``: every operation reads its inputs and writes its output. ``least``: only matrix products,
  convolutions and attention do; all else is as if fused with them. Weights are read once.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

FILE = Path(__file__).with_name("counts.json")

_ATEN = torch.ops.aten
_ALLOCATE = {_ATEN.empty.memory_format, _ATEN.new_empty.default, _ATEN.empty_like.default, _ATEN.empty_strided.default}


@dataclass
class Count:
    """One call."""

    parameters: int
    weights: int
    """Bytes of all weights."""
    flops: int = 0
    convolutions: int = 0
    """FLOPs of the convolutions among them."""
    launches: int = 0
    least: int = 0
    """Bytes of activations, a lower bound."""
    most: int = 0
    """Bytes of activations, if every operation reads and writes its own."""

    def __sub__(self, other: Count) -> Count:
        """Of the call alone; the weights stay."""
        mine = [name for name in asdict(self) if name not in ("parameters", "weights")]
        return Count(
            self.parameters, self.weights, **{name: getattr(self, name) - getattr(other, name) for name in mine}
        )


def count(network: nn.Module, call: Callable[[], object]) -> Count:
    """What ``call`` does with ``network``; both on the device ``meta``."""
    tensors = [*network.parameters(), *network.buffers()]
    found = Count(
        sum(parameter.numel() for parameter in network.parameters()), sum(each.nbytes for each in network.parameters())
    )
    weights = {each.untyped_storage()._cdata for each in tensors}
    with torch.no_grad(), _Operations(found, weights), _Functions(found):
        call()
    return found


class _Operations(TorchDispatchMode):
    """Counts what reaches a device."""

    def __init__(self, found: Count, weights: set[int]) -> None:
        super().__init__()
        self._found, self._weights = found, weights

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function in _ALLOCATE or _is_view(function, (args, kwargs), output):
            return output
        found = self._found
        found.launches += _launches(function, args)
        inputs = [each for each in _tensors((args, kwargs)) if each.untyped_storage()._cdata not in self._weights]
        moved = sum(_bytes(each) for each in (*inputs, *_tensors(output)))
        found.most += moved
        if formula := flop_registry.get(function.overloadpacket):
            found.least += moved
            flops = formula(*args, **kwargs, out_val=output)
            found.flops += flops
            found.convolutions += flops if function is _ATEN.convolution.default else 0
        return output


class _Functions(TorchFunctionMode):
    """Counts functions that are one kernel on a GPU and several operations without one."""

    def __init__(self, found: Count) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function in (nn.functional.rms_norm, torch.rms_norm):
            output = torch.empty_like(args[0])
            self._one(_bytes(args[0]) + _bytes(output))
            return output
        return function(*args, **kwargs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        moved = sum(map(_bytes, (query, key, value, output)))
        self._one(moved)
        self._found.least += moved
        self._found.flops += sdpa_flop_count(query.shape, key.shape, value.shape)
        return output

    def _one(self, moved: int) -> None:
        self._found.launches += 1
        self._found.most += moved


def _is_view(function: Any, inputs: Any, output: Any) -> bool:
    """Whether all that comes out is what went in, unchanged. Schemas do not say so of every view."""
    stored = {each.untyped_storage()._cdata for each in _tensors(inputs)}
    return not function._schema.is_mutable and all(each.untyped_storage()._cdata in stored for each in _tensors(output))


def _launches(function: Any, args: Any) -> int:
    if function is _ATEN.native_group_norm.default:
        return 3  # moments, scale and shift, the result
    if function is _ATEN.convolution.default:
        return 1 + (args[2] is not None)  # cuDNN's bias is an addition
    return 1


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements that exist: those of an expanded dimension once."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in shape if stride != 0) * tensor.element_size()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _tensors(each)


def lanes_and_fixed(network: nn.Module, call: Callable[[int], Callable[[], object]]) -> dict[str, dict[str, int]]:
    """A call of one lane, and what each further lane adds to it."""
    one, two, three = (count(network, call(lanes)) for lanes in (1, 2, 3))
    assert (two - one).flops == (three - two).flops, "not proportional to the lanes"
    return {"one": asdict(one), "each": asdict(two - one)}


def read(file: Path = FILE) -> dict[str, dict[str, Count]]:
    """What was counted, by model: ``one``, a call of one lane, and ``each``, what a further lane adds."""
    rows = json.loads(file.read_text())
    return {name: {part: Count(**numbers) for part, numbers in row.items()} for name, row in rows.items()}


def main() -> None:
    """Count again."""
    from released import MODELS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    names = parser.parse_args().models or list(MODELS)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in names:
        known[name] = lanes_and_fixed(*MODELS[name].build())
        print(name, known[name], flush=True)
    FILE.write_text(json.dumps({name: known[name] for name in MODELS if name in known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
