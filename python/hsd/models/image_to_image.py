"""Image to image (SDEdit, Meng et al., arXiv 2108.01073): denoising begins later, from an image with noise on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UnsupportedScheduler
from ..sampler import SamplerTable
from .precision import in_float32
from .shared_image import missing, shared_images, size_of
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import Pair, StableDiffusionXL
from .timesteps import own_timesteps
from .unet import UNetAdapter

Moments = tuple[Tensor, Tensor | None]


@dataclass(eq=False)
class ImageToImage(UNetAdapter):
    """A UNet that denoises from an image of the user.

    ``image`` is a PIL image or a path. The images that are made have its size, unless ``height`` and ``width`` are
    given: then it is resized to them. Of n steps the last int(n * ``strength``) are made. Every prompt draws the sample
    of the autoencoder and the noise on it from its own generator, as in the pipeline.
    """

    image: Any = field(default=None, kw_only=True)
    strength: float = field(default=0.8, kw_only=True)

    needed_images: ClassVar[tuple[str, ...]] = ("image",)
    denoising_settings: ClassVar[frozenset[str]] = UNetAdapter.denoising_settings | {"image", "strength"}

    _moments: ClassVar[Moments | None] = None

    def __post_init__(self) -> None:
        if self.image is None:
            raise missing("image", type(self.pipe).__name__)
        [self.image] = shared_images("image", self.image, 1, "set")
        self.height, self.width = size_of(self, self.image)
        super().__post_init__()
        if not 0.0 < self.strength <= 1.0:
            raise ValueError(
                f"strength is {self.strength:g}: it has to be above 0 and at most 1, which makes all steps"
            )

    def first_step(self, scheduler: Any, steps: int) -> int:
        """As the pipeline counts: the last int(n * strength) of n steps are made."""
        own = own_timesteps(self)
        n = steps if own is None else len(scheduler.timesteps)
        left = min(int(n * self.strength), n)
        if left < 1:
            raise ValueError(
                f"strength is {self.strength:g}, and of {n} steps int({n} x {self.strength:g}) = 0 are left: raise "
                "strength or the number of steps"
            )
        return (n - left) * scheduler.order

    def steps_for(self, n: int) -> int:
        """More than ``n``, since only a part of the steps is made."""
        return math.ceil(n / self.strength)

    def sampler(self, steps: int) -> SamplerTable:
        """The last steps of the pipeline's scheduler, and how much of the image and of the noise they begin with."""
        scheduler = self._stepped(steps)
        image, noise = _shares(scheduler, self.first_step(scheduler, steps))
        return replace(super().sampler(steps), init_image_scale=image, init_noise_sigma=noise)

    def first_latent(self, generator: torch.Generator, sampler: SamplerTable) -> Tensor:
        """The encoded image with noise on it. The image's own sample is drawn first."""
        image = self._sample(generator).float()
        return sampler.init_image_scale * image + super().first_latent(generator, sampler)

    def _sample(self, generator: torch.Generator) -> Tensor:
        """(1, C, h, w) a latent of the image, on the CPU, in the dtype that the pipeline has it in."""
        latent, deviation = self._moments or self._encoded()
        if deviation is not None:
            latent = latent + deviation * torch.randn(latent.shape, generator=generator, dtype=latent.dtype)
        return self._scaled(latent.to(self.noise_dtype))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Active during a run: the image is encoded once, not for every prompt."""
        with super().running():
            self.__dict__["_moments"] = self._encoded()
            try:
                yield
            finally:
                self.__dict__.pop("_moments", None)

    @torch.no_grad()
    def _encoded(self) -> Moments:
        """Mean and deviation of the image's latent, each (1, C, h, w) on the CPU; None where there is no deviation."""
        pixels = self.pipe.image_processor.preprocess(self.image.pil, height=self.height, width=self.width)
        with self._encoder() as vae:
            found = vae.encode(pixels.to(self.device, self.noise_dtype).to(vae.dtype))
        if hasattr(found, "latent_dist"):
            return found.latent_dist.mean.cpu(), found.latent_dist.std.cpu()
        return found.latents.cpu(), None

    def _encoder(self) -> AbstractContextManager[Any]:
        """The autoencoder as the pipeline encodes with it."""
        return contextlib.nullcontext(self.pipe.vae)

    def _scaled(self, latent: Tensor) -> Tensor:
        """A latent of the autoencoder at the scale of the denoiser."""
        scaled: Tensor = self.pipe.vae.config.scaling_factor * latent
        return scaled


def _shares(scheduler: Any, begin: int) -> tuple[float, float]:
    """The factors of image and noise in the first latent: ``add_noise`` at timestep ``begin``, which is linear.

    Raises
    ------
    UnsupportedScheduler
        If the scheduler cannot add noise to an image.
    """
    if not hasattr(scheduler, "add_noise"):
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__} has no add_noise, so that nothing can begin from an image: give the pipeline "
            "another scheduler, such as DDIMScheduler"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    basis = torch.eye(2)[:, :, None, None, None]  # the image alone, the noise alone: [2, 1, 1, 1, 1] each
    timestep = scheduler.timesteps[begin : begin + 1]
    image, noise = (float(scheduler.add_noise(*each, timestep)) for each in basis)
    return image, noise


@dataclass(eq=False)
class StableDiffusionImageToImage(ImageToImage, StableDiffusion):
    """``StableDiffusionImg2ImgPipeline``. Clusters and conditions as Stable Diffusion does."""

    name: str = "stable-diffusion-image-to-image"

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionImg2ImgPipeline",)


@dataclass(eq=False)
class StableDiffusionXLImageToImage(ImageToImage, StableDiffusionXL):
    """``StableDiffusionXLImg2ImgPipeline``. Clusters and conditions as Stable Diffusion XL does.

    The negative half has the same ``crops_coords_top_left`` as the other: the pipeline uses no other.
    """

    name: str = "stable-diffusion-xl-image-to-image"
    guidance_scale: float = 5.0  # of two bases, the first gives a field its default
    strength: float = field(default=0.3, kw_only=True)

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLImg2ImgPipeline",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_crops_coords_top_left not in ((0, 0), self.crops_coords_top_left):
            raise ValueError(
                f"negative_crops_coords_top_left is {self.negative_crops_coords_top_left}, and diffusers' pipeline "
                "does not use it: leave it out"
            )

    @property
    def _negative_crops(self) -> Pair:
        return self.crops_coords_top_left

    @contextlib.contextmanager
    def _encoder(self) -> Iterator[Any]:
        """In float32 where the autoencoder would overflow, which its configuration says."""
        vae = self.pipe.vae
        with in_float32([vae]) if vae.config.force_upcast else contextlib.nullcontext():
            yield vae

    def _scaled(self, latent: Tensor) -> Tensor:
        config = self.pipe.vae.config
        mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return super()._scaled(latent)
        mean, std = (torch.tensor(value, dtype=latent.dtype).view(1, -1, 1, 1) for value in (mean, std))
        return (latent - mean) * config.scaling_factor / std
