"""What a run gives: images, images that could not be made, and a summary."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import PIL.Image

from ..names import ImageFormat
from ..planning.plan import Plan
from ..planning.summary import duration
from ..work.files import write_atomically
from ..work.paths import user_path
from ..work.text import shortened
from .image_files import encoded
from .image_text import Texts, TextsOfOne
from .lines import ending
from .notebook import figure, png, table, thumbnails

Stage = Literal["encode", "denoise", "decode", "write"]
"""Where an image can fail."""


@dataclass(frozen=True, repr=False)
class Image:
    """One finished image: ``index`` and ``prompt`` as in the plan, its ``seed``, and the picture, ``pil``."""

    index: int
    """Its number in the plan, from 0."""
    prompt: str
    seed: int
    pil: PIL.Image.Image
    """The picture, 8 bits a channel. ``numpy.asarray(image.pil)`` is (H, W, 3) uint8."""
    nsfw: bool | None = None
    """Whether the model's safety checker made it black; None if the model has no checker."""
    upcast: bool = False
    """Whether it was decoded in float32, because the decoder overflowed in half precision."""
    _texts: Texts | TextsOfOne | None = field(default=None, repr=False, compare=False)

    @cached_property
    def shared_with(self) -> dict[int, int]:
        """The prompts with which it shared steps, and how many: as :meth:`hsd.Plan.shared_with` of the plan that ran,
        those that shared most first.
        """
        return {} if self._texts is None else self._texts.shared_with(self.index)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file that :func:`generate` writes: the picture, and what made it.

        Parameters
        ----------
        path
            The ending says the format: ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``. A file that is there is replaced;
            it is never half written.

        Raises
        ------
        ValueError
            For another ending.
        OSError
            If the file cannot be written.
        """
        path = user_path(path)
        image_format = path.suffix.lower().removeprefix(".")
        if image_format not in get_args(ImageFormat):
            known = ", ".join(f".{name}" for name in get_args(ImageFormat))
            raise ValueError(f"{path} ends in {path.suffix!r}: the ending says the format, one of {known}")
        text = None if self._texts is None else self._texts.of(self.index, self.pil.size)
        write_atomically(path, encoded(self.pil, ending(cast(ImageFormat, image_format)), text))

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the plan, which may be large."""
        return {**vars(self), "_texts": None if self._texts is None else self._texts.only(self.index)}

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pil.size))
        return f"<hsd.Image {self.index}: {shortened(self.prompt)!r}, seed {self.seed}, {size}>"

    def _repr_png_(self) -> bytes:
        """The picture, for notebooks."""
        return png(self.pil)

    def _repr_html_(self) -> str:
        """The picture with its prompt and seed, for notebooks."""
        black = ", made black by the model's safety checker" if self.nsfw else ""
        return figure(self.pil, self.prompt, f"index {self.index}, seed {self.seed}{black}")


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


@dataclass(frozen=True, repr=False)
class Run:
    """The results of :func:`generate`."""

    out: Path | str
    """The folder, or the URL of an object store."""
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
    workers: int = 1
    """Processes that made the images, at most at the same time. Of several, ``seconds`` but ``total`` are sums."""
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    """What ``run.json`` has of this call."""

    @property
    def savings(self) -> float:
        """1 - node_steps / standard_node_steps of this call; 0 if there was nothing left to do."""
        return 1.0 - self.node_steps / self.standard_node_steps if self.standard_node_steps else 0.0

    def __repr__(self) -> str:
        existing = f", {self.existing:,} existed" if self.existing else ""
        failed = f", {len(self.failed):,} failed" if self.failed else ""
        return f"<hsd.Run: {self.images:,} images in {self.out}{existing}{failed}, {self.savings:.1%} saved>"

    def result(self) -> str:
        """What was made, where, and what was saved: one or two lines."""
        existing = f" ({self.existing:,} existed already)" if self.existing else ""
        took = f", {duration(self.seconds['total'])}" if "total" in self.seconds else ""
        lines = [f"{self.images:,} images in {self.out}{existing}{took}."]
        if self.images:
            lines.append(
                f"{self.node_steps:,} evaluations of the denoiser instead of {self.standard_node_steps:,}: "
                f"{self.savings:.1%} saved."
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        """:meth:`result`, and what is wrong with some of the images."""
        lines = [self.result()]
        if self.nsfw:
            lines.append(f"{self.nsfw:,} were made black by the model's safety checker.")
        if self.failed:
            lines.append(f"{len(self.failed):,} failed: see failed.jsonl.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table and some of the images of its plan, for notebooks."""
        times = {name: duration(seconds) for name, seconds in self.seconds.items() if seconds}
        total = times.pop("total", "")
        parts = ", ".join(f"{name} {time}" for name, time in times.items())
        rows = [
            ("images", f"{self.images:,}" + (f" ({self.existing:,} existed already)" if self.existing else "")),
            ("folder", str(self.out)),
            ("evaluations", f"{self.node_steps:,} instead of {self.standard_node_steps:,}"),
            ("saved", f"{self.savings:.1%}"),
            ("time", f"{total} ({parts})" if parts else total),
            ("failed", f"{len(self.failed):,}" if self.failed else ""),
            *(("", str(failure)) for failure in self.failed[:3]),
            ("made black", f"{self.nsfw:,}" if self.nsfw else ""),
        ]
        pictures = thumbnails(self.out, set(self.plan.kept.tolist())) if isinstance(self.out, Path) else ""
        return table(rows) + pictures
