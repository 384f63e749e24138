"""How far a changed denoiser is from the unchanged one, by one call of each on the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..replay.denoiser import Denoiser
from ..tuning.inputs import Inputs


class OneCall:
    """One call of the denoiser as it is now, to compare later calls with. The output is kept on the host.

    Parameters
    ----------
    denoiser
        What is called.
    inputs
        What its lanes are given.
    lanes
        Lanes of the call.
    """

    def __init__(self, denoiser: Denoiser, inputs: Inputs, lanes: int) -> None:
        self._denoiser, self._inputs = denoiser, inputs.of(lanes)
        self._expected = self._output()

    def difference(self) -> float:
        """The norm of the change of the output, as a share of the output's norm; not finite if one of them is not."""
        return float((self._output() - self._expected).norm() / self._expected.norm())

    @torch.no_grad()
    def _output(self) -> Tensor:
        """The output of the call, with the variance if the denoiser predicts one."""
        latents, timesteps, rows = self._inputs
        with self._denoiser.running():
            output, variance = self._denoiser.denoise(latents, timesteps, dict(rows))
        return torch.cat([part.flatten().float().cpu() for part in (output, variance) if part is not None])
