"""CogView 4: a transformer that attends to all tokens of GLM that it is given, padding included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift, retrieve_timesteps
from torch import Tensor

from ..errors import UnsupportedScheduler
from ..replay.denoiser import Batch, Encoded
from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .lora_scale import denoiser_scale
from .parts import Pair, image_size, pair, pictures, vae_decode
from .refusals import Needs


@dataclass(eq=False)
class CogView4(GuidedAdapter):
    """``CogView4Pipeline``. Conditions on GLM's tokens, clusters by the mean of the prompt's own.

    A prompt is padded on the left to a multiple of 16 tokens, and neither GLM nor the transformer takes a mask: a
    prompt that diffusers pads to the length of a longer one becomes another image. Here it becomes what the pipeline
    makes of it by itself, beside any other prompts.

    For the transformer text tokens have no order. So a prompt's own tokens come first in its row, and its padding after
    them: in the mean of a cluster, texts that begin with the same words then meet word by word, whatever their length.

    Sizes are (height, width). ``original_size`` is the image's size where it is None. Of ``timesteps`` and ``sigmas``
    give one; the pipeline also takes both. The pipeline gives its scheduler no generator: a scheduler that draws noise
    draws from each prompt's generator here, and from torch's global generator there.
    """

    name: str = "cogview-4"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 5.0
    negative_prompt: str | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    max_sequence_length: int = 1024
    timesteps: tuple[int | float, ...] | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0
    one_length: ClassVar[bool] = True
    capturable: ClassVar[bool] = False  # the transformer makes the positions of its patches on the host in each call
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "negative_prompt", "original_size", "crops_coords_top_left", "max_sequence_length"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("CogView4Pipeline",)
    needs: ClassVar[Needs] = Needs(parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        native = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        self.height, self.width = image_size(self, native, multiple=16)
        if self.original_size is not None:
            self.original_size = pair("original_size", self.original_size)
        self.crops_coords_top_left = pair("crops_coords_top_left", self.crops_coords_top_left)
        if self.max_sequence_length < 1:
            raise ValueError(f"max_sequence_length is {self.max_sequence_length}: it has to be at least 1 token")

    @property
    def noise_dtype(self) -> torch.dtype:
        """float32, whatever the networks are in."""
        return torch.float32

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Tokens (L, D) of a prompt, its own before its padding, and the mean (D,) of its own."""
        tokens = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )[0][0]
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(prompt, max_length=self.max_sequence_length, truncation=True)["input_ids"]
        text = tokens[len(tokens) - len(ids) :]
        special = set(tokenizer.all_special_ids)  # such as those that begin each text, which are the same in all
        words = [i for i, token in enumerate(ids) if token not in special]
        mean = (text[words] if words else text).float().mean(0)
        return torch.cat([text, tokens[: len(tokens) - len(ids)]]), mean

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (L_i, D), L_i a multiple of 16, and the mean of those that are words of the prompt.

        Prompts are encoded one by one: the encoder takes no mask, so it would read the padding between them.
        """
        tokens, means = zip(*[self._encode(prompt) for prompt in batch.prompts], strict=True)
        return Encoded({"prompt_embeds": list(tokens)}, vectors=torch.stack(means))

    def shared(self) -> dict[str, Any]:
        """Scale, sizes, and the encoded negative prompt; an empty text if there is none."""
        sizes = [*(self.original_size or (self.height, self.width)), self.height, self.width]
        rows: dict[str, Any] = {
            "guidance_scale": scale_row(self.guidance_scale),
            # In the dtype to which the pipeline rounds them.
            "size_ids": torch.tensor([[*sizes, *self.crops_coords_top_left]], dtype=self.pipe.text_encoder.dtype),
        }
        if self.guided:
            rows["negative_prompt_embeds"] = [self._encode(self.negative_prompt or "")[0]]
        return rows

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Timesteps and noise levels, as the pipeline gives both: a scheduler shifts the noise levels alone.

        Raises
        ------
        UnsupportedScheduler
            If the scheduler does not take both.
        """
        last = scheduler.config.num_train_timesteps
        even = np.linspace(last, 1.0, len(self.sigmas or ()) or steps)
        timesteps = np.array(self.timesteps or even).astype(np.int64).astype(np.float32)
        sigmas = timesteps / last if self.sigmas is None else list(self.sigmas)
        config = scheduler.config
        mu = calculate_shift(
            int(np.prod(self.latent_shape()[1:])) // self.pipe.transformer.config.patch_size**2,
            config.get("base_image_seq_len", 256),
            config.get("base_shift", 0.25),
            config.get("max_shift", 0.75),
        )
        try:
            retrieve_timesteps(scheduler, None, "cpu", timesteps, sigmas, mu=mu)
        except (TypeError, ValueError) as error:
            raise UnsupportedScheduler(
                f"{type(scheduler).__name__} cannot step CogView 4, whose pipeline gives it timesteps and sigmas: "
                f"{error}. Give the pipeline a FlowMatchEulerDiscreteScheduler"
            ) from error

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        assert self.height is not None
        assert self.width is not None
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, self.height // factor, self.width // factor)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer, once for the prompts and once for the negative prompt, each with its own text length."""

        def network(x: Tensor, t: Tensor, sizes: Tensor, tokens: Tensor) -> Tensor:
            output = self.pipe.transformer(
                hidden_states=x,
                encoder_hidden_states=tokens,
                timestep=t,
                original_size=sizes[:, :2],
                target_size=sizes[:, 2:4],
                crop_coords=sizes[:, 4:],
                return_dict=False,
                **denoiser_scale(self.attention_kwargs, "attention_kwargs"),
            )[0]
            return output.float()

        inputs = (latents.to(self.dtype), timestep, rows["size_ids"])
        return Guidance(rows, self.guided).in_two_calls(network, inputs, ("prompt_embeds",)), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Scale, decode."""
        vae = self.pipe.vae
        image = vae_decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor, generators)
        return pictures(self.pipe.image_processor, image)
