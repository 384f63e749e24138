"""What a prompt set takes by prediction: its calls, and the seconds of a call by lanes as they were measured."""

from __future__ import annotations

from dataclasses import dataclass

from fills import STEPS, Fill

from hsd.tuning.curve import Curve


@dataclass(frozen=True)
class Forecast:
    """Calls of a plan by a curve. All seconds are those of the denoiser."""

    fill: Fill
    curve: Curve
    padded: bool = True
    """Whether calls are padded to a few sizes, as they are where they are captured."""
    best: float | None = None
    """Seconds a lane of a full call, for a curve that does not hold the fastest way; default: by the curve."""

    @property
    def seconds(self) -> float:
        """Of all calls."""
        return self.curve.total(self.fill.lanes, self.fill.batch_size if self.padded else None)

    @property
    def least(self) -> float:
        """Of all node-steps in full calls."""
        size = self.fill.batch_size
        return self.fill.node_steps * (self.curve.seconds_per_lane(size) if self.best is None else self.best)

    @property
    def efficiency(self) -> float:
        """As ``sections/efficiency.py`` defines it: node-steps x seconds a lane of a full call / seconds."""
        return self.least / self.seconds

    @property
    def bound(self) -> float:
        """No program has a higher efficiency: nothing can run beside the steps of a plan that begins as one cluster."""
        trunk = self.fill.trunk
        rest = (self.fill.node_steps - trunk) / self.fill.node_steps
        return self.least / (trunk * self.curve.seconds(1) + rest * self.least)


def automatic(fills: list[Fill], curve: Curve, padded: bool = True) -> Forecast:
    """What ``batch_size="auto"`` chooses among the fills of one plan: the least time, then the smallest batch size."""
    sizes = curve.candidates()
    compared = [Forecast(one, curve, padded) for one in fills if one.batch_size in sizes]
    return min(compared, key=lambda one: (round(one.seconds, 9), one.fill.batch_size, one.fill.order == "breadth"))


PRIOR_STEPS = 25
"""Of Kandinsky, by default."""


@dataclass(frozen=True)
class Parts:
    """Seconds of Kandinsky's networks, each alone at its best batch size."""

    prior: float
    """Of a step of an image."""
    decode: float
    """Of an image."""
    eager: float
    """Of a lane of the denoiser, kernel by kernel."""
    best: float
    """Of a lane of the denoiser."""

    def priors(self, fill: Fill) -> float:
        """Of all images."""
        return fill.prompts * PRIOR_STEPS * self.prior

    def decodes(self, fill: Fill) -> float:
        """Of all images."""
        return fill.prompts * self.decode

    def diffusers(self, fill: Fill) -> float:
        """Without sharing, in full batches."""
        return fill.prompts * STEPS * self.eager + self.priors(fill) + self.decodes(fill)

    def hsd(self, forecast: Forecast) -> float:
        """Decoding runs beside the denoiser, but both need the same device, so that their times add."""
        return forecast.seconds + self.priors(forecast.fill) + self.decodes(forecast.fill)

    def ideal(self, fill: Fill) -> float:
        """As ``sections/end_to_end.py`` defines it: the networks by themselves."""
        return fill.node_steps * self.best + self.priors(fill) + self.decodes(fill)
