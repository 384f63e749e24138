"""What each argument of the network is made of: constants, latents, timesteps, and rows of the conditioning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...conditioning.rows import MASK
from ..parts import pad_tokens
from .times import Time
from .values import close, nested, same


@dataclass(frozen=True)
class Lanes:
    """What a call of ``denoise`` is given."""

    latents: Tensor
    """(B, ...) float32."""
    timestep: Tensor
    """(B,)"""
    following: Tensor | None
    """(B,) the timestep of the next evaluation; None if nothing reads it."""
    rows: dict[str, Tensor]
    """(B, ...) by name."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.latents.device


class Argument(ABC):
    """How one argument of the network is made from the lanes of a call."""

    @abstractmethod
    def of(self, lanes: Lanes) -> Any:
        """The argument."""


@dataclass(frozen=True)
class Constant(Argument):
    """The same for all prompts and all numbers of lanes."""

    value: Any

    def of(self, lanes: Lanes) -> Any:
        """The value, on the device of the lanes."""
        return nested(self.value, lambda tensor: tensor.to(lanes.device))


@dataclass(frozen=True)
class Latents(Argument):
    """The latents, ``times`` times behind each other, each row in a shape of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    times: int
    as_list: bool

    def of(self, lanes: Lanes) -> Any:
        """(times * B, ...)."""
        x = lanes.latents.to(self.dtype).reshape(len(lanes.latents), *self.shape)
        x = torch.cat([x] * self.times)
        return list(x) if self.as_list else x


@dataclass(frozen=True)
class Timestep(Argument):
    """The timestep of each row, or that of the next evaluation."""

    time: Time
    times: int
    following: bool

    def of(self, lanes: Lanes) -> Tensor:
        """(times * B,)."""
        t = lanes.following if self.following else lanes.timestep
        assert t is not None
        return self.time.of(t).repeat(self.times)


@dataclass(frozen=True)
class Source:
    """One part of an argument: that of one of the evaluations that a call of the network holds."""

    row: str | None
    """Name of its rows; None if it is ``value`` for every lane."""
    value: Any = None
    """What it was for the rehearsed prompts, if it was the same for all."""
    own: bool = False
    """Whether each prompt has its own."""
    ragged: bool = False
    """Whether prompts differ in length."""
    is_mask: bool = False
    dtype: torch.dtype = torch.float32
    length: int | None = None
    """The length to which rows are padded that were stored without the padding under their mask."""
    mask_of: str | None = None
    """The rows whose mask it is, if it is no row of its own."""

    def of(self, lanes: Lanes, as_list: bool) -> Any:
        """(B, ...), or a list of B."""
        n = len(lanes.latents)
        if self.mask_of is not None:
            assert self.length is not None
            return pad_tokens(lanes.rows[self.mask_of + MASK], self.length).to(self.dtype)
        if self.row is None:
            return [self.value] * n
        rows = lanes.rows[self.row]
        if as_list:
            mask = lanes.rows.get(self.row + MASK)
            kept = [len(row) for row in rows] if mask is None else mask.sum(1).tolist()
            return [row[:length].to(self.dtype) for row, length in zip(rows, kept, strict=True)]
        if self.length is not None:
            rows = pad_tokens(rows, self.length)
        return rows.to(self.dtype)


@dataclass(frozen=True)
class Joined(Argument):
    """Rows of the evaluations that a call holds, behind each other."""

    sources: tuple[Source, ...]
    dim: int | None
    """The dimension of the rows; None for a list."""

    def of(self, lanes: Lanes) -> Any:
        """The rows of all evaluations."""
        parts = [source.of(lanes, self.dim is None) for source in self.sources]
        if self.dim is None:
            return [each for part in parts for each in part]
        return torch.cat([part.movedim(0, self.dim) for part in parts], self.dim)


@dataclass(frozen=True)
class OfOneLane(Argument):
    """What follows from the length of the prompt and has no row for each lane: all lanes of a call have one length."""

    row: str
    value: Tensor
    """The longest of those of the rehearsed prompts."""

    def of(self, lanes: Lanes) -> Tensor:
        """(L, ...), that of the first lane."""
        return lanes.rows[self.row][0].to(self.value.dtype)


def fits(argument: Argument, value: Any, n: int) -> bool:
    """Whether what a pipeline gave for an argument to a call of ``n`` prompts is what ``argument`` would make of it.

    What is the same for all prompts has to be, up to rounding.
    """
    if isinstance(argument, Constant):
        return same(argument.value, value)
    if isinstance(argument, OfOneLane):
        shorter = min(len(value), len(argument.value))
        return same(value[:shorter], argument.value[:shorter])
    if not isinstance(argument, Joined):
        return True
    for i, source in enumerate(argument.sources):
        if not source.own:
            for row in part_of(value, argument.dim, i, n):
                if not (close(row, source.value) if isinstance(row, Tensor) else same(row, source.value)):
                    return False
    return True


def part_of(value: Any, dim: int | None, part: int, n: int) -> Any:
    """Part ``part`` of an argument for calls of ``n`` prompts: (n, ...), or a list of n."""
    if dim is None:
        return value[part * n : (part + 1) * n]
    return value.narrow(dim, part * n, n).movedim(dim, 0)


def rows_of(argument: Argument, name: str, value: Any, n: int, own: bool) -> dict[str, Tensor | Sequence[Tensor]]:
    """The rows that ``argument`` reads, from the ``value`` that a pipeline gave for it to a call of ``n`` prompts.

    ``own`` picks those that each prompt has its own of, or those that all share, of which one row is given.
    """
    if isinstance(argument, OfOneLane):
        return {argument.row: [value] * n} if own else {}
    if not isinstance(argument, Joined):
        return {}
    found: dict[str, Tensor | Sequence[Tensor]] = {}
    for i, source in enumerate(argument.sources):
        if source.row is None or source.mask_of is not None or source.own != own:
            continue
        part = part_of(value, argument.dim, i, n)
        rows: list[Tensor] = [row.bool() if source.is_mask else row for row in part][: n if own else 1]
        found[source.row] = list(rows) if source.ragged else torch.stack(rows)
    return found
