"""FLUX.1: a transformer over packed latents, distilled so that guidance is an input (dev) or fixed (schnell)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale, encoder_scale
from .parts import check_max_sequence_length, image_size, packed_grid, pictures, shift_for, texts, vae_decode
from .refusals import Needs
from .timesteps import even_sigmas, set_timesteps


@dataclass(eq=False)
class Flux(GuidedAdapter):
    """``FluxPipeline``. Clusters by CLIP's pooled text, conditions on it and on T5's tokens.

    ``guidance_scale`` is an input of models that were distilled with it (dev); the others (schnell) ignore it.
    ``prompt_2`` is another text for T5; None or an empty text: the prompt.
    Classifier-free guidance needs both a ``true_cfg_scale`` above 1 and a ``negative_prompt``, as in diffusers.

    diffusers' pipeline gives its scheduler no generator: a scheduler that draws noise (``FlowMatchLCMScheduler``)
    draws from torch's global generator there, and from each prompt's generator here.

    A latent is packed, as the transformer reads it: one token of 4 C values for each 2 x 2 pixels of the VAE's latent.
    """

    name: str = "flux"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 3.5
    true_cfg_scale: float = 1.0
    negative_prompt: str | None = None
    max_sequence_length: int = 512
    prompt_2: str | None = field(default=None, metadata=LATER)
    negative_prompt_2: str | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    joint_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "true_cfg_scale", "negative_prompt", "prompt_2", "negative_prompt_2"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer", "vae", "scheduler"),
        channels=4,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, self.pipe.default_sample_size * factor, multiple=2 * factor)
        check_max_sequence_length(self.max_sequence_length, 512)
        if self.negative_prompt_2 and self.negative_prompt is None:
            raise ValueError(
                "negative_prompt_2 is given without negative_prompt, and then the pipeline does not use it: give both"
            )

    @property
    def noise_dtype(self) -> torch.dtype:
        """T5's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder_2.dtype

    @property
    def scales_input(self) -> bool:
        """False: flow schedulers have nothing to scale, and the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.true_cfg_scale > 1.0 and self.negative_prompt is not None

    @property
    def _tokens(self) -> str:
        """Name of T5's rows. It contains the length, since all rows of one name have one shape."""
        return f"prompt_embeds_{self.max_sequence_length}"

    def _encode(self, prompts: list[str], second: str | None) -> tuple[Tensor, Tensor]:
        """T5's tokens (B, L, D), with the padding, which the transformer reads; and CLIP's pooled vector (B, P)."""
        tokens, pooled, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=texts(second, len(prompts)),
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            **encoder_scale(self.joint_attention_kwargs),
        )
        return tokens, pooled

    def encode(self, batch: Batch) -> Encoded:
        """Tokens and pooled vector."""
        tokens, pooled = self._encode(batch.prompts, self.prompt_2)
        return Encoded({self._tokens: tokens, "pooled_projections": pooled}, vectors=pooled)

    def shared(self) -> dict[str, Any]:
        """Both scales, and the negative prompt."""
        rows: dict[str, Any] = {}
        if self.pipe.transformer.config.guidance_embeds:
            rows["guidance_scale"] = scale_row(self.guidance_scale)
        if self.guided:
            assert self.negative_prompt is not None
            tokens, pooled = self._encode([self.negative_prompt], self.negative_prompt_2)
            rows |= {f"negative_{self._tokens}": tokens, "negative_pooled_projections": pooled}
            rows["true_cfg_scale"] = scale_row(self.true_cfg_scale)
        return rows

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Evenly spaced noise levels; a scheduler with dynamic shifting shifts them by the number of tokens."""
        mu = shift_for(scheduler, self.latent_shape()[0])
        set_timesteps(self, scheduler, steps, sigmas=even_sigmas(self, scheduler, steps), mu=mu)

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return packed_grid(self.pipe, self.height, self.width)

    def latent_shape(self) -> tuple[int, ...]:
        """(S, 4 C), S tokens."""
        rows, columns = self._grid
        return (rows * columns, self.pipe.transformer.config.in_channels)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """Drawn as the VAE's latent (1, C, h, w), then packed."""
        rows, columns = self._grid
        channels = self.pipe.transformer.config.in_channels // 4
        shape = (1, channels, 2 * rows, 2 * columns)
        noise = torch.randn(shape, generator=generator, dtype=self.noise_dtype)
        return self.pipe._pack_latents(noise, *shape)

    def _image_ids(self, device: torch.device) -> Tensor:
        """(S, 3), each token's position: 0, row, column. Created on the device, so that no call copies it there."""
        rows, columns = self._grid
        ids = torch.zeros(rows, columns, 3, device=device)
        ids[..., 1] = torch.arange(rows, device=device)[:, None]
        ids[..., 2] = torch.arange(columns, device=device)
        return ids.view(-1, 3).to(self.noise_dtype)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows in one call; the pipeline makes two."""
        dtype = self.dtype
        guidance = Guidance(rows, self.guided, scale="true_cfg_scale")
        tokens, distilled_scale = guidance.both(self._tokens), rows.get("guidance_scale")
        output = self.pipe.transformer(
            hidden_states=guidance.twice(latents.to(dtype)),
            timestep=guidance.twice(timestep.to(dtype) / 1000),  # rounded before the division, as the pipeline does
            guidance=None if distilled_scale is None else guidance.twice(distilled_scale),
            pooled_projections=guidance.both("pooled_projections").to(dtype),
            encoder_hidden_states=tokens.to(dtype),
            txt_ids=torch.zeros(tokens.shape[1], 3, dtype=self.noise_dtype, device=latents.device),
            img_ids=self._image_ids(latents.device),
            return_dict=False,
            **denoiser_scale(self.joint_attention_kwargs, "joint_attention_kwargs"),
        )[0].float()  # [B or 2B, S, 4 C]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Unpack the latents, then decode them with the VAE."""
        vae = self.pipe.vae
        latents = self.pipe._unpack_latents(latents, self.height, self.width, self.pipe.vae_scale_factor)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae_decode(vae, latents, generators)
        return pictures(self.pipe.image_processor, image)
