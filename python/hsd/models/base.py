"""What the executor needs to know of a pipeline family: the interface that every adapter fills in.

An adapter is the only code that knows a pipeline class. It fills in five methods: ``encode``, ``scheduler``,
``latent_shape``, ``denoise`` and ``decode``.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning import Conditioning
from ..sampler import SamplerTable, compile_sampler

EncodeProgress = Callable[[int], object]
"""Called with the number of prompts encoded so far."""


@dataclass(eq=False)
class Adapter(ABC):
    """A diffusers pipeline as the executor sees it. The other fields of a family are its settings."""

    pipe: Any
    name: str
    default_tau: float = field(default=1.0, kw_only=True)
    """The tau that suits the scale of the model's embeddings, used where none is given."""

    pipelines: ClassVar[tuple[str, ...]] = ()
    """Names of the diffusers pipeline classes that this adapter drives."""

    # -- the five methods

    @abstractmethod
    def encode(
        self, prompts: list[str], seeds: NDArray[np.int64], progress: EncodeProgress | None = None
    ) -> Conditioning:
        """Conditioning of ``prompts``, one row each, on the host. ``seeds`` matter to sampled priors only."""

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
            (B,) the scheduler's timesteps; lanes may differ.
        rows
            Conditioning tensors (B, ...) by name.

        Returns
        -------
        tuple
            The model output (B, *latent_shape) float32, and the learned variance of the same shape or None.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> list[PIL.Image.Image]:
        """Images from finished latents (B, *latent_shape) float32."""

    # -- what follows from them

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return torch.device(self.pipe._execution_device)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype; noise is drawn in it, as the pipeline does."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes the images beside prompts, seeds and plan."""
        return {name: getattr(self, name) for name in self.setting_names()}

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """What :func:`hsd.load` takes for this family."""
        return tuple(f.name for f in fields(cls) if f.name not in ("pipe", "name", "default_tau"))

    def sampler(self, steps: int) -> SamplerTable:
        """The pipeline's scheduler, compiled for ``steps`` inference steps."""
        scheduler = copy.deepcopy(self.scheduler())
        scheduler.set_timesteps(steps, device="cpu")
        return compile_sampler(scheduler, step_kwargs=self.step_kwargs(scheduler))

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """Keyword arguments that the pipeline hands to ``scheduler.step`` (such as ``eta``)."""
        return {}

    @property
    def scales_input(self) -> bool:
        """Whether the pipeline calls ``scheduler.scale_model_input``. Not all do, and parity follows them."""
        return True

    def generator(self, seed: int) -> torch.Generator:
        """The generator of one prompt, where the denoising of the image starts to draw from it."""
        return torch.Generator("cpu").manual_seed(seed)

    def has_conditioning_of(self, other: Adapter) -> bool:
        """Whether ``other`` encodes prompts to the same rows: the same pipeline with the same settings."""
        return self.pipe is other.pipe and type(self) is type(other) and self.settings == other.settings


def batches(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` out of ``n``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Run a pipeline without its own progress bar, and leave its setting as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        pipe._progress_bar_config = before if before is not None else {}


def check_size(name: str, value: int, multiple: int) -> None:
    """``ValueError`` unless a side in pixels is positive and a multiple of ``multiple``."""
    if value < multiple or value % multiple:
        raise ValueError(f"{name} is {value}: it has to be a positive multiple of {multiple} pixels for this model")


def guide(output: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on outputs (2B, ...), unconditional rows first, as diffusers orders them: (B, ...)."""
    unconditional, conditional = output.chunk(2)
    return unconditional + scale * (conditional - unconditional)
