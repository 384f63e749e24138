"""The paper's tables and its plot of quality against compute (Decatur et al., arXiv 2508.21032)."""

from __future__ import annotations

import numpy as np

from ..evaluation.stats import mean_of_known
from . import plots
from .experiment import (
    COSINE,
    EVALUATIONS,
    PROMPTS,
    SAVED,
    SET,
    VENDI,
    Needed,
    by_set,
    count_images,
    difference,
    evaluations,
    for_all_sets,
    grouped,
    saved,
    score,
    similarity,
    vendi,
    win,
    win_half,
)
from .lab import GeneratedSet, Lab, PromptSet, Skipped, Variant
from .results import Column, Estimate, Figure, Result, Table

HALF = Variant(budget=0.5)
"""Most variants are compared at equal compute: each saves half of the evaluations."""

BUDGETS = (0.25, 0.5, 0.65)
FEWER_STEPS = (0.5, 0.35, 0.25)
"""Numbers of steps of standard diffusion that are compared with sharing, as shares of the study's steps."""

# -- Table 1


def savings_needs(lab: Lab) -> Needed:
    """Standard diffusion, sharing at the model's tau, and standard diffusion with equally few evaluations."""
    shared = Variant(tau=lab.tau)
    equal = [(prompt_set, with_equal_compute(lab, prompt_set, shared)) for prompt_set in lab.sets]
    return [*for_all_sets(lab, [Variant(), shared]), *equal]


def savings(lab: Lab) -> list[Result]:
    """Table 1: evaluations saved and wins, by set."""
    standard, shared = by_set(lab, Variant()), by_set(lab, Variant(tau=lab.tau))
    few = grouped([lab.generate(s, with_equal_compute(lab, s, Variant(tau=lab.tau))) for s in lab.sets])
    at_full, at_equal = [], []
    for name, ours in shared.items():
        wins = lab.win_rate(ours, standard[name])
        ties = wins.ties / wins.pairs if wins.pairs else None
        scores = (score(lab, standard[name]), score(lab, ours))
        cells = (*scores, difference(wins), win(wins), ties, win_half(wins))
        at_full.append((name, count_images(ours), saved(lab, ours), *cells))
        wins = lab.win_rate(ours, few[name])
        scores = (score(lab, few[name]), score(lab, ours))
        each = (evaluations(ours), evaluations(few[name]))
        at_equal.append((name, *each, *scores, difference(wins), win(wins), win_half(wins)))
    compared = (
        Column("score, standard"),
        Column("score, shared"),
        Column("difference", "signed"),
        Column("win %", "share"),
    )
    half = Column("win %, ties as half", "share")
    full = (SET, PROMPTS, SAVED, *compared, Column("ties", "share"), half)
    spent = Column("evaluations, shared", "count"), Column("evaluations, standard", "count")
    return [
        Table("savings", f"Sharing at tau = {lab.tau:g} against standard diffusion", full, tuple(at_full)),
        Table(
            "savings-equal-compute",
            "The same against standard diffusion with equally few evaluations an image",
            (SET, *spent, *compared, half),
            tuple(at_equal),
        ),
    ]


def with_equal_compute(lab: Lab, prompt_set: PromptSet, variant: Variant) -> Variant:
    """Standard diffusion whose number of evaluations per image is nearest to that of ``variant``."""
    plan = lab.plan(prompt_set, variant)
    # One of the scheduler's steps can be two evaluations (Heun), so the share is taken of evaluations.
    share = plan.node_steps / plan.standard_node_steps
    steps = max(1, round(share * lab.steps))
    return Variant() if steps == lab.steps else Variant(steps=steps)


# -- Table 2


def random_clusters_needs(lab: Lab) -> Needed:
    """Standard diffusion, and half of the evaluations saved in clusters by meaning and in random clusters."""
    return for_all_sets(lab, [Variant(), HALF, Variant(budget=0.5, shuffled=True)])


def random_clusters(lab: Lab) -> list[Result]:
    """Table 2: clusters by meaning against clusters of the same sizes with randomly assigned prompts."""
    standard, ours = by_set(lab, Variant()), by_set(lab, HALF)
    chance = by_set(lab, Variant(budget=0.5, shuffled=True))
    rows = []
    for name, generated in ours.items():
        wins = lab.win_rate(generated, chance[name])
        scores = (score(lab, standard[name]), score(lab, generated), score(lab, chance[name]))
        rows.append(
            (name, count_images(generated), saved(lab, generated), *scores, difference(wins), win(wins), win_half(wins))
        )
    columns = (
        SET,
        PROMPTS,
        SAVED,
        Column("score, standard"),
        Column("score, by meaning"),
        Column("score, at random"),
        Column("by meaning - at random", "signed"),
        Column("win %", "share"),
        Column("win %, ties as half", "share"),
    )
    return [Table("random-clusters", "Clusters by meaning and at random, half saved", columns, tuple(rows))]


# -- Fig. 5


def compute_variants(lab: Lab) -> tuple[list[Variant], list[Variant]]:
    """Sharing at several budgets, and standard diffusion with fewer steps."""
    ours = [Variant(budget=budget) for budget in BUDGETS]
    fewer = [Variant(steps=steps) for share in FEWER_STEPS if (steps := max(1, round(share * lab.steps))) < lab.steps]
    return ours, list(dict.fromkeys(fewer))


def compute_needs(lab: Lab) -> Needed:
    """Both, and standard diffusion with all steps."""
    ours, fewer = compute_variants(lab)
    return for_all_sets(lab, [Variant(), *ours, *fewer])


def compute(lab: Lab) -> list[Result]:
    """Fig. 5: score against evaluations an image, shared and with fewer steps."""
    ours, fewer = compute_variants(lab)
    kinds = {"shared": ours, "standard": fewer}
    full = by_set(lab, Variant())
    by_variant = {variant: by_set(lab, variant) for variants in kinds.values() for variant in variants}
    rows = []
    lines: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    for name, start in full.items():
        begin = (evaluations(start), score(lab, start))
        rows.append((name, "standard", begin[0], 0.0, begin[1], Estimate(None), Estimate(None)))
        for kind, variants in kinds.items():
            points = [begin]
            for variant in variants:
                generated = by_variant[variant][name]
                wins = lab.win_rate(generated, start)
                points.append((evaluations(generated), score(lab, generated)))
                cells = (evaluations(generated), saved(lab, generated), points[-1][1], difference(wins), win_half(wins))
                rows.append((name, kind, *cells))
            label = {"shared": "shared", "standard": "standard, fewer steps"}[kind]
            lines.setdefault(name, {})[label] = points
    across = min(3, len(lines))
    down = -(-len(lines) // across)
    drawn = plots.figure(1 + 2.8 * across, 3.2 * down)
    for i, (name, both) in enumerate(lines.items()):
        axes = drawn.add_subplot(down, across, i + 1)
        for index, (kind, points) in enumerate(both.items()):
            plots.line(axes, kind, points, index, dashed=index > 0)
        axes.set_title(name)
        axes.set_xlabel("evaluations an image")
        axes.set_ylabel(f"score ({lab.scorer.name})")
        axes.grid(alpha=0.3)
    drawn.axes[0].legend(fontsize="small")
    columns = (
        SET,
        Column("variant", "text"),
        EVALUATIONS,
        SAVED,
        Column("score"),
        Column("difference to standard", "signed"),
        Column("win %, ties as half", "share"),
    )
    caption = "Score against evaluations of the denoiser an image: shared, and standard diffusion with fewer steps."
    return [Figure("compute", caption, plots.png(drawn)), Table("compute", caption, columns, tuple(rows))]


# -- the supplement's tables


def diversity_needs(lab: Lab) -> Needed:
    """The images of Table 1 and Fig. 5; no others."""
    if not lab.measurer.embeds:
        raise Skipped(f"{lab.scorer.name} does not embed images")
    return for_all_sets(lab, [Variant(), Variant(tau=lab.tau), HALF])


def diversity(lab: Lab) -> list[Result]:
    """Mean pairwise similarity and Vendi score of up to 100 images of a set."""
    standard = by_set(lab, Variant())
    rows = []
    for label, variant in {
        "standard": Variant(),
        f"shared, tau {lab.tau:g}": Variant(tau=lab.tau),
        "shared, half": HALF,
    }.items():
        for name, generated in by_set(lab, variant).items():
            more = Estimate(None) if variant == Variant() else similarity(lab, generated, standard[name])
            cells = (similarity(lab, generated), more, vendi(lab, generated))
            rows.append((label, name, sum(len(lab.sample(one)) for one in generated), saved(lab, generated), *cells))
    columns = (
        Column("variant", "text"),
        SET,
        Column("images", "count"),
        SAVED,
        COSINE,
        Column("more than standard", "signed"),
        VENDI,
    )
    title = "Diversity: mean cosine of all pairs (lower is more diverse) and effective number of images"
    return [Table("diversity", title, columns, tuple(rows))]


def families_needs(lab: Lab) -> Needed:
    """The images of Table 1."""
    return for_all_sets(lab, [Variant(), Variant(tau=lab.tau)])


def families(lab: Lab) -> list[Result]:
    """The supplement's table by family: prompts that share the first step at the model's tau."""
    rows = []
    for prompt_set in lab.first_sets:
        generated = lab.generate(prompt_set, Variant(tau=lab.tau))
        ours, theirs = lab.scores(generated), lab.scores(lab.generate(prompt_set, Variant()))
        family = generated.plan.active(0)
        order = sorted(np.unique(family), key=lambda f: (-int((family == f).sum()), int(f)))
        singles = [f for f in order if (family == f).sum() == 1]
        for f in order:
            members = np.flatnonzero(family == f)
            if len(members) > 1:
                rows.append(_family_row(lab, generated, members, prompt_set.prompts[members[0]], ours, theirs))
        if singles:
            members = np.flatnonzero(np.isin(family, singles))
            label = f"({len(members)} that share with none)"
            rows.append(_family_row(lab, generated, members, label, ours, theirs))
    columns = (
        SET,
        Column("family of", "text"),
        PROMPTS,
        SAVED,
        Column("score, standard"),
        Column("score, shared"),
        Column("difference", "signed"),
        Column("wins", "count"),
        Column("ties", "count"),
        Column("losses", "count"),
    )
    return [
        Table("families", f"By family: prompts that share the first step at tau = {lab.tau:g}", columns, tuple(rows))
    ]


def _family_row(
    lab: Lab, generated: GeneratedSet, members: np.ndarray, label: str, ours: np.ndarray, theirs: np.ndarray
) -> tuple[str | float | int | Estimate | None, ...]:
    prompts = [generated.prompt_set.prompts[i] for i in members]
    wins = lab.win_rate_of_scores(ours[members], theirs[members], lab.clusters([generated]).take(members))
    means = [mean_of_known(scores[members], prompts)[0] for scores in (theirs, ours)]
    share, counts = generated.plan.prune(members).savings, (wins.wins, wins.ties, wins.losses)
    return (generated.prompt_set.name, label, len(members), share, *means, wins.difference, *counts)
