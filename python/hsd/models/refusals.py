"""Pipeline objects that no adapter can drive are refused when they are loaded, and the message says what to do."""

from __future__ import annotations

from typing import Any

from diffusers.models.embeddings import MultiIPAdapterImageProjection

from ..errors import UnsupportedPipeline


def refuse_ip_adapter(pipe: Any) -> None:
    """``UnsupportedPipeline`` if an IP-Adapter is loaded: it conditions on an image, and prompts have none."""
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    in_unet_or_flux = isinstance(getattr(denoiser, "encoder_hid_proj", None), MultiIPAdapterImageProjection)
    in_sd3 = getattr(denoiser, "image_proj", None) is not None
    if in_unet_or_flux or in_sd3:
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} has an IP-Adapter, and there is no image to give it: call pipe.unload_ip_adapter()"
        )


def require_text_encoders(pipe: Any, *names: str) -> None:
    """``UnsupportedPipeline`` unless the pipeline has all the text encoders of these names."""
    for name in names:
        if getattr(pipe, name, None) is None:
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has no {name}: load the pipeline with it, so that prompts can be encoded"
            )
