"""Kandinsky 2.2: a prior that samples an image embedding from the text, and a UNet conditioned on it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import downscale_height_and_width
from torch import Tensor, nn

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import unit_pictures, vae_decode
from .prior import TextPrior, skip
from .refusals import Needs


@dataclass(eq=False)
class Kandinsky22(GuidedAdapter):
    """``KandinskyV22CombinedPipeline``, or the pair (``KandinskyV22PriorPipeline``, ``KandinskyV22Pipeline``).

    Clusters by the prior's image embeddings, and conditions on them. With ``share_prior`` prompts of similar text
    share the prior's early steps too, up to ``prior_tau``. In the combined pipeline prior and decoder draw from one
    generator, the prior first; in a pair each has its own.

    diffusers' pipeline never calls ``scale_model_input``, although Euler, LMS and Heun need it. With these schedulers
    the images are diffusers' by default, and those that the scheduler intends with ``scale_model_input=True``.
    """

    name: str = "kandinsky-2.2"
    height: int = 512
    width: int = 512
    guidance_scale: float = 4.0
    negative_prompt: str | None = None
    prior_steps: int = 25
    prior_guidance_scale: float = 4.0
    share_prior: bool = False
    prior_tau: float = 1.0
    scale_model_input: bool = False

    default_catch_up: ClassVar[float] = 1.0
    encodes_seeds: ClassVar[bool] = True
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"negative_prompt", "guidance_scale", "prior_steps", "prior_guidance_scale", "share_prior", "prior_tau"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("KandinskyV22CombinedPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("prior", "image_encoder", "text_encoder", "tokenizer", "unet", "movq", "scheduler"), channels=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("height", "width", "prior_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        self.prior_pipe, self.decoder = self.pipes_of(self.pipe)

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return torch.device(self.decoder._execution_device)

    @classmethod
    def pipes_of(cls, pipe: Any) -> tuple[Any, ...]:
        """Prior and decoder."""
        return pipe if isinstance(pipe, tuple) else (pipe.prior_pipe, pipe.decoder_pipe)

    def modules(self) -> tuple[nn.Module, ...]:
        """The decoder's UNet."""
        return (self.decoder.unet,)

    @property
    def _prior(self) -> TextPrior:
        return self.prior()

    def prior(self) -> TextPrior:
        """Texts to image embeddings; the negative prompt's is sampled with each prompt's, as in the pipeline."""
        pipe = self.prior_pipe
        return TextPrior(
            pipe.prior,
            pipe.scheduler,
            lambda prompts: pipe._encode_prompt(prompts, pipe._execution_device, 1, False),
            torch.device(pipe._execution_device),
            steps=self.prior_steps,
            guidance_scale=self.prior_guidance_scale,
            tau=self.prior_tau if self.share_prior else 0.0,
            negative_prompt=self.negative_prompt,
            samples_negative=self.negative_prompt is not None,
        )

    def encode(self, batch: Batch) -> Encoded:
        """Image embeddings, scaled back to the scale that the decoder was trained with."""
        assert batch.prior is not None
        prior = self.prior_pipe.prior
        embeds = prior.post_process_latents(batch.prior.to(prior.device, prior.dtype))  # [B, n, D]
        rows: dict[str, Any] = {"image_embeds": embeds[:, 0]}
        if self.negative_prompt is not None:
            rows["negative_image_embeds"] = embeds[:, 1]
        return Encoded(rows, vectors=embeds[:, 0])

    def shared(self) -> dict[str, Any]:
        """The scale; without a negative prompt also the embedding of a black image, in its place."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.negative_prompt is None and self.guided:
            rows["negative_image_embeds"] = self.prior_pipe.get_zero_embed(1, self.prior_pipe._execution_device)
        return rows

    @property
    def scales_input(self) -> bool:
        """The setting ``scale_model_input``."""
        return self.scale_model_input

    def scheduler(self) -> Any:
        """The decoder's scheduler, which the combined pipeline steps too."""
        return self.decoder.scheduler

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) with sides rounded up as the pipeline rounds them."""
        sides = downscale_height_and_width(self.height, self.width, self.decoder.movq_scale_factor)
        return (self.decoder.unet.config.in_channels, *sides)

    def call_key(self) -> Hashable:
        """For the combined pipeline also the settings that change how much the prior draws: the decoder draws next."""
        prior = None if isinstance(self.pipe, tuple) else (self.prior_steps, self.negative_prompt is None)
        return (super().call_key(), prior)

    def generator(self, seed: int) -> torch.Generator:
        """For a pair a new one; for the combined pipeline one from which the prior has drawn."""
        generator = super().generator(seed)
        if not isinstance(self.pipe, tuple):
            skip(self._prior, generator)
        return generator

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows; the variance is the conditional half's."""
        guidance = Guidance(rows, self.guided)
        output = self.decoder.unet(
            sample=guidance.twice(latents.to(self.dtype)),
            timestep=guidance.twice(timestep),
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": guidance.both("image_embeds").to(self.dtype)},
            return_dict=False,
        )[0].float()  # [B or 2B, 2C, h, w]
        model_output, variance = output.split(latents.shape[1], dim=1)
        return guidance.apply(model_output), guidance.conditional(variance)

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """MoVQ, without a scaling factor."""
        image = vae_decode(self.decoder.movq, latents, generators, force_not_quantize=True)
        return unit_pictures((image * 0.5 + 0.5).clamp(0, 1))
