"""Kandinsky 2.2: a prior that samples an image embedding from the text, and a UNet conditioned on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import downscale_height_and_width
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning import Conditioning
from ..sampler import compile_sampler
from .base import Adapter, EncodeProgress, batches, guide, quiet

_PRIOR_BATCH = 32


@dataclass(eq=False)
class Kandinsky22(Adapter):
    """``KandinskyV22CombinedPipeline``, or the pair (``KandinskyV22PriorPipeline``, ``KandinskyV22Pipeline``).

    Clusters and conditions on the prior's image embeddings. In the combined pipeline one generator runs through
    prior and decoder, so there the decoder's draws follow the prior's; with a pair each starts afresh.

    diffusers' pipeline never calls ``scale_model_input``, which Euler, LMS and Heun ask for: with those, images are
    what diffusers gives by default, and what the scheduler means with ``scale_model_input=True``.
    """

    name: str = "kandinsky-2.2"
    height: int = 512
    width: int = 512
    guidance_scale: float = 4.0
    negative_prompt: str | None = None
    prior_steps: int = 25
    prior_guidance_scale: float = 4.0
    scale_model_input: bool = False

    pipelines: ClassVar[tuple[str, ...]] = ("KandinskyV22CombinedPipeline",)

    def __post_init__(self) -> None:
        for name in ("height", "width", "prior_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        pair = self.pipe if isinstance(self.pipe, tuple) else (self.pipe.prior_pipe, self.pipe.decoder_pipe)
        self.prior_pipe, self.decoder = pair

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return torch.device(self.decoder._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        return self.decoder.unet.dtype

    @torch.no_grad()
    def encode(
        self, prompts: list[str], seeds: NDArray[np.int64], progress: EncodeProgress | None = None
    ) -> Conditioning:
        """Sample the prior, in batches, each prompt from its own generator."""
        images: list[Tensor] = []
        negatives: list[Tensor] = []
        with quiet(self.prior_pipe):
            for part in batches(len(prompts), _PRIOR_BATCH):
                batch = prompts[part]
                generators = [super(Kandinsky22, self).generator(int(seed)) for seed in seeds[part]]
                negative = None if self.negative_prompt is None else [self.negative_prompt] * len(batch)
                output = self.prior_pipe(
                    batch,
                    negative_prompt=negative,
                    num_inference_steps=self.prior_steps,
                    # With a negative prompt the pipeline samples both, in one batch, prompts first.
                    generator=generators if negative is None else generators * 2,
                    guidance_scale=self.prior_guidance_scale,
                )
                images.append(output.image_embeds.cpu())
                negatives.append(output.negative_image_embeds.cpu())
                if progress:
                    progress(part.stop)
        rows = {"image_embeds": torch.cat(images)}
        shared = {}
        if self.negative_prompt is None:
            shared["negative_image_embeds"] = negatives[0][:1]  # the embedding of a black image, for every prompt
        else:
            rows["negative_image_embeds"] = torch.cat(negatives)
        return Conditioning(rows, shared, vectors=rows["image_embeds"].float().numpy())

    @property
    def scales_input(self) -> bool:
        """As the setting ``scale_model_input`` says."""
        return self.scale_model_input

    def scheduler(self) -> Any:
        """The decoder's scheduler: what the combined pipeline itself steps."""
        return self.decoder.scheduler

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) with sides rounded up as the pipeline rounds them."""
        sides = downscale_height_and_width(self.height, self.width, self.decoder.movq_scale_factor)
        return (self.decoder.unet.config.in_channels, *sides)

    def generator(self, seed: int) -> torch.Generator:
        """Fresh for a pair; for the combined pipeline, where the prior leaves it."""
        generator = super().generator(seed)
        if not isinstance(self.pipe, tuple):
            shape = (1 if self.negative_prompt is None else 2, self.prior_pipe.prior.config.embedding_dim)
            for _ in range(self._prior_draws()):
                torch.randn(shape, generator=generator, dtype=self.prior_pipe.prior.dtype)
        return generator

    def _prior_draws(self) -> int:
        """Draws of the prior from one generator: its first latent, and what its scheduler adds."""
        if not hasattr(self, "_draws"):
            scheduler = type(self.prior_pipe.scheduler).from_config(self.prior_pipe.scheduler.config)
            scheduler.set_timesteps(self.prior_steps)
            self._draws = 1 + sum(compile_sampler(scheduler).noise_draws)
        return self._draws

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows; the variance is the conditional half's."""
        channels = latents.shape[1]
        x = latents.to(self.dtype)
        embeds = rows["image_embeds"].to(self.dtype)
        guided = self.guidance_scale > 1.0
        if guided:
            embeds = torch.cat([rows["negative_image_embeds"].to(self.dtype), embeds])
            x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep])
        output = self.decoder.unet(
            sample=x,
            timestep=timestep,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embeds},
            return_dict=False,
        )[0].float()  # [B or 2B, 2C, h, w]
        model_output, variance = output.split(channels, dim=1)
        if guided:
            return guide(model_output, self.guidance_scale), variance.chunk(2)[1]
        return model_output, variance

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[PIL.Image.Image]:
        """MoVQ, without a scaling factor."""
        image = self.decoder.movq.decode(latents.to(self.decoder.movq.dtype), force_not_quantize=True)["sample"]
        image = (image * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        return self.decoder.numpy_to_pil(image)
