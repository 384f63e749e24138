"""Drawing: rows of full scenes to 64x64 pictures, by signed distance functions, a whole batch at once.

Signed distances make antialiasing, outlines and glows simple, and draw a few thousand pictures per second, so that
training never uses the same picture twice.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .scenes import COLORS, COLUMN, PATTERNS, SHAPES, STYLES

SIDE = 64
PALETTE = {
    "red": (220, 38, 38),
    "orange": (249, 140, 22),
    "yellow": (252, 222, 50),
    "green": (38, 158, 66),
    "blue": (38, 90, 225),
    "purple": (130, 52, 178),
    "pink": (248, 158, 200),
    "white": (246, 246, 246),
    "black": (24, 24, 28),
}
RADII = (8.0, 11.0, 14.5)  # pixels, by size
RGB = torch.tensor([PALETTE[name] for name in COLORS], dtype=torch.float32) / 255
_DARK = (RGB @ torch.tensor([0.299, 0.587, 0.114])) < 0.45


def _box(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> torch.Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _star(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # Map the plane to one tenth of a turn by symmetry; there, the star has a single edge.
    angle = torch.atan2(x, -y)
    fold = math.pi / 5
    angle = (torch.remainder(angle + fold, 2 * fold) - fold).abs()
    length = torch.sqrt(x * x + y * y)
    px, py = length * torch.sin(angle), length * torch.cos(angle)
    tip, dent = (0.0, 1.08), (0.47 * math.sin(fold), 0.47 * math.cos(fold))
    ex, ey = dent[0] - tip[0], dent[1] - tip[1]
    norm = math.hypot(ex, ey)
    return (ex * (py - tip[1]) - ey * (px - tip[0])) / norm


def _heart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # A square on its corner with a disc on each upper side.
    y = y - 0.08
    lower = (x.abs() + y.abs() - 0.88) / math.sqrt(2)
    cx, cy, radius = 0.44, -0.44, 0.44 * math.sqrt(2)
    return torch.minimum(lower, torch.sqrt((x.abs() - cx) ** 2 + (y - cy) ** 2) - radius)


def distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance to a shape of radius 1 at the origin, y pointing down; negative inside."""
    r = torch.sqrt(x * x + y * y)
    match shape:
        case "circle":
            return r - 0.95
        case "square":
            return _box(x, y, 0.85, 0.85)
        case "triangle":
            slope = math.hypot(1.8, 0.98)
            return torch.maximum(y - 0.8, (1.8 * x.abs() - 0.98 * (y + 1.0)) / slope)
        case "diamond":
            return (x.abs() / 0.72 + y.abs() / 1.05 - 1) / math.hypot(1 / 0.72, 1 / 1.05)
        case "star":
            return _star(x, y)
        case "heart":
            return _heart(x, y)
        case "cross":
            return torch.minimum(_box(x, y, 0.32, 1.0), _box(x, y, 1.0, 0.32))
        case "ring":
            return (r - 0.72).abs() - 0.25
    raise ValueError(f"no such shape: {shape!r}")


def _cover(pixels: torch.Tensor) -> torch.Tensor:
    """Antialiased coverage of a signed distance in pixels."""
    return (0.5 - pixels).clamp(0, 1)


def _mix(under: torch.Tensor, over: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """under, over: [N, 3, H, W] or [N, 3, 1, 1]; alpha: [N, H, W]."""
    return under + (over - under) * alpha[:, None]


def _pattern(kind: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Coverage of the background's second tone. kind: [N]; x, y: [N, H, W]."""
    dots = torch.sqrt((torch.remainder(x, 10.667) - 5.333) ** 2 + (torch.remainder(y, 10.667) - 5.333) ** 2) - 2.4
    stripes = (torch.remainder(x, 10.667) - 5.333).abs() - 2.667
    halves = (torch.remainder(x, 16) - 8).abs() - 4, (torch.remainder(y, 16) - 8).abs() - 4
    checks = torch.maximum(torch.minimum(*halves), -torch.maximum(*halves))
    stacked = torch.stack([torch.full_like(dots, 9.0), dots, stripes, checks])  # [4, N, H, W], as PATTERNS
    assert len(stacked) == len(PATTERNS)
    return _cover(stacked[kind, torch.arange(len(kind))])


def centers(rows: torch.Tensor) -> torch.Tensor:
    """The two objects' centres in pixels, without jitter. rows: [N, 12] -> [N, 2 objects, 2 (x, y)]."""
    place = rows[:, COLUMN["place"]].clamp(min=0)
    thirds = torch.tensor([16.0, 32.0, 48.0])
    single = torch.stack([thirds[place % 3], thirds[place // 3]], dim=-1)
    beside = torch.tensor([[17.0, 32.0], [47.0, 32.0]])
    pair = torch.where(rows[:, COLUMN["relation"], None, None] == 1, beside.flip(-1), beside)
    return torch.where(rows[:, 0, None, None] == 1, pair, single[:, None].expand(-1, 2, -1))


def draw(rows: np.ndarray, jitter: np.ndarray | None = None) -> torch.Tensor:
    """Full scenes [N, 12] to pictures [N, 3, 64, 64] in 0..1.

    jitter: [N, 2 objects, 3] with x, y in pixels and a relative radius; `None` draws without any.
    """
    assert rows.shape == (len(rows), len(COLUMN)), rows.shape
    t = torch.from_numpy(np.ascontiguousarray(rows))
    n = len(t)
    shift = torch.zeros(n, 2, 3) if jitter is None else torch.from_numpy(jitter).float()
    assert shift.shape == (n, 2, 3), shift.shape
    axis = torch.arange(SIDE, dtype=torch.float32) + 0.5
    y, x = (g.expand(n, SIDE, SIDE) for g in torch.meshgrid(axis, axis, indexing="ij"))

    ground = t[:, COLUMN["background"]]
    base = RGB[ground][:, :, None, None]  # [N, 3, 1, 1]
    tone = torch.where(_DARK[ground][:, None, None, None], base + (1 - base) * 0.38, base * 0.72)
    picture = _mix(base.expand(n, 3, SIDE, SIDE), tone, _pattern(t[:, COLUMN["pattern"]], x, y))

    style = t[:, COLUMN["style"], None, None]
    where = centers(t)
    for k, prefix in enumerate(("", "second_")):
        there = (t[:, COLUMN[prefix + "shape"]] >= 0).float()[:, None, None]
        shape = t[:, COLUMN[prefix + "shape"]]
        color = RGB[t[:, COLUMN[prefix + "color"]].clamp(min=0)][:, :, None, None]
        radius = torch.tensor(RADII)[t[:, COLUMN[prefix + "size"]].clamp(min=0)] * (1 + shift[:, k, 2])
        r = radius[:, None, None]
        px = (x - (where[:, k, 0] + shift[:, k, 0])[:, None, None]) / r
        py = (y - (where[:, k, 1] + shift[:, k, 1])[:, None, None]) / r
        d = torch.empty(n, SIDE, SIDE)
        for s, name in enumerate(SHAPES):
            chosen = (shape == s).nonzero()[:, 0]
            if len(chosen):
                d[chosen] = distance(name, px[chosen], py[chosen])
        d = torch.where(there > 0, d * r, 99.0)  # pixels

        glow = torch.exp(-(d.clamp(min=0) / 3.0)) * 0.75 * (style == STYLES.index("glowing"))
        picture = _mix(picture, color, glow * there)
        # Light comes from the upper left: the colour is mixed with white there, and with black on the other side.
        light = ((px + py) * 0.42).clamp(-0.6, 0.6)[:, None] * (style == STYLES.index("shaded"))[:, None]
        fill = torch.where(light < 0, color + (1 - color) * -light, color * (1 - light))
        alpha = torch.where(style == STYLES.index("outline"), _cover((d + 1.4).abs() - 1.4), _cover(d))
        picture = _mix(picture, fill, alpha * there)
    return picture


def random_jitter(rng: np.random.Generator, n: int) -> np.ndarray:
    """Jitter [n, 2, 3] of about a pixel and a twentieth of the radius: no two pictures of a scene are the same."""
    return rng.uniform(-1, 1, (n, 2, 3)) * np.array([1.2, 1.2, 0.05])
