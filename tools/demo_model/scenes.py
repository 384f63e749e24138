"""Scenes: what a prompt can describe, as a dataclass, and as rows of small integers for batches.

A scene has one or two objects, a layout, a background and a style. An attribute that is left open is `None`
(-1 in a row); a drawing chooses it at random. Pairs are kept in canonical order (the first object is the left or
the upper one), so that "a star left of a ring" and "a ring right of a star" are one scene.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "medium", "large")
COUNTS = ("single", "pair")
PLACES = (
    "top left corner", "top", "top right corner",
    "left side", "center", "right side",
    "bottom left corner", "bottom", "bottom right corner",
)  # fmt: skip
RELATIONS = ("left of", "above")  # canonical; "right of" and "below" swap the objects
PATTERNS = ("plain", "dotted", "striped", "checkered")
STYLES = ("flat", "outline", "shaded", "glowing")

HELD_OUT_SHARE = 10  # one full scene in ten is never trained on


@dataclass(frozen=True)
class Scene:
    """What a prompt describes; `None` is open. `second_*` only for pairs, `place` only for singles."""

    count: str = "single"
    place: str | None = None
    relation: str | None = None
    shape: str | None = None
    color: str | None = None
    size: str | None = None
    second_shape: str | None = None
    second_color: str | None = None
    second_size: str | None = None
    background: str | None = None
    pattern: str | None = None
    style: str | None = None

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(values)}")
        foreign = SINGLE_ONLY if self.count == "pair" else PAIR_ONLY
        for name in foreign:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} has no meaning in a {self.count} scene")

    def row(self) -> np.ndarray:
        """The scene as integers, in the order of ATTRIBUTES; -1 is open."""
        values = ((ATTRIBUTES[f.name], getattr(self, f.name)) for f in fields(self))
        return np.array([-1 if v is None else names.index(v) for names, v in values], dtype=np.int64)

    @staticmethod
    def from_row(row: np.ndarray) -> Scene:
        """The inverse of `row`."""
        return Scene(**{n: None if v < 0 else ATTRIBUTES[n][v] for n, v in zip(ATTRIBUTES, row, strict=True)})

    def vary(self, **changes: str | None) -> Scene:
        """The scene with some attributes replaced."""
        return replace(self, **changes)


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "count": COUNTS,
    "place": PLACES,
    "relation": RELATIONS,
    "shape": SHAPES,
    "color": COLORS,
    "size": SIZES,
    "second_shape": SHAPES,
    "second_color": COLORS,
    "second_size": SIZES,
    "background": COLORS,
    "pattern": PATTERNS,
    "style": STYLES,
}
PAIR_ONLY = ("relation", "second_shape", "second_color", "second_size")
SINGLE_ONLY = ("place",)
COLUMN = {name: i for i, name in enumerate(ATTRIBUTES)}
N_VALUES = np.array([len(values) for values in ATTRIBUTES.values()])
_PAIR_COLUMNS = [COLUMN[name] for name in PAIR_ONLY]
_SINGLE_COLUMNS = [COLUMN[name] for name in SINGLE_ONLY]


def clean(rows: np.ndarray) -> np.ndarray:
    """Sets to -1 what has no meaning for the row's count. rows: [N, 12], changed in place and returned."""
    assert rows.shape == (len(rows), len(ATTRIBUTES)), rows.shape
    pair = rows[:, COLUMN["count"]] == 1
    rows[np.ix_(pair, _SINGLE_COLUMNS)] = -1
    rows[np.ix_(~pair, _PAIR_COLUMNS)] = -1
    return rows


def visible(rows: np.ndarray) -> np.ndarray:
    """True where no object has the background's colour. [N, 12] -> [N]."""
    first, second = rows[:, COLUMN["color"]], rows[:, COLUMN["second_color"]]
    ground = rows[:, COLUMN["background"]]
    return (first != ground) & (second != ground)


def held_out(rows: np.ndarray) -> np.ndarray:
    """The fixed tenth of all full scenes that training never uses, by a hash of the combination. [N, 12] -> [N]."""
    key = np.zeros(len(rows), dtype=np.uint64)
    # Size and place are left out of the hash: a held-out combination is held out in every size and place.
    for name in ATTRIBUTES:
        if name not in ("size", "second_size", "place"):
            key = key * np.uint64(11) + (rows[:, COLUMN[name]] + 1).astype(np.uint64)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's mixing
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key ^= key >> np.uint64(31)
    return key % np.uint64(HELD_OUT_SHARE) == 0


def sample(rng: np.random.Generator, n: int, *, fixed: np.ndarray | None = None, split: str = "train") -> np.ndarray:
    """`n` random full scenes as rows [n, 12]; `fixed` [n, 12] keeps every value of it that is not -1.

    `split` is "train", "held-out" or "all".
    """
    rows = np.empty((n, len(ATTRIBUTES)), dtype=np.int64)
    todo = np.arange(n)
    for _ in range(200):  # rejection: visible scenes of the wanted split
        fresh = np.floor(rng.random((len(todo), len(ATTRIBUTES))) * N_VALUES).astype(np.int64)
        # Pairs are harder to learn than singles, so they are two thirds of the scenes.
        fresh[:, 0] = rng.random(len(todo)) < 0.67
        if fixed is not None:
            fresh = np.where(fixed[todo] >= 0, fixed[todo], fresh)
        rows[todo] = clean(fresh)
        good = visible(rows[todo])
        if split != "all":
            good &= held_out(rows[todo]) == (split == "held-out")
        todo = todo[~good]
        if len(todo) == 0:
            return rows
    raise ValueError(f"no {split} scene fits {len(todo)} of the {n} wanted, e.g. {rows[todo[0]].tolist()}")
