"""A tiny ERNIE-Image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tokenizers.processors import TemplateProcessing
from transformers import Mistral3Model, PreTrainedTokenizerFast

from .flux2 import LATENT_CHANNELS, flux2_vae, mistral3_config, mistral_tokenizer
from .parts import WIDTH, fill, listen, quiet, seeded


def ernie_image_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as ERNIE-Image configures it."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def ernie_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Mistral tokenizer of one token per byte that begins every text with `<s>`."""
    tokenizer = mistral_tokenizer()
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    tokenizer.model_max_length = 512
    return tokenizer


@cache
def _mistral3() -> Mistral3Model:
    # The pipeline takes the last output but one, which has then attended twice.
    return seeded(lambda: Mistral3Model(mistral3_config(hidden_size=WIDTH, num_hidden_layers=3)))


@cache
def _ernie_transformer() -> ErnieImageTransformer2DModel:
    def make() -> ErnieImageTransformer2DModel:
        model = ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=4,
            num_layers=2,
            ffn_hidden_size=48,
            in_channels=4 * LATENT_CHANNELS,
            out_channels=4 * LATENT_CHANNELS,
            text_in_dim=WIDTH,
            rope_axes_dim=(4, 2, 2),
        )
        fill(model, 0.2)
        return model

    model = seeded(make)
    listen(model, ("norm_k.weight",), 4.0)  # keys are normalised: only this makes attention sharp
    listen(model, ("time_embedding.linear_2.weight",), 2.0)
    return model


def ernie_image(scheduler: Any = None) -> ErnieImagePipeline:
    """Return a tiny ERNIE-Image without its prompt enhancer; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is ERNIE-Image's own, 1024 x 1024.
    """
    scheduler = ernie_image_flow() if scheduler is None else scheduler
    return quiet(
        ErnieImagePipeline(
            transformer=copy.deepcopy(_ernie_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(flux2_vae()),
            text_encoder=copy.deepcopy(_mistral3()),
            tokenizer=ernie_tokenizer(),
        )
    )
