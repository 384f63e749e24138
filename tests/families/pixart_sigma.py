"""PixArt-Sigma."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean


class PixArtSigma(Family):
    """Without bins: there are none for a model as small as this."""

    name = "pixart-sigma"
    title = "`PixArtSigmaPipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 48)
    guided = {"guidance_scale": 4.0, "use_resolution_binning": False}
    unguided = {"guidance_scale": 1.0, "use_resolution_binning": False}
    schedulers = ("unipc", "euler-ancestral")

    def build(self):
        return tiny.pixart_sigma()

    def denoiser(self, pipe):
        return pipe.transformer

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt in prompts:
            tokens, mask, negative, negative_mask = pipe.encode_prompt(prompt, clean_caption=True)
            rows.append({"tokens": tokens[:, : int(mask.sum())], "negative": negative[:, : int(negative_mask.sum())]})
        return rows

    def mean(self, rows):
        return {name: masked_mean([row[name] for row in rows]) for name in rows[0]}

    def evaluate(self, pipe, settings, size):
        def run(x, t, tokens):
            sizes = {"resolution": None, "aspect_ratio": None}
            return pipe.transformer(x, tokens, timestep=t[None], added_cond_kwargs=sizes).sample[:, :4]

        @torch.no_grad()
        def evaluate(x, t, rows):
            u, c = run(x, t, rows["negative"]), run(x, t, rows["tokens"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 4, size[0] // 8, size[1] // 8), generator=generator)
