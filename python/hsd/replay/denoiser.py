"""What the executor runs: the interface of a denoiser, and the batches of prompts that it encodes.

A pipeline family is an :class:`~hsd.models.Adapter`: a :class:`Denoiser` with a pipeline behind it. The prior of an
unCLIP model is a denoiser too.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..sampler import Predictions, SamplerTable, compile_sampler, predictions
from ..sampler.levels import NoLevel, noise_level

STEP = "_step"
"""(B,) int64, which evaluation each lane is at: 0 to K - 1. For denoisers with ``reads_steps``."""

NEXT_TIMESTEP = "_next_timestep"
"""(B,) float32, the scheduler's timestep of the evaluation after it, 0 after the last. For ``reads_steps``."""

N_STEPS = "_n_steps"
"""(B,) int64, K, the number of evaluations, which is the same for all lanes. For ``reads_steps``."""


@dataclass(frozen=True)
class Batch:
    """Prompts to encode at once, one per image."""

    prompts: list[str]
    seeds: NDArray[np.int64]
    prior: Tensor | None = None
    """(B, *latent) float32, the output of the model's prior for them; None without a prior."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Encoded:
    """Conditioning of a batch.

    Attributes
    ----------
    rows
        Tensors by name, in the model's dtype, on any device: (B, ...), or B tensors (L_i, ...) of differing lengths
        (tokens without padding). ``denoise`` gets the latter padded with zeros to a common length, with ``name_mask``
        (B, L) bool in addition; with ``one_length`` they are not padded.
    vectors
        (B, D), one vector per prompt: what the prompts are clustered by.
    """

    rows: dict[str, Tensor | Sequence[Tensor]]
    vectors: Tensor


class Denoiser(ABC):
    """Base of all that the executor runs: a network that denoises, and the encoder of its conditioning."""

    mixed_timesteps: ClassVar[bool] = True
    """Whether the lanes of one call may be at different timesteps. If not, all lanes of a call are at one step."""

    reads_steps: ClassVar[bool] = False
    """Whether the network is told more than a timestep: ``rows`` then hold :data:`STEP`, :data:`NEXT_TIMESTEP` and
    :data:`N_STEPS`."""

    one_length: ClassVar[bool] = False
    """Whether padding would be read: all lanes of a call then have one length of each ragged field.

    :meth:`denoise` gets such a field as (B, L, ...), without padding and without a mask. A ragged field of
    :meth:`shared` has its own length. Such calls are not captured as CUDA graphs: there would be one graph a length.
    """

    capturable: ClassVar[bool] = True
    """Whether :meth:`denoise` never waits for the device and never reads a value back: a CUDA graph allows neither."""

    encode_batch: ClassVar[int] = 32
    """Largest number of prompts in one call of :meth:`encode`."""

    default_catch_up: ClassVar[float] = 0.0
    """The gamma of catch-up conditioning where a plan has none of its own, see ``docs/catch-up.md``; 0 is off."""

    encodes_seeds: ClassVar[bool] = False
    """Whether conditioning depends on the seed. If not, equal prompts are encoded once."""

    @property
    def encodes_alone(self) -> bool:
        """Whether prompts have to be encoded one at a time, since an encoder rounds the rows of a batch together."""
        return False

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """Conditioning of a batch of prompts. A prompt's rows must not depend on the other prompts."""

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
            Conditioning tensors (B, ...) by name, :meth:`shared` ones included, and what ``reads_steps`` adds.

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
        """The dtype that the pipeline draws noise in. A generator gives different numbers in different dtypes."""
        return self.dtype

    @property
    def scales_input(self) -> bool:
        """Whether the pipeline calls ``scheduler.scale_model_input``. Not all pipelines do, and HSD does the same."""
        return True

    def sampler(self, steps: int) -> SamplerTable:
        """The pipeline's scheduler, compiled for ``steps`` inference steps."""
        scheduler = self._stepped(steps)
        begin = self.first_step(scheduler, steps)
        return compile_sampler(scheduler, step_kwargs=self.step_kwargs(scheduler), begin=begin)

    def predictions(self, steps: int) -> Predictions:
        """What each evaluation of ``steps`` inference steps predicts as x0."""
        scheduler = self._stepped(steps)
        begin = self.first_step(scheduler, steps)
        return predictions(scheduler, step_kwargs=self.step_kwargs(scheduler), begin=begin)

    def noise_levels(self, steps: int, sampler: SamplerTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(K,) signal and (K,) noise: the latent that enters step k is signal * x0 + noise * e. NaN where the scheduler
        does not say.
        """
        scheduler = self._stepped(steps)
        begin = self.first_step(scheduler, steps)
        signal, noise = np.full((2, sampler.n_steps), np.nan)
        for k in range(sampler.n_steps):
            with contextlib.suppress(NoLevel):
                level = noise_level(scheduler, begin + k)
                # Of the latent, in what the model reads.
                scale = float(sampler.scale[k, 0]) if sampler.scale_terms != ((),) else 1.0
                signal[k], noise[k] = level.signal / scale, level.noise / scale
        return signal, noise

    def _stepped(self, steps: int) -> Any:
        """A copy of the pipeline's scheduler, set to ``steps`` inference steps."""
        scheduler = copy.deepcopy(self.scheduler())
        self.set_timesteps(scheduler, steps)
        return scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Call ``scheduler.set_timesteps`` as the pipeline does, on the CPU."""
        scheduler.set_timesteps(steps, device="cpu")

    def first_step(self, scheduler: Any, steps: int) -> int:
        """Index of the timestep at which denoising begins: later than 0 where it begins from an image.

        ``scheduler`` has its timesteps set, for ``steps`` inference steps.
        """
        return 0

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """Keyword arguments that the pipeline passes to ``scheduler.step`` (such as ``eta``)."""
        return {}

    def rows_by_step(self, n_steps: int) -> NDArray[np.int64] | None:
        """(K,) rows of the network that a lane has at each step: 2 where it is guided, else 1.

        None if that is the same at all steps: what :meth:`hsd.Plan.program` takes.
        """
        return None

    def prior(self) -> Prior | None:
        """The denoiser that runs before :meth:`encode` and gives it an input; None if the model has none."""
        return None

    def generator(self, seed: int) -> torch.Generator:
        """The generator of one prompt, on the CPU, in the state in which denoising starts to draw from it."""
        return torch.Generator("cpu").manual_seed(seed)

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """The noise that denoising starts from, (1, *latent_shape) on the CPU, before the scheduler scales it."""
        return torch.randn((1, *self.latent_shape()), generator=generator, dtype=self.noise_dtype)

    def first_latent(self, generator: torch.Generator, sampler: SamplerTable) -> Tensor:
        """What denoising starts from, (1, *latent_shape) float32 on the CPU, at the scheduler's own scale."""
        return (self.first_noise(generator).cpu() * sampler.init_noise_sigma).float()

    def modules(self) -> tuple[nn.Module, ...]:
        """The networks that :meth:`denoise` calls: they are searched for step caches and hooks, and compiled."""
        return ()

    @property
    def offloads(self) -> bool:
        """Whether hooks move the weights to the device for a call, or convert them for it, and undo that afterwards."""
        return any(has_offload_hooks(module) for module in self.modules())

    def graph_key(self) -> Hashable | None:
        """Equal as long as a call that was captured in an earlier run may be replayed; None if none may.

        A replay runs no Python and reads the addresses of the capture. So whatever decides what :meth:`denoise` would
        enqueue has to be in the key: settings, where the weights are, what is switched on.
        """
        return None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Active during a run: an adapter may look up here what does not change during the calls."""
        yield


class Prior(Denoiser):
    """A denoiser whose output, from text, is the embedding that the pipeline's own denoiser is conditioned on."""

    steps: int
    """Its scheduler's ``num_inference_steps``."""

    tau: float
    """The largest dissimilarity between texts of one cluster at its first step; 0 shares nothing."""

    @property
    def rows(self) -> int:
        """Rows of the network for one image at one step: two with guidance. For estimates of cost."""
        return 1


def step_rows(timesteps: Tensor, step: Tensor) -> dict[str, Tensor]:
    """What ``reads_steps`` adds to the rows of lanes at ``step`` (B,) int64; ``timesteps`` (K,) are the scheduler's."""
    following = torch.cat([timesteps[1:], timesteps.new_zeros(1)])
    return {
        STEP: step,
        NEXT_TIMESTEP: following.index_select(0, step).float(),
        N_STEPS: torch.full_like(step, len(timesteps)),
    }


def has_offload_hooks(module: nn.Module) -> bool:
    """Whether accelerate or diffusers moves or converts the weights of a network for each call: offloading, layerwise
    casting. A CUDA graph would read them from where they were.

    diffusers leaves an empty list of hooks behind where it only looked for some, as each call of a pipeline does.
    """
    return any(hasattr(part, "_hf_hook") or _hooks_of(part) for part in module.modules())


def _hooks_of(part: nn.Module) -> bool:
    return bool(getattr(getattr(part, "_diffusers_hook", None), "hooks", None))
