"""Templates of prompts, from text to their parts: ``A {red|blue} __animal__``. The grammar is that of dynamicprompts.

What of it is not taken here, and what it would take for something else, is refused with its column. Nothing is passed
on as text that may have been meant as a part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Union

from ..errors import PromptError


@dataclass(frozen=True)
class Text:
    """Words as they are."""

    text: str


@dataclass(frozen=True)
class Series:
    """Parts one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Option:
    """One of several, with how often it is drawn."""

    value: Part
    weight: float = 1.0


@dataclass(frozen=True)
class Variants:
    """``{a|b}``: one of the options; ``{2$$ and $$a|b|c}``: two of them, in every order, with a text between."""

    options: tuple[Option, ...]
    least: int = 1
    most: int = 1
    separator: str = ","
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Wildcard:
    """``__name__``: one line of the files with this name; with variables for their lines: ``__name(x=a)__``."""

    name: str
    variables: tuple[tuple[str, Part], ...] = ()
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Use:
    """``${name}``, or ``${name:default}``."""

    name: str
    default: Part | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Assign:
    """``${name=value}``: chosen anew at each use; ``${name=!value}``: once for a prompt."""

    name: str
    value: Part
    once: bool = False
    keep: bool = False
    """``${name?=value}``: only where it has no value yet."""
    place: str = field(default="", compare=False)


Part = Union[Text, Series, Variants, Wildcard, Use, Assign]  # noqa: UP007 - evaluated before the classes are there

_SPECIAL = re.compile(r"[\\{}|$%#/_]")
_ESCAPED = frozenset("\\{}|$%#/_~!@")
_SPACE = re.compile(r"\s*")
_RANGE = re.compile(
    r"\s*(?:(?P<low>\d+)-(?P<high>\d+)|-(?P<only_high>\d+)|(?P<only_low>\d+)-|(?P<exact>\d+))\$\$"
    r"(?:(?P<separator>[^${}]+)\$\$)?"
)
_WEIGHT = re.compile(r"\s*(?P<weight>[+-]?(?:\d+\.\d*|\.\d+|\d+))\s*::")
_VARIABLE = re.compile(r"\$\{\s*(?P<name>[A-Za-z_-][\w-]*)\s*(?P<sign>\?=!?|=!?|:|\})\s*")
_WILDCARD = re.compile(r"__(?P<name>(?:(?!__)[^{}$#()|\n])+)(?:\((?P<variables>[^)]+)\)\s*)?__")
_SAMPLERS = "~!@"


def parse(text: str, where: str = "the template") -> Part:
    """The parts of a template.

    Parameters
    ----------
    where
        Where the text stands, for messages.

    Raises
    ------
    PromptError
        If it is no template, or has a part that is not taken here. Names the column.
    """
    return _Reader(text, where).whole()


class _Reader:
    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.at = text, where, 0

    def whole(self) -> Part:
        part = self.series(0)
        if self.at < len(self.text):
            raise self.error(self.at, "a } closes nothing: write \\} for the character")
        return part

    def place(self, at: int) -> str:
        line = self.text.count("\n", 0, at)
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        in_line = f"line {line + 1}, " if "\n" in self.text else ""
        return f"{self.where}, {in_line}column {column}"

    def error(self, at: int, what: str) -> PromptError:
        return PromptError(f"{self.place(at)}: {what}")

    def series(self, depth: int) -> Part:
        """Parts up to the end, or to the ``|`` or ``}`` that ends an option."""
        parts: list[Part] = []
        words: list[str] = []

        def end_words() -> None:
            if "".join(words):
                parts.append(Text("".join(words)))
            words.clear()

        while self.at < len(self.text):
            found = _SPECIAL.search(self.text, self.at)
            stop = len(self.text) if found is None else found.start()
            words.append(self.text[self.at : stop])
            self.at = stop
            if found is None or (depth and found[0] in "|}") or found[0] == "}":
                break
            part = self.special(found[0], depth)
            if isinstance(part, str):
                words.append(part)
            else:
                end_words()
                parts.append(part)
        end_words()
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def special(self, character: str, depth: int) -> Part | str:
        """The part that begins here, or the characters that are only text."""
        text, at = self.text, self.at
        two = text[at : at + 2]
        if character == "\\" and two[1:] in _ESCAPED and len(two) == 2:
            self.at += 2
            return two[1]
        if character == "{":
            return self.variants(depth)
        if two == "${":
            return self.variable(depth)
        if two == "__":
            return self.wildcard()
        if two == "$$":
            raise self.error(at, "$$ stands only after a range, such as {2$$a|b|c}: write \\$\\$ for the characters")
        if two == "%{":
            raise self.error(at, "wrapping, %{...}, is not taken: write the text on both sides; \\%{ is the character")
        if two == "/*":
            raise self.error(at, "comments in /* */ are not taken: remove it, or write \\/ for the character")
        if character == "#" or (two == "//" and self.begins_line()):
            return self.comment(character)
        self.at += 1
        return character

    def begins_line(self) -> bool:
        return not self.text[self.text.rfind("\n", 0, self.at) + 1 : self.at].strip()

    def comment(self, character: str) -> str:
        at = self.at
        around = self.text[at - 1 : at].isspace() and (self.text[at + 1 : at + 2].isspace() or at + 1 == len(self.text))
        if not self.begins_line() and not around:
            raise self.error(
                at, f"{character} begins a comment: write \\{character} for the character, or a space on both sides"
            )
        end = self.text.find("\n", at)
        self.at = len(self.text) if end < 0 else end
        return ""

    def refuse_sampler(self, at: int) -> None:
        if self.text[at : at + 1] in _SAMPLERS and at < len(self.text):
            sign = self.text[at]
            raise self.error(
                at,
                f"{sign} names a sampler here, which is not taken: all combinations are made, or --sample (sample=) "
                f"draws some; write \\{sign} for the character",
            )

    def variants(self, depth: int) -> Variants:
        begin = self.at
        if depth >= _DEEPEST:
            raise self.error(begin, f"it is nested deeper than {_DEEPEST} levels")
        self.at = self.after_space(begin + 1)
        self.refuse_sampler(self.at)
        least = most = 1
        separator, bounds = ",", _RANGE.match(self.text, self.at)
        if bounds is not None:
            exact, low, high = bounds["exact"], bounds["low"] or bounds["only_low"], bounds["high"]
            least = _bounded(exact or low or "1")
            most = _bounded(exact or high or bounds["only_high"] or str(_MANY))
            least, most = min(least, most), max(least, most)
            separator = bounds["separator"] or ","
            self.at = bounds.end()
        options: list[Option] = []
        while True:
            options.append(self.option(depth))
            if self.at >= len(self.text):
                raise self.error(begin, "this { is not closed")
            self.at += 1
            if self.text[self.at - 1] == "}":
                break
        if len(options) == 1 and options[0].value == Series(()):
            raise self.error(begin, "there is nothing between { and }: write \\{\\} for the characters")
        return Variants(tuple(options), least, most, separator, self.place(begin))

    def option(self, depth: int) -> Option:
        weight, given = 1.0, _WEIGHT.match(self.text, self.at)
        if given is not None:
            weight = float(given["weight"])
            if not 0 <= weight < float("inf"):
                raise self.error(self.at, f"the weight is {given['weight']}: it has to be 0 or more")
            self.at = given.end()  # a space after the weight is one of the option, as in dynamicprompts
        else:
            self.at = self.after_space(self.at)
        return Option(self.series(depth + 1), weight)

    def variable(self, depth: int) -> Use | Assign:
        begin, found = self.at, _VARIABLE.match(self.text, self.at)
        if found is None:
            raise self.error(
                begin,
                "this is no variable: ${name} uses one, ${name=value} gives it a value; write \\${ for the characters",
            )
        self.at, name, sign = found.end(), found["name"], found["sign"]
        if sign == "}":
            self.at = self.text.index("}", begin) + 1
            return Use(name, None, self.place(begin))
        if sign != ":" and depth:
            raise self.error(begin, f"${{{name}=...}} stands inside of {{...}}: give variables their values before")
        value = self.series(depth + 1)
        end = self.text[self.at : self.at + 1]
        if end != "}":
            told = "a | needs its own braces: ${name={a|b}}" if end == "|" else "this ${ is not closed"
            raise self.error(self.at if end == "|" else begin, told)
        self.at += 1
        if sign == ":":
            return Use(name, value, self.place(begin))
        return Assign(name, value, sign.endswith("!"), sign.startswith("?"), self.place(begin))

    def wildcard(self) -> Wildcard:
        begin, found = self.at, _WILDCARD.match(self.text, self.at)
        self.refuse_sampler(begin + 2)
        if found is None or not found["name"].strip():
            inside = re.match(r"__[^_\s|]*[{$]", self.text[begin:])
            raise self.error(
                begin,
                "names of wildcards that are made of other parts are not taken: write {__a__|__b__}"
                if inside
                else "__ begins a wildcard such as __animal__, and it has no end: write \\_\\_ for the characters",
            )
        self.at, place = found.end(), self.place(begin)
        variables = []
        for pair in (found["variables"] or "").split(",") if found["variables"] else ():
            name, equals, value = pair.partition("=")
            if not equals or not name.strip():
                raise self.error(begin, f"{pair.strip()!r}: write __name(variable=value)__")
            variables.append((name.strip(), parse(value.strip(), place)))
        return Wildcard(found["name"].strip(), tuple(variables), place)

    def after_space(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return at if found is None else found.end()


def _bounded(digits: str) -> int:
    """A number of options. No template has more than ``_MANY``, and Python takes only some thousand digits."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < len(str(_MANY)) else _MANY


_MANY = 10**9

_DEEPEST = 50
"""Levels of nested braces."""
