"""FLUX.2 Klein."""

from __future__ import annotations

import torch

import tiny
from families.flux2 import Flux2


class Flux2Klein(Flux2):
    """Noise, noise levels and positions are FLUX.2's."""

    name = "flux-2-klein"
    title = "`Flux2KleinPipeline`"
    guided = {"guidance_scale": 2.0, "max_sequence_length": 64}
    unguided = {"guidance_scale": 1.0, "max_sequence_length": 64}

    def build(self):
        return tiny.flux2_klein()

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        packed = []

        def keep(pipe, step, timestep, tensors):
            packed.append(tensors["latents"])
            return tensors

        images = super().call(
            pipe, prompts, generators, settings, size, steps, output_type, callback_on_step_end=keep, **options
        )
        return packed[-1] if output_type == "latent" else images  # the pipeline's own are scaled for the VAE

    def conditioning(self, pipe, prompts):
        return [{"tokens": pipe.encode_prompt(prompt, max_sequence_length=64)[0]} for prompt in prompts]

    def evaluate(self, pipe, settings, size):
        patches = [[0, row, column, 0] for row in range(size[0] // 16) for column in range(size[1] // 16)]
        words = [[0, 0, 0, position] for position in range(64)]
        [negative] = self.conditioning(pipe, [""])
        scale = settings["guidance_scale"]

        def run(x, t, tokens):
            return pipe.transformer(
                hidden_states=x,
                timestep=t[None] / 1000,
                encoder_hidden_states=tokens,
                txt_ids=torch.tensor(words),
                img_ids=torch.tensor(patches),
            ).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            if scale <= 1:
                return run(x, t, **rows)
            u, c = run(x, t, **negative), run(x, t, **rows)
            return u + scale * (c - u)

        return evaluate
