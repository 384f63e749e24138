"""The compiled core of HSD: trees, plans and programs. It takes and returns plain data, without torch.

Arrays must have the dtype given here; any other raises a ``TypeError`` that names both. Tables that do not fit in
memory raise a ``MemoryError``.
"""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LINKAGES",
    "METRICS",
    "MOST_HEADER",
    "NOISES",
    "ORDERS",
    "SCHEDULES",
    "Chunks",
    "Plan",
    "Program",
    "Tree",
    "__version__",
    "build_info",
    "check_embeddings",
    "check_thresholds",
    "measured_shape",
    "schedule_shape",
]

LINKAGES: tuple[str, ...]
"""Names that :meth:`Tree.build` takes."""

METRICS: tuple[str, ...]
"""Names that :meth:`Tree.build` takes."""

MOST_HEADER: int
"""The longest header of a plan's file, in bytes."""

NOISES: tuple[str, ...]
"""Names that :func:`hsd.compile` takes for ``noise``."""

ORDERS: tuple[str, ...]
"""Names that :meth:`Plan.program` takes."""

SCHEDULES: tuple[str, ...]
"""Names that :func:`schedule_shape` takes."""

__version__: str

def build_info() -> dict[str, str]:
    """Versions and build settings of the compiled module: ``version``, ``target``, ``profile``
    ("debug" or "release") and ``plan_format``, the version of the plan files it reads and writes.
    """

def schedule_shape(name: str, steps: int) -> NDArray[np.float64]:
    """A threshold curve for tau = 1: (K,) values in [0, 1] that never rise and end at exactly 0.

    With x = k / (K - 1): ``linear`` is 1 - x, ``cosine`` is cos(x pi / 2), ``log`` is ln(1 + (e - 1)(1 - x));
    ``paper-eq7`` is the paper's Eq. 7, 1 - (k + 1) / K. A single step is 0 in all of them.

    Raises ``ValueError`` for an unknown name and for steps < 1.
    """

def measured_shape(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The threshold curve for tau = 1 that is best for weights (K,) of the error at each step: (K,) values in [0, 1].

    It is proportional to 1 / sqrt(pooled weights), 1 at its largest, never rises, and is 0 at the last step. With a
    Euclidean ward tree, no plan of that tree that costs the same has a lower sum over steps of weights[k] times the
    sum of squared distances from the means of the clusters.

    Weights that fall are pooled, that is, replaced by their mean (isotonic regression), because a cluster that was
    split cannot be joined again. A negative weight counts as 0; first steps of pooled weight 0 have the threshold of
    the first other one. The last weight does not count.

    Raises ``ValueError`` for no weights, a weight that is not finite (names the step), and if none before the last is
    over 0.
    """

def check_embeddings(
    embeddings: NDArray[np.floating] | NDArray[np.uint16],
    *,
    metric: str = "cosine",
    bfloat16: bool = False,
    threads: int | None = None,
) -> None:
    """Check the rows of ``embeddings`` (N, D) as :meth:`Tree.build` does, without clustering them.

    Every row has to be finite and, with the metric ``cosine``, to have an entry that is not 0. ``bfloat16`` takes
    uint16 for the bits of bfloat16. ``threads`` is as in :meth:`Tree.build`. The GIL is released during the work.
    Ctrl-C stops it within a second.

    Raises ``ValueError`` for an empty set, for the first row that has a NaN or an infinite entry (names row and column)
    or, with ``cosine``, only zeros (names the row), and for an unknown metric and threads below 1; ``TypeError`` for
    anything but such an array.
    """

def check_thresholds(phi: NDArray[np.float64]) -> None:
    """Check thresholds ``phi`` (K,): non-increasing, finite, >= 0 and 0 at the end, with at least one step.

    Otherwise raises a ``ValueError`` that names the step and the value, as does every function that takes thresholds,
    such as :meth:`Tree.counts` and :meth:`Plan.compile`.
    """

@final
class Tree:
    """A binary merge tree over N prompts. Immutable."""

    @staticmethod
    def build(
        embeddings: NDArray[np.floating] | NDArray[np.uint16],
        linkage: str = "ward",
        *,
        metric: str = "cosine",
        rows: NDArray[np.int64] | None = None,
        exact: bool | None = None,
        threads: int | None = None,
        memory: int | None = None,
        bfloat16: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> Tree:
        """Cluster the rows of ``embeddings``, (N, D) float16, float32 or float64 in any layout.

        ``metric`` is ``cosine``, the distance 1 - cos, or ``euclidean``, that of the rows as given. SciPy's linkages
        of the same distances are the same, up to ties and rounding (``ward`` squares cosine distances too).

        They are read in place and never copied as a whole. ``bfloat16`` takes uint16 for the bits of bfloat16.
        ``rows`` clusters some of them only: leaf i is row ``rows[i]``.

        ``memory`` is how many bytes the clustering may use (default: no limit). If all distances fit (4 N²
        bytes, or 2 N² in a slower form) and N is at most 100,000, the tree is exact, otherwise approximate;
        ``exact`` chooses one of the two. The tree does not depend on ``threads`` (default: one per core).

        ``progress`` is called with the finished fraction (0..1) at the start, about ten times a second, and
        at the end; an exception from it stops the work and is raised here. Ctrl-C stops it within a second. The
        GIL is released during the work.

        Raises ``ValueError`` for an empty set, for a row with a NaN or an infinite entry (names row and column),
        for a row of zeros with ``cosine`` (names the row), for an unknown linkage or metric, for ``centroid`` with
        ``euclidean``, for a row that does not exist, and threads or memory below 1; ``TypeError`` for anything but
        such an array; ``MemoryError`` if ``exact=True`` does not fit.
        """
    @staticmethod
    def from_merges(
        merges: NDArray[np.int64], scores: NDArray[np.float64], linkage: str = "ward", exact: bool = True
    ) -> Tree:
        """A tree from its merges (N-1, 2), ids as in SciPy (leaf i is i, merge j is N + j), and scores (N-1,).

        ``linkage`` is any name of at most 64 bytes; it and ``exact`` are only stored. Scores may be infinite.
        Raises ``ValueError`` if this is not one binary tree, or a score is negative or NaN.
        """
    @staticmethod
    def join(trees: Sequence[Tree], leaves: Sequence[NDArray[np.int64]]) -> Tree:
        """One tree over the union of the leaves: tree t's leaf i becomes leaf ``leaves[t][i]``.

        The roots are joined, in the order given, by merges of infinite score, so that no cluster ever spans two
        of them. The linkage is that of the trees, or "mixed" if they differ.
        Raises ``ValueError`` unless the leaves are a permutation of 0..N-1.
        """
    def insert(
        self,
        embeddings: NDArray[np.floating] | NDArray[np.uint16],
        groups: NDArray[np.int64],
        *,
        metric: str = "cosine",
        threads: int | None = None,
        bfloat16: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> Tree:
        """A tree with new leaves N, N + 1, ..., in which the clusters of the old ones do not change.

        ``embeddings`` (N + n, D) are the rows of the old leaves, in order, and then of n >= 1 new ones. The new leaves
        are clustered by this tree's linkage among themselves, and each cluster of them joins the old cluster that it
        meets first: at the largest of their distance and their two heights, if the old one is not below another by
        then. Heights of old nodes and the order of old leaves do not change: the tree restricted to the old leaves is
        this one.

        ``groups`` (N + n,) is a number for each leaf. In a joined tree a new leaf joins only parts of finite height
        that hold an old leaf of its group, and new leaves of different groups are never in one cluster of finite
        height. Those of a group that no part holds become a tree of their own, joined by a merge of infinite score.

        Embeddings, ``metric``, ``threads``, ``bfloat16``, ``progress`` and Ctrl-C are as in :meth:`build`; the metric
        has to be the one that this tree was built with. The result is ``exact`` if this tree is.

        Raises ``ValueError`` for what :meth:`build` refuses in the embeddings, for no new rows, a wrong number of
        groups, a linkage that :meth:`build` does not take (such as "mixed"), and for two groups that both grow in one
        part; ``TypeError`` for anything but such an array.
        """
    @property
    def n_leaves(self) -> int:
        """N, the prompts that the tree joins."""
    @property
    def linkage(self) -> str:
        """The name of the linkage that it was built with; "mixed" if it was joined from trees of several."""
    @property
    def exact(self) -> bool:
        """Whether the clustering was exact, not approximate. A joined tree is exact if all its parts are."""
    @property
    def merges(self) -> NDArray[np.int64]:
        """(N-1, 2) ids of the two children of each merge, children before parents, SciPy's numbering."""
    @property
    def scores(self) -> NDArray[np.float64]:
        """(N-1,) distance of the two children of each merge, as the linkage defines it.

        A built tree's merges are in the order in which they were made: by ascending score for ``ward``,
        ``average`` and ``complete``; for ``centroid`` scores may fall.
        """
    @property
    def heights(self) -> NDArray[np.float64]:
        """(N-1,) max of the score and the children's heights; never decreases towards the root."""
    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N-1,) number of leaves below each merge."""
    @property
    def leaf_order(self) -> NDArray[np.int64]:
        """(N,) the leaves from left to right. Every cluster is a contiguous run that begins with its lowest leaf."""
    def to_scipy(self) -> NDArray[np.float64]:
        """(N-1, 4) SciPy linkage matrix: two children (smaller id first), height, size; sorted by height.

        A joined tree has infinite heights, which SciPy's own functions refuse.
        """
    def cut(self, height: float) -> NDArray[np.int64]:
        """(N,) cluster label of each leaf when every node with ``node height >= height`` is split.

        Labels count from 0 in leaf order. Raises ``ValueError`` for a negative or NaN height.
        """
    def counts(self, phi: NDArray[np.float64]) -> NDArray[np.int64]:
        """(K,) number of active clusters at each step for thresholds ``phi`` (K,): 1 + #{heights >= phi[k]}.

        ``phi`` has to be non-increasing, finite, >= 0 and 0 at the end, here and wherever thresholds are given.
        """
    def node_steps(self, phi: NDArray[np.float64]) -> int:
        """Sum of ``counts(phi)`` for thresholds ``phi`` (K,), computed from the sorted heights only."""
    def tau_for_node_steps(self, shape: NDArray[np.float64], target: int) -> float:
        """The smallest tau >= 0 with ``node_steps(tau * shape) <= target``, exact to the last bit of a float.

        ``shape`` is checked as thresholds are. Raises ``ValueError`` if no tau reaches the target; the message
        gives the smallest possible number of node-steps.
        """

@final
class Plan:
    """Which cluster runs when. Every invariant is checked before one exists. Immutable."""

    @staticmethod
    def compile(tree: Tree, phi: NDArray[np.float64]) -> Plan:
        """Cut ``tree`` at thresholds ``phi`` (K,): non-increasing, finite, >= 0, last entry 0.

        Raises ``ValueError`` naming the step and the value otherwise.
        """
    @property
    def tree(self) -> Tree:
        """The tree of all N prompts."""
    @property
    def phi(self) -> NDArray[np.float64]:
        """(K,) the threshold at each step."""
    @property
    def n_prompts(self) -> int:
        """N, the prompts of the whole tree, kept or not."""
    @property
    def n_steps(self) -> int:
        """K, evaluations of the denoiser from noise to image."""
    @property
    def kept(self) -> NDArray[np.int64]:
        """Prompts whose images this plan generates, ascending. All of them unless pruned."""
    @property
    def segments(self) -> NDArray[np.void]:
        """Structured array, one entry per segment, parents before children.

        Ordered by first step, then by position in the leaf order. Read-only; the same array at every access.
        Fields, all int32: ``parent`` (index, -1 for none: at step 0, or resumed), ``first_step``, ``end_step``
        (exclusive), ``leaf_begin``, ``leaf_end`` (range of the leaf order: the *full* cluster, also when pruned) and
        ``representative`` (the full cluster's lowest prompt).
        """
    @property
    def node_steps(self) -> int:
        """Evaluations of the denoiser on one latent: the sum of the segments' lengths."""
    def counts(self) -> NDArray[np.int64]:
        """(K,) number of segments active at each step."""
    def active(self, step: int) -> NDArray[np.int64]:
        """(N,) index of each prompt's segment at ``step``; -1 for a prompt that is not kept, and in a resumed plan for
        one of which nothing is left to run at that step.

        Raises ``IndexError`` if there is no such step.
        """
    def prune(self, keep: NDArray[np.int64]) -> Plan:
        """The plan restricted to prompts ``keep`` (any order, no repeats). The leaf ranges of clusters do not change.

        Raises ``ValueError`` for an empty ``keep``, and for a prompt that is repeated, out of range or not kept
        (names it).
        """
    def resume(self, given: NDArray[np.bool_]) -> Plan:
        """The plan without what ``given`` (segments,) makes needless: of which of :attr:`segments` the state at their
        end is known.

        Segments that reach the last step stay, and those that are not given and that another one that stays forks
        from. One whose parent is left out has no parent, keeps its own ``first_step`` > 0, and continues the state at
        its parent's end; its lane there is ``fresh``. Tree, phi and kept stay. Such a plan cannot be pickled or written
        to a file: both raise ``ValueError``. Raises ``ValueError`` for a wrong number of entries.
        """
    def shard(self, n: int, slack: float = 0.02) -> list[Plan]:
        """At most ``n`` plans that together generate the same images: contiguous shares of the leaf order, cut where
        neighbours share least. Fewer than n when there are fewer prompts.

        The largest share has at most 1 + ``slack`` times the node-steps that it must have. Of all such cuts these
        compute the fewest node-steps again, and then have the smallest largest share.
        Raises ``ValueError`` for n < 1, and unless ``slack`` is finite and >= 0.
        """
    def units(self, workers: int, per_worker: int | None = None) -> list[Plan]:
        """Plans that together generate the same images, costliest first, for workers that take one after the other.

        Their sizes halve: a worker's share is cut into about 1/2, 1/4, ... and two equal last ones, ``per_worker`` in
        all; by default up to 8, while the smallest have 4 images' worth of node-steps. Units of one prompt are not
        halved. ``ValueError`` for numbers below 1.
        """
    def program(
        self,
        batch_size: int,
        order: str = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.int64] | None = None,
        kinds: NDArray[np.int64] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Program:
        """Lower to calls of ``batch_size`` lanes. See :class:`Program`.

        ``rows`` (K,) gives the rows of the network that a lane has at each step, 1 or 2. Then a call has at most
        ``2 batch_size`` rows: ``batch_size`` lanes of two rows, up to twice as many of one, or both. If one row is left
        where the next lane by order has two, the next lane of one row takes it. Default: every lane is one row, and a
        call has ``batch_size`` of them.

        ``kinds`` (segments,) gives the kind of each of :attr:`segments`, a number >= 0; a segment and its parent may
        differ. Then all lanes of a call are of one kind. Default: any lanes may be in one call. Where a cluster is as
        long as its longest member and kinds are lengths, ``breadth`` meets :attr:`Program.lower_bound` without
        ``max_slots`` if all lanes are of one row and no prompt is pruned. ``depth`` comes close with fewer latents
        alive. Some wait for others of their kind, so a small ``max_slots`` costs more calls than without kinds.

        ``mixed_steps=False``: all lanes of a call are at one step. Without ``max_slots`` both orders then meet
        :attr:`Program.lower_bound`, and ``depth`` keeps fewer than 2 K latents alive for each lane of a call.

        ``breadth`` runs depth first if that makes fewer calls in ``max_slots`` slots. ``progress`` and Ctrl-C
        are as in :meth:`Tree.build`. Raises ``ValueError`` for a batch size < 1, for a ``max_slots`` below the
        smallest number that suffices (the message gives it), and for ``rows`` that are not K values of 1 or 2, or
        ``kinds`` that are not one number >= 0 for each segment.
        """
    def check_program(
        self,
        batch_size: int,
        order: str = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Raises what :meth:`program` would raise for these arguments, without lowering the plan."""
    def lower_bound(
        self,
        batch_size: int,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.int64] | None = None,
        kinds: NDArray[np.int64] | None = None,
    ) -> int:
        """Max over k of k + ceil(rows at steps >= k / rows of a call): no program has fewer calls. In a resumed plan,
        whose roots begin at any step, max over d of d + ceil(rows after d node-steps from the root / rows of a call).

        Without mixed steps, the sum over k of ceil(node-steps at step k / lanes of a call at step k): no call has lanes
        of two steps. Without ``rows`` a lane is one row, and a call has ``batch_size``.

        With ``kinds`` no call has lanes of two kinds: without mixed steps the sum is over steps and kinds. With mixed
        steps it is the sum over kinds of max over d of d + ceil(rows after d node-steps of the kind / rows of a call),
        or max over d of d + the sum over kinds of ceil(rows after d node-steps of any kind / rows of a call), if that
        is more.
        """
    def least_slots(self) -> int:
        """The fewest slots any program of this plan needs (Sethi-Ullman number of the segment forest)."""
    def describe(self, max_rows: int = 200) -> str:
        """Segments as aligned text, for people and for golden files."""
    def to_bytes(self, prompts: Sequence[str], seeds: NDArray[np.int64], metadata: str) -> bytes:
        """A safetensors file: tree, phi, kept, prompts (UTF-8 and offsets), seeds (N,), and ``metadata`` (JSON text).

        The header's one entry, ``hsd``, is JSON: ``exact``, ``format``, ``linkage``, ``metadata``, ``prompts_sha256``
        (of prompts and seeds) and ``sha256`` (of everything). The same plan gives the same bytes. For other readers
        the file also holds ``segments`` (M, 6), int32, columns as in :attr:`segments`.
        Raises ``ValueError`` for a wrong number of prompts or seeds, if ``metadata`` is not JSON, and for a resumed
        plan.
        """
    def fingerprint(self, prompts: Sequence[str], seeds: NDArray[np.int64], extra: str) -> str:
        """Hex SHA-256 of the clusters of every step, prompts, seeds and ``extra``; the same for a plan and all plans
        pruned or resumed from it, whatever the last bits of scores and phi are.

        Raises ``ValueError`` for a wrong number of prompts or seeds.
        """
    @staticmethod
    def from_bytes(data: bytes) -> tuple[Plan, list[str], NDArray[np.int64], str]:
        """Read what :meth:`to_bytes` wrote: plan, prompts, seeds, metadata. Safe on untrusted bytes: every shape,
        index, digest and invariant is checked, and each value of the metadata that is used later; ``ValueError`` says
        what is wrong. Time and memory are in proportion to the file.
        """
    @staticmethod
    def file_size(head: bytes) -> int:
        """Bytes of the file that begins with ``head``, which has to hold its header; ``ValueError`` if that is not the
        header of a plan.
        """

@final
class Program:
    """A plan lowered to calls. Every invariant is checked before one exists. Immutable.

    It stores the plan and how to schedule it, not the calls: they are computed again at every read, always with the
    same result. Its memory is linear in the plan's segments; that of :attr:`calls` and :attr:`lanes` is not.

    In each call all lanes read their source before any lane writes its target. A lane may write the slot
    that it reads itself; no lane reads a slot that another lane of the same call writes.
    """

    @property
    def calls(self) -> NDArray[np.void]:
        """Structured array (n_calls, max_lanes), filled lanes first. Read-only; the same array at every access.

        It takes 20 bytes per lane, so the memory is linear in node-steps: for large plans use :meth:`chunks`.

        Fields: ``segment`` (int32; -1 in padding), ``step`` (int32; 0 in padding), ``source`` and ``target``
        (int32 slots; ``n_slots``, a scratch slot, in padding), ``fresh`` (bool: the lane starts a root segment, its
        first latent has to be drawn into ``source`` before the call; at a step > 0, of a resumed plan, its parent's
        state has to be put there), ``begins`` (bool: first step of its segment: its conditioning has to be ready),
        ``final`` (bool: last step; the finished latent is in ``target`` right after the call).

        A segment's target is the same slot at all its steps. A slot is reused at the earliest in the call after
        the one that last needs it, so a finished latent has to be copied out before the next call.
        """
    def chunks(self, calls: int = 1024) -> Chunks:
        """The entries of :attr:`calls` in order, in arrays of at most ``calls``; only one such array is in memory.

        Raises ``ValueError`` for calls < 1.
        """
    @property
    def lanes(self) -> NDArray[np.int64]:
        """(n_calls,) filled lanes of each call. Computed at every access."""
    @property
    def rows(self) -> NDArray[np.int64] | None:
        """(K,) rows of the network that a lane has at each step, as given; None: one at all steps."""
    @property
    def kinds(self) -> NDArray[np.int64] | None:
        """(segments,) kind of each segment, as given; None: lanes of one call may be of any segments."""
    @property
    def rows_per_call(self) -> NDArray[np.int64]:
        """(n_calls,) filled rows of each call. Computed at every access."""
    @property
    def n_rows(self) -> int:
        """Rows of the network of all calls."""
    @property
    def max_rows(self) -> int:
        """The most rows of a call: ``batch_size``, or twice that where ``rows`` were given."""
    @property
    def max_lanes(self) -> int:
        """The most lanes of a call: ``batch_size``, or twice that if ``rows`` were given and some steps have one."""
    @property
    def n_calls(self) -> int:
        """Calls of the denoiser."""
    @property
    def n_slots(self) -> int:
        """Slots used, without the scratch slot."""
    @property
    def batch_size(self) -> int:
        """The size of a call as it was given: lanes, or where ``rows`` were given, lanes of two rows."""
    @property
    def order(self) -> str:
        """``depth`` or ``breadth``, as given."""
    @property
    def mixed_steps(self) -> bool:
        """Whether lanes of one call may be at different steps."""
    @property
    def occupancy(self) -> float:
        """Filled rows / all rows, which are lanes unless ``rows`` were given."""
    @property
    def lower_bound(self) -> int:
        """No program of this plan has fewer calls at this batch size; see :meth:`Plan.lower_bound`."""
    def describe(self, max_rows: int = 200) -> str:
        """Calls and slots as aligned text, for people and for golden files."""

@final
class Chunks:
    """Arrays of consecutive calls; see :meth:`Program.chunks`. After an exception it ends, like a generator."""

    def __iter__(self) -> Chunks: ...
    def __next__(self) -> NDArray[np.void]:
        """The next calls: fields as in :attr:`Program.calls`, read-only. Ctrl-C stops it."""
