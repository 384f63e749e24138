"""Draws two pictures of a small prompt set, from images of the bundled model.

    python tools/draw_tree.py            # docs/tree.webp and docs/threshold.svg

``tree.webp`` (README, docs/how-it-works.md): the set as a tree. Steps go from left to right. A line is a cluster, as
wide as it has prompts, and the picture where it splits is the image that its latent was heading for.
``threshold.svg``: the merges of the same prompts, and the thresholds that decide where they split.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image

import hsd
from hsd.generation.forks import FORKS, read_forks
from hsd.planning.charts.colours import QUIET, SHARED, SINGLE, TEXT
from hsd.planning.charts.subject import Subject
from hsd.planning.charts.tree import draw_tree
from hsd.work.drawing import encoded, figure, matplotlib_for, style

DOCS = Path(__file__).resolve().parents[1] / "docs"

TEMPLATE = "a large {red|yellow} {star|heart|ring} on a {plain blue|striped green} background"
STEPS, BUDGET = 20, 0.45

# Pixels.
WIDTH, ROW, TOP, BOTTOM = 1200, 54, 64, 40
"""Of the picture, of one prompt, and above and below the prompts."""
LEFT, RIGHT = 30, 760
"""Where the first step begins and the last one ends."""
IMAGE, FORK = 48, 42
"""Sides of the two kinds of images. The model's own are 64."""


def made(prompts: list[str], folder: Path, steps: int = STEPS, budget: float = BUDGET) -> hsd.Plan:
    """Generate the images into a folder, with the pictures of forks."""
    model = hsd.load("demo")
    plan = hsd.compile(prompts, budget=budget, steps=steps, model=model)
    return hsd.generate(plan, model, folder, keep_forks=True).plan


def tree_of_images(plan: hsd.Plan, folder: Path) -> Any:
    """The figure of the tree of a plan, whose images are in the folder."""
    height = TOP + plan.n_prompts * ROW + BOTTOM
    page = figure(WIDTH / 100, height / 100)
    page.set_layout_engine("none")
    axes = page.add_axes((0, 0, 1, 1))

    def x(step: int) -> float:
        return LEFT + (RIGHT - LEFT) * step / plan.n_steps

    def y(begin: int, end: int) -> float:
        return TOP + ROW * (begin + end) / 2

    _steps(axes, plan, x, height)
    _lines(axes, plan, x, y)
    for fork in read_forks(folder):
        place = x(fork.end_step), y(fork.leaf_begin, fork.leaf_end)
        _image(axes, folder / FORKS / fork.file_name, *place, FORK)
    for place, i in enumerate(plan.tree.leaf_order.tolist()):
        middle = y(place, place + 1)
        _image(axes, folder / f"{i:05d}.png", RIGHT + IMAGE / 2, middle, IMAGE)
        axes.text(RIGHT + IMAGE + 12, middle, plan.prompts[i], va="center", fontsize=9.5)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    return page


def _steps(axes: Any, plan: hsd.Plan, x: Callable[[int], float], height: float) -> None:
    """The title, and lines at some steps with their numbers of clusters."""
    axes.text(
        LEFT,
        24,
        f"{plan.n_prompts} images, {plan.n_steps} steps: {plan.node_steps} evaluations of the denoiser "
        f"instead of {plan.standard_node_steps} ({plan.savings:.0%} saved)",
        va="center",
        fontsize=12,
        weight="bold",
        color=TEXT,
    )
    counts = plan.counts()
    for k in range(0, plan.n_steps, max(1, plan.n_steps // 4)):
        axes.plot([x(k)] * 2, [TOP - 10, height - BOTTOM + 4], color="#dddddd", linewidth=1, zorder=0)
        told = f"step {k}: {counts[k]} clusters"
        axes.text(x(k), height - 18, told, ha="left" if k == 0 else "center", va="center", color=QUIET, fontsize=9)


def _lines(axes: Any, plan: hsd.Plan, x: Callable[[int], float], y: Callable[[int, int], float]) -> None:
    """Each segment: a curve from the end of its parent, then a straight line."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    fields = ["parent", "first_step", "end_step", "leaf_begin", "leaf_end"]
    segments = plan.segments[fields].tolist()
    for parent, first, end, begin, stop in segments:
        middle = y(begin, stop)
        points, codes = [(x(first), middle)], [Curve.MOVETO]
        if parent >= 0:
            start, bend = y(*segments[parent][3:]), x(first) + (x(1) - x(0)) * min(2, end - first)
            half = (x(first) + bend) / 2
            points = [(x(first), start), (half, start), (half, middle), (bend, middle)]
            codes += [Curve.CURVE4] * 3
        points.append((x(end), middle))
        codes.append(Curve.LINETO)
        shared = stop - begin > 1
        width = 2.0 + 1.3 * (stop - begin)
        axes.add_patch(
            PathPatch(Curve(points, codes), fill=False, edgecolor=SHARED if shared else SINGLE, linewidth=width)
        )


def _image(axes: Any, path: Path, x: float, y: float, side: int) -> None:
    """An image, by its middle, with a thin white frame."""
    from matplotlib.patches import Rectangle

    with PIL.Image.open(path) as opened:
        picture = opened.convert("RGB").resize((side, side), PIL.Image.Resampling.LANCZOS)
    # Whole pixels, so that each one is drawn as it is.
    left, top = round(x - side / 2), round(y - side / 2)
    axes.add_patch(Rectangle((left - 2, top - 2), side + 4, side + 4, color="white", zorder=3))
    axes.imshow(picture, extent=(left, left + side, top + side, top), interpolation="nearest", zorder=4, origin="upper")


def webp(page: Any) -> bytes:
    """The file of a figure, one pixel for a pixel."""
    out = io.BytesIO()
    PIL.Image.open(io.BytesIO(encoded(page))).convert("RGB").save(out, "WEBP", quality=88, method=6)
    return out.getvalue()


def thresholds(plan: hsd.Plan) -> Any:
    """The figure of the merges, as `hsd plan --plot` draws them."""
    page = figure(9.0, 4.6)
    draw_tree(page.subplots(), Subject.of(plan))
    return page


def main() -> None:
    """Generate, and write both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder for the pictures")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder, matplotlib_for("plot").rc_context(style()):
        plan = made(hsd.expand_template(TEMPLATE).prompts, Path(folder))
        for name, data in (
            ("tree.webp", webp(tree_of_images(plan, Path(folder)))),
            ("threshold.svg", encoded(thresholds(plan), "svg")),
        ):
            (out / name).write_bytes(data)
            print(f"{out / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
