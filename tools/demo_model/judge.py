"""A judge without training: it finds the drawing that is nearest to a picture when one attribute varies.

It uses only the drawing program, so it is independent of every network here.
"""

from __future__ import annotations

import numpy as np
import torch

from .draw import draw
from .scenes import ATTRIBUTES, COLUMN

# The shifts in pixels that are tried when a picture is compared with a drawing.
_SHIFTS = [(dx, dy) for dx in (-1.0, 0.0, 1.0) for dy in (-1.0, 0.0, 1.0)]


def _nearest(image: torch.Tensor, drawings: torch.Tensor) -> int:
    """The index of the drawing with the least mean absolute difference. image: [3, H, W]; drawings: [N, 3, H, W]."""
    assert image.shape == drawings.shape[1:], (image.shape, drawings.shape)
    return int((drawings - image).abs().mean(dim=(1, 2, 3)).argmin())


def _fit(image: torch.Tensor, row: np.ndarray) -> np.ndarray:
    """The jitter [2, 3] under which the scene's drawing is nearest, one object after the other."""
    jitter = np.zeros((2, 3))
    for k in range(2 if row[0] == 1 else 1):
        options = np.repeat(jitter[None], len(_SHIFTS), axis=0)
        options[:, k, :2] = _SHIFTS
        jitter = options[_nearest(image, draw(np.repeat(row[None], len(_SHIFTS), axis=0), options))]
    return jitter


def recognise(image: torch.Tensor, row: np.ndarray) -> dict[str, str]:
    """By attribute of the full scene `row`: its value in the nearest of the drawings that differ only in it.

    Colours that would hide an object are not candidates.
    """
    jitter = _fit(image, row)
    seen = {}
    for name, values in ATTRIBUTES.items():
        column = COLUMN[name]
        if row[column] < 0 or name == "count":
            continue
        candidates = np.repeat(row[None], len(values), axis=0)
        candidates[:, column] = np.arange(len(values))
        ground = candidates[:, COLUMN["background"]]
        hidden = (candidates[:, COLUMN["color"]] == ground) | (candidates[:, COLUMN["second_color"]] == ground)
        kept = np.flatnonzero(~hidden)
        drawings = draw(candidates[kept], np.repeat(jitter[None], len(kept), axis=0))
        seen[name] = values[kept[_nearest(image, drawings)]]
    return seen


def marks(images: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """1 where the recognised value is that of the scene, 0 where not, NaN where the scene has no value.

    images: [N, 3, H, W] in 0..1; rows: [N, 12]; returns [N, 12].
    """
    out = np.full(rows.shape, np.nan)
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        for name, value in recognise(image, row).items():
            out[i, COLUMN[name]] = value == ATTRIBUTES[name][row[COLUMN[name]]]
    return out
