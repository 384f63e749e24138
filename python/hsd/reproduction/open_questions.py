"""Questions that the paper does not answer, measured like its tables: each answer is a plot and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from .._core import SCHEDULES
from ..names import Linkage
from . import plots
from .experiment import Needed, compare, comparison_columns, count_images, for_all_sets, generate_all_sets
from .lab import Lab, PromptSet, Skipped, Variant
from .paper import HALF
from .results import Column, Estimate, Figure, Result, Table
from .samplers import SAMPLERS, NoSuchSampler, SamplerName, describe, sampler_named

STANDARD = "standard"
LINKAGES = ("ward", "centroid", "average")
GROUPS = (2, 8, 32)
TRUNKS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the steps that the prompts of a group share."""


# -- comparing variants


def compare_variants(lab: Lab, name: str, title: str, variants: Mapping[str, Variant], base: str) -> list[Result]:
    """Compare variants at equal compute: how much better each scores than ``base``, and how diverse its images are.

    ``base`` is the label of one of the variants. Standard diffusion is added as a further variant.
    """
    generated = {label: generate_all_sets(lab, variant) for label, variant in {STANDARD: Variant(), **variants}.items()}
    found = {label: compare(lab, ours, generated[base]) for label, ours in generated.items()}
    others = {label: one for label, one in found.items() if label != base}
    figure = plots.figure(9, 1.2 + 0.45 * len(found))
    left, right = figure.subplots(1, 2, sharey=True)
    plots.bars(left, {label: one.difference for label, one in others.items()}, baseline=0.0)
    left.set_xlabel(f"score, more than {base}")
    plots.bars(right, {label: one.cosine for label, one in others.items()})
    right.set_xlabel("mean cosine (lower is more diverse)")
    columns = (Column("variant", "text"), Column("images", "count"), *comparison_columns(base))
    rows = tuple((label, count_images(generated[label]), *one) for label, one in found.items())
    return [Figure(name, title, plots.png(figure)), Table(name, title, columns, rows)]


def label_axes(axes: Any, label: str) -> None:
    """The x label, legend and grid that all plots of scores have."""
    axes.set_xlabel(label)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


# -- ward, centroid, average


def linkage_variants() -> dict[str, Variant]:
    """One per linkage, saving half of the evaluations."""
    assert set(LINKAGES) <= set(get_args(Linkage))
    return {name: Variant(budget=0.5, linkage=name) for name in LINKAGES}


def linkage_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion."""
    return for_all_sets(lab, [Variant(), *linkage_variants().values()])


def linkage(lab: Lab) -> list[Result]:
    """Compare ``ward``, ``centroid`` and ``average``."""
    return compare_variants(lab, "linkage", "Linkages, all saving half of the evaluations", linkage_variants(), "ward")


# -- the schedule phi


def schedule_variants() -> dict[str, Variant]:
    """One per named schedule, saving half of the evaluations."""
    return {name: Variant(budget=0.5, schedule=name) for name in SCHEDULES}


def schedule_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion."""
    return for_all_sets(lab, [Variant(), *schedule_variants().values()])


def schedule(lab: Lab) -> list[Result]:
    """Compare the schedules phi."""
    title = "Schedules of the threshold, all saving half of the evaluations"
    return compare_variants(lab, "schedule", title, schedule_variants(), "linear")


# -- first noise


def noise_variants(lab: Lab) -> dict[str, Variant]:
    """Saving half of the evaluations; also with a deterministic sampler, where all noise is in the first latent."""
    variants = {"independent": HALF, "shared": Variant(budget=0.5, noise="shared")}
    if (name := _sampler(lab, "deterministic")) is not None:
        variants["independent, deterministic"] = Variant(budget=0.5, sampler=name)
        variants["shared, deterministic"] = Variant(budget=0.5, sampler=name, noise="shared")
    return variants


def noise_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion."""
    return for_all_sets(lab, [Variant(), *noise_variants(lab).values()])


def noise(lab: Lab) -> list[Result]:
    """Compare one first latent per root cluster with one for all clusters."""
    return compare_variants(
        lab, "noise", "First noise, all saving half of the evaluations", noise_variants(lab), "independent"
    )


# -- prior


PRIOR_TAUS = (1.0, 10.0)
"""Tau of the prior, as multiples of the model's own tau."""


def prior_variants(lab: Lab) -> dict[str, Variant]:
    """The prior shares nothing, or at one of two taus; the decoder always saves half of its evaluations."""
    taus = [factor * lab.tau for factor in PRIOR_TAUS]
    return {"prior alone": HALF, **{f"prior tau {tau:g}": Variant(budget=0.5, prior_tau=tau) for tau in taus}}


def prior_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion; only for models with a prior."""
    if lab.model.prior() is None or not hasattr(lab.model, "share_prior"):
        raise Skipped(f"{lab.model.name} has no prior to share")
    return for_all_sets(lab, [Variant(), *prior_variants(lab).values()])


def prior(lab: Lab) -> list[Result]:
    """Compare the prior's steps shared by a tree of text embeddings with a separate prior run for each prompt."""
    variants = prior_variants(lab)
    figure, table = compare_variants(
        lab, "prior", "The prior's steps shared or not; the decoder saves half", variants, "prior alone"
    )
    assert isinstance(table, Table)
    counts = [len(prompt_set.prompts) for prompt_set in lab.sets]
    share = {
        label: float(np.average([lab.prior_saved(s, variant) for s in lab.sets], weights=counts))
        for label, variant in {STANDARD: Variant(), **variants}.items()
    }
    columns = (table.columns[0], Column("prior saved", "share"), *table.columns[1:])
    rows = tuple((row[0], share[str(row[0])], *row[1:]) for row in table.rows)
    return [figure, dataclasses.replace(table, columns=columns, rows=rows)]


# -- samplers

SAMPLER_BUDGETS = (0.25, 0.5)


def _sampler(lab: Lab, name: SamplerName) -> SamplerName | None:
    """The name, or None if it means the model's own sampler or the model's scheduler has no such counterpart."""
    own = lab.model.scheduler()
    try:
        return None if sampler_named(name, own) is own else name
    except NoSuchSampler:
        return None


def sampler_variants(lab: Lab) -> dict[str, dict[str, Variant]]:
    """Variants by sampler: standard diffusion, and sharing at two budgets."""
    own = lab.model.scheduler()
    out = {}
    for name in SAMPLERS:
        try:
            scheduler = sampler_named(name, own)
        except NoSuchSampler as error:
            raise Skipped(str(error)) from None
        # None for the model's own sampler, so that its images are those of the other experiments.
        sampler = None if scheduler is own else name
        variants = {f"saving {b:.0%}": Variant(budget=b, sampler=sampler) for b in SAMPLER_BUDGETS}
        out[f"{name} ({describe(scheduler)})"] = {STANDARD: Variant(sampler=sampler), **variants}
    return out


def sampler_needs(lab: Lab) -> Needed:
    """The variants of both samplers, each with its own standard images."""
    return for_all_sets(lab, [variant for variants in sampler_variants(lab).values() for variant in variants.values()])


def sampler(lab: Lab) -> list[Result]:
    """Compare what sharing costs with fresh noise at every step and without."""
    rows = []
    figure = plots.figure(6, 3.6)
    axes = figure.subplots()
    for index, (name, variants) in enumerate(sampler_variants(lab).items()):
        standard = generate_all_sets(lab, variants[STANDARD])
        points = []
        for label, variant in variants.items():
            found = compare(lab, generate_all_sets(lab, variant), standard)
            points.append((found.evaluations, Estimate(0.0) if label == STANDARD else found.difference))
            rows.append((name, label, *found))
        plots.line(axes, name, points, index)
    label_axes(axes, "evaluations an image")
    axes.set_ylabel("score, more than the same sampler's standard")
    columns = (Column("sampler", "text"), Column("variant", "text"), *comparison_columns("its standard"))
    title = "What sharing costs with a deterministic and with a stochastic sampler"
    return [Figure("sampler", title, plots.png(figure)), Table("sampler", title, columns, tuple(rows))]


# -- where the shared steps should end


def trunk_set(lab: Lab) -> PromptSet:
    """The last set by name; if the sets are named as in the paper, that is ``templates``."""
    return lab.first_sets[-1]


def trunk_variants(lab: Lab) -> dict[int, dict[float, Variant]]:
    """Variants by size of the group and share of the steps that the group shares."""
    n, k = len(trunk_set(lab).prompts), trunk_steps(lab)
    sizes = [size for size in GROUPS if size <= n]
    if not sizes:
        raise Skipped(f"{trunk_set(lab).name} has {n} prompts: a group has at least {min(GROUPS)}")
    return {size: {share: Variant(group=size, schedule=_trunk(k, share)) for share in TRUNKS} for size in sizes}


def trunk_steps(lab: Lab) -> int:
    """K, the evaluations of the denoiser from noise to image."""
    return lab.plan(trunk_set(lab), Variant()).n_steps


def _trunk(steps: int, share: float) -> tuple[float, ...]:
    """Thresholds (K,) that keep a group together for a share of the steps: 1 is above its height, 0 is not."""
    together = min(steps - 1, max(0, round(share * steps)))
    return (1.0,) * together + (0.0,) * (steps - together)


def trunk_needs(lab: Lab) -> Needed:
    """Groups of neighbours of one set that separate at one step, and standard diffusion."""
    variants = [variant for shares in trunk_variants(lab).values() for variant in shares.values()]
    return [(trunk_set(lab), variant) for variant in dict.fromkeys([Variant(), *variants])]


def trunk(lab: Lab) -> list[Result]:
    """Measure for how many steps groups of each size can share before all of their prompts separate."""
    prompt_set = trunk_set(lab)
    standard = [lab.generate(prompt_set, Variant())]
    rows = []
    figure = plots.figure(6, 3.6)
    axes = figure.subplots()
    axes.axhline(0.0, color="0.6", linewidth=1)
    for index, (size, shares) in enumerate(trunk_variants(lab).items()):
        points = []
        for share, variant in shares.items():
            found = compare(lab, [lab.generate(prompt_set, variant)], standard)
            points.append((np.count_nonzero(variant.schedule) / trunk_steps(lab), found.difference))
            rows.append((size, share, *found))
        plots.line(axes, f"groups of {size}", points, index)
    label_axes(axes, "share of the steps taken together")
    axes.set_ylabel("score, more than standard")
    columns = (Column("prompts a group", "count"), Column("steps together", "share"), *comparison_columns(STANDARD))
    title = f"Groups of neighbours of {prompt_set.name} that separate at one step"
    return [Figure("trunk", title, plots.png(figure)), Table("trunk", title, columns, tuple(rows))]
