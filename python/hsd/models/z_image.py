"""Z-Image: one stream of image and caption tokens, whose captions are lists of differing lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from ..work.broadcast import per_row
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale
from .parts import check_size, pictures, shift_for, vae_decode
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class ZImage(GuidedAdapter):
    """``ZImagePipeline``. Conditions on Qwen3's tokens, clusters by their mean.

    The output is ``conditional + scale (conditional - unconditional)``, so there is guidance with a scale above 0, not
    above 1. The pipeline gives its scheduler no generator: a scheduler that draws noise draws from each prompt's
    generator here, and from torch's global generator there.
    """

    name: str = "z-image"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 5.0
    negative_prompt: str | None = None
    cfg_normalization: bool | float = False
    cfg_truncation: float | None = 1.0
    max_sequence_length: int = 512
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    joint_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    capturable: ClassVar[bool] = False  # it reads the captions' lengths
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"negative_prompt", "guidance_scale", "max_sequence_length"})
    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=1, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple = 2 * self.pipe.vae_scale_factor
        check_size("height", self.height, multiple)
        check_size("width", self.width, multiple)

    @property
    def guided(self) -> bool:
        """Whether the scale is above 0, as in the pipeline."""
        return self.guidance_scale > 0.0

    @property
    def noise_dtype(self) -> torch.dtype:
        """The pipeline's latents are always float32."""
        return torch.float32

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and their mean without the first: a causal model's first token is the same for every prompt."""
        tokens = self._tokens(batch.prompts)
        return Encoded({"prompt_embeds": tokens}, torch.stack([row[1:].float().mean(0) for row in tokens]))

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"] = self._tokens([self.negative_prompt or ""])
        return rows

    def _tokens(self, prompts: list[str]) -> list[Tensor]:
        # A copy: the pipeline writes the chat template into the list that it is given.
        return self.pipe.encode_prompt(list(prompts), self.device, False, max_sequence_length=self.max_sequence_length)[
            0
        ]

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """The pipeline's sigmas; a scheduler with dynamic shifting shifts them by the number of image tokens."""
        _, h, w = self.latent_shape()
        mu = shift_for(scheduler, (h // 2) * (w // 2))
        set_timesteps(self, scheduler, steps, sigmas=get_default_z_image_sigmas(steps), mu=mu)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.in_channels, self.height // factor, self.width // factor)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [conditional; unconditional] rows.

        It pads every caption to a multiple of 32, with tokens that are attended to, so it needs each caption without
        our padding. For that the lengths are copied from the device to the host, once per call.
        """
        x = latents.to(self.dtype).unsqueeze(2)  # [B, C, 1, h, w]
        tokens = ["prompt_embeds", "negative_prompt_embeds"][: 2 if self.guided else 1]
        lengths = torch.cat([rows[f"{name}_mask"].sum(1) for name in tokens]).tolist()
        padded = [row for name in tokens for row in rows[name].to(x.dtype)]
        captions = [row[:length] for row, length in zip(padded, lengths, strict=True)]
        time = (1000 - timestep) / 1000  # 0 is noise, 1 is the image
        images, times = list(x) * len(tokens), time.repeat(len(tokens))
        guidance = Guidance(rows, self.guided)
        if guidance.picked is not None:  # it counts the unconditional half first
            picked = ((guidance.picked + len(x)) % len(images)).tolist()
            images, captions, times = [images[i] for i in picked], [captions[i] for i in picked], times[picked]
        scale = denoiser_scale(self.joint_attention_kwargs, "joint_attention_kwargs")
        output = torch.stack(self.pipe.transformer(images, times, captions, return_dict=False, **scale)[0])
        output = output.float().squeeze(2)  # [B or 2B, C, h, w]
        if self.guided:
            halves = output.chunk(2) if guidance.picked is None else guidance.halves(output)[::-1]
            guided = self._guide(*halves, time=(1000 - timestep.float()) / 1000, scale=rows["guidance_scale"])
            output = guidance.where_guided(guided, halves[0])
        return -output, None

    def _guide(self, conditional: Tensor, unconditional: Tensor, *, time: Tensor, scale: Tensor) -> Tensor:
        """The guided output, its norm at most ``cfg_normalization`` times that of the conditional output.

        At times after ``cfg_truncation`` it is the conditional output.
        """
        guided = conditional + per_row(scale, conditional) * (conditional - unconditional)
        if self.cfg_normalization and float(self.cfg_normalization) > 0.0:
            norm, limit = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (guided, conditional))
            limit = limit * float(self.cfg_normalization)
            guided = guided * per_row(torch.where(norm > limit, limit / norm, 1.0), guided)
        if self.cfg_truncation is not None and float(self.cfg_truncation) <= 1:
            late = time.double() > float(self.cfg_truncation)  # compared in double precision, as the pipeline does
            guided = torch.where(per_row(late, guided), conditional, guided)
        return guided

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE."""
        vae = self.pipe.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae_decode(vae, latents, generators)
        return pictures(self.pipe.image_processor, image)
