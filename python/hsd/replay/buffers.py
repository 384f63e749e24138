"""What calls read and write on the device: allocated once, and used again by runs with the same captured calls."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields, replace

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import MASK
from ..sampler import Predictions, SamplerTable
from .layout import Layout

_ON_HOST = frozenset({"scheduler", "init_noise_sigma", "init_image_scale", "noise_draws", "noise_dtypes"})
"""Fields of a sampler table that no call reads, but for the largest of ``noise_draws``."""


def rounded_up(slots: int) -> int:
    """Slots that are allocated where a later run may use the buffers again: 1, 2, ... 8, 10, 12, 14, 16, 20, 24...

    Plans of equal size differ by some slots. At most a quarter more is allocated.
    """
    unit = max(1, 1 << (slots - 1).bit_length() >> 3)
    return -(-slots // unit) * unit


@dataclass(frozen=True)
class Contents:
    """What a run has in its buffers before its first call, and how large they have to be."""

    slots: int
    """With the scratch slot, which padded lanes read and write."""
    lanes: int
    """Most lanes, or rows of the network, of a call."""
    latent: tuple[int, ...]
    sampler: SamplerTable
    shared: dict[str, Tensor]
    """(1, ...) by name: conditioning that all prompts have in common."""
    rows: dict[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype by name of the conditioning of one slot."""
    late: tuple[str, ...]
    """Names of what catch-up changes."""
    weights: Tensor | None
    """(K K,) float32, the weights of catch-up."""
    rows_by_step: NDArray | None
    """(K,) where guidance varies."""
    predictions: Predictions | None = None
    """Where each step's prediction of x0 is kept."""
    shifts: bool = False
    """Whether something is added to the latents that some segments begin with."""

    def form(self) -> Hashable:
        """Equal where captured calls of one run are those of the other: all but slots, and what a refill sets."""
        table = self.sampler
        return (
            (self.lanes, self.latent, table.n_noise),
            tuple((f.name, _form(getattr(table, f.name))) for f in fields(table) if f.name not in _ON_HOST),
            tuple((name, _form(row)) for name, row in self.shared.items()),
            tuple(self.rows.items()),
            self.late,
            _form(self.weights),
            None if self.rows_by_step is None else tuple(self.rows_by_step.tolist()),
            None if self.predictions is None else self.predictions.form,
            self.shifts,
        )


def _form(value: object) -> Hashable:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value


class Buffers:
    """The tensors of a run on the device.

    Attributes
    ----------
    scratch
        The slot that padded lanes read and write: the last one.
    state
        (slots, S, *latent) float32.
    sampler
        The table, on the device.
    layout
        Rows of the network, where guidance varies.
    shared
        (1, ...) by name, read by every lane.
    rows, differences
        (slots, ...) by name: conditioning of each slot, and with catch-up the difference to what came before.
    weights
        (K K,) float32 with catch-up.
    table
        (3, lanes) int64, what a padded call reads: step, source, target; with catch-up (4, lanes), the place of the
        weight.
    noise
        (lanes, Z, *latent) float32, where the scheduler draws some.
    predictions, predicted
        Where predictions of x0 are kept: how they are made, and (slots, *latent) float32, the latest one of each slot.
    shift
        (lanes, *latent) float32, what a padded call adds to the latents that it reads, where some segments need that.
    """

    def __init__(self, contents: Contents, device: torch.device, *, spare: bool = False) -> None:
        """Allocate the buffers and fill them; ``spare``: with slots for later runs, that may need some more."""
        slots = rounded_up(contents.slots) if spare else contents.slots
        lanes, latent, table = contents.lanes, contents.latent, contents.sampler
        self.slots, self.scratch = slots, slots - 1
        self.sampler = table.to(device, torch.float32)
        self.layout = None if contents.rows_by_step is None else Layout(contents.rows_by_step, device)
        self.state = torch.zeros((slots, table.n_state, *latent), device=device)
        self.shared = {name: row.to(device, copy=True) for name, row in contents.shared.items()}
        self.rows = {
            name: torch.zeros((slots, *row), dtype=dtype, device=device) for name, (row, dtype) in contents.rows.items()
        }
        self.differences = {name: torch.zeros_like(self.rows[name]) for name in contents.late}
        self.weights = None if contents.weights is None else contents.weights.to(device)
        self.table = torch.zeros((4 if contents.late else 3, lanes), dtype=torch.int64, device=device)
        self.noise = torch.zeros((lanes, table.n_noise, *latent), device=device) if table.n_noise else None
        predictions = contents.predictions
        self.predictions = None if predictions is None else predictions.to(device)
        self.predicted = None if predictions is None else torch.zeros((slots, *latent), device=device)
        self.shift = torch.zeros((lanes, *latent), device=device) if contents.shifts else None
        self._begin()

    def refill(self, contents: Contents) -> None:
        """Another run begins, whose contents have the same form and no more slots: each tensor stays where it is."""
        assert contents.slots <= self.slots
        table = contents.sampler.to(self.state.device, torch.float32)
        tensors = {
            name: getattr(self.sampler, name) for name, value in vars(table).items() if isinstance(value, Tensor)
        }
        for name, tensor in tensors.items():
            tensor.copy_(getattr(table, name))
        self.sampler = replace(table, **tensors)
        for name, row in contents.shared.items():
            self.shared[name].copy_(row)
        if self.weights is not None and contents.weights is not None:
            self.weights.copy_(contents.weights)
        if self.predictions is not None and contents.predictions is not None:
            for name, tensor in self.predictions.tensors().items():
                tensor.copy_(contents.predictions.tensors()[name])
        for buffer in (self.state, self.table, *self.rows.values(), *self.differences.values()):
            buffer.zero_()
        for optional in (self.noise, self.predicted, self.shift):
            if optional is not None:
                optional.zero_()
        self._begin()

    def _begin(self) -> None:
        self.table[1:3] = self.scratch
        for name, rows in self.rows.items():
            if rows.dtype == torch.bool and name.endswith(MASK):
                rows[-1] = True  # padded lanes attend to it: an empty mask would give nan
