"""FLUX.2."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, handing_generators


class Flux2(Family):
    name = "flux-2"
    title = "`Flux2Pipeline`"
    clustered_by = "mean of the text's tokens"
    oblong = (64, 32)
    guided = {"guidance_scale": 4.0}
    unguided = {"guidance_scale": 1.0}  # an input of the network, so it is evaluated equally often
    negative = None
    schedulers = ("flow-dpm++2m", "flow-lcm")
    scales_input = False

    def build(self):
        return tiny.flux2()

    def denoiser(self, pipe):
        return pipe.transformer

    def call(self, pipe, prompts, generators, *args, **options):
        def by_name(prompts, **arguments):  # the first argument is an image
            return pipe(prompt=prompts, **arguments)

        with handing_generators(pipe.scheduler, generators):
            return super().call(by_name, prompts, generators, *args, **options)

    def conditioning(self, pipe, prompts):
        return [{"tokens": pipe.encode_prompt(prompt)[0]} for prompt in prompts]

    def evaluate(self, pipe, settings, size):
        patches = [[0, row, column, 0] for row in range(size[0] // 16) for column in range(size[1] // 16)]
        words = [[0, 0, 0, position] for position in range(512)]

        @torch.no_grad()
        def evaluate(x, t, rows):
            return pipe.transformer(
                hidden_states=x,
                timestep=t[None] / 1000,
                guidance=torch.tensor([settings["guidance_scale"]]),
                encoder_hidden_states=rows["tokens"],
                txt_ids=torch.tensor(words),
                img_ids=torch.tensor(patches),
            ).sample

        return evaluate

    def set_timesteps(self, scheduler, steps, size):
        # Lines through the shifts of 10 and of 200 steps, which are lines in the number of tokens.
        length = (size[0] // 16) * (size[1] // 16)
        at_10, at_200 = 8.73809524e-05 * length + 1.89833333, 0.00016927 * length + 0.45666666
        mu = at_200 + (at_200 - at_10) / 190 * (steps - 200)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 32, size[0] // 16, size[1] // 16), generator=generator).flatten(2).transpose(1, 2)
