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
    2: Choice(4, 1 / 2, 1.0, "quadratic"),
    3: Choice(5, 2 / 5, 1.0, "quadratic"),
    4: Choice(7, 3 / 7, 1.0, "quadratic"),
    5: Choice(8, 3 / 8, 1.0, "quadratic"),
    7: Choice(9, 2 / 9, 2.0, "quadratic"),
    10: Choice(16, 3 / 8, 2.0, "quadratic"),
    20: Choice(25, 1 / 5, 1.0, "quadratic"),
}
"""By evaluations an image. Chosen among 27 pairs of steps and share saved, four values of gamma and four schedules, on
256 other prompts (objects with a size, scenes, styles and templates, drawn anew) with three other seeds each: the
highest score with the calibrated metric, the simpler one of two that differ by less than .005."""

DETERMINISTIC: dict[int, Choice] = {
    **CHOICES,
    3: Choice(6, 1 / 2, 1.0, "quadratic"),
    4: Choice(7, 3 / 7, 2.0, "quadratic"),
    5: Choice(8, 3 / 8, 2.0, "quadratic"),
    7: Choice(10, 3 / 10, 2.0, "quadratic"),
    10: Choice(12, 1 / 6, 1.0, "quadratic"),
}
"""The same for the deterministic sampler, on the same prompts and seeds."""

HALVES: dict[int, Choice] = {14: Choice(14, 1 / 2, 2.0, "quadratic"), 40: Choice(40, 1 / 2, 2.0, "quadratic")}
"""Half of the evaluations of a number of steps: compared with that number of own steps."""


class Way(NamedTuple):
    """How prompts share: what is changed in comparison with the paper."""

    metric: Metric
    catches_up: bool
    schedule: bool
    """Whether the schedule is that of the choice, and not the paper's."""


OWN = "own steps"
PAPER, BOTH, DIRECT = "the paper's sharing", "both", "both, direct metric"
WAYS: dict[str, Way] = {
    PAPER: Way("cosine", False, False),
    "catch-up alone": Way("cosine", True, False),
    "calibrated metric alone": Way("calibrated", False, False),
    BOTH: Way("calibrated", True, True),
    DIRECT: Way("direct", True, True),
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
            if lab.measures(way.metric):
                out.append(Point(budget, name, choice, _shared(choice, way, sampler)))
    return out


def _shared(choice: Choice, way: Way, sampler: SamplerName | None) -> Variant:
    return Variant(
        budget=choice.saved,
        steps=choice.steps,
        schedule=choice.schedule if way.schedule else "linear",
        sampler=sampler,
        catch_up=choice.catch_up if way.catches_up else 0.0,
        metric=way.metric,
    )


def halves(lab: Lab, sampler: SamplerName | None) -> list[tuple[int, str, Variant, Variant]]:
    """Steps, way, half of their evaluations shared, and all of them of one's own."""
    return [
        (steps, name, _shared(choice, way, sampler), own_steps(lab, steps, sampler))
        for steps, choice in HALVES.items()
        if steps <= lab.steps
        for name, way in WAYS.items()
        if lab.measures(way.metric) and name in (PAPER, BOTH, DIRECT)
    ]


def bases(lab: Lab, sampler: SamplerName | None) -> dict[int, Variant]:
    """Standard diffusion that every way is compared with, by its number of steps."""
    return {steps: own_steps(lab, steps, sampler) for steps in sorted({min(SHORT, lab.steps), lab.steps})}


def frontier_needs(lab: Lab) -> Needed:
    """Every way at every number of evaluations, and standard diffusion."""
    variants = [
        variant
        for sampler in samplers(lab).values()
        for variant in [
            *bases(lab, sampler).values(),
            *(point.variant for point in points(lab, sampler)),
            *(variant for _, _, *pair in halves(lab, sampler) for variant in pair),
        ]
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
            scores = {name: score(lab, some, within_sets=True) for name, some in sets.items()}
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
    half: list[tuple[Cell, ...]] = [
        (
            sampler,
            steps,
            way,
            *(_difference(lab, some, by_set(lab, own)[name]) for name, some in by_set(lab, ours).items()),
        )
        for sampler, kind in samplers(lab).items()
        for steps, way, ours, own in halves(lab, kind)
    ]
    over = "all sets" if ALL in names else f"{SET.title} {names[-1]}"
    tables = [Table("frontier", f"Ways to spend evaluations, {over}", columns, tuple(rows))]
    for key, (title, what) in _BY_SET.items():
        kinds = tuple(Column(name, what) for name in names)
        tables.append(Table(key, title.format(steps=lab.steps), (*spent, *kinds), tuple(by_name[key])))
    if half:
        columns = (Column("sampler", "text"), Column("steps", "count"), *spent[2:])
        kinds = tuple(Column(name, "signed") for name in names)
        title = "Half of the evaluations saved: more than the same number of own steps, by set"
        tables.append(Table("frontier-half", title, (*columns, *kinds), tuple(half)))
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
    return Estimate(None) if list(ours) == list(theirs) else mean_difference(lab, ours, theirs, within_sets=True)


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
