"""The pictures of ``tools/draw_tree.py``: of a small plan, and those in the documents."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from hsd.generation.forks import read_forks
from hsd.work.drawing import matplotlib_for, style

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import draw_tree  # noqa: E402

PROMPTS = [
    f"a large {colour} star on a plain {ground} background"
    for ground in ("blue", "green")
    for colour in ("red", "pink")
]


def test_each_image_and_each_fork_is_drawn_in_its_place(tmp_path):
    plan = draw_tree.made(PROMPTS, tmp_path, steps=4, budget=0.3)
    with matplotlib_for("plot").rc_context(style()):
        page = draw_tree.tree_of_images(plan, tmp_path)
        data = draw_tree.webp(page)
    (axes,) = page.axes
    assert len(axes.images) == len(PROMPTS) + len(read_forks(tmp_path)) > len(PROMPTS)
    assert len(axes.patches) == len(plan.segments) + len(axes.images)  # lines, and frames
    with PIL.Image.open(io.BytesIO(data)) as picture:
        drawn = np.asarray(picture.convert("RGB"), float)
    assert drawn.shape == (draw_tree.TOP + 4 * draw_tree.ROW + draw_tree.BOTTOM, draw_tree.WIDTH, 3)
    for place, i in enumerate(plan.tree.leaf_order.tolist()):
        top, left = draw_tree.TOP + draw_tree.ROW * place + 10, draw_tree.RIGHT + 5
        with PIL.Image.open(tmp_path / f"{i:05d}.png") as image:
            mean = np.asarray(image, float).mean((0, 1))
        there = drawn[top : top + 34, left : left + 38].mean((0, 1))
        assert np.abs(there - mean).max() < 25, PROMPTS[i]


def test_the_pictures_in_the_documents_are_small():
    with PIL.Image.open(ROOT / "docs" / "tree.webp") as picture:
        assert picture.width == draw_tree.WIDTH
    for name in ("tree.webp", "threshold.svg"):
        assert (ROOT / "docs" / name).stat().st_size < 150_000
