"""One measured case of the clustering benchmark, run in its own process; `tree.py` starts one per measurement.

    python benches/tree_case.py '{"side": "hsd", "linkage": "ward", "data": "noise", "n": 1000, "dim": 64}' ROWS.npy

Prints one line of JSON. What is measured: the call from the embeddings in memory to the finished tree, after a warm-up
on 64 rows: wall and CPU seconds, and extra memory. Extra memory is the peak of the process's resident memory during the
call less what was resident before it; the peak is VmHWM, reset before the call, or on other systems than Linux
ru_maxrss, which cannot be reset. Neither includes imports, embeddings and the warm-up.
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Linkage = NDArray[np.float64]  # SciPy's matrix: two children, height, size

STEPS = 40
TAUS = (0.5, 1.0, 1.5)
EXACT = 7 << 30  # bytes: the exact tree of 50,000 rows, whose distances take 10 GB whole and 5 GB by half
DIGEST_UP_TO = 20_000  # leaves; larger trees are not compared cluster by cluster
CODE_SEED = 12345


@dataclass(frozen=True)
class Case:
    """Which side clusters which set, and within which limits."""

    side: str  # one of SIDES
    linkage: str
    data: str
    n: int
    dim: int
    threads: int = 1
    memory: int | None = None  # bytes hsd may use; None is its own default

    @property
    def key(self) -> str:
        memory = {None: "default", EXACT: "exact"}.get(self.memory, f"{(self.memory or 0) >> 20}MiB")
        how = f"{self.side}-{memory}" if self.side == "hsd" else self.side
        return f"{how}/{self.linkage}/{self.data}/n={self.n}/d={self.dim}/threads={self.threads}"

    @property
    def problem(self) -> tuple[str, int, int, str]:
        """What has to be equal for two sides to be compared."""
        return self.data, self.n, self.dim, self.linkage


class NotOffered(Exception):
    """This build of hsd does not support the case."""


def hsd_tree(rows: Rows, case: Case) -> Any:
    """HSD, from embeddings to tree."""
    import hsd

    offered = inspect.signature(hsd.build_tree).parameters
    limits: dict[str, int] = {}
    if "threads" in offered:
        limits["threads"] = case.threads
    if case.memory is not None and "memory" in offered:
        limits["memory"] = case.memory
    elif case.memory not in (None, EXACT):
        raise NotOffered("this build's hsd.build_tree has no memory=")
    return hsd.build_tree(rows, case.linkage, **limits)


def scipy_tree(rows: Rows, case: Case) -> Linkage:
    """What the paper's published code does."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    return linkage(pdist(rows, "cosine"), case.linkage)


def fastcluster_tree(rows: Rows, case: Case) -> Linkage:
    """Libraries without changes: scikit-learn's distances (BLAS, float32), then fastcluster."""
    import fastcluster
    from scipy.spatial.distance import squareform
    from sklearn.metrics.pairwise import cosine_distances

    # Nested calls, here and below, so that each matrix is freed as soon as the next one exists.
    return fastcluster.linkage(squareform(cosine_distances(rows), checks=False), case.linkage, preserve_input=False)


def gram_tree(rows: Rows, case: Case) -> Linkage:
    """The best combination of libraries in time and memory: NumPy's Gram matrix, then fastcluster."""
    import fastcluster
    from scipy.spatial.distance import squareform

    return fastcluster.linkage(squareform(gram_distances(rows), checks=False), case.linkage, preserve_input=False)


def gram_distances(rows: Rows) -> Rows:
    """(N, N) cosine distances in place of the Gram matrix, of which BLAS computes one half only (`a @ a.T`)."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = unit @ unit.T
    np.subtract(1.0, distances, out=distances)
    return np.maximum(distances, 0.0, out=distances)


def naive_tree(rows: Rows, case: Case) -> Linkage:
    """Centroid linkage by the paper's Eqs. 3-5, written out: the nearest pair of means, N - 1 times. O(N^3).

    Heights are monotone as in HSD: the greater of the distance and the children's heights. Rows have to have unit
    length: HSD takes means of the given rows, this form takes means of unit rows.
    """
    if case.linkage != "centroid":
        raise NotOffered(f"the naive form is written for centroid, not {case.linkage}")
    n = len(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float64)
    sums = unit.copy()
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    names, height, size = np.arange(n), np.zeros(2 * n - 1), np.ones(2 * n - 1)
    out = np.empty((n - 1, 4))
    for merge in range(n - 1):
        a, b = np.unravel_index(np.argmin(distance), distance.shape)
        children, new = sorted((names[a], names[b])), n + merge
        height[new] = max(distance[a, b], *height[children])
        size[new] = size[children].sum()
        out[merge] = (*children, height[new], size[new])
        sums[a] += sums[b]
        live = np.isfinite(distance[a])
        live[[a, b]] = False
        cosine = sums[live] @ sums[a] / (np.linalg.norm(sums[live], axis=1) * np.linalg.norm(sums[a]))
        distance[a, live] = distance[live, a] = 1.0 - cosine
        distance[b] = distance[:, b] = np.inf
        names[a] = new
    return out


SIDES: dict[str, Callable[[Rows, Case], Any]] = {
    "hsd": hsd_tree,
    "scipy": scipy_tree,
    "fastcluster": fastcluster_tree,
    "gram": gram_tree,
    "naive": naive_tree,
}


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The result of ``work``, with its seconds and extra memory."""
    gc.collect()
    how = reset_peak()
    before = resident() if how == "VmHWM" else peak(how)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return result, spent | {"extra_bytes": peak(how) - before, "bytes_before": before, "memory_by": how}


def reset_peak() -> str:
    """Reset the peak of resident memory to what is resident now. Returns the name of the peak to read afterwards."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        status("VmHWM")
    except (OSError, LookupError):
        return "ru_maxrss"
    return "VmHWM"


def peak(how: str) -> int:
    """Peak of resident bytes so far."""
    if how == "VmHWM":
        return status("VmHWM")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    return status("VmRSS")


def status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def heights_of(tree: Any) -> NDArray[np.float64]:
    """Merge heights, ascending."""
    return np.sort(tree[:, 2] if isinstance(tree, np.ndarray) else tree.heights)


def savings(tree: Any, n: int) -> dict[str, float]:
    """Share of denoiser evaluations saved at each tau, with K steps and the linear schedule."""
    line = np.linspace(1.0, 0.0, STEPS)
    return {str(tau): 1.0 - node_steps(tree, tau * line) / (n * STEPS) for tau in TAUS}


def node_steps(tree: Any, phi: NDArray[np.float64]) -> int:
    """Sum over the steps of 1 + #{heights >= phi}."""
    if not isinstance(tree, np.ndarray):
        return int(tree.node_steps(phi))
    heights = heights_of(tree)
    return int(np.sum(1 + len(heights) - np.searchsorted(heights, phi, side="left")))


def cluster_codes(linkage: Linkage) -> NDArray[np.uint64]:
    """(N-1,) one number per cluster that depends only on its set of leaves: the sum of random 64-bit leaf codes."""
    n = len(linkage) + 1
    codes = np.zeros(2 * n - 1, dtype=np.uint64)
    codes[:n] = np.random.default_rng(CODE_SEED).integers(1 << 64, size=n, dtype=np.uint64)
    with np.errstate(over="ignore"):  # the sums wrap around
        for merge, (a, b) in enumerate(linkage[:, :2].astype(np.int64)):
            codes[n + merge] = codes[a] + codes[b]
    return codes[n:]


def write_digest(tree: Any, path: Path) -> None:
    """The tree's clusters and heights, for comparing two trees."""
    linkage = tree if isinstance(tree, np.ndarray) else tree.to_scipy()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, codes=cluster_codes(linkage), heights=linkage[:, 2])


def load_rows(path: Path, n: int) -> Rows:
    """A copy of the first ``n`` rows in memory."""
    rows = np.load(path, mmap_mode="r")[:n]
    if len(rows) < n:
        raise ValueError(f"the file has {len(rows)} rows, the case wants {n}")
    return np.array(rows, dtype=np.float32, order="C")


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    rows = load_rows(Path(sys.argv[2]), case.n)
    assert rows.shape == (case.n, case.dim), f"{rows.shape}, but the case says {(case.n, case.dim)}"
    cluster = SIDES[case.side]
    try:
        cluster(rows[:64].copy(), case)
        tree, result = measured(lambda: cluster(rows, case))
    except NotOffered as error:
        print(json.dumps({"status": "not offered", "message": str(error)}))
        return
    except MemoryError as error:
        print(json.dumps({"status": "memory", "message": str(error)}))
        return
    heights = heights_of(tree)
    assert len(heights) == case.n - 1
    assert np.isfinite(heights).all()
    if case.side == "hsd":
        result["exact"] = bool(getattr(tree, "exact", True))
    if len(sys.argv) > 3 and case.n <= DIGEST_UP_TO:
        write_digest(tree, Path(sys.argv[3]))
    result |= {"status": "ok", "savings": savings(tree, case.n), "root_height": float(heights[-1])}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
