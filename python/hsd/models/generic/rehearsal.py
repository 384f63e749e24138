"""One call of a pipeline's own code with stand-ins for its network and its scheduler, which record what reaches them.

The pipeline object is not touched: a rehearsal runs on a twin, an object of the same class with the same parts, in
which the stand-ins take the place of the network, the scheduler and ``prepare_latents``. So it may run in one thread
while another one denoises.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .unfit import Unfit
from .values import flattened, nested, same, stacked, unflattened

AS_WRITTEN = {"enable_prompt_rewrite": False, "use_pe": False}
"""Arguments that would replace a prompt by one that a language model writes. HSD uses prompts as they are."""


class Enough(Exception):
    """Ends a rehearsal that has recorded what was asked for."""


@dataclass
class Call:
    """One call of the network: its arguments by name, and what the stand-in gave, (rows, ...)."""

    arguments: dict[str, Any]
    output: Tensor


@dataclass
class Step:
    """One step of the loop: the calls of the network before ``scheduler.step``, and what that was given."""

    calls: list[Call]
    fed: Tensor
    """(B, ...) the latents that the network should get: scaled, if the pipeline scales them."""
    scaled: bool
    output: Tensor
    """(B, ...) what reached ``scheduler.step`` as the model's output."""
    timestep: Any
    sample: Tensor
    """(B, ...) the latents that are stepped."""
    options: dict[str, Any]
    """Further arguments of ``scheduler.step``."""


@dataclass
class Record:
    """What a rehearsal saw."""

    steps: list[Step] = field(default_factory=list)
    timesteps_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """Arguments of ``scheduler.set_timesteps``."""
    latents_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """Arguments of ``prepare_latents``."""
    scheduler: Any = None
    """The copy of the scheduler that was stepped."""
    finished: Tensor | None = None
    """(B, ...) the latents after the latest step."""
    result: Any = None
    """What the pipeline returned; None if the rehearsal was ended."""


class StandIn:
    """Looks like a network, and answers calls with what ``answer`` gives for their arguments."""

    def __init__(self, network: nn.Module, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.__dict__.update(_network=network, _answer=answer, _signature=inspect.signature(network.forward))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The network's class: pipelines ask for it."""
        return type(self._network)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_network"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer to the arguments, by name, whether they were given by name or by position."""
        bound = self._signature.bind(*args, **kwargs)
        arguments = dict(bound.arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        return self._answer(flattened(arguments))


class _Unscaled:
    """A scheduler whose noise is not scaled: what ``prepare_latents`` makes with it is the noise itself."""

    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_scheduler"], name)


class Theatre:
    """Where a pipeline is rehearsed.

    Parameters
    ----------
    pipe
        The pipeline.
    part
        Name of its network: ``transformer`` or ``unet``.
    settings
        Arguments of its call.
    """

    def __init__(self, pipe: Any, part: str, settings: dict[str, Any]) -> None:
        self.pipe, self.part, self.settings = pipe, part, settings
        self.network: nn.Module = getattr(pipe, part)
        self.takes = inspect.signature(type(pipe).__call__).parameters
        self.latents_name: str | None = None
        """Name of the network's argument that holds the latents; None before the first call."""
        self.form: tuple[Any, int] | None = None
        """An output of the network, as tensors of its shape, and how many rows it has; None before the first call."""

    # -- a call of the pipeline

    def call(
        self,
        prompts: Sequence[str],
        steps: int,
        generators: Sequence[torch.Generator],
        *,
        scheduler: Any = None,
        network: Any = None,
        output_type: str = "latent",
        end_at: int | None = None,
        end_before_steps: bool = False,
        last: Tensor | None = None,
    ) -> Record:
        """Call the pipeline with stand-ins, and give what they recorded.

        Parameters
        ----------
        prompts, steps, generators
            As of the pipeline's call.
        scheduler
            The scheduler that is copied and stepped; the pipeline's own by default.
        network
            What stands for the network. By default a stand-in that gives random numbers.
        end_at
            Number of steps after which the call is ended.
        end_before_steps
            End the call at ``set_timesteps``, which is recorded but not made.
        last
            (B, ...) latents: what every step then gives, whatever the network says.
        """
        record = Record(scheduler=copy.deepcopy(self.pipe.scheduler if scheduler is None else scheduler))
        twin = self._twin()
        pending: list[Call] = []
        state = SimpleNamespace(latents=None, scaled=None)
        self._record_scheduler(record, pending, state, end_at, end_before_steps, last)
        vars(twin)["scheduler"] = record.scheduler
        generator = torch.Generator().manual_seed(len(prompts))
        answer = functools.partial(self._answer, record, pending, state, generator)
        vars(twin)[self.part] = StandIn(self.network, answer) if network is None else network
        keeps = generators if last is not None else None  # decoding may draw from them
        vars(twin)["prepare_latents"] = self._recorded_latents(twin, record, state, keeps)
        given = self._arguments(prompts, steps, list(generators), output_type)
        try:
            with torch.no_grad(), _own_random_state(torch.device(self.pipe._execution_device)):
                record.result = twin(**given)
        except Enough:
            pass
        return record

    def _arguments(self, prompts: Sequence[str], steps: int, generators: Any, output_type: str) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompt": list(prompts),
            "num_inference_steps": steps,
            "generator": generators,
            "output_type": output_type,
            **{name: value for name, value in AS_WRITTEN.items() if name in self.takes},
            **self.settings,
        }
        if isinstance(given.get("negative_prompt"), str):
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        return given

    def _twin(self) -> Any:
        """An object with the pipeline's parts. What keeps a state between calls is copied."""
        twin = object.__new__(type(self.pipe))
        vars(twin).update(vars(self.pipe))
        for name, part in vars(self.pipe).items():
            if hasattr(part, "set_state") and hasattr(part, "prepare_inputs"):  # a guider
                vars(twin)[name] = copy.deepcopy(part)
        vars(twin)["_progress_bar_config"] = {"disable": True}
        vars(twin)["maybe_free_model_hooks"] = lambda: None  # it would take the hooks off and put others on
        return twin

    # -- what the stand-ins do

    def _recorded_latents(self, twin: Any, record: Record, state: Any, keeps: Any) -> Callable[..., Any]:
        """``prepare_latents``, which draws nothing from the generators ``keeps``, if there are any."""
        own = getattr(type(twin), "prepare_latents", None)
        if own is None:
            raise Unfit("has no prepare_latents, which draws the first noise")

        @functools.wraps(own)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            if record.latents_call is not None:
                raise Unfit("calls prepare_latents more than once")
            record.latents_call = (args, kwargs)
            if keeps is not None:
                args, kwargs = with_generators(args, kwargs, [torch.Generator() for _ in keeps])
            made = own(twin, *args, **kwargs)
            state.latents = made
            return made

        return prepare_latents

    def noise(self, record: Record, index: int | None, generator: torch.Generator) -> Tensor:
        """(1, ...) the noise that ``prepare_latents`` draws from ``generator``, before the scheduler scales it."""
        twin = self._twin()
        vars(twin)["scheduler"] = _Unscaled(self.pipe.scheduler)
        assert record.latents_call is not None
        args, kwargs = with_generators(*record.latents_call, [generator])
        with torch.no_grad():
            made = type(twin).prepare_latents(twin, *args, **kwargs)
        found: Tensor = made if index is None else made[index]
        return found

    def _record_scheduler(
        self, record: Record, pending: list[Call], state: Any, end_at: int | None, before: bool, last: Tensor | None
    ) -> None:
        scheduler = record.scheduler
        step, set_timesteps = scheduler.step, scheduler.set_timesteps

        @functools.wraps(set_timesteps)
        def recorded_set(*args: Any, **kwargs: Any) -> Any:
            if record.timesteps_call is not None:
                raise Unfit("calls scheduler.set_timesteps more than once")
            record.timesteps_call = (args, kwargs)
            if before:
                raise Enough
            return set_timesteps(*args, **kwargs)

        @functools.wraps(step)
        def recorded_step(*args: Any, **kwargs: Any) -> Any:
            given = dict(inspect.signature(step).bind(*args, **kwargs).arguments)
            given |= given.pop("kwargs", {})
            output, timestep, sample = (given.pop(name) for name in ("model_output", "timestep", "sample"))
            if last is not None:
                return (last, last) if given.get("return_dict") is False else SimpleNamespace(prev_sample=last)
            fed = sample if state.scaled is None else state.scaled[: len(sample)]
            if record.steps and not same(sample, state.latents.to(sample.dtype)):
                raise Unfit(f"changes the latents between step {len(record.steps) - 1} and the next")
            record.steps.append(
                Step(list(pending), fed, state.scaled is not None, output, timestep, sample.clone(), given)
            )
            pending.clear()
            state.scaled = None
            if end_at is not None and len(record.steps) >= end_at:
                raise Enough
            result = step(*args, **kwargs)
            record.finished = state.latents = result[0] if isinstance(result, tuple) else result.prev_sample
            return result

        scheduler.set_timesteps, scheduler.step = recorded_set, recorded_step
        if hasattr(scheduler, "scale_model_input"):
            scale = scheduler.scale_model_input

            @functools.wraps(scale)
            def recorded_scale(*args: Any, **kwargs: Any) -> Any:
                state.scaled = scale(*args, **kwargs)
                return state.scaled

            scheduler.scale_model_input = recorded_scale

    def _answer(
        self, record: Record, pending: list[Call], state: Any, generator: torch.Generator, arguments: dict[str, Any]
    ) -> Any:
        """What the stand-in gives for a call: random numbers, in the form of the network's own output."""
        fed = state.latents if state.scaled is None else state.scaled
        if self.latents_name is None:
            self.latents_name = _latents_name(arguments, fed)
        rows = len(arguments[self.latents_name])
        if self.form is None:
            self.form = nested(self.network(**unflattened(arguments)), torch.empty_like), rows
        output = _drawn(self.form[0], rows, self.form[1], _outputs_alike(len(record.steps), generator))
        pending.append(Call(arguments, stacked(output)))
        return output


def _latents_name(arguments: dict[str, Any], made: Any) -> str:
    """The argument of the network that is the latents, once or several times."""
    tensors = [each for each in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(each, Tensor)]
    for name, value in arguments.items():
        try:
            value = stacked(value)
        except Unfit:
            continue
        if any(repeats(value, each) for each in tensors):
            return name
    raise Unfit(
        "gives the network no argument that is the latents: it changes them between prepare_latents and the network"
    )


def repeats(value: Tensor, latents: Tensor) -> int:
    """How many times ``value`` holds the latents (B, ...) behind each other, whatever the shape of a row; 0 if not."""
    if not value.is_floating_point() or not value.numel() or value.numel() % latents.numel():
        return 0
    times = value.numel() // latents.numel()
    if value.shape[0] not in (times * len(latents), len(latents)):
        return 0
    parts = value.reshape(times, -1)
    return times if all(same(part, latents.reshape(-1).to(part.dtype)) for part in parts) else 0


def _drawn(form: Any, rows: int, of: int, draw: Callable[[Tensor, Sequence[int]], Tensor]) -> Any:
    """Numbers in the form of an output for ``of`` rows, but for ``rows`` rows."""
    if isinstance(form, list):  # one tensor a row
        return list(draw(form[0], (rows, *form[0].shape)))
    if isinstance(form, Tensor):
        return draw(form, (rows, *form.shape[1:]) if form.shape[0] == of else form.shape)
    if isinstance(form, tuple):
        return tuple(_drawn(each, rows, of, draw) for each in form)
    if isinstance(form, dict):
        made = {name: _drawn(each, rows, of, draw) for name, each in form.items()}
        return type(form)(**made) if type(form) is not dict else made
    return form


def _outputs_alike(step: int, generator: torch.Generator) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """Draws outputs for one step: each row and evaluation is another multiple of the step's pattern, with noise.

    Independent outputs would not do: guidance makes those longer, and a limit of their length would never show.
    """

    def draw(like: Tensor, shape: Sequence[int]) -> Tensor:
        pattern = torch.randn(tuple(shape[1:]), generator=torch.Generator().manual_seed(step))
        factor, level = torch.rand((2, *shape[:-1], 1), generator=generator)
        noise = torch.randn(tuple(shape), generator=generator)
        return ((0.5 + factor) * pattern + (0.05 + 0.5 * level) * noise).to(like.device, like.dtype)

    return draw


def with_generators(
    args: Any, kwargs: Any, generators: list[torch.Generator]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with other generators."""
    return (
        tuple(generators if _is_generators(each) else each for each in args),
        {name: generators if _is_generators(each) else each for name, each in kwargs.items()},
    )


def _is_generators(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and len(value):
        return isinstance(value[0], torch.Generator)
    return isinstance(value, torch.Generator)


def _own_random_state(device: torch.device) -> Any:
    """The global generators are afterwards as they were: some pipelines seed them."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
