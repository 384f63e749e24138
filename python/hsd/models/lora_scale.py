"""The settings ``cross_attention_kwargs``, ``joint_attention_kwargs`` and ``attention_kwargs``: the scale of LoRAs.

Pipelines name them differently, and all use them for the same: ``{"scale": 0.7}`` weighs every LoRA that is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NAMES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")

_REFUSED = {
    "gligen": "boxes belong to a prompt, and HSD conditions on text alone",
    "ip_adapter_image_embeds": "the setting ip_adapter_image gives IP-Adapters their image, where a family has it",
    "ip_adapter_masks": "HSD gives IP-Adapters an image without a mask",
}


def check_lora_scale(adapter: Any) -> None:
    """Make a ``dict`` of a family's setting of these names, and check it.

    Raises
    ------
    TypeError
        Unless it is a mapping with nothing but the number ``scale``.
    """
    for name in NAMES:
        value = getattr(adapter, name, None)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise TypeError(f'{name} is {value!r}: it has to be a mapping, {{"scale": 0.7}} for example')
        for key, scale in value.items():
            if key != "scale":
                why = _REFUSED.get(key, "HSD hands on the scale of LoRAs only")
                raise TypeError(f"{name} has {key!r}, which is not supported: {why}. Leave it out")
            if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not math.isfinite(scale):
                raise TypeError(f'{name} has "scale": {scale!r}: it has to be a finite number')
        setattr(adapter, name, {key: float(scale) for key, scale in value.items()})


def encoder_scale(value: Mapping[str, float] | None) -> dict[str, float]:
    """``lora_scale`` for ``encode_prompt``, or nothing: it scales the LoRAs of the text encoders."""
    return {"lora_scale": value["scale"]} if value else {}


def denoiser_scale(value: Mapping[str, float] | None, name: str) -> dict[str, Any]:
    """``name`` for the denoiser's call, or nothing: it scales the LoRAs of the denoiser, for that call."""
    return {name: dict(value)} if value else {}
