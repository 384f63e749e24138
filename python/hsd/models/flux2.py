"""FLUX.2: a transformer over packed latents and Mistral's tokens, with guidance as an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .base import LATER, Adapter
from .guidance import scale_row
from .lora_scale import denoiser_scale
from .parts import decode_patches, image_size, packed_grid, pictures
from .refusals import Needs
from .timesteps import even_sigmas, set_timesteps


@dataclass(eq=False)
class Flux2(Adapter):
    """``Flux2Pipeline``, text to image. Conditions on Mistral's tokens, clusters by the mean of those of the prompt.

    There is no unconditional half: the scale is an input of the transformer. Prompts are used as they are, without the
    pipeline's upsampling and without input images. The pipeline gives its scheduler no generator: a scheduler that
    draws noise draws from each prompt's generator here, and from torch's global generator there.
    """

    name: str = "flux-2"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 4.0
    max_sequence_length: int = 512
    text_encoder_out_layers: tuple[int, ...] = (10, 20, 30)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    encode_batch: ClassVar[int] = 8  # small: the text encoder keeps the outputs of all its layers
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"guidance_scale", "text_encoder_out_layers"})
    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    needs: ClassVar[Needs] = Needs(parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, self.pipe.default_sample_size * factor, multiple=2 * factor)

    @property
    def guided(self) -> bool:
        """False: one evaluation per step, with any scale."""
        return False

    @property
    def noise_dtype(self) -> torch.dtype:
        """The text encoder's dtype: the pipeline draws its latents in it."""
        return self.pipe.text_encoder.dtype

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def _tokens(self) -> str:
        # Prompts of one plan may differ in the length; rows of one name may not.
        return f"prompt_embeds_{self.max_sequence_length}"

    def _encode(self, prompts: list[str]) -> Tensor:
        """Tokens (B, L, n D) of n layers, with the padding, which the transformer reads: it takes no mask."""
        tokens: Tensor = self.pipe.encode_prompt(
            list(prompts),
            self.device,
            max_sequence_length=self.max_sequence_length,
            text_encoder_out_layers=tuple(self.text_encoder_out_layers),
        )[0]
        return tokens

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and the mean of the prompt's own ones."""
        tokens = self._encode(batch.prompts)
        own = self._own_tokens(batch.prompts).to(tokens.device)
        means = [row[at].float().mean(0) for row, at in zip(tokens, own, strict=True)]
        return Encoded({self._tokens: tokens}, torch.stack(means))

    def _own_tokens(self, prompts: list[str]) -> Tensor:
        """(B, L) bool, each prompt's own tokens: those after the beginning that it has in common with an empty prompt.

        The beginning is a system message. It is longer than most prompts, and its first token is larger than all
        others: a mean over all tokens would depend more on how long a prompt is than on its words.
        """
        inputs = self.pipe.tokenizer.apply_chat_template(
            format_input([*prompts, ""], system_message=self.pipe.system_message),
            add_generation_prompt=False,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=self.max_sequence_length,
        )
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        *texts, empty = (row[kept] for row, kept in zip(ids, mask, strict=True))
        own = mask[:-1].clone()
        for i, text in enumerate(texts):
            n = min(len(text), len(empty))
            same = int((text[:n] == empty[:n]).cumprod(0).sum())
            own[i] &= mask[i].cumsum(0) > min(same, len(text) - 1)
        return own

    def shared(self) -> dict[str, Any]:
        """The scale."""
        return {"guidance_scale": scale_row(self.guidance_scale)}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """The pipeline's sigmas, shifted by the number of image tokens and of steps."""
        steps = len(self.sigmas or ()) or steps
        mu = compute_empirical_mu(image_seq_len=self.latent_shape()[0], num_steps=steps)
        set_timesteps(self, scheduler, steps, sigmas=even_sigmas(self, scheduler, steps), mu=mu)

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return packed_grid(self.pipe, self.height, self.width)

    def latent_shape(self) -> tuple[int, ...]:
        """(S, C): patches of 2 x 2 latent pixels, row by row."""
        h, w = self._grid
        return (h * w, self.pipe.transformer.config.in_channels // 4 * 4)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """Drawn as an image of patches (1, C, h, w), then packed."""
        shape = (1, self.latent_shape()[1], *self._grid)
        noise = torch.randn(shape, generator=generator, dtype=self.noise_dtype)
        return self.pipe._pack_latents(noise)

    @cached_property
    def _image_ids(self) -> Tensor:
        """(S, 4), each patch's position."""
        return self.pipe._prepare_latent_ids(torch.empty(1, 1, *self._grid))[0].to(self.device)

    @cached_property
    def _text_ids(self) -> Tensor:
        """(L, 4), each token's position."""
        return self.pipe._prepare_text_ids(torch.empty(1, self.max_sequence_length, 1))[0].to(self.device)

    def _velocity(self, latents: Tensor, timestep: Tensor, tokens: Tensor, scale: Tensor | None) -> Tensor:
        """(R, S, C) float32, the transformer's output for R rows."""
        output: Tensor = self.pipe.transformer(
            hidden_states=latents.to(self.dtype),
            timestep=timestep.to(self.noise_dtype) / 1000,  # rounded before it is divided, as the pipeline does
            guidance=scale,
            encoder_hidden_states=tokens.to(self.dtype),
            txt_ids=self._text_ids.to(latents.device),
            img_ids=self._image_ids.to(latents.device),
            return_dict=False,
            **denoiser_scale(self.attention_kwargs, "joint_attention_kwargs"),
        )[0]
        return output.float()

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer, each lane with its own time and scale."""
        return self._velocity(latents, timestep, rows[self._tokens], rows["guidance_scale"]), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Unpack, then as patches of the VAE's latent."""
        x = latents.unflatten(1, self._grid).permute(0, 3, 1, 2)  # [B, C, h, w]
        image = decode_patches(self.pipe, x, self.pipe.vae.config.batch_norm_eps, generators)
        return pictures(self.pipe.image_processor, image)
