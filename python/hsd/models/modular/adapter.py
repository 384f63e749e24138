"""The adapter of modular pipelines: it runs the pipeline's own blocks, and decides which of them and on what."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from torch import Tensor, nn

from ...errors import Error, UnsupportedPipeline
from ...replay.denoiser import NEXT_TIMESTEP, STEP, Batch, Encoded
from ..base import Adapter
from ..parts import eta_for
from .blocks import Blocks, blocks_of, evaluate
from .guiders import check_guider, is_guided, new_guider, reads_step
from .layout import Layout, layout_of

_LONG = (100, 30, 8)
"""Words of the longer of two texts: more than any length that tokens are padded to the next multiple of."""

_MOST_STEPS = 1000
"""Largest number of steps that a schedule is looked for."""

_GIVEN = frozenset(
    {
        *("prompt", "negative_prompt", "height", "width", "guidance_scale", "max_sequence_length"),
        *("num_inference_steps", "timesteps", "sigmas", "num_images_per_prompt", "generator", "latents", "output_type"),
        *("strength", "denoising_start", "denoising_end", "prompt_embeds", "negative_prompt_embeds"),
    }
)
"""Inputs that ``inputs`` may not have: other settings give them, or HSD itself."""

_BY_STEP = ("guidance_schedule",)
"""Inputs with an entry for each step: there are as many steps as entries."""


@dataclass(eq=False)
class Modular(Adapter):
    """Any ``ModularPipeline`` that makes images from text: FLUX.3 exists as one only.

    Conditions on what the pipeline's text block gives for each prompt alone, clusters by the mean of its tokens. The
    pipeline's blocks are read (:mod:`.blocks`), and those that HSD cannot follow are refused by name. The pipeline
    object is never changed: blocks run on a shallow copy with copies of its scheduler and its guider.
    """

    name: str = "modular"
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    """Of the guider; None: its own. For models that were distilled with guidance, the input of this name."""
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    inputs: dict[str, Any] | None = None
    """More inputs of the pipeline's call by name, the same for all prompts."""

    capturable: ClassVar[bool] = False  # blocks are Python, which reads lengths and looks signatures up
    reads_steps: ClassVar[bool] = True
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    pipelines: ClassVar[tuple[str, ...]] = ("ModularPipeline",)

    def __post_init__(self) -> None:
        super().__post_init__()
        guider = getattr(self.pipe, "guider", None)
        check_guider(guider)
        blocks = self.blocks
        self._check_inputs()
        for side in ("height", "width"):
            value = getattr(self, side) or blocks.default(side) or getattr(self.pipe, f"default_{side}", None)
            if value is None:
                raise ValueError(f"{type(self.pipe).__name__} has no default {side}: give one")
            if value < 1:
                raise ValueError(f"{side} is {value}: it has to be a positive number of pixels")
            setattr(self, side, int(value))
        self._check_guidance(guider)
        for name in ("negative_prompt", "max_sequence_length"):
            if getattr(self, name) is not None and not blocks.takes(name):
                raise ValueError(f"{name} is {getattr(self, name)!r}: {type(self.pipe).__name__} takes none")
        if self.negative_prompt is not None and not self.guided:
            raise ValueError(
                f"negative_prompt is {self.negative_prompt!r}, but the pipeline has no guidance that would read it: "
                "leave it out, or set guidance_scale or a guider"
            )

    def _check_inputs(self) -> None:
        if not isinstance(self.inputs, (Mapping, type(None))):
            raise TypeError(f"inputs is {self.inputs!r}: it has to be a dict of inputs by name")
        for name in self.inputs or {}:
            if name in _GIVEN or "image" in name:
                raise ValueError(f"inputs has {name}, which is a setting, or which HSD gives or does not take")
            if name in self.blocks.stepping and name != "eta":
                raise ValueError(f"inputs has {name}, which only the step of the scheduler reads: leave it out")
            if not self.blocks.takes(name):
                raise ValueError(f"inputs has {name}, which {type(self.pipe).__name__} does not take for a text alone")

    def _check_guidance(self, guider: Any) -> None:
        if self.guidance_scale is None or self.blocks.scales_guidance:
            return
        if guider is None or not hasattr(guider, "guidance_scale"):
            has = "no guider" if guider is None else f"a {type(guider).__name__} without a guidance_scale"
            raise ValueError(
                f"guidance_scale is {self.guidance_scale:g}: {type(self.pipe).__name__} has {has}, so leave it out"
            )
        if not guider._enabled:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale:g}, but the pipeline's guider is disabled: enable it, or "
                "leave guidance_scale out"
            )

    # -- what the pipeline consists of

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks that run for a text alone."""
        return blocks_of(self.pipe)

    @property
    def mixed_timesteps(self) -> bool:  # type: ignore[override]
        """Whether neither a block inside the loop nor the guider depends on which step it is."""
        return not (self.blocks.reads_step or reads_step(self._guider()))

    @property
    def one_length(self) -> bool:  # type: ignore[override]
        """Whether tokens are as long as their text, and not given to the denoiser as a list."""
        return self._layout.one_length

    @property
    def guided(self) -> bool:
        """Whether the guider reads a negative text."""
        return is_guided(self._guider())

    def modules(self) -> tuple[nn.Module, ...]:
        """The networks that the loop calls."""
        parts = [getattr(self.pipe, name, None) for name in self.blocks.loop.component_names]
        return tuple(part for part in parts if isinstance(part, nn.Module))

    def graph_key(self) -> None:
        """None: calls are not captured."""

    def free(self) -> None:
        """Nothing: a modular pipeline has no model hooks of its own to end."""

    @classmethod
    def load_pipeline(cls, source: str, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or a hub id with a ``modular_model_index.json``, with all of its components."""
        pipe = ModularPipeline.from_pretrained(source)
        pipe.load_components(dtype=dtype)
        return pipe

    # -- running blocks

    def _guider(self, *, enabled: bool = True) -> Any:
        guider, scale = getattr(self.pipe, "guider", None), self.guidance_scale
        if self.blocks.scales_guidance:
            scale = None
        if type(self).guided is False:  # a copy that probes without guidance: loops may enable a guider themselves
            scale = 0.0 if getattr(guider, "use_original_formulation", False) else 1.0
        return new_guider(guider, scale, enabled=enabled)

    def _driven(self, *, guided: bool = True, scheduler: Any = None, device: torch.device | None = None) -> Any:
        """What the blocks run on: the pipeline's components, with a guider and a scheduler of their own.

        The blocks ask it for its device several times in each step. The pipeline would search all modules for hooks.
        """
        pipe = copy.copy(self.pipe)
        pipe.__class__ = _on(type(self.pipe), self.device if device is None else device)  # type: ignore[arg-type]
        pipe.scheduler = copy.copy(self.scheduler()) if scheduler is None else scheduler
        if getattr(pipe, "guider", None) is not None:
            pipe.guider = self._guider(enabled=guided)
        return pipe

    def _state(self, **values: Any) -> PipelineState:
        """A state with the settings, and other ``values`` by name."""
        given = {"height": self.height, "width": self.width, "max_sequence_length": self.max_sequence_length}
        if self.blocks.scales_guidance:
            given["guidance_scale"] = self.guidance_scale  # type: ignore[assignment]
        given = {name: value for name, value in given.items() if value is not None}
        return self.blocks.state({**given, **(self.inputs or {}), "output_type": "pil", **values})

    @torch.no_grad()
    def _text(self, prompt: str, *, guided: bool) -> dict[str, Any]:
        """What the text blocks give for one prompt; for the negative text too, if ``guided``."""
        pipe = self._driven(guided=guided)
        state = self._state(prompt=prompt, **({"negative_prompt": self.negative_prompt} if guided else {}))
        before = dict(state.values)
        for block in self.blocks.text:
            _, state = block(pipe, state)
        if state.get("prompt") not in (prompt, [prompt]):
            raise UnsupportedPipeline(
                f"{type(self.pipe).__name__} rewrites prompts before it encodes them: pass the rewritten ones, "
                "and leave the block out"
            )
        return {
            name: value
            for name, value in state.values.items()
            if value is not None and value is not before.get(name) and name != "prompt"
        }

    def _texts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the text blocks give for a short and for a long text, the negative text included."""
        short = self._text("a", guided=self.guided)
        for words in _LONG:
            try:
                return short, self._text(" ".join(["a"] * words), guided=self.guided)
            except ValueError as error:  # longer than max_sequence_length
                failed = error
        raise failed

    @property
    def _layout(self) -> Layout:
        return self._sample[0]

    @property
    def _sample(self) -> tuple[Layout, dict[str, Tensor]]:
        """What the text blocks give, and rows (...) of some text and of the negative one.

        The rows are for what does not depend on the text. They are kept as long as the networks have their dtypes, and
        as a guider that is changed in place reads a negative text or not.
        """
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        dtypes = [weight.dtype for part in parts for weight in [next(part.parameters(), None)] if weight is not None]
        key = (dtypes, self.guided)
        if self.__dict__.get("_sampled", (None, None))[0] != key:
            short, long = self._texts()
            layout = layout_of(type(self.pipe).__name__, short, long)
            rows = layout.rows(short, negative=False) | layout.rows(short, negative=True)
            self.__dict__["_sampled"] = (key, (layout, rows))
        return self.__dict__["_sampled"][1]

    def _prepared(
        self, pipe: Any, values: dict[str, Any], lanes: int, *, steps: int | None = None, generator: Any = None
    ) -> PipelineState:
        """The state of ``lanes`` images at the loop, with a first latent from ``generator``, which is None for any."""
        generator = generator or self._any_generator(pipe._execution_device)
        values = {**values, "prompt": ["a"] * lanes, "generator": generator}
        by_step = next((len((self.inputs or {})[name]) for name in _BY_STEP if name in (self.inputs or {})), None)
        if (steps or by_step) is not None:
            values["num_inference_steps"] = steps or by_step
        state = self._state(**values)
        for block in self.blocks.before:
            _, state = block(pipe, state)
        return state

    def _any_generator(self, device: torch.device) -> torch.Generator:
        """One for latents that are thrown away: on the device, where drawing costs nothing, and not the global one."""
        return torch.Generator(device)

    @torch.no_grad()
    def _any(self, lanes: int, *, pipe: Any = None, steps: int | None = None, generator: Any = None) -> PipelineState:
        """A prepared state of images of some text."""
        layout, one = self._sample
        pipe = self._driven() if pipe is None else pipe
        rows = {name: row.to(pipe._execution_device).expand(lanes, *row.shape) for name, row in one.items()}
        return self._prepared(pipe, layout.values(rows), lanes, steps=steps, generator=generator)

    # -- the adapter's methods

    def encode(self, batch: Batch) -> Encoded:
        """What the text blocks give for each prompt alone, and the mean of its tokens."""
        layout = self._layout
        each = [layout.rows(self._text(prompt, guided=False), negative=False) for prompt in batch.prompts]
        vectors = torch.stack([layout.vector(rows) for rows in each])
        rows: dict[str, Tensor | Sequence[Tensor]] = {}
        for name in each[0]:
            column = [one[name] for one in each]
            rows[name] = column if name in layout.lengthy else torch.stack(column)
        return Encoded(rows, vectors=vectors)

    def shared(self) -> dict[str, Any]:
        """What the text blocks give for the negative text; nothing without guidance."""
        if not self._layout.names(negative=True):
            return {}
        rows = self._layout.rows(self._text("a", guided=True), negative=True)
        return {name: row[None] for name, row in rows.items()}

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` of the inputs, where the scheduler takes it."""
        eta = (self.inputs or {}).get("eta")
        return {} if eta is None else eta_for(scheduler, eta)

    @property
    def scales_input(self) -> bool:
        """False: the loop scales its input itself, if the pipeline does."""
        return False

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """By the pipeline's own blocks, then on the CPU."""
        self._any(1, pipe=self._driven(scheduler=scheduler), steps=steps)
        self._schedules.clear()  # the scheduler may be another one than before
        self._schedules[steps] = scheduler.timesteps.tolist()
        for name, value in vars(scheduler).items():
            if isinstance(value, Tensor):
                setattr(scheduler, name, value.cpu())
        if getattr(scheduler, "_begin_index", None) is not None:
            scheduler._begin_index = None  # blocks set it to 0, where the scheduler would find it by the timestep

    @cached_property
    def _latent_shape(self) -> tuple[int, ...]:
        return tuple(self._any(1).get("latents").shape[1:])

    def latent_shape(self) -> tuple[int, ...]:
        """As the loop gets it, packed or not."""
        return self._latent_shape

    @property
    def noise_dtype(self) -> torch.dtype:
        """The dtype of the first latents."""
        return self._any(1).get("latents").dtype

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """As the pipeline's blocks draw and pack it."""
        pipe = self._driven()
        pipe.scheduler = _unscaled(pipe.scheduler)
        return self._any(1, pipe=pipe, generator=generator).get("latents").cpu()

    @torch.no_grad()
    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """One step of the pipeline's own loop, with its own guider."""
        values, lanes = self._layout.values(rows), len(latents)
        pipe = self._driven(device=latents.device)
        if self.mixed_timesteps:
            state = self._prepared(pipe, values, lanes)
            timesteps, step = torch.stack([timestep, rows[NEXT_TIMESTEP].to(timestep)]), 0  # [2, B]
        else:
            step = int(rows[STEP][0])
            steps = self._steps_of(step, float(timestep[0]), float(rows[NEXT_TIMESTEP][0]))
            state = self._prepared(pipe, values, lanes, steps=steps)
            timesteps = state.get("timesteps")  # [K]
            if hasattr(pipe.scheduler, "set_begin_index"):
                pipe.scheduler.set_begin_index(step)
        state.set("latents", latents.to(state.get("latents").dtype))
        return evaluate(self.blocks.loop, pipe, state, timesteps, step).float(), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """By the blocks after the loop."""
        pipe = self._driven(device=latents.device)
        state = self._any(len(latents), pipe=pipe)
        dtype = state.get("latents").dtype
        for network in self.decoding_networks():
            dtype = torch.promote_types(dtype, network.dtype)  # type: ignore[arg-type]
        state.set("latents", latents.to(dtype))
        state.set("generator", generators)
        for block in self.blocks.after:
            _, state = block(pipe, state)
        return list(state.get("images"))

    # -- the number of steps

    @cached_property
    def _schedules(self) -> dict[int, list[float]]:
        """Timesteps by number of inference steps, of the latest scheduler."""
        return {}

    def _schedule(self, steps: int) -> list[float]:
        if steps not in self._schedules:
            try:
                found = self._any(1, steps=steps).get("timesteps").tolist()
            except ValueError:  # a pipeline may allow one number of steps only
                found = []
            self._schedules[steps] = found
        return self._schedules[steps]

    def _steps_of(self, step: int, timestep: float, following: float) -> int:
        """The number of inference steps of a run that has these timesteps at ``step`` and after it.

        A call says which step it is at, not of how many. The timesteps tell: those of different numbers of steps
        differ, at the first step by the next one.
        """
        for steps in (*self._schedules, *range(1, _MOST_STEPS + 1)):
            here = [*self._schedule(steps), 0.0][step : step + 2]
            if len(here) == 2 and abs(here[0] - timestep) <= 1e-3 and abs(here[1] - following) <= 1e-3:
                return steps
        raise Error(
            f"no schedule of {type(self.pipe).__name__} has timestep {timestep:g} at step {step} and {following:g} next"
        )


@cache
def _on(pipeline: type[Any], device: torch.device) -> type[Any]:
    """A pipeline class whose objects know their device."""
    return type(pipeline.__name__, (pipeline,), {"_execution_device": device})


def _unscaled(scheduler: Any) -> Any:
    """A scheduler that leaves first latents as they are drawn: HSD scales them."""
    kind = type(scheduler)
    scheduler.__class__ = type(kind.__name__, (kind,), {"init_noise_sigma": 1.0})
    return scheduler
