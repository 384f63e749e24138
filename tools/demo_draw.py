"""Draws fresh prompt sets of the four kinds of `hsd reproduce`, to choose settings on some and to report others.

    python tools/demo_draw.py chosen-on --seed 1
    python tools/demo_draw.py reported --seed 2 --without chosen-on
    hsd reproduce study --prompts reported --only frontier

A draw has no prompt of the bundled sets, nor of the folders after `--without`. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from demo_model.language import describe, parse
from demo_model.scenes import ATTRIBUTES, COLORS, COLUMN, PATTERNS, SHAPES, SIZES, STYLES, Scene, sample, visible
from demo_sets import FOLDER

KINDS = ("objects", "scenes", "styles", "templates")


def objects(rng: np.random.Generator, n: int, known: set[Scene]) -> list[str]:
    """One object is named, the rest is open. The bundled set has all shapes in eight colours, so ours have a size too.

    Every combination of shape and colour occurs once before any occurs again, as in the bundled set.
    """
    found: list[Scene] = []
    while len(found) < n:
        cells = list(product(SHAPES, COLORS))
        before = len(found)
        for at in rng.permutation(len(cells)):
            shape, color = cells[at]
            sizes = [Scene("single", shape=shape, color=color, size=size) for size in SIZES]
            left = [scene for scene in sizes if scene not in known]
            if left:
                found.append(left[int(rng.integers(len(left)))])
                known.add(found[-1])
        if len(found) == before:
            raise SystemExit(f"objects: only {len(found)} of {n} prompts are left: draw less, or leave out fewer")
    return [describe(scene) for scene in sorted(found[:n], key=lambda scene: tuple(scene.row()))]


def scenes(rng: np.random.Generator, n: int, known: set[Scene]) -> list[str]:
    """Any scene in any wording; none was trained on."""
    found: list[Scene] = []
    while len(found) < n:
        scene = Scene.from_row(sample(rng, 1, split="held-out")[0])
        if scene not in known:
            found.append(scene)
            known.add(scene)
    return [describe(scene, rng) for scene in found]


def styles(rng: np.random.Generator, n: int, known: set[Scene]) -> list[str]:
    """A few scenes, each in all styles and patterns; half of the scenes have one object, half have two."""
    looks = list(product(STYLES, PATTERNS))
    texts: list[str] = []
    for number in range(-(-n // len(looks))):
        base = _base(rng, "single" if number % 2 == 0 else "pair", known)
        drawn = [base.vary(style=style, pattern=pattern) for style, pattern in looks]
        known.update(drawn)
        texts += [describe(scene) for scene in drawn]
    return texts[:n]


def templates(rng: np.random.Generator, n: int, known: set[Scene]) -> list[str]:
    """One sentence with three blanks, filled in all combinations of all styles, and of equally many subjects and
    backgrounds; if there are more combinations than prompts, a random part of them.
    """
    side = int(np.ceil(np.sqrt(n / len(STYLES))))
    while True:
        found = _filled(rng, side, known)
        if len(found) >= n:
            return [found[i] for i in np.sort(rng.permutation(len(found))[:n])]
        side += 1  # some combinations were left out: an object had the colour of the background


def _filled(rng: np.random.Generator, side: int, known: set[Scene]) -> list[str]:
    """The sentence with all combinations of the styles, `side` subjects and `side` backgrounds that can be seen."""
    grounds = list(zip(_cycled(rng, len(PATTERNS), side), _cycled(rng, len(COLORS), side), strict=True))
    used = {COLORS[color] for _, color in grounds}
    subjects: list[Scene] = []
    while len(subjects) < side:
        scene = _base(rng, "single" if len(subjects) % 2 == 0 else "pair", known).vary(place=None, background=None)
        # Nothing should have the colour of a background. With many backgrounds, there are too few other colours.
        if scene not in subjects and (len(used) > 5 or not {scene.color, scene.second_color} & used):
            subjects.append(scene)
    texts = []
    for style, subject, (pattern, color) in product(STYLES, subjects, grounds):
        ground = COLORS[color]
        scene = subject.vary(style=style, pattern=PATTERNS[pattern], background=ground)
        if ground not in (scene.color, scene.second_color) and scene not in known:
            text = f"a {style} drawing of {describe(subject)} on a {PATTERNS[pattern]} {ground} background"
            texts.append(text.replace("a outline", "an outline"))
    return texts


def _base(rng: np.random.Generator, count: str, known: set[Scene]) -> Scene:
    """A random scene of one or two objects with all attributes but style and pattern, none of whose looks is known."""
    fixed = np.full((1, len(ATTRIBUTES)), -1, dtype=np.int64)
    fixed[0, COLUMN["count"]] = ATTRIBUTES["count"].index(count)
    taken = {scene.vary(style=None, pattern=None) for scene in known}
    while True:
        scene = Scene.from_row(sample(rng, 1, fixed=fixed, split="all")[0]).vary(style=None, pattern=None)
        if scene not in taken:
            return scene


def _cycled(rng: np.random.Generator, values: int, n: int) -> list[int]:
    """`n` indices of `values`, each used once before any is used again."""
    return [int(i) for _ in range(-(-n // values)) for i in rng.permutation(values)][:n]


def draw(seed: int, n: int, without: list[Path]) -> dict[str, list[str]]:
    """`n` prompts of each kind, by kind; none describes a scene of the bundled sets or of the folders `without`."""
    files = [path for folder in (FOLDER, *without) for path in sorted(folder.glob("*.txt"))]
    known = {parse(line) for path in files for line in path.read_text().splitlines() if line.strip()}
    made: dict[str, list[str]] = {}
    for number, kind in enumerate(KINDS):
        texts = globals()[kind](np.random.default_rng([seed, number]), n, set(known))
        drawn = [parse(text) for text in texts]
        assert len(set(texts)) == len(texts) == n, kind
        assert not known & set(drawn), kind
        rows = np.stack([scene.row() for scene in drawn])
        assert visible(rows[rows[:, COLUMN["background"]] >= 0]).all(), kind
        made[kind] = texts
    return made


def main() -> None:
    """Writes one file a kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the four files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", type=int, default=64, help="prompts a set")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="folders whose prompts are left out")
    args = parser.parse_args()
    made = draw(args.seed, args.size, args.without)
    args.out.mkdir(parents=True, exist_ok=True)
    for kind, texts in made.items():
        (args.out / f"{kind}.txt").write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
