"""Templates to prompts: all combinations in a fixed order, or some that are drawn; what was chosen becomes columns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from warnings import warn

from ..errors import Notice, PromptError
from .characters import is_blank, unusable
from .files import PromptFile
from .known_settings import KNOWN
from .template_grammar import Assign, Part, Series, Text, Use, Variants, Wildcard, parse
from .template_nodes import Blank, Chosen, Fixed, Joined, Node, Once, Pick, below, squashed, texts_at
from .wildcards import Wildcards

MOST = 100_000
"""Combinations that are made without being asked for by their number."""


_Made = tuple[str, str, dict[str, str]]
"""The place of a prompt, the prompt, and what was chosen in it."""


class Templates:
    """One or several templates, counted but not expanded."""

    def __init__(
        self,
        templates: str | Sequence[str],
        wildcards: str | os.PathLike[str] | None = None,
        places: Sequence[str] = (),
    ) -> None:
        """Read the templates.

        Parameters
        ----------
        wildcards
            The folder of wildcard files.
        places
            Where each template stands, for messages.

        Raises
        ------
        PromptError
            For what is no template, with its column; for a wildcard that the folder does not have.
        """
        texts = [templates] if isinstance(templates, str) else list(templates)
        if not texts:
            raise PromptError("there is no template")
        if not places:
            places = ["the template"] if len(texts) == 1 else [f"template {i + 1}" for i in range(len(texts))]
        folder = Wildcards(wildcards)
        self.templates = [_Template(text, where, folder) for text, where in zip(texts, places, strict=True)]
        self.counts = [template.count for template in self.templates]
        self.count = sum(self.counts)

    def expand(self, sample: int | None = None, seed: int = 0) -> PromptFile:
        """All combinations, or ``sample`` different ones that ``seed`` decides: the same on every machine.

        Fewer than ``sample`` if there are not so many, or no more are found in some 100,000 tries; a
        :class:`hsd.Notice` says so. Options of weight 0 are not drawn.

        Raises
        ------
        PromptError
            If a combination is no prompt.
        """
        if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
            raise ValueError(f"sample is {sample!r}: it has to be a whole number, 1 or more")
        templates = self.templates if sample is None else [template.drawable() for template in self.templates]
        if sample is None or sample >= sum(template.count for template in templates):
            made = _all(templates)
        else:
            made = _drawn(templates, sample, Random(seed))
        prompts, places = [], []
        names = list(dict.fromkeys(name for template in self.templates for name in template.names if name))
        columns: dict[str, list[Any]] = {name: [] for name in (["template"] if len(self.templates) > 1 else []) + names}
        for place, prompt, chosen in made:
            wrong = "is blank" if is_blank(prompt) else unusable(prompt)
            if wrong is not None:
                raise PromptError(f"{place} {wrong}")
            prompts.append(prompt)
            places.append(place)
            for name, values in columns.items():
                values.append(chosen.get(name))
        if sample is not None and len(prompts) < min(sample, self.count):
            warn(
                f"{len(prompts):,} different prompts were found, and not {sample:,}: most combinations are alike, or "
                "never drawn",
                Notice,
                stacklevel=3,
            )
        empty: list[dict[str, Any]] = [{} for _ in prompts]
        return PromptFile(prompts, [None] * len(prompts), empty, columns, places, frozenset(columns))


def expand_template(
    template: str | Sequence[str],
    *,
    sample: int | None = None,
    seed: int = 0,
    wildcards: str | os.PathLike[str] | None = None,
) -> PromptFile:
    """The prompts of a template, such as ``"A {red|blue} __animal__"``, with what was chosen for each blank as columns.

    The grammar is that of dynamicprompts: see ``docs/prompts.md``. White space is made one space.

    Parameters
    ----------
    template
        One template, or several.
    sample
        Instead of all combinations: this many different ones, drawn by the weights of the options.
    seed
        Which ones are drawn; the same on every machine.
    wildcards
        The folder of the files for ``__name__``.

    Raises
    ------
    PromptError
        For what is no template, with its column; for an unknown wildcard; if there are more than 100,000 combinations
        and no ``sample`` is given.
    """
    found = Templates(template, wildcards)
    if found.count > MOST and sample is None:
        raise PromptError(
            f"the template has {found.count:,} combinations: give sample=, such as sample=1000, or make it smaller"
        )
    return found.expand(sample, seed)


def _all(templates: Sequence[_Template]) -> Iterator[_Made]:
    for template in templates:
        for index in range(template.count):
            yield f"{template.where}, combination {index + 1}", *template.named(*template.at(index))


def _drawn(templates: Sequence[_Template], number: int, random: Random) -> Iterator[_Made]:
    """Different prompts by chance. Where these get rare, the rest is taken in order from a random place on, as long as
    that is no long search: among 2**30 combinations, a few prompts may be all that there are.
    """
    count = sum(template.count for template in templates)
    seen: set[str] = set()
    tries, most = 0, 20 * number + 1000
    start = below(random, count)
    while len(seen) < number and tries < most + min(count, MOST):
        if tries < most:
            template = templates[below(random, len(templates))]
            prompt, chosen = template.draw(random)
        else:
            template, index = _template_of(templates, (start + tries - most) % count)
            prompt, chosen = template.at(index)
        tries += 1
        if prompt not in seen:
            seen.add(prompt)
            yield f"{template.where}, sample {len(seen)}", *template.named(prompt, chosen)


def _template_of(templates: Sequence[_Template], index: int) -> tuple[_Template, int]:
    for template in templates:
        if index < template.count:
            return template, index
        index -= template.count
    raise AssertionError("an index is below the count")


class _Template:
    """One template: its nodes, and the names of its blanks."""

    def __init__(self, text: str, where: str, wildcards: Wildcards, drawn: bool = False) -> None:
        self.text, self.where, self._wildcards = text, where, wildcards
        build = _Build(wildcards, where, drawn)
        node = build.node(parse(text, where), _Scope())
        # Variables that are chosen once come first, so that every use of them finds its text.
        self._parts = [*build.once, node]
        self._slots = range(len(build.once))
        self.count = Joined(self._parts).count
        if not self.count:
            raise PromptError(f"{where} has no combination: two options of {{2$$...}} have to differ")
        self.names = _unique(build.names)
        self._all_drawn = drawn or not build.never

    def drawable(self) -> _Template:
        """The template without options of weight 0; its blanks have the same names."""
        return self if self._all_drawn else _Template(self.text, self.where, self._wildcards, drawn=True)

    def named(self, prompt: str, chosen: Chosen) -> tuple[str, dict[str, str]]:
        """A prompt, and what was chosen by the names of the columns."""
        named = {name: chosen.blanks[i] for i, name in enumerate(self.names) if name and i in chosen.blanks}
        return prompt, {"template": self.text, **named}

    def at(self, index: int) -> tuple[str, Chosen]:
        """The prompt with this index, and what was chosen in it."""
        chosen = Chosen()
        own = self._parts[-1].count
        for slot, text in zip(self._slots, texts_at(self._parts[:-1], index // own, chosen), strict=True):
            chosen.once[slot] = text
        return squashed(self._parts[-1].at(index % own, chosen)), chosen

    def draw(self, random: Random) -> tuple[str, Chosen]:
        """A prompt by chance, and what was chosen in it."""
        chosen = Chosen()
        for slot in self._slots:
            chosen.once[slot] = self._parts[slot].draw(random, chosen)
        return squashed(self._parts[-1].draw(random, chosen)), chosen


# ------------------------------------------------------------------------------- parts to nodes


@dataclass(frozen=True)
class _Scope:
    """What is known where a part stands."""

    variables: Mapping[str, Assign] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)
    """Variables that are chosen once."""
    open: tuple[str, ...] = ()
    """Wildcards and variables that the part stands in, so that none contains itself."""

    @property
    def own(self) -> bool:
        """Whether the part stands in the template itself: only there, blanks are columns."""
        return not self.open


class _Build:
    def __init__(self, wildcards: Wildcards, where: str, drawn: bool) -> None:
        self.wildcards, self.where, self.drawn = wildcards, where, drawn
        self.never = False
        """Whether an option has the weight 0. It is left out if the template is to be ``drawn`` from."""
        self.names: list[str | None] = []
        self.once: list[Node] = []

    def node(self, part: Part, scope: _Scope) -> Node:
        """The node of a part."""
        if isinstance(part, Text):
            return Fixed(part.text)
        if isinstance(part, Assign):
            return self.node(Series((part,)), scope)
        if isinstance(part, Series):
            scope = self.assigned(part, scope)
            return Joined([self.node(one, scope) for one in part.parts if not isinstance(one, Assign)])
        if isinstance(part, Use):
            return self.use(part, scope)
        if isinstance(part, Wildcard):
            return self.blank(part.name, scope, lambda: self.wildcard(part, scope, 1, 1, ","))
        only = part.options[0].value
        if len(part.options) == 1 and isinstance(only, Wildcard):  # {2$$__color__}: two of its values
            bounds = part.least, part.most, part.separator
            return self.blank(only.name, scope, lambda: self.wildcard(only, scope, *bounds))
        return self.blank(None, scope, lambda: self.variants(part, scope))

    def blank(self, name: str | None, scope: _Scope, make: Callable[[], Node]) -> Node:
        """A choice, whose number is that of its place in the template."""
        if not scope.own:
            return make()
        number = len(self.names)
        self.names.append(name or "choice")
        node = make()
        if name is None and node.count == 1:
            self.names[number] = None
            return node
        return Blank(number, node)

    def variants(self, part: Variants, scope: _Scope) -> Node:
        """One of the options, or several."""
        if not any(option.weight for option in part.options):
            raise PromptError(f"{part.place}: all weights are 0")
        nodes: dict[Part, Node] = {}
        for option in part.options:
            if option.value not in nodes:
                nodes[option.value] = self.node(option.value, scope)
        options = [(nodes[option.value], option.weight) for option in part.options]
        return self.pick(options, part.least, part.most, part.separator, part.place)

    def wildcard(self, part: Wildcard, scope: _Scope, least: int, most: int, separator: str) -> Node:
        """One of the values of a wildcard, or several."""
        inside = self.inside(scope, f"__{part.name}__", part.place)
        given = {name: Assign(name, value) for name, value in part.variables}
        slots = {name: slot for name, slot in scope.slots.items() if name not in given}
        inside = _Scope({**scope.variables, **given}, slots, inside.open)
        values = self.wildcards.values(part.name, part.place)
        nodes = [(self.node(parse(text, where), inside), weight) for text, weight, where in values]
        if not any(weight for _, weight in nodes):
            raise PromptError(f"{part.place}: all weights of __{part.name}__ are 0")
        return self.pick(nodes, least, most, separator, part.place)

    def pick(self, options: list[tuple[Node, float]], least: int, most: int, separator: str, place: str) -> Node:
        """Some of the options."""
        taken = [option for option in options if option[1]]
        self.never |= len(taken) < len(options)
        if not self.drawn:
            return Pick(options, least, most, separator)
        least = min(least, len(options))
        if len(taken) < least:
            raise PromptError(f"{place}: {least} options are to be drawn, and {len(taken)} have a weight above 0")
        return Pick(taken, least, most, separator)

    def use(self, part: Use, scope: _Scope) -> Node:
        """The value of a variable."""
        if part.name in scope.slots:
            return Once(scope.slots[part.name])
        given = scope.variables.get(part.name)
        value = part.default if given is None else given.value
        if value is None:
            known = ", ".join(sorted({*scope.variables, *scope.slots})) or "none"
            name = part.name
            raise PromptError(
                f"{part.place}: ${{{name}}} has no value: write ${{{name}=...}} before it (there are: {known})"
            )
        inside = self.inside(scope, f"${{{part.name}}}", part.place)
        if isinstance(value, Text):
            return Fixed(value.text)
        return self.blank(part.name, scope, lambda: self.node(value, inside))

    def assigned(self, part: Series, scope: _Scope) -> _Scope:
        """The scope with the variables that a series gives values to."""
        variables, slots = dict(scope.variables), dict(scope.slots)
        for one in part.parts:
            if not isinstance(one, Assign) or (one.keep and (one.name in variables or one.name in slots)):
                continue
            if one.once and not isinstance(one.value, Text):
                if not scope.own:
                    raise PromptError(f"{one.place}: ${{{one.name}=!...}} is taken in the template itself only")
                inside = self.inside(_Scope(variables, slots), f"${{{one.name}}}", one.place)
                node = self.blank(one.name, scope, partial(self.node, one.value, inside))
                slots[one.name] = len(self.once)
                variables.pop(one.name, None)
                self.once.append(node)
            else:
                variables[one.name] = one
                slots.pop(one.name, None)
        return _Scope(variables, slots, scope.open)

    @staticmethod
    def inside(scope: _Scope, name: str, place: str) -> _Scope:
        """The scope of what ``name`` stands for."""
        if name in scope.open:
            raise PromptError(f"{place}: {name} contains itself: {' > '.join([*scope.open, name])}")
        return _Scope(scope.variables, scope.slots, (*scope.open, name))


def _unique(names: Sequence[str | None]) -> list[str | None]:
    """Names of columns: ``choice_1``, ``choice_2``; ``animal``, ``animal_2``; none that is a setting or a seed."""
    out: list[str | None] = []
    used: set[str] = set()
    for name in names:
        if name is None:
            out.append(None)
            continue
        plain = re.sub(r"\W+", "_", name).strip("_") or "wildcard"
        if plain in KNOWN or plain in ("prompt", "seed"):
            plain += "_choice"
        number, free = 1, f"{plain}_1" if name == "choice" else plain
        while free in used:
            number += 1
            free = f"{plain}_{number}"
        used.add(free)
        out.append(free)
    return out
