"""The model with the switches of a setting, for a while."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import Notice
from ..models.base import Adapter
from ..models.restoring import restored
from ..replay.graphs import Compiled
from .changes import fuse_qkv, quantize
from .report import Setting


@contextlib.contextmanager
def applied(adapter: Adapter, setting: Setting) -> Iterator[None]:
    """Inside, the networks have the layout and the changes of ``setting``; they are undone at the end."""
    modules = adapter.modules()
    to_lay_out = [module for module in modules if setting.channels_last and can_be_laid_out(module)]
    try:
        for module in to_lay_out:
            module.to(memory_format=torch.channels_last)
        # Not by unfuse_qkv_projections: it leaves the fused weights and their mark, so that nothing is fused next time.
        with restored(modules) if setting.changes else contextlib.nullcontext():
            if setting.fuse_qkv:
                fuse_qkv(modules)
            if setting.quantize is not None:
                quantize(modules, setting.quantize)
            yield
    finally:
        for module in to_lay_out:
            module.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def compiled(adapter: Adapter, setting: Setting, lanes: int) -> Iterator[None]:
    """Inside, the networks run compiled if ``setting`` says so, for calls of ``lanes``."""
    if not setting.compile:
        yield
        return
    networks = Compiled(adapter.modules(), lanes)
    with networks.for_lanes(networks.size):
        yield


def can_be_laid_out(module: nn.Module) -> bool:
    """Whether it has weights of convolutions that are not in channels-last layout."""
    kernels = [p for p in module.parameters() if p.ndim == 4]
    return any(not p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@contextlib.contextmanager
def uncaptured() -> Iterator[list[str]]:
    """Collects what is said of calls that could not be captured as CUDA graphs; other warnings are given on."""
    reasons: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield reasons
    for warning in caught:
        if issubclass(warning.category, Notice) and "captured" in str(warning.message):
            reasons.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
