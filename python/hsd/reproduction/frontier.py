"""The frontier of score against evaluations an image: fewer steps of one's own, the paper's sharing, and its mends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..names import Metric, ScheduleName
from . import plots
from .experiment import ALL, SET, Needed, by_set, evaluations, for_all_sets, mean_difference, score
from .lab import GeneratedSet, Lab, Skipped, Variant
from .results import Cell, Column, Estimate, Figure, Kind, Result, Table
from .samplers import NoSuchSampler, SamplerName, describe, sampler_named


class Choice(NamedTuple):
    """How sharing spends a number of evaluations an image: steps x (1 - saved)."""

    steps: int
    """``num_inference_steps``."""
    saved: float
    """The share of the evaluations that is saved: the ``budget`` of :func:`hsd.compile`."""
    catch_up: float
    """gamma, for the ways that catch up."""
    schedule: ScheduleName = "linear"
    """For the ways with all changes; the others keep the paper's."""


CHOICES: dict[int, Choice] = {
    2: Choice(4, 0.5, 2.0),
    3: Choice(5, 0.4, 1.0),
    4: Choice(6, 1 / 3, 1.0),
    5: Choice(8, 0.375, 1.0),
    7: Choice(14, 0.5, 2.0),
    10: Choice(20, 0.5, 2.0),
    20: Choice(40, 0.5, 2.0),
}
"""By evaluations an image. Source: the prototype of catch-up and of the calibrated metric, on the demo's four sets with
their first seeds (2, 3, 4, 7 and 20 measured, 5 and 10 between them). For 3 and 4, half as many steps more with a third
saved were better than twice as many with half saved. To be chosen on draws of ``tools/demo_draw.py``, and never on the
prompts that are reported."""

DETERMINISTIC: dict[int, Choice] = CHOICES
"""The same for the deterministic sampler."""


class Way(NamedTuple):
    """How prompts share: what is changed in comparison with the paper."""

    metric: Metric
    catches_up: bool
    schedule: bool
    """Whether the schedule is that of the choice, and not the paper's."""


OWN = "own steps"
WAYS: dict[str, Way] = {
    "the paper's sharing": Way("cosine", False, False),
    "catch-up alone": Way("cosine", True, False),
    "calibrated metric alone": Way("calibrated", False, False),
    "both": Way("calibrated", True, True),
    "both, direct metric": Way("direct", True, True),
}

SHORT = 10
"""A number of own steps that good samplers need; all ways are compared with it, and with the steps of the study."""


class Point(NamedTuple):
    """Images of one way at one number of evaluations."""

    budget: int
    way: str
    choice: Choice | None
    """None for own steps."""
    variant: Variant


def check_evaluations(values: Iterable[int]) -> tuple[int, ...]:
    """The values in ascending order, or a ``ValueError`` that lists those that there are settings for."""
    found = tuple(sorted(set(values)))
    for value in found:
        if value not in CHOICES:
            raise ValueError(f"evaluations is {value}: frontier has settings for {', '.join(map(str, CHOICES))}")
    if not found:
        raise ValueError(f"no evaluations: give some of {', '.join(map(str, CHOICES))}")
    return found


def samplers(lab: Lab) -> dict[str, SamplerName | None]:
    """The model's own sampler, and the deterministic one of its noise schedule if it has one; by the name in tables."""
    own = lab.model.scheduler()
    found: dict[str, SamplerName | None] = {describe(own): None}
    try:
        other = sampler_named("deterministic", own)
    except NoSuchSampler:
        return found
    return found if other is own else {**found, f"{describe(other)}, deterministic": "deterministic"}


def budgets(lab: Lab) -> list[int]:
    """The evaluations an image: those whose sharing takes no more steps than the study's standard diffusion."""
    wanted = list(CHOICES) if lab.evaluations is None else list(lab.evaluations)
    found = [budget for budget in wanted if CHOICES[budget].steps <= lab.steps]
    if not found:
        least = min(CHOICES[budget].steps for budget in wanted)
        raise Skipped(f"the study has {lab.steps} steps: this experiment needs at least {least}")
    return found


def own_steps(lab: Lab, steps: int, sampler: SamplerName | None) -> Variant:
    """Standard diffusion with this number of steps."""
    return Variant(sampler=sampler) if steps == lab.steps else Variant(steps=steps, sampler=sampler)


def points(lab: Lab, sampler: SamplerName | None) -> list[Point]:
    """All ways that the model allows at all numbers of evaluations."""
    choices = DETERMINISTIC if sampler == "deterministic" else CHOICES
    out = []
    for budget in budgets(lab):
        out.append(Point(budget, OWN, None, own_steps(lab, budget, sampler)))
        choice = choices[budget]
        for name, way in WAYS.items():
            if not lab.measures(way.metric):
                continue
            variant = Variant(
                budget=choice.saved,
                steps=choice.steps,
                schedule=choice.schedule if way.schedule else "linear",
                sampler=sampler,
                catch_up=choice.catch_up if way.catches_up else 0.0,
                metric=way.metric,
            )
            out.append(Point(budget, name, choice, variant))
    return out


def bases(lab: Lab, sampler: SamplerName | None) -> dict[int, Variant]:
    """Standard diffusion that every way is compared with, by its number of steps."""
    return {steps: own_steps(lab, steps, sampler) for steps in sorted({min(SHORT, lab.steps), lab.steps})}


def frontier_needs(lab: Lab) -> Needed:
    """Every way at every number of evaluations, and standard diffusion."""
    variants = [
        variant
        for sampler in samplers(lab).values()
        for variant in [*bases(lab, sampler).values(), *(point.variant for point in points(lab, sampler))]
    ]
    return for_all_sets(lab, dict.fromkeys(variants))


def frontier(lab: Lab) -> list[Result]:
    """Tables over all sets and by set, and the frontier as a figure."""
    rows: list[tuple[Cell, ...]] = []
    by_name: dict[str, list[tuple[Cell, ...]]] = {key: [] for key in _BY_SET}
    lines: dict[str, dict[str, dict[str, list[tuple[float, Estimate]]]]] = {}
    names: list[str] = []
    for sampler, kind in samplers(lab).items():
        standard = {steps: by_set(lab, variant) for steps, variant in bases(lab, kind).items()}
        own: dict[str, list[GeneratedSet]] = {}
        for point in points(lab, kind):
            sets = by_set(lab, point.variant)
            own = sets if point.way == OWN else own  # own steps come first at each number of evaluations
            names = list(sets)
            scores = {name: score(lab, some) for name, some in sets.items()}
            over_own = {name: _difference(lab, some, own[name]) for name, some in sets.items()}
            over_standard = {name: _difference(lab, some, standard[lab.steps][name]) for name, some in sets.items()}
            for name, some in sets.items():
                line = lines.setdefault(sampler, {}).setdefault(name, {}).setdefault(point.way, [])
                line.append((evaluations(some), scores[name]))
            label = (sampler, point.budget, point.way)
            for key, cells in zip(_BY_SET, (scores, over_own, over_standard), strict=True):
                by_name[key].append((*label, *cells.values()))
            top = names[-1]
            others = [_difference(lab, sets[top], base[top]) for base in standard.values()]
            clusters = lab.clusters(sets[top])
            rows.append(
                (*label, *_settings(point, sets[top]), scores[top], over_own[top], *others, clusters.count, clusters.by)
            )
    spent = (Column("sampler", "text"), Column("evaluations", "count"), Column("way", "text"))
    columns = (
        *spent,
        Column("steps", "count"),
        Column("saved", "share"),
        Column("gamma"),
        Column("schedule", "text"),
        Column("evaluations an image"),
        Column("score"),
        Column("more than own steps", "signed"),
        *(Column(f"more than {steps} own steps", "signed") for steps in bases(lab, None)),
        Column("clusters", "count"),
        Column("of", "text"),
    )
    over = "all sets" if ALL in names else f"{SET.title} {names[-1]}"
    tables = [Table("frontier", f"Ways to spend evaluations, {over}", columns, tuple(rows))]
    for key, (title, what) in _BY_SET.items():
        kinds = tuple(Column(name, what) for name in names)
        tables.append(Table(key, title.format(steps=lab.steps), (*spent, *kinds), tuple(by_name[key])))
    first, rest = _drawn(lab, lines, names[-1:]), _drawn(lab, lines, [name for name in names if name != ALL])
    caption = "Score against evaluations of the denoiser an image, one line a way"
    return [
        Figure("frontier", f"{caption}; {over}.", first),
        tables[0],
        *([Figure("frontier-sets", f"{caption}; by set.", rest)] if ALL in names else []),
        *tables[1:],
    ]


_BY_SET: dict[str, tuple[str, Kind]] = {
    "frontier-scores": ("Scores by set", "number"),
    "frontier-own-steps": ("More than own steps at equal evaluations, by set", "signed"),
    "frontier-standard": ("More than {steps} own steps, by set", "signed"),
}
"""Titles and formats of the tables with a column for each set."""


def _difference(lab: Lab, ours: Sequence[GeneratedSet], theirs: Sequence[GeneratedSet]) -> Estimate:
    """The mean difference; empty for the same images."""
    return Estimate(None) if list(ours) == list(theirs) else mean_difference(lab, ours, theirs)


def _settings(point: Point, generated: Sequence[GeneratedSet]) -> tuple[Cell, ...]:
    """Steps, share saved, gamma, schedule, and the evaluations an image that this gave."""
    spent = evaluations(generated)
    if point.choice is None:
        return point.budget, 0.0, None, None, spent
    standard = sum(one.plan.standard_node_steps for one in generated)
    share = 1.0 - sum(one.plan.node_steps for one in generated) / standard
    return point.choice.steps, share, point.variant.catch_up, str(point.variant.schedule), spent


def _drawn(
    lab: Lab, lines: dict[str, dict[str, dict[str, list[tuple[float, Estimate]]]]], names: Sequence[str]
) -> bytes:
    """A plot of a row for each sampler and a column for each of these sets."""
    drawing = plots.figure(1 + 4.2 * len(names), 3.6 * len(lines))
    for row, (sampler, sets) in enumerate(lines.items()):
        for column, name in enumerate(names):
            axes = drawing.add_subplot(len(lines), len(names), row * len(names) + column + 1)
            for index, (way, found) in enumerate(sets[name].items()):
                plots.line(axes, way, found, index, dashed=way == OWN)
            axes.set_xscale("log")
            ticks = budgets(lab)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_title(f"{name}, {sampler}", fontsize="medium")
            axes.set_xlabel("evaluations an image")
            axes.set_ylabel(f"score ({lab.scorer.name})")
            axes.grid(alpha=0.3)
    drawing.axes[0].legend(fontsize="small")
    return plots.png(drawing)
