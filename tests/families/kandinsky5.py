"""Kandinsky 5, text to image."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean, one_by_one


class Kandinsky5(Family):
    name = "kandinsky-5"
    title = "`Kandinsky5T2IPipeline`"
    clustered_by = "mean of the prompt's tokens"
    guided = {"guidance_scale": 3.5}
    unguided = {"guidance_scale": 1.0}
    schedulers = ("flow-unipc", "flow-heun")
    scales_input = False
    tolerance = 1e-4  # queries and keys are rounded to bfloat16 in any dtype: a last bit may become a step of 0.4 %
    lane_tolerance = 1e-3

    def build(self):
        return tiny.kandinsky5()

    def denoiser(self, pipe):
        return pipe.transformer

    def to(self, pipe, dtype):
        """As ``from_pretrained(..., dtype=...)`` leaves it: some layers stay in float32, and need to."""
        kept = [part for name, part in pipe.transformer.named_children() if name == "time_embeddings"]
        kept += [part for name, part in pipe.transformer.named_modules() if name.endswith("modulation")]
        pipe.to(dtype)
        for part in kept:
            part.float()
        # What torch says of the norms of queries, float32 with bfloat16 weights, in the pipeline as well.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        return pipe

    def call(self, pipe, prompts, generators, *args, **options):
        def images(*arguments, **more):
            return SimpleNamespace(images=pipe(*arguments, **more).image)

        return one_by_one(super().call, images, prompts, generators, *args, scheduler=pipe.scheduler, **options)

    def conditioning(self, pipe, prompts):
        found = [pipe.encode_prompt(prompt) for prompt in prompts]  # one per call, so without padding
        return [{"tokens": tokens, "pooled": pooled} for tokens, pooled, _ in found]

    def mean(self, rows):
        pooled = torch.cat([row["pooled"] for row in rows]).mean(0, keepdim=True)
        return {"tokens": masked_mean([row["tokens"] for row in rows]), "pooled": pooled}

    def evaluate(self, pipe, settings, size):
        [negative] = self.conditioning(pipe, [settings.get("negative_prompt", "")])
        patches = [torch.arange(n) for n in (1, size[0] // 16, size[1] // 16)]

        def run(x, t, tokens, pooled):
            return pipe.transformer(x, tokens, t[None], pooled, patches, torch.arange(tokens.shape[1])).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, **negative), run(x, t, **rows)
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        channels = pipe.transformer.config.in_visual_dim
        return randn_tensor((1, 1, size[0] // 8, size[1] // 8, channels), generator=generator)
