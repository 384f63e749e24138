"""Stable unCLIP: a prior that samples an image embedding, and a Stable Diffusion conditioned on it and on tokens."""

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
from .parts import check_clip_skip, clip_tokens, eta_for, image_size, pictures, unet_latent, vae_decode
from .prior import TextPrior, skip
from .refusals import Needs


@dataclass(eq=False)
class StableUnCLIP(GuidedAdapter):
    """``StableUnCLIPPipeline``. Clusters by the prior's image embedding; conditions on it, noised, and on tokens.

    ``noise_level`` is how much noise is added to the embedding: with more noise an image follows it less. Every prompt
    draws this noise from its own generator, between prior and decoder. Only the decoder uses the negative prompt. With
    ``share_prior`` prompts of similar text share the prior's early steps too, up to ``prior_tau``.
    """

    name: str = "stable-unclip"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 10.0
    negative_prompt: str | None = None
    eta: float = 0.0
    noise_level: int = 0
    prior_steps: int = 25
    prior_guidance_scale: float = 4.0
    share_prior: bool = False
    prior_tau: float = 1.0
    clip_skip: int | None = field(default=None, metadata=LATER)
    cross_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    encodes_seeds: ClassVar[bool] = True
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {
            "negative_prompt",
            "guidance_scale",
            "noise_level",
            "prior_guidance_scale",
            "share_prior",
            "prior_tau",
            "clip_skip",
        }
    )
    pipelines: ClassVar[tuple[str, ...]] = ("StableUnCLIPPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=(
            "prior_tokenizer",
            "prior_text_encoder",
            "prior",
            "prior_scheduler",
            "image_normalizer",
            "image_noising_scheduler",
            "text_encoder",
            "tokenizer",
            "unet",
            "vae",
            "scheduler",
        ),
        channels=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, self.pipe.unet.config.sample_size * factor, multiple=max(8, factor))
        check_clip_skip(self.clip_skip, [self.pipe.text_encoder], most=0)
        if self.prior_steps < 1:
            raise ValueError(f"prior_steps is {self.prior_steps}: it has to be at least 1")
        levels = self.pipe.image_noising_scheduler.config.num_train_timesteps
        if not 0 <= self.noise_level < levels:
            raise ValueError(f"noise_level is {self.noise_level}: this model has levels 0 to {levels - 1}")

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    @property
    def _prior(self) -> TextPrior:
        return self.prior()

    def prior(self) -> TextPrior:
        """Texts to image embeddings. The pipeline passes no ``prev_timestep`` to the scheduler."""
        return TextPrior(
            self.pipe.prior,
            self.pipe.prior_scheduler,
            lambda prompts: self.pipe._encode_prior_prompt(prompts, self.device, 1, False),
            self.device,
            steps=self.prior_steps,
            guidance_scale=self.prior_guidance_scale,
            tau=self.prior_tau if self.share_prior else 0.0,
            scales_input=True,
            passes_previous=False,
            eta=self.eta,
        )

    def _after_prior(self, seed: int) -> torch.Generator:
        generator = torch.Generator("cpu").manual_seed(seed)
        skip(self._prior, generator)
        return generator

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77, D), and the noised image embedding with its noise level (B, 2 D)."""
        assert batch.prior is not None
        pipe = self.pipe
        embeds = pipe.prior.post_process_latents(batch.prior[:, 0].to(pipe.prior.device, pipe.prior.dtype))  # [B, D]
        generators = [self._after_prior(int(seed)) for seed in batch.seeds]
        rows = {
            "prompt_embeds": self._tokens(batch.prompts, self.clip_skip),
            "class_labels": pipe.noise_image_embeddings(embeds, self.noise_level, generator=generators),
        }
        return Encoded(rows, vectors=embeds)

    def _tokens(self, prompts: list[str], clip_skip: int | None) -> Tensor:
        scale = encoder_scale(self.cross_attention_kwargs)
        return clip_tokens(self.pipe, prompts, self.device, clip_skip, **scale)

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"] = self._tokens([self.negative_prompt or ""], None)
        return rows

    def scheduler(self) -> Any:
        """The decoder's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return unet_latent(self.pipe, self.height, self.width)

    def generator(self, seed: int) -> torch.Generator:
        """A generator from which prior and embedding noise were drawn: the pipeline uses one for all."""
        generator = self._after_prior(seed)
        width = self.pipe.prior.config.embedding_dim
        torch.randn((1, width), generator=generator, dtype=self.pipe.prior.dtype)
        return generator

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows; the unconditional half's image embedding is zeros."""
        guidance, labels = Guidance(rows, self.guided), rows["class_labels"]
        output = self.pipe.unet(
            guidance.twice(latents.to(self.dtype)),
            guidance.twice(timestep),
            encoder_hidden_states=guidance.both("prompt_embeds").to(self.dtype),
            class_labels=guidance.join(torch.zeros_like(labels), labels).to(self.dtype),
            return_dict=False,
            **denoiser_scale(self.cross_attention_kwargs, "cross_attention_kwargs"),
        )[0].float()  # [B or 2B, C, h, w]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE."""
        vae = self.pipe.vae
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        return pictures(self.pipe.image_processor, image)
