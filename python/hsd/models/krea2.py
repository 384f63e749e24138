"""Krea 2: a transformer over packed latents that attends to the outputs of several layers of Qwen3-VL under a mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale
from .parts import check_max_sequence_length, decode_frame, image_size, packed_grid, pictures, say_once, shift_for
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class Krea2(GuidedAdapter):
    """``Krea2Pipeline``. Conditions on the tokens of several layers, clusters by the mean of those of the prompt.

    The mean is over the layers too. With guidance scale g the output is c + g (c - u), and g above 0 is guided, as in
    the pipeline: 4.5 is what other families call 5.5. The distilled model (``is_distilled``) is made for
    ``guidance_scale=0`` and 8 steps. A scheduler that draws noise draws from each prompt's generator here, and from
    torch's global generator in the pipeline.

    A latent is packed, as the transformer reads it: one token of 4 C values for each 2 x 2 pixels of the VAE's latent.
    """

    name: str = "krea-2"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 4.5
    negative_prompt: str | None = None
    max_sequence_length: int = 512
    sigmas: tuple[float, ...] | None = None
    attention_kwargs: dict[str, float] | None = None

    default_catch_up: ClassVar[float] = 1.0
    encode_batch: ClassVar[int] = 8  # small: the text encoder keeps the outputs of all its layers
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"guidance_scale", "negative_prompt", "max_sequence_length"})
    pipelines: ClassVar[tuple[str, ...]] = ("Krea2Pipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=4, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.height, self.width = image_size(self, 1024, multiple=2 * self.pipe.vae_scale_factor)
        most = self.pipe.text_encoder.config.get_text_config().max_position_embeddings
        check_max_sequence_length(self.max_sequence_length, most - self.pipe.prompt_template_encode_start_idx)
        if self.pipe.config.is_distilled and self.guided:
            say_once(
                f"this Krea 2 is distilled, and made for images without guidance in 8 steps: guidance_scale="
                f"{self.guidance_scale:g} guides it nevertheless, as in the pipeline. Pass guidance_scale=0"
            )

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
        """Whether the scale is above 0, as in the pipeline."""
        return self.guidance_scale > 0.0

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Tokens (L_i, n, D) of n layers: those that end every prompt's chat, then the prompt's own, without padding.

        For the transformer they have no order. Those that every prompt has are first, so that the mean of a cluster,
        which is taken by position, is of tokens with one meaning there.
        """
        tokens, mask = self.pipe.encode_prompt(prompts, self.device, max_sequence_length=self.max_sequence_length)
        end = self._template_tokens
        return [torch.cat([row[-end:], row[:-end][kept[:-end]]]) for row, kept in zip(tokens, mask, strict=True)]

    @property
    def _template_tokens(self) -> int:
        """Number of tokens that end every prompt's chat."""
        number: int = self.pipe.prompt_template_encode_num_suffix_tokens
        return number

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and the mean of the prompt's own ones; for an empty prompt, of all."""
        tokens = self._encode(batch.prompts)
        own = [row[self._template_tokens :] if len(row) > self._template_tokens else row for row in tokens]
        return Encoded({"prompt_embeds": tokens}, vectors=torch.stack([row.float().mean((0, 1)) for row in own]))

    def shared(self) -> dict[str, Any]:
        """The scale, as other families count it, and the negative prompt's tokens; nothing without guidance."""
        if not self.guided:
            return {}
        negative = self._encode([self.negative_prompt or ""])
        # c + g (c - u) = u + (1 + g) (c - u)
        return {"guidance_scale": scale_row(1.0 + self.guidance_scale), "negative_prompt_embeds": negative}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Evenly spaced noise levels, shifted by the number of image tokens; of the distilled model by a constant."""
        distilled = self.pipe.config.is_distilled
        mu = 1.15 if distilled else shift_for(scheduler, self.latent_shape()[0], longest=6400)
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
        """Drawn as the VAE's latent (1, C, h, w), then packed."""
        rows, columns = self._grid
        channels, h, w = self.pipe.transformer.config.in_channels // 4, 2 * rows, 2 * columns
        noise = torch.randn((1, channels, h, w), generator=generator, dtype=self.noise_dtype)
        return self.pipe._pack_latents(noise, 1, channels, h, w)

    @cached_property
    def _image_ids(self) -> Tensor:
        """(S, 3), each image token's position."""
        return self.pipe.prepare_position_ids(0, *self._grid, self.device)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows in one call; the pipeline makes two."""
        guidance = Guidance(rows, self.guided)
        time = timestep / self.pipe.scheduler.config.num_train_timesteps
        tokens, mask = guidance.both_tokens("prompt_embeds")
        images = self._image_ids.to(latents.device)
        output = self.pipe.transformer(
            hidden_states=guidance.twice(latents.to(self.dtype)),
            encoder_hidden_states=tokens.to(self.dtype),
            timestep=guidance.twice(time.to(self.noise_dtype)),  # rounded after the division, as the pipeline does
            position_ids=torch.cat([images.new_zeros(tokens.shape[1], 3), images]),  # text is at the origin
            encoder_attention_mask=mask,
            return_dict=False,
            **denoiser_scale(self.attention_kwargs, "attention_kwargs"),
        )[0].float()  # [B or 2B, S, 4 C]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Unpack, then as a video of one frame."""
        x = self.pipe._unpack_latents(latents, self.height, self.width)  # [B, C, 1, h, w]
        return pictures(self.pipe.image_processor, decode_frame(self.pipe.vae, x, generators))
