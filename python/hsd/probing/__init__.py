"""What a model itself says about prompts: its first predictions, and how much each step of a run matters."""

from .calibrate import calibrate

__all__ = ["calibrate"]
