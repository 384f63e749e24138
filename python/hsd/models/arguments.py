"""Every argument of the calls of the supported pipelines, and how HSD gives it, or why it does not.

An argument is one of three: a setting of the family, of the same name; given in another way (:data:`GIVEN`); or refused
(:data:`REFUSED`). The families share these tables, the error messages are made from them, and a test compares them with
the signatures of the installed diffusers, so that a new argument has to be decided on.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import diffusers

from ..prompts.known_settings import meant
from .base import Adapter
from .registry import BUILT_IN, PAIRS, adapter_named

_PRIOR_STEPS = "the setting prior_steps"
_SEEDS = "every image draws its own noise: seeds= (or noise='shared' for one first latent) says which"
_ENCODED = (
    "HSD encodes the prompts itself, each once: embeddings= of hsd.compile gives other vectors to cluster by, and an "
    "adapter with its own encode (docs/adapters.md) conditions on others"
)
_CALLBACK = (
    "a step may belong to many images, so nothing is handed out between the steps: progress= of hsd.generate reports "
    "every call, and hsd.stream gives every image when it is finished"
)
_IMAGE = (
    "HSD makes images from text alone with this pipeline: leave it out, or call the pipeline itself. The ControlNet "
    "and image-to-image pipelines of Stable Diffusion and SDXL take an image for all prompts (docs/images.md)"
)
_REFERENCE = (
    "HSD takes the image itself, by the setting ip_adapter_image, for the IP-Adapters of Stable Diffusion and SDXL "
    "(docs/images.md): leave it out"
)
_REFINER = "it is an input of refiners, which HSD does not drive: leave it out"
_THIRD = (
    "it evaluates the network a third time at some steps: leave it out; guidance_interval limits guidance to a part of "
    "the run"
)

GIVEN: dict[str, str] = {
    "prompt": "the first argument, a list",
    "num_inference_steps": "steps=",
    "num_images_per_prompt": "images_per_prompt=",
    "generator": "seeds=",
    "output_type": "PIL images by hsd.stream, files by hsd.generate",
    "return_dict": "one object for each image, by hsd.stream",
    "prior_num_inference_steps": _PRIOR_STEPS,
    "decoder_num_inference_steps": "steps=",
    "super_res_num_inference_steps": "the setting super_res_steps",
    "decoder_guidance_scale": "the setting guidance_scale",
    "image_embeds": "the output of the prior, which HSD runs",
    "negative_image_embeds": "the setting negative_prompt",
    "output_resolution": "the settings height and width",
}
"""Arguments that HSD gives in another way, and how."""

REFUSED: dict[str, str] = {
    "latents": _SEEDS,
    "prior_latents": _SEEDS,
    "decoder_latents": _SEEDS,
    "super_res_latents": _SEEDS,
    "prompt_embeds": _ENCODED,
    "negative_prompt_embeds": _ENCODED,
    "pooled_prompt_embeds": _ENCODED,
    "negative_pooled_prompt_embeds": _ENCODED,
    "prompt_attention_mask": _ENCODED,
    "negative_prompt_attention_mask": _ENCODED,
    "prompt_embeds_mask": _ENCODED,
    "negative_prompt_embeds_mask": _ENCODED,
    "prompt_embeds_qwen": _ENCODED,
    "prompt_embeds_clip": _ENCODED,
    "prompt_cu_seqlens": _ENCODED,
    "negative_prompt_embeds_qwen": _ENCODED,
    "negative_prompt_embeds_clip": _ENCODED,
    "negative_prompt_cu_seqlens": _ENCODED,
    "text_model_output": _ENCODED,
    "text_attention_mask": _ENCODED,
    "callback": _CALLBACK,
    "callback_steps": _CALLBACK,
    "callback_on_step_end": _CALLBACK,
    "callback_on_step_end_tensor_inputs": _CALLBACK,
    "prior_callback_on_step_end": _CALLBACK,
    "prior_callback_on_step_end_tensor_inputs": _CALLBACK,
    "ip_adapter_image": _REFERENCE,
    "ip_adapter_image_embeds": _REFERENCE,
    "negative_ip_adapter_image": _REFERENCE,
    "negative_ip_adapter_image_embeds": _REFERENCE,
    "image": _IMAGE,
    "denoising_start": "HSD does not continue from latents of another model: strength says where denoising begins",
    "aesthetic_score": _REFINER,
    "negative_aesthetic_score": _REFINER,
    "caption_upsample_temperature": "prompts are used as they are: call pipe.upsample_prompt, and pass its output",
    "use_pe": "prompts are used as they are: enhance them first, if you like, and pass the texts that this gives",
    "use_kv_cache": (
        "lanes of one call are at different steps of different prompts, so the text's keys and values are computed in "
        "each call: leave it out"
    ),
    "denoising_end": "HSD gives finished images only, so that a refiner cannot continue: run the base model to its end",
    "skip_guidance_layers": _THIRD,
    "skip_layer_guidance_scale": _THIRD,
    "skip_layer_guidance_stop": _THIRD,
    "skip_layer_guidance_start": _THIRD,
}
"""Arguments that HSD does not take, why, and what to do instead."""

FOR_ONE: dict[tuple[str, str], str] = {
    ("QwenImagePipeline", "guidance_scale"): (
        "it is for models distilled with it, which diffusers' transformer cannot run: the setting true_cfg_scale guides"
    ),
    ("KandinskyV22PriorPipeline", "num_inference_steps"): _PRIOR_STEPS,
    ("KandinskyV22PriorPipeline", "guidance_scale"): "the setting prior_guidance_scale",
}
"""What is said of an argument of one pipeline instead of what the tables say of its name."""

ELSEWHERE: dict[str, str] = {
    "seed": "seeds= takes one number, or one for each image",
    "num_steps": "here it is steps=",
    "scheduler": "with_scheduler gives a copy of the model another one",
    "lora_scale": "pass {scale} for all LoRAs, or call pipe.set_adapters for single ones",
    "mask_image": _IMAGE,
    "control_image": _IMAGE,
    "pag_scale": _THIRD,
    "guidance_scale_2": "it belongs to a second denoiser, which none of the supported pipelines has",
}
"""Names that no supported pipeline takes, but that users of diffusers know."""

Kind = Literal["setting", "given", "refused"]


@dataclass(frozen=True)
class Decision:
    """What HSD does with an argument of a pipeline's call."""

    kind: Kind
    text: str
    """How it is given, or why not and what to do; empty for a setting."""


def pipelines_of(adapter: type[Adapter]) -> list[Any]:
    """The diffusers classes that a built-in adapter drives: for Kandinsky also those of the pair."""
    pairs = [name for pair, combined in PAIRS.items() if combined in adapter.pipelines for name in pair]
    return [getattr(diffusers, name) for name in (*adapter.pipelines, *pairs)]


def arguments_of(pipeline: Any) -> list[str]:
    """Names of the arguments of a pipeline's call."""
    parameters = list(inspect.signature(pipeline.__call__).parameters.values())[1:]
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]


def decision(adapter: type[Adapter], pipeline: Any, argument: str) -> Decision | None:
    """What HSD does with an argument; None if nobody has decided on it."""
    special = FOR_ONE.get((pipeline.__name__, argument))
    if special is not None:
        return Decision("given" if special.startswith("the setting") else "refused", special)
    if argument in adapter.setting_names():
        return Decision("setting", "")
    if argument in GIVEN:
        return Decision("given", GIVEN[argument])
    return Decision("refused", REFUSED[argument]) if argument in REFUSED else None


def why_no_setting(adapter: type[Adapter], name: str) -> str:
    """Why a family has no setting of this name, and what to do instead; ends without a full stop."""
    for pipeline in pipelines_of(adapter) if adapter.__module__.startswith(__package__ or "") else ():
        if name in arguments_of(pipeline):
            found = decision(adapter, pipeline, name)
            if found is not None and found.kind == "refused":
                return found.text
    accepted = adapter.setting_names()
    if name in GIVEN:
        return f"here it is {GIVEN[name]}"
    known = {**REFUSED, **ELSEWHERE}.get(name)
    if known is not None:
        scale = next((f'{each}={{"scale": ...}}' for each in accepted if each.endswith("attention_kwargs")), "a scale")
        return known.format(scale=scale) if "{scale}" in known else known
    owners = [family.__name__ for family in _families() if name in family.setting_names()]
    if owners:
        return f"its pipeline does not take it; {', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it"
    near = difflib.get_close_matches(name, accepted, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    other = meant(name, accepted)
    if other is not None and ("did you mean" not in other or any(repr(one) in other for one in accepted)):
        return other
    return "it is no argument of a pipeline that HSD knows"


def _families() -> list[type[Adapter]]:
    """The built-in adapters that this version of diffusers can run."""
    return [each for name in BUILT_IN if hasattr(diffusers, name) and (each := adapter_named(name)) is not None]
