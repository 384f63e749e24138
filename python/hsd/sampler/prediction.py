"""The image that each step of a scheduler predicts: x0, as a function of the latent and the model's output."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedScheduler
from ..work.broadcast import per_row
from .levels import NoLevel, noise_level, tells
from .probe import THRESHOLD, Node, Probe, StepMap
from .table import dynamic_threshold

DATA_PREDICTION = ("dpmsolver++", "sde-dpmsolver++", "data_prediction")
"""Values of ``algorithm_type`` with which multistep schedulers remember predictions of x0."""


@dataclass(frozen=True)
class Predictions:
    """x0 at each step: ``of_latent[k] * latent + of_output[k] * output``, clipped where the scheduler clips it.

    Like the table, it works on lanes at different steps, never waits for the device, and can be captured.

    Attributes
    ----------
    of_latent, of_output
        (K,) float; 0 where the step has no prediction.
    low, high
        (K,) bounds of the clip, infinite where there is none.
    thresholds
        (K,) bool, whether the step uses dynamic thresholding.
    threshold_ratio, threshold_max
        How; None if no step uses it.
    defined
        (K,) whether the step has a prediction; on the host.
    """

    of_latent: Tensor
    of_output: Tensor
    low: Tensor
    high: Tensor
    thresholds: Tensor
    threshold_ratio: float | None
    threshold_max: float | None
    defined: tuple[bool, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Predictions:
        """A copy on ``device``, with coefficients in ``dtype``."""
        moved: dict[str, Any] = {
            name: tensor.to(device, tensor.dtype if tensor.dtype == torch.bool else dtype, copy=True)
            for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)

    @property
    def form(self) -> tuple[object, ...]:
        """Equal where a captured call of one is that of the other, whose tensors have been copied to its own."""
        return len(self.defined), self.threshold_ratio, self.threshold_max

    @torch.no_grad()
    def __call__(self, latents: Tensor, output: Tensor, step: Tensor) -> Tensor:
        """The x0 that each lane predicts.

        Parameters
        ----------
        latents : (B, ...)
            Before the scheduler scales them.
        output : (B, ...), any floating dtype
            The model's, after guidance; without the variance channels.
        step : (B,) int64, each in 0..K-1

        Returns
        -------
        (B, ...) in the dtype of ``latents``.
        """

        def at(values: Tensor) -> Tensor:
            return per_row(values.index_select(0, step), latents)

        x0 = at(self.of_latent) * latents + at(self.of_output) * output.to(latents.dtype)
        clipped = torch.clamp(x0, at(self.low), at(self.high))
        if self.threshold_ratio is None or self.threshold_max is None:
            return clipped
        thresholded = dynamic_threshold(x0, self.threshold_ratio, self.threshold_max)
        return torch.where(at(self.thresholds), thresholded, clipped)


def predictions(scheduler: Any, *, step_kwargs: Mapping[str, Any] | None = None, begin: int = 0) -> Predictions:
    """What each step of a scheduler, after ``set_timesteps``, predicts as x0; ``begin`` is the index of the first.

    It is read from what the scheduler itself returns or remembers, by a run on symbols (``probe.py``). Where it gives
    none, its configuration says what the model's output means. A step where neither tells, or where the prediction
    needs more than the latent and the output, has none; and so has one whose output says next to nothing about x0.

    Raises
    ------
    hsd.errors.UnsupportedScheduler
        The scheduler is none whose steps can be called.
    """
    run = Probe(scheduler, step_kwargs, whole=True, begin=begin)
    nodes: list[Node | None] = []
    with contextlib.suppress(UnsupportedScheduler):  # of a step that fails where all of its result is asked for
        for k in range(run.stepper.n_steps):
            nodes.append(_predicted(run, k))
    nodes += [None] * (run.stepper.n_steps - len(nodes))
    config = getattr(scheduler, "config", {})
    thresholds = [node is not None and node.kind == THRESHOLD for node in nodes]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Predictions(
        of_latent=column([0.0 if node is None else float(node.coefficients[0]) for node in nodes]),
        of_output=column([0.0 if node is None else float(node.coefficients[1]) for node in nodes]),
        low=column([-float("inf") if node is None else node.low for node in nodes]),
        high=column([float("inf") if node is None else node.high for node in nodes]),
        thresholds=torch.tensor(thresholds),
        threshold_ratio=float(config.get("dynamic_thresholding_ratio", 0.995)) if any(thresholds) else None,
        threshold_max=float(config.get("sample_max_value", 1.0)) if any(thresholds) else None,
        defined=tuple(node is not None for node in nodes),
    )


def prediction_of(scheduler: Any, k: int, latents: Tensor, output: Tensor, result: Any) -> Tensor | None:
    """The x0 that step ``k`` has predicted, in the form of ``latents``; None if the scheduler does not give it.

    ``k`` counts from the scheduler's first timestep.

    Parameters
    ----------
    scheduler
        After its step ``k``.
    latents, output
        What the step was given.
    result
        What it returned, with ``return_dict=True``.
    """
    for name in ("pred_original_sample", "denoised"):
        found = getattr(result, name, None)
        if isinstance(found, Tensor):
            return found
    config = scheduler.config
    if config.get("predict_x0") or config.get("algorithm_type") in DATA_PREDICTION:
        remembered: Tensor = scheduler.model_outputs[-1]
        return remembered
    if type(scheduler).__name__.startswith("FlowMatch"):
        return latents - float(scheduler.sigmas[k]) * output
    return None


def _predicted(run: Probe, k: int) -> Node | None:
    """The prediction of step ``k``: the coefficients of latent and output, (2,) float64, and how it is clipped."""
    found = _given(run, k, run.step(k))
    return found if found is not None and tells(float(found.coefficients[1])) else None


def _given(run: Probe, k: int, step: StepMap) -> Node | None:
    scheduler, latent, output = run.stepper.scheduler, run.basis(0), run.basis(step.n_state)
    index = run.stepper.begin + k
    found = prediction_of(scheduler, index, latent, output, run.stepper.result)
    if found is None:
        return _by_configuration(scheduler, index, step.scale)
    try:
        row = run.read(found, "the prediction of x0")
    except UnsupportedScheduler:
        return None
    clips = [(symbol, node) for symbol, node in run.nodes if row[symbol] != 0.0]
    if clips:
        symbol, node = clips[0]
        if row[symbol] != 1.0 or row.count_nonzero() > 1:
            return None
    else:
        node = Node(0, row)
    own = node.coefficients[[0, step.n_state]]
    if own.count_nonzero() < node.coefficients.count_nonzero():
        return None  # of noise that the step has drawn, or of what it remembers
    return Node(node.kind, own, node.low, node.high)


def _by_configuration(scheduler: Any, k: int, scale: Tensor) -> Node | None:
    """The prediction as the noise level of the step has it, for a model's input that is ``scale`` times the state."""
    try:
        level = noise_level(scheduler, k)
    except NoLevel:
        return None
    if bool(scale[1:].any()):
        return None
    return Node(0, torch.tensor([level.of_input * float(scale[0]), level.of_output], dtype=torch.float64))
