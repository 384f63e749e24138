"""A tiny CogView 4."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

from .parts import WIDTH, autoencoder, listen, quiet, seeded

LATENT_CHANNELS = 4
SPECIAL_TOKENS = ["<|endoftext|>", "[gMASK]", "<sop>"]


def cogview4_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as CogView 4 configures it: the shift depends on the size of the image."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
    )


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """Return a GLM tokenizer of one token per byte: two tokens begin each text, and it is padded on the left."""
    tokens = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    beginning = [(token, tokens.index(token)) for token in SPECIAL_TOKENS[1:]]
    tokenizer.post_processor = TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=beginning)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[0],
        additional_special_tokens=SPECIAL_TOKENS[1:],
        padding_side="left",
        model_max_length=2048,
    )


@cache
def _glm() -> GlmModel:
    config = GlmConfig(
        vocab_size=len(glm_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return seeded(lambda: GlmModel(config))


@cache
def _transformer() -> CogView4Transformer2DModel:
    model = seeded(
        lambda: CogView4Transformer2DModel(
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=8,
        )
    )
    # A text has 16 tokens or more, and its padding is attended to: attention is sharp, so that words are not lost.
    listen(model, ("to_k.weight", "to_v.weight", "to_out", "norm1.linear.weight"), 4.0)
    return model


def cogview4(scheduler: Any = None) -> CogView4Pipeline:
    """Return a tiny CogView 4; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64, the default, has 16.
    """
    return quiet(
        CogView4Pipeline(
            tokenizer=glm_tokenizer(),
            text_encoder=copy.deepcopy(_glm()),
            vae=copy.deepcopy(autoencoder(scaling_factor=1.1)),
            transformer=copy.deepcopy(_transformer()),
            scheduler=cogview4_flow() if scheduler is None else scheduler,
        )
    )
