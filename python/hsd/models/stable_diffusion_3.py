"""Stable Diffusion 3 and 3.5: a rectified flow transformer that reads the tokens of two CLIPs and of T5 as one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import check_max_sequence_length, image_size, shift_for, vae_decode
from .refusals import refuse_ip_adapter, require_text_encoders


@dataclass(eq=False)
class StableDiffusion3(GuidedAdapter):
    """``StableDiffusion3Pipeline``. Clusters by both CLIPs' projected texts, conditions on them and on all tokens.

    T5 may be left out (``text_encoder_3=None``), as in diffusers: its tokens are zeros then. ``mu`` is the shift of a
    scheduler with dynamic shifting; for None it depends on the size of the image.
    The pipeline gives its scheduler no generator: a scheduler that draws noise draws from each prompt's generator
    here, and from torch's global generator there.
    """

    name: str = "stable-diffusion-3"
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 7.0
    negative_prompt: str | None = None
    clip_skip: int | None = None
    max_sequence_length: int = 256
    mu: float | None = None

    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"guidance_scale", "negative_prompt", "clip_skip"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_ip_adapter(self.pipe)
        require_text_encoders(self.pipe, "text_encoder", "text_encoder_2")
        factor = self.pipe.vae_scale_factor
        native, token = self.pipe.default_sample_size * factor, self.pipe.patch_size * factor
        self.height, self.width = image_size(self, native, multiple=token)
        check_max_sequence_length(self.max_sequence_length, 512)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The dtype of CLIP's and T5's tokens after they are joined: the pipeline draws its latents in it."""
        t5 = self.pipe.text_encoder_3
        dtype = self.pipe.text_encoder.dtype
        return dtype if t5 is None else torch.promote_types(dtype, t5.dtype)

    @property
    def scales_input(self) -> bool:
        """False: flow schedulers have nothing to scale, and the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def _tokens(self) -> str:
        """Name of the tokens' rows. It contains the length, since all rows of one name have one shape."""
        return f"prompt_embeds_{self.max_sequence_length}"

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (B, 77 + L, D), CLIP's then T5's, with the padding, which is read; and the pooled vector (B, P)."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            batch.prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            clip_skip=self.clip_skip,
            max_sequence_length=self.max_sequence_length,
        )
        return Encoded({self._tokens: tokens, "pooled_projections": pooled}, vectors=pooled)

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt, which skips no layers of CLIP."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            tokens, _, pooled, _ = self.pipe.encode_prompt(
                [self.negative_prompt or ""],
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
            rows |= {f"negative_{self._tokens}": tokens, "negative_pooled_projections": pooled}
        return rows

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Uses the shift ``mu`` if it is set; else a scheduler with dynamic shifting shifts by the number of tokens."""
        config, shift = scheduler.config, {}
        if self.mu is not None:
            shift["mu"] = self.mu
        elif config.get("use_dynamic_shifting"):
            _, height, width = self.latent_shape()
            patch = self.pipe.transformer.config.patch_size
            shift["mu"] = shift_for(scheduler, (height // patch) * (width // patch), most=1.16)
        scheduler.set_timesteps(steps, device="cpu", **shift)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        sides = [side // self.pipe.vae_scale_factor for side in (self.height, self.width) if side is not None]
        return (self.pipe.transformer.config.in_channels, *sides)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows."""
        guidance = Guidance(rows, self.guided)
        output = self.pipe.transformer(
            hidden_states=guidance.twice(latents.to(self.dtype)),
            timestep=guidance.twice(timestep),
            encoder_hidden_states=guidance.both(self._tokens).to(self.dtype),
            pooled_projections=guidance.both("pooled_projections").to(self.dtype),
            return_dict=False,
        )[0].float()  # [B or 2B, C, h, w]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The VAE."""
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae_decode(vae, latents, generators)
        return self.pipe.image_processor.postprocess(image, output_type="pil")
