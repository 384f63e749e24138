"""Kandinsky 5, text to image: a transformer that attends to all tokens of Qwen2.5-VL that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .own_tokens import own_mean, template_ends
from .parts import check_max_sequence_length, pictures, vae_decode
from .refusals import Needs


@dataclass(eq=False)
class Kandinsky5(GuidedAdapter):
    """``Kandinsky5T2IPipeline``. Conditions on Qwen2.5-VL's tokens and CLIP's pooled text.

    Prompts are clustered by the mean of Qwen's tokens of the prompt itself, without the template around it.

    The transformer takes no mask: a prompt that diffusers pads to the length of a longer one becomes another image.
    Here it becomes what the pipeline makes of it by itself, beside any other prompts.

    The pipeline makes images of the sizes in its ``resolutions`` only, and takes the nearest instead of another one;
    here another size is an error. The pipeline gives its scheduler no generator: a scheduler that draws noise draws
    from each prompt's generator here, and from torch's global generator there.
    """

    name: str = "kandinsky-5"
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 3.5
    negative_prompt: str | None = None
    max_sequence_length: int = 512

    default_catch_up: ClassVar[float] = 1.0
    one_length: ClassVar[bool] = True
    capturable: ClassVar[bool] = False  # the time embedding copies its frequencies from the host in each call
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    lane_settings: ClassVar[frozenset[str]] = frozenset({"guidance_scale", "negative_prompt", "max_sequence_length"})
    pipelines: ClassVar[tuple[str, ...]] = ("Kandinsky5T2IPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer", "vae", "scheduler")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [(height, width) for width, height in self.pipe.resolutions]
        if (self.height, self.width) not in sizes:
            raise ValueError(
                f"height and width are {self.height} and {self.width}, and the pipeline has no such size: it would "
                f"make an image of another one. Choose (height, width) of {', '.join(map(str, sizes))}"
            )
        check_max_sequence_length(self.max_sequence_length, 1024)

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    def _encode(self, prompts: list[str]) -> tuple[list[Tensor], Tensor]:
        """Qwen's tokens (L_i, D) of each prompt and of the template behind it, and CLIP's pooled texts (B, P).

        They are encoded one by one: beside a prompt that is too long the pipeline also cuts shorter ones.
        """
        found = [
            self.pipe.encode_prompt(
                prompt, max_sequence_length=self.max_sequence_length, device=self.device, dtype=self.dtype
            )
            for prompt in prompts
        ]
        return [tokens[0] for tokens, _, _ in found], torch.cat([pooled for _, pooled, _ in found])

    def encode(self, batch: Batch) -> Encoded:
        """Tokens (L_i, D) and pooled texts (B, P), and the mean of the tokens that are the prompt's own."""
        tokens, pooled = self._encode(batch.prompts)
        means = [own_mean(row, 0, self._behind) for row in tokens]
        return Encoded({"prompt_embeds": tokens, "pooled_embeds": pooled}, vectors=torch.stack(means))

    @cached_property
    def _behind(self) -> int:
        """How many tokens of the template stand behind the prompt; the pipeline itself drops those before it."""
        tokenizer, template = self.pipe.tokenizer, self.pipe.prompt_template
        return template_ends(lambda text: tokenizer(text=[template.format(text)])["input_ids"][0])[1]

    def shared(self) -> dict[str, Any]:
        """The scale, and the encoded negative prompt; an empty text if there is none."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows["negative_prompt_embeds"], rows["negative_pooled_embeds"] = self._encode([self.negative_prompt or ""])
        return rows

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def latent_shape(self) -> tuple[int, ...]:
        """(1, h, w, C): one frame, channels last."""
        factor = self.pipe.vae_scale_factor_spatial
        return (1, self.height // factor, self.width // factor, self.pipe.transformer.config.in_visual_dim)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer, once for the prompts and once for the negative prompt, each with its own text length."""
        dtype, device = self.dtype, latents.device
        _, frames, height, width, _ = latents.shape
        patches = [torch.arange(n, device=device) for n in (frames, height // 2, width // 2)]

        def network(x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            output = self.pipe.transformer(
                hidden_states=x,
                encoder_hidden_states=tokens.to(dtype),
                pooled_projections=pooled.to(dtype),
                timestep=t,
                visual_rope_pos=patches,
                text_rope_pos=torch.arange(tokens.shape[1], device=device),
                scale_factor=[1.0, 1.0, 1.0],
                sparse_params=None,
                return_dict=True,
            ).sample
            return output.float()

        inputs = (latents.to(dtype), timestep.to(dtype))
        names = ("prompt_embeds", "pooled_embeds")
        return Guidance(rows, self.guided).in_two_calls(network, inputs, names), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Channels first, scale, decode."""
        vae = self.pipe.vae
        x = latents[:, 0].permute(0, 3, 1, 2).to(vae.dtype) / vae.config.scaling_factor  # [B, C, h, w]
        return pictures(self.pipe.image_processor, vae_decode(vae, x, generators))
