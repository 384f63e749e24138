"""Karlo, which diffusers knows as unCLIP."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

import tiny
from families.base import Family, masked_mean

STEPS = {"prior_num_inference_steps": 3, "super_res_num_inference_steps": 3}


class Karlo(Family):
    name = "karlo"
    title = "`UnCLIPPipeline` (Karlo)"
    clustered_by = "image embedding"
    size = (16, 16)  # of the denoised image; super-resolution enlarges it to 32 x 32
    oblong = None
    guided = {"guidance_scale": 3.0, "prior_guidance_scale": 2.0}
    unguided = {"guidance_scale": 1.0, "prior_guidance_scale": 1.0}
    negative = None
    schedulers = ()  # the pipeline passes the timestep that comes next, which only UnCLIPScheduler takes
    scheduler = "decoder_scheduler"
    scales_input = False
    # The first step divides by 5e-5 and clips the result: where a value is left unclipped, the last bit in which calls
    # of two and of three prompts differ becomes 0.005.  These seeds have no such value.
    parity_seeds = [1, 2, 3]
    tolerance = 3e-4
    rounding = 0.25

    def build(self):
        return tiny.karlo()

    def denoiser(self, pipe):
        return pipe.decoder

    def settings(self, settings, size):
        return {"prior_steps": 3, "super_res_steps": 3, **settings}

    def call(self, pipe, prompts, generators, settings, size, steps, output_type, **options):
        scales = {"decoder_guidance_scale": settings["guidance_scale"]}
        scales["prior_guidance_scale"] = settings["prior_guidance_scale"]
        decoded = []

        def run():
            return pipe(
                prompts,
                generator=generators,
                decoder_num_inference_steps=steps,
                output_type=output_type,
                **scales,
                **STEPS,
                **options,
            ).images

        if output_type != "latent":
            return run()
        scheduler, taken = pipe.decoder_scheduler, []

        def step(*args, **kwargs):
            taken.append(type(scheduler).step(scheduler, *args, **kwargs))
            if len(taken) == steps:
                decoded.append(taken[-1].prev_sample)
                raise Stopped
            return taken[-1]

        scheduler.step = step
        try:
            run()
        except Stopped:
            return decoded[0]
        finally:
            del scheduler.step

    def before_the_decoder(self, pipe, prompt, generator, prior_steps=3, prior_scale=2.0):
        """The inputs of the pipeline's ``text_proj``: its prior has run, and the decoder has not drawn anything yet."""
        given = []

        def stop(module, args, kwargs):
            given.append(kwargs)
            raise Stopped

        with pipe.text_proj.register_forward_pre_hook(stop, with_kwargs=True):
            try:
                prior = {"prior_num_inference_steps": prior_steps, "prior_guidance_scale": prior_scale}
                pipe(prompt, generator=generator, **prior)
            except Stopped:
                return given[0]
        raise AssertionError("text_proj was not called")

    def image_embeds(self, pipe, prompt, generator, prior_steps, prior_scale):
        """(1, D) the prior's embedding of a prompt."""
        return self.before_the_decoder(pipe, prompt, generator, prior_steps, prior_scale)["image_embeddings"]

    def conditioning(self, pipe, prompts):
        rows = []
        for prompt, seed in zip(prompts, self.seeds, strict=True):
            given = self.before_the_decoder(pipe, prompt, torch.Generator().manual_seed(int(seed)))
            (nothing, text), (no_tokens, tokens) = given["prompt_embeds"], given["text_encoder_hidden_states"]
            lengths = [len(pipe.tokenizer(p).input_ids) for p in ("", prompt)]
            rows.append(
                {
                    "image": given["image_embeddings"],
                    "text": text[None],
                    "tokens": tokens[None, : lengths[1]],
                    "negative_text": nothing[None],
                    "negative_tokens": no_tokens[None, : lengths[0]],
                }
            )
        return rows

    def mean(self, rows):
        dense = [{name: row for name, row in one.items() if name != "tokens"} for one in rows]
        return {**super().mean(dense), "tokens": masked_mean([one["tokens"] for one in rows])}

    def evaluate(self, pipe, settings, size):
        def run(x, t, image, text, tokens):
            hidden, labels = pipe.text_proj(
                image_embeddings=image,
                prompt_embeds=text,
                text_encoder_hidden_states=tokens,
                do_classifier_free_guidance=False,
            )
            return pipe.decoder(x, t, hidden, class_labels=labels).sample.chunk(2, 1)

        @torch.no_grad()
        def evaluate(x, t, rows):
            no_image = pipe.text_proj.learned_classifier_free_guidance_embeddings[None]
            u, _ = run(x, t, no_image, rows["negative_text"], rows["negative_tokens"])
            c, variance = run(x, t, rows["image"], rows["text"], rows["tokens"])
            return torch.cat([u + settings["guidance_scale"] * (c - u), variance], 1)

        return evaluate

    def generator(self, pipe, seed):
        generator = super().generator(pipe, seed)
        self.before_the_decoder(pipe, "any", generator)
        return generator

    def first_noise(self, pipe, size, generator):
        return randn_tensor((1, 3, *size), generator=generator)


class Stopped(Exception):
    """Raised to end the pipeline's run early."""
