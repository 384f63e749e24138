"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family


class StableDiffusion(Family):
    name = "stable-diffusion"
    title = "`StableDiffusionPipeline` (1.x, 2.x)"
    clustered_by = "pooled text embedding"
    size = (32, 32)
    oblong = (32, 48)
    guided = {"guidance_scale": 5.0}
    unguided = {"guidance_scale": 1.0}

    def build(self):
        return tiny.stable_diffusion()

    def denoiser(self, pipe):
        return pipe.unet

    def conditioning(self, pipe, prompts):
        negative = pipe.encode_prompt([""], "cpu", 1, False)[0]
        return [{"tokens": pipe.encode_prompt([p], "cpu", 1, False)[0], "negative": negative} for p in prompts]

    def evaluate(self, pipe, settings: dict[str, Any], size):
        def run(x, t, tokens):
            return pipe.unet(x, t, encoder_hidden_states=tokens).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, rows["negative"]), run(x, t, rows["tokens"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 4, size[0] // 8, size[1] // 8), generator=generator)
