"""A tiny PixArt-Sigma."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from .parts import T5_WIDTH, autoencoder, listen, quiet, seeded, t5_encoder, t5_tokenizer


def pixart_dpm() -> DPMSolverMultistepScheduler:
    """Return a DPM-Solver++ scheduler as PixArt-Sigma configures it: second order, which are its defaults."""
    return DPMSolverMultistepScheduler()


@cache
def _pixart_transformer() -> PixArtTransformer2DModel:
    model = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,  # the model output and its variance, which the pipeline drops
            num_layers=2,
            num_attention_heads=3,
            attention_head_dim=8,
            cross_attention_dim=24,
            caption_channels=T5_WIDTH,
        )
    )
    listen(model, ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out"), 4.0)
    return model


@cache
def _pixart_vae() -> AutoencoderKL:
    model = copy.deepcopy(autoencoder(scaling_factor=0.13025))
    # A model that was never trained does not predict the noise, and the last step of a schedule this steep leaves its
    # latents a hundred times too large.  The decoder's norms would hide the scaling factor under numbers of that size.
    listen(model, ("decoder.conv_in.weight",), 1 / 64)
    return model


def pixart_sigma(scheduler: Any = None) -> PixArtSigmaPipeline:
    """Return a tiny PixArt-Sigma (64 x 64 pixels, a latent of 8 x 8); DPM-Solver++ unless `scheduler` is given.

    It has no bins for images this small: call it with `use_resolution_binning=False`.
    """
    scheduler = pixart_dpm() if scheduler is None else scheduler
    return quiet(
        PixArtSigmaPipeline(
            transformer=copy.deepcopy(_pixart_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(_pixart_vae()),
            text_encoder=copy.deepcopy(t5_encoder()),
            tokenizer=t5_tokenizer(),
        )
    )
