"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): one evaluation for both halves, then one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..replay.layout import CONDITIONAL, PICK, UNCONDITIONAL
from ..work.broadcast import per_row
from .parts import pad_tokens


@dataclass(frozen=True)
class Guidance:
    """The network's inputs in a guided call of B lanes: 2B rows, [unconditional; conditional], as in diffusers.

    An adapter creates one in ``denoise``. Without guidance there is the conditional half only, and every method returns
    what it is given, so that ``denoise`` reads the same in both cases::

        guidance = Guidance(rows, self.guided)
        output = self.pipe.unet(
            guidance.twice(latents.to(self.dtype)),
            guidance.twice(timestep),
            encoder_hidden_states=guidance.both("prompt_embeds"),
        )
        return guidance.apply(output), None

    Where only some steps are guided (``guidance_interval``), a call has R rows: two of each guided lane and one, the
    conditional one, of the others. The methods are the same, and 2B is then R in what they say.

    Attributes
    ----------
    rows
        The conditioning that ``denoise`` is given, (B, ...) by name. What the unconditional half has instead of
        ``name`` is called ``negative_name``.
    on
        Whether there is guidance.
    scale
        Name of the row that holds the guidance scale, one number per lane.
    """

    rows: dict[str, Tensor]
    on: bool
    scale: str = "guidance_scale"

    def join(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """(2B, ...) from (B, ...) twice; ``conditional`` without guidance."""
        if not self.on:
            return conditional
        both = torch.cat([unconditional, conditional])
        return both if self.picked is None else both.index_select(0, self.picked)

    @property
    def picked(self) -> Tensor | None:
        """(R,) which of the 2B inputs [unconditional; conditional] each row takes; None if each takes its own."""
        return self.rows.get(PICK) if self.on else None

    def whole(self) -> Guidance:
        """Guidance of all 2B rows, also where some lanes need one only: for what is computed before the network."""
        return replace(self, rows={name: row for name, row in self.rows.items() if name != PICK})

    def twice(self, value: Tensor) -> Tensor:
        """(2B, ...) from (B, ...): what is the same in both halves, such as latents and timesteps."""
        return self.join(value, value)

    def both(self, name: str) -> Tensor:
        """(2B, ...) the conditioning ``name`` of both halves."""
        return self.join(self.rows[f"negative_{name}"], self.rows[name]) if self.on else self.rows[name]

    def both_tokens(self, name: str) -> tuple[Tensor, Tensor]:
        """Tokens (2B, L, D) and their mask (2B, L), of prompts and negative prompts padded to the longer of them."""
        names = (name, f"{name}_mask")
        if not self.on:
            return self.rows[names[0]], self.rows[names[1]]
        length = max(self.rows[name].shape[1], self.rows[f"negative_{name}"].shape[1])
        tokens, mask = (
            self.join(pad_tokens(self.rows[f"negative_{each}"], length), pad_tokens(self.rows[each], length))
            for each in names
        )
        return tokens, mask

    def conditional(self, output: Tensor) -> Tensor:
        """(B, ...) the conditional half of an output (2B, ...)."""
        return self.halves(output)[1] if self.on else output

    def halves(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """(B, ...) twice: the unconditional and the conditional output, which are the same in unguided lanes."""
        if self.picked is None:
            unconditional, conditional = output.chunk(2)
            return unconditional, conditional
        return output.index_select(0, self.rows[UNCONDITIONAL]), output.index_select(0, self.rows[CONDITIONAL])

    def apply(self, output: Tensor) -> Tensor:
        """(B, ...) the guided output, each lane with its own scale, from the network's (2B, ...).

        An unguided lane has its conditional output, exactly: u + s (c - u) with u = c.
        """
        return _guide(*self.halves(output), self.rows[self.scale]) if self.on else output

    def in_two_calls(self, network: Callable[..., Tensor], inputs: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """(B, ...) the guided output of a network that cannot take both halves at once: their texts differ in length.

        Parameters
        ----------
        network
            Called with ``inputs`` and conditioning of n rows, it returns its output (n, ...). It is called with all
            lanes, then, if there is guidance, with the unconditional half of those that are guided.
        inputs
            (B, ...) what is the same in both halves.
        names
            The rows that it gets besides.
        """
        conditional = network(*inputs, *(self.rows[name] for name in names))
        if not self.on:
            return conditional
        negative = [*inputs, *(self.rows[f"negative_{name}"] for name in names)]
        if self.picked is None:
            return _guide(network(*negative), conditional, self.rows[self.scale])
        guided = self.picked[: len(self.picked) - len(conditional)]  # the lanes of the unconditional rows
        if not len(guided):
            return conditional
        unconditional = network(*(each.index_select(0, guided) for each in negative))
        return self.apply(torch.cat([unconditional, conditional]))

    def where_guided(self, value: Tensor, otherwise: Tensor) -> Tensor:
        """(B, ...) ``value`` in guided lanes, ``otherwise`` in the others."""
        if not self.on or self.picked is None:
            return value if self.on else otherwise
        return torch.where(per_row(self.rows[UNCONDITIONAL] != self.rows[CONDITIONAL], value), value, otherwise)


def guide(output: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance on outputs (2B, ...), unconditional rows first, as in diffusers: (B, ...).

    ``scale`` (B,), one per row of the output.
    """
    unconditional, conditional = output.chunk(2)
    return _guide(unconditional, conditional, scale)


def _guide(unconditional: Tensor, conditional: Tensor, scale: Tensor) -> Tensor:
    return unconditional + per_row(scale, conditional) * (conditional - unconditional)


def scale_row(value: float) -> Tensor:
    """A guidance scale as a row (1,) float32 of the conditioning, so that lanes may differ in it."""
    return torch.tensor([value], dtype=torch.float32)
