"""Other image decoders than the pipeline's usual one: some draw noise, some scale latents in another way."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models import autoencoders

import hsd
from families import Family
from families.checks import check_parity
from families.flux import Flux
from families.stable_diffusion import StableDiffusion
from families.stable_diffusion_3 import StableDiffusion3
from families.stable_diffusion_xl import StableDiffusionXL
from families.stable_unclip import StableUnCLIP
from helpers import fresh_generators
from tiny.decoders import asymmetric_autoencoder, consistency_decoder, tiny_autoencoder, with_decoder


def sixteen_channels() -> Any:
    return tiny_autoencoder(latent_channels=16, scaling_factor=0.7, shift_factor=0.4)


CASES = [
    *((family, make) for family in (StableDiffusion, StableDiffusionXL, StableUnCLIP)
      for make in (consistency_decoder, tiny_autoencoder, asymmetric_autoencoder)),
    (Flux, sixteen_channels),
    (StableDiffusion3, sixteen_channels),
]  # fmt: skip


def handed(family: Family) -> Family:
    """The family, its pipeline handing its generators to the decoder: of these only Stable Diffusion's does."""
    stock = family.call

    def call(pipe: Any, prompts: Any, generators: Any, *args: Any, **options: Any) -> Any:
        if "generator" in inspect.signature(pipe.vae.decode).parameters:
            pipe.vae.decode = functools.partial(pipe.vae.decode, generator=generators)
        try:
            return stock(pipe, prompts, generators, *args, **options)
        finally:
            vars(pipe.vae).pop("decode", None)

    family.call = call  # type: ignore[method-assign]
    return family


@pytest.mark.parametrize(("kind", "make"), CASES, ids=lambda each: each.__name__)
def test_images_are_the_pipeline_s(kind: type[Family], make: Any) -> None:
    family = kind() if kind is StableDiffusion else handed(kind())
    check_parity(family, with_decoder(family.build(), make), family.guided, family.size)


@pytest.mark.parametrize("kind", [StableDiffusion, StableDiffusionXL, StableUnCLIP])
def test_a_decoder_that_draws_has_each_image_s_own_noise(kind: type[Family]) -> None:
    """Alone, or with others, or after the global generator has moved: the same image, and the noise is its seed's."""
    family = kind()
    model = hsd.load(with_decoder(family.build(), consistency_decoder), **family.settings({}, family.size))
    latents = torch.randn((1, *model.latent_shape()), generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    together = model.decode(latents, fresh_generators([1, 2, 1]))
    torch.manual_seed(5)
    (alone,) = model.decode(latents[:1], fresh_generators([1]))
    one, other, same = (np.asarray(image).astype(int) for image in together)
    assert np.abs(one - np.asarray(alone)).max() <= 1
    assert np.abs(one - same).max() <= 1
    assert np.abs(one - other).mean() > 2


def test_no_other_decoder_draws() -> None:
    """Classes of diffusers whose ``decode`` can be given a generator: a new one may draw, and then belongs above."""
    known = {"AsymmetricAutoencoderKL", "AutoencoderKL", "AutoencoderTiny", "ConsistencyDecoderVAE"}  # used above
    known |= {"AutoencoderKLFlux2"}  # ignores it
    known |= {"AutoencoderKLKVAE", "AutoencoderOobleck", "LTX2VideoDiffusionDecoderModel"}  # of no pipeline here
    taking = set()
    for module in pkgutil.iter_modules(autoencoders.__path__, autoencoders.__name__ + "."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__ == module.name and hasattr(value, "decode"):
                taking |= {name} if "generator" in inspect.signature(value.decode).parameters else set()
    assert taking <= known, f"{sorted(taking - known)}: does it draw while it decodes?"
    assert "ConsistencyDecoderVAE" in taking
