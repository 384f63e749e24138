"""A tiny Karlo, which diffusers knows as unCLIP: prior, pixel decoder and super-resolution."""

from __future__ import annotations

import copy
from functools import cache

import torch
from diffusers import UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

from .kandinsky22 import unclip_prior
from .parts import WIDTH, clip_tokenizer, listen, projected_clip_encoder, quiet, seeded

_SMALL, _LARGE = 16, 32  # sides of the images before and after super-resolution
_CROSS, _TIME = 40, 128  # widths of what the decoder attends to, and of its time embedding


@cache
def _text_proj() -> UnCLIPTextProjModel:
    model = seeded(
        lambda: UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=_TIME, cross_attention_dim=_CROSS)
    )
    generator = torch.Generator().manual_seed(1)
    # The default of 0 is not an embedding that training could give.
    model.learned_classifier_free_guidance_embeddings.copy_(torch.randn(WIDTH, generator=generator))
    listen(model, ("embedding_proj.weight", "image_embeddings_project"), 2.0)
    listen(model, ("clip_extra_context_tokens_proj.weight",), 2.0)
    return model


@cache
def _decoder() -> UNet2DConditionModel:
    model = seeded(
        lambda: UNet2DConditionModel(
            sample_size=_SMALL,
            in_channels=3,
            out_channels=6,  # the model output and its variance
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=_CROSS,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
    )
    listen(model, ("add_k_proj.weight", "add_v_proj.weight", "to_out"), 2.0)
    return model


@cache
def _super_resolution(seed: int) -> UNet2DModel:
    return seeded(
        lambda: UNet2DModel(
            sample_size=_LARGE,
            in_channels=6,
            out_channels=3,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            add_attention=False,
        ),
        seed,
    )


def karlo() -> UnCLIPPipeline:
    """Return a tiny Karlo with its three schedulers as released: 16 x 16 pixels, then 32 x 32 by super-resolution."""
    return quiet(
        UnCLIPPipeline(
            prior=copy.deepcopy(unclip_prior()),
            text_encoder=copy.deepcopy(projected_clip_encoder()),
            tokenizer=clip_tokenizer(),
            text_proj=copy.deepcopy(_text_proj()),
            decoder=copy.deepcopy(_decoder()),
            super_res_first=copy.deepcopy(_super_resolution(0)),
            super_res_last=copy.deepcopy(_super_resolution(1)),
            prior_scheduler=UnCLIPScheduler(
                variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
            ),
            decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
            super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log"),
        )
    )
