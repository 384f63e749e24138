"""The progress bar of a run."""

from __future__ import annotations

import contextlib

from tqdm.auto import tqdm

from .results import Failure


class Bar:
    """A progress bar that counts node-steps, images and failures, and estimates the time left."""

    def __init__(self, node_steps: int, images: int):
        self._images, self._total, self._failed = 0, images, 0
        self._bar = tqdm(total=node_steps, unit=" node-steps", disable=None, smoothing=0.05)
        self._count()

    def __call__(self, node_steps: int, images: int) -> None:
        """Add a call of the denoiser: the node-steps that it ran, and the latents that it finished."""
        self._images += images
        self._count()
        self._bar.update(node_steps)

    def expect(self, node_steps: int) -> None:
        """Correct the total: images that the model cannot tell apart are set apart when all are encoded."""
        self._bar.total = node_steps

    def failed(self, _: Failure) -> None:
        """Add an image that failed."""
        self._failed += 1
        self._count()

    def _count(self) -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.set_postfix_str(f"{self._images}/{self._total} images{failed}", refresh=False)

    def close(self) -> None:
        """End the line. The terminal may be gone by then."""
        with contextlib.suppress(OSError, ValueError):
            self._bar.close()
