"""A tiny Stable Diffusion."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .parts import SD_BETAS, WIDTH, autoencoder, clip_encoder, clip_tokenizer, listen, quiet, seeded


def sd_ddim() -> DDIMScheduler:
    """Return a DDIM scheduler as Stable Diffusion configures it."""
    return DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


@cache
def _sd_unet() -> UNet2DConditionModel:
    model = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
        )
    )
    listen(model, ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out"), 4.0)
    return model


def stable_diffusion(scheduler: Any = None) -> StableDiffusionPipeline:
    """Return a tiny Stable Diffusion (64 x 64 pixels, a latent of 8 x 8); DDIM unless `scheduler` is given."""
    scheduler = sd_ddim() if scheduler is None else scheduler
    return quiet(
        StableDiffusionPipeline(
            unet=copy.deepcopy(_sd_unet()),
            scheduler=scheduler,
            vae=copy.deepcopy(autoencoder()),
            text_encoder=copy.deepcopy(clip_encoder()),
            tokenizer=clip_tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )
