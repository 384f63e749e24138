"""ControlNets of Stable Diffusion and Stable Diffusion XL, with one image for all prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tiny
from families.stable_diffusion import StableDiffusion
from families.stable_diffusion_xl import StableDiffusionXL

IMAGE = tiny.picture((64, 64))


def pixels(size: tuple[int, int]) -> torch.Tensor:
    """(1, 3, H, W) the image as the ControlNet reads it, from 0 to 1."""
    resized = IMAGE.resize((size[1], size[0]), 1)  # Lanczos
    return torch.from_numpy(np.array(resized).astype(np.float32) / 255).permute(2, 0, 1)[None]


class StableDiffusionControlNet(StableDiffusion):
    name = "stable-diffusion-controlnet"
    title = "`StableDiffusionControlNetPipeline`"
    tolerance = lane_tolerance = 5e-5

    def build(self):
        return tiny.sd_control()

    def settings(self, settings, size):
        return super().settings({"image": IMAGE, **settings}, size)

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        options["image"] = IMAGE
        return super().call(pipe, prompts, generators, settings, size, steps, output_type, **options)

    def evaluate(self, pipe, settings: dict[str, Any], size):
        def run(x, t, tokens):
            down, middle = pipe.controlnet(x, t, tokens, pixels(size), return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return pipe.unet(x, t, encoder_hidden_states=tokens, **added).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, rows["negative"]), run(x, t, rows["tokens"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate


class StableDiffusionXLControlNet(StableDiffusionXL):
    name = "stable-diffusion-xl-controlnet"
    title = "`StableDiffusionXLControlNetPipeline`"
    twin = True
    size = (32, 32)
    oblong = (32, 48)
    schedulers = ()

    def build(self):
        return tiny.sdxl_control()

    def settings(self, settings, size):
        return super().settings({"image": IMAGE, **settings}, size)

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        options["image"] = IMAGE
        return super().call(pipe, prompts, generators, settings, size, steps, output_type, **options)

    def evaluate(self, pipe, settings, size):
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)

        def run(x, t, tokens, pooled):
            sizes = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}
            down, middle = pipe.controlnet(x, t, tokens, pixels(size), return_dict=False, **sizes)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return pipe.unet(x, t, encoder_hidden_states=tokens, **added, **sizes).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u = run(x, t, torch.zeros_like(rows["tokens"]), torch.zeros_like(rows["pooled"]))
            c = run(x, t, rows["tokens"], rows["pooled"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate
