"""What the executor needs to know of a pipeline family: the interface that every adapter fills in.

An adapter is the only code that knows a pipeline class. It fills in five methods: ``encode``, ``scheduler``,
``latent_shape``, ``denoise`` and ``decode``. ``docs/adapters.md`` shows how to write one.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
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
        (B, L) bool beside it.
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
    """Prompts that :meth:`encode` is given at once, at most."""

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
        """Keyword arguments that the pipeline hands to ``scheduler.step`` (such as ``eta``)."""
        return {}

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
    def stays(self) -> bool:
        """Whether the weights stay where they are: no hook brings them to the device and takes them away again."""
        return all(_stays(module) for module in self.modules())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Held while calls are made one after the other: what does not change meanwhile may be looked up once."""
        yield


class Prior(Denoiser):
    """A denoiser that makes, from text, the embedding that the pipeline's own denoiser is conditioned on."""

    steps: int
    """Its scheduler's ``num_inference_steps``."""

    tau: float
    """How unlike the texts of one cluster may be at its first step; 0 runs every prompt alone."""


@dataclass(eq=False)
class Adapter(Denoiser):
    """A diffusers pipeline as the executor sees it. The other fields of a family are its settings."""

    pipe: Any
    name: str
    default_tau: float = field(default=1.0, kw_only=True)
    """The tau that suits the scale of the model's embeddings, used where none is given."""

    pipelines: ClassVar[tuple[str, ...]] = ()
    """Names of the diffusers pipeline classes that this adapter drives."""

    half_dtype: ClassVar[torch.dtype] = torch.float16
    """What the family is loaded as on a GPU: the half precision that it was released in."""

    lane_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that reach :meth:`denoise` through its rows alone, so that lanes of one call may differ in them."""

    @abstractmethod
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Images from finished latents (B, *latent_shape) float32.

        ``generators`` are the images' own, where denoising left them: for what is drawn after it, if anything is.
        """

    # -- what follows from the methods

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""
        return self._running_dtype or self.modules()[0].dtype  # type: ignore[return-value]

    _running_dtype: ClassVar[torch.dtype | None] = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Held while calls are made. To find a dtype, diffusers looks through all modules: a hundredth of a run."""
        self.__dict__["_running_dtype"] = self.modules()[0].dtype
        try:
            yield
        finally:
            self.__dict__.pop("_running_dtype", None)

    @classmethod
    def load_pipeline(cls, source: str, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or a hub id."""
        return DiffusionPipeline.from_pretrained(source, dtype=dtype)

    def modules(self) -> tuple[nn.Module, ...]:
        """The pipeline's ``transformer`` or ``unet``."""
        return tuple(m for name in ("transformer", "unet") if (m := getattr(self.pipe, name, None)) is not None)

    def pipes(self) -> tuple[Any, ...]:
        """The pipeline objects that are driven."""
        return (self.pipe,)

    def prior(self) -> Prior | None:
        """The model's prior, if it has one: a denoiser that runs before :meth:`encode`, which gets what it made."""
        return None

    @property
    def guided(self) -> bool:
        """Whether the denoiser is evaluated twice, for classifier-free guidance."""
        return getattr(self, "guidance_scale", 0.0) > 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes the images beside prompts, seeds and plan."""
        return {name: getattr(self, name) for name in self.setting_names()}

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """What :func:`hsd.load` takes for this family."""
        return tuple(f.name for f in fields(cls) if f.name not in ("pipe", "name", "default_tau"))

    def call_key(self) -> Hashable:
        """Equal for adapters whose prompts may be lanes of one call: all settings, but ``lane_settings``."""
        settings = {k: v for k, v in self.settings.items() if k not in self.lane_settings}
        return (type(self), id(self.pipe), self.guided, repr(sorted(settings.items())))

    def encoding_key(self) -> Hashable:
        """Equal as long as prompts are encoded to the same rows: by the same networks and LoRAs and settings."""
        parts = [part for pipe in self.pipes() for part in pipe.components.values()]
        networks = tuple(part for part in parts if isinstance(part, nn.Module) and part not in self.modules())
        return (type(self), repr(sorted(self.settings.items())), networks, tuple(map(_lora_state, networks)))

    @property
    def stays(self) -> bool:
        """Whether all networks of the pipeline stay where they are, not the denoiser's only."""
        parts = [part for pipe in self.pipes() for part in pipe.components.values()]
        return all(_stays(part) for part in parts if isinstance(part, nn.Module))

    def free(self) -> None:
        """After a run: what ``enable_model_cpu_offload`` keeps on the device goes back to the host."""
        for pipe in self.pipes():
            pipe.maybe_free_model_hooks()


def _stays(module: nn.Module) -> bool:
    """Whether neither accelerate nor diffusers has hooked into a network, to bring and take its weights."""
    return not any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())


def _lora_state(module: nn.Module) -> Hashable:
    """What PEFT has put into a module: adapters, which of them are on, their strengths, what is merged."""
    layers = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    names = ("active_adapters", "scaling", "merged_adapters", "disable_adapters")
    return tuple((id(layer), *(repr(getattr(layer, name, None)) for name in names)) for layer in layers)


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
