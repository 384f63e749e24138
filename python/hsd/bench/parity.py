"""How far a changed denoiser is from the unchanged one, by one call of each on the same inputs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..models.base import Adapter
from ..sampler import SamplerTable


class OneCall:
    """One call of the denoiser as it is now, to compare later calls with.

    Its lanes are noise, conditioned on prompts of the plan at steps from the first to the last (at the middle one, if
    the denoiser takes one timestep per call). The output is kept on the host.

    Parameters
    ----------
    adapter, conditioning, sampler
        As for the executor.
    leaves
        (n,) the prompts whose conditioning is used.
    lanes
        Lanes of the call.
    """

    def __init__(
        self,
        adapter: Adapter,
        conditioning: Conditioning,
        sampler: SamplerTable,
        leaves: NDArray[np.int64],
        lanes: int,
    ) -> None:
        self._adapter, device = adapter, adapter.device
        common, own = conditioning.split(leaves)
        picked = leaves[np.linspace(0, len(leaves) - 1, lanes).astype(np.int64)]
        means = [own.mean(picked[i : i + 1]) for i in range(lanes)]
        self._rows = {name: torch.stack([mean[name] for mean in means]).to(device) for name in means[0]}
        self._rows |= {name: row.to(device).expand(lanes, *row.shape[1:]) for name, row in common.items()}
        steps = np.linspace(0, sampler.n_steps - 1, lanes).astype(np.int64)
        if not adapter.mixed_timesteps:
            steps[:] = sampler.n_steps // 2
        self._timesteps = sampler.timesteps[torch.from_numpy(steps)].to(device)
        noise = torch.randn((lanes, *adapter.latent_shape()), generator=torch.Generator().manual_seed(0))
        self._latents = noise.to(device)  # [B, *latent]
        self._expected = self._output()

    def difference(self) -> float:
        """The norm of the change of the output, as a share of the output's norm; not finite if one of them is not."""
        return float((self._output() - self._expected).norm() / self._expected.norm())

    @torch.no_grad()
    def _output(self) -> Tensor:
        """The output of the call, with the variance if the denoiser predicts one."""
        with self._adapter.running():
            output, variance = self._adapter.denoise(self._latents, self._timesteps, dict(self._rows))
        return torch.cat([part.flatten().float().cpu() for part in (output, variance) if part is not None])
