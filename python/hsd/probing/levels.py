"""Noise levels of a scheduler, and the image that a model's output means at each: x0 from input and output."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnsupportedScheduler
from ..replay.denoiser import Denoiser

FRACTIONS = (0.0, 3 / 14, 6 / 14)
"""Where in a run a model is probed: the first step, and the two by which layout and colours are mostly decided."""

_STEPS = 14


@dataclass(frozen=True)
class NoiseLevel:
    """One step of a run, for a model's input u = signal * x0 + noise * e, with e normal.

    The prediction of x0 is ``of_input * u + of_output * output``.
    """

    timestep: Tensor
    """() as the scheduler gives it."""
    signal: float
    noise: float
    of_input: float
    of_output: float

    def predict(self, model_input: Tensor, output: Tensor) -> Tensor:
        """(B, ...) predictions of x0."""
        return self.of_input * model_input + self.of_output * output


def noise_levels(denoiser: Denoiser, fractions: tuple[float, ...] = FRACTIONS) -> list[NoiseLevel]:
    """The noise levels at ``fractions`` of a run with the model's own scheduler.

    Raises
    ------
    UnsupportedScheduler
        If HSD does not know what the scheduler takes the model's output for.
    """
    scheduler = copy.deepcopy(denoiser.scheduler())
    denoiser.set_timesteps(scheduler, _STEPS)
    n = len(scheduler.timesteps)
    return [_level(scheduler, min(int(fraction * n + 1e-9), n - 1)) for fraction in fractions]


def _level(scheduler: Any, k: int) -> NoiseLevel:
    config = scheduler.config
    timestep = scheduler.timesteps[k].detach().cpu()
    kind = config.get("prediction_type")
    sigma = float(scheduler.sigmas[k]) if getattr(scheduler, "sigmas", None) is not None else None
    if hasattr(scheduler, "precondition_outputs") and sigma is not None:
        # EDM (Karras et al., arXiv 2206.00364, Table 1).
        data = float(config["sigma_data"])
        total = sigma**2 + data**2
        scale = 1.0 / math.sqrt(total)
        sign = -1.0 if kind == "v_prediction" else 1.0
        return NoiseLevel(timestep, scale, sigma * scale, data**2 / total / scale, sign * sigma * data * scale)
    is_flow = type(scheduler).__name__.startswith("FlowMatch")
    if sigma is not None and (is_flow or kind == "flow_prediction" or config.get("use_flow_sigmas")):
        return NoiseLevel(timestep, 1.0 - sigma, sigma, 1.0, -sigma)  # x = (1 - sigma) x0 + sigma e; output e - x0
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        _refuse(scheduler, "it has neither alphas_cumprod nor the noise levels of flow matching")
    if sigma is not None:  # noise over signal; the model's input is scaled to variance 1
        signal = 1.0 / math.sqrt(1.0 + sigma**2)
        noise = sigma * signal
    else:
        alpha = float(alphas[int(timestep)])
        signal, noise = math.sqrt(alpha), math.sqrt(max(0.0, 1.0 - alpha))
    if kind == "v_prediction":
        return NoiseLevel(timestep, signal, noise, signal, -noise)
    if kind == "sample":
        return NoiseLevel(timestep, signal, noise, 0.0, 1.0)
    if kind == "epsilon":
        if signal < 1e-4:
            _refuse(scheduler, f"at timestep {float(timestep):g} there is no signal left that epsilon could say")
        return NoiseLevel(timestep, signal, noise, 1.0 / signal, -noise / signal)
    _refuse(scheduler, f"its prediction_type is {kind!r}")


def _refuse(scheduler: Any, reason: str) -> Any:
    raise UnsupportedScheduler(
        f"{type(scheduler).__name__} cannot be probed: {reason}. Use metric='cosine', or calibrate with another "
        "scheduler of the same model: hsd.load(model).with_scheduler(...)"
    )
