"""FLUX.1 dev."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family


class Flux(Family):
    """Guided means a negative prompt and a true scale; the distilled scale is an input either way."""

    name = "flux"
    title = "`FluxPipeline` (dev, schnell)"
    clustered_by = "pooled text embedding"
    oblong = (64, 96)
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "low quality", "guidance_scale": 2.0}
    unguided = {"true_cfg_scale": 1.0, "guidance_scale": 5.0}
    schedulers = ("flow-unipc", "flow-dpm++2m")  # the pipeline gives a scheduler no generator, so none that draws
    scales_input = False

    def build(self):
        return tiny.flux()

    def denoiser(self, pipe):
        return pipe.transformer

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt in prompts:
            tokens, pooled, _ = pipe.encode_prompt(prompt, None)
            rows.append({"tokens": tokens, "pooled": pooled})
        return rows

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings["negative_prompt"]])
        guidance = torch.tensor([settings["guidance_scale"]])
        positions = [[0.0, i, j] for i in range(size[0] // 16) for j in range(size[1] // 16)]

        def run(x, t, tokens, pooled):
            return pipe.transformer(
                x,
                timestep=t[None] / 1000,
                guidance=guidance,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                txt_ids=torch.zeros(512, 3),
                img_ids=torch.tensor(positions),
            ).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, **negative), run(x, t, **rows)
            return u + settings["true_cfg_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        rows, columns = size[0] // 16, size[1] // 16
        noise = randn_tensor((1, 16, 2 * rows, 2 * columns), generator=generator)
        tokens = []
        for i in range(rows):
            for j in range(columns):
                tokens.append(noise[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())
        return torch.stack(tokens)[None]

    def set_timesteps(self, scheduler, steps, size):
        if scheduler.config.get("use_flow_sigmas"):
            return scheduler.set_timesteps(steps, mu=self.mu(size))
        return scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=self.mu(size))

    @staticmethod
    def mu(size):
        """The line through (256 tokens, 0.5) and (4096 tokens, 1.15)."""
        tokens = math.prod(size) // 256
        return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
