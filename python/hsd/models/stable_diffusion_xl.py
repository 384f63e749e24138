"""Stable Diffusion XL: a UNet that attends to the tokens of two CLIPs; a pooled text and sizes are inputs too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded, has_offload_hooks
from .base import LATER
from .guidance import Guidance
from .lora_scale import encoder_scale
from .parts import Pair, check_clip_skip, image_size, pair, pictures, texts, vae_decode
from .precision import in_float32, own_dtype
from .refusals import Needs
from .unet import UNetAdapter

_PAIRS = (
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)


@dataclass(eq=False)
class StableDiffusionXL(UNetAdapter):
    """``StableDiffusionXLPipeline``. Clusters by the second CLIP's projected text, conditions on it, tokens and sizes.

    ``prompt_2`` is another text for the second CLIP, which the vector is from; None or an empty text: the prompt.

    Sizes are (height, width). ``original_size`` and ``target_size`` are the image's size where they are None. Give both
    negative sizes or neither. (Called with several prompts, diffusers' pipeline swaps positive and
    negative sizes for some of them; here each prompt gets the sizes that diffusers gives it in a call by itself.)
    """

    name: str = "stable-diffusion-xl"
    guidance_scale: float = 5.0
    clip_skip: int | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair = (0, 0)
    negative_target_size: Pair | None = None
    prompt_2: str | None = field(default=None, metadata=LATER)
    negative_prompt_2: str | None = field(default=None, metadata=LATER)

    encode_batch: ClassVar[int] = 64
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"negative_prompt", "guidance_scale", "clip_skip", "prompt_2", "negative_prompt_2", *_PAIRS}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder_2", "tokenizer_2", "unet", "vae", "scheduler"), channels=1, text_only=True, ip_adapter=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        side = getattr(self.pipe, "default_sample_size", None) or self.pipe.unet.config.sample_size
        native = side * self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, native, multiple=8)
        encoders = [self.pipe.text_encoder, self.pipe.text_encoder_2]
        check_clip_skip(self.clip_skip, [encoder for encoder in encoders if encoder is not None], most=1)
        if self.negative_prompt_2 and self.negative_prompt is None and self.pipe.config.force_zeros_for_empty_prompt:
            raise ValueError(
                "negative_prompt_2 is given without negative_prompt, and then the pipeline does not use it: give both"
            )
        for name in _PAIRS:
            if getattr(self, name) is not None:
                setattr(self, name, pair(name, getattr(self, name)))
        if (self.negative_original_size is None) != (self.negative_target_size is None):
            raise ValueError(
                f"negative_original_size is {self.negative_original_size} and negative_target_size is "
                f"{self.negative_target_size}: give both or neither"
            )

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder_2.dtype

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77, D) of both CLIPs side by side, and the pooled vector (B, P)."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            batch.prompts,
            texts(self.prompt_2, len(batch)),
            device=self.device,
            do_classifier_free_guidance=False,
            clip_skip=self.clip_skip,
            **encoder_scale(self.cross_attention_kwargs),
        )
        return Encoded({"prompt_embeds": tokens, "text_embeds": pooled}, vectors=pooled)

    def shared(self) -> dict[str, Any]:
        """What all UNets have, sizes, and the encoded negative prompt; without one, most models use zeros."""
        rows = super().shared()
        size = (self.height, self.width)
        rows["time_ids"] = self._time_ids(
            self.original_size or size, self.crops_coords_top_left, self.target_size or size
        )
        if self.guided:
            negative = None if self.negative_prompt is None else [self.negative_prompt]
            encoded = self.pipe.encode_prompt(
                [""],
                device=self.device,
                negative_prompt=negative,
                negative_prompt_2=texts(self.negative_prompt_2, 1),
                **encoder_scale(self.cross_attention_kwargs),
            )
            rows["negative_prompt_embeds"], rows["negative_text_embeds"] = encoded[1], encoded[3]
            rows["negative_time_ids"] = rows["time_ids"]
            if self.negative_original_size is not None and self.negative_target_size is not None:
                rows["negative_time_ids"] = self._time_ids(
                    self.negative_original_size, self._negative_crops, self.negative_target_size
                )
        return rows

    @property
    def _negative_crops(self) -> Pair:
        return self.negative_crops_coords_top_left

    def _time_ids(self, *pairs: Any) -> Tensor:
        """(1, 6), in the dtype to which the pipeline rounds them."""
        return torch.tensor([[value for pair in pairs for value in pair]], dtype=self.noise_dtype)

    def added(self, guidance: Guidance) -> dict[str, Tensor]:
        """The pooled texts and the sizes."""
        pooled = guidance.both("text_embeds").to(self.pipe.unet.dtype)
        return {"text_embeds": pooled, "time_ids": guidance.both("time_ids")}

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE, in float32 if it would overflow in float16; then the watermark, if the pipeline has one."""
        vae, config = self.pipe.vae, self.pipe.vae.config
        mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            mean, std = (torch.tensor(value, device=latents.device).view(1, -1, 1, 1) for value in (mean, std))
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        with self._in_float32_if_needed():
            image = vae_decode(vae, latents, generators)
        if self.pipe.watermark is not None:
            image = self.pipe.watermark.apply_watermark(image)
        return pictures(self.pipe.image_processor, image)

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """The VAE in float32, where :meth:`decode` needs that, so that it is converted once and not for each batch.

        Offloaded weights are moved for each batch, and converted with it.
        """
        with contextlib.nullcontext() if has_offload_hooks(self.pipe.vae) else self._in_float32_if_needed():
            yield

    def _in_float32_if_needed(self) -> AbstractContextManager[None]:
        """The VAE in float32 if its own dtype is float16, in which it would overflow (``force_upcast``)."""
        vae = self.pipe.vae
        needed = own_dtype(vae) == torch.float16 and vae.config.force_upcast
        return in_float32([vae]) if needed else contextlib.nullcontext()
