"""Kandinsky 2.2, prior and decoder as a pair."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family

PRIOR = {"num_inference_steps": 3, "guidance_scale": 2.0}


class Kandinsky22(Family):
    """The decoder as it ships: DDPM with a learned range of variance and dynamic thresholding."""

    name = "kandinsky-2.2"
    title = "`KandinskyV22CombinedPipeline`, or the pair (`KandinskyV22PriorPipeline`, `KandinskyV22Pipeline`)"
    clustered_by = "image embedding"
    oblong = (64, 40)  # which the pipeline rounds up to 64
    guided = {"guidance_scale": 3.0}
    unguided = {"guidance_scale": 1.0}
    schedulers = ("ddim", "euler-ancestral")
    scales_input = False

    def build(self):
        return (tiny.k22_prior(), tiny.k22_decoder(tiny.k22_ddpm()))

    def denoiser(self, pipe):
        return pipe[1].unet

    def to(self, pipe, dtype):
        return tuple(part.to(dtype) for part in pipe)

    def settings(self, settings, size):
        prior = {"prior_steps": PRIOR["num_inference_steps"], "prior_guidance_scale": PRIOR["guidance_scale"]}
        return {**super().settings(settings, size), **prior}

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        prior, decoder = pipe
        negative = settings.get("negative_prompt")
        per_prompt = options.get("num_images_per_prompt", 1)
        prompts = [prompt for prompt in prompts for _ in range(per_prompt)]
        given = prior(
            prompts,
            negative_prompt=None if negative is None else [negative] * len(prompts),
            generator=[copy(g) for g in generators] * (1 if negative is None else 2),
            **PRIOR,
        )
        return decoder(
            given.image_embeds,
            given.negative_image_embeds,
            generator=generators,
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=settings["guidance_scale"],
            output_type=output_type,
        ).images

    def conditioning(self, pipe, prompts):
        prior, _ = pipe
        negative = prior.get_zero_embed(1)
        seeds = self.seeds
        rows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            generator = torch.Generator().manual_seed(int(seed))
            rows.append({"embeds": prior(prompt, generator=generator, **PRIOR).image_embeds, "negative": negative})
        return rows

    def evaluate(self, pipe, settings, size):
        unet = pipe[1].unet
        learned = pipe[1].scheduler.config.get("variance_type") == "learned_range"

        def run(x, t, embeds):
            return unet(x, t, None, added_cond_kwargs={"image_embeds": embeds}).sample.chunk(2, 1)

        @torch.no_grad()
        def evaluate(x, t, rows):
            (u, _), (c, v) = run(x, t, rows["negative"]), run(x, t, rows["embeds"])
            guided = u + settings["guidance_scale"] * (c - u)
            return torch.cat([guided, v], 1) if learned else guided

        return evaluate

    def first_noise(self, pipe, size, generator):
        sides = [8 * -(-side // 64) for side in size]
        return randn_tensor((1, 4, *sides), generator=generator)


def copy(generator):
    again = torch.Generator()
    again.set_state(generator.get_state())
    return again
