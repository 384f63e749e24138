"""Find what a CUDA graph forbids in a denoiser, on any machine: a call on tensors that only claim to be on a GPU.

A graph replays kernels, and runs no Python. So a call that is captured may not read a value back from the device, may
not copy between host and device, and may not have shapes that depend on data. torch's ``FakeTensorMode`` runs a call
without computing anything: its tensors have a shape, a dtype and a device. Below, every operation of such a call is
looked at. What is called is what :class:`hsd.replay.executor.Executor` captures: gather, evaluate, update and scatter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from ..conditioning.rows import Conditioning, Field, Rows
from ..planning.build import plan_of
from ..replay.denoiser import Denoiser, Prior
from ..replay.executor import Executor
from ..replay.lowering import program_of
from ..work.faults import first_line
from .base import Adapter
from .capture_rules import Finding, Watch, place, place_of, random_states, same_states, set_random_states
from .encode import encode
from .restoring import clear_caches, restored

PROMPTS = ("a red bicycle", "a portrait of an old sailor, in oil", "the sea")
"""Prompts of a check; one has more tokens than the others."""

_SHARES = 1e6
"""A tau at which all prompts share their first step, so that catch-up has something to do."""


class NotChecked(Exception):
    """Whether a denoiser can be captured was not found out. The message is the reason."""


@dataclass(frozen=True)
class Verdict:
    """Whether the calls of a model can be captured as CUDA graphs, as a sentence for people says it."""

    captures: bool | None
    """None: not checked."""
    reason: str = ""
    """Why not."""

    def __str__(self) -> str:
        words = {True: "can capture", False: "cannot capture", None: "not checked"}[self.captures]
        return f"{words}, because {self.reason}" if self.reason else words


def lint(
    adapter: Adapter,
    conditioning: Conditioning | None = None,
    prompts: Sequence[str] = PROMPTS,
    *,
    of_prior: bool = False,
    steps: int = 4,
    dtype: torch.dtype | None = None,
    catch_up: float | None = None,
) -> list[Finding]:
    """What a CUDA graph forbids in one call of a denoiser.

    The adapter is made anew, with its settings, on the tensors that say that they are on a GPU: what it sets up in
    ``__post_init__`` and ``running`` is not part of the call. The call runs twice, and the second one counts, because
    a size is captured after two calls, and networks may keep what does not change.

    Parameters
    ----------
    adapter
        The model. Afterwards it is as before.
    conditioning, prompts
        Two or more prompts, and their conditioning; by default they are encoded here.
    of_prior
        Whether the model's prior is called, instead of the model's own denoiser.
    steps
        Inference steps to take timesteps from; a prior has its own number.
    dtype
        What the weights claim to be; by default what they are.
    catch_up
        The gamma of catch-up conditioning; by default that of the model.

    Raises
    ------
    NotChecked
        If weights are moved during a call or are no plain tensors, or if the call fails on such tensors for a reason
        that has nothing to do with graphs.
    """
    networks = _networks(adapter)
    _refuse(adapter, networks)
    device = adapter.device if adapter.device.type == "cuda" else torch.device("cuda", 0)
    mode = _fake_mode(device)
    real = adapter.prior() if of_prior else adapter
    if real is None:
        raise NotChecked("the model has no prior")
    seeds = np.arange(len(prompts))
    if conditioning is None:
        conditioning = encode([real], np.zeros(len(prompts), np.int64), prompts, seeds)
    sampler = real.sampler(real.steps if isinstance(real, Prior) else steps)
    plan = plan_of(conditioning.vectors, list(prompts), seeds, _SHARES, sampler.n_steps)
    program = program_of(plan, real, conditioning, len(prompts))
    gamma = real.default_catch_up if catch_up is None else catch_up
    rows = conditioning if dtype is None else _in_dtype(conditioning, dtype)

    def prepared() -> tuple[Denoiser, Executor]:
        model = _made_anew(adapter)
        denoiser = model.prior() if of_prior else model
        assert denoiser is not None
        return denoiser, Executor(plan, program, denoiser, rows, sampler, cuda_graphs=False, catch_up=gamma)

    own = [value for name, value in vars(adapter).items() if name != "pipe"]
    owners = [adapter, *adapter.pipes()]
    watch = Watch(mode)
    try:
        with restored([*networks, *own], owners):
            _claim(networks, mode, device, dtype)
            return _findings(prepared, mode, watch)
    finally:
        if watch.has_survivors():
            clear_caches(lambda item: issubclass(type(item), FakeTensor))


# ------------------------------------------------------------------------------- the model


def _networks(adapter: Adapter) -> list[nn.Module]:
    """All networks of the pipelines, of which the first says on which device a pipeline is, and the adapter's own."""
    parts = [part for pipe in adapter.pipes() for part in pipe.components.values()]
    found = [part for part in (*adapter.modules(), *parts, *vars(adapter).values()) if isinstance(part, nn.Module)]
    return list(dict.fromkeys(found))


def _refuse(adapter: Adapter, networks: Sequence[nn.Module]) -> None:
    """``NotChecked`` for weights that cannot be replaced for a call."""
    if adapter.offloads:
        raise NotChecked("hooks move or convert the model's weights for each call")
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            if type(tensor) not in (Tensor, nn.Parameter, getattr(nn, "Buffer", Tensor)):
                raise NotChecked(f"weights of {type(network).__name__} are of the type {type(tensor).__name__}")
            if tensor.layout != torch.strided or tensor.is_quantized:
                raise NotChecked(f"weights of {type(network).__name__} are quantized or sparse")


def _fake_mode(device: torch.device) -> FakeTensorMode:
    """A mode in which tensors can claim to be on ``device``."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            torch.zeros(2, device=device) + 1
    except Exception as error:  # whatever this torch lacks
        raise NotChecked(f"this torch ({torch.__version__}) cannot imitate a GPU: {_said(error)}") from error
    return mode


def _claim(
    networks: Sequence[nn.Module], mode: FakeTensorMode, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Replace weights by tensors that claim to be on ``device``; weights that modules share stay shared."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            claimed = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            with mode:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=claimed, device=device)
            if isinstance(tensor, nn.Parameter):
                made._is_param = True  # then it is an instance of nn.Parameter
            fakes[id(tensor)] = made
        return fakes[id(tensor)]

    for network in networks:
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                # The dictionaries themselves: assigning an attribute would register the tensor, and may be overridden.
                tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})  # type: ignore[misc]


def _made_anew(adapter: Adapter) -> Adapter:
    """A copy that is set up on the current tensors, with what was set on the adapter later, except tensors.

    If it cannot be set up, because it needs values there, it is the adapter itself.
    """
    try:
        made = dataclasses.replace(adapter)
    except Exception:
        return adapter
    later = {name: value for name, value in vars(adapter).items() if name not in vars(made)}
    vars(made).update({name: value for name, value in later.items() if not _has_tensors(value)})
    return made


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _in_dtype(conditioning: Conditioning, dtype: torch.dtype) -> Conditioning:
    """Conditioning as a model of ``dtype`` has it. A single number, such as a guidance scale, stays as it is."""
    fields = {}
    for name, field in conditioning.fields.items():
        if field.rows.dtype.is_floating_point and field.rows.shape:
            rows = Rows(conditioning.spool, ragged=field.rows.ragged)
            for i in range(len(field.rows)):
                row = field.rows[i].to(dtype)
                rows.append([row] if rows.ragged else row[None])
            field = Field(rows, field.index)
        fields[name] = field
    return dataclasses.replace(conditioning, fields=fields)


# ------------------------------------------------------------------------------- the call


def _findings(prepared: Callable[[], tuple[Denoiser, Executor]], mode: FakeTensorMode, watch: Watch) -> list[Finding]:
    """What the second call does, or what ends a call that needs a value."""
    at_first, calling = random_states(), False
    try:
        with torch.no_grad(), mode, watch:
            denoiser, executor = prepared()
            with denoiser.running(), _taken_apart(executor):
                calling = True
                for _ in range(2):
                    watch.forget()
                    before = random_states()
                    executor._padded(executor.program.max_rows)
                    if not same_states(before, random_states()):
                        watch.note("draws random numbers of Python or numpy", _definition(denoiser.denoise))
    except Exception as error:
        if calling and watch.running is not None:
            return [watch.running]
        raise NotChecked(f"a call on tensors without values fails at {place_of(error)}: {_said(error)}") from error
    finally:
        set_random_states(at_first)
    return watch.findings()


@contextlib.contextmanager
def _taken_apart(executor: Executor) -> Iterator[None]:
    """Afterwards an executor holds nothing: an error keeps the frames that it went through, and those the executor."""
    try:
        yield
    finally:
        vars(executor).clear()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _definition(function: Callable[..., Any]) -> str:
    """Where a method is defined."""
    code = inspect.unwrap(function).__code__
    return place(code.co_filename, code.co_firstlineno)
