"""What HSD needs to know about a pipeline family: the interface that every adapter implements.

An adapter is the only code that knows a pipeline class. It has five methods: ``encode``, ``scheduler``,
``latent_shape``, ``denoise`` and ``decode``. ``docs/adapters.md`` shows how to write one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..calibration.calibration import Calibration
from ..replay.denoiser import Denoiser, Prior, has_offload_hooks
from ..replay.kept import kept_by
from .graph_key import graph_key
from .lora_scale import check_lora_scale
from .quantised import mix_rows
from .refusals import Needs
from .state import AFTER_DENOISER, encoding_digest, parts_of
from .timesteps import check_timesteps, set_timesteps

AdapterT = TypeVar("AdapterT", bound="Adapter")


LATER = {"later": True}
"""Metadata of a setting with the default None that a family did not always have.

While it is None it is left out of :attr:`Adapter.settings`, so that folders of earlier versions can be continued.
"""


class Pictures(list[PIL.Image.Image]):
    """Images, and which of them a safety checker made black: what :meth:`Adapter.decode` may return.

    Parameters
    ----------
    images
        The images.
    nsfw
        One flag per image; None if there is no checker.
    """

    def __init__(self, images: Iterable[PIL.Image.Image], nsfw: Iterable[bool] | None = None) -> None:
        super().__init__(images)
        self.nsfw: list[bool] | None = None if nsfw is None else [bool(flag) for flag in nsfw]


_NOT_SETTINGS = ("pipe", "name", "default_tau", "other_scheduler", "calibration")
"""Fields of an adapter that :func:`hsd.load` takes no value for."""


@dataclass(eq=False)
class Adapter(Denoiser):
    """A diffusers pipeline as the executor sees it. The fields that a family adds are its settings."""

    pipe: Any
    name: str
    default_tau: float = field(default=1.0, kw_only=True)
    """The tau that suits the scale of the model's embeddings, used where none is given."""

    calibration: Calibration | None = field(default=None, kw_only=True, repr=False)
    """What :func:`hsd.calibrate` measured of the model; :meth:`with_calibration` sets it."""

    other_scheduler: Any = field(default=None, kw_only=True, repr=False)
    """The scheduler that :meth:`scheduler` returns instead of the pipeline's own; :meth:`with_scheduler` sets it."""

    pipelines: ClassVar[tuple[str, ...]] = ()
    """Names of the diffusers pipeline classes that this adapter drives."""

    needs: ClassVar[Needs] = Needs()
    """What the pipeline has to have; :func:`hsd.load` checks it before it makes the adapter."""

    half_dtype: ClassVar[torch.dtype] = torch.float16
    """The dtype that the family is loaded in on a GPU: the half precision that it was released in."""

    needed_images: ClassVar[tuple[str, ...]] = ()
    """Settings with an image that has to be given."""

    never_captured: ClassVar[str] = ""
    """Why calls are not captured as CUDA graphs whatever they do; empty where :attr:`capturable` alone decides."""

    lane_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that reach :meth:`denoise` through its rows only, so that lanes of one call may differ in them."""

    encodes_size: ClassVar[bool] = False
    """Whether conditioning depends on ``height`` and ``width``, so that it does not serve a copy of another size."""

    denoising_settings: ClassVar[frozenset[str]] = frozenset({"guidance_interval", "timesteps", "sigmas"})
    """Settings that do not change how prompts are encoded."""

    def __repr__(self) -> str:
        """One line: of a pipeline whose parts cannot be asked, what can be."""
        parts = [type(pipe).__name__ for pipe in (self.pipe if isinstance(self.pipe, tuple) else (self.pipe,))]
        parts = [" and ".join(parts)]
        for tell in (
            lambda: "{1} x {0}".format(*self.decoded_size() or ()),
            lambda: f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
            lambda: type(self.scheduler()).__name__,
        ):
            with contextlib.suppress(Exception):
                parts.append(tell())
        return f"<hsd.models.{type(self).__name__}: {', '.join(parts)}>"

    def __post_init__(self) -> None:
        """Check the settings that several families have. Families with their own ``__post_init__`` call it first."""
        check_timesteps(self)
        check_lora_scale(self)

    @abstractmethod
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Images from finished latents (B, *latent_shape) float32.

        ``generators`` are the images' generators in the state after denoising, for pipelines that draw while decoding.
        A model with a safety checker returns :class:`Pictures`.
        """

    def decoding_networks(self) -> tuple[nn.Module, ...]:
        """The networks whose outputs :meth:`decode` makes into images: by default all parts that have a ``decode``.

        A run checks that what they give is finite. If it is not, and they are in half precision, their weights are
        float32 for another call of :meth:`decode`; so it has to give them inputs of their own dtype.
        """
        parts = [part for pipe in self.pipes() for part in pipe.components.values()]
        found = [part for part in parts if isinstance(part, nn.Module) and callable(getattr(part, "decode", None))]
        return tuple(dict.fromkeys(part for part in found if part not in self.modules()))

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Active while a run decodes: an adapter may prepare its networks here, once, instead of in each call.

        It is entered before the first call of :meth:`decode` and left after the last one has ended, both in the thread
        that runs the denoiser. On a GPU :meth:`decode` itself runs in another thread and on another stream, which
        waits for what was enqueued here. What is allocated here may be freed at the end, not before. Encoding and
        denoising go on meanwhile, so that nothing may change for them. :meth:`decode` has to work without it, too.
        """
        yield

    def steps_for(self, n: int) -> int:
        """The smallest number of steps of the schedule of which at least ``n`` are made."""
        return n

    def decoded_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of what the networks decode, which decides how many latents are decoded at once.

        By default the settings ``height`` and ``width``; None if there are none.
        """
        height, width = getattr(self, "height", None), getattr(self, "width", None)
        return None if height is None or width is None else (height, width)

    # -- derived from the methods

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make a family's ``scheduler`` return ``other_scheduler`` where it is set, instead of the pipeline's own.

        This is done here, so that no family has to do it. It is a field, so that ``dataclasses.replace`` keeps it.
        """
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # else dataclass makes one, with the whole pipeline
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]
        owner = next(base for base in cls.__mro__ if "scheduler" in vars(base))
        if owner is Denoiser or (owner is not cls and issubclass(owner, Adapter)):
            return  # there is none yet, or it was replaced when the base class was made
        own = vars(owner)["scheduler"]

        @functools.wraps(own)
        def scheduler(self: Adapter) -> Any:
            return own(self) if self.other_scheduler is None else self.other_scheduler

        cls.scheduler = scheduler  # type: ignore[assignment, method-assign]

    def with_scheduler(self: AdapterT, scheduler: Any) -> AdapterT:
        """A copy whose images are denoised with another diffusers scheduler; this adapter and its pipeline keep theirs.

        ``hsd.load(copy, **settings)`` and ``dataclasses.replace`` keep the scheduler. A prior keeps its own.
        """
        return dataclasses.replace(self, other_scheduler=scheduler)

    def own_scheduler(self) -> Any:
        """The pipeline's own scheduler of the denoiser, whether or not :meth:`with_scheduler` has set another."""
        own = copy.copy(self)
        own.other_scheduler = None
        return own.scheduler()

    def with_calibration(self: AdapterT, calibration: Calibration | None) -> AdapterT:
        """A copy whose prompts are clustered by ``calibration``, where :func:`hsd.compile` is free to choose."""
        return dataclasses.replace(self, calibration=calibration)

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """As the pipeline does, on the CPU: by the settings ``timesteps`` and ``sigmas``, if the family has them."""
        set_timesteps(self, scheduler, steps)

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
        """Active during a run: the dtype is looked up once, not at every call.

        diffusers searches all modules for it, which took 1 % of a run's time.
        """
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

    @classmethod
    def pipes_of(cls, pipe: Any) -> tuple[Any, ...]:
        """The pipeline objects that are driven, for what :func:`hsd.load` is given."""
        return (pipe,)

    def pipes(self) -> tuple[Any, ...]:
        """The pipeline objects that are driven."""
        return self.pipes_of(self.pipe)

    def prior(self) -> Prior | None:
        """The model's prior, if it has one: a denoiser that runs before :meth:`encode`, which gets its output."""
        return None

    @property
    def guided(self) -> bool:
        """Whether the denoiser is evaluated twice, for classifier-free guidance."""
        return getattr(self, "guidance_scale", 0.0) > 1.0

    @property
    def encodes_alone(self) -> bool:
        """Whether an encoder is quantised so that it rounds the rows of a batch together, see ``docs/quantised.md``."""
        parts = ((name, part) for name, part in parts_of(self.pipes()) if not name.startswith(AFTER_DENOISER))
        denoisers = self.modules()
        return any(
            isinstance(part, nn.Module) and not any(part is one for one in denoisers) and mix_rows(part)
            for _, part in parts
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the images depend on besides prompts, seeds and plan."""
        later = {f.name for f in fields(self) if f.metadata.get("later")}
        values = {name: getattr(self, name) for name in self.setting_names()}
        return {name: value for name, value in values.items() if value is not None or name not in later}

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the settings that :func:`hsd.load` takes for this family."""
        return tuple(f.name for f in fields(cls) if f.name not in _NOT_SETTINGS)

    def call_key(self) -> Hashable:
        """Equal for adapters whose prompts may be lanes of one call: all settings except ``lane_settings``."""
        settings = {k: v for k, v in self.settings.items() if k not in self.lane_settings}
        return (type(self), id(self.pipe), id(self.other_scheduler), self.guided, repr(sorted(settings.items())))

    def encoding_key(self) -> Hashable:
        """Equal as long as prompts are encoded to the same rows: by the same weights, tokenizers and settings.

        All weights of the encoders are read each time, since nothing else tells that they have changed in place.
        """
        settings = {k: v for k, v in self.settings.items() if k not in self.denoising_settings}
        parts = encoding_digest(self.pipes(), self.own_scheduler(), self.modules())
        return (type(self), repr(sorted(settings.items())), parts)

    def graph_key(self) -> Hashable | None:
        """Equal as long as a later run may replay the calls that an earlier one captured."""
        return graph_key(self, self.pipes(), self.call_key(), self.lane_settings)

    def free_graphs(self) -> bool:
        """Free the memory that captured calls hold between runs; returns whether there was any.

        On a GPU a model keeps the calls that its latest run captured as CUDA graphs, with their buffers, so that the
        next run of the same sizes need not capture them again. They hold about as much memory as the run itself, and
        go when the model goes, when a run of other sizes begins, and when the memory runs out in it or in encoding. A
        run of several passes, for images of several sizes, keeps none.
        """
        freed = kept_by(self).free()
        if freed:
            torch.cuda.empty_cache()
        return freed

    @property
    def offloads(self) -> bool:
        """Whether hooks move or convert the weights of any network of the pipeline, not only of the denoiser."""
        parts = [part for pipe in self.pipes() for part in pipe.components.values()]
        return any(has_offload_hooks(part) for part in parts if isinstance(part, nn.Module))

    def free(self) -> None:
        """After a run: move networks that ``enable_model_cpu_offload`` left on the device to the host."""
        for pipe in self.pipes():
            pipe.maybe_free_model_hooks()


def batches(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` out of ``n``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Run a pipeline without its own progress bar, and restore its setting afterwards."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        pipe._progress_bar_config = before if before is not None else {}
