"""Checks that the tests of all families and those of one family share."""

from __future__ import annotations

from typing import Any

from families.base import Family
from families.measure import PROMPTS, parity
from helpers import mean_difference, share_apart


def check_parity(
    family: Family,
    pipe: Any,
    settings: dict[str, Any],
    size: tuple[int, int],
    *,
    prompts: list[str] = PROMPTS,
    seeds: list[int] | None = None,
    per_prompt: int = 1,
) -> None:
    """At tau = 0, HSD gives the stock pipeline's results: latents, images decoded from them, and complete runs."""
    seeds = family.parity_seeds if seeds is None else seeds
    found = parity(family, pipe, settings, size, prompts=prompts, seeds=seeds, per_prompt=per_prompt, pil=True)
    assert found.ours.shape == found.stock.shape
    # The check can fail: another image's latents are far away.
    scale = found.stock.abs().max()
    assert (found.ours[0] - found.stock[1]).abs().max() > 100 * family.tolerance * scale
    assert found.error < family.tolerance
    images = found.stock_images
    # A random decoder magnifies rounding errors in single pixels, and rounds differently in batches and single calls.
    for image, expected in zip(found.model.decode(found.stock, found.generators), images, strict=True):
        assert share_apart(image, expected) < 1e-3
    for image, expected in zip(found.images, images, strict=True):
        assert mean_difference(image, expected) < 0.5
    assert mean_difference(found.images[0], images[1]) > 2
