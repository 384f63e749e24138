"""A tiny Qwen-Image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from .parts import WIDTH, listen, quiet, qwen_tokenizer, seeded

LATENT_CHANNELS = 4
# The pipeline drops the first 34 tokens, which are its instruction in Qwen's vocabulary, and keeps what follows.
INSTRUCTION = (
    "system user assistant Describe the image by detailing color , shape size texture quantity text spatial "
    "relationships of objects and background :"
)


def qwen_image_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as Qwen-Image configures it: the shift depends on the size of the image."""
    return FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )


def qwen_image_tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer of one token per byte, and one per word of Qwen-Image's instruction."""
    tokenizer = qwen_tokenizer()
    words = INSTRUCTION.split()
    tokenizer.add_tokens([*words, *(f" {word}" for word in words)])
    return tokenizer


@cache
def _qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(qwen_image_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
        "initializer_range": 0.3,
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return seeded(lambda: Qwen2_5_VLForConditionalGeneration(config))


@cache
def _qwen_image_transformer() -> QwenImageTransformer2DModel:
    model = seeded(
        lambda: QwenImageTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 2, 2),
        )
    )
    # Keys are normalised, so it is the norm's weight that makes attention sharp, not the projection's before it.
    listen(model, ("norm_added_k.weight", "attn.norm_k.weight", "add_v_proj.weight", "attn.to_out"), 4.0)
    listen(model, ("timestep_embedder.linear_2.weight",), 8.0)  # the gates follow the time
    return model


@cache
def qwen_image_vae() -> AutoencoderKLQwenImage:
    generator = torch.Generator().manual_seed(0)
    return seeded(
        lambda: AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 2, 2],  # four blocks, so that an image is 8 times its latent
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=torch.randn(LATENT_CHANNELS, generator=generator).tolist(),
            latents_std=(1.5 + torch.rand(LATENT_CHANNELS, generator=generator)).tolist(),
        )
    )


def qwen_image(scheduler: Any = None) -> QwenImagePipeline:
    """Return a tiny Qwen-Image; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is Qwen-Image's own, 1024 x 1024.
    It guides only with a negative prompt.
    """
    scheduler = qwen_image_flow() if scheduler is None else scheduler
    return quiet(
        QwenImagePipeline(
            transformer=copy.deepcopy(_qwen_image_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(qwen_image_vae()),
            text_encoder=copy.deepcopy(_qwen2_5_vl()),
            tokenizer=qwen_image_tokenizer(),
        )
    )
