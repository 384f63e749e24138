"""The noise level of a scheduler's step, and the image that a model's output means there: x0 from input and output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_LEAST_SIGNAL = 0.005


def tells(of_output: float) -> bool:
    """Whether an output that counts so much in a prediction of x0 says anything about it.

    Where there is hardly any signal, the error of a prediction of the noise is multiplied by noise / signal.
    """
    return abs(of_output) * _LEAST_SIGNAL <= 1.0  # not if it is infinite


class NoLevel(Exception):
    """Nothing in HSD says what a scheduler takes the model's output for; the message is the reason."""


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
    step: int = 0
    timesteps: Tensor | None = None
    """(K,) those of the run, where ``step`` is known."""

    @property
    def tells(self) -> bool:
        """Whether the output says anything about x0."""
        return tells(self.of_output)

    def predict(self, model_input: Tensor, output: Tensor) -> Tensor:
        """(B, ...) predictions of x0."""
        return self.of_input * model_input + self.of_output * output


def noise_level(scheduler: Any, k: int) -> NoiseLevel:
    """The noise level of step ``k``, from the scheduler's configuration; ``NoLevel`` if it does not say one."""
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
        raise NoLevel("it has neither alphas_cumprod nor the noise levels of flow matching")
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
        inverse = 1.0 / signal if signal > 0.0 else math.inf
        return NoiseLevel(timestep, signal, noise, inverse, -noise * inverse)
    raise NoLevel(f"its prediction_type is {kind!r}")
