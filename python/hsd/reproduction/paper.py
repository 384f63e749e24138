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
    Wanted,
    by_set,
    difference,
    evaluations,
    everywhere,
    grouped,
    images,
    saved,
    score,
    similarity,
    vendi,
    win,
    win_half,
)
from .lab import Lab, Made, PromptSet, Skipped, Way
from .results import Column, Estimate, Figure, Result, Table

HALF = Way(budget=0.5)
"""What ways of sharing are compared at: all of them save half of the evaluations."""

BUDGETS = (0.25, 0.5, 0.65)
FEWER_STEPS = (0.5, 0.35, 0.25)
"""Shares of the study's steps that standard diffusion takes, to be compared with sharing."""

# -- Table 1


def savings_wants(lab: Lab) -> Wanted:
    """Standard diffusion, sharing at the model's tau, and standard diffusion with as few evaluations."""
    shared = Way(tau=lab.tau)
    equal = [(prompt_set, _as_few(lab, prompt_set, shared)) for prompt_set in lab.sets]
    return [*everywhere(lab, [Way(), shared]), *equal]


def savings(lab: Lab) -> list[Result]:
    """Table 1: evaluations saved and wins, by set."""
    standard, shared = by_set(lab, Way()), by_set(lab, Way(tau=lab.tau))
    few = grouped([lab.made(s, _as_few(lab, s, Way(tau=lab.tau))) for s in lab.sets])
    at_full, at_equal = [], []
    for name, ours in shared.items():
        wins = lab.compared(ours, standard[name])
        ties = wins.ties / wins.pairs if wins.pairs else None
        scores = (score(lab, standard[name]), score(lab, ours))
        cells = (*scores, difference(wins), win(wins), ties, win_half(wins))
        at_full.append((name, images(ours), saved(lab, ours), *cells))
        wins = lab.compared(ours, few[name])
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
            "The same against standard diffusion with as few evaluations an image",
            (SET, *spent, *compared, half),
            tuple(at_equal),
        ),
    ]


def _as_few(lab: Lab, prompt_set: PromptSet, way: Way) -> Way:
    """Standard diffusion with the number of steps that comes nearest to what ``way`` takes an image."""
    plan = lab.plan(prompt_set, way)
    # A step of the scheduler may be two evaluations (Heun).
    share = plan.node_steps / plan.standard_node_steps
    steps = max(1, round(share * lab.steps))
    return Way() if steps == lab.steps else Way(steps=steps)


# -- Table 2


def random_clusters_wants(lab: Lab) -> Wanted:
    """Half of the evaluations saved, by meaning and by chance."""
    return everywhere(lab, [Way(), HALF, Way(budget=0.5, shuffled=True)])


def random_clusters(lab: Lab) -> list[Result]:
    """Table 2: clusters by meaning against the same clusters with prompts dealt to them at random."""
    standard, ours = by_set(lab, Way()), by_set(lab, HALF)
    chance = by_set(lab, Way(budget=0.5, shuffled=True))
    rows = []
    for name, made in ours.items():
        wins = lab.compared(made, chance[name])
        scores = (score(lab, standard[name]), score(lab, made), score(lab, chance[name]))
        rows.append((name, images(made), saved(lab, made), *scores, difference(wins), win(wins), win_half(wins)))
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


def compute_ways(lab: Lab) -> tuple[list[Way], list[Way]]:
    """Ours at several savings, and standard diffusion with fewer steps."""
    ours = [Way(budget=budget) for budget in BUDGETS]
    fewer = [Way(steps=steps) for share in FEWER_STEPS if (steps := max(1, round(share * lab.steps))) < lab.steps]
    return ours, list(dict.fromkeys(fewer))


def compute_wants(lab: Lab) -> Wanted:
    """Both, and what they start from."""
    ours, fewer = compute_ways(lab)
    return everywhere(lab, [Way(), *ours, *fewer])


def compute(lab: Lab) -> list[Result]:
    """Fig. 5: score against evaluations an image, shared and with fewer steps."""
    ours, fewer = compute_ways(lab)
    kinds = {"shared": ours, "standard": fewer}
    full = by_set(lab, Way())
    made_by = {way: by_set(lab, way) for ways in kinds.values() for way in ways}
    rows = []
    lines: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    for name, start in full.items():
        begin = (evaluations(start), score(lab, start))
        rows.append((name, "standard", begin[0], 0.0, begin[1], Estimate(None), Estimate(None)))
        for kind, ways in kinds.items():
            points = [begin]
            for way in ways:
                made = made_by[way][name]
                wins = lab.compared(made, start)
                points.append((evaluations(made), score(lab, made)))
                cells = (evaluations(made), saved(lab, made), points[-1][1], difference(wins), win_half(wins))
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
        Column("way", "text"),
        EVALUATIONS,
        SAVED,
        Column("score"),
        Column("difference to standard", "signed"),
        Column("win %, ties as half", "share"),
    )
    caption = "Score against evaluations of the denoiser an image: shared, and standard diffusion with fewer steps."
    return [Figure("compute", caption, plots.png(drawn)), Table("compute", caption, columns, tuple(rows))]


# -- the supplement's tables


def diversity_wants(lab: Lab) -> Wanted:
    """As for Table 1 and Fig. 5: nothing of its own."""
    if not lab.measuring.embeds:
        raise Skipped(f"{lab.scorer.name} does not embed images")
    return everywhere(lab, [Way(), Way(tau=lab.tau), HALF])


def diversity(lab: Lab) -> list[Result]:
    """Mean pairwise similarity and Vendi score of up to 100 images of a set."""
    standard = by_set(lab, Way())
    rows = []
    for label, way in {"standard": Way(), f"shared, tau {lab.tau:g}": Way(tau=lab.tau), "shared, half": HALF}.items():
        for name, made in by_set(lab, way).items():
            more = Estimate(None) if way == Way() else similarity(lab, made, standard[name])
            cells = (similarity(lab, made), more, vendi(lab, made))
            rows.append((label, name, sum(lab.sampled(one) for one in made), saved(lab, made), *cells))
    columns = (
        Column("way", "text"),
        SET,
        Column("images", "count"),
        SAVED,
        COSINE,
        Column("more than standard", "signed"),
        VENDI,
    )
    title = "Diversity: mean cosine of all pairs (lower is more diverse) and effective number of images"
    return [Table("diversity", title, columns, tuple(rows))]


def families_wants(lab: Lab) -> Wanted:
    """Of Table 1."""
    return everywhere(lab, [Way(), Way(tau=lab.tau)])


def families(lab: Lab) -> list[Result]:
    """By family of prompts: those that share the first step at the model's tau."""
    rows = []
    for prompt_set in lab.sets:
        made = lab.made(prompt_set, Way(tau=lab.tau))
        ours, theirs = lab.scores(made), lab.scores(lab.made(prompt_set, Way()))
        family = made.plan.active(0)
        order = sorted(np.unique(family), key=lambda f: (-int((family == f).sum()), int(f)))
        small = [f for f in order if (family == f).sum() == 1]
        for f in order:
            members = np.flatnonzero(family == f)
            if len(members) > 1:
                rows.append(_family_row(lab, made, members, prompt_set.prompts[members[0]], ours, theirs))
        if small:
            members = np.flatnonzero(np.isin(family, small))
            label = f"({len(members)} that share with none)"
            rows.append(_family_row(lab, made, members, label, ours, theirs))
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
    lab: Lab, made: Made, members: np.ndarray, label: str, ours: np.ndarray, theirs: np.ndarray
) -> tuple[str | float | int | Estimate | None, ...]:
    prompts = [made.prompt_set.prompts[i] for i in members]
    wins = lab.won(ours[members], theirs[members], prompts)
    means = [mean_of_known(scores[members], prompts)[0] for scores in (theirs, ours)]
    share, counts = made.plan.prune(members).savings, (wins.wins, wins.ties, wins.losses)
    return (made.prompt_set.name, label, len(members), share, *means, wins.difference, *counts)
