"""Stable Diffusion 3 and 3.5: a rectified flow transformer that reads the tokens of two CLIPs and of T5 as one text."""

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
from .parts import check_clip_skip, check_max_sequence_length, image_size, pictures, shift_for, texts, vae_decode
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class StableDiffusion3(GuidedAdapter):
    """``StableDiffusion3Pipeline``. Clusters by both CLIPs' projected texts, conditions on them and on all tokens.

    T5 may be left out (``text_encoder_3=None``), as in diffusers: its tokens are zeros then. ``prompt_2`` and
    ``prompt_3`` are other texts for the second CLIP and for T5; None or an empty text: the prompt. ``mu`` is the
    shift of a scheduler with dynamic shifting; for None it depends on the size of the image.
    The pipeline gives its scheduler no generator: a scheduler that draws noise draws from each prompt's generator
    here, and from torch's global generator there.
    """

    name: str = "stable-diffusion-3"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 7.0
    negative_prompt: str | None = None
    clip_skip: int | None = None
    max_sequence_length: int = 256
    mu: float | None = None
    prompt_2: str | None = field(default=None, metadata=LATER)
    prompt_3: str | None = field(default=None, metadata=LATER)
    negative_prompt_2: str | None = field(default=None, metadata=LATER)
    negative_prompt_3: str | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    joint_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {
            "guidance_scale",
            "negative_prompt",
            "clip_skip",
            "prompt_2",
            "prompt_3",
            "negative_prompt_2",
            "negative_prompt_3",
        }
    )
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer", "vae", "scheduler"),
        channels=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.pipe.vae_scale_factor
        native, token = self.pipe.default_sample_size * factor, self.pipe.patch_size * factor
        self.height, self.width = image_size(self, native, multiple=token)
        check_max_sequence_length(self.max_sequence_length, 512)
        check_clip_skip(self.clip_skip, [self.pipe.text_encoder, self.pipe.text_encoder_2], most=1)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The dtype of CLIP's and T5's tokens after they are joined: the pipeline draws its latents in it."""
        t5 = self.pipe.text_encoder_3
        dtype = self.pipe.text_encoder.dtype
        return dtype if t5 is None else torch.promote_types(dtype, t5.dtype)

    @property
    def scales_input(self) -> bool:
        """False: flow schedulers have nothing to scale, and the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def _tokens(self) -> str:
        """Name of the tokens' rows. It contains the length, since all rows of one name have one shape."""
        return f"prompt_embeds_{self.max_sequence_length}"

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77 + L, D), CLIP's then T5's, with the padding, which is read; and the pooled vector (B, P)."""
        second, third = texts(self.prompt_2, len(batch)), texts(self.prompt_3, len(batch))
        tokens, pooled = self._encode(batch.prompts, second, third, self.clip_skip)
        return Encoded({self._tokens: tokens, "pooled_projections": pooled}, vectors=pooled)

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt, which skips no layers of CLIP."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            second, third = texts(self.negative_prompt_2, 1), texts(self.negative_prompt_3, 1)
            tokens, pooled = self._encode([self.negative_prompt or ""], second, third, None)
            rows |= {f"negative_{self._tokens}": tokens, "negative_pooled_projections": pooled}
        return rows

    def _encode(
        self, prompts: list[str], second: list[str] | None, third: list[str] | None, clip_skip: int | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, 77 + L, D) and pooled vector (B, P)."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=second,
            prompt_3=third,
            device=self.device,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
            max_sequence_length=self.max_sequence_length,
            **encoder_scale(self.joint_attention_kwargs),
        )
        return tokens, pooled

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Uses the shift ``mu`` if it is set; else a scheduler with dynamic shifting shifts by the number of tokens."""
        config, shift = scheduler.config, {}
        if self.mu is not None:
            shift["mu"] = self.mu
        elif config.get("use_dynamic_shifting"):
            _, height, width = self.latent_shape()
            patch = self.pipe.transformer.config.patch_size
            shift["mu"] = shift_for(scheduler, (height // patch) * (width // patch), most=1.16)
        set_timesteps(self, scheduler, steps, **shift)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        sides = [side // self.pipe.vae_scale_factor for side in (self.height, self.width) if side is not None]
        return (self.pipe.transformer.config.in_channels, *sides)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows."""
        guidance = Guidance(rows, self.guided)
        output = self.pipe.transformer(
            hidden_states=guidance.twice(latents.to(self.dtype)),
            timestep=guidance.twice(timestep),
            encoder_hidden_states=guidance.both(self._tokens).to(self.dtype),
            pooled_projections=guidance.both("pooled_projections").to(self.dtype),
            return_dict=False,
            **denoiser_scale(self.joint_attention_kwargs, "joint_attention_kwargs"),
        )[0].float()  # [B or 2B, C, h, w]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE."""
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae_decode(vae, latents, generators)
        return pictures(self.pipe.image_processor, image)
