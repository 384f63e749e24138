"""A tiny Z-Image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from .parts import WIDTH, flow_autoencoder, listen, quiet, qwen_tokenizer, seeded


def z_image_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as Z-Image Turbo configures it."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@cache
def _qwen3() -> Qwen3Model:
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,  # the pipeline takes the last but one, which has then attended twice
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    return seeded(lambda: Qwen3Model(config))


@cache
def _z_image_transformer() -> ZImageTransformer2DModel:
    def make() -> ZImageTransformer2DModel:
        model = ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=4,
            n_kv_heads=4,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 2, 2],
        )
        # Zeros before training.  Prompts and images are padded with these to a multiple of 32 tokens, and the padding
        # is attended to.
        for pad_token in (model.x_pad_token, model.cap_pad_token):
            nn.init.normal_(pad_token)
        return model

    model = seeded(make)
    # What attention returns is normalised, as its keys are: only the norm of the keys makes it sharp, and only the
    # gates, which follow the time, decide how much of it is added.
    listen(model, ("attention.norm_k.weight", "t_embedder.mlp.2"), 4.0)
    return model


def z_image(scheduler: Any = None) -> ZImagePipeline:
    """Return a tiny Z-Image; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is Z-Image's own, 1024 x 1024.
    """
    scheduler = z_image_flow() if scheduler is None else scheduler
    return quiet(
        ZImagePipeline(
            transformer=copy.deepcopy(_z_image_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(flow_autoencoder(scaling_factor=0.3611, shift_factor=1.159)),
            text_encoder=copy.deepcopy(_qwen3()),
            tokenizer=qwen_tokenizer(),
        )
    )
