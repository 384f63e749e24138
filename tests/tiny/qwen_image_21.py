"""A tiny Qwen-Image 2.1."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from .parts import WIDTH, listen, quiet, qwen_tokenizer, seeded
from .processor import VISION_TOKENS, TextProcessor
from .qwen import qwen_image_flow

LATENT_CHANNELS = 8
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def _tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer of one token per byte, with the tokens around images."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *VISION_TOKENS]})
    return tokenizer


@cache
def _qwen3_vl() -> Qwen3VLForConditionalGeneration:
    tokenizer = _tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 3,  # the vision tower adds to the first ones
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {
            "mrope_section": [1, 1, 2],
            "mrope_interleaved": True,
            "rope_type": "default",
            "rope_theta": 1000000.0,
        },
        "initializer_range": 0.3,
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return seeded(lambda: Qwen3VLForConditionalGeneration(config))


@cache
def _transformer() -> QwenImage21Transformer2DModel:
    model = seeded(
        lambda: QwenImage21Transformer2DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            context_in_dim=WIDTH,
            mlp_ratio=2,
            axes_dims_rope=(4, 2, 2),
        )
    )
    # Keys are normalised, so it is the norm's weight that makes attention sharp, not the projection's before it.
    listen(model, ("norm_k", "to_v", "to_out", "modulation"), 4.0)
    return model


@cache
def _vae() -> AutoencoderKLQwenImage21:
    generator = torch.Generator().manual_seed(0)
    return seeded(
        lambda: AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 1, 1, 1, 1],  # five blocks, so that an image is 16 times its latent
            num_res_blocks=1,
            latents_mean=torch.randn(LATENT_CHANNELS, generator=generator).tolist(),
            latents_std=(1.5 + torch.rand(LATENT_CHANNELS, generator=generator)).tolist(),
        )
    )


def qwen_image_21(scheduler: Any = None, sample_sigmas: list[float] | None = None) -> QwenImage21Pipeline:
    """Return a tiny Qwen-Image 2.1; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is 1024 x 1024.  It guides only
    with a negative prompt and a scale, and its images are RGBA.
    """
    scheduler: FlowMatchEulerDiscreteScheduler = qwen_image_flow() if scheduler is None else scheduler
    return quiet(
        QwenImage21Pipeline(
            transformer=copy.deepcopy(_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(_vae()),
            text_encoder=copy.deepcopy(_qwen3_vl()),
            processor=TextProcessor(_tokenizer(), chat_template=CHAT_TEMPLATE),
            sample_sigmas=sample_sigmas,
        )
    )
