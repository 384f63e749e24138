"""Tiny diffusers pipelines with seeded random weights: whole, offline, and fast, to be parity-tested against.

Each builder returns a fresh pipeline object in float32 on the CPU; the same call gives the same weights.  Nothing is
read from disk or the network: tokenizers are made in memory (one token a byte).

Random weights of the default scale make models that hardly listen to their prompt, and a parity test of such a model
proves little.  `_listen` makes the weights through which conditioning enters larger; test_tiny.py holds every pipeline
to a visible difference between prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableDiffusionPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

transformers.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()

WIDTH = 32  # of the text and image embeddings

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
K22_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


# --------------------------------------------------------------------------------------------- schedulers
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


def sd_ddim() -> DDIMScheduler:
    """Return a DDIM scheduler as Stable Diffusion configures it."""
    return DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


# --------------------------------------------------------------------------------------------- components
def _seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Build a module with weights that depend on `seed` alone, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def _listen(module: nn.Module, names: tuple[str, ...], factor: float) -> None:
    """Scale the parameters whose name contains one of `names`; every one of `names` must occur."""
    for name in names:
        found = [parameter for key, parameter in module.named_parameters() if name in key]
        assert found, f"{type(module).__name__} has no parameter named *{name}*"
        for parameter in found:
            parameter.mul_(factor)


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer of one token a byte; the end token has the highest id, as CLIP's pooling wants."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
    )


@cache
def _text_encoder() -> CLIPTextModel:
    model = _seeded(lambda: CLIPTextModel(_text_config()))
    _listen(model, ("token_embedding", "q_proj.weight", "k_proj.weight", "v_proj.weight"), 8.0)
    return model


@cache
def _projected_text_encoder() -> CLIPTextModelWithProjection:
    model = _seeded(lambda: CLIPTextModelWithProjection(_text_config()))
    _listen(model, ("token_embedding", "q_proj.weight", "k_proj.weight", "v_proj.weight", "text_projection"), 8.0)
    return model


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
    return _seeded(lambda: CLIPVisionModelWithProjection(config))


@cache
def _prior() -> PriorTransformer:
    model = _seeded(
        lambda: PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1)
    )
    _listen(model, ("embedding_proj.weight", "encoder_hidden_states_proj.weight", "attn1.to"), 3.0)
    # The default of 0 would turn every image embedding into clip_mean.
    model.clip_std = nn.Parameter(torch.ones(model.clip_std.shape), requires_grad=False)
    return model


@cache
def _k22_unet() -> UNet2DConditionModel:
    model = _seeded(
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
    _listen(model, ("add_embedding.image_proj", "add_k_proj.weight", "add_v_proj.weight"), 3.0)
    return model


@cache
def _movq() -> VQModel:
    return _seeded(
        lambda: VQModel(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=[32, 32, 32, 32],  # four blocks, so that an image is 8 times its latent, as in 2.2
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 3 + ["AttnUpDecoderBlock2D"],
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    )


@cache
def _sd_unet() -> UNet2DConditionModel:
    model = _seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
        )
    )
    _listen(model, ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out"), 4.0)
    return model


@cache
def _vae() -> AutoencoderKL:
    return _seeded(
        lambda: AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=[32, 32, 32, 32],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            norm_num_groups=8,
            sample_size=64,
        )
    )


# ---------------------------------------------------------------------------------------------- pipelines
def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def k22_prior() -> KandinskyV22PriorPipeline:
    """Return a tiny Kandinsky 2.2 prior: prompts to image embeddings (N, 32)."""
    return _quiet(
        KandinskyV22PriorPipeline(
            prior=copy.deepcopy(_prior()),
            image_encoder=copy.deepcopy(_image_encoder()),
            text_encoder=copy.deepcopy(_projected_text_encoder()),
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
    return _quiet(
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
    return _quiet(combined)


def stable_diffusion(scheduler: Any = None) -> StableDiffusionPipeline:
    """Return a tiny Stable Diffusion (64 x 64 pixels, a latent of 8 x 8); DDIM unless `scheduler` is given."""
    scheduler = sd_ddim() if scheduler is None else scheduler
    return _quiet(
        StableDiffusionPipeline(
            unet=copy.deepcopy(_sd_unet()),
            scheduler=scheduler,
            vae=copy.deepcopy(_vae()),
            text_encoder=copy.deepcopy(_text_encoder()),
            tokenizer=clip_tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )
