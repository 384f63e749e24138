"""A tiny Krea 2, base and distilled."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from .parts import WIDTH, fill, listen, quiet, qwen_tokenizer, seeded
from .qwen import LATENT_CHANNELS, qwen_image_vae

KREA2_LAYERS = (1, 2, 3)  # of the text encoder, whose outputs are a prompt's encoding
# The pipeline drops the first 34 tokens, which are its instruction in Qwen's vocabulary, and adds 5 at the end.
INSTRUCTION = (
    "system user assistant Describe the image by detailing the color , shape size texture quantity text spatial "
    "relationships of objects and background :"
)


def krea2_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as Krea 2 configures it: the shift depends on the size of the image."""
    return FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=6400,
    )


def krea2_tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer of one token per byte, and one per word of Krea 2's instruction."""
    tokenizer = qwen_tokenizer()
    words = INSTRUCTION.split()
    tokenizer.add_tokens([*words, *(f" {word}" for word in words)])
    return tokenizer


@cache
def _qwen3_vl() -> Qwen3VLModel:
    text = {
        "vocab_size": len(krea2_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": KREA2_LAYERS[-1] + 1,  # the output of the last layer would be normalised
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
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
    return seeded(lambda: Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)))


@cache
def _krea2_transformer() -> Krea2Transformer2DModel:
    def make() -> Krea2Transformer2DModel:
        model = Krea2Transformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            timestep_embed_dim=32,
            text_hidden_dim=WIDTH,
            num_text_layers=len(KREA2_LAYERS),
            text_num_attention_heads=4,
            text_num_key_value_heads=2,
            text_intermediate_size=48,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        )
        fill(model, 0.2)
        return model

    model = seeded(make)
    # Keys are normalised, so it is the norm's weight that makes attention sharp, to which the network adds 1.
    for name, weight in model.named_parameters():
        if name.endswith("norm_k.weight"):
            weight.add_(3.0)
    listen(model, ("to_v.weight", "to_out.0.weight"), 2.5)
    return model


def krea2(scheduler: Any = None, is_distilled: bool = False) -> Krea2Pipeline:
    """Return a tiny Krea 2; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is Krea 2's own, 1024 x 1024.
    """
    scheduler = krea2_flow() if scheduler is None else scheduler
    return quiet(
        Krea2Pipeline(
            transformer=copy.deepcopy(_krea2_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(qwen_image_vae()),
            text_encoder=copy.deepcopy(_qwen3_vl()),
            tokenizer=krea2_tokenizer(),
            text_encoder_select_layers=KREA2_LAYERS,
            is_distilled=is_distilled,
        )
    )
