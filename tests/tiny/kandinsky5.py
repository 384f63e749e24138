"""A tiny Kandinsky 5, text to image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from .parts import WIDTH, autoencoder, clip_encoder, clip_tokenizer, listen, quiet, qwen_tokenizer, seeded
from .processor import VISION_TOKENS, TextProcessor

# The pipeline drops the first 40 tokens, which are its instruction in Qwen's vocabulary, and keeps what follows.
INSTRUCTION = (
    "You are a prompt engineer . Describe the image by detailing the color , shape , size , texture , quantity , text "
    ", spatial relationships of the objects and background :"
)
LATENT_CHANNELS = 4
RESOLUTIONS = [(64, 64), (32, 64), (96, 64)]
"""(width, height), in place of the released sizes of about a million pixels."""


def _tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer of one token per byte, and one per word of Kandinsky's instruction."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *VISION_TOKENS]})
    words = ["system", "user", *INSTRUCTION.split()]
    tokenizer.add_tokens([*words, *(f" {word}" for word in words)])
    return tokenizer


@cache
def _qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
        "initializer_range": 0.3,
    }
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 37, "num_heads": 4, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return seeded(lambda: Qwen2_5_VLForConditionalGeneration(config))


@cache
def _transformer() -> Kandinsky5Transformer3DModel:
    def make() -> Kandinsky5Transformer3DModel:
        model = Kandinsky5Transformer3DModel(
            in_visual_dim=LATENT_CHANNELS,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=32,
            out_visual_dim=LATENT_CHANNELS,
            model_dim=32,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
        )
        # Zeros before training: no layer would do anything.
        for name, weight in model.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(weight, std=0.2)
        return model

    model = seeded(make)
    # Keys are normalised, so it is the norm's weight that makes attention sharp, not the projection's before it.
    listen(model, ("to_value", "attention.out_layer"), 4.0)
    return model


def kandinsky5(scheduler: Any = None) -> Kandinsky5T2IPipeline:
    """Return a tiny Kandinsky 5; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  Its sizes are those of `RESOLUTIONS`.
    """
    pipeline = Kandinsky5T2IPipeline(
        transformer=copy.deepcopy(_transformer()),
        vae=copy.deepcopy(autoencoder(scaling_factor=0.3611)),
        text_encoder=copy.deepcopy(_qwen2_5_vl()),
        tokenizer=TextProcessor(_tokenizer()),
        text_encoder_2=copy.deepcopy(clip_encoder()),
        tokenizer_2=clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler,
    )
    pipeline.resolutions = list(RESOLUTIONS)
    return quiet(pipeline)
