"""What a prompt set takes by prediction: its calls, and the seconds of a call by lanes as they were measured."""

from __future__ import annotations

from dataclasses import dataclass

from fills import Fill

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
        size, trunk = self.fill.batch_size, self.fill.trunk
        rest = (self.fill.node_steps - trunk) / self.fill.node_steps
        return self.least / (trunk * self.curve.seconds(1) + rest * self.least)


def automatic(fills: list[Fill], curve: Curve, padded: bool = True) -> Forecast:
    """What ``batch_size="auto"`` chooses among the fills of one plan: the least time, then the smallest batch size."""
    sizes = curve.candidates()
    compared = [Forecast(one, curve, padded) for one in fills if one.batch_size in sizes]
    return min(compared, key=lambda one: (round(one.seconds, 9), one.fill.batch_size, one.fill.order == "breadth"))
