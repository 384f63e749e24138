"""Arguments of the calls of diffusers' pipelines and of HSD: what to do where one is given to another call.

The tables need neither torch nor diffusers, so that :func:`hsd.compile` can say at once what to do.
"""

from __future__ import annotations

from .known_settings import KNOWN, perhaps_meant

PRIOR_STEPS = "the setting prior_steps"
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
    "prior_num_inference_steps": PRIOR_STEPS,
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

OF_A_RUN: dict[str, str] = {
    **dict.fromkeys(("batch_size", "order", "max_slots", "compile", "cuda_graphs", "channels_last", "failed"), ""),
    **dict.fromkeys(("out", "image_format", "keep_forks", "keep_trunks"), "hsd.generate"),
}
"""Arguments of :func:`hsd.generate`, and the functions that have them; empty: :func:`hsd.stream` has them too."""

_OUT = "hsd.generate writes the images to its argument out="
_FORMAT = "hsd.generate has image_format="

MEANT_OF_A_RUN: dict[str, str] = {
    "output_dir": _OUT,
    "out_dir": _OUT,
    "save_dir": _OUT,
    "output": _OUT,
    "format": _FORMAT,
    "file_format": _FORMAT,
    "ext": _FORMAT,
    "callback_on_failure": "hsd.generate and hsd.stream have failed=",
}
"""Other names for arguments of a run."""

_OF_LOADING = ("device", "dtype", "scheduler")


def not_of_compile(name: str) -> str | None:
    """Where what is no argument of :func:`hsd.compile` belongs, without a full stop; None for unknown names."""
    if name in GIVEN and name not in KNOWN:
        return f"here it is {GIVEN[name]}"
    if name in KNOWN:
        return (
            "it is a setting of the model. For all prompts give it to hsd.load, or to the hsd.generate or hsd.stream "
            f"that loads the model; for single prompts, settings=[{{{name!r}: ...}}, ...] has one entry for each"
        )
    if name in _OF_LOADING:
        return f"give it to hsd.load, and what that returns as model=: model=hsd.load(MODEL, {name}=...)"
    if name == "torch_dtype":
        return "hsd.load has dtype=: model=hsd.load(MODEL, dtype=...)"
    text = of_a_run(name) or {**REFUSED, **ELSEWHERE}.get(name)
    if text is not None:
        return text.format(scale='the setting cross_attention_kwargs={"scale": ...}') if "{scale}" in text else text
    setting = perhaps_meant(name)
    return None if setting is None else f"did you mean the setting {setting!r}? hsd.load takes it, for all prompts"


def of_a_run(name: str) -> str | None:
    """Which call has an argument of a run, by its name or by another one; None if there is none."""
    if name in OF_A_RUN:
        return f"it is an argument of {OF_A_RUN[name] or 'hsd.generate and hsd.stream'}"
    return MEANT_OF_A_RUN.get(name)
