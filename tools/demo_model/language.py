"""The scene language: scenes to prompts, in several paraphrases, and prompts back to scenes.

    [a[n] STYLE drawing of] OBJECT [RELATION OBJECT] [PLACE] [on a[n] PATTERN COLOR background][, in STYLE style]
    OBJECT = a[n] [SIZE] [COLOR] SHAPE

"a small red star left of a blue square on a dotted green background, in outline style"
"""

from __future__ import annotations

import re

import numpy as np

from .scenes import COLORS, PATTERNS, PLACES, SHAPES, SIZES, STYLES, Scene

SYNONYMS = {
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
    "circle": ("disc",),
    "cross": ("plus",),
    "purple": ("violet",),
}
_CANONICAL = {other: word for word, others in SYNONYMS.items() for other in others}
# By relation, and whether the objects are named in canonical order: the phrases.
_RELATIONS = {
    ("left of", True): ("left of", "to the left of"),
    ("left of", False): ("right of", "to the right of"),
    ("above", True): ("above", "on top of"),
    ("above", False): ("below", "under"),
    (None, True): ("and",),
}
_RELATION_OF = {phrase: key for key, phrases in _RELATIONS.items() for phrase in phrases}
_PLACES = {
    "top left corner": ("in the top left corner", "at the top left"),
    "top": ("at the top",),
    "top right corner": ("in the top right corner", "at the top right"),
    "left side": ("on the left side", "on the left"),
    "center": ("in the center", "in the middle"),
    "right side": ("on the right side", "on the right"),
    "bottom left corner": ("in the bottom left corner", "at the bottom left"),
    "bottom": ("at the bottom",),
    "bottom right corner": ("in the bottom right corner", "at the bottom right"),
}
assert tuple(_PLACES) == PLACES
_PLACE_OF = {phrase: place for place, phrases in _PLACES.items() for phrase in phrases}


def _any(words: tuple[str, ...]) -> str:
    every = [w for word in words for w in (word, *SYNONYMS.get(word, ()))]
    return "|".join(sorted(every, key=len, reverse=True))


def _longest_first(phrases: dict) -> str:
    return "|".join(sorted(phrases, key=len, reverse=True))


_OBJECT = rf"an? (?:({_any(SIZES)}) )?(?:({_any(COLORS)}) )?({_any(SHAPES)}|shape)"
_PROMPT = re.compile(
    rf"(?:an? ({_any(STYLES)}) (?:drawing|picture) of )?"
    rf"{_OBJECT}"
    rf"(?: ({_longest_first(_RELATION_OF)}) {_OBJECT})?"
    rf"(?: ({_longest_first(_PLACE_OF)}))?"
    rf"(?: on an? (?:({_any(PATTERNS)}) )?(?:({_any(COLORS)}) )?background)?"
    rf"(?:, in ({_any(STYLES)}) style)?"
)


def parse(prompt: str) -> Scene:
    """The scene a prompt describes."""
    found = _PROMPT.fullmatch(" ".join(prompt.lower().split()))
    if found is None:
        raise ValueError(f"not in the language of scenes: {prompt!r}")
    before, size, color, shape, relation, size2, color2, shape2, place, pattern, ground, after = (
        _CANONICAL.get(word, word) for word in found.groups()
    )
    if before is not None and after is not None:
        raise ValueError(f"the style is named twice: {prompt!r}")
    common = {"background": ground, "pattern": pattern, "style": before or after}
    first = (None if shape == "shape" else shape, color, size)
    if relation is None:
        return Scene("single", place and _PLACE_OF[place], None, *first, **common)
    if place is not None:
        raise ValueError(f"a place is only for scenes of one object: {prompt!r}")
    second = (None if shape2 == "shape" else shape2, color2, size2)
    name, in_order = _RELATION_OF[relation]
    if not in_order:
        first, second = second, first
    return Scene("pair", None, name, *first, *second, **common)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A prompt for the scene: the default wording, or with `rng` a random paraphrase."""

    def pick(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    def word(value: str) -> str:
        # The word itself is as frequent as all of its synonyms together.
        others = SYNONYMS.get(value, ())
        return pick((value,) * max(1, len(others)) + others)

    def thing(size: str | None, color: str | None, shape: str | None) -> str:
        return _article(" ".join(word(w) for w in (size, color, shape or "shape") if w is not None))

    text = thing(scene.size, scene.color, scene.shape)
    if scene.count == "pair":
        second = thing(scene.second_size, scene.second_color, scene.second_shape)
        in_order = scene.relation is None or pick((True, False))
        objects = (text, second) if in_order else (second, text)
        text = f"{objects[0]} {pick(_RELATIONS[scene.relation, in_order])} {objects[1]}"
    if scene.place is not None:
        text += " " + pick(_PLACES[scene.place])
    if scene.background is not None or scene.pattern is not None:
        ground = " ".join(word(w) for w in (scene.pattern, scene.background) if w is not None)
        text += f" on {_article(ground)} background"
    if scene.style is not None:
        style, at_end = scene.style, pick((True, False))
        text = f"{text}, in {style} style" if at_end else f"{_article(style)} {pick(('drawing', 'picture'))} of {text}"
    return text
