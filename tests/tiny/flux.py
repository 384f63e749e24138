"""A tiny FLUX, dev or schnell."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from .parts import (
    T5_WIDTH,
    WIDTH,
    clip_encoder,
    clip_tokenizer,
    flow_autoencoder,
    listen,
    quiet,
    seeded,
    t5_encoder,
    t5_tokenizer,
)


def flux_dev_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as FLUX dev configures it: its shift depends on the size of the image."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def flux_schnell_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as FLUX schnell configures it: no shift."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


@cache
def _flux_transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    model = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=1,
            num_attention_heads=4,
            attention_head_dim=8,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        )
    )
    # Attention is sharp: most of the 512 tokens are padding, and would hide the few others in an even mean.
    # Keys are normalised, so it is the norm's weight that counts, not the projection's before it.
    listen(model, ("norm_added_k.weight",), 8.0)
    listen(model, ("attn.norm_k.weight", "add_v_proj.weight", "attn.to_out"), 4.0)
    listen(model, ("text_embedder.linear_2.weight", "timestep_embedder.linear_2.weight"), 2.0)
    if guidance_embeds:
        listen(model, ("guidance_embedder.linear_2.weight",), 4.0)
    return model


def flux(scheduler: Any = None, guidance_embeds: bool = True) -> FluxPipeline:
    """Return a tiny FLUX, dev with `guidance_embeds` and else schnell, with that one's scheduler unless one is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is FLUX's own, 1024 x 1024.
    """
    if scheduler is None:
        scheduler = flux_dev_flow() if guidance_embeds else flux_schnell_flow()
    return quiet(
        FluxPipeline(
            transformer=copy.deepcopy(_flux_transformer(guidance_embeds)),
            scheduler=scheduler,
            vae=copy.deepcopy(flow_autoencoder(scaling_factor=0.3611, shift_factor=1.159)),
            text_encoder=copy.deepcopy(clip_encoder()),
            text_encoder_2=copy.deepcopy(t5_encoder()),
            tokenizer=clip_tokenizer(),
            tokenizer_2=t5_tokenizer(),
        )
    )
