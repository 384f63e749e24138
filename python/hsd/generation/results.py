"""What a run gives: images, images that could not be made, and a summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import PIL.Image

from ..planning.plan import Plan
from ..work.text import shortened

Stage = Literal["encode", "denoise", "decode", "write"]
"""Where an image can fail."""


@dataclass(frozen=True)
class Image:
    """One finished image."""

    index: int
    prompt: str
    seed: int
    pil: PIL.Image.Image
    nsfw: bool | None = None
    """Whether the model's safety checker made it black; None if the model has no checker."""
    upcast: bool = False
    """Whether it was decoded in float32, because the decoder overflowed in half precision."""


@dataclass(frozen=True)
class Failure:
    """One image that could not be made. The next run tries it again."""

    index: int
    prompt: str
    seed: int
    stage: Stage
    reason: str
    """Type and message of the error, or that values are not finite."""

    def __str__(self) -> str:
        """One line."""
        return f"prompt {self.index} ({shortened(self.prompt)!r}), {self.stage}: {self.reason}"


@dataclass(frozen=True)
class Run:
    """The results of :func:`generate`."""

    out: Path
    images: int
    """Images written by this call."""
    existing: int
    """Images that existed already."""
    node_steps: int
    """Evaluations of the denoiser by this call."""
    standard_node_steps: int
    """Evaluations that this call's images need without sharing."""
    batch_size: int
    """Latents per call at full guidance; the measured one for ``"auto"``."""
    seconds: dict[str, float]
    """Wall time: ``total``, which includes ``encode``, ``measure`` (for ``batch_size="auto"``), ``denoise`` and
    ``decode``. Images are written at the same time; on a GPU most of the decoding is done at the same time too."""
    plan: Plan = field(repr=False)
    """What ran: the part of the plan for the images that were missing; the plan, if there were none. It is another than
    the given one where that was compiled without a model, or shared steps between images of equal conditioning."""
    failed: tuple[Failure, ...] = ()
    """Images that could not be made, by index. They are in ``failed.jsonl`` too."""
    nsfw: int = 0
    """Images of this call that the model's safety checker made black."""
    upcast: int = 0
    """Images of this call that were decoded in float32, because the decoder overflowed in half precision."""
    repaired: tuple[str, ...] = ()
    """What was not as an earlier run had left it: damaged images, which were made again, and lines and files that were
    corrected. One text each."""

    @property
    def savings(self) -> float:
        """1 - node_steps / standard_node_steps of this call; 0 if there was nothing left to do."""
        return 1.0 - self.node_steps / self.standard_node_steps if self.standard_node_steps else 0.0
