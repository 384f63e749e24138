"""A tiny Stable unCLIP: Karlo's prior, and a Stable Diffusion that is conditioned on image embeddings too."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from .kandinsky22 import unclip_prior
from .parts import (
    SD_BETAS,
    WIDTH,
    autoencoder,
    clip_encoder,
    clip_tokenizer,
    listen,
    projected_clip_encoder,
    quiet,
    seeded,
)


def stable_unclip_ddim() -> DDIMScheduler:
    """Return a DDIM scheduler as Stable unCLIP configures it: its network predicts velocities."""
    return DDIMScheduler(
        **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )


@cache
def _unet() -> UNet2DConditionModel:
    model = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * WIDTH,  # the embedding, and how much noise it was given
            use_linear_projection=True,
            upcast_attention=True,
        )
    )
    listen(model, ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out"), 2.0)
    listen(model, ("class_embedding.linear",), 3.0)
    return model


@cache
def _image_normalizer() -> StableUnCLIPImageNormalizer:
    model = seeded(lambda: StableUnCLIPImageNormalizer(embedding_dim=WIDTH))
    generator = torch.Generator().manual_seed(1)
    # The defaults, a mean of 0 and a deviation of 1, would hide whether it is used.
    model.mean.copy_(torch.randn(1, WIDTH, generator=generator))
    model.std.copy_(torch.rand(1, WIDTH, generator=generator) + 0.5)
    return model


def stable_unclip(scheduler: Any = None) -> StableUnCLIPPipeline:
    """Return a tiny Stable unCLIP (64 x 64 pixels, a latent of 8 x 8); DDIM unless `scheduler` is given."""
    return quiet(
        StableUnCLIPPipeline(
            prior_tokenizer=clip_tokenizer(),
            prior_text_encoder=copy.deepcopy(projected_clip_encoder()),
            prior=copy.deepcopy(unclip_prior()),
            prior_scheduler=DDPMScheduler(
                variance_type="fixed_small_log",
                prediction_type="sample",
                clip_sample=True,
                clip_sample_range=5.0,
                beta_schedule="squaredcos_cap_v2",
            ),
            image_normalizer=copy.deepcopy(_image_normalizer()),
            image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=clip_tokenizer(),
            text_encoder=copy.deepcopy(clip_encoder()),
            unet=copy.deepcopy(_unet()),
            scheduler=stable_unclip_ddim() if scheduler is None else scheduler,
            vae=copy.deepcopy(autoencoder()),
        )
    )
