"""Writes the built-in example prompts: families, each like the expansion of a template, and some single prompts.

    python tools/demo_prompts.py > python/hsd/demo/prompts.txt

A family varies one or two attributes of a scene and keeps the others. Large prompt lists look like this, and sharing
relies on it. Takes a second; the seed is fixed, so the same command writes the same bytes.
"""

from __future__ import annotations

import numpy as np

from demo_model.language import describe, parse
from demo_model.scenes import ATTRIBUTES, Scene, sample, visible

SEED = 7
SINGLES = 21
# By family: a scene in words, and the values of the attributes that vary.
FAMILIES: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    (
        "a large yellow star in the center on a plain red background, in flat style",
        {"background": ("red", "green", "blue", "purple", "pink", "white", "black")},
    ),
    (
        "a large red circle in the center on a dotted white background, in flat style",
        {"shape": ATTRIBUTES["shape"]},
    ),
    (
        "a small pink heart in the center on a plain blue background, in shaded style",
        {"place": ATTRIBUTES["place"]},
    ),
    (
        "an orange ring in the center on a plain black background",
        {"size": ATTRIBUTES["size"], "style": ATTRIBUTES["style"]},
    ),
    (
        "a medium red star left of a medium blue square on a plain green background, in flat style",
        {"second_color": ("orange", "yellow", "blue", "purple", "pink", "white", "black")},
    ),
    (
        "a large white circle above a large black circle on a striped purple background, in shaded style",
        {"second_shape": ATTRIBUTES["shape"]},
    ),
    (
        "a large red cross left of a large yellow diamond on a plain blue background, in flat style",
        {"color": ("red", "white", "black"), "pattern": ATTRIBUTES["pattern"]},
    ),
    (
        "a large green triangle left of a small red circle on a plain white background",
        {"relation": ATTRIBUTES["relation"], "style": ATTRIBUTES["style"]},
    ),
    (
        "a large red square in the center on a checkered white background, in flat style",
        {"color": ("red", "yellow", "blue", "black"), "background": ("white", "green", "pink", "orange")},
    ),
    (
        "a blue diamond at the bottom on a yellow background, in outline style",
        {"size": ATTRIBUTES["size"], "pattern": ATTRIBUTES["pattern"]},
    ),
)


def expand(prompt: str, varied: dict[str, tuple[str, ...]]) -> list[Scene]:
    """All combinations of the varied attributes on the scene that `prompt` describes, in order."""
    scenes = [parse(prompt)]
    for name, values in varied.items():
        scenes = [scene.vary(**{name: value}) for scene in scenes for value in values]
    return scenes


def prompts() -> list[str]:
    """The whole list: the families one after the other, then the single prompts."""
    rng = np.random.default_rng(SEED)
    families = [scene for base, varied in FAMILIES for scene in expand(base, varied)]
    singles = [Scene.from_row(row) for row in sample(rng, SINGLES)]
    texts = [describe(scene) for scene in families] + [describe(scene, rng) for scene in singles]
    assert visible(np.stack([scene.row() for scene in families])).all()
    assert len(set(texts)) == len(texts), "two prompts are the same"
    return texts


if __name__ == "__main__":
    print("\n".join(prompts()))
