"""PixArt-Sigma: a transformer that attends to T5's tokens under a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
    ASPECT_RATIO_2048_BIN,
)
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import bins_for, check_size, eta_for, pictures, vae_decode
from .refusals import Needs

_BINS = {
    32: ASPECT_RATIO_256_BIN,
    64: ASPECT_RATIO_512_BIN,
    128: ASPECT_RATIO_1024_BIN,
    256: ASPECT_RATIO_2048_BIN,
}
"""The image sizes that a model was trained with, by its ``sample_size`` and the aspect ratio."""


@dataclass(eq=False)
class PixArtSigma(GuidedAdapter):
    """``PixArtSigmaPipeline``. Clusters by the mean of the text's tokens, conditions on the tokens.

    With ``use_resolution_binning``, the default as in diffusers, an image is generated at the trained size (bin) of the
    nearest aspect ratio, then scaled and cropped to ``height`` and ``width``.
    """

    name: str = "pixart-sigma"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 4.5
    negative_prompt: str = ""
    eta: float = 0.0
    clean_caption: bool = True
    use_resolution_binning: bool = True
    max_sequence_length: int = 300
    timesteps: tuple[int | float, ...] | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "negative_prompt", "clean_caption", "max_sequence_length"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtSigmaPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=1, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.pipe.transformer.config
        self.height = self.height or config.sample_size * self.pipe.vae_scale_factor
        self.width = self.width or config.sample_size * self.pipe.vae_scale_factor
        if self.use_resolution_binning:
            bins_for(self.pipe, _BINS)
        multiple = 1 if self.use_resolution_binning else self.pipe.vae_scale_factor * config.patch_size
        check_size("height", self.height, multiple)
        check_size("width", self.width, multiple)
        if self.max_sequence_length < 1:
            raise ValueError(f"max_sequence_length is {self.max_sequence_length}: it has to be at least 1 token")

    @property
    def noise_dtype(self) -> torch.dtype:
        """T5's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Tokens (L_i, D) of each prompt, without padding."""
        tokens, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=self.clean_caption,
            max_sequence_length=self.max_sequence_length,
        )
        return [row[kept.bool()] for row, kept in zip(tokens, mask, strict=True)]

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and their mean."""
        tokens = self._encode(batch.prompts)
        return Encoded({"prompt_embeds": tokens}, vectors=torch.stack([row.float().mean(0) for row in tokens]))

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"] = self._encode([self.negative_prompt])
        return rows

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def decoded_size(self) -> tuple[int, int]:
        """Height and width of the decoded image, before it is scaled and cropped."""
        height, width = self.height, self.width
        if self.use_resolution_binning:
            ratios = bins_for(self.pipe, _BINS)
            height, width = self.pipe.image_processor.classify_height_width_bin(height, width, ratios=ratios)
        assert height is not None
        assert width is not None
        return height, width

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w); with ``use_resolution_binning`` those of the bin."""
        height, width = self.decoded_size()
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, height // factor, width // factor)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows. The variance that it predicts is not used."""
        guidance = Guidance(rows, self.guided)
        tokens, mask = guidance.both_tokens("prompt_embeds")
        output = self.pipe.transformer(
            guidance.twice(latents.to(self.dtype)),
            encoder_hidden_states=tokens.to(self.dtype),
            encoder_attention_mask=mask,
            timestep=guidance.twice(timestep),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0].float()[:, : latents.shape[1]]  # [B or 2B, C, h, w]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE; with ``use_resolution_binning`` scaled and cropped."""
        vae, processor = self.pipe.vae, self.pipe.image_processor
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        if self.use_resolution_binning:
            image = processor.resize_and_crop_tensor(image, self.width, self.height)
        return pictures(processor, image)
