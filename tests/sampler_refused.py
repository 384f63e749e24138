"""The schedulers and configurations that the sampler table must refuse, and what the refusal says.

The test of refusals runs this list, and the table "Refused" of docs/samplers.md is written from it.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor

import tiny
from hsd.errors import UnsupportedScheduler
from hsd.sampler import compile_sampler

SD = tiny.SD_BETAS
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
PROTEINA = {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0}


class BrownianInterval:
    """Draws from its own generators, as torchsde's class of that name does."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, entropy: int, **_: Any) -> None:
        self.size, self.dtype, self.generator = size, dtype, torch.Generator().manual_seed(entropy)

    def __call__(self, ta: Any, tb: Any) -> Tensor:
        return torch.randn(self.size, generator=self.generator, dtype=self.dtype)


@contextmanager
def torchsde_stand_in(module: str) -> Iterator[Any]:
    """Import a module of diffusers.schedulers that needs torchsde, which the tests do not install."""
    stand_in = types.ModuleType("torchsde")
    stand_in.BrownianInterval = BrownianInterval  # type: ignore[attr-defined]
    name = f"diffusers.schedulers.{module}"
    with mock.patch.dict(sys.modules, {"torchsde": stand_in}):  # puts back what was imported before
        sys.modules.pop(name, None)
        yield importlib.import_module(name)


@dataclass(frozen=True)
class Refusal:
    """A configuration of a diffusers scheduler, and texts that its refusal must have."""

    scheduler: str
    says: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    shown: str = ""  # the part of the configuration that matters, for the documentation; empty: the scheduler itself
    timesteps: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": 20})
    torchsde: str = ""  # the module that needs it
    step: int | None = None

    @property
    def name(self) -> str:
        """What is refused, for the documentation."""
        return self.scheduler + (f", {self.shown}" if self.shown else "") + (" (torchsde)" if self.torchsde else "")

    def error(self) -> UnsupportedScheduler:
        """Compile it, and return the refusal."""
        try:
            if self.torchsde:
                with torchsde_stand_in(self.torchsde) as module:
                    self._compile(getattr(module, self.scheduler))
            else:
                self._compile(getattr(diffusers, self.scheduler))
        except UnsupportedScheduler as error:
            return error
        raise AssertionError(f"{self.name} was compiled")

    def _compile(self, cls: Any) -> None:
        scheduler = cls.from_config(self.config)  # it takes options that the class does not know, as in users' calls
        scheduler.set_timesteps(**self.timesteps)
        compile_sampler(scheduler)

    @property
    def opening(self) -> str:
        """How the error's text begins."""
        return f"{self.scheduler} cannot be compiled" + ("" if self.step is None else f" at step {self.step}") + ": "

    def row(self) -> str:
        """Return the row of the documentation: the error's own reason, without the advice."""
        reason = str(self.error()).removeprefix(self.opening).partition(". ")[0]
        return f"| {self.name} | {reason} |"


TOKENS = ("LongTensor", "discrete tokens")

REFUSED = [
    # Classes that no configuration makes expressible.
    Refusal("AmusedScheduler", TOKENS, {"mask_token_id": 7}),
    Refusal("BlockRefinementScheduler", TOKENS),
    Refusal("DiscreteDDIMScheduler", TOKENS),
    Refusal("EntropyBoundScheduler", TOKENS),
    Refusal("VQDiffusionScheduler", TOKENS, {"num_vec_classes": 8}),
    Refusal("CogVideoXDPMScheduler", ("old_pred_original_sample", "timestep_back")),
    Refusal("KarrasVeScheduler", ("sigma_hat", "sample_hat")),
    Refusal("ScoreSdeVeScheduler", ("no step()",)),
    Refusal("RePaintScheduler", ("'original_image'",)),
    Refusal("RFD4ProteinaScheduler", ("'emit_mask'",), PROTEINA),
    Refusal("HeliosDMDScheduler", ("dmd_noisy_tensor", "all_timesteps"), {"stages": 1}, step=0),
    Refusal("PiflowScheduler", ("Piflow model output channels", "the latent is (1, 3, 1, "), step=0),
    Refusal("DPMSolverSDEScheduler", ("randint", "generator"), SD, torchsde="scheduling_dpmsolver_sde", step=0),
    Refusal(
        "CosineDPMSolverMultistepScheduler",
        ("generator", "torch.randn"),
        torchsde="scheduling_cosine_dpmsolver_multistep",
        step=0,
    ),
    # Configurations of classes that are compiled otherwise.
    Refusal(
        "DDPMScheduler",
        ('variance_type="learned"', "root of the model output", "fixed_small"),
        {**SD, "variance_type": "learned"},
        'variance_type="learned"',
    ),
    Refusal(
        "DDPMParallelScheduler",
        ('variance_type="learned"', "root of the model output", "fixed_small"),
        {**SD, "variance_type": "learned"},
        'variance_type="learned"',
    ),
    Refusal(
        "DDIMScheduler",
        ("RuntimeError", "the model output (1, 6, 1, ", "config.pop('variance_type')"),
        {**SD, "variance_type": "learned_range", "clip_sample": False},
        'from_config with variance_type="learned_range", which it does not know',
        step=0,
    ),
    *(
        Refusal(
            scheduler,
            ("inf or nan in diffusers too", "rescale_betas_zero_snr=False"),
            {**ZERO_SNR, **option},
            f"zero terminal SNR, epsilon{shown}",
            step=0,
        )
        for scheduler in ("DDIMScheduler", "DDPMScheduler")
        for option, shown in (({}, ""), ({"thresholding": True}, ", thresholding"))
    ),
    Refusal(
        "LCMScheduler",
        ("inf or nan in diffusers too", "rescale_betas_zero_snr=False"),
        {**SD, "rescale_betas_zero_snr": True},
        "zero terminal SNR, epsilon",
        step=0,
    ),
    Refusal(
        "DDIMInverseScheduler",
        ("inf or nan in diffusers too",),
        {"beta_start": 0.1, "beta_end": 2.0, "clip_sample": False},
        "betas from 0.1 to 2 (its own test's), no clip_sample",
        timesteps={"num_inference_steps": 10},
        step=4,
    ),
    Refusal(
        "UniPCMultistepScheduler",
        ("inf or nan in diffusers too", "sigma_min"),
        {**SD, "solver_type": "bh1"},
        'solver_type="bh1" that ends at sigma 0',
        step=19,
    ),
    Refusal(
        "FlowMatchLCMScheduler",
        ("resizes the latent",),
        {"scale_factors": [0.5, *[1.0] * 18]},
        "scale_factors",
        step=0,
    ),
    Refusal(
        "HeliosScheduler",
        ("NotImplementedError",),
        {"stages": 1, "scheduler_type": "dmd"},
        'scheduler_type="dmd"',
        step=0,
    ),
]  # fmt: skip
