"""Qwen-Image."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, handing_generators, masked_mean


class QwenImage(Family):
    """Guided means a negative prompt and a true scale: the pipeline guides only with both."""

    name = "qwen-image"
    title = "`QwenImagePipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 32)
    guided = {"true_cfg_scale": 3.0, "negative_prompt": " "}
    unguided = {"true_cfg_scale": 1.0}
    schedulers = ("flow-unipc", "flow-lcm")
    scales_input = False

    def build(self):
        return tiny.qwen_image()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, num_images_per_prompt=1, **options):
        # Several images per prompt: the pipeline repeats tokens as a, a, b, b and their masks as a, b, a, b.
        prompts = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
        with handing_generators(pipe.scheduler, generators):
            return super().call(pipe, prompts, generators, *args, **options)

    def conditioning(self, pipe, prompts):
        return [{"tokens": pipe.encode_prompt(prompt)[0]} for prompt in prompts]  # one per call, so without padding

    def mean(self, rows):
        return {"tokens": masked_mean([row["tokens"] for row in rows])}

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings["negative_prompt"]])

        def run(x, t, tokens):
            shapes = [[(1, size[0] // 16, size[1] // 16)]]
            return pipe.transformer(x, tokens, timestep=t[None] / 1000, img_shapes=shapes).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, **negative), run(x, t, **rows)
            guided = u + settings["true_cfg_scale"] * (c - u)
            return guided * c.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)

        return evaluate

    def first_noise(self, pipe, size, generator):
        rows, columns = size[0] // 16, size[1] // 16
        noise = randn_tensor((1, 1, tiny.qwen.LATENT_CHANNELS, 2 * rows, 2 * columns), generator=generator)
        tokens = []
        for i in range(rows):
            for j in range(columns):
                tokens.append(noise[0, 0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())
        return torch.stack(tokens)[None]

    def set_timesteps(self, scheduler, steps, size):
        # 16 x 16 pixels per token; a line through (256 tokens, 0.5) and (8192 tokens, 0.9), by the default scheduler
        tokens = (size[0] // 16) * (size[1] // 16)
        config = scheduler.config
        longest, top = config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)
        mu = 0.5 + (top - 0.5) * (tokens - 256) / (longest - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
