"""Qwen-Image: a transformer over packed latents that attends to Qwen2.5-VL's tokens under a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale
from .parts import check_max_sequence_length, decode_frame, image_size, packed_grid, pictures, shift_for
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class QwenImage(GuidedAdapter):
    """``QwenImagePipeline``. Conditions on the tokens of the prompt, clusters by their mean.

    Classifier-free guidance needs a ``true_cfg_scale`` above 1 and a ``negative_prompt`` (``" "`` is enough), as in
    diffusers. The pipeline gives its scheduler no generator: a scheduler that draws noise draws from each prompt's
    generator here, and from torch's global generator there.

    A latent is packed, as the transformer reads it: one token of 4 C values for each 2 x 2 pixels of the VAE's latent.
    """

    name: str = "qwen-image"
    height: int | None = None
    width: int | None = None
    true_cfg_scale: float = 4.0
    negative_prompt: str | None = None
    max_sequence_length: int = 512
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    capturable: ClassVar[bool] = False  # with a mask the transformer copies a number from the host to the device
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"true_cfg_scale", "negative_prompt", "max_sequence_length"})
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=4, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, self.pipe.default_sample_size * factor, multiple=2 * factor)
        check_max_sequence_length(self.max_sequence_length, 1024)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.true_cfg_scale > 1.0 and self.negative_prompt is not None

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Tokens (L_i, D) of each prompt, without the instruction before them and the padding after them."""
        tokens, mask = self.pipe.encode_prompt(prompts, self.device, max_sequence_length=self.max_sequence_length)
        if mask is None:  # all prompts have one length
            return list(tokens)
        return [row[kept.bool()] for row, kept in zip(tokens, mask, strict=True)]

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and their mean."""
        tokens = self._encode(batch.prompts)
        return Encoded({"prompt_embeds": tokens}, vectors=torch.stack([row.float().mean(0) for row in tokens]))

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens; nothing without guidance."""
        if not self.guided:
            return {}
        assert self.negative_prompt is not None
        negative = self._encode([self.negative_prompt])
        return {"true_cfg_scale": scale_row(self.true_cfg_scale), "negative_prompt_embeds": negative}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Evenly spaced noise levels; a scheduler with dynamic shifting shifts them by the number of image tokens."""
        mu = shift_for(scheduler, self.latent_shape()[0])
        set_timesteps(self, scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return packed_grid(self.pipe, self.height, self.width)

    def latent_shape(self) -> tuple[int, ...]:
        """(S, 4 C), S image tokens."""
        rows, columns = self._grid
        return (rows * columns, self.pipe.transformer.config.in_channels)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """Drawn as a video of one frame (1, 1, C, h, w), then packed."""
        rows, columns = self._grid
        channels, h, w = self.pipe.transformer.config.in_channels // 4, 2 * rows, 2 * columns
        noise = torch.randn((1, 1, channels, h, w), generator=generator, dtype=self.noise_dtype)
        return self.pipe._pack_latents(noise, 1, channels, h, w)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows in one call; the pipeline makes two."""
        guidance = Guidance(rows, self.guided, scale="true_cfg_scale")
        x = guidance.twice(latents.to(self.dtype))
        t = guidance.twice(timestep.to(self.dtype) / 1000)  # rounded before the division, as the pipeline does
        tokens, mask = guidance.both_tokens("prompt_embeds")
        output = self.pipe.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=tokens.to(self.dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *self._grid)]] * len(x),
            return_dict=False,
            **denoiser_scale(self.attention_kwargs, "attention_kwargs"),
        )[0].float()  # [B or 2B, S, 4 C]
        guided = guidance.apply(output)
        if self.guided:  # every token gets the length that it has without guidance
            length_of = partial(torch.linalg.vector_norm, dim=-1, keepdim=True)
            conditional = guidance.conditional(output)
            guided = guidance.where_guided(guided * (length_of(conditional) / length_of(guided)), conditional)
        return guided, None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Unpack, scale channel by channel, then decode as a video of one frame."""
        x = self.pipe._unpack_latents(latents, self.height, self.width, self.pipe.vae_scale_factor)  # [B, C, 1, h, w]
        return pictures(self.pipe.image_processor, decode_frame(self.pipe.vae, x, generators))
