"""Recognises what a picture shows: a small network for the demo model's pictures, and a parser for its prompts.

The network was trained on drawings only and never saw a generated picture, so it can measure how good a generator is.
See "The evaluator" in ``docs/demo-model.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load
from torch import nn

WEIGHTS = Path(__file__).parent / "evaluator.safetensors"
SIDE = 64

_SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
_SIZES = ("small", "medium", "large")
_PATTERNS = ("plain", "dotted", "striped", "checkered")
_STYLES = ("flat", "outline", "shaded", "glowing")
# Each place and its phrases. Pairs are in canonical order: the first object is the left or the upper one.
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
# Words between two objects: their canonical relation, and whether the second object is named first.
_BETWEEN: dict[str, tuple[str | None, bool]] = {
    "left of": ("left of", False),
    "to the left of": ("left of", False),
    "right of": ("left of", True),
    "to the right of": ("left of", True),
    "above": ("above", False),
    "on top of": ("above", False),
    "below": ("above", True),
    "under": ("above", True),
    "and": (None, False),
}
_SYNONYMS = {
    "tiny": "small",
    "little": "small",
    "big": "large",
    "huge": "large",
    "disc": "circle",
    "plus": "cross",
    "violet": "purple",
}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "count": ("single", "pair"),
    "place": tuple(_PLACES),
    "relation": ("left of", "above"),
    "shape": _SHAPES,
    "color": _COLORS,
    "size": _SIZES,
    "second_shape": _SHAPES,
    "second_color": _COLORS,
    "second_size": _SIZES,
    "background": _COLORS,
    "pattern": _PATTERNS,
    "style": _STYLES,
}
"""The attributes that are recognised, and their values, in the order of the columns of :meth:`DemoEvaluator.marks`."""

_PAIR_ONLY = ("relation", "second_shape", "second_color", "second_size")
_OF_OBJECT = ("shape", "color", "size")
_OF_SCENE = ("count", "place", "relation", "background", "pattern", "style")
_SWAPPED = {name: "second_" + name for name in _OF_OBJECT} | {"second_" + name: name for name in _OF_OBJECT}


def _one_of(values: Iterable[str], name: str) -> str:
    """A named group that matches any of the values or their synonyms."""
    every = {*values}
    every |= {other for other, word in _SYNONYMS.items() if word in every}
    # The longest first, so that "at the top left" does not match as "at the top".
    return f"(?P<{name}>{'|'.join(sorted(every, key=lambda word: (-len(word), word)))})"


def _thing(prefix: str) -> str:
    """The pattern of an object; its groups are named after the attributes."""
    size, color = _one_of(_SIZES, prefix + "size"), _one_of(_COLORS, prefix + "color")
    return rf"an? (?:{size} )?(?:{color} )?{_one_of((*_SHAPES, 'shape'), prefix + 'shape')}"


_PROMPT = re.compile(
    rf"(?:an? {_one_of(_STYLES, 'style')} (?:drawing|picture) of )?{_thing('')}"
    rf"(?: {_one_of((phrase for phrases in _PLACES.values() for phrase in phrases), 'place')}"
    rf"| {_one_of(_BETWEEN, 'between')} {_thing('second_')})?"
    rf"(?: on an? (?:{_one_of(_PATTERNS, 'pattern')} )?(?:{_one_of(_COLORS, 'background')} )?background)?"
    rf"(?:, in {_one_of(_STYLES, 'late_style')} style)?"
)


def named_attributes(prompt: str) -> dict[str, str] | None:
    """The attributes that a prompt of the demo's language names, in canonical order; None outside the language.

    The count is always included: one object or two. "a star right of a ring" gives the same as "a ring left of a star".
    """
    found = _PROMPT.fullmatch(" ".join(prompt.lower().split()))
    if found is None or (found["style"] and found["late_style"]):
        return None
    words = {name: _SYNONYMS.get(word, word) for name, word in found.groupdict().items() if word is not None}
    if "late_style" in words:
        words["style"] = words.pop("late_style")
    words["count"] = "single"
    if "place" in words:
        words["place"] = next(place for place, phrases in _PLACES.items() if words["place"] in phrases)
    if "between" in words:
        words["count"] = "pair"
        relation, swapped = _BETWEEN[words.pop("between")]
        if relation is not None:
            words["relation"] = relation
        if swapped:
            words = {_SWAPPED.get(name, name): word for name, word in words.items()}
    # The word "shape" in "a red shape" names no shape.
    return {name: words[name] for name in ATTRIBUTES if words.get(name, "shape") != "shape"}


class Reader(nn.Module):
    """Five convolutions and three attention maps: for the first object, the second object and the background.

    Both objects are read by the same layers, so that the layers learn from both.
    """

    OBJECT, GROUND = 96, 32
    WIDTH = 2 * OBJECT + GROUND

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, kernel // 2)
            for before, after, kernel, stride in (
                (3, 32, 5, 2),
                (32, 32, 3, 2),
                (32, 48, 3, 1),
                (48, 64, 3, 2),
                (64, 64, 3, 1),
            )
        )
        self.look = nn.Conv2d(64, 3, 1)
        # The learned prior of each attention map; it distinguishes the first object (left, upper) from the second.
        self.prefer = nn.Parameter(torch.zeros(3, 64))
        self.object = nn.Linear(64 + 2, self.OBJECT)
        self.ground = nn.Linear(64 + 2, self.GROUND)
        self.of_object = nn.Linear(self.OBJECT, sum(len(ATTRIBUTES[name]) for name in _OF_OBJECT))
        self.of_scene = nn.Linear(self.WIDTH, sum(len(ATTRIBUTES[name]) for name in _OF_SCENE))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, 64, 64] in -1..1 to features [N, WIDTH]."""
        assert x.shape[1:] == (3, SIDE, SIDE), x.shape
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.pool(x)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The last convolution's output [N, 64, 8, 8] to features [N, WIDTH]: attention means, with mean positions."""
        where = torch.softmax((self.look(x).flatten(2) + self.prefer).float(), dim=-1)  # [N, 3, 64 spots]
        what = where @ x.flatten(2).transpose(1, 2).float()  # [N, 3, 64 channels]
        axis = torch.linspace(-1, 1, 8, dtype=torch.float32, device=x.device)
        spots = torch.stack([axis.repeat(8), axis.repeat_interleave(8)], dim=-1)  # [64 spots, 2 (x, y)]
        seen = torch.cat([what, where @ spots], dim=-1)
        return F.relu(torch.cat([self.object(seen[:, :2]).flatten(1), self.ground(seen[:, 2])], dim=1))

    def answer(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features [N, WIDTH] to logits [N, values] by attribute."""
        first, second, _ = features.split([self.OBJECT, self.OBJECT, self.GROUND], dim=1)
        parts: dict[str, torch.Tensor] = {}
        for prefix, thing in (("", first), ("second_", second)):
            parts |= _split(self.of_object(thing), _OF_OBJECT, prefix)
        parts |= _split(self.of_scene(features), _OF_SCENE)
        return {name: parts[name] for name in ATTRIBUTES}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures to logits by attribute."""
        return self.answer(self.features(x))


def _split(logits: torch.Tensor, names: Sequence[str], prefix: str = "") -> dict[str, torch.Tensor]:
    parts = logits.split([len(ATTRIBUTES[name]) for name in names], dim=1)
    return {prefix + name: part for name, part in zip(names, parts, strict=True)}


class DemoEvaluator:
    """Recognises what a picture of the demo model shows, and whether it is what the prompt describes.

    The network is loaded when it is first needed. A picture's results are bit for bit the same in every batch.
    """

    name = "demo"
    mark_names = tuple(ATTRIBUTES)
    """What the columns of :meth:`marks` are."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    @cached_property
    def version(self) -> str:
        """A digest of the weights: scores of different versions are not comparable."""
        return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]

    @cached_property
    def network(self) -> Reader:
        """The network, in single precision."""
        # On the meta device nothing is initialised, so torch's random state does not change.
        with torch.device("meta"):
            net = Reader()
        weights = {name: value.float() for name, value in load(WEIGHTS.read_bytes()).items()}
        net.load_state_dict(weights, assign=True)
        return net.to(self.device).eval().requires_grad_(False)

    def attributes(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What each picture shows: the relation and the second object only for pairs, the place only for singles."""
        found = {name: part.argmax(dim=1).tolist() for name, part in self._read(images)[1].items()}
        shown = []
        for i in range(len(images)):
            values = {name: ATTRIBUTES[name][of_all[i]] for name, of_all in found.items()}
            for name in ("place",) if values["count"] == "pair" else _PAIR_ONLY:
                del values[name]
            shown.append(values)
        return shown

    def marks(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """1 where a picture shows what its prompt names, 0 where not, nan where the prompt names nothing. [N, 12].

        If the picture of a pair is recognised as a single object, all that the prompt names of the second object counts
        as not shown. If the picture of a single object is recognised as a pair, its place counts as not shown.
        """
        _same_length(images, prompts)
        out = np.full((len(images), len(ATTRIBUTES)), np.nan)
        for row, shown, prompt in zip(out, self.attributes(images), prompts, strict=True):
            wanted = named_attributes(prompt) or {}
            for column, name in enumerate(ATTRIBUTES):
                if name in wanted:
                    row[column] = shown.get(name) == wanted[name]
        return out

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Share of the attributes named in each prompt that its picture shows; nan outside the language. [N]."""
        marks = self.marks(images, prompts)
        known = ~np.isnan(marks)
        named = known.sum(axis=1)
        right = np.where(known, marks, 0.0).sum(axis=1)
        return np.divide(right, named, out=np.full(len(marks), np.nan), where=named > 0)

    def log_likelihood(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Mean log-probability of the attributes named in each prompt; nan outside the language. [N].

        A continuous alternative to `score`: 0 means certainty that the picture shows all of them.
        """
        _same_length(images, prompts)
        logs = {name: part.double().log_softmax(dim=1) for name, part in self._read(images)[1].items()}
        out = np.full(len(images), np.nan)
        for i, prompt in enumerate(prompts):
            wanted = named_attributes(prompt)
            if wanted is not None:
                out[i] = np.mean([float(logs[name][i, ATTRIBUTES[name].index(v)]) for name, v in wanted.items()])
        return out

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features of unit length, for measures of diversity. [N, 224], float32."""
        return F.normalize(self._read(images)[0], dim=1).numpy()

    def _read(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features [N, WIDTH] of the pictures, and logits [N, values] by attribute, on the CPU."""
        features, answers = [torch.zeros(0, Reader.WIDTH)], []
        # One by one: batches of 32 are three times as fast, but then the last bits depend on the other pictures.
        # A millisecond is little compared with the half second in which the demo model generates a picture.
        for image in images:
            x = torch.from_numpy(_pixels(image)).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                found = self.network.features(x)
                answers.append({name: part.cpu() for name, part in self.network.answer(found).items()})
            features.append(found.cpu())
        none = {name: torch.zeros(0, len(values)) for name, values in ATTRIBUTES.items()}
        return torch.cat(features), {name: torch.cat([part[name] for part in (none, *answers)]) for name in none}


def _pixels(image: Image.Image) -> np.ndarray:
    """A picture of any size and mode as [64, 64, 3] bytes, on white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.array(image)  # a copy: torch needs a writable array


def _same_length(images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} pictures for {len(prompts)} prompts; there must be one prompt per picture")
