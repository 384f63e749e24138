"""The model families, each in miniature, for the tests that all of them have to pass."""

from __future__ import annotations

from families.base import Family, handing_generators, masked_mean, swap
from families.flux import Flux
from families.flux2 import Flux2
from families.kandinsky22 import Kandinsky22
from families.karlo import Karlo
from families.one_timestep import OneTimestep
from families.pixart_sigma import PixArtSigma
from families.qwen_image import QwenImage
from families.sana import Sana
from families.stable_diffusion import StableDiffusion
from families.stable_diffusion_3 import StableDiffusion3
from families.stable_diffusion_xl import StableDiffusionXL
from families.stable_unclip import StableUnCLIP
from families.z_image import ZImage

FAMILIES: list[Family] = [
    Flux(),
    Flux2(),
    Kandinsky22(),
    Karlo(),
    PixArtSigma(),
    QwenImage(),
    Sana(),
    StableDiffusion(),
    StableDiffusion3(),
    StableDiffusionXL(),
    StableUnCLIP(),
    ZImage(),
]
"""The pipelines that HSD drives."""

EVERY = [*FAMILIES, OneTimestep()]
"""Those, and one with a denoiser that takes one timestep per call."""

__all__ = ["EVERY", "FAMILIES", "Family", "handing_generators", "masked_mean", "swap"]
