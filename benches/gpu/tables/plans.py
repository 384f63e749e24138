"""Predicted efficiency of prompt sets, end to end too, and what fills the calls of a set with few clusters."""

from __future__ import annotations

from collections.abc import Callable

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
    head = ["set, B", "calls (bound)", "filled", "graphs", "launched", "τ 0.5: calls", "filled", "graphs"]
    return table(head, rows)


def _graphs(paper: Paper, one: Fill) -> Forecast:
    return Forecast(one, paper.curve())


def _eager(paper: Paper, one: Fill) -> Forecast:
    """Without graphs; full speed is that of the faster way, as in the benchmark."""
    best = min(paper.curve(mode).seconds_per_lane(one.batch_size) for mode in (EAGER, GRAPH))
    return Forecast(one, paper.curve(EAGER), padded=False, best=best)


def end_to_end(paper: Paper) -> str:
    """From prompts to images, against diffusers in batches."""
    parts = _parts(paper.sets)
    rows = []
    for name in SETS:
        for one in paper.of(name, 1.0, "depth"):
            if one.batch_size not in (16, 32):
                continue
            made = _graphs(paper, one)
            theirs, ours = parts.diffusers(one), parts.hsd(made)
            found = _end_to_end(paper, one)
            ratio = theirs / ours * (1 - one.savings)
            rows.append(
                [
                    f"{name}, {one.batch_size}",
                    both(number(theirs), number(found.get("theirs"))),
                    both(number(ours), number(found.get("ours"))),
                    both(f"{theirs / ours:.2f}x", f"{found['speed-up']:.2f}x" if found else NONE),
                    f"{1 / (1 - one.savings):.2f}x",
                    both(percent(ratio, OF_SAVED), percent(found.get("ratio"))),
                    both(percent(parts.ideal(one) / ours, OF_IDEAL), percent(found.get("of ideal"))),
                ]
            )
    head = ["set, B", "diffusers, s", "HSD, s", "speed-up", "1/(1 − saved)", "of that", "of ideal"]
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
    rows.append(["all else", NONE, both(NONE, number(other))])
    total = both(number(sum(mine.values())), number(found.get("seconds")))
    rows.append(["all", number(sum(theirs.values())), total])
    return table(["s", "diffusers", "HSD"], rows)


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
    return table(["order, B", "calls (bound)", "filled", "s", "efficiency", "not padded", "bound"], rows)


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
    head = ["B", "full calls, s", "one cluster", "calls not full", "padding", "all"]
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
    return table(["in one run, B", "calls (bound)", "filled", "s", "efficiency"], rows)


def halves(paper: Paper) -> str:
    """A lane's guidance halves in one call, or in two calls of one row a lane."""
    model = paper.models["kandinsky"]
    device = roofline.device_of(paper.known.device)
    assert device is not None

    def taken(model: Model, lanes: float) -> float:
        return roofline.seconds(model.work, device, model.known, lanes) * 1e3

    told = [f"{number(2 * taken(model, n / 2))} for {number(taken(model, n))} ({n})" for n in (1, 4, 16)]
    return f"Two calls of half the rows for one call, predicted, in ms, by lanes: {', '.join(told)}."


TABLES: dict[str, Callable[[Paper], str]] = {
    "efficiency": efficiency,
    "end-to-end": end_to_end,
    "shares": shares,
    "styles": styles,
    "losses": losses,
    "together": together,
    "halves": halves,
}
