"""The networks of the demo model: the stock classes of Kandinsky 2.2, made small enough to ship in a package."""

from __future__ import annotations

from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from .codes import DIM
from .draw import SIDE
from .words import MAX_TOKENS

LATENT_SIDE = SIDE // 4


def make_movq() -> VQModel:
    """Pictures [3, 64, 64] to and from latents [4, 16, 16]; without attention, so it is fast at every size."""
    return VQModel(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,  # the class requires a codebook; the pipeline decodes without it
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        norm_type="spatial",
        mid_block_add_attention=False,
    )


def make_unet() -> UNet2DConditionModel:
    """The decoder: latents [4, 16, 16] and an image embedding to (v, ignored variance) [8, 16, 16]."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=8,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        addition_embed_type="image",
        encoder_hid_dim=DIM,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=96,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )


def make_decoder_scheduler() -> DDPMScheduler:
    """Velocity prediction on a schedule that ends in pure noise, sampled with fresh noise at every step.

    With the released model's schedule, the first step of training still contains some signal, for example a flat
    background; a sampler starts from pure noise without it. A schedule rescaled to zero signal has no such difference.
    Fresh noise lets late steps correct errors of early ones, which matters if those ran on the mean of several prompts.
    """
    return DDPMScheduler(
        variance_type="fixed_small",
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Prompt to embedding. The prior reads its hidden states, which must have the embedding's width."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=DIM,
            intermediate_size=3 * DIM,
            projection_dim=DIM,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_prior() -> PriorTransformer:
    """Text embedding and hidden states to image embedding, by diffusion."""
    return PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=3,
        embedding_dim=DIM,
        num_embeddings=MAX_TOKENS,
        additional_embeddings=4,
    )


def make_prior_scheduler() -> UnCLIPScheduler:
    """As in the released model; the clipping only limits extreme values from guidance."""
    return UnCLIPScheduler(
        num_train_timesteps=1000,
        variance_type="fixed_small_log",
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=5.0,
    )


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """Picture to embedding. The pipeline needs it for the null condition."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=288,
            projection_dim=DIM,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=8,
        )
    )


def make_image_processor() -> CLIPImageProcessor:
    """Pictures in -1..1, so that the pipeline's all-zero picture is an even grey, which no scene is."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
