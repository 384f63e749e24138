"""Krea 2."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, handing_generators, masked_mean


class Krea2(Family):
    """The pipeline's own scale: 2.0 is what other families call 3.0, and 0.0 is unguided."""

    name = "krea-2"
    title = "`Krea2Pipeline`"
    clustered_by = "mean of the text's tokens, over several layers"
    oblong = (64, 32)
    guided = {"guidance_scale": 2.0, "max_sequence_length": 64}
    unguided = {"guidance_scale": 0.0, "max_sequence_length": 64}
    schedulers = ("flow-unipc", "flow-lcm")
    scales_input = False

    def build(self):
        return tiny.krea2()

    def to(self, pipe, dtype):
        pipe = pipe.to(dtype)
        for part in pipe.transformer.modules():
            if isinstance(part, Krea2RMSNorm):  # as in a model that is loaded: float32 weights, whatever its dtype
                part.float()
        return pipe

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        with handing_generators(pipe.scheduler, generators):
            return super().call(pipe, prompts, generators, *args, **options)

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt in prompts:
            tokens, mask = pipe.encode_prompt(prompt, max_sequence_length=64)
            text, end = tokens[:, :-5][mask[:, :-5]], tokens[0, -5:]  # padded between the two
            rows.append({"tokens": torch.cat([end, text])[None]})
        return rows

    def mean(self, rows):
        flat = [row["tokens"].flatten(2) for row in rows]
        return {"tokens": masked_mean(flat).unflatten(2, rows[0]["tokens"].shape[2:])}

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings.get("negative_prompt", "")])
        patches = [[0, row, column] for row in range(size[0] // 16) for column in range(size[1] // 16)]
        scale = settings["guidance_scale"]

        def run(x, t, tokens):
            positions = torch.tensor([[0, 0, 0]] * tokens.shape[1] + patches)
            return pipe.transformer(x, tokens, t[None] / 1000, positions).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            c = run(x, t, **rows)
            return c + scale * (c - run(x, t, **negative)) if scale > 0 else c

        return evaluate

    def first_noise(self, pipe, size, generator):
        rows, columns = size[0] // 16, size[1] // 16
        noise = randn_tensor((1, tiny.qwen.LATENT_CHANNELS, 2 * rows, 2 * columns), generator=generator)
        tokens = []
        for i in range(rows):
            for j in range(columns):
                tokens.append(noise[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())
        return torch.stack(tokens)[None]

    def set_timesteps(self, scheduler, steps, size):
        # 16 x 16 pixels per token; a line through (256 tokens, 0.5) and (6400 tokens, 1.15)
        tokens = (size[0] // 16) * (size[1] // 16)
        mu = 0.5 + 0.65 * (tokens - 256) / (6400 - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
