"""Pipelines that HSD can drive, one small file a family; :func:`load` finds the right one."""

from __future__ import annotations

from ..replay.denoiser import Batch, Denoiser, Encoded, Prior
from .base import Adapter
from .check import BrokenAdapter, check
from .loading import MODELS, load, variants_of
from .parts import check_size, guide, pad_tokens, per_row, scale_row
from .registry import register, supported

__all__ = [
    "MODELS",
    "Adapter",
    "Batch",
    "BrokenAdapter",
    "Denoiser",
    "Encoded",
    "Prior",
    "check",
    "check_size",
    "guide",
    "load",
    "pad_tokens",
    "per_row",
    "register",
    "scale_row",
    "supported",
    "variants_of",
]
