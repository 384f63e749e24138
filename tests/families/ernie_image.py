"""ERNIE-Image."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, handing_generators, masked_mean


class ErnieImage(Family):
    name = "ernie-image"
    title = "`ErnieImagePipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 32)
    guided = {"guidance_scale": 3.0}
    unguided = {"guidance_scale": 1.0}
    schedulers = ("flow-lcm",)  # no other takes a tensor of sigmas, which the pipeline gives
    scales_input = False

    def build(self):
        return tiny.ernie_image()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        with handing_generators(pipe.scheduler, generators):
            return super().call(pipe, prompts, generators, *args, **options)

    def conditioning(self, pipe, prompts):
        return [{"tokens": pipe.encode_prompt(prompt, "cpu")[0][None]} for prompt in prompts]

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows])}

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings.get("negative_prompt", "")])
        scale = settings["guidance_scale"]

        def run(x, t, tokens):
            return pipe.transformer(x, t[None], tokens, torch.tensor([tokens.shape[1]])).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, **negative), run(x, t, **rows)
            return u + scale * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 32, size[0] // 16, size[1] // 16), generator=generator)

    def set_timesteps(self, scheduler, steps, size):
        scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
