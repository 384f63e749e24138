"""Qwen-Image 2.1."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean, one_by_one


class QwenImage21(Family):
    """Guided means a negative prompt and a true scale: the pipeline guides only with both."""

    name = "qwen-image-2.1"
    title = "`QwenImage21Pipeline`"
    clustered_by = "mean of the prompt's tokens"
    guided = {"true_cfg_scale": 3.0, "negative_prompt": " "}
    unguided = {"true_cfg_scale": 1.0}
    schedulers = ("flow-unipc", "flow-lcm")
    scales_input = False
    cuts = False
    rounding = 0.1  # the pipeline computes the keys of the text once, among fewer rows

    def build(self):
        return tiny.qwen_image_21()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        return one_by_one(super().call, pipe, prompts, generators, *args, scheduler=pipe.scheduler, **options)

    def conditioning(self, pipe, prompts):
        return [{"tokens": pipe.encode_prompt(prompt)[0]} for prompt in prompts]  # one per call, so without padding

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows])}

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings["negative_prompt"]])
        grid = (1, size[0] // 16, size[1] // 16)

        def run(x, t, tokens):
            image = torch.tensor([[False] * tokens.shape[1] + [True] * (x.shape[1] // 4)])
            both = pipe.transformer(x, tokens, t[None] / 1000, [[grid]], image).sample
            return both[:, tokens.shape[1] :]

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, **negative), run(x, t, **rows)
            return u + settings["true_cfg_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        shape = (1, pipe.transformer.config.in_channels, size[0] // 16, size[1] // 16)
        return randn_tensor(shape, generator=generator).flatten(2).transpose(1, 2)

    def set_timesteps(self, scheduler, steps, size):
        # 16 x 16 pixels per token; a line through (256 tokens, 0.5) and (8192 tokens, 0.9), by the default scheduler
        tokens = (size[0] // 16) * (size[1] // 16)
        config = scheduler.config
        longest, top = config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)
        mu = 0.5 + (top - 0.5) * (tokens - 256) / (longest - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
