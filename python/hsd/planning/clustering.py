"""Embeddings to tree: arrays of any kind, without a second copy of them, within the free memory."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import Tree
from ..names import Linkage, TreeMetric, check_count, check_name
from ..work.memory import memory_budget
from ..work.progress import Progress, ProgressOption, Report, of_stage, shows_stages
from .metric import check_linkage
from .vectors import Vectors, as_vectors


class Limits(NamedTuple):
    """How a tree may be built."""

    exact: bool | None = None
    """True: exactly, or ``MemoryError``. False: approximately. None: N and the memory decide."""
    threads: int | None = None
    """None: one per core."""
    memory: int | None = None
    """Bytes in addition to the embeddings. None: a share of the free memory."""

    def arguments(self) -> dict[str, Any]:
        """Keywords for ``Tree.build``."""
        if self.exact is not None and not isinstance(self.exact, (bool, np.bool_)):
            raise TypeError(f"exact has to be True, False or None, not {self.exact!r}")
        memory = memory_budget() if self.memory is None else min(check_count("memory", self.memory), sys.maxsize)
        threads = None if self.threads is None else check_count("threads", self.threads)
        return {"exact": self.exact, "threads": threads, "memory": memory}


@shows_stages
def build_tree(
    embeddings: Any,
    linkage: Linkage = "ward",
    *,
    metric: TreeMetric = "cosine",
    exact: bool | None = None,
    threads: int | None = None,
    memory: int | None = None,
    progress: ProgressOption = False,
) -> Tree:
    """Cluster embeddings by cosine or Euclidean distance.

    Parameters
    ----------
    embeddings
        (N, D) floats: NumPy (float16, float32, float64, in any layout, memory-mapped too) or a torch tensor
        (bfloat16 too). Read in place; only tensors on a device are copied, to the host.
    linkage
        ``ward``, ``centroid``, ``average`` or ``complete``.
    metric
        ``cosine``: 1 - cos, as in the paper. ``euclidean``: distances of the rows as given; ``centroid`` has no such
        form, and a row of zeros is a row like any other.
    exact
        True: the linkage as SciPy defines it, or ``MemoryError``. False: approximately, cell by cell. Default: exact
        up to 100,000 prompts if their distances fit in the memory: 2 N² bytes (4 N² is faster).
    threads
        Default: one per core. The tree does not depend on it.
    memory
        Bytes that clustering may use in addition to the embeddings. Default: 60 % of the free memory.
    progress
        See :data:`hsd.ProgressOption`. The stage is ``cluster``.

    Raises
    ------
    ValueError
        For an empty set, a NaN, infinite or (with ``cosine``) all-zero row (named), an unknown linkage or metric, or
        ``centroid`` with ``euclidean``.
    MemoryError
        If ``exact=True`` needs more than ``memory``.
    """
    check_name("linkage", linkage, Linkage)
    check_name("metric", metric, TreeMetric)
    check_linkage(metric, linkage)
    vectors = as_vectors(embeddings, None, "embeddings")
    limits = Limits(exact, threads, memory)
    return Tree.build(
        vectors.array,
        linkage,
        metric=metric,
        bfloat16=vectors.bfloat16,
        progress=of_stage(progress, "cluster"),
        **limits.arguments(),
    )


def replica_tree(
    vectors: Vectors,
    rows: NDArray[np.int64],
    replica: NDArray[np.int64],
    linkage: Linkage,
    limits: Limits,
    progress: Report | None,
    metric: TreeMetric = "cosine",
) -> Tree:
    """One tree per replica, joined at infinite height: images of one prompt never share a step.

    ``rows`` (N,) says which row of ``vectors`` each image has, ``replica`` (N,) which replica it belongs to: any
    numbers, equal where a step may be shared. Replicas of the same rows have the same tree, which is built once. The
    caller has checked all rows: a bad one in a late part would waste the work on early ones.
    """
    arguments = {**limits.arguments(), "metric": metric, "bfloat16": vectors.bfloat16}
    by_replica = np.argsort(replica, kind="stable")
    groups = np.split(by_replica, np.flatnonzero(np.diff(replica[by_replica])) + 1)
    parts = {rows[group].tobytes(): rows[group] for group in groups}
    everything = np.arange(len(vectors.array), dtype=np.int64)
    built: dict[bytes, Tree] = {}
    for done, (key, part) in enumerate(parts.items()):
        report = None if progress is None else Progress(progress).part(done / len(parts), (done + 1) / len(parts))
        chosen = None if np.array_equal(part, everything) else part
        built[key] = Tree.build(vectors.array, linkage, rows=chosen, progress=report, **arguments)
    trees = [built[rows[group].tobytes()] for group in groups]
    return trees[0] if len(trees) == 1 else Tree.join(trees, groups)


def single_prompts(n: int) -> Tree:
    """The tree of ``n`` prompts that share nothing: all merges at infinite height. No distance is computed."""
    single = Tree.build(np.ones((1, 1), dtype=np.float32))
    return Tree.join([single] * n, list(np.arange(n, dtype=np.int64)[:, None]))
