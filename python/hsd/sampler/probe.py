"""Read a scheduler's steps as matrices, by running it on symbols.

A symbol tensor stands for a linear combination: its shape is (1, CHANNELS, 1, n_symbols), and entry j along the
last axis is the coefficient of symbol j.  Before every step the latent AND every symbol tensor found in the
scheduler's attributes are replaced by fresh basis vectors, so that what is found after the step is the map of
that one step, whatever the scheduler's memory is (multistep history, corrector memory, half steps, ...).

Three operations that are not linear are known: clamps, dynamic thresholding (`Node`), and a learned variance
(`StepMap.log_variance`).  Each is recorded and its result is a fresh symbol, so that the step becomes
linear -> node -> linear.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from hsd.sampler.stepping import Stepper, held_tensors, map_memory, refuse, refuse_infinite

CLAMP, THRESHOLD = 1, 2  # kinds of nodes; 0 is no node

# Three, because schedulers that drop a learned variance they do not use take ``model_output[:, :3]``.  All the
# channels of a symbol tensor are the same, so that a scheduler that mixes channels can be recognized.
CHANNELS = 3
MAX_REMEMBERED = 256

# Stands for infinity in the coefficients of symbols: infinity itself would make nan of the coefficients that are 0.
# A prediction that is divided by 0 and then clipped is finite: it has the sign of what was divided.  Finite
# coefficients are below `INFINITE`: the noise levels of diffusers are float32, whose smallest root is 4e-23.
_HUGE = 2.0**100
INFINITE = 2.0**90


@dataclass
class Node:
    """An elementwise (clamp) or per-sample (threshold) function of a linear combination."""

    kind: int
    coefficients: Tensor  # (n_columns,) the combination; columns of later nodes are 0
    low: float = -float("inf")
    high: float = float("inf")


@dataclass
class StepMap:
    """One step as coefficients, float64.

    The columns of `outputs` and of every node's coefficients are the state before the step (`n_state`, the latent
    first), the model output, the noises drawn (`n_noise`), and the values of the nodes.
    """

    n_state: int
    n_noise: int
    scale: Tensor  # (n_state,) the denoiser's input
    outputs: Tensor  # (n_state after the step, n_columns) the new state
    nodes: list[Node]
    log_variance: tuple[float, float] | None  # where the predicted variance is -1 and 1; linear in between


class Probe:
    """The run of one scheduler on symbols."""

    def __init__(
        self, scheduler: Any, step_kwargs: Mapping[str, Any] | None, *, whole: bool = False, begin: int = 0
    ) -> None:
        """``whole``: :attr:`Stepper.result` keeps all that a step returns, not the next latent alone."""
        self.stepper = Stepper(scheduler, step_kwargs, self._draw, self._clip, self._scale, whole=whole, begin=begin)
        self.n_symbols = min(self.stepper.n_steps, MAX_REMEMBERED) + 61
        self.shape = (1, CHANNELS, 1, self.n_symbols)
        self.n_used = 0
        self.draws: list[int] = []  # the symbols of this step's draws, in order
        self.nodes: list[tuple[int, Node]] = []  # (symbol, node, its coefficients still in the order of symbols)
        self.log_variance: tuple[float, float] | None = None
        private = self.stepper.scheduler
        if hasattr(private, "_threshold_sample"):
            private._threshold_sample = self._threshold
        if private.config.get("variance_type") == "learned_range" and "predicted_variance" in _arguments(private):
            self._learned_range(private)

    # ------------------------------------------------------------------------------------------ symbols
    def _symbol(self) -> Tensor:
        if self.n_used == self.n_symbols:
            self._refuse(f"it remembers more than {self.n_used} tensors")
        self.n_used += 1
        return self.basis(self.n_used - 1)

    def basis(self, symbol: int) -> Tensor:
        """A tensor that stands for one symbol: 0 is the latent, ``n_state`` of the step the model output."""
        basis = torch.zeros(self.shape, dtype=torch.float64)
        basis[..., symbol] = 1.0
        return basis

    def _is_symbol(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tuple(tensor.shape) == self.shape

    def read(self, tensor: object, what: str, most: float = INFINITE) -> Tensor:
        """Return the coefficients in `tensor`, (n_symbols,) float64, refusing anything but a combination of symbols.

        Coefficients have to be below `most`.
        """
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != self.shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            self._refuse(f"{what} does not have the latent's shape (symbols of shape {self.shape} gave {shape})")
        coefficients = tensor[0, 0, 0].to(torch.float64, copy=True)
        if not bool((coefficients.abs() < most).all()):  # also nan
            refuse_infinite(self.stepper.scheduler, self.stepper.step_index, f"{what} has a coefficient that is")
        if not bool((tensor == tensor[:, :1]).all()):
            self._refuse(f"{what} mixes channels")
        return coefficients

    def _refuse(self, reason: str, *hint: str) -> NoReturn:
        refuse(self.stepper.scheduler, self.stepper.step_index, reason, *hint)

    # ------------------------------------------------------------------- functions that the scheduler calls
    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if shape != self.shape:
            self._refuse(f"it draws noise of shape {shape} for a latent of shape {self.shape}")
        self.draws.append(self.n_used)
        return self._symbol()

    def _clip(self, tensor: Tensor, low: Any, high: Any) -> Tensor | None:
        if not self._is_symbol(tensor):
            return None  # the scheduler's own numbers, for example max(variance, 1e-20)
        bounds = []
        for bound, default in ((low, -float("inf")), (high, float("inf"))):
            if isinstance(bound, Tensor) and bound.numel() != 1:
                self._refuse("it clamps with bounds that are tensors")
            bounds.append(default if bound is None else float(bound))
        return self._node(CLAMP, tensor, *bounds)

    def _scale(self, left: Any, right: Any, divide: bool) -> Tensor | None:
        """Multiply or divide a symbol by infinity or 0 as by a number near it; None for other factors."""
        symbol, factor = (left, right) if self._is_symbol(left) else (right, left)
        if not self._is_symbol(symbol) or (divide and symbol is right):
            return None
        number = float(factor) if not isinstance(factor, Tensor) or factor.numel() == 1 else 1.0
        if divide and number == 0.0:
            return symbol * math.copysign(_HUGE, number)
        if not divide and math.isinf(number):
            return symbol * math.copysign(_HUGE, number)
        return None

    def _threshold(self, sample: Tensor) -> Tensor:
        return self._node(THRESHOLD, sample)

    def _node(self, kind: int, tensor: Tensor, *bounds: float) -> Tensor:
        node = Node(kind, self.read(tensor, "the prediction that is clipped", float("inf")), *bounds)
        self.nodes.append((self.n_used, node))
        return self._symbol()

    def _learned_range(self, private: Any) -> None:
        """Make ``_get_variance`` return log-variance 0, and record what it would have returned at -1 and 1."""
        original = private._get_variance

        def get_variance(*args: Any, **kwargs: Any) -> Tensor:
            kwargs.pop("predicted_variance", None)
            at = [
                float(original(*args, predicted_variance=torch.tensor(v, dtype=torch.float64), **kwargs))
                for v in (-1.0, 1.0)
            ]
            self.log_variance = (at[0], at[1])
            if not all(-float("inf") < value < float("inf") for value in self.log_variance):
                self._refuse(f"its learned log-variance is not finite: {self.log_variance}")
            return torch.zeros((), dtype=torch.float64)

        private._get_variance = get_variance

    # ------------------------------------------------------------------------------------------- the run
    def step(self, k: int) -> StepMap:
        """Probe step `k`; steps must be probed in order."""
        stepper = self.stepper
        self.n_used, self.draws, self.nodes, self.log_variance = 0, [], [], None
        stepper.step_index = k
        sample = self._symbol()
        map_memory(stepper.scheduler, lambda held: self._symbol() if self._is_symbol(held) else held)
        n_state = self.n_used
        model_output = self._symbol()
        if stepper.doubles_channels:  # the variance has no symbol: its effect is read in _learned_range
            model_output = torch.cat([model_output, torch.zeros_like(model_output)], 1)

        scaled = self.read(stepper.model_input(k, sample.clone()), "the scaled model input")
        if self.draws or self.nodes:
            self._refuse("scale_model_input draws noise or clips")
        read = [self.read(stepper.step(k, model_output, sample), "the next latent")]
        for held in held_tensors(stepper.scheduler):
            if self._is_symbol(held):
                read.append(self.read(held, "a remembered tensor"))
            elif held.ndim > 1 and held.shape[-1] == self.n_symbols:
                self._refuse(f"it remembers symbols in another shape, {tuple(held.shape)} for {self.shape}")

        outputs = torch.stack(read)
        if self.log_variance is not None and not self.draws:
            self._refuse("it uses the learned variance but draws no noise")
        if bool(outputs[:, self.n_used :].any()):
            # A linear step leaves entries of unused symbols at 0.
            self._refuse("it adds a constant, or a function of the latent that is not linear")
        # Symbols were created in this order: state, model output, then draws and nodes in the scheduler's order.
        order = [*range(n_state + 1), *self.draws, *(symbol for symbol, _ in self.nodes)]
        nodes = [Node(node.kind, node.coefficients[order], node.low, node.high) for _, node in self.nodes]
        return StepMap(n_state, len(self.draws), scaled[:n_state], outputs[:, order], nodes, self.log_variance)


def _arguments(scheduler: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the scheduler's ``_get_variance``; none if it has no such method."""
    method = getattr(scheduler, "_get_variance", None)
    return {} if method is None else inspect.signature(method).parameters


def probe(scheduler: Any, step_kwargs: Mapping[str, Any] | None = None, *, begin: int = 0) -> list[StepMap]:
    """Read every step of `scheduler` as coefficients.

    Parameters
    ----------
    scheduler
        A diffusers scheduler after ``set_timesteps``; a copy is probed.
    step_kwargs
        Further arguments of its ``step``.
    begin
        Index of the timestep of the first step.

    Returns
    -------
    list of StepMap
        One for each step.  The symbols are float64 and are multiplied by the scheduler's own scalars, some of
        them float32: these are the coefficients that it applies to real latents.

    Raises
    ------
    hsd.errors.UnsupportedScheduler
        A step cannot be expressed.
    """
    learned = getattr(scheduler, "config", {}).get("variance_type") == "learned"
    if learned and "predicted_variance" in _arguments(scheduler):
        refuse(
            scheduler,
            None,
            'variance_type="learned" makes the noise a root of the model output, which a table cannot hold',
            'Use variance_type="learned_range" if the model was trained for it, or "fixed_small" to ignore the '
            "predicted variance: pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, "
            'variance_type="fixed_small").',
        )
    run = Probe(scheduler, step_kwargs, begin=begin)
    return [run.step(k) for k in range(run.stepper.n_steps)]
