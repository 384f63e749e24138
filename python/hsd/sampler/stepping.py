"""Call a private copy of a scheduler as the pipelines do, and supply its random draws."""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from diffusers import DDPMWuerstchenScheduler, SCMScheduler
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hsd.errors import UnsupportedScheduler

LEARNED_VARIANCE = ("learned", "learned_range")

# Their timesteps are the borders of the steps, so there is one more of them than there are steps.
_TIMESTEPS_ARE_BORDERS = (DDPMWuerstchenScheduler, SCMScheduler)

Draw = Callable[[tuple[int, ...], torch.dtype], Tensor]
Clip = Callable[[Tensor, float, float], "Tensor | None"]
Scale = Callable[[Tensor, Any, bool], "Tensor | None"]

# A table cannot hold the draws of these functions.  torch.randn is not among them: randn_tensor of
# diffusers.utils.torch_utils calls it, and whether a table can hold its draw depends on the generator it is given.
_FOREIGN_NOISE = {
    torch.randn_like, torch.rand, torch.rand_like, torch.randint, torch.normal, torch.bernoulli,
    torch.multinomial, torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_,
    torch.Tensor.exponential_, torch.Tensor.multinomial,
}  # fmt: skip

_CLAMPS = {
    torch.clamp, torch.clip, torch.Tensor.clamp, torch.Tensor.clip, torch.clamp_min, torch.clamp_max,
    torch.Tensor.clamp_min, torch.Tensor.clamp_max, torch.Tensor.clamp_, torch.Tensor.clip_,
    torch.Tensor.clamp_min_, torch.Tensor.clamp_max_, torch.clamp_, torch.clamp_min_, torch.clamp_max_,
}  # fmt: skip

_PRODUCTS = {torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.multiply, torch.Tensor.__mul__}
_PRODUCTS |= {torch.Tensor.__rmul__}
_QUOTIENTS = {
    torch.div, torch.divide, torch.true_divide, torch.Tensor.div, torch.Tensor.divide, torch.Tensor.true_divide,
    torch.Tensor.__truediv__, torch.Tensor.__div__,
}  # fmt: skip

_HINT = (
    "Give the pipeline a scheduler that HSD can compile (docs/samplers.md lists them), for example "
    "pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)."
)

_INFINITE_HINT = (
    'Change the configuration: final_sigmas_type="sigma_min", solver_type="bh2", rescale_betas_zero_snr=False or '
    'timestep_spacing="leading" where the scheduler has them, or another number of steps.'
)


def refuse(scheduler: object, step: int | None, reason: str, hint: str = _HINT) -> NoReturn:
    """Raise `UnsupportedScheduler` with the scheduler's name, the step (None: no single step), why, and what to do."""
    where = "" if step is None else f" at step {step}"
    raise UnsupportedScheduler(f"{type(scheduler).__name__} cannot be compiled{where}: {reason}. {hint}")


def refuse_infinite(scheduler: object, step: int, what: str) -> NoReturn:
    """Refuse a scheduler that makes inf or nan of latents that are finite; `what` says where."""
    reason = f"{what} inf or nan, so this configuration makes inf or nan in diffusers too"
    refuse(scheduler, step, reason, _INFINITE_HINT)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor in `value`: in place where the container allows, else in a new one."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, deque)):
        for i, item in enumerate(value):
            value[i] = _map_tensors(item, function)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = _map_tensors(item, function)
    elif type(value) is tuple:
        return tuple(_map_tensors(item, function) for item in value)
    return value


def map_memory(scheduler: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Replace every tensor that `scheduler` holds in its attributes by `function` of it, in a fixed order."""
    for name, value in list(vars(scheduler).items()):
        if name != "_internal_dict":  # the config, which is read-only
            setattr(scheduler, name, _map_tensors(value, function))


def held_tensors(scheduler: Any) -> list[Tensor]:
    """Return every tensor that `scheduler` holds in its attributes, in the order of `map_memory`."""
    held: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    map_memory(scheduler, collect)
    return held


class Stepper:
    """A private copy of a scheduler, stepped as diffusers' pipelines step it.

    Parameters
    ----------
    scheduler
        A diffusers scheduler after ``set_timesteps``; it is copied and never touched.
    step_kwargs
        Further arguments of ``step`` (``eta``, ``s_churn``, ...), the same at every step.
    draw
        ``draw(shape, dtype)`` supplies the scheduler's random draws.
    clip
        ``clip(tensor, low, high)`` replaces a clamp; where it returns None, or there is no `clip`, torch clamps.
    scale
        ``scale(tensor, factor, divide)`` replaces a product or a quotient in the same way.
    whole
        Ask ``step`` for all that it returns, some schedulers' prediction of x0 among it; it is kept in ``result``.
    begin
        Index of the timestep of the first step: later than 0 where a pipeline begins from an image.
    """

    def __init__(
        self,
        scheduler: Any,
        step_kwargs: Mapping[str, Any] | None,
        draw: Draw,
        clip: Clip | None = None,
        scale: Scale | None = None,
        *,
        whole: bool = False,
        begin: int = 0,
    ) -> None:
        self.arguments = _step_arguments(scheduler, dict(step_kwargs or {}))
        self.scheduler = copy.deepcopy(scheduler)
        map_memory(self.scheduler, Tensor.cpu)  # Tensor.cpu returns the tensor itself when it is there already
        if hasattr(self.scheduler, "set_begin_index"):
            # Without it the first step looks its index up by timestep, which is ambiguous where timesteps repeat.
            self.scheduler.set_begin_index(begin)
        self.begin = begin
        self.timesteps: Tensor = self.scheduler.timesteps[begin:]
        self.n_steps = len(self.timesteps) - isinstance(scheduler, _TIMESTEPS_ARE_BORDERS)
        self.generator = torch.Generator()
        self.draw, self.clip, self.scale = draw, clip, scale
        self.step_index = 0
        self.whole = whole
        self.result: Any = None

    @property
    def doubles_channels(self) -> bool:
        """Whether ``step`` is given twice the channels of the latent: model output and learned variance."""
        return self.scheduler.config.get("variance_type") in LEARNED_VARIANCE

    def model_input(self, k: int, sample: Tensor) -> Tensor:
        """Run ``scale_model_input`` of step `k`."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return sample
        with torch.no_grad(), _Interception(self):
            return self._own_errors(
                k,
                lambda: self.scheduler.scale_model_input(sample, self.timesteps[k]),
                f"the latent is {tuple(sample.shape)}",
            )

    def step(self, k: int, model_output: Tensor, sample: Tensor) -> Tensor:
        """Run ``step`` number `k` and return the next latent."""
        arguments = dict(self.arguments)
        parameters = inspect.signature(self.scheduler.step).parameters
        if "prev_timestep" in parameters and "prev_timestep" not in arguments:
            arguments["prev_timestep"] = self.timesteps[k + 1] if k + 1 < len(self.timesteps) else None
        if "generator" in parameters:
            arguments["generator"] = self.generator
        if "return_dict" in parameters:
            arguments["return_dict"] = self.whole
        timestep = self.timesteps[k]
        if isinstance(self.scheduler, DDPMWuerstchenScheduler):  # its pipelines give it one per sample
            timestep = timestep.expand(len(sample))
        with torch.no_grad(), _Interception(self):
            self.result = self._own_errors(
                k,
                lambda: self.scheduler.step(model_output, timestep, sample, **arguments),
                f"the latent is {tuple(sample.shape)}, the model output {tuple(model_output.shape)}",
            )
        latent: Tensor = self.result[0]
        return latent

    def _own_errors(self, k: int, call: Callable[[], Any], shapes: str) -> Any:
        """Run `call`, turning an exception of the scheduler into a refusal."""
        self.step_index = k
        try:
            return call()
        except UnsupportedScheduler:
            raise
        except Exception as error:
            text = str(error).strip().rstrip(".")
            reason = f"the scheduler itself raises {type(error).__name__}" + (f": {text}" if text else "")
            not_given = self._not_given()
            if "NoneType" in text and not_given:
                reason += f" (text-to-image generation gives it no {', '.join(not_given)})"
            elif any(word in text for word in ("shape", "size", "channels")):
                reason += f" ({shapes})"
            if not self.doubles_channels:
                refuse(self.scheduler, k, reason)
            hint = (
                "Its config says that the model predicts a variance, which this scheduler may not know; leave that "
                "out: config = dict(pipe.scheduler.config); config.pop('variance_type'); "
                "pipe.scheduler = type(pipe.scheduler).from_config(config)."
            )
            refuse(self.scheduler, k, reason, hint)

    def _not_given(self) -> list[str]:
        """Return the arguments of ``step`` that were left at None."""
        parameters = list(inspect.signature(self.scheduler.step).parameters.values())[3:]
        return [p.name for p in parameters if p.default is None and p.name not in {*self.arguments, "generator"}]


def _step_arguments(scheduler: Any, step_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Check that ``step`` can be called as pipelines do, with `step_kwargs`, and return those."""
    if not hasattr(scheduler, "step"):
        refuse(scheduler, None, "it has no step()")
    parameters = inspect.signature(scheduler.step).parameters
    if "sample" in parameters and "LongTensor" in str(parameters["sample"].annotation):
        refuse(
            scheduler, None, "step() takes a LongTensor: it samples discrete tokens, which are not combined linearly"
        )
    if list(parameters)[:3] != ["model_output", "timestep", "sample"]:
        refuse(
            scheduler,
            None,
            f"step() takes ({', '.join(parameters)}) where text-to-image pipelines give "
            "(model_output, timestep, sample, ...)",
        )
    for name, parameter in list(parameters.items())[3:]:
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if needed and name not in step_kwargs and name not in ("prev_timestep", "generator"):
            refuse(scheduler, None, f"step() needs the argument '{name}', which text-to-image generation does not have")
    for name in step_kwargs:
        if name in ("generator", "return_dict", "model_output", "timestep", "sample") or (
            name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        ):
            raise TypeError(
                f"step_kwargs: {type(scheduler).__name__}.step() takes no '{name}' here; "
                f"it takes {', '.join(list(parameters)[3:]) or 'no more arguments'}"
            )
    if not hasattr(scheduler, "timesteps") and not hasattr(scheduler, "set_timesteps"):
        refuse(scheduler, None, "it has no timesteps")
    if _timesteps_unset(scheduler):
        raise ValueError(f"{type(scheduler).__name__} has no timesteps yet: call scheduler.set_timesteps(n) first")
    return step_kwargs


def _timesteps_unset(scheduler: Any) -> bool:
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or len(timesteps) == 0:
        return True
    if getattr(scheduler, "num_inference_steps", None) is not None or getattr(scheduler, "custom_timesteps", False):
        return False
    # There is no number of steps: timesteps are not set, or the user gave EDM Euler sigmas, or the scheduler does not
    # store the number.  Before set_timesteps the timesteps are those of training.
    n_train = getattr(scheduler, "config", {}).get("num_train_timesteps")
    return hasattr(scheduler, "num_inference_steps") if n_train is None else len(timesteps) == n_train


class _Interception(TorchFunctionMode):
    """Intercepts random draws and clamps of this thread; patching torch's functions would affect other threads too."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__()
        self.stepper = stepper

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stepper = self.stepper
        if func is torch.randn:
            if kwargs.get("generator") is not stepper.generator:
                refuse(stepper.scheduler, stepper.step_index, _foreign_noise("torch.randn", controlled=False))
            size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            return stepper.draw(tuple(size), kwargs.get("dtype") or torch.get_default_dtype())
        if func in _FOREIGN_NOISE:
            controlled = kwargs.get("generator") is stepper.generator
            refuse(stepper.scheduler, stepper.step_index, _foreign_noise(func.__name__, controlled))
        if func is torch.nn.functional.interpolate:
            refuse(stepper.scheduler, stepper.step_index, "it resizes the latent, and a lane's latent keeps its shape")
        if stepper.clip is not None and func in _CLAMPS:
            answer = stepper.clip(*_clamp_arguments(func, args, kwargs))
            if answer is not None:
                return args[0].copy_(answer) if func.__name__.endswith("_") else answer
        if stepper.scale is not None and len(args) == 2 and not kwargs and (func in _PRODUCTS or func in _QUOTIENTS):
            answer = stepper.scale(*args, func in _QUOTIENTS)
            if answer is not None:
                return answer
        return func(*args, **kwargs)


def _foreign_noise(function: str, controlled: bool) -> str:
    if controlled:
        return f"it draws with {function}; a table has the normal noise of torch.randn only"
    return f"it draws noise with {function}, which the generator given to step() does not control"


def _clamp_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Any]:
    """Return (tensor, low, high) of a call of the clamp family; None is no bound."""
    tensor = args[0] if args else kwargs["input"]
    first = args[1] if len(args) > 1 else None
    second = args[2] if len(args) > 2 else None
    if func.__name__.startswith("clamp_max"):
        return tensor, None, kwargs.get("max", first)
    return tensor, kwargs.get("min", first), kwargs.get("max", second)
