"""Stable Diffusion XL."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family


class StableDiffusionXL(Family):
    name = "stable-diffusion-xl"
    title = "`StableDiffusionXLPipeline`"
    clustered_by = "projected text embedding of the larger CLIP"
    oblong = (64, 48)
    guided = {"guidance_scale": 4.0}
    unguided = {"guidance_scale": 1.0}
    # Which lanes share a call decides how it rounds. 7e-14 in float64: the sizes cause large activations.
    tolerance = lane_tolerance = 1e-4

    def build(self):
        return tiny.sdxl()

    def denoiser(self, pipe):
        return pipe.unet

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt in prompts:
            tokens, negative, pooled, negative_pooled = pipe.encode_prompt(prompt)
            assert not negative.any()
            assert not negative_pooled.any()
            rows.append({"tokens": tokens, "pooled": pooled})
        return rows

    def evaluate(self, pipe, settings, size):
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)

        def run(x, t, tokens, pooled):
            added = {"text_embeds": pooled, "time_ids": time_ids}
            return pipe.unet(x, t, encoder_hidden_states=tokens, added_cond_kwargs=added).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u = run(x, t, torch.zeros_like(rows["tokens"]), torch.zeros_like(rows["pooled"]))
            c = run(x, t, rows["tokens"], rows["pooled"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 4, size[0] // 8, size[1] // 8), generator=generator)
