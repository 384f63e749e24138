"""CogView 4."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean, one_by_one


class CogView4(Family):
    name = "cogview-4"
    title = "`CogView4Pipeline`"
    clustered_by = "mean of the prompt's tokens"
    guided = {"guidance_scale": 5.0, "max_sequence_length": 128}
    unguided = {"guidance_scale": 1.0, "max_sequence_length": 128}
    schedulers = ("flow-lcm",)  # the pipeline gives timesteps and noise levels, and few schedulers take both
    scales_input = False

    def build(self):
        return tiny.cogview4()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        return one_by_one(super().call, pipe, prompts, generators, *args, scheduler=pipe.scheduler, **options)

    def conditioning(self, pipe, prompts):
        """The tokens of each prompt by itself, the text's before those that fill up 16."""
        rows = []
        for prompt in prompts:
            tokens, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
            filled = -(len(prompt.encode()) + 2) % 16
            rows.append({"tokens": torch.cat([tokens[:, filled:], tokens[:, :filled]], dim=1)})
        return rows

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows])}

    def evaluate(self, pipe, settings, size):
        negative, _ = pipe.encode_prompt(settings.get("negative_prompt", ""), do_classifier_free_guidance=False)
        shape, corner = torch.tensor([size]).float(), torch.zeros(1, 2)

        def run(x, t, tokens):
            return pipe.transformer(x, tokens, t[None], shape, shape, corner).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, negative), run(x, t, **rows)
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, pipe.transformer.config.in_channels, size[0] // 8, size[1] // 8), generator=generator)

    def set_timesteps(self, scheduler, steps, size):
        timesteps = [float(int(t)) for t in np.linspace(1000, 1, steps)]
        mu = 0.75 * ((size[0] // 16) * (size[1] // 16) / 256) ** 0.5 + 0.25
        scheduler.set_timesteps(timesteps=timesteps, sigmas=[t / 1000 for t in timesteps], mu=mu)
