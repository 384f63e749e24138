"""Tiny pipelines of classes for which HSD has no adapter: the generic adapter drives them, or refuses them."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLHunyuanImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from torch import nn
from transformers import Gemma2Config, Gemma2Model, LlamaConfig, LlamaForCausalLM

from .parts import (
    T5_WIDTH,
    WIDTH,
    autoencoder,
    clip_tokenizer,
    listen,
    quiet,
    qwen_tokenizer,
    seeded,
    t5_encoder,
    t5_tokenizer,
)
from .parts import projected_clip_encoder as clip
from .qwen import _qwen2_5_vl as qwen_vl
from .qwen import qwen_image_tokenizer

FLOW = {"shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def awake(module: nn.Module) -> Any:
    """Fill parameters that start as zeros: modulations and last layers, without which a model gives nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.numel() > 1 and not bool(parameter.any()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def _decoder(channels: int = 4) -> Any:
    return copy.deepcopy(
        autoencoder(
            latent_channels=channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=1.159,
            scaling_factor=0.3611,
        )
    )


def _language_model(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": 400,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
    }


@cache
def _aura_flow_transformer() -> Any:
    transformer = seeded(
        lambda: AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=64,
            out_channels=4,
        )
    )
    listen(transformer, ("attn.add_k_proj", "attn.add_v_proj", "context_embedder"), 4.0)
    return transformer


def aura_flow() -> AuraFlowPipeline:
    """Return a tiny AuraFlow: guidance in one call of the network, a timestep from 0 to 1."""
    return quiet(
        AuraFlowPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=copy.deepcopy(t5_encoder()),
            vae=copy.deepcopy(autoencoder()),
            transformer=copy.deepcopy(_aura_flow_transformer()),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    )


@cache
def _chroma_transformer() -> Any:
    return awake(
        seeded(
            lambda: ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                axes_dims_rope=(4, 4, 8),
                approximator_num_channels=64,
                approximator_hidden_dim=32,
                approximator_layers=1,
            )
        )
    )


def chroma() -> ChromaPipeline:
    """Return a tiny Chroma: two calls of the network, packed latents, a mask of numbers that attention adds."""
    return quiet(
        ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, **DYNAMIC),
            vae=_decoder(),
            text_encoder=copy.deepcopy(t5_encoder()),
            tokenizer=t5_tokenizer(),
            transformer=copy.deepcopy(_chroma_transformer()),
        )
    )


@cache
def _hidream_transformer() -> Any:
    return awake(
        seeded(
            lambda: HiDreamImageTransformer2DModel(
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_channels=[T5_WIDTH, WIDTH],
                text_emb_dim=2 * WIDTH,
                num_routed_experts=4,
                num_activated_experts=2,
                axes_dims_rope=(4, 2, 2),
                max_resolution=(8, 8),
                llama_layers=[0, 1],
            )
        )
    )


def hidream() -> HiDreamImagePipeline:
    """Return a tiny HiDream: the output's sign is changed, and one input has the prompts in its second dimension."""
    llama = seeded(lambda: LlamaForCausalLM(LlamaConfig(**_language_model(2), attn_implementation="eager")))
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=_decoder(),
        text_encoder=copy.deepcopy(clip()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=copy.deepcopy(clip()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=copy.deepcopy(t5_encoder()),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama,
        tokenizer_4=qwen_tokenizer(),
        transformer=copy.deepcopy(_hidream_transformer()),
    )
    pipe.default_sample_size = 8
    return quiet(pipe)


def hunyuan_image(*, distilled: bool = False, guider: Any = None) -> HunyuanImagePipeline:
    """Return a tiny HunyuanImage, guided by ``guider`` for all prompts, plain by default.

    A distilled one has no guidance, and its network is told the next timestep.
    """
    transformer = awake(
        seeded(
            lambda: HunyuanImageTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=4,
                attention_head_dim=8,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=WIDTH,
                text_embed_2_dim=T5_WIDTH,
                rope_axes_dim=(4, 4),
                guidance_embeds=distilled,
                use_meanflow=distilled,
            )
        )
    )
    vae = seeded(
        lambda: AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=8,
            sample_size=64,
            scaling_factor=0.75,
        )
    )
    guider = ClassifierFreeGuidance(guidance_scale=3.0) if guider is None else guider
    pipe = quiet(
        HunyuanImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            vae=vae,
            text_encoder=copy.deepcopy(qwen_vl()),
            tokenizer=qwen_image_tokenizer(),
            text_encoder_2=copy.deepcopy(t5_encoder()),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer,
            guider=None if distilled else guider,
            ocr_guider=None if distilled else copy.deepcopy(guider),
        )
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 64, 16
    return pipe


@cache
def _longcat_transformer() -> Any:
    return awake(
        seeded(
            lambda: LongCatImageTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                axes_dims_rope=(4, 2, 2),
            )
        )
    )


def longcat_image() -> LongCatImagePipeline:
    """Return a tiny LongCat-Image: no token of the guided output may be longer than it is without guidance."""
    pipe = quiet(
        LongCatImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, **DYNAMIC),
            vae=_decoder(16),
            text_encoder=copy.deepcopy(qwen_vl()),
            tokenizer=qwen_image_tokenizer(),
            text_processor=None,  # it would rewrite prompts
            transformer=copy.deepcopy(_longcat_transformer()),
        )
    )
    pipe.tokenizer_max_length = 64
    return pipe


@cache
def _lumina2_transformer() -> Any:
    return awake(
        seeded(
            lambda: Lumina2Transformer2DModel(
                sample_size=8,
                in_channels=4,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=4,
                num_kv_heads=2,
                multiple_of=16,
                axes_dim_rope=(4, 2, 2),
                axes_lens=(600, 64, 64),
                cap_feat_dim=WIDTH,
            )
        )
    )


def lumina2(kind: type = Lumina2Pipeline) -> Any:
    """Return a tiny Lumina 2: tokens under a mask, time that runs from 0 to 1, an output of the other sign."""
    gemma = seeded(lambda: Gemma2Model(Gemma2Config(**_language_model(2), sliding_window=64)))
    return quiet(
        kind(
            transformer=copy.deepcopy(_lumina2_transformer()),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=_decoder(),
            text_encoder=gemma,
            tokenizer=qwen_tokenizer(),
        )
    )
