"""Qwen-Image 2.1: one transformer over the tokens of the text and of the image, in which the text's length counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale
from .own_tokens import own_mean, template_ends
from .parts import decode_frame, image_size, pictures, shift_for
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class QwenImage21(GuidedAdapter):
    """``QwenImage21Pipeline``. Conditions on Qwen3-VL's tokens, clusters by the mean of those of the prompt itself.

    The number of text tokens, padding included, is where the image begins for the transformer. So a prompt that
    diffusers pads to the length of a longer one becomes another image. Here it becomes what the pipeline makes of it by
    itself, beside any other prompts.

    Classifier-free guidance needs a ``true_cfg_scale`` above 1 and a ``negative_prompt`` (``" "`` is enough), as in
    diffusers; the model is meant to be used without. Images have four channels: they are RGBA. Text keys and values are
    computed at each step, since the lanes of a call are at different steps of different prompts: the result is that of
    ``use_kv_cache=False``, and in float32 that of the default. The pipeline gives its scheduler no generator: a
    scheduler that draws noise draws from each prompt's generator here, and from torch's global generator there.

    A latent is a row of pixels of the VAE's latent, as the transformer reads it.
    """

    name: str = "qwen-image-2.1"
    height: int | None = None
    width: int | None = None
    true_cfg_scale: float = 1.0
    negative_prompt: str | None = None
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    one_length: ClassVar[bool] = True
    capturable: ClassVar[bool] = False  # the transformer looks for the image's place in a mask, on the host
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"true_cfg_scale", "negative_prompt"})
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImage21Pipeline",)
    needs: ClassVar[Needs] = Needs(parts=("text_encoder", "processor", "transformer", "vae", "scheduler"), channels=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        # The pipeline's default for output_resolution; sizes that it would cut to a multiple of 32 are refused.
        self.height, self.width = image_size(self, 1024, multiple=2 * self.pipe.vae_scale_factor)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.true_cfg_scale > 1.0 and self.negative_prompt is not None

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Tokens (L_i, D) of each prompt and of the template after the system's message, without padding."""
        tokens, mask, _ = self.pipe.encode_prompt(list(prompts), device=self.device)
        if mask is None:  # all prompts have one length
            return list(tokens)
        return [row[kept.bool()] for row, kept in zip(tokens, mask, strict=True)]

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (L_i, D), and the mean of those that are the prompt's own."""
        tokens = self._encode(batch.prompts)
        means = [own_mean(row, *self._template) for row in tokens]
        return Encoded({"prompt_embeds": tokens}, vectors=torch.stack(means))

    @cached_property
    def _template(self) -> tuple[int, int]:
        """How many of a row's tokens stand before the prompt, and how many after it."""
        tokenizer, template = self.pipe.processor.tokenizer, self.pipe.prompt_template_t2i
        before, after = template_ends(lambda text: tokenizer(template.format(text))["input_ids"])
        return before - self.pipe._drop_idx, after

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens; nothing without guidance."""
        if not self.guided:
            return {}
        assert self.negative_prompt is not None
        negative = self._encode([self.negative_prompt])
        return {"true_cfg_scale": scale_row(self.true_cfg_scale), "negative_prompt_embeds": negative}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """The model's own noise levels if it has some, whatever ``steps`` is; else evenly spaced ones.

        A scheduler with dynamic shifting shifts them by the number of image tokens.
        """
        sigmas = self.pipe.config.sample_sigmas
        if sigmas is None:
            sigmas = np.linspace(1.0, 1 / steps, steps)
        set_timesteps(self, scheduler, steps, sigmas=sigmas, mu=shift_for(scheduler, self.latent_shape()[0]))

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        assert self.height is not None
        assert self.width is not None
        factor = self.pipe.vae_scale_factor
        return self.height // factor, self.width // factor

    def latent_shape(self) -> tuple[int, ...]:
        """(S, C), S image tokens: one for each pixel of the VAE's latent."""
        rows, columns = self._grid
        return (rows * columns, self.pipe.transformer.config.in_channels)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """Drawn as a video of one frame (1, 1, C, h, w), then made (1, S, C)."""
        tokens, channels = self.latent_shape()
        noise = torch.randn((1, 1, channels, *self._grid), generator=generator, dtype=self.noise_dtype)
        return noise.view(1, channels, tokens).transpose(1, 2)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer, once for the prompts and once for the negative prompt, each with its own text length."""
        image = latents.shape[1]

        def network(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            n, text, _ = tokens.shape
            slots = tokens.new_zeros((n, text + image // 4), dtype=torch.bool)
            slots[:, text:] = True  # one for each 2 x 2 image tokens, all behind the text
            output = self.pipe.transformer(
                hidden_states=x,
                timestep=t,
                encoder_hidden_states=tokens.to(self.dtype),
                encoder_hidden_states_mask=None,
                img_shapes=[[(1, *self._grid)]] * n,
                img_mask=slots,
                return_dict=False,
                **denoiser_scale(self.attention_kwargs, "attention_kwargs"),
            )[0]  # [B, L + S, C]
            return output[:, -image:].float()

        t = timestep.to(self.noise_dtype) / 1000  # rounded before the division, as the pipeline does
        guidance = Guidance(rows, self.guided, scale="true_cfg_scale")
        return guidance.in_two_calls(network, (latents.to(self.dtype), t), ("prompt_embeds",)), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Scale channel by channel, then decode as a video of one frame: RGBA images."""
        vae = self.pipe.vae
        x = latents.transpose(1, 2).unflatten(2, (1, *self._grid)).to(vae.dtype)  # [B, C, 1, h, w]
        return pictures(self.pipe.image_processor, decode_frame(vae, x, generators))
