"""A tiny FLUX.2 Klein, base and distilled."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from transformers import Qwen3Config, Qwen3ForCausalLM

from .flux2 import MISTRAL_WIDTH, flux2_transformer, flux2_vae
from .parts import quiet, qwen_tokenizer, seeded


def flux2_klein_flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow matching scheduler as FLUX.2 Klein configures it: the pipeline shifts it by size and steps."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential")


@cache
def _qwen3() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=MISTRAL_WIDTH,
        intermediate_size=37,
        num_hidden_layers=28,  # the pipeline reads the outputs of the 9th, 18th and 27th; the last is normalised
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    return seeded(lambda: Qwen3ForCausalLM(config))


def flux2_klein(scheduler: Any = None, is_distilled: bool = False) -> Flux2KleinPipeline:
    """Return a tiny FLUX.2 Klein; flow matching unless `scheduler` is given.

    A token is 16 x 16 pixels, so that an image of 64 x 64 has 16.  The default size is FLUX.2's own, 1024 x 1024.
    """
    scheduler = flux2_klein_flow() if scheduler is None else scheduler
    return quiet(
        Flux2KleinPipeline(
            transformer=copy.deepcopy(flux2_transformer(guidance_embeds=False)),
            scheduler=scheduler,
            vae=copy.deepcopy(flux2_vae()),
            text_encoder=copy.deepcopy(_qwen3()),
            tokenizer=qwen_tokenizer(),
            is_distilled=is_distilled,
        )
    )
