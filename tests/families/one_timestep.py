"""A denoiser that takes one timestep per call, as an adapter outside this package may have it.

No pipeline that HSD drives is like this, but ``mixed_timesteps = False`` is part of the interface: every call of a
program then holds one step, and everything else holds as for the other families.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from families.stable_diffusion import StableDiffusion
from hsd.models.stable_diffusion import StableDiffusion as StableDiffusionAdapter


class OneTimestepUNet(UNet2DConditionModel):
    """A UNet that refuses a call with different timesteps."""

    def forward(self, sample, timestep, *args, **kwargs):
        if torch.as_tensor(timestep).unique().numel() > 1:
            raise ValueError(f"one timestep per call, not {timestep.tolist()}")
        return super().forward(sample, timestep, *args, **kwargs)


class OneTimestepAdapter(StableDiffusionAdapter):
    mixed_timesteps = False
    capturable = False  # the network looks at the timesteps


class OneTimestep(StableDiffusion):
    name = "one-timestep"
    shipped = False
    schedulers = ("dpm++2m",)

    def build(self):
        pipe = super().build()
        pipe.unet.__class__ = OneTimestepUNet
        return pipe

    def loadable(self, pipe):
        return OneTimestepAdapter(pipe)
