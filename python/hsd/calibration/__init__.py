"""What was measured of one model: how it tells prompts apart, and which steps matter. Plain arrays, without torch.

Made by :func:`hsd.calibrate`, attached to a model by :func:`hsd.load`, used by :func:`hsd.compile`.
"""

from .calibration import Calibration
from .identity import Identity

__all__ = ["Calibration", "Identity"]
