"""One change of the networks: compared with the unchanged ones first, timed if it gives the same up to a tolerance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from ..models.base import Adapter
from ..tuning.curve import Curve
from ..work.faults import first_line
from .changes import EIGHT_BITS, how_to, rounding, weight_bytes
from .parity import OneCall
from .report import Setting, Tried
from .settings import applied, uncaptured


def with_change(best: Setting, change: Setting, compiles: bool) -> Setting:
    """The best setting with a change of the networks.

    torchao is made to be compiled: by itself it starts several kernels for each layer. And without the compiler
    ``int8-dynamic`` looks at values of its inputs (``safe_int_mm`` of torchao 0.18), which no CUDA graph can do.
    """
    if change.quantize is None:
        return dataclasses.replace(best, fuse_qkv=True)
    graphs = best.cuda_graphs and (compiles or change.quantize != "int8-dynamic")
    return dataclasses.replace(best, cuda_graphs=graphs, compile=compiles, quantize=change.quantize)


def try_change(
    adapter: Adapter,
    setting: Setting,
    change: Setting,
    one_call: OneCall,
    batch_size: int,
    timed: Callable[[], Curve],
) -> Tried:
    """Whether one call gives the same, then the time of calls. The model is left as it was.

    Parameters
    ----------
    adapter
        The model.
    setting, change
        What is on, and which part of it is the change.
    one_call
        A call of the unchanged networks.
    batch_size
        Lanes of the calls that are timed.
    timed
        Times such calls, with the networks as they then are.
    """
    modules, kind = adapter.modules(), change.quantize
    tolerance = rounding(adapter.dtype) if kind is None else EIGHT_BITS
    result = Tried(setting=setting.name, how=how_to(adapter, kind), tolerance=tolerance)
    before = weight_bytes(modules)
    try:
        with applied(adapter, setting):
            result = dataclasses.replace(result, weight_bytes=weight_bytes(modules), weight_bytes_before=before)
            difference = one_call.difference()  # not compiled, which would take minutes before it fails
            if not math.isfinite(difference):
                return dataclasses.replace(result, failed="the output is not finite")
            result = dataclasses.replace(result, difference=difference)
            if difference > tolerance:
                return dataclasses.replace(result, failed="it changes the output too much")
            with uncaptured() as reasons:
                curve = timed()
    except Exception as error:  # a kernel that this device does not have, for example
        return dataclasses.replace(result, failed=first_line(error))
    finally:
        if adapter.device.type == "cuda":
            torch.cuda.empty_cache()  # the weights of the change are gone
    if reasons:
        eager = dataclasses.replace(setting, cuda_graphs=False)
        result = dataclasses.replace(result, setting=eager.name, not_captured=reasons[0])
    return dataclasses.replace(
        result,
        seconds_per_lane=curve.seconds(batch_size) / batch_size,
        bytes_per_call=None if curve.bytes_per_call is None else curve.memory(batch_size),
    )
