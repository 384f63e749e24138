"""Tiny modular pipelines: those of families that exist as such only, or that no other tiny pipeline has parts of."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage21,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    QwenImage21Transformer2DModel,
)
from torch import nn
from transformers import (
    Mistral3Config,
    Mistral3Model,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)

from .flux import flux
from .flux2 import flux2
from .parts import WIDTH, listen, qwen_tokenizer, seeded
from .qwen import INSTRUCTION, qwen_image, qwen_image_flow
from .sd3 import sd3
from .sdxl import sdxl
from .z_image import z_image

LAYERS = (1, 2, 3)  # of the text encoders, whose outputs are a prompt's encoding
PATCHES = 16  # channels of four pixels of a latent
VISION_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _waken(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Fill what is zero before training, such as modulations: the network would hardly read its inputs otherwise."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.numel() > 1 and parameter.abs().max() == 0:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


@cache
def _tokenizer() -> Qwen2Tokenizer:
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *VISION_TOKENS]},
    )
    # One token for each word of the instructions, whose number of tokens pipelines have written in.
    words = [*INSTRUCTION.split(), "You", "are", "a"]
    tokenizer.add_tokens([*words, *(f" {word}" for word in words)])
    tokenizer.chat_template, tokenizer.model_max_length = CHAT, 4096
    return tokenizer


def _processor() -> Any:
    """A Qwen 3 VL processor for text: its video half cannot be built without torchvision."""
    processor = object.__new__(Qwen3VLProcessor)
    tokenizer = _tokenizer()
    processor.tokenizer, processor.image_processor, processor.video_processor = tokenizer, None, None
    processor.chat_template = CHAT
    for kind in ("image", "video"):
        token = f"<|{kind}_pad|>"
        setattr(processor, f"{kind}_token", token)
        setattr(processor, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
    return processor


def _language(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 400,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        **more,
    }


@cache
def _qwen3_vl(kind: str = "Qwen3VLForConditionalGeneration") -> Any:
    rope = {
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "mrope_interleaved": True,
        "rope_theta": 1000000.0,
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
    ids = dict(zip(("image", "video", "vision_start", "vision_end"), VISION_TOKENS, strict=True))
    tokens = {f"{name}_token_id": _tokenizer().convert_tokens_to_ids(token) for name, token in ids.items()}
    config = Qwen3VLConfig(text_config=_language(rope_parameters=rope), vision_config=vision, **tokens)
    return seeded(lambda: getattr(transformers, kind)(config))


@cache
def _flux2_vae() -> AutoencoderKLFlux2:
    def make() -> AutoencoderKLFlux2:
        model = AutoencoderKLFlux2(
            latent_channels=PATCHES // 4,
            block_out_channels=(16, 16, 16, 16),
            norm_num_groups=8,
            sample_size=64,
            layers_per_block=1,
        )
        nn.init.normal_(model.bn.running_mean)
        nn.init.uniform_(model.bn.running_var, 2.0, 6.0)
        return model

    return seeded(make)


def _dynamic(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, **more)


def _built(blocks: Any, **components: Any) -> Any:
    if isinstance(blocks, str):
        blocks = getattr(diffusers, blocks)()
    pipe = blocks.init_pipeline()
    parts = {name: part for name, part in components.items() if name in pipe.component_names}
    pipe.update_components(**copy.deepcopy(parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular_flux3(distilled: bool = False) -> Any:
    """Return a tiny FLUX.3, without the block that rewrites prompts. It takes ``text_encoder_out_layers=LAYERS``."""
    blocks = (diffusers.Flux3DistilledAutoBlocks if distilled else diffusers.Flux3AutoBlocks)()
    blocks.sub_blocks.pop("prompt_upsampler")
    transformer = seeded(
        lambda: Flux3Transformer2DModel(
            in_channels=PATCHES,
            cond_in_channels=PATCHES,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=len(LAYERS) * WIDTH,
            timestep_channels=32,
            axes_dims_rope=(2, 2, 2, 2),
            flow_map=distilled,
        )
    )
    return _built(
        blocks,
        transformer=_waken(transformer),
        vae=_flux2_vae(),
        text_encoder=_qwen3_vl(),
        tokenizer=_processor(),
    )


def modular_klein(distilled: bool = False) -> Any:
    """Return a tiny FLUX.2 klein; the base model is guided. It takes ``text_encoder_out_layers=LAYERS``."""
    transformer = seeded(
        lambda: Flux2Transformer2DModel(
            in_channels=PATCHES,
            num_layers=2,
            num_single_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            joint_attention_dim=len(LAYERS) * WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        )
    )
    listen(transformer, ("norm_added_k.weight", "attn.norm_k.weight"), 4.0)
    return _built(
        "Flux2KleinAutoBlocks" if distilled else "Flux2KleinBaseAutoBlocks",
        transformer=transformer,
        vae=_flux2_vae(),
        text_encoder=seeded(lambda: Qwen3ForCausalLM(Qwen3Config(**_language()))),
        tokenizer=_tokenizer(),
        scheduler=_dynamic(),
    )


def modular_krea2(turbo: bool = False) -> Any:
    """Return a tiny Krea 2. Its text block reads the layers of a text encoder by a global of its module."""
    transformer = seeded(
        lambda: Krea2Transformer2DModel(
            in_channels=PATCHES,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            timestep_embed_dim=32,
            text_hidden_dim=WIDTH,
            num_text_layers=len(LAYERS),
            text_num_attention_heads=4,
            text_num_key_value_heads=2,
            text_intermediate_size=48,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        )
    )
    return _built(
        "Krea2TurboAutoBlocks" if turbo else "Krea2AutoBlocks",
        transformer=_waken(transformer),
        vae=qwen_image().vae,
        text_encoder=_qwen3_vl("Qwen3VLModel"),
        tokenizer=_tokenizer(),
        scheduler=_dynamic(max_image_seq_len=6400),
    )


def modular_ernie() -> Any:
    """Return a tiny ERNIE-Image."""
    text = _language(model_type="mistral")
    vision = {
        "model_type": "pixtral",
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 56,
        "patch_size": 14,
    }
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
    transformer = seeded(
        lambda: ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=4,
            num_layers=2,
            ffn_hidden_size=48,
            in_channels=PATCHES,
            out_channels=PATCHES,
            text_in_dim=WIDTH,
            rope_axes_dim=(4, 2, 2),
        )
    )
    return _built(
        "ErnieImageAutoBlocks",
        transformer=_waken(transformer),
        vae=_flux2_vae(),
        text_encoder=seeded(lambda: Mistral3Model(config)),
        tokenizer=_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def modular_qwen_image_21() -> Any:
    """Return a tiny Qwen-Image 2.1. Its guider is off at the default scale of 1."""
    channels = 8
    generator = torch.Generator().manual_seed(0)
    vae = seeded(
        lambda: AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=torch.randn(channels, generator=generator).tolist(),
            latents_std=(1.5 + torch.rand(channels, generator=generator)).tolist(),
        )
    )
    transformer = _waken(
        seeded(
            lambda: QwenImage21Transformer2DModel(
                in_channels=channels,
                out_channels=channels,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                context_in_dim=WIDTH,
                mlp_ratio=2,
                axes_dims_rope=(4, 2, 2),
                causal_condition=True,
            )
        )
    )
    listen(transformer, ("norm_k", "to_v", "to_out", "modulation"), 4.0)
    return _built(
        "QwenImage21AutoBlocks",
        transformer=transformer,
        vae=vae,
        text_encoder=_qwen3_vl(),
        processor=_processor(),
        scheduler=qwen_image_flow(),
    )


def modular_ideogram4() -> Any:
    """Return a tiny Ideogram 4. Its text block reads the layers of a text encoder by a global of its module."""

    def denoiser(seed: int) -> nn.Module:
        make = lambda: Ideogram4Transformer2DModel(  # noqa: E731
            in_channels=PATCHES,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            intermediate_size=48,
            adaln_dim=16,
            llm_features_dim=len(LAYERS) * WIDTH,
            mrope_section=(2, 1, 1),
        )
        return _waken(seeded(make, seed))

    return _built(
        "Ideogram4AutoBlocks",
        transformer=denoiser(0),
        unconditional_transformer=denoiser(1),
        vae=_flux2_vae(),
        text_encoder=_qwen3_vl("Qwen3VLModel"),
        tokenizer=_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _of(blocks: str, pipe: Any) -> Any:
    return _built(blocks, **pipe.components)


def modular_flux() -> Any:
    """Return the tiny FLUX.1 as a modular pipeline."""
    return _of("FluxAutoBlocks", flux())


def modular_flux2() -> Any:
    """Return the tiny FLUX.2 as a modular pipeline."""
    return _of("Flux2AutoBlocks", flux2())


def modular_qwen_image() -> Any:
    """Return the tiny Qwen-Image as a modular pipeline."""
    return _of("QwenImageAutoBlocks", qwen_image())


def modular_sd3() -> Any:
    """Return the tiny Stable Diffusion 3 as a modular pipeline."""
    return _of("StableDiffusion3AutoBlocks", sd3())


def modular_sdxl() -> Any:
    """Return the tiny Stable Diffusion XL as a modular pipeline."""
    return _of("StableDiffusionXLAutoBlocks", sdxl())


def modular_z_image() -> Any:
    """Return the tiny Z-Image as a modular pipeline. Its guider is disabled."""
    return _of("ZImageAutoBlocks", z_image())
