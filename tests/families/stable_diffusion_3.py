"""Stable Diffusion 3."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family


class StableDiffusion3(Family):
    name = "stable-diffusion-3"
    title = "`StableDiffusion3Pipeline` (3, 3.5)"
    clustered_by = "projected text embeddings of both CLIPs"
    oblong = (64, 96)
    guided = {"guidance_scale": 4.0}
    unguided = {"guidance_scale": 1.0}
    schedulers = ("flow-heun", "flow-unipc")  # the pipeline gives a scheduler no generator, so none that draws
    scales_input = False

    def build(self):
        return tiny.sd3()

    def denoiser(self, pipe):
        return pipe.transformer

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt in prompts:
            tokens, negative, pooled, negative_pooled = pipe.encode_prompt(prompt, None, None)
            row = {"tokens": tokens, "pooled": pooled}
            rows.append({**row, "negative": negative, "negative_pooled": negative_pooled})
        return rows

    def evaluate(self, pipe, settings, size):
        def run(x, t, tokens, pooled):
            return pipe.transformer(x, tokens, pooled, t[None]).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, rows["negative"], rows["negative_pooled"]), run(x, t, rows["tokens"], rows["pooled"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 16, size[0] // 8, size[1] // 8), generator=generator)
