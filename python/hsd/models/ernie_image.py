"""ERNIE-Image: a transformer over patches of FLUX.2's latents that attends to Mistral's tokens, each text's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import check_size, decode_patches, own_tokens, pictures, say_once
from .refusals import Needs
from .timesteps import set_timesteps


@dataclass(eq=False)
class ErnieImage(GuidedAdapter):
    """``ErnieImagePipeline``. Conditions on the tokens of the prompt, clusters by their mean without the start token.

    Prompts are used as they are, as with the pipeline's ``use_pe=False``: its prompt enhancer, if one is loaded,
    samples another text for each. A scheduler that draws noise draws from each prompt's generator here, and from
    torch's global generator in the pipeline.
    """

    name: str = "ernie-image"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 4.0
    negative_prompt: str | None = ""

    default_catch_up: ClassVar[float] = 1.0
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"guidance_scale", "negative_prompt"})
    pipelines: ClassVar[tuple[str, ...]] = ("ErnieImagePipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=4, text_only=True
    )

    batch_norm_eps: ClassVar[float] = 1e-5
    """As the pipeline has it: the VAE's own configuration says 1e-4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("height", self.height, self.pipe.vae_scale_factor)
        check_size("width", self.width, self.pipe.vae_scale_factor)
        if self.pipe.pe is not None and self.pipe.pe_tokenizer is not None:
            say_once(
                "the pipeline has a prompt enhancer (pe), which HSD does not use: prompts are encoded as they are, as "
                "with use_pe=False. Enhance them before, if you like, and pass the texts that it gives"
            )

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Tokens (L_i, D) of each prompt, without padding."""
        tokens: list[Tensor] = self.pipe.encode_prompt(prompts, self.device)
        return tokens

    def encode(self, batch: Batch) -> Encoded:
        """Tokens, and their mean without the start token, which is larger than all others and says nothing."""
        tokens = self._encode(batch.prompts)
        *ids, empty = self.pipe.tokenizer([*batch.prompts, ""], truncation=True, padding=False)["input_ids"]
        own = [row[own_tokens(one, empty, len(row))] for row, one in zip(tokens, ids, strict=True)]
        return Encoded({"prompt_embeds": tokens}, vectors=torch.stack([row.float().mean(0) for row in own]))

    def shared(self) -> dict[str, Any]:
        """The scale, and the negative prompt's tokens; nothing without guidance."""
        if not self.guided:
            return {}
        negative = self._encode([self.negative_prompt or ""])
        return {"guidance_scale": scale_row(self.guidance_scale), "negative_prompt_embeds": negative}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Evenly spaced noise levels, from 1 to one step before 0.

        They are the pipeline's, as an array: it gives a tensor, which some schedulers do not take.
        """
        set_timesteps(self, scheduler, steps, sigmas=torch.linspace(1.0, 0.0, steps + 1)[:-1].numpy())

    def latent_shape(self) -> tuple[int, ...]:
        """(4 C, h, w): patches of 2 x 2 pixels of the VAE's latent."""
        factor = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, self.height // factor, self.width // factor)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows."""
        guidance = Guidance(rows, self.guided)
        tokens, mask = guidance.both_tokens("prompt_embeds")
        output = self.pipe.transformer(
            hidden_states=guidance.twice(latents.to(self.dtype)),
            timestep=guidance.twice(timestep.to(self.dtype)),  # of up to 1000, rounded as the pipeline does
            text_bth=tokens.to(self.dtype),
            text_lens=mask.sum(1),  # what is behind is masked, and the image's position follows it
            return_dict=False,
        )[0].float()  # [B or 2B, 4 C, h, w]
        return guidance.apply(output), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """As patches of the VAE's latent."""
        image = decode_patches(self.pipe, latents, self.batch_norm_eps, generators)
        return pictures(self.pipe.image_processor, image)
