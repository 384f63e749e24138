"""The bundled model and prompts: coloured shapes on patterned backgrounds, small enough to run anywhere.

A Kandinsky 2.2 model in miniature, loaded by the same adapter: ``hsd.load("demo")``. See ``docs/demo-model.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "model"
"""What ``KandinskyV22CombinedPipeline.from_pretrained`` reads."""

PROMPTS = Path(__file__).parent / "prompts.txt"
"""The built-in example prompts, one per line."""

CALIBRATION = Path(__file__).parent / "calibration.safetensors"
"""What ``hsd calibrate demo`` measured of the model."""

CALIBRATION_PROMPTS = Path(__file__).parent / "calibration.txt"
"""The prompts of that, one per line; none of them is used elsewhere."""

SETTINGS: dict[str, Any] = {"height": 64, "width": 64, "guidance_scale": 2.0, "prior_guidance_scale": 1.0}
"""The settings with which the model draws best, as :func:`hsd.load` takes them."""

TAU = 0.3
"""The default threshold for cosine distances. This model's embeddings encode every attribute separately, so it tolerates less sharing."""
