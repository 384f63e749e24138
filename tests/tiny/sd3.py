"""A tiny Stable Diffusion 3."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from .parts import (
    BIG_WIDTH,
    T5_WIDTH,
    WIDTH,
    big_clip_encoder,
    clip_tokenizer,
    flow_autoencoder,
    listen,
    projected_clip_encoder,
    quiet,
    seeded,
    t5_encoder,
    t5_tokenizer,
)


def sd3_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as Stable Diffusion 3 configures it."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@cache
def _sd3_transformer() -> SD3Transformer2DModel:
    model = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            caption_projection_dim=32,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=WIDTH + BIG_WIDTH,
            pos_embed_max_size=16,
        )
    )
    # Attention is sharp: most of the 333 tokens are padding, and would hide the few others in an even mean.
    listen(model, ("attn.to_q.weight", "add_k_proj.weight"), 6.0)
    listen(model, ("add_v_proj.weight", "attn.to_out"), 4.0)
    # The pooled embedding is an order of magnitude larger than the time's, and would hide the tokens.
    listen(model, ("text_embedder.linear_1.weight",), 0.25)
    return model


def sd3(scheduler: Any = None) -> StableDiffusion3Pipeline:
    """Return a tiny Stable Diffusion 3 (64 x 64 pixels, a latent of 8 x 8); flow matching unless `scheduler` is given.

    It has all three text encoders.
    """
    scheduler = sd3_flow() if scheduler is None else scheduler
    return quiet(
        StableDiffusion3Pipeline(
            transformer=copy.deepcopy(_sd3_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(flow_autoencoder(scaling_factor=1.5305, shift_factor=0.609)),
            text_encoder=copy.deepcopy(projected_clip_encoder()),
            text_encoder_2=copy.deepcopy(big_clip_encoder()),
            text_encoder_3=copy.deepcopy(t5_encoder()),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=t5_tokenizer(),
        )
    )
