"""Stable Diffusion 1.x and 2.x: a UNet that attends to CLIP's text tokens."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning import Conditioning
from .base import Adapter, EncodeProgress, batches, check_size, guide

_TEXT_BATCH = 64


@dataclass(eq=False)
class StableDiffusion(Adapter):
    """``StableDiffusionPipeline``. Clusters by the text encoder's pooled output, conditions on its tokens."""

    name: str = "stable-diffusion"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)

    def __post_init__(self) -> None:
        size = self.pipe.unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self.height = self.height or native[0] * self.pipe.vae_scale_factor
        self.width = self.width or native[1] * self.pipe.vae_scale_factor
        check_size("height", self.height, 8)
        check_size("width", self.width, 8)

    @property
    def dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline makes its latents in it."""
        return self.pipe.text_encoder.dtype

    @property
    def _guided(self) -> bool:
        # Distilled models (LCM) take the scale as an input and have no unconditional half.
        return self.guidance_scale > 1.0 and self.pipe.unet.config.time_cond_proj_dim is None

    @torch.no_grad()
    def encode(
        self, prompts: list[str], seeds: NDArray[np.int64], progress: EncodeProgress | None = None
    ) -> Conditioning:
        """Each distinct prompt once: tokens (R, 77, D) and the pooled vector."""
        distinct = list(dict.fromkeys(prompts))
        row = {prompt: i for i, prompt in enumerate(distinct)}
        tokens: list[Tensor] = []
        pooled: list[Tensor] = []
        for part in batches(len(distinct), _TEXT_BATCH):
            batch = distinct[part]
            tokens.append(self.pipe.encode_prompt(batch, self.device, 1, False)[0].cpu())
            pooled.append(self._pooled(batch))
            if progress:
                progress(part.stop * len(prompts) // len(distinct))
        shared = {}
        if self._guided:
            negative = self.pipe.encode_prompt(self.negative_prompt or "", self.device, 1, False)[0]
            shared["negative_prompt_embeds"] = negative.cpu()
        index = torch.tensor([row[prompt] for prompt in prompts])
        vectors = torch.cat(pooled)[index].numpy()
        return Conditioning({"prompt_embeds": torch.cat(tokens)}, shared, vectors, index)

    def _pooled(self, prompts: list[str]) -> Tensor:
        """(B, D) float32: the state at the end of each text."""
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
        return encoder(batch.input_ids.to(self.device), attention_mask=mask).pooler_output.float().cpu()

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return {"eta": self.eta} if "eta" in inspect.signature(scheduler.step).parameters else {}

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        sides = [side // self.pipe.vae_scale_factor for side in (self.height, self.width) if side is not None]
        return (self.pipe.unet.config.in_channels, *sides)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows."""
        unet = self.pipe.unet
        x = latents.to(unet.dtype)
        tokens = rows["prompt_embeds"]
        if self._guided:
            tokens = torch.cat([rows["negative_prompt_embeds"], tokens])
            x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep])
        guidance = None
        if unet.config.time_cond_proj_dim is not None:
            scale = torch.full((len(x),), self.guidance_scale - 1.0)
            guidance = self.pipe.get_guidance_scale_embedding(scale, embedding_dim=unet.config.time_cond_proj_dim)
            guidance = guidance.to(x.device, x.dtype)
        output = unet(
            x,
            timestep,
            encoder_hidden_states=tokens.to(unet.dtype),
            timestep_cond=guidance,
            return_dict=False,
        )[0].float()  # [B or 2B, C, h, w]
        if not self._guided:
            return output, None
        guided = guide(output, self.guidance_scale)
        if self.guidance_rescale > 0.0:
            guided = rescale_noise_cfg(guided, output.chunk(2)[1], guidance_rescale=self.guidance_rescale)
        return guided, None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[PIL.Image.Image]:
        """The VAE, then the safety checker where the pipeline has one (it blacks images out, as diffusers does)."""
        vae = self.pipe.vae
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        image, flagged = self.pipe.run_safety_checker(image, self.device, self.dtype)
        keep = [True] * len(image) if flagged is None else [not flag for flag in flagged]
        return self.pipe.image_processor.postprocess(image.detach(), output_type="pil", do_denormalize=keep)
