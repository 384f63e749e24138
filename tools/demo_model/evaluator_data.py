"""The evaluator's training pictures: drawings, blurred and distorted as an imperfect generator might draw them.

None of them was generated or passed through a network: the evaluator has to be independent of what it measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .draw import SIDE, draw, random_jitter
from .scenes import ATTRIBUTES, sample

CLEAN_SHARE = 0.2
KEPT = 8192  # drawings in memory, as bytes 100 MB
FRESH = 32  # the drawing program is fastest in batches that fit the cache
VIEWS = 3  # how often a drawing is used, each time degraded differently


def _dct(n: int) -> torch.Tensor:
    """The orthonormal discrete cosine transform. [n, n]; a picture's is `m @ x @ m.T`."""
    k, i = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    m = torch.cos(math.pi / n * (i + 0.5) * k) * math.sqrt(2 / n)
    m[0] /= math.sqrt(2)
    return m


_WHOLE, _BLOCK = _dct(SIDE), _dct(8)


def _between(n: int, low: float, high: float) -> torch.Tensor:
    """Uniform random numbers, one per picture. [n, 1, 1, 1]."""
    return low + (high - low) * torch.rand(n, 1, 1, 1)


def _field(n: int, channels: int, waves: int) -> torch.Tensor:
    """Random fields of about unit variance from the lowest cosine waves, [n, channels, 64, 64]."""
    low = _WHOLE[:waves]
    return low.T @ torch.randn(n, channels, waves, waves) @ low * (SIDE / waves)


def _blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of sigma [N, 1, 1, 1] pixels, mirrored at the borders; computed as a product of cosine waves."""
    wave = math.pi / SIDE * torch.arange(SIDE)
    keep = torch.exp(-0.5 * (wave[:, None] ** 2 + wave**2) * sigma**2)  # [N, 1, 64, 64]
    return _WHOLE.T @ (_WHOLE @ x @ _WHOLE.T * keep) @ _WHOLE


def _bend(x: torch.Tensor, waves: int, most: float) -> torch.Tensor:
    """Moves every pixel by a random field: few waves bend straight edges, many waves make shapes irregular."""
    n = len(x)
    axis = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # [64, 64, 2 (x, y)]
    move = _field(n, 2, waves) * _between(n, 0.2, most) * 2 / SIDE
    return F.grid_sample(x, grid + move.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _block_loss(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Rounds the cosine waves of 8x8 blocks to multiples of a step that grows with the frequency, as JPEG does."""
    n = len(x)
    blocks = x.view(n, 3, 8, 8, 8, 8).transpose(3, 4)  # [N, 3, block row, block column, y, x]
    waves = _BLOCK @ blocks @ _BLOCK.T
    coarse = step[..., None, None] * (1 + torch.arange(8)[:, None] + torch.arange(8)) / 4
    waves = torch.round(waves / coarse) * coarse
    return (_BLOCK.T @ waves @ _BLOCK).transpose(3, 4).reshape(x.shape)


def _on_some(x: torch.Tensor, share: float, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Applies a change to a random share of the pictures."""
    pick = torch.randperm(len(x))[: round(len(x) * share)]
    return x.index_copy(0, pick, change(x[pick]))


def _melt(x: torch.Tensor) -> torch.Tensor:
    """Blurs some regions strongly and others not at all, as a generator does where it is undecided."""
    where = torch.sigmoid(3 * _field(len(x), 1, 8) - 1)
    return torch.lerp(x, _blur(x, _between(len(x), 1.0, 2.5)), where)


def _tint(x: torch.Tensor) -> torch.Tensor:
    """Changes the colours of the whole picture and of some regions."""
    n = len(x)
    x = x * (1 + 0.06 * torch.randn(n, 3, 1, 1)) + 0.03 * torch.randn(n, 3, 1, 1)
    return x + _field(n, 3, 16) * _between(n, 0.0, 0.07)


def _degrade_all(x: torch.Tensor) -> torch.Tensor:
    x = _on_some(x, 0.3, lambda y: _bend(y, 6, 0.8))
    x = _on_some(x, 0.6, lambda y: _bend(y, 20, 1.3))
    x = _on_some(x, 0.3, _melt)
    x = _on_some(x, 0.5, lambda y: _blur(y, _between(len(y), 0.2, 1.5)))
    x = _on_some(x, 0.3, lambda y: _block_loss(y, _between(len(y), 0.02, 0.3)))
    x = _on_some(x, 0.7, _tint)
    x = _on_some(x, 0.5, lambda y: y + torch.randn(y.shape) * _between(len(y), 0.0, 0.06))
    return x.clamp(0, 1)


def degrade(x: torch.Tensor) -> torch.Tensor:
    """Drawings [N, 3, 64, 64] in 0..1 to imperfect ones: bent, melted, blurred, blocky, tinted, noisy.

    A fifth are not changed. Each kind of change is applied to some of the others, with random strength. A person
    should still recognise all attributes.
    """
    assert x.shape[1:] == (3, SIDE, SIDE), x.shape
    return _on_some(x, 1 - CLEAN_SHARE, _degrade_all)


class Drawings:
    """A buffer of drawings of training scenes; the oldest are replaced after `VIEWS` uses on average."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rows = torch.empty(KEPT, len(ATTRIBUTES), dtype=torch.int64)
        self.pictures = torch.empty(KEPT, 3, SIDE, SIDE, dtype=torch.uint8)
        self.next, self.used = 0, 0
        for _ in range(KEPT // FRESH):
            self._renew()

    def _renew(self) -> None:
        rows = sample(self.rng, FRESH)
        # Twice the usual jitter: a generator is less exact about places and sizes than the drawing program.
        pictures = draw(rows, 2 * random_jitter(self.rng, FRESH))
        here = slice(self.next, self.next + FRESH)
        self.rows[here], self.pictures[here] = torch.from_numpy(rows), (pictures * 255).round().byte()
        self.next = (self.next + FRESH) % KEPT

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scenes [n, 12] and their degraded pictures [n, 3, 64, 64] in 0..1."""
        self.used += n
        while self.used >= FRESH * VIEWS:
            self._renew()
            self.used -= FRESH * VIEWS
        pick = torch.from_numpy(self.rng.integers(0, KEPT, n))
        return self.rows[pick], degrade(self.pictures[pick].float() / 255)
