"""Which networks a calibration was measured on: enough to tell another checkpoint or a LoRA of it apart."""

from __future__ import annotations

from dataclasses import dataclass

_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6
"""Weights may differ by this much: a model may be loaded in float16, bfloat16 or float32."""


@dataclass(frozen=True)
class Identity:
    """The networks of a model that decide how it reads prompts and what it begins to draw."""

    family: str
    """Name of the adapter's class."""
    networks: str
    """Hex digest of the networks' configurations and of the names and shapes of their weights, LoRA layers included."""
    weights: tuple[float, ...]
    """Some of the weights, at fixed places."""

    @property
    def key(self) -> str:
        """The part that does not depend on values: the beginning of a file's name."""
        return f"{self.family}-{self.networks[:16]}"

    def matches(self, other: Identity) -> bool:
        """Whether both are the same networks, in any floating dtype."""
        if (self.family, self.networks, len(self.weights)) != (other.family, other.networks, len(other.weights)):
            return False
        pairs = zip(self.weights, other.weights, strict=True)
        return all(abs(a - b) <= _ABSOLUTE + _RELATIVE * max(abs(a), abs(b)) for a, b in pairs)
