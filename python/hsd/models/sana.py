"""Sana: a linear transformer over strongly compressed latents; it attends to Gemma's tokens under a mask."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers import SanaPipeline
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import check_size, eta_for
from .refusals import require_text_encoders

_INSTRUCTION = tuple(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


@dataclass(eq=False)
class Sana(GuidedAdapter):
    """``SanaPipeline``. Conditions on Gemma's tokens, clusters by their mean.

    Sizes are exact, as with ``use_resolution_binning=False``. ``complex_human_instruction`` is a text before every
    prompt, but not before the negative prompt: the pipeline's by default; None for no text.
    """

    name: str = "sana"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 4.5
    negative_prompt: str | None = None
    eta: float = 0.0
    clean_caption: bool = False
    max_sequence_length: int = 300
    complex_human_instruction: tuple[str, ...] | None = _INSTRUCTION

    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"negative_prompt", "guidance_scale", "clean_caption", "max_sequence_length", "complex_human_instruction"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text_encoders(self.pipe, "text_encoder")
        if isinstance(self.complex_human_instruction, str):
            raise TypeError("complex_human_instruction is a string: give a list of lines, as the pipeline takes it")
        check_size("height", self.height, max(32, self.pipe.vae_scale_factor))
        check_size("width", self.width, max(32, self.pipe.vae_scale_factor))
        # The pipeline does so at every prompt. Done here, the model is the same before its first run and after it.
        self.pipe.tokenizer.padding_side = "right"

    @property
    def noise_dtype(self) -> torch.dtype:
        """The pipeline's latents are always float32."""
        return torch.float32

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and their mean without the first, which is the same for every prompt."""
        tokens = self._tokens(batch.prompts, self.complex_human_instruction)
        return Encoded({"prompt_embeds": tokens}, torch.stack([row[1:].float().mean(0) for row in tokens]))

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"] = self._tokens([self.negative_prompt or ""], None)
        return rows

    def _tokens(self, prompts: list[str], instruction: tuple[str, ...] | None) -> list[Tensor]:
        """(L_i, D) each: the first token and those of the prompt, without the padding, which is never attended to."""
        tokens, mask, _, _ = self.pipe.encode_prompt(
            list(prompts),
            False,
            device=self.device,
            clean_caption=self.clean_caption,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=None if instruction is None else list(instruction),
        )
        return [row[:length] for row, length in zip(tokens, mask.sum(1).tolist(), strict=True)]

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, self.height // factor, self.width // factor)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows. A variance that the model predicts is not used."""
        transformer, guidance = self.pipe.transformer, Guidance(rows, self.guided)
        tokens, mask = guidance.both_tokens("prompt_embeds")
        output = transformer(
            guidance.twice(latents.to(self.dtype)),
            encoder_hidden_states=tokens.to(self.dtype),
            encoder_attention_mask=mask.long(),
            timestep=guidance.twice(timestep) * transformer.config.timestep_scale,
            return_dict=False,
        )[0].float()
        return guidance.apply(output)[:, : latents.shape[1]], None  # [B, C, h, w]

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The autoencoder."""
        vae = self.pipe.vae
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(image, output_type="pil")
