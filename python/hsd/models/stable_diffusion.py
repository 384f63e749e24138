"""Stable Diffusion 1.x and 2.x: a UNet that attends to CLIP's text tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import Pictures
from .lora_scale import encoder_scale
from .parts import check_clip_skip, check_size, clip_tokens, pictures, vae_decode
from .refusals import Needs
from .unet import UNetAdapter


@dataclass(eq=False)
class StableDiffusion(UNetAdapter):
    """``StableDiffusionPipeline``. Clusters by the text encoder's pooled output, conditions on its tokens."""

    name: str = "stable-diffusion"

    encode_batch: ClassVar[int] = 64
    lane_settings: ClassVar[frozenset[str]] = frozenset({"negative_prompt", "guidance_scale", "clip_skip"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "unet", "vae", "scheduler"), channels=1, text_only=True, ip_adapter=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.pipe.unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self.height = self.height or native[0] * self.pipe.vae_scale_factor
        self.width = self.width or native[1] * self.pipe.vae_scale_factor
        check_size("height", self.height, 8)
        check_size("width", self.width, 8)
        check_clip_skip(self.clip_skip, [self.pipe.text_encoder], most=0)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77, D) and the pooled vector."""
        tokens = self._tokens(batch.prompts, self.clip_skip)
        return Encoded({"prompt_embeds": tokens}, self._pooled(batch.prompts))

    def _tokens(self, prompts: list[str], clip_skip: int | None) -> Tensor:
        scale = encoder_scale(self.cross_attention_kwargs)
        return clip_tokens(self.pipe, prompts, self.device, clip_skip, **scale)

    def shared(self) -> dict[str, Any]:
        """What all UNets have, and the negative prompt's tokens, which skip no layers."""
        rows = super().shared()
        if self.guided:
            rows["negative_prompt_embeds"] = self._tokens([self.negative_prompt or ""], None)
        return rows

    def _pooled(self, prompts: list[str]) -> Tensor:
        """(B, D), the text encoder's output at the last token of each text."""
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        batch = tokenizer(
            self.pipe.maybe_convert_prompt(prompts, tokenizer),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = batch.attention_mask.to(self.device) if masked else None
        return encoder(batch.input_ids.to(self.device), attention_mask=mask).pooler_output

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE, then the safety checker, if the pipeline has one; it makes flagged images black, as in diffusers."""
        vae = self.pipe.vae
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        image, flagged = self.pipe.run_safety_checker(image, self.device, self.noise_dtype)
        keep = [True] * len(image) if flagged is None else [not flag for flag in flagged]
        images = pictures(self.pipe.image_processor, image.detach(), keep)
        return Pictures(images, nsfw=flagged)
