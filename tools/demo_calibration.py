"""Writes the prompts with which the bundled model is calibrated: random scenes of its world.

    python tools/demo_calibration.py > python/hsd/demo/calibration.txt

Half of the prompts say everything. The others leave some attributes open, as many as chance will have it. None of them
is a held-out scene, a built-in example or a prompt of `hsd reproduce`: what is reported is measured on other prompts.
Takes a second; the seed is fixed, so the same command writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demo_model.language import describe
from demo_model.scenes import COLUMN, Scene, clean, sample

HSD = Path(__file__).resolve().parents[1] / "python" / "hsd"
SEED, SIZE = 5, 512
MOST_BYTES = 40_000


def taken() -> set[str]:
    """Prompts that are used elsewhere."""
    files = [HSD / "demo" / "prompts.txt", *(HSD / "reproduction" / "prompts").glob("*.txt")]
    return {line for file in files for line in file.read_text(encoding="utf-8").splitlines()}


def prompts() -> list[str]:
    """The whole list."""
    rng = np.random.default_rng(SEED)
    rows = sample(rng, 2 * SIZE, split="train")
    unsaid = rng.random(rows.shape) < rng.random((len(rows), 1))
    partly = rng.random(len(rows)) < 0.5
    unsaid[:, COLUMN["count"]] = False
    rows = clean(np.where(partly[:, None] & unsaid, -1, rows))
    texts = dict.fromkeys(describe(Scene.from_row(row)) for row in rows)
    free = [text for text in texts if text not in taken()]
    return free[:SIZE]


if __name__ == "__main__":
    text = "\n".join(prompts())
    assert len(text) < MOST_BYTES, len(text)
    print(text)
