"""Parts of the tiny pipelines: seeded weights, tokenizers, text encoders, an image decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
)

transformers.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()

WIDTH = 32  # width of the text and image embeddings
BIG_WIDTH = 48  # width of the second CLIP encoder of the pipelines that have two
T5_WIDTH = 96  # wider than both CLIPs side by side, which Stable Diffusion 3 pads with zeros to this

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Build a module with weights that depend on `seed` alone, without changing the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def listen(module: nn.Module, names: tuple[str, ...], factor: float) -> None:
    """Scale the parameters whose name contains one of `names`; every one of `names` must occur."""
    for name in names:
        found = [parameter for key, parameter in module.named_parameters() if name in key]
        assert found, f"{type(module).__name__} has no parameter named *{name}*"
        for parameter in found:
            parameter.mul_(factor)


def fill(module: nn.Module, std: float) -> None:
    """Small random numbers for the parameters that are zero before training: a network may say nothing without them."""
    for parameter in module.parameters():
        if parameter.numel() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=std)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer of one token per byte; the end token has the highest id, as CLIP's pooling requires."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> ByT5Tokenizer:
    """Return a T5 tokenizer of one token per byte; prompts end with </s> and are padded with zeros."""
    return ByT5Tokenizer(extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer of one token per byte, with Qwen's chat template for text and its two chat tokens."""
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _text_config(**changes: Any) -> CLIPTextConfig:
    config = {
        "vocab_size": 514,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    return CLIPTextConfig(**config | changes)


@cache
def clip_encoder() -> CLIPTextModel:
    model = seeded(lambda: CLIPTextModel(_text_config()))
    listen(model, ("token_embedding", "q_proj.weight", "k_proj.weight", "v_proj.weight"), 8.0)
    return model


@cache
def projected_clip_encoder(width: int = WIDTH, hidden_act: str = "quick_gelu") -> CLIPTextModelWithProjection:
    config = _text_config(hidden_size=width, projection_dim=width, hidden_act=hidden_act)
    model = seeded(lambda: CLIPTextModelWithProjection(config))
    listen(model, ("token_embedding", "q_proj.weight", "k_proj.weight", "v_proj.weight", "text_projection"), 8.0)
    return model


def big_clip_encoder() -> CLIPTextModelWithProjection:
    """Return a text encoder in place of the larger CLIP: with another width and activation than the first."""
    return projected_clip_encoder(BIG_WIDTH, "gelu")


@cache
def t5_encoder() -> T5EncoderModel:
    config = T5Config(vocab_size=259, d_model=T5_WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return seeded(lambda: T5EncoderModel(config))


@cache
def autoencoder(**changes: Any) -> AutoencoderKL:
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [32, 32, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 8,
        "sample_size": 64,
    }
    return seeded(lambda: AutoencoderKL(**config | changes))


def flow_autoencoder(**changes: Any) -> AutoencoderKL:
    """Return the image decoder of the rectified flow models: sixteen channels, no convolutions around the latent.

    Give it a `shift_factor` ten times the released one: the released ones are too small to show in an image.
    """
    return autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **changes)
