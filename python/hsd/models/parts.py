"""What several families have in common: guidance, tokens under a mask, sizes, shifts."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor


def check_size(name: str, value: int, multiple: int) -> None:
    """``ValueError`` unless a side in pixels is positive and a multiple of ``multiple``."""
    if value < multiple or value % multiple:
        raise ValueError(f"{name} is {value}: it has to be a positive multiple of {multiple} pixels for this model")


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """View values (B,) so that they broadcast against ``like`` (B, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def guide(output: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance on outputs (2B, ...), unconditional rows first, as diffusers orders them: (B, ...).

    ``scale`` (B,), one a row.
    """
    unconditional, conditional = output.chunk(2)
    return unconditional + per_row(scale, conditional) * (conditional - unconditional)


def scale_row(value: float) -> Tensor:
    """A guidance scale as a row (1,) float32 of the conditioning, so that lanes may differ in it."""
    return torch.tensor([value], dtype=torch.float32)


def pad_tokens(tokens: Tensor, length: int) -> Tensor:
    """Tokens (B, L, ...), or their mask (B, L), with zeros behind up to ``length``."""
    missing = length - tokens.shape[1]
    assert missing >= 0, (tokens.shape, length)
    return torch.nn.functional.pad(tokens, (0, 0) * (tokens.ndim - 2) + (0, missing)) if missing else tokens


def guided_tokens(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens (2B, L, D) and their mask (2B, L), the negative prompt's first, padded to the longer of both."""
    length = max(rows["negative_prompt_embeds"].shape[1], rows["prompt_embeds"].shape[1])
    tokens, mask = (
        torch.cat([pad_tokens(rows[f"{prefix}prompt_embeds{suffix}"], length) for prefix in ("negative_", "")])
        for suffix in ("", "_mask")
    )
    return tokens, mask


def unet_latent(pipe: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(C, h, w) of a latent that the UNet of ``pipe`` denoises, for an image of so many pixels."""
    assert height is not None
    assert width is not None
    return pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def packed_grid(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Rows and columns of an image's tokens, where 2 x 2 of the VAE's latent make one."""
    assert height is not None
    assert width is not None
    side = 2 * pipe.vae_scale_factor
    return height // side, width // side


def eta_for(scheduler: Any, eta: float) -> dict[str, float]:
    """``eta`` for the schedulers that take it, as the pipelines decide it."""
    return {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}


def shift_for(scheduler: Any, tokens: int, most: float = 1.15) -> float:
    """``mu``, by which schedulers with ``use_dynamic_shifting`` shift the noise levels of an image of so many tokens.

    ``most`` is the pipeline's own default for the shift of the longest sequence.
    """
    config = scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", most),
    )
