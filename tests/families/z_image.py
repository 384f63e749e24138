"""Z-Image."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, handing_generators, masked_mean


class ZImage(Family):
    """A caption of "a cat" is padded to 32 tokens, longer ones to 64."""

    name = "z-image"
    title = "`ZImagePipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 32)
    guided = {"guidance_scale": 3.0}
    unguided = {"guidance_scale": 0.0}
    # The pipeline passes its sigmas as a list, which few others take.
    schedulers = ("flow-euler-dynamic", "flow-lcm")
    scales_input = False

    def build(self):
        return tiny.z_image()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        with handing_generators(pipe.scheduler, generators):
            # A copy: the pipeline writes into the list that it is given.
            return super().call(pipe, list(prompts), generators, *args, **options)

    def conditioning(self, pipe, prompts):
        negative = pipe.encode_prompt([""], do_classifier_free_guidance=False)[0][0][None]
        rows = []
        for prompt in prompts:
            tokens = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)[0][0][None]
            rows.append({"tokens": tokens, "negative": negative})
        return rows

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows]), "negative": rows[0]["negative"]}

    def evaluate(self, pipe, settings, size):
        @torch.no_grad()
        def evaluate(x, t, rows):
            c, u = (
                pipe.transformer([x[0, :, None]], (1000 - t[None]) / 1000, [rows[name][0]]).sample[0][None, :, 0]
                for name in ("tokens", "negative")
            )
            return -(c + settings["guidance_scale"] * (c - u))

        return evaluate

    def set_timesteps(self, scheduler, steps, size):
        # 16 x 16 pixels per token; a line through 0.5 at 256 tokens and 1.15 at 4096
        length = (size[0] // 16) * (size[1] // 16)
        sigmas = torch.linspace(1, 1 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=0.5 + (length - 256) * 0.65 / 3840)

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 16, size[0] // 8, size[1] // 8), generator=generator)
