"""A tiny Kandinsky 2.2: prior, decoder, and both as one pipeline."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from .parts import WIDTH, clip_tokenizer, listen, projected_clip_encoder, quiet, seeded

K22_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


def k22_ddim() -> DDIMScheduler:
    """Return the decoder's scheduler as most people run it: no noise, no clipping."""
    return DDIMScheduler(**K22_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def k22_ddpm() -> DDPMScheduler:
    """Return the decoder's stock scheduler: noise with learned variance, dynamic thresholding."""
    return DDPMScheduler(
        **K22_BETAS,
        clip_sample=True,
        clip_sample_range=2.0,
        thresholding=True,
        sample_max_value=2.0,
        variance_type="learned_range",
    )


def k22_unclip() -> UnCLIPScheduler:
    """Return the prior's stock scheduler: noise, clipping at 10."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )


@cache
def _image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        image_size=224,
        projection_dim=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        patch_size=32,
    )
    return seeded(lambda: CLIPVisionModelWithProjection(config))


@cache
def unclip_prior() -> PriorTransformer:
    model = seeded(
        lambda: PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1)
    )
    listen(model, ("embedding_proj.weight", "encoder_hidden_states_proj.weight", "attn1.to"), 3.0)
    # The default of 0 would turn every image embedding into clip_mean.
    model.clip_std = nn.Parameter(torch.ones(model.clip_std.shape), requires_grad=False)
    return model


@cache
def _k22_unet() -> UNet2DConditionModel:
    model = seeded(
        lambda: UNet2DConditionModel(
            in_channels=4,
            out_channels=8,  # the model output and its variance
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
        )
    )
    listen(model, ("add_embedding.image_proj", "add_k_proj.weight", "add_v_proj.weight"), 3.0)
    return model


@cache
def _movq() -> VQModel:
    return seeded(
        lambda: VQModel(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=[32, 32, 32, 32],  # four blocks, so that an image is 8 times its latent, as in 2.2
            down_block_types=["DownEncoderBlock2D"] * 4,
            # Attention where there are few pixels, as in 2.2: at the last block it would take longer than all else.
            up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    )


def k22_prior() -> KandinskyV22PriorPipeline:
    """Return a tiny Kandinsky 2.2 prior: prompts to image embeddings (N, 32)."""
    return quiet(
        KandinskyV22PriorPipeline(
            prior=copy.deepcopy(unclip_prior()),
            image_encoder=copy.deepcopy(_image_encoder()),
            text_encoder=copy.deepcopy(projected_clip_encoder()),
            tokenizer=clip_tokenizer(),
            scheduler=k22_unclip(),
            image_processor=CLIPImageProcessor(),
        )
    )


def k22_decoder(scheduler: Any = None) -> KandinskyV22Pipeline:
    """Return a tiny Kandinsky 2.2 decoder: image embeddings to images; DDIM unless `scheduler` is given.

    Its smallest image is 64 x 64 pixels, a latent of 8 x 8.
    """
    scheduler = k22_ddim() if scheduler is None else scheduler
    return quiet(
        KandinskyV22Pipeline(unet=copy.deepcopy(_k22_unet()), scheduler=scheduler, movq=copy.deepcopy(_movq()))
    )


def k22_combined(scheduler: Any = None) -> KandinskyV22CombinedPipeline:
    """Return the two above as one pipeline, prompts to images."""
    prior, decoder = k22_prior(), k22_decoder(scheduler)
    combined = KandinskyV22CombinedPipeline(
        unet=decoder.unet,
        scheduler=decoder.scheduler,
        movq=decoder.movq,
        prior_prior=prior.prior,
        prior_image_encoder=prior.image_encoder,
        prior_text_encoder=prior.text_encoder,
        prior_tokenizer=prior.tokenizer,
        prior_scheduler=prior.scheduler,
        prior_image_processor=prior.image_processor,
    )
    return quiet(combined)
