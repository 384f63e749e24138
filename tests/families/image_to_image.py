"""Image to image of Stable Diffusion and Stable Diffusion XL: the last steps, from one image for all prompts."""

from __future__ import annotations

import numpy as np
import torch

import tiny
from families.stable_diffusion import StableDiffusion
from families.stable_diffusion_xl import StableDiffusionXL

IMAGE = tiny.picture((64, 64))


class _FromImage:
    """What both have in common. Of six steps, four are made."""

    steps = 6
    strength = 0.7

    def settings(self, settings, size):
        return super().settings({"image": IMAGE, "strength": self.strength, **settings}, size)

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        settings = dict(settings)
        if "negative_prompt" in settings:
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
        resized = IMAGE.resize((size[1], size[0]), 1)  # Lanczos; the pipeline itself takes no size
        return pipe(
            prompts,
            image=resized,
            strength=self.strength,
            generator=generators,
            num_inference_steps=steps,
            output_type=output_type,
            **settings,
            **options,
        ).images

    def begin(self, steps):
        return steps - int(steps * self.strength)

    def first_latent(self, pipe, size, generator, scheduler, timestep):
        """The image with noise on it, at the first timestep that is left."""
        resized = IMAGE.resize((size[1], size[0]), 1)
        pixels = torch.from_numpy(np.array(resized).astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            found = pipe.vae.encode(2 * pixels - 1).latent_dist
        noise = [torch.randn(found.mean.shape, generator=generator) for _ in range(2)]
        image = (found.mean + found.std * noise[0]) * pipe.vae.config.scaling_factor
        return scheduler.add_noise(image, noise[1], timestep)


class StableDiffusionImageToImage(_FromImage, StableDiffusion):
    name = "stable-diffusion-image-to-image"
    title = "`StableDiffusionImg2ImgPipeline`"

    def build(self):
        return tiny.sd_from_image()


class StableDiffusionXLImageToImage(_FromImage, StableDiffusionXL):
    name = "stable-diffusion-xl-image-to-image"
    title = "`StableDiffusionXLImg2ImgPipeline`"
    twin = True
    size = (32, 32)
    oblong = (32, 48)
    schedulers = ()

    def build(self):
        return tiny.sdxl_from_image()
