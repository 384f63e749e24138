"""Sana: a linear transformer over strongly compressed latents; it attends to Gemma's tokens under a mask."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers import SanaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
    ASPECT_RATIO_2048_BIN,
)
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale, encoder_scale
from .parts import bins_for, check_size, eta_for, pictures, vae_decode
from .refusals import Needs

_INSTRUCTION = tuple(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)

_BINS = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}
"""The image sizes that a model was trained with, by its ``sample_size`` and the aspect ratio."""


@dataclass(eq=False)
class Sana(GuidedAdapter):
    """``SanaPipeline``. Conditions on Gemma's tokens, clusters by their mean.

    With ``use_resolution_binning``, the default as in diffusers, an image is generated at the trained size (bin) of the
    nearest aspect ratio, then scaled and cropped to ``height`` and ``width``. ``complex_human_instruction`` is a text
    before every prompt, but not before the negative prompt: the pipeline's by default; None for no text.
    """

    name: str = "sana"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 4.5
    negative_prompt: str | None = None
    eta: float = 0.0
    clean_caption: bool = False
    use_resolution_binning: bool = True
    max_sequence_length: int = 300
    complex_human_instruction: tuple[str, ...] | None = _INSTRUCTION
    timesteps: tuple[int | float, ...] | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"negative_prompt", "guidance_scale", "clean_caption", "max_sequence_length", "complex_human_instruction"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=1, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.complex_human_instruction, str):
            raise TypeError("complex_human_instruction is a string: give a list of lines, as the pipeline takes it")
        if self.use_resolution_binning:
            bins_for(self.pipe, _BINS)
        multiple = 1 if self.use_resolution_binning else max(32, self.pipe.vae_scale_factor)
        check_size("height", self.height, multiple)
        check_size("width", self.width, multiple)
        # The pipeline does so at every prompt. Done here, the model is the same before its first run and after it.
        self.pipe.tokenizer.padding_side = "right"

    @property
    def settings(self) -> dict[str, Any]:
        """``use_resolution_binning`` only where it changes the size: earlier versions had no bins."""
        settings = super().settings
        if self.decoded_size() == (self.height, self.width):
            settings.pop("use_resolution_binning")
        return settings

    def decoded_size(self) -> tuple[int, int]:
        """Height and width of the decoded image, before it is scaled and cropped."""
        if not self.use_resolution_binning:
            return self.height, self.width
        ratios = bins_for(self.pipe, _BINS)
        height, width = self.pipe.image_processor.classify_height_width_bin(self.height, self.width, ratios=ratios)
        return height, width

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
            **encoder_scale(self.attention_kwargs),
        )
        return [row[:length] for row, length in zip(tokens, mask.sum(1).tolist(), strict=True)]

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w); with ``use_resolution_binning`` those of the bin."""
        height, width = self.decoded_size()
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, height // factor, width // factor)

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
            **denoiser_scale(self.attention_kwargs, "attention_kwargs"),
        )[0].float()
        return guidance.apply(output)[:, : latents.shape[1]], None  # [B, C, h, w]

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The autoencoder; with ``use_resolution_binning`` scaled and cropped."""
        vae, processor = self.pipe.vae, self.pipe.image_processor
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        if self.use_resolution_binning:
            image = processor.resize_and_crop_tensor(image, self.width, self.height)
        return pictures(processor, image)
