"""The prior of unCLIP models (Ramesh et al., arXiv 2204.06125): it samples an image embedding from text.

It is a denoiser like any other: its latents are embeddings, its steps may be shared by prompts of similar text, and it
runs in batches, with one generator for each prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..replay.denoiser import Batch, Encoded, Prior
from .guidance import Guidance, scale_row
from .parts import pad_tokens

EncodeText = Callable[[list[str]], tuple[Tensor, Tensor, Tensor]]
"""Prompts to pooled (B, D), tokens (B, L, D) and their mask (B, L) bool."""


class TextPrior(Prior):
    """A diffusers ``PriorTransformer`` with its scheduler and text encoder.

    Parameters
    ----------
    prior, scheduler
        Those of the pipeline.
    encode_text
        Encodes texts as the pipeline does.
    device
        Where it runs.
    steps, guidance_scale, tau
        Settings.
    guided
        Whether it is guided; by default, with a scale above 1.
    negative_prompt
        The text of the unconditional half; empty for None.
    samples_negative
        Kandinsky samples an image embedding of the negative prompt for each prompt, from the same generator: a
        latent is then a pair (2, D), the prompt's embedding first.
    scales_input
        Whether the pipeline calls ``scale_model_input``.
    passes_previous
        Whether the pipeline passes ``prev_timestep``, the timestep of the next step, to the scheduler.
    eta
        What the pipeline passes to schedulers that take an ``eta``; None if it passes nothing.
    """

    encodes_seeds = False

    def __init__(
        self,
        prior: Any,
        scheduler: Any,
        encode_text: EncodeText,
        device: torch.device,
        *,
        steps: int,
        guidance_scale: float,
        tau: float,
        guided: bool | None = None,
        negative_prompt: str | None = None,
        samples_negative: bool = False,
        scales_input: bool = False,
        passes_previous: bool = True,
        eta: float | None = None,
    ) -> None:
        self.steps, self.tau = steps, tau
        self._prior, self._scheduler, self._encode_text, self._device = prior, scheduler, encode_text, device
        self._scale, self._negative, self._samples_negative = guidance_scale, negative_prompt, samples_negative
        self._scales_input, self._passes_previous, self._eta = scales_input, passes_previous, eta
        self._guided = guidance_scale > 1.0 if guided is None else guided

    def encode(self, batch: Batch) -> Encoded:
        """Text rows; clustered by the pooled embedding."""
        pooled, tokens, mask = self._encode_text(batch.prompts)
        return Encoded(text_rows("", pooled, tokens, mask), pooled)

    def shared(self) -> dict[str, Any]:
        """The scale, and the unconditional text; a sampled negative embedding is conditioned on that text too."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self._scale)}
        if self._guided or self._samples_negative:
            rows |= text_rows("negative_", *self._encode_text([self._negative or ""]))
        return rows

    def draws(self) -> list[torch.dtype]:
        """The dtypes of all draws of one image, in order: the first latent, then the scheduler's noises.

        They are kept until the scheduler or its configuration is another.
        """
        key = (self.steps, self._eta, self._passes_previous, self.noise_dtype, repr(self._scheduler.config))
        kept = _draws.get(self._scheduler)
        if kept is None or kept[0] != key:
            noises = self.sampler(self.steps).noise_dtypes
            kept = key, [self.noise_dtype, *(dtype or self.noise_dtype for step in noises for dtype in step)]
            _draws[self._scheduler] = kept
        return kept[1]

    def scheduler(self) -> Any:
        """The prior's scheduler."""
        return self._scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``prev_timestep`` None at every step where the pipeline does not pass it, and ``eta``."""
        takes = inspect.signature(scheduler.step).parameters
        own: dict[str, Any] = {}
        if "prev_timestep" in takes and not self._passes_previous:
            own["prev_timestep"] = None
        if "eta" in takes and self._eta is not None:
            own["eta"] = self._eta
        return own

    @property
    def _n(self) -> int:
        """Number of embeddings in one latent."""
        return 2 if self._samples_negative else 1

    @property
    def rows(self) -> int:
        """One for each embedding, twice as many with guidance."""
        return self._n * (2 if self._guided else 1)

    def latent_shape(self) -> tuple[int, ...]:
        """(1, D), or (2, D) where a negative embedding is sampled."""
        return (self._n, self._prior.config.embedding_dim)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's dtype."""
        return self._prior.dtype

    @property
    def scales_input(self) -> bool:
        """Whether the pipeline calls ``scale_model_input``."""
        return self._scales_input

    def modules(self) -> tuple[nn.Module, ...]:
        """The transformer."""
        return (self._prior,)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The transformer on [unconditional; conditional] rows, of each lane's n embeddings."""
        rows = self._row_per_embedding(padded_text(rows, self._prior.config.num_embeddings))
        guidance = Guidance(rows, self._guided)
        output = self._prior(
            guidance.twice(latents.to(self.dtype).flatten(0, 1)),
            timestep=guidance.twice(timestep.repeat_interleave(self._n)),
            proj_embedding=guidance.both("text_embeds").to(self.dtype),
            encoder_hidden_states=guidance.both("text_tokens").to(self.dtype),
            attention_mask=guidance.both("text_tokens_mask"),
        ).predicted_image_embedding.float()  # [B n or 2 B n, D]
        return guidance.apply(output).view_as(latents), None

    def _row_per_embedding(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows (B n, ...) from (B, ...), one for each of a lane's n embeddings.

        The first embedding of a pair is conditioned on the prompt, the second on the negative prompt.
        """
        if not self._samples_negative:
            return rows
        return {
            name: torch.stack([row, rows.get(f"negative_{name}", row)], 1).flatten(0, 1) for name, row in rows.items()
        }


_draws: WeakKeyDictionary[Any, tuple[Hashable, list[torch.dtype]]] = WeakKeyDictionary()
"""The latest draws of each scheduler, with what they depend on besides."""


def text_rows(prefix: str, pooled: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """Rows of encoded texts: tokens without their padding, since the networks read them under a mask."""
    lengths = mask.sum(1).tolist()
    return {
        f"{prefix}text_embeds": pooled,
        f"{prefix}text_tokens": [row[:length] for row, length in zip(tokens, lengths, strict=True)],
    }


def padded_text(rows: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """``rows`` with their tokens (B, L, D) and masks (B, L) padded to ``length``, that of the tokenizer."""
    return {name: pad_tokens(row, length) if "text_tokens" in name else row for name, row in rows.items()}


def skip(prior: TextPrior, generator: torch.Generator) -> None:
    """Draw from ``generator`` as much as ``prior`` draws for one image, where prior and decoder share a generator."""
    shape = (1, *prior.latent_shape())
    for dtype in prior.draws():
        torch.randn(shape, generator=generator, dtype=dtype)
