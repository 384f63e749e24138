"""Stable unCLIP."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family

PRIOR = {"prior_num_inference_steps": 3, "prior_guidance_scale": 2.0, "noise_level": 50}


class StableUnCLIP(Family):
    name = "stable-unclip"
    title = "`StableUnCLIPPipeline`"
    clustered_by = "image embedding"
    guided = {"guidance_scale": 3.0}
    unguided = {"guidance_scale": 1.0}

    def build(self):
        return tiny.stable_unclip()

    def denoiser(self, pipe):
        return pipe.unet

    def settings(self, settings, size):
        prior = {"prior_steps": 3, "prior_guidance_scale": 2.0, "noise_level": 50}
        return {**super().settings(settings, size), **prior}

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        return super().call(pipe, prompts, generators, settings, size, steps, output_type, **PRIOR, **options)

    def before_the_decoder(self, pipe, prompt, generator):
        """The class labels (1, ...) that the pipeline gives its UNet; its latents have been drawn by then."""
        labels, state = [], []
        noise = pipe.noise_image_embeddings

        def keep(**kwargs):
            labels.append(noise(**kwargs))
            state.append(generator.get_state())
            return labels[0]

        pipe.noise_image_embeddings = keep
        try:
            pipe(prompt, generator=generator, guidance_scale=1.0, num_inference_steps=1, output_type="latent", **PRIOR)
        finally:
            del pipe.noise_image_embeddings
        generator.set_state(state[0])
        return labels[0]

    def image_embeds(self, pipe, prompt, generator, prior_steps, prior_scale):
        """(1, D) the prior's embedding of a prompt, before noise is added."""
        given = []
        noise = pipe.noise_image_embeddings

        def keep(image_embeds, **kwargs):
            given.append(image_embeds)
            return noise(image_embeds, **kwargs)

        pipe.noise_image_embeddings = keep
        prior = {"prior_num_inference_steps": prior_steps, "prior_guidance_scale": prior_scale}
        try:
            pipe(prompt, generator=generator, num_inference_steps=1, output_type="latent", **prior)
        finally:
            del pipe.noise_image_embeddings
        return given[0]

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt, seed in zip(prompts, self.seeds, strict=True):
            labels = self.before_the_decoder(pipe, prompt, torch.Generator().manual_seed(int(seed)))
            tokens, negative = pipe.encode_prompt(prompt, "cpu", 1, True)
            rows.append({"labels": labels, "tokens": tokens, "negative": negative})
        return rows

    def evaluate(self, pipe, settings, size):
        def run(x, t, tokens, labels):
            return pipe.unet(x, t, encoder_hidden_states=tokens, class_labels=labels).sample

        @torch.no_grad()
        def evaluate(x, t, rows):
            u = run(x, t, rows["negative"], torch.zeros_like(rows["labels"]))
            c = run(x, t, rows["tokens"], rows["labels"])
            return u + settings["guidance_scale"] * (c - u)

        return evaluate

    def generator(self, pipe, seed):
        generator = super().generator(pipe, seed)
        self.before_the_decoder(pipe, "any", generator)
        return generator

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 4, size[0] // 8, size[1] // 8), generator=generator)
