"""A tiny Stable Diffusion XL."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from .parts import (
    BIG_WIDTH,
    SD_BETAS,
    WIDTH,
    autoencoder,
    big_clip_encoder,
    clip_encoder,
    clip_tokenizer,
    listen,
    quiet,
    seeded,
)

TIME_IDS = 6  # original, crop and target size, two numbers each
TIME_ID_WIDTH = 8


def sdxl_euler() -> EulerDiscreteScheduler:
    """Return a Euler scheduler as Stable Diffusion XL configures it."""
    return EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading")


@cache
def _sdxl_unet() -> UNet2DConditionModel:
    model = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=WIDTH + BIG_WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_ID_WIDTH,
            projection_class_embeddings_input_dim=BIG_WIDTH + TIME_IDS * TIME_ID_WIDTH,
        )
    )
    listen(model, ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out"), 4.0)
    # The time, the pooled embedding and the sizes are one sum: each is scaled until none dominates.
    listen(model, ("time_embedding.linear_2.weight",), 12.0)
    listen(model, ("add_embedding",), 3.0)
    # The sinusoids of the sizes are an order of magnitude smaller than the pooled embedding before them.
    model.add_embedding.linear_1.weight[:, BIG_WIDTH:] *= 8.0
    return model


def sdxl(scheduler: Any = None) -> StableDiffusionXLPipeline:
    """Return a tiny Stable Diffusion XL (64 x 64 pixels, a latent of 8 x 8); Euler unless `scheduler` is given."""
    scheduler = sdxl_euler() if scheduler is None else scheduler
    return quiet(
        StableDiffusionXLPipeline(
            unet=copy.deepcopy(_sdxl_unet()),
            scheduler=scheduler,
            vae=copy.deepcopy(autoencoder(scaling_factor=0.13025)),
            text_encoder=copy.deepcopy(clip_encoder()),
            text_encoder_2=copy.deepcopy(big_clip_encoder()),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            add_watermarker=False,
        )
    )
