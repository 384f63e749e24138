"""The demo models side by side: how early each settles what, and what sharing saves at equal quality.

    python benches/demo_models.py OUT [--steps 20] [--limit 32] [--studies demo demo-sd ...] [--json FILE]

`demo` is conditioned on an image embedding (Kandinsky 2.2's classes), `demo-sd` on the tokens of the prompt (Stable
Diffusion's). Each is run with its own sampler and with the other kind, since fresh noise at every step lets late steps
correct what early ones decided. Every study is one of `hsd reproduce` and can be looked at in its folder below OUT; a
run that was interrupted continues. Writes `side-by-side.md` and `settling.png` there.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

import hsd
from hsd.reproduction import plots
from hsd.reproduction.experiment import ALL
from hsd.reproduction.results import Column, Estimate, Table
from hsd.reproduction.study import Study, reproduce

STUDIES: dict[str, tuple[str, str | None]] = {
    "demo": ("demo", None),
    "demo, deterministic": ("demo", "deterministic"),
    "demo-sd": ("demo-sd", None),
    "demo-sd, stochastic": ("demo-sd", "stochastic"),
}
"""By name: the model, and a sampler other than its own."""

COMMON = ("settling", "equal")
OWN = ("chain", "latents", "families", "averages", "vectors")
"""Experiments of all studies, and those with the model's own sampler only."""

SHOWN = (ALL, "background", "place", "shape", "color", "style")
"""What the figure shows of the attributes."""


def studied(name: str, out: Path, args: argparse.Namespace) -> Study:
    """One study, in its own folder."""
    model, sampler = STUDIES[name]
    only = COMMON if sampler else (*COMMON, *OWN)
    if args.only:
        only = tuple(experiment for experiment in only if experiment in args.only)
    adapter = hsd.load(model) if sampler is None else hsd.load(model, scheduler=sampler)
    return reproduce(
        adapter,
        out=out / name.replace(", ", "-"),
        only=only,
        scorer="demo",
        limit=args.limit,
        steps=args.steps,
        say=lambda text: print(f"{name}: {text}", flush=True),
    )


def tables(study: Study) -> dict[str, Table]:
    """The tables of a study by name."""
    return {table.name: table for results in study.results.values() for table in results if isinstance(table, Table)}


def beside(title: str, studies: dict[str, Table], keys: int, take: tuple[str, ...]) -> Table:
    """One table of several: rows with equal first cells become one, with the columns ``take`` of each study."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    first: tuple[Column, ...] = ()
    for name, table in studies.items():
        titles = [column.title for column in table.columns]
        first = table.columns[:keys]
        for row in table.rows:
            found = rows.setdefault(row[:keys], {})
            found |= {f"{name}: {column}": row[titles.index(column)] for column in take}
    kinds = {column.title: column.kind for table in studies.values() for column in table.columns}
    columns = tuple(Column(f"{name}: {column}", kinds[column]) for name in studies for column in take)
    body = tuple((*key, *(found.get(column.title) for column in columns)) for key, found in rows.items())
    return Table(title, title, (*first, *columns), body)


def side_by_side(found: dict[str, Study]) -> list[Table]:
    """The tables that all studies have, one beside the other."""
    named = {name: tables(study) for name, study in found.items()}

    def of(table: str) -> dict[str, Table]:
        return {name: every[table] for name, every in named.items() if table in every}

    out = []
    if of("settled"):
        out.append(beside("Settled at", of("settled"), 1, ("settled at", "score settled at")))
    if of("equal"):
        last = next(iter(of("equal").values())).columns[-1].title
        out.append(beside("Largest share saved at equal quality, all sets", of("equal"), 1, (last,)))
        out.append(beside("Score by share saved", whole(of("equal-scores")), 3, ("more than standard",)))
    if of("families"):
        sums = {name: by_set(table) for name, table in of("families").items()}
        titles = tuple(column.title for column in next(iter(sums.values())).columns)
        out.append(beside("Families by set", sums, 1, titles[1:]))
    for name in ("averages", "vectors"):
        if of(name):
            more = next(iter(of(name).values())).columns[5].title
            out.append(beside(name, of(name), 1, ("score", more)))
    return out


def by_set(families: Table) -> Table:
    """Of the table of families, one row a set: its prompts that share, and what became of them together."""
    titles = [column.title for column in families.columns]
    prompts, saved, more, *outcomes = map(titles.index, ("prompts", "saved", "difference", "wins", "ties", "losses"))
    rows: dict[Any, list[tuple[Any, ...]]] = {}
    for row in families.rows:
        members = rows.setdefault(row[0], [])
        if row[saved] > 0:
            members.append(row)
    columns = (
        families.columns[0],
        Column("families", "count"),
        *(families.columns[i] for i in (prompts, saved, more, *outcomes)),
    )
    body = []
    for name, members in rows.items():
        number = sum(row[prompts] for row in members)
        means = (sum(row[prompts] * row[i] for row in members) / number if number else None for i in (saved, more))
        body.append((name, len(members), number, *means, *(sum(row[i] for row in members) for i in outcomes)))
    return Table("families", families.title, columns, tuple(body))


def whole(studies: dict[str, Table]) -> dict[str, Table]:
    """Of the tables by way, set and share: the rows of all sets, with the rounded share saved as a key."""
    out = {}
    for name, table in studies.items():
        rows = tuple((row[0], row[1], f"{row[3]:.0%}", *row[2:]) for row in table.rows if row[1] == table.rows[-1][1])
        columns = (*table.columns[:2], Column("share", "text"), *table.columns[2:])
        out[name] = Table(table.name, table.title, columns, rows)
    return out


def drawn(found: dict[str, Study]) -> bytes:
    """The curves of what is settled when: a column a study, above what is right and below what stays as it is."""
    studies = {name: tables(study) for name, study in found.items() if "settling" in tables(study)}
    rows = {"settling": "right", "settling-alike": "as in the finished image"}
    figure = plots.figure(1 + 3.6 * len(studies), 6.6)
    every = figure.subplots(2, len(studies), sharex=True, sharey="row", squeeze=False)
    for axes_of_row, (table_name, label) in zip(every, rows.items(), strict=True):
        for axes, (name, named) in zip(axes_of_row, studies.items(), strict=True):
            table = named[table_name]
            titles = [one.title for one in table.columns]
            for index, shown in enumerate(SHOWN):
                if shown in titles:
                    at = titles.index(shown)
                    points = [(row[1], row[at] if shown == ALL else Estimate(row[at].value)) for row in table.rows]
                    plots.line(axes, shown, points, index, dashed=shown != ALL)
            axes.set_title(f"{name}: {label}", fontsize="medium")
            axes.grid(alpha=0.3)
        axes_of_row[0].set_ylabel("share of the attributes")
    for axes in every[-1]:
        axes.set_xlabel("share of the steps done")
    every[-1, -1].legend(fontsize="small", loc="lower right")
    return plots.png(figure)


def document(found: dict[str, Study], args: argparse.Namespace) -> dict[str, Any]:
    """All tables, for programs."""
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "steps": args.steps,
        "prompts of each set": args.limit,
        "studies": {
            name: {
                table.name: {"columns": [column.title for column in table.columns], "rows": table.rows}
                for table in tables(study).values()
            }
            for name, study in found.items()
        },
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, default=32, help="prompts of each set")
    parser.add_argument("--studies", nargs="*", choices=list(STUDIES), default=list(STUDIES), metavar="STUDY")
    parser.add_argument("--only", nargs="*", choices=[*COMMON, *OWN], help="experiments; default: all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    start = time.perf_counter()
    found = {name: studied(name, args.out, args) for name in args.studies}
    parts = [f"## {table.title}\n\n{table.markdown()}" for table in side_by_side(found)]
    (args.out / "side-by-side.md").write_text("\n\n".join(parts) + "\n")
    if any("settling" in tables(study) for study in found.values()):
        (args.out / "settling.png").write_bytes(drawn(found))
    print("\n\n".join(parts))
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(document(found, args)) + "\n")


if __name__ == "__main__":
    main()
