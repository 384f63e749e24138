"""How early a model decides what: the prompt's attributes in the image that each step predicts, and what that allows.

The paper's Figs. 2 and 4 show that models conditioned on image embeddings decide late, and models conditioned on tokens
early, so that the former stand more sharing. The experiments here are these claims as numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.scorers import score_batch
from ..evaluation.stats import cluster_bootstrap
from ..planning.compile import compile as compile_plan
from . import plots
from .averages import AVERAGES
from .experiment import (
    ALL,
    EVALUATIONS,
    SAVED,
    SET,
    Needed,
    by_set,
    evaluations,
    for_all_sets,
    mean_difference,
    saved,
    score,
)
from .lab import Lab, Skipped, Variant
from .open_questions import compare_variants
from .paper import HALF
from .results import Cell, Column, Estimate, Figure, Result, Table
from .watching import watch

PROMPTS = 16
"""Prompts of each set whose steps are observed: all steps of a run are kept in memory."""

SETTLED = 0.9
"""Something is settled at the step from which on this share of the predicted images show what their finished ones show;
and the score, at the step from which on it has made this share of its way from the first step to the last."""

# -- how early


def settling_needs(lab: Lab) -> Needed:
    """None: :func:`settling` generates its few images itself, to observe the steps."""
    return []


def settling(lab: Lab) -> list[Result]:
    """What the image that each step predicts shows of the prompt, and of its own finished image."""
    prompts = [prompt for prompt_set in lab.first_sets for prompt in prompt_set.prompts[:PROMPTS]]
    plan = compile_plan(prompts, 0.0, model=lab.model, steps=lab.steps, seeds=lab.seed, metric="cosine", catch_up=0.0)
    trace = watch(plan, lab.model, batch_size=lab.batch_size)
    values: list[NDArray[np.float64]] = []
    readings: list[list[dict[str, str]]] = []
    for found, predicted in trace.predictions():
        if not predicted:
            raise Skipped(f"{type(lab.model.scheduler()).__name__} does not predict an image at each step")
        pictures = [image.convert("RGB") for image in trace.decoded(found)]
        values.append(_read(lab, pictures, prompts))
        if _attributes(lab) and callable(reads := getattr(lab.scorer, "attributes", None)):
            readings.append(reads(pictures))
    n_steps = len(values)
    names = [*_attributes(lab), ALL]
    scored = _curves(lab, np.stack(values), names, prompts)
    alike = _curves(lab, _alike(readings, names), names, prompts) if readings else {}
    of_prompts = f"{len(prompts)} prompts, nothing shared. Intervals: bootstrap over prompts."
    score_title, alike_title = f"score of the predicted image ({lab.scorer.name})", "read as in the finished image"
    caption = f"How early the model decides what: the score of the image that each step predicts, for {of_prompts}"
    results: list[Result] = [_drawn("settling", scored, score_title, caption)]
    if alike:
        caption = f"The share of the predicted images that show what their finished images show, for {of_prompts}"
        results.append(_drawn("settling-alike", alike, alike_title, caption))
    results.append(_settled(scored, alike))
    results.append(_by_step("settling", "Score of the predicted image by step", scored, n_steps))
    if alike:
        title = "Share of the predicted images that show what the finished ones show, by step"
        results.append(_by_step("settling-alike", title, alike, n_steps))
    return results


def _settled(scored: dict[str, list[Estimate]], alike: dict[str, list[Estimate]]) -> Table:
    """When what is settled; by the score alone if the scorer does not say what a picture shows."""
    columns = [
        Column("what", "text"),
        Column("score after the first step"),
        Column("score, finished"),
        Column("score settled at", "share"),
    ]
    title = f"the score has made {SETTLED:.0%} of its way from the first step to the last"
    if alike:
        columns += [Column("as finished after the first step"), Column("settled at", "share")]
        title = f"{SETTLED:.0%} of the predicted images show what the finished ones show, and {title}"
    rows: list[tuple[Cell, ...]] = [
        (name, *_way(curve), *(_likeness(alike.get(name)) if alike else ())) for name, curve in scored.items()
    ]
    return Table("settled", f"Settled: the share of the steps from which on {title}", tuple(columns), tuple(rows))


def _drawn(name: str, curves: dict[str, list[Estimate]], label: str, caption: str) -> Figure:
    """A line for each attribute, with intervals for all together."""
    figure = plots.figure(6.5, 4)
    axes = figure.subplots()
    for index, (what, curve) in enumerate(curves.items()):
        points = [((k + 1) / len(curve), estimate) for k, estimate in enumerate(curve)]
        plain = points if what == ALL else [(x, Estimate(estimate.value)) for x, estimate in points]
        plots.line(axes, what, plain, index, dashed=what != ALL)
    axes.set_xlabel("share of the steps done")
    axes.set_ylabel(label)
    axes.legend(fontsize="x-small", ncols=2)
    axes.grid(alpha=0.3)
    return Figure(name, caption, plots.png(figure))


def _by_step(name: str, title: str, curves: dict[str, list[Estimate]], n_steps: int) -> Table:
    """The curves as a table, a row a step."""
    columns = (Column("steps done", "count"), Column("share", "share"), *(Column(what) for what in curves))
    rows: list[tuple[Cell, ...]] = [
        (k + 1, (k + 1) / n_steps, *(curve[k] for curve in curves.values())) for k in range(n_steps)
    ]
    return Table(name, title, columns, tuple(rows))


def _attributes(lab: Lab) -> list[str]:
    """What the scorer tells apart; nothing for scorers with one number an image."""
    names = getattr(lab.scorer, "mark_names", ())
    return list(names) if hasattr(lab.scorer, "marks") else []


def _read(lab: Lab, pictures: list[Any], prompts: list[str]) -> NDArray[np.float64]:
    """(N, attributes + 1): the marks of each picture, and its score."""
    scores = score_batch(lab.scorer, pictures, prompts)[:, None]
    if not _attributes(lab):
        return scores
    marks = lab.scorer.marks(pictures, prompts)  # type: ignore[attr-defined]
    return np.concatenate([marks, scores], axis=1)


def _alike(readings: list[list[dict[str, str]]], names: list[str]) -> NDArray[np.float64]:
    """(K, N, attributes + 1): 1 where a step's picture shows what the finished one shows, nan where that shows nothing.

    The last column is the mean of the others. It does not matter whether what is shown is what the prompt names.
    """
    finished = readings[-1]
    same = [
        [[float(one.get(name) == last[name]) if name in last else np.nan for name in names[:-1]] for one, last in pairs]
        for pairs in (zip(shown, finished, strict=True) for shown in readings)
    ]
    found = np.array(same, dtype=np.float64)
    return np.concatenate([found, np.nanmean(found, axis=2, keepdims=True)], axis=2)


def _curves(lab: Lab, values: NDArray[np.float64], names: list[str], prompts: list[str]) -> dict[str, list[Estimate]]:
    """By name the mean over prompts at each step of (K, N, names), without what no picture has."""
    curves = {name: _curve(lab, values[:, :, i], prompts) for i, name in enumerate(names)}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _curve(lab: Lab, values: NDArray[np.float64], prompts: list[str]) -> list[Estimate] | None:
    """The mean over prompts (K, N) at each step; None for what no prompt names."""
    known = np.flatnonzero(~np.isnan(values).any(axis=0))
    if not len(known):
        return None
    labels = [prompts[i] for i in known]
    intervals = cluster_bootstrap(values[:, known].T, labels, seed=lab.seed, resamples=2_000)
    means = values[:, known].mean(axis=1)
    return [Estimate(float(mean), None if intervals is None else intervals[k]) for k, mean in enumerate(means)]


def _way(curve: list[Estimate]) -> tuple[Cell, ...]:
    """The first score, the last, and the share of the steps after which it has made :data:`SETTLED` of its way.

    The way is measured from the first step, since a model whose first picture has much of the score by chance has not
    decided more.
    """
    means = _means(curve)
    way = means - means[0] if means[-1] >= means[0] else means[0] - means  # a score may fall, too
    return curve[0], curve[-1], _stays_above(way, SETTLED * way[-1])


def _likeness(curve: list[Estimate] | None) -> tuple[Cell, ...]:
    """Which share of the first step's pictures shows what the finished ones show, and when most of them do."""
    return (None, None) if curve is None else (curve[0], _stays_above(_means(curve), SETTLED))


def _means(curve: list[Estimate]) -> NDArray[np.float64]:
    return np.array([estimate.value for estimate in curve], dtype=np.float64)


def _stays_above(means: NDArray[np.float64], least: float) -> float:
    """The share of the steps after which ``means`` is never below ``least`` again, but for rounding."""
    below = np.flatnonzero(means < least - 1e-9)
    first = int(below[-1]) + 1 if len(below) else 0  # the steps before it are not all above
    return (first + 1) / len(means)


# -- what is saved at equal quality

EQUAL_BUDGETS = (0.2, 0.35, 0.5, 0.65)
MARGIN = 0.02
"""Images are as good as standard ones if the 95 % interval of the difference lies above minus this share of the
standard score: a limit for what may be lost, and not only nothing found."""

EQUAL_WAYS: dict[str, dict[str, Any]] = {
    "the paper's sharing": {},
    "catch-up": {"catch_up": 1.0},
    "calibrated metric": {"metric": "calibrated"},
    "both": {"metric": "calibrated", "catch_up": 1.0},
}


def _equal(lab: Lab) -> dict[str, list[Variant]]:
    return {
        label: [Variant(budget=budget, **how) for budget in EQUAL_BUDGETS]
        for label, how in EQUAL_WAYS.items()
        if lab.measures(how.get("metric", "cosine"))
    }


def equal_needs(lab: Lab) -> Needed:
    """Standard diffusion, and every way at every budget."""
    return for_all_sets(lab, [Variant(), *(variant for variants in _equal(lab).values() for variant in variants)])


def _at_least(difference: Estimate, least: float, clusters: int) -> bool:
    """Whether the interval of a difference lies above ``least``; its value, where it is equal in all clusters."""
    if difference.interval is not None:
        return difference.interval[0] > least
    return clusters > 1 and difference.value is not None and difference.value > least


def equal(lab: Lab) -> list[Result]:
    """What each way of sharing saves at equal quality."""
    standard = by_set(lab, Variant())
    lines: dict[str, list[tuple[float, Estimate]]] = {}
    rows: list[tuple[Cell, ...]] = []
    best: list[tuple[Cell, ...]] = []
    for label, variants in _equal(lab).items():
        by_variant = [by_set(lab, variant) for variant in variants]
        for name, base in standard.items():
            least = -MARGIN * abs(score(lab, base).value or 0.0)
            most, still = 0.0, True
            for budget, sets in zip(EQUAL_BUDGETS, by_variant, strict=True):
                ours = sets[name]
                difference = mean_difference(lab, ours, base, within_sets=True)
                clusters = lab.clusters(ours, base)
                as_good = _at_least(difference, least, clusters.count)
                still = still and as_good
                most = budget if still else most
                cells = (evaluations(ours), saved(lab, ours), score(lab, ours, within_sets=True), difference)
                rows.append((label, name, *cells, "yes" if as_good else "no", clusters.count))
                if name == list(standard)[-1]:
                    lines.setdefault(label, []).append((saved(lab, ours), difference))
            best.append((label, name, most))
    names = list(standard)
    figure = plots.figure(6, 3.8)
    axes = figure.subplots()
    for index, (label, points) in enumerate(lines.items()):
        plots.line(axes, label, points, index, dashed=index == 0)
    axes.axhline(0.0, color="0.6", linewidth=1)
    axes.set_xlabel("share of the evaluations saved")
    axes.set_ylabel("score, more than standard")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    at_most = {(label, name): most for label, name, most in best}
    summary = tuple((label, *(at_most[label, name] for name in names)) for label in lines)
    columns = (
        Column("way", "text"),
        SET,
        EVALUATIONS,
        SAVED,
        Column("score"),
        Column("more than standard", "signed"),
        Column("as good", "text"),
        Column("clusters", "count"),
    )
    title = f"The largest share saved at which images are as good as standard ones (at most {MARGIN:.0%} worse)"
    return [
        Figure("equal", f"Score against what is saved, {names[-1]}.", plots.png(figure)),
        Table("equal", title, (Column("way", "text"), *(Column(name, "share") for name in names)), summary),
        Table("equal-scores", "Every way and every share saved", columns, tuple(rows)),
    ]


# -- how to average, and what to cluster by

MEAN = "mean, gamma 1"


def average_variants() -> dict[str, Variant]:
    """All averages with catch-up, and the mean with more of it and with less; all save half of the evaluations."""
    averages = {f"{name}, gamma 1": Variant(budget=0.5, average=name, catch_up=1.0) for name in AVERAGES}
    gammas = {f"mean, gamma {gamma:g}": Variant(budget=0.5, catch_up=gamma) for gamma in (0.5, 2.0)}
    bare = {f"{name}, gamma 0": Variant(budget=0.5, average=name) for name in AVERAGES}
    return {**averages, **gammas, **bare}


def averages_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion."""
    return for_all_sets(lab, [Variant(), *average_variants().values()])


def averages(lab: Lab) -> list[Result]:
    """Compare averages and strengths of catch-up."""
    title = "What a cluster is conditioned on, all saving half of the evaluations"
    return compare_variants(lab, "averages", title, average_variants(), MEAN)


def vector_variants(lab: Lab) -> dict[str, Variant]:
    """One for each vector and metric that the model allows, with catch-up, saving half of the evaluations."""
    variants = {"own embedding, cosine": HALF}
    if lab.has_tokens():
        variants["mean of the tokens, cosine"] = Variant(budget=0.5, vectors="tokens")
    if lab.measures("calibrated"):
        variants["calibrated"] = Variant(budget=0.5, metric="calibrated")
    if lab.measures("direct"):
        variants["direct"] = Variant(budget=0.5, metric="direct")
    return variants


def vectors_needs(lab: Lab) -> Needed:
    """The variants, and standard diffusion."""
    return for_all_sets(lab, [Variant(), *vector_variants(lab).values()])


def vectors(lab: Lab) -> list[Result]:
    """Compare what prompts are clustered by."""
    title = "What prompts are clustered by, all saving half of the evaluations, no catch-up"
    return compare_variants(lab, "vectors", title, vector_variants(lab), "own embedding, cosine")
