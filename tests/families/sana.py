"""Sana."""

from __future__ import annotations

import inspect

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean


class Sana(Family):
    name = "sana"
    title = "`SanaPipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 32)
    guided = {"guidance_scale": 4.5}
    unguided = {"guidance_scale": 1.0}
    schedulers = ("flow-unipc", "flow-lcm")
    scales_input = False

    def build(self):
        return tiny.sana()

    def denoiser(self, pipe):
        return pipe.transformer

    def settings(self, settings, size):
        return {**super().settings(settings, size), "use_resolution_binning": False}

    def call(self, pipe, prompts, *args, num_images_per_prompt=1, **options):
        # Several images per prompt: the pipeline repeats tokens as a, a, b, b and their masks as a, b, a, b.
        prompts = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
        return super().call(pipe, prompts, *args, use_resolution_binning=False, **options)

    def conditioning(self, pipe, prompts):
        instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
        rows = []
        for prompt in prompts:
            tokens, mask, negative, negative_mask = pipe.encode_prompt(prompt, complex_human_instruction=instruction)
            rows.append({"tokens": tokens[:, mask[0] > 0], "negative": negative[:, negative_mask[0] > 0]})
        return rows

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows]), "negative": rows[0]["negative"]}

    def evaluate(self, pipe, settings, size):
        def run(x, t, tokens):
            return pipe.transformer(x, encoder_hidden_states=tokens, timestep=t[None]).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, rows["negative"]), run(x, t, rows["tokens"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 8, size[0] // 8, size[1] // 8), generator=generator)
