"""How full the calls of real prompt sets are: counted from their plans, kept in ``fills.json``.

``python benches/gpu/fills.py [--data FOLDER]`` counts again; it takes seconds and needs the real prompt sets. The page
that predicts times (``paper.py``) needs only the file. No model and no GPU is needed: a program is made from a plan.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from plans import DATA, FILES, PromptSet

import hsd
from hsd.names import Order

FILE = Path(__file__).with_name("fills.json")

STEPS = 40

SIZES = (8, 16, 32)
"""Batch sizes of each set."""

MORE_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
"""Batch sizes of the set whose calls are the least full: all that ``batch_size="auto"`` compares, and 64."""

NARROW = "styles"
"""The set with the fewest clusters in its first steps."""

IMAGES = (4, 16)
"""Images of each prompt, in the rows with several."""


@dataclass(frozen=True)
class Fill:
    """The calls of a plan at one batch size."""

    set: str
    """Name of the prompt set, and what else runs with it."""
    tau: float
    prompts: int
    node_steps: int
    savings: float
    trunk: int
    """Steps at the start, at which only one cluster is active."""
    batch_size: int
    order: Order
    bound: int
    """No program has fewer calls."""
    calls: dict[int, int]
    """Number of calls, by their number of lanes."""

    @property
    def n_calls(self) -> int:
        """Number of all calls."""
        return sum(self.calls.values())

    @property
    def filled(self) -> float:
        """Share of the lanes that are used."""
        return self.node_steps / (self.n_calls * self.batch_size)

    @property
    def lanes(self) -> np.ndarray:
        """(calls,) lanes of each call, in no order."""
        return np.repeat([*self.calls], [*self.calls.values()])


def fill(name: str, plan: hsd.Plan, batch_size: int, order: Order) -> Fill:
    """The calls of ``plan`` at this batch size and order."""
    lanes, calls = np.unique(plan.program(batch_size, order).rows_per_call, return_counts=True)
    return Fill(
        name,
        plan.tau,
        len(plan),
        plan.node_steps,
        round(plan.savings, 6),
        int((plan.counts() == 1).sum()),
        batch_size,
        order,
        plan.lower_bound(batch_size),
        dict(zip(lanes.tolist(), calls.tolist(), strict=True)),
    )


def read_set(name: str, data: Path) -> PromptSet:
    """A real prompt set with its embeddings."""
    text = (data / "prompts" / f"{FILES[name]}.txt").read_text(encoding="utf-8")
    return PromptSet(name, text.splitlines(), np.load(data / "embeddings" / f"{FILES[name]}.minilm384.npy"))


def apart(first: PromptSet, second: PromptSet, tau: float) -> hsd.Plan:
    """Both sets in one plan that shares nothing between them: their embeddings are made orthogonal."""
    a, b = first.embeddings, second.embeddings
    both = np.zeros((len(a) + len(b), a.shape[1] + b.shape[1]), np.float32)
    both[: len(a), : a.shape[1]], both[len(a) :, a.shape[1] :] = a, b
    plan = hsd.compile(first.prompts + second.prompts, tau, embeddings=both, steps=STEPS)
    alone = sum(one.plan(tau, STEPS).node_steps for one in (first, second))
    assert plan.node_steps == alone, f"{plan.node_steps:,} node-steps together, {alone:,} apart"
    return plan


def fills(data: Path) -> Iterator[Fill]:
    """All that the page needs."""
    sets = {name: read_set(name, data) for name in FILES}
    for name, one in sets.items():
        for tau in (1.0, 0.5):
            plan = one.plan(tau, STEPS)
            for size in MORE_SIZES if name == NARROW else SIZES:
                yield fill(name, plan, size, "depth")
                if name == NARROW:
                    yield fill(name, plan, size, "breadth")
    narrow = sets[NARROW]
    more = {f"{NARROW} and animals": apart(narrow, sets["animals"], 1.0)}
    for n in IMAGES:
        plan = hsd.compile(narrow.prompts, 1.0, embeddings=narrow.embeddings, steps=STEPS, images_per_prompt=n)
        more[f"{NARROW}, {n} images each"] = plan
    for name, plan in more.items():
        for size in SIZES:
            yield fill(name, plan, size, "depth")


def read(file: Path = FILE) -> list[Fill]:
    """What was counted."""
    rows = json.loads(file.read_text())
    return [Fill(**{**row, "calls": {int(lanes): n for lanes, n in row["calls"].items()}}) for row in rows]


def write(rows: list[Fill], file: Path = FILE) -> None:
    """One line a row."""
    file.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")


def main() -> None:
    """Count again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real prompt sets (default %(default)s)")
    write(list(fills(parser.parse_args().data)))


if __name__ == "__main__":
    main()
