"""What a template can become, counted without making it: each node knows how many texts it has, and its i-th."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

COMPARED = 100_000
"""Texts of one choice up to which equal ones are found and left out."""


@dataclass
class Chosen:
    """What was chosen while one prompt was made."""

    blanks: dict[int, str] = field(default_factory=dict)
    """Text by the number of the blank."""
    once: dict[int, str] = field(default_factory=dict)
    """Text of the variables that are chosen once for a prompt."""


class Node(Protocol):
    """A part of a template with its possible texts, in a fixed order."""

    @property
    def count(self) -> int:
        """Number of texts."""

    def at(self, index: int, chosen: Chosen) -> str:
        """The text with this index, 0 <= index < count."""

    def draw(self, random: Random, chosen: Chosen) -> str:
        """A text by chance, by the weights of its options."""


def below(random: Random, n: int) -> int:
    """An integer in 0..n-1. Made of ``random.random()``, the one method that Python keeps the same in all versions."""
    bits = n.bit_length()
    while True:
        pieces = [int(random.random() * 2**32) for _ in range(-(-bits // 32))]
        value = sum(piece << (32 * i) for i, piece in enumerate(pieces)) >> (-bits % 32)
        if value < n:
            return value


def squashed(text: str) -> str:
    """``text`` with one space wherever it has white space, as dynamicprompts' ``ignore_whitespace`` makes it."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Fixed:
    """Words."""

    text: str
    count: int = 1

    def at(self, index: int, chosen: Chosen) -> str:
        """The words."""
        return self.text

    def draw(self, random: Random, chosen: Chosen) -> str:
        """The words."""
        return self.text


@dataclass(frozen=True)
class Once:
    """The text of a variable that was chosen before."""

    slot: int
    count: int = 1

    def at(self, index: int, chosen: Chosen) -> str:
        """The variable's text."""
        return chosen.once.get(self.slot, f"\0{self.slot}")  # not chosen yet where equal options are looked for

    def draw(self, random: Random, chosen: Chosen) -> str:
        """The variable's text."""
        return self.at(0, chosen)


class Joined:
    """Parts one after the other; the last one changes fastest."""

    def __init__(self, parts: Sequence[Node]) -> None:
        self.parts = parts
        self.count = math.prod(part.count for part in parts)

    def at(self, index: int, chosen: Chosen) -> str:
        """The texts of the parts, together."""
        return "".join(texts_at(self.parts, index, chosen))

    def draw(self, random: Random, chosen: Chosen) -> str:
        """A text of each part."""
        return "".join([part.draw(random, chosen) for part in self.parts])


def texts_at(parts: Sequence[Node], index: int, chosen: Chosen) -> list[str]:
    """The texts of several nodes, where ``index`` counts all their combinations."""
    digits = []
    for part in reversed(parts):
        index, digit = divmod(index, part.count)
        digits.append(digit)
    return [part.at(digit, chosen) for part, digit in zip(parts, reversed(digits), strict=True)]


@dataclass
class Blank:
    """A choice that is written down."""

    number: int
    node: Node

    @property
    def count(self) -> int:
        """Number of texts."""
        return self.node.count

    def at(self, index: int, chosen: Chosen) -> str:
        """The text, written down."""
        return self._noted(self.node.at(index, chosen), chosen)

    def draw(self, random: Random, chosen: Chosen) -> str:
        """A text, written down."""
        return self._noted(self.node.draw(random, chosen), chosen)

    def _noted(self, text: str, chosen: Chosen) -> str:
        chosen.blanks[self.number] = squashed(text)
        return text


class Pick:
    """Some of several options: ``least`` to ``most`` of them, each at most once, in every order.

    The order is that of dynamicprompts: few before many, then by the first option, and so on. Two options that have the
    same text are not both picked, and equal results are one, as far as they can be compared (``COMPARED``). ``a`` and
    ``a`` with a space are two texts: something may follow.
    """

    def __init__(self, options: Sequence[tuple[Node, float]], least: int, most: int, separator: str) -> None:
        nodes: dict[object, tuple[Node, float]] = {}
        for node, weight in options:
            if node.count:
                nodes.setdefault(node.text if isinstance(node, Fixed) else id(node), (node, weight))
        self.options = [node for node, _ in nodes.values()]
        self.weights = [weight for _, weight in nodes.values()]
        self.separator = separator
        self.least, self.most = min(least, len(options)), min(most, len(options))
        self._counts = [node.count for node in self.options]
        self._flat = all(count == 1 for count in self._counts)
        self._ends = list(itertools.accumulate(self._counts))
        self._sizes = [self._arrangements(self._counts, k) for k in range(self.least, self.most + 1)]
        self._kept: list[int] | None = None
        self.count = sum(self._sizes)
        if self.count <= COMPARED and not all(isinstance(node, Fixed) for node in self.options):
            self._kept = self._different()
            self.count = len(self._kept)

    def at(self, index: int, chosen: Chosen) -> str:
        """The options that ``index`` picks, with the separator between them."""
        return self._together(self._texts(index if self._kept is None else self._kept[index], chosen))

    def draw(self, random: Random, chosen: Chosen) -> str:
        """Options by their weights, as many as chance says; again where two of them have the same text."""
        for _ in range(_TRIES):
            left, taken = list(range(len(self.options))), []
            for _ in range(self.least + below(random, self.most - self.least + 1)):
                ends = list(itertools.accumulate(self.weights[i] for i in left))
                if not ends or ends[-1] <= 0:
                    break
                taken.append(left.pop(bisect_right(ends, random.random() * ends[-1], hi=len(ends) - 1)))
            tried = Chosen(once=chosen.once)  # what is not kept is not to be written down
            texts = [self.options[i].draw(random, tried) for i in taken]
            if len(taken) >= self.least and len(set(texts)) == len(texts):
                chosen.blanks.update(tried.blanks)
                return self._together(texts)
        return self.at(below(random, self.count), chosen)

    def _different(self) -> list[int]:
        seen: set[tuple[str, ...]] = set()
        kept = []
        for index in range(self.count):
            texts = tuple(self._texts(index, Chosen()))
            if len(set(texts)) == len(texts) and texts not in seen:
                seen.add(texts)
                kept.append(index)
        return kept

    def _together(self, texts: list[str]) -> str:
        if len(texts) == 1:
            return texts[0]
        return self.separator.join(texts).removeprefix(self.separator).removesuffix(self.separator)

    def _texts(self, index: int, chosen: Chosen) -> list[str]:
        k = self.least
        for size in self._sizes:
            if index < size:
                break
            index -= size
            k += 1
        if k == 1:
            option = bisect_right(self._ends, index)
            inside = index - (self._ends[option] - self._counts[option])
            return [self.options[option].at(inside, chosen)]
        left, picked, before = list(range(len(self.options))), [], 1
        for rest in range(k - 1, -1, -1):
            i, index = self._first(left, rest, before, index)
            before *= self._counts[left[i]]
            picked.append(self.options[left.pop(i)])
        return texts_at(picked, index, chosen)

    def _first(self, left: list[int], rest: int, before: int, index: int) -> tuple[int, int]:
        """Which of ``left`` comes first, and the index among the arrangements that begin with it."""
        if self._flat:
            return divmod(index, math.perm(len(left) - 1, rest))
        counts = [self._counts[i] for i in left]
        symmetric = _symmetric(counts, rest)
        for i, count in enumerate(counts):
            size = before * count * math.factorial(rest) * _without(symmetric, count)
            if index < size:
                return i, index
            index -= size
        raise AssertionError("an index is below the count")

    def _arrangements(self, counts: list[int], k: int) -> int:
        """How many texts ``k`` of the options have in every order."""
        if self._flat:
            return math.perm(len(counts), k)
        return math.factorial(k) * _symmetric(counts, k)[k]


_TRIES = 100


def _symmetric(counts: list[int], most: int) -> list[int]:
    """The elementary symmetric polynomials of ``counts`` of degree 0 to ``most``: sums over products of so many."""
    sums = [1] + [0] * most
    for count in counts:
        for degree in range(most, 0, -1):
            sums[degree] += count * sums[degree - 1]
    return sums


def _without(symmetric: list[int], count: int) -> int:
    """The polynomial of the highest degree, of all counts but one."""
    value = 1
    for degree in range(1, len(symmetric)):
        value = symmetric[degree] - count * value
    return value
