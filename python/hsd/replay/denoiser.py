"""What the executor runs: the interface of a denoiser, and what it is given to encode.

A pipeline family is an :class:`~hsd.models.Adapter`: a :class:`Denoiser` with a pipeline behind it. The prior of an
unCLIP model is a denoiser too.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..sampler import SamplerTable, compile_sampler


@dataclass(frozen=True)
class Batch:
    """Prompts to encode at once, one an image."""

    prompts: list[str]
    seeds: NDArray[np.int64]
    prior: Tensor | None = None
    """(B, *latent) what the model's prior made of them, float32; None without a prior."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Encoded:
    """Conditioning of a batch.

    Attributes
    ----------
    rows
        By name, in the model's dtype, on any device: a tensor (B, ...), or B tensors (L_i, ...) of differing lengths
        (tokens without padding). ``denoise`` gets the latter padded with zeros to a common length, with ``name_mask``
        (B, L) bool in addition.
    vectors
        (B, D), one vector a prompt: what the prompts are clustered by.
    """

    rows: dict[str, Tensor | Sequence[Tensor]]
    vectors: Tensor


class Denoiser(ABC):
    """What the executor runs: a network that takes noise to something, and what it is conditioned on."""

    mixed_timesteps: ClassVar[bool] = True
    """Whether the lanes of one call may stand at different timesteps. Where not, every call holds one step."""

    capturable: ClassVar[bool] = True
    """Whether :meth:`denoise` never waits for the device nor reads a value back, so that it can be a CUDA graph."""

    encode_batch: ClassVar[int] = 32
    """The most prompts that :meth:`encode` is given at once."""

    encodes_seeds: ClassVar[bool] = False
    """Whether conditioning depends on the seed. Where not, equal prompts are encoded once."""

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """Conditioning of a batch of prompts. A prompt's rows must not depend on the others in the batch."""

    def shared(self) -> dict[str, Tensor | Sequence[Tensor]]:
        """Conditioning that is the same for every prompt, one row each: the unconditional embedding, for example."""
        return {}

    @abstractmethod
    def scheduler(self) -> Any:
        """The pipeline's own scheduler object. It is copied, never stepped."""

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the batch dimension."""

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """One evaluation of the denoiser, guidance included.

        Parameters
        ----------
        latents
            (B, *latent_shape) float32, already scaled for the model.
        timestep
            (B,) the scheduler's timesteps; lanes may differ, unless ``mixed_timesteps`` is off.
        rows
            Conditioning tensors (B, ...) by name, :meth:`shared` ones included.

        Returns
        -------
        tuple
            The model output (B, *latent_shape) float32, and the learned variance of the same shape or None.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the denoiser runs."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""

    @property
    def noise_dtype(self) -> torch.dtype:
        """The dtype that the pipeline draws noise in. A generator gives other numbers in another dtype."""
        return self.dtype

    @property
    def scales_input(self) -> bool:
        """Whether the pipeline calls ``scheduler.scale_model_input``. Not all do, and parity follows them."""
        return True

    def sampler(self, steps: int) -> SamplerTable:
        """The pipeline's scheduler, compiled for ``steps`` inference steps."""
        scheduler = copy.deepcopy(self.scheduler())
        self.set_timesteps(scheduler, steps)
        return compile_sampler(scheduler, step_kwargs=self.step_kwargs(scheduler))

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Call ``scheduler.set_timesteps`` as the pipeline does, on the CPU."""
        scheduler.set_timesteps(steps, device="cpu")

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """Keyword arguments that the pipeline passes to ``scheduler.step`` (such as ``eta``)."""
        return {}

    def prior(self) -> Prior | None:
        """The denoiser that runs before :meth:`encode`, which gets what it made; None where there is none."""
        return None

    def generator(self, seed: int) -> torch.Generator:
        """The generator of one prompt, on the CPU, where the denoising of the image starts to draw from it."""
        return torch.Generator("cpu").manual_seed(seed)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """The noise that denoising starts from, (1, *latent_shape) on the CPU, before the scheduler scales it."""
        return torch.randn((1, *self.latent_shape()), generator=generator, dtype=self.noise_dtype)

    def modules(self) -> tuple[nn.Module, ...]:
        """The networks that :meth:`denoise` calls: what is looked through for step caches and hooks, and compiled."""
        return ()

    @property
    def offloads(self) -> bool:
        """Whether hooks move the weights to the device for a call and away from it afterwards."""
        return any(has_offload_hooks(module) for module in self.modules())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Entered while calls are made: what does not change during a run may be looked up once, here."""
        yield


class Prior(Denoiser):
    """A denoiser that makes, from text, the embedding that the pipeline's own denoiser is conditioned on."""

    steps: int
    """Its scheduler's ``num_inference_steps``."""

    tau: float
    """The largest dissimilarity between texts of one cluster at its first step; 0 shares nothing."""


def has_offload_hooks(module: nn.Module) -> bool:
    """Whether accelerate or diffusers moves the weights of a network to the device and away from it."""
    return any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())
