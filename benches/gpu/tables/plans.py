"""Predicted efficiency of prompt sets, end to end too, and what fills the calls of a set with few clusters."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import fills
import roofline
from fills import Fill
from forecast import Forecast, Parts, automatic
from results import EAGER, GRAPH, Results
from roofline import Model

from .common import BATCH, NONE, Paper, both, number, percent, table

EFFICIENCY, OF_IDEAL, OF_SAVED = 0.98, 0.93, 0.97
"""The goals: of the denoiser alone; end to end, of the networks alone; of 1/(1 - savings) against diffusers."""

SETS = ("styles", "animals", "genai_bench", "templates")


def sets(paper: Paper) -> str:
    """Prompts of each set, and the share of evaluations that is saved."""
    made = [paper.of(name, 1.0)[0] for name in SETS]
    told = ", ".join(f"{one.set} ({one.prompts:,} prompts, {one.savings:.1%} saved)" for one in made)
    return textwrap.fill(f"The sets at τ 1.0: {told}.", 118)


def efficiency(paper: Paper) -> str:
    """Every set at every batch size."""
    found = paper.measured.efficiency("kandinsky", BATCH, 1.0)
    rows = []
    for name in SETS:
        halves = {one.batch_size: one for one in paper.of(name, 0.5, "depth")}
        for one in paper.of(name, 1.0, "depth"):
            if one.batch_size not in fills.SIZES:
                continue
            mine = found if one.batch_size == BATCH else {}
            graphs, eager = (mine.get((name, mode), {}).get("efficiency") for mode in ("graphs", "eager"))
            half = _graphs(paper, halves[one.batch_size])
            rows.append(
                [
                    f"{name}, {one.batch_size}",
                    f"{one.n_calls:,} ({one.bound:,})",
                    percent(one.filled),
                    both(percent(_graphs(paper, one).efficiency, EFFICIENCY), percent(graphs)),
                    both(percent(_eager(paper, one).efficiency), percent(eager)),
                    f"{half.fill.n_calls:,} ({half.fill.bound:,})",
                    percent(half.fill.filled),
                    percent(half.efficiency, EFFICIENCY),
                ]
            )
    head = [
        "set, batch size",
        "calls (least)",
        "filled",
        "graphs",
        "launched",
        "τ 0.5: calls",
        "τ 0.5: filled",
        "τ 0.5: graphs",
    ]
    return table(head, rows)


def _graphs(paper: Paper, one: Fill) -> Forecast:
    return Forecast(one, paper.curve())


def _eager(paper: Paper, one: Fill) -> Forecast:
    """Without graphs; full speed is that of the faster way, as in the benchmark."""
    best = min(paper.curve(mode).seconds_per_lane(one.batch_size) for mode in (EAGER, GRAPH))
    return Forecast(one, paper.curve(EAGER), padded=False, best=best)


@dataclass(frozen=True)
class Ends:
    """A set from prompts to images: seconds, those of diffusers, and what was measured."""

    fill: Fill
    theirs: float
    ours: float
    ideal: float
    found: dict[str, float]

    @property
    def speed_up(self) -> float:
        """Predicted."""
        return self.theirs / self.ours


def ends(paper: Paper, fill: Fill) -> Ends:
    """Predicted by the plan's calls."""
    parts = _parts(paper.sets)
    ours = parts.hsd(_graphs(paper, fill))
    return Ends(fill, parts.diffusers(fill), ours, parts.ideal(fill), _end_to_end(paper, fill))


def end_to_end(paper: Paper) -> str:
    """From prompts to images, against diffusers in batches."""
    rows = []
    for name in SETS:
        for one in paper.of(name, 1.0, "depth"):
            if one.batch_size not in (BATCH, 2 * BATCH):
                continue
            made = ends(paper, one)
            found = made.found
            rows.append(
                [
                    f"{name}, {one.batch_size}",
                    both(number(made.theirs), number(found.get("theirs"))),
                    both(number(made.ours), number(found.get("ours"))),
                    both(f"{made.speed_up:.2f}x", f"{found['speed-up']:.2f}x" if found else NONE),
                    f"{1 / (1 - one.savings):.2f}x",
                    both(percent(made.speed_up * (1 - one.savings), OF_SAVED), percent(found.get("ratio"))),
                    both(percent(made.ideal / made.ours, OF_IDEAL), percent(found.get("of ideal"))),
                ]
            )
    head = ["set, batch size", "diffusers, s", "HSD, s", "speed-up", "1/(1 − saved)", "reached of it", "of ideal"]
    return table(head, rows)


def _parts(known: Results) -> Parts:
    section = known.end_to_end()
    alone, lanes = section["alone"], section["denoise_alone"]
    eager = min(alone["denoise_by_batch"].values())
    return Parts(alone["prior"], alone["decode"], eager, min(lanes["eager"], lanes["graphs"]))


def _end_to_end(paper: Paper, one: Fill) -> dict[str, float]:
    """The measured row of this set and batch size; empty if there is none."""
    section, asked = paper.measured.end_to_end(), paper.measured.end_to_end_arguments()
    rows = section.get("rows", {})
    theirs = next((row for name, row in rows.items() if name.startswith("diffusers")), None)
    ours = rows.get("hsd, graphs")
    if not theirs or not ours or (asked["sets"][0], asked["batch_size"]) != (one.set, one.batch_size):
        return {}
    return {
        "theirs": theirs["seconds"],
        "ours": ours["seconds"],
        "speed-up": ours["speed_up"],
        "ratio": ours["ratio"],
        "of ideal": ours["efficiency"],
    }


def shares(paper: Paper) -> str:
    """Where the time of styles goes, end to end."""
    parts, one = _parts(paper.sets), next(f for f in paper.of("styles", 1.0, "depth") if f.batch_size == BATCH)
    found = paper.measured.end_to_end().get("rows", {}).get("hsd, graphs", {})
    if not _end_to_end(paper, one):
        found = {}
    mine = {"encode": parts.priors(one), "denoise": _graphs(paper, one).seconds, "decode": parts.decodes(one)}
    theirs = {**mine, "denoise": one.prompts * fills.STEPS * parts.eager}
    rows = [[part, number(theirs[part]), both(number(mine[part]), number(found.get(part)))] for part in mine]
    other = found["seconds"] - sum(found[part] for part in mine) if found else None
    rows.append(["start, files", NONE, both(NONE, number(other))])
    total = both(number(sum(mine.values())), number(found.get("seconds")))
    rows.append(["in all", number(sum(theirs.values())), total])
    return table(["seconds", "diffusers", "HSD"], rows)


def styles(paper: Paper) -> str:
    """Batch sizes and orders of the set whose calls are the least full."""
    curve = paper.curve()

    def row(name: str, one: Forecast) -> list[str]:
        return [
            name,
            f"{one.fill.n_calls} ({one.fill.bound})",
            percent(one.fill.filled),
            f"{one.seconds:.2f}",
            percent(one.efficiency),
            percent(Forecast(one.fill, curve, padded=False).efficiency),
            percent(one.bound),
        ]

    rows = []
    for order in ("depth", "breadth"):
        mine = paper.of(fills.NARROW, 1.0, order)
        sizes = (*fills.SIZES, 64)  # the most that still changes anything
        rows += [row(f"{order}, {one.batch_size}", Forecast(one, curve)) for one in mine if one.batch_size in sizes]
    chosen = automatic(paper.of(fills.NARROW, 1.0), curve)
    rows.append(row(f"auto: {chosen.fill.order}, {chosen.fill.batch_size}", chosen))
    return table(
        ["order, batch size", "calls (least)", "filled", "seconds", "efficiency", "not padded", "possible"], rows
    )


def losses(paper: Paper) -> str:
    """What keeps styles from the speed of full calls."""
    rows = []
    for one in paper.of(fills.NARROW, 1.0, "depth"):
        if one.batch_size in fills.SIZES:
            made, curve = _graphs(paper, one), paper.curve()
            exact = Forecast(one, curve, padded=False).seconds
            trunk = one.trunk * (curve.seconds(1) - made.least / one.node_steps)
            lost = [trunk, exact - made.least - trunk, made.seconds - exact]
            rows.append(
                [str(one.batch_size), f"{made.least:.2f}", *(f"{part:.2f}" for part in lost), f"{made.seconds:.2f}"]
            )
    head = ["batch size", "in full calls", "+ one cluster", "+ calls not full", "+ padding", "= in all"]
    return table(head, rows)


def together(paper: Paper) -> str:
    """More work in one run."""
    names = [fills.NARROW, f"{fills.NARROW} and animals", *(f"{fills.NARROW}, {n} images each" for n in fills.IMAGES)]
    rows = []
    for name in names:
        for one in paper.of(name, 1.0, "depth"):
            if one.batch_size in (BATCH, 2 * BATCH):
                made = _graphs(paper, one)
                cells = [percent(one.filled), f"{made.seconds:.2f}", percent(made.efficiency, EFFICIENCY)]
                rows.append([f"{name}, {one.batch_size}", f"{one.n_calls:,} ({one.bound:,})", *cells])
    return table(["in one run, batch size", "calls (least)", "filled", "seconds", "efficiency"], rows)


def halves(paper: Paper) -> str:
    """A lane's guidance halves in one call, or in two calls of one row a lane."""
    model = paper.models["kandinsky"]
    device = roofline.device_of(paper.known.device)
    assert device is not None

    def taken(model: Model, lanes: float) -> float:
        return roofline.seconds(model.work, device, model.known, lanes) * 1e3

    told = [f"{number(2 * taken(model, n / 2))} and {number(taken(model, n))} ({n})" for n in (1, 4, 16)]
    return textwrap.fill(f"Two calls with half the rows, and one with all, in ms (lanes): {', '.join(told)}.", 118)


TABLES: dict[str, Callable[[Paper], str]] = {
    "sets": sets,
    "efficiency": efficiency,
    "end-to-end": end_to_end,
    "shares": shares,
    "styles": styles,
    "losses": losses,
    "together": together,
    "halves": halves,
}
