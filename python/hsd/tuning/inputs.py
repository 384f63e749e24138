"""Inputs of the denoiser for calls without the executor, which are timed or compared."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..replay.denoiser import Denoiser
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
        common, own = conditioning.split(leaves)
        picked = leaves[np.linspace(0, len(leaves) - 1, min(len(leaves), _PROMPTS)).astype(np.int64)]
        means = [own.mean(picked[i : i + 1]) for i in range(len(picked))]
        self._rows = {name: torch.stack([mean[name] for mean in means]).to(self._device) for name in means[0]}
        self._shared = {name: row.to(self._device) for name, row in common.items()}
        self._n_prompts = len(picked)
        timesteps = sampler.timesteps.to(self._device)
        middle = len(timesteps) // 2
        self._timesteps = timesteps if denoiser.mixed_timesteps else timesteps[middle : middle + 1]

    def of(self, lanes: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Latents, timesteps and rows of ``lanes`` lanes, always the same.

        The user's global generator is not used.
        """
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn((lanes, *self._latent), generator=generator).to(self._device)  # [B, *latent]
        lane = torch.arange(lanes, device=self._device)
        rows = {name: row[lane * self._n_prompts // lanes] for name, row in self._rows.items()}
        rows |= {name: row.expand(lanes, *row.shape[1:]) for name, row in self._shared.items()}
        return latents, self._timesteps[lane * len(self._timesteps) // lanes], rows
