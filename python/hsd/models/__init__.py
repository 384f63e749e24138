"""Pipelines that HSD can drive, one small file for each family; :func:`load` finds the right one."""

from __future__ import annotations

from ..work.quiet import quiet

with quiet():  # diffusers and transformers say much when they are imported
    from ..replay.denoiser import NEXT_TIMESTEP, STEP, Batch, Denoiser, Encoded, Prior
    from ..work.broadcast import per_row
    from .base import Adapter, Pictures
    from .check import BrokenAdapter, check
    from .guidance import Guidance, guide, scale_row
    from .guided import GuidedAdapter
    from .loading import load, variants_of
    from .parts import check_size, pad_tokens, pictures, vae_decode
    from .registry import MODELS, register, supported
    from .timesteps import number_of_steps
    from .truncation import Cut, cut_prompts

__all__ = [
    "MODELS",
    "NEXT_TIMESTEP",
    "STEP",
    "Adapter",
    "Batch",
    "BrokenAdapter",
    "Cut",
    "Denoiser",
    "Encoded",
    "Guidance",
    "GuidedAdapter",
    "Pictures",
    "Prior",
    "check",
    "check_size",
    "cut_prompts",
    "guide",
    "load",
    "number_of_steps",
    "pad_tokens",
    "per_row",
    "pictures",
    "register",
    "scale_row",
    "supported",
    "vae_decode",
    "variants_of",
]
