"""Inputs of the denoiser for calls without the executor, which are timed or compared."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..replay.denoiser import Denoiser, step_rows
from ..replay.lengths import lengths_of_prompts, read_by
from ..sampler import SamplerTable

_PROMPTS = 16
"""Number of prompts whose conditioning the lanes use."""


class Inputs:
    """Calls of any number of lanes: noise, conditioned on real prompts, at steps from the first to the last.

    All lanes are at the middle step if the denoiser takes one timestep per call.

    Parameters
    ----------
    denoiser, conditioning, sampler
        As for the executor.
    leaves
        (n,) prompts whose conditioning is used: some of them, evenly spaced.
    """

    def __init__(
        self, denoiser: Denoiser, conditioning: Conditioning, sampler: SamplerTable, leaves: NDArray[np.int64]
    ) -> None:
        self._device, self._latent = denoiser.device, denoiser.latent_shape()
        if denoiser.one_length:
            leaves = _longest(conditioning, leaves)
        common, own = read_by(denoiser, conditioning).split(leaves)
        picked = leaves[np.linspace(0, len(leaves) - 1, min(len(leaves), _PROMPTS)).astype(np.int64)]
        self._rows = own.each(picked, self._device)
        self._shared = {name: row.to(self._device) for name, row in common.items()}
        self._n_prompts = len(picked)
        timesteps = sampler.timesteps.to(self._device)
        middle = len(timesteps) // 2
        every = torch.arange(len(timesteps), device=self._device)
        self._timesteps, self._steps = timesteps, every if denoiser.mixed_timesteps else every[middle : middle + 1]
        self._reads_steps = denoiser.reads_steps

    def of(self, lanes: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Latents, timesteps and rows of ``lanes`` lanes, always the same.

        The user's global generator is not used.
        """
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn((lanes, *self._latent), generator=generator).to(self._device)  # [B, *latent]
        lane = torch.arange(lanes, device=self._device)
        rows = {name: row[lane * self._n_prompts // lanes] for name, row in self._rows.items()}
        rows |= {name: row.expand(lanes, *row.shape[1:]) for name, row in self._shared.items()}
        step = self._steps[lane * len(self._steps) // lanes]
        if self._reads_steps:
            rows |= step_rows(self._timesteps, step)
        return latents, self._timesteps[step], rows


def _longest(conditioning: Conditioning, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of ``prompts`` (n,) that are as long as the longest: a call holds one length, and theirs is slowest."""
    _, lengths = lengths_of_prompts(conditioning, prompts)
    own = lengths[prompts]
    return prompts[(own == own[own.sum(axis=1).argmax()]).all(axis=1)]
