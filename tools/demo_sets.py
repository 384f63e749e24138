"""Writes the four prompt sets of `hsd reproduce` for the demo model: the paper's sets, in the demo model's language.

    python tools/demo_sets.py          # python/hsd/reproduction/prompts/*.txt, 64 prompts each

The seed is fixed, so the same command writes the same bytes.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from demo_model.language import describe, parse
from demo_model.scenes import ATTRIBUTES, COLORS, COLUMN, SHAPES, Scene, sample, visible

FOLDER = Path(__file__).resolve().parents[1] / "python" / "hsd" / "reproduction" / "prompts"
SEED, SIZE = 11, 64


def styles() -> list[str]:
    """The paper's style variations: a few scenes, each in many styles."""
    bases = (
        "a large red star in the center on a blue background",
        "a large yellow heart at the bottom on a purple background",
        "a medium white circle above a large black square on a green background",
        "a medium pink cross left of a medium orange diamond on a white background",
    )
    return [
        describe(parse(base).vary(pattern=pattern, style=style))
        for base, style, pattern in product(bases, ATTRIBUTES["style"], ATTRIBUTES["pattern"])
    ]


def objects() -> list[str]:
    """The paper's animals: a prompt names one object, and everything else is open."""
    return [describe(Scene("single", shape=shape, color=color)) for shape, color in product(SHAPES, COLORS[:8])]


def scenes() -> list[str]:
    """The paper's GenAI-Bench: any scene in any wording. They have little in common, and none was trained on."""
    rng = np.random.default_rng(SEED)
    return [describe(Scene.from_row(row), rng) for row in sample(rng, SIZE, split="held-out")]


def templates() -> list[str]:
    """The paper's prompt templates: one sentence with three blanks, filled in all combinations."""
    subjects = (
        "a large red heart",
        "a large blue star",
        "a medium yellow circle left of a medium white square",
        "a large white ring above a small purple triangle",
    )
    grounds = ("plain green", "dotted pink", "striped orange", "plain black")
    return [
        f"a{'n' * (style[0] in 'aeiou')} {style} drawing of {subject} on a {ground} background"
        for style, subject, ground in product(ATTRIBUTES["style"], subjects, grounds)
    ]


def main() -> None:
    """Checks the prompts and writes the files."""
    for make in (styles, objects, scenes, templates):
        texts = make()
        assert len(set(texts)) == len(texts) == SIZE, make.__name__
        rows = np.stack([parse(text).row() for text in texts])
        assert visible(rows[rows[:, COLUMN["background"]] >= 0]).all(), make.__name__
        (FOLDER / f"{make.__name__}.txt").write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
