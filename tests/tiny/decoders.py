"""Tiny image decoders of the other kinds that diffusers has: users swap them for the AutoencoderKL of a pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, ConsistencyDecoderVAE

from .parts import listen, quiet, seeded


@cache
def consistency_decoder() -> ConsistencyDecoderVAE:
    """Return a decoder that samples the image from noise, in two steps; its images have 8 times the latent's sides."""
    return seeded(
        lambda: ConsistencyDecoderVAE(
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 64),
            decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
            decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
            decoder_layers_per_block=1,
            decoder_norm_num_groups=8,
            encoder_norm_num_groups=8,
        )
    )


@cache
def tiny_autoencoder(**changes: Any) -> AutoencoderTiny:
    """Return a distilled decoder, which latents are given to as they are: its scaling factor is 1."""
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    model = seeded(lambda: AutoencoderTiny(**blocks | changes))
    listen(model, ("decoder.layers.0.weight", f"decoder.layers.{len(model.decoder.layers) - 1}.weight"), 6.0)
    return model


@cache
def asymmetric_autoencoder() -> AsymmetricAutoencoderKL:
    """Return a decoder that is larger than its encoder, and takes an image and a mask for inpainting, here none."""
    return seeded(
        lambda: AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(32,) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(32,) * 4,
            layers_per_up_block=1,
            norm_num_groups=8,
        )
    )


def with_decoder(pipe: Any, make: Callable[[], Any]) -> Any:
    """Return a pipeline of the networks of `pipe`, but with the image decoder that `make` returns."""
    return quiet(type(pipe)(**pipe.components | {"vae": copy.deepcopy(make())}))
