"""Stable Diffusion 1.x and 2.x: a UNet that attends to CLIP's text tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER, Pictures
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale, encoder_scale
from .parts import check_clip_skip, check_size, clip_tokens, eta_for, pictures, unet_latent, vae_decode
from .refusals import Needs


@dataclass(eq=False)
class StableDiffusion(GuidedAdapter):
    """``StableDiffusionPipeline``. Clusters by the text encoder's pooled output, conditions on its tokens."""

    name: str = "stable-diffusion"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0
    clip_skip: int | None = field(default=None, metadata=LATER)
    timesteps: tuple[int | float, ...] | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    cross_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    encode_batch: ClassVar[int] = 64
    lane_settings: ClassVar[frozenset[str]] = frozenset({"negative_prompt", "guidance_scale", "clip_skip"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "unet", "vae", "scheduler"), channels=1, text_only=True
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

    @property
    def guided(self) -> bool:
        """Distilled models (LCM) take the scale as an input and have no unconditional half."""
        return self.guidance_scale > 1.0 and self.pipe.unet.config.time_cond_proj_dim is None

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77, D) and the pooled vector."""
        tokens = self._tokens(batch.prompts, self.clip_skip)
        return Encoded({"prompt_embeds": tokens}, self._pooled(batch.prompts))

    def _tokens(self, prompts: list[str], clip_skip: int | None) -> Tensor:
        scale = encoder_scale(self.cross_attention_kwargs)
        return clip_tokens(self.pipe, prompts, self.device, clip_skip, **scale)

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens, which skip no layers."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"] = self._tokens([self.negative_prompt or ""], None)
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is not None:  # a tensor on the host, as diffusers' function takes it
            rows["timestep_cond"] = self.pipe.get_guidance_scale_embedding(rows["guidance_scale"] - 1.0, width)
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

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return unet_latent(self.pipe, self.height, self.width)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows."""
        unet, guidance = self.pipe.unet, Guidance(rows, self.guided)
        condition = rows.get("timestep_cond")
        output = unet(
            guidance.twice(latents.to(unet.dtype)),
            guidance.twice(timestep),
            encoder_hidden_states=guidance.both("prompt_embeds").to(unet.dtype),
            timestep_cond=None if condition is None else condition.to(unet.dtype),
            return_dict=False,
            **denoiser_scale(self.cross_attention_kwargs, "cross_attention_kwargs"),
        )[0].float()  # [B or 2B, C, h, w]
        guided = guidance.apply(output)
        if self.guided and self.guidance_rescale > 0.0:
            conditional = guidance.conditional(output)
            rescaled = rescale_noise_cfg(guided, conditional, guidance_rescale=self.guidance_rescale)
            guided = guidance.where_guided(rescaled, guided)
        return guided, None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE, then the safety checker, if the pipeline has one; it makes flagged images black, as in diffusers."""
        vae = self.pipe.vae
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        image, flagged = self.pipe.run_safety_checker(image, self.device, self.noise_dtype)
        keep = [True] * len(image) if flagged is None else [not flag for flag in flagged]
        images = pictures(self.pipe.image_processor, image.detach(), keep)
        return Pictures(images, nsfw=flagged)
