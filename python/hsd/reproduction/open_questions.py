"""What the paper leaves open, measured like its own tables: each answer is a plot and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from ..names import Linkage, ScheduleName
from . import plots
from .experiment import Wanted, everything, everywhere, images, standing, standing_columns
from .lab import Lab, PromptSet, Skipped, Way
from .paper import HALF
from .results import Column, Estimate, Figure, Result, Table
from .samplers import SAMPLERS, NoSuchSampler, SamplerName, describe, sampler_named

STANDARD = "standard"
LINKAGES = ("ward", "centroid", "average")
GROUPS = (2, 8, 32)
TRUNKS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the steps that a group takes together."""


# -- ways beside each other


def beside(lab: Lab, name: str, title: str, ways: Mapping[str, Way], base: str) -> list[Result]:
    """Several ways at equal compute: how much better each scores than ``base``, and how diverse its images are."""
    made = {label: everything(lab, way) for label, way in {STANDARD: Way(), **ways}.items()}
    found = {label: standing(lab, ours, made[base]) for label, ours in made.items()}
    others = {label: one for label, one in found.items() if label != base}
    figure = plots.figure(9, 1.2 + 0.45 * len(found))
    left, right = figure.subplots(1, 2, sharey=True)
    plots.bars(left, {label: one.more for label, one in others.items()}, baseline=0.0)
    left.set_xlabel(f"score, more than {base}")
    plots.bars(right, {label: one.cosine for label, one in others.items()})
    right.set_xlabel("mean cosine (lower is more diverse)")
    columns = (Column("way", "text"), Column("images", "count"), *standing_columns(base))
    rows = tuple((label, images(made[label]), *one) for label, one in found.items())
    return [Figure(name, title, plots.png(figure)), Table(name, title, columns, rows)]


def against_standard(axes: Any, label: str) -> None:
    """What the plots of scores against a standard have in common."""
    axes.set_xlabel(label)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


# -- ward, centroid, average


def linkage_ways() -> dict[str, Way]:
    """At half of the evaluations."""
    assert set(LINKAGES) <= set(get_args(Linkage))
    return {name: Way(budget=0.5, linkage=name) for name in LINKAGES}


def linkage_wants(lab: Lab) -> Wanted:
    """And standard diffusion beside them."""
    return everywhere(lab, [Way(), *linkage_ways().values()])


def linkage(lab: Lab) -> list[Result]:
    """``ward`` against ``centroid`` against ``average``."""
    return beside(lab, "linkage", "Linkages, all saving half of the evaluations", linkage_ways(), "ward")


# -- phi


def schedule_ways() -> dict[str, Way]:
    """All schedules that have a name, at half of the evaluations."""
    return {name: Way(budget=0.5, schedule=name) for name in get_args(ScheduleName)}


def schedule_wants(lab: Lab) -> Wanted:
    """And standard diffusion beside them."""
    return everywhere(lab, [Way(), *schedule_ways().values()])


def schedule(lab: Lab) -> list[Result]:
    """Linear against other phi."""
    title = "Schedules of the threshold, all saving half of the evaluations"
    return beside(lab, "schedule", title, schedule_ways(), "linear")


# -- first noise


def noise_ways(lab: Lab) -> dict[str, Way]:
    """At half of the evaluations; with a deterministic sampler too, for which the first latent is all the noise."""
    ways = {"independent": HALF, "shared": Way(budget=0.5, noise="shared")}
    if (name := _sampler(lab, "deterministic")) is not None:
        ways["independent, deterministic"] = Way(budget=0.5, sampler=name)
        ways["shared, deterministic"] = Way(budget=0.5, sampler=name, noise="shared")
    return ways


def noise_wants(lab: Lab) -> Wanted:
    """And standard diffusion beside them."""
    return everywhere(lab, [Way(), *noise_ways(lab).values()])


def noise(lab: Lab) -> list[Result]:
    """A first latent for each root cluster, or one for all."""
    return beside(lab, "noise", "First noise, all saving half of the evaluations", noise_ways(lab), "independent")


# -- prior


PRIOR_TAUS = (1.0, 10.0)
"""Times the model's own tau."""


def prior_ways(lab: Lab) -> dict[str, Way]:
    """The decoder saves half in all of them."""
    taus = [factor * lab.tau for factor in PRIOR_TAUS]
    return {"prior alone": HALF, **{f"prior tau {tau:g}": Way(budget=0.5, prior_tau=tau) for tau in taus}}


def prior_wants(lab: Lab) -> Wanted:
    """For models that have a prior."""
    if lab.model.prior() is None or not hasattr(lab.model, "share_prior"):
        raise Skipped(f"{lab.model.name} has no prior to share")
    return everywhere(lab, [Way(), *prior_ways(lab).values()])


def prior(lab: Lab) -> list[Result]:
    """The prior's steps shared by a tree of texts, or each prompt's own."""
    ways = prior_ways(lab)
    figure, table = beside(lab, "prior", "The prior's steps shared or not; the decoder saves half", ways, "prior alone")
    assert isinstance(table, Table)
    counts = [len(prompt_set.prompts) for prompt_set in lab.sets]
    share = {
        label: float(np.average([lab.prior_saved(s, way) for s in lab.sets], weights=counts))
        for label, way in {STANDARD: Way(), **ways}.items()
    }
    columns = (table.columns[0], Column("prior saved", "share"), *table.columns[1:])
    rows = tuple((row[0], share[str(row[0])], *row[1:]) for row in table.rows)
    return [figure, dataclasses.replace(table, columns=columns, rows=rows)]


# -- samplers

SAMPLER_BUDGETS = (0.25, 0.5)


def _sampler(lab: Lab, name: SamplerName) -> SamplerName | None:
    """The name, or None where it is the model's own sampler or there is none of the kind."""
    own = lab.model.scheduler()
    try:
        return None if sampler_named(name, own) is own else name
    except NoSuchSampler:
        return None


def sampler_ways(lab: Lab) -> dict[str, dict[str, Way]]:
    """By sampler: standard diffusion, and sharing."""
    own = lab.model.scheduler()
    out = {}
    for name in SAMPLERS:
        try:
            scheduler = sampler_named(name, own)
        except NoSuchSampler as error:
            raise Skipped(str(error)) from None
        # The model's own needs no other name: its images are there already.
        sampler = None if scheduler is own else name
        ways = {f"saving {b:.0%}": Way(budget=b, sampler=sampler) for b in SAMPLER_BUDGETS}
        out[f"{name} ({describe(scheduler)})"] = {STANDARD: Way(sampler=sampler), **ways}
    return out


def sampler_wants(lab: Lab) -> Wanted:
    """Both samplers, each with its own standard images."""
    return everywhere(lab, [way for ways in sampler_ways(lab).values() for way in ways.values()])


def sampler(lab: Lab) -> list[Result]:
    """What sharing costs with fresh noise at every step, and with none."""
    rows = []
    figure = plots.figure(6, 3.6)
    axes = figure.subplots()
    for index, (name, ways) in enumerate(sampler_ways(lab).items()):
        standard = everything(lab, ways[STANDARD])
        points = []
        for label, way in ways.items():
            found = standing(lab, everything(lab, way), standard)
            points.append((found.evaluations, Estimate(0.0) if label == STANDARD else found.more))
            rows.append((name, label, *found))
        plots.line(axes, name, points, index)
    against_standard(axes, "evaluations an image")
    axes.set_ylabel("score, more than the same sampler's standard")
    columns = (Column("sampler", "text"), Column("way", "text"), *standing_columns("its standard"))
    title = "What sharing costs with a deterministic and with a stochastic sampler"
    return [Figure("sampler", title, plots.png(figure)), Table("sampler", title, columns, tuple(rows))]


# -- where the trunk should split


def trunk_set(lab: Lab) -> PromptSet:
    """The last set: templates, where they are named as the paper's are."""
    return lab.sets[-1]


def trunk_ways(lab: Lab) -> dict[int, dict[float, Way]]:
    """By size of the group and share of the steps that it takes together."""
    n, k = len(trunk_set(lab).prompts), trunk_steps(lab)
    sizes = [size for size in GROUPS if size <= n]
    if not sizes:
        raise Skipped(f"{trunk_set(lab).name} has {n} prompts: a group has at least {min(GROUPS)}")
    return {size: {share: Way(group=size, schedule=_trunk(k, share)) for share in TRUNKS} for size in sizes}


def trunk_steps(lab: Lab) -> int:
    """K, the evaluations from noise to image."""
    return lab.plan(trunk_set(lab), Way()).n_steps


def _trunk(steps: int, share: float) -> tuple[float, ...]:
    together = min(steps - 1, max(0, round(share * steps)))
    return (1.0,) * together + (0.0,) * (steps - together)


def trunk_wants(lab: Lab) -> Wanted:
    """Groups of neighbours of one set, that part at one step."""
    ways = [way for shares in trunk_ways(lab).values() for way in shares.values()]
    return [(trunk_set(lab), way) for way in dict.fromkeys([Way(), *ways])]


def trunk(lab: Lab) -> list[Result]:
    """How long groups of so many prompts may go together before they part, all at once."""
    prompt_set = trunk_set(lab)
    standard = [lab.made(prompt_set, Way())]
    rows = []
    figure = plots.figure(6, 3.6)
    axes = figure.subplots()
    axes.axhline(0.0, color="0.6", linewidth=1)
    for index, (size, shares) in enumerate(trunk_ways(lab).items()):
        points = []
        for share, way in shares.items():
            found = standing(lab, [lab.made(prompt_set, way)], standard)
            points.append((np.count_nonzero(way.schedule) / trunk_steps(lab), found.more))
            rows.append((size, share, *found))
        plots.line(axes, f"groups of {size}", points, index)
    against_standard(axes, "share of the steps taken together")
    axes.set_ylabel("score, more than standard")
    columns = (Column("prompts a group", "count"), Column("steps together", "share"), *standing_columns(STANDARD))
    title = f"Groups of neighbours of {prompt_set.name} that part at one step"
    return [Figure("trunk", title, plots.png(figure)), Table("trunk", title, columns, tuple(rows))]
