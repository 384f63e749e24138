"""Trees and plans of many shapes, and golden files, for the tests of the compiled core."""

import os
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from hsd import _core

SNAPSHOTS = Path(__file__).parent / "snapshots"


def tree_of(n: int, shape: str, scores: str, seed: int) -> _core.Tree:
    """A tree over n leaves: a chain, balanced or random, with scores that rise, fall, tie or are all zero."""
    rng = np.random.default_rng(seed)
    open_ids = rng.permutation(n).tolist()
    merges = []
    for merge in range(n - 1):
        if shape == "chain":
            pair = [open_ids.pop(), open_ids.pop()]
        elif shape == "balanced":
            pair = [open_ids.pop(0), open_ids.pop(0)]
        else:
            pair = [open_ids.pop(rng.integers(len(open_ids))) for _ in range(2)]
        merges.append(pair)
        open_ids.append(n + merge)
    values = {
        "rising": np.sort(rng.uniform(0, 2, n - 1)),
        "falling": np.sort(rng.uniform(0, 2, n - 1))[::-1],
        "random": rng.uniform(0, 2, n - 1),
        "ties": rng.integers(0, 5, n - 1) / 4,
        "zero": np.zeros(n - 1),
        "walls": np.where(rng.uniform(size=n - 1) < 0.2, np.inf, rng.uniform(0, 2, n - 1)),
    }[scores]
    return _core.Tree.from_merges(np.array(merges, np.int64).reshape(-1, 2), np.ascontiguousarray(values))


def chain(n: int) -> _core.Tree:
    """Leaf by leaf, at growing distances."""
    merges = [[0, 1], *([n + i, i + 2] for i in range(n - 2))]
    return _core.Tree.from_merges(np.array(merges), np.arange(1, n) / n)


@st.composite
def trees(draw, most: int = 40) -> _core.Tree:
    return tree_of(
        draw(st.integers(1, most)),
        draw(st.sampled_from(["chain", "balanced", "random"])),
        draw(st.sampled_from(["rising", "falling", "random", "ties", "zero", "walls"])),
        draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def thresholds(draw) -> np.ndarray:
    value = st.one_of(st.floats(0, 2.5), st.integers(0, 5).map(lambda x: x / 4))
    return np.array([*sorted(draw(st.lists(value, max_size=12)), reverse=True), 0.0])


@st.composite
def plans(draw, most: int = 40) -> _core.Plan:
    """A plan, of all prompts or of some."""
    plan = _core.Plan.compile(draw(trees(most)), draw(thresholds()))
    if draw(st.booleans()):
        keep = draw(st.sets(st.integers(0, plan.n_prompts - 1), min_size=1))
        plan = plan.prune(np.array(sorted(keep)))
    return plan


def assert_snapshot(name: str, text: str) -> None:
    """Check that ``text`` equals ``snapshots/<name>.txt``. With ``HSD_UPDATE_SNAPSHOTS=1`` the file is written."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("HSD_UPDATE_SNAPSHOTS") == "1":
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; HSD_UPDATE_SNAPSHOTS=1 writes it anew"
