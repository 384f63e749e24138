"""A tiny FLUX.2 dev."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

from .parts import listen, quiet, seeded

MISTRAL_WIDTH = 16
FLUX2_LAYERS = (10, 20, 30)  # of the text encoder, whose outputs are a prompt's encoding, side by side
LATENT_CHANNELS = 8

CONTROL_TOKENS = [
    *("<unk>", "<s>", "</s>", "<pad>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
]
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
    {%- set name = "SYSTEM_PROMPT" if message.role == "system" else "INST" -%}
    {{- "[" ~ name ~ "]" -}}
    {%- for part in message.content -%}{{- part.text if part.type == "text" else "[IMG]" -}}{%- endfor -%}
    {{- "[/" ~ name ~ "]" -}}
{%- endfor -%}"""


def flux2_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as FLUX.2 dev configures it: the pipeline shifts it by size and steps."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Mistral tokenizer of one token per byte, with its control tokens; prompts are padded on the left.

    It replaces Pixtral's processor, which cannot be imported without torchvision: the pipeline calls only its
    `apply_chat_template`, without an image.
    """
    tokens = [*CONTROL_TOKENS, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=CONTROL_TOKENS[4:],
        padding_side="left",
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def mistral3_config(**changes: Any) -> Mistral3Config:
    text = {
        "model_type": "mistral",
        "vocab_size": len(mistral_tokenizer()),
        "hidden_size": MISTRAL_WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": FLUX2_LAYERS[-1] + 1,  # the output of the last layer would be normalised
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "initializer_range": 0.3,
        **changes,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": MISTRAL_WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 56,
        "patch_size": 14,
    }
    image_token = CONTROL_TOKENS.index("[IMG]")
    return Mistral3Config(text_config=text, vision_config=vision, image_token_index=image_token)


@cache
def _mistral3() -> Mistral3ForConditionalGeneration:
    return seeded(lambda: Mistral3ForConditionalGeneration(mistral3_config()))


@cache
def flux2_transformer(guidance_embeds: bool = True) -> Flux2Transformer2DModel:
    model = seeded(
        lambda: Flux2Transformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=2,
            num_single_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            joint_attention_dim=len(FLUX2_LAYERS) * MISTRAL_WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=guidance_embeds,
        )
    )
    # Attention is sharp: five of the 512 tokens are "a cat", and would vanish in an even mean of all.  Keys are
    # normalised, so it is the norm's weight that counts, not the projection's before it.
    listen(model, ("norm_added_k.weight",), 16.0)
    listen(model, ("attn.norm_k.weight", "add_v_proj.weight", "attn.to_out"), 4.0)
    # The gates follow the time and the guidance, which are one sum: each is scaled until neither dominates.
    listen(model, ("timestep_embedder.linear_2.weight",), 8.0)
    if guidance_embeds:
        listen(model, ("guidance_embedder.linear_2.weight",), 2.0)
    return model


@cache
def flux2_vae() -> AutoencoderKLFlux2:
    def make() -> AutoencoderKLFlux2:
        model = AutoencoderKLFlux2(
            latent_channels=LATENT_CHANNELS, block_out_channels=(32, 32, 32, 32), norm_num_groups=8, sample_size=64
        )
        # Zeros and ones before training.  The pipeline scales and shifts latents by these.
        nn.init.normal_(model.bn.running_mean)
        nn.init.uniform_(model.bn.running_var, 2.0, 6.0)
        return model

    return seeded(make)


def flux2(scheduler: Any = None) -> Flux2Pipeline:
    """Return a tiny FLUX.2 dev; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is FLUX.2's own, 1024 x 1024.
    """
    scheduler = flux2_flow() if scheduler is None else scheduler
    return quiet(
        Flux2Pipeline(
            transformer=copy.deepcopy(flux2_transformer()),
            scheduler=scheduler,
            vae=copy.deepcopy(flux2_vae()),
            text_encoder=copy.deepcopy(_mistral3()),
            tokenizer=mistral_tokenizer(),
        )
    )
