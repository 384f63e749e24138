"""FLUX.2 Klein: FLUX.2's transformer without an input for the guidance scale, and Qwen3's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .flux2 import Flux2
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import own_tokens, say_once
from .refusals import Needs


@dataclass(eq=False)
class Flux2Klein(GuidedAdapter, Flux2):
    """``Flux2KleinPipeline``, text to image. Conditions on Qwen3's tokens, clusters by the mean of those of the prompt.

    The base model is guided if ``guidance_scale`` is above 1, with an empty negative prompt: the pipeline has no other.
    The distilled model (``is_distilled``) is never guided, and made for 4 steps. Prompts are used as they are, without
    input images. A scheduler that draws noise draws from each prompt's generator here, and from torch's global
    generator in the pipeline.
    """

    name: str = "flux-2-klein"
    text_encoder_out_layers: tuple[int, ...] = (9, 18, 27)

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=("text_encoder", "tokenizer", "transformer", "vae", "scheduler"), channels=4, text_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layers()
        if self.pipe.config.is_distilled and self.guidance_scale > 1.0 and self.guidance_scale != Flux2.guidance_scale:
            say_once(
                f"guidance_scale={self.guidance_scale:g} has no effect: this FLUX.2 Klein is distilled, and never "
                "guided. It is made for 4 steps, of which similar prompts can share few"
            )

    def _check_layers(self) -> None:
        """``ValueError`` unless the layers' outputs exist, and are together as wide as the transformer reads."""
        layers, config = tuple(self.text_encoder_out_layers), self.pipe.text_encoder.config
        last = config.num_hidden_layers
        for layer in layers:
            if not -last - 1 <= layer <= last:
                raise ValueError(
                    f"text_encoder_out_layers has {layer}: the text encoder has {last} layers, whose outputs are 1 to "
                    f"{last}; 0 is its input, and -1 is the last"
                )
        number = self.pipe.transformer.config.joint_attention_dim // config.hidden_size
        if len(layers) != number:
            raise ValueError(
                f"text_encoder_out_layers is {layers}: the transformer reads the outputs of {number} layers"
            )

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.guidance_scale > 1.0 and not self.pipe.config.is_distilled

    def _own_tokens(self, prompts: list[str]) -> Tensor:
        """(B, L) bool, each prompt's own tokens: those that are neither of the chat around it nor padding."""
        *texts, empty = self._chats([*prompts, ""])
        own = torch.zeros((len(prompts), self.max_sequence_length), dtype=torch.bool)
        for row, ids in zip(own, texts, strict=True):
            read = min(len(ids), self.max_sequence_length)
            first = 0 if self.pipe.tokenizer.padding_side == "right" else len(row) - read
            row[first : first + read][own_tokens(ids, empty, read)] = True
        return own

    def _chats(self, prompts: list[str]) -> list[list[int]]:
        """The ids of each prompt in the chat that the text encoder reads, before it is cut or padded."""
        tokenizer = self.pipe.tokenizer
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for prompt in prompts
        ]
        ids: list[list[int]] = tokenizer(chats, truncation=False, padding=False, verbose=False)["input_ids"]
        return ids

    def shared(self) -> dict[str, Any]:
        """The scale, and the tokens of an empty prompt; nothing without guidance."""
        if not self.guided:
            return {}
        return {"guidance_scale": scale_row(self.guidance_scale), f"negative_{self._tokens}": self._encode([""])}

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows in one call; the pipeline makes two."""
        guidance = Guidance(rows, self.guided)
        output = self._velocity(
            guidance.twice(latents), guidance.twice(timestep), guidance.both(self._tokens), scale=None
        )
        return guidance.apply(output), None
