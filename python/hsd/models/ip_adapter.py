"""IP-Adapters (Ye et al., arXiv 2308.06721): a reference image whose embedding the UNet attends to beside the text.

The image is the same for all prompts of a set. It is encoded once; its strength, ``pipe.set_ip_adapter_scale``, is
read from the pipeline.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UnsupportedPipeline
from .guidance import Guidance
from .refusals import ip_adapters
from .shared_image import shared_images

_ROW = "image_embeds_"
"""Beginning of the names of the rows; the number of the IP-Adapter follows."""


def check_ip_adapter(adapter: Any) -> None:
    """Read an adapter's ``ip_adapter_image``, and compare it with the IP-Adapters that its pipeline has.

    Raises
    ------
    ValueError, TypeError
        As :func:`~hsd.models.shared_image.shared_images`.
    UnsupportedPipeline
        If the pipeline cannot encode an image.
    """
    if adapter.ip_adapter_image is None:
        return
    pipe, n = adapter.pipe, ip_adapters(adapter.pipe.unet)
    for part in ("image_encoder", "feature_extractor"):
        if getattr(pipe, part, None) is None:
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has an IP-Adapter and no {part}, so that ip_adapter_image cannot be encoded: "
                "load the pipeline with it. IP-Adapters that take other embeddings, of faces for example, are not "
                "supported"
            )
    images = shared_images("ip_adapter_image", adapter.ip_adapter_image, n, "IP-Adapter")
    adapter.ip_adapter_image = images[0] if n == 1 else images


def ip_adapter_rows(adapter: Any) -> dict[str, Any]:
    """The embeddings of the images as rows (1, 1, ...), one for each IP-Adapter; with guidance also the negative ones.

    The pipeline's own encoding. The negative embedding is zeros, or that of a black image.
    """
    if adapter.ip_adapter_image is None:
        return {}
    given = adapter.ip_adapter_image
    images = [image.pil for image in (given if isinstance(given, tuple) else (given,))]
    embeds = adapter.pipe.prepare_ip_adapter_image_embeds(images, None, adapter.device, 1, adapter.guided)
    rows: dict[str, Any] = {}
    for i, embed in enumerate(embeds):  # [2 or 1, 1, ...], the negative one first
        rows[f"{_ROW}{i}"] = embed[-1:]
        if adapter.guided:
            rows[f"negative_{_ROW}{i}"] = embed[:1]
    return rows


def ip_adapter_embeds(guidance: Guidance) -> dict[str, list[Tensor]]:
    """The entry of the UNet's ``added_cond_kwargs``; none without an IP-Adapter."""
    n = sum(name.startswith(_ROW) for name in guidance.rows)
    return {"image_embeds": [guidance.both(f"{_ROW}{i}") for i in range(n)]} if n else {}
