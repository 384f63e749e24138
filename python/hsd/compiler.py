"""Prompts to plan: embed, cluster, cut. The front half of HSD; nothing here runs a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._core import Tree
from .encoders import Encoder, default_encoder
from .names import Linkage, Noise, check_name
from .plan import Plan
from .prompts import check_prompts, make_seeds, occurrences
from .schedule import Schedule, check_budget, check_tau, schedule_shape

if TYPE_CHECKING:
    from .models.base import Adapter

Progress = Callable[[str, float], object]
"""Called with the stage (``encode``, ``cluster``) and the fraction of it that is finished (0 to 1)."""


def compile(
    prompts: Iterable[str],
    tau: float | None = None,
    *,
    model: Adapter | object | str | None = None,
    embeddings: Any = None,
    encoder: Encoder | None = None,
    budget: float | None = None,
    steps: int = 40,
    linkage: Linkage = "ward",
    schedule: Schedule = "linear",
    seeds: int | Sequence[int] | NDArray[np.integer] = 0,
    images_per_prompt: int = 1,
    noise: Noise = "independent",
    progress: Progress | None = None,
) -> Plan:
    """Compile prompts to a :class:`Plan`: who shares which denoising steps with whom.

    Parameters
    ----------
    prompts
        N non-empty strings. One that occurs r times asks for r different images.
    tau
        How unlike the prompts of one cluster may be at the first step; 0 shares nothing. Default: 1.0, or what
        suits the model's own embeddings.
    budget
        Instead of ``tau``: the share of denoiser evaluations to save, inside (0, 1). The smallest tau that
        saves at least this much is taken.
    model
        A loaded model, a diffusers pipeline or a name for :func:`hsd.load`: prompts are clustered by its own
        embeddings, and ``steps`` are counted by its scheduler.
    embeddings
        (N, D) floats to cluster by instead: NumPy, or a torch tensor on any device. Cosine distance.
    encoder
        A callable from a list of prompts to (N, D) floats. Default: a small static encoder that needs no network.
    steps
        ``num_inference_steps`` of the scheduler. Without a model, evaluations of the denoiser.
    linkage
        ``ward`` (default: the authors' code), ``centroid`` (the paper's Eqs. 3-5), ``average`` or ``complete``.
    schedule
        How the threshold falls from tau to 0: ``linear``, ``paper-eq7``, ``cosine``, ``log``, a callable of
        k/(K-1), or K fractions of tau.
    seeds
        One integer (prompt i gets ``seeds + i``) or one seed an image.
    images_per_prompt
        r images of each prompt, each in a tree of its own. Images of one prompt are neighbours in the list.
    noise
        ``independent``: each root cluster draws its own first latent; ``shared``: all start from one.
    progress
        Called with the stage (``encode``, then ``cluster``) and its finished fraction (0 to 1).

    Raises
    ------
    TypeError, ValueError
        For bad arguments, naming the index and the value, before any expensive work.
    """
    prompts = check_prompts(prompts)
    if tau is not None and budget is not None:
        raise ValueError(f"give tau ({tau}) or budget ({budget}), not both")
    budget = None if budget is None else check_budget(budget)
    threshold = 1.0 if tau is None else check_tau(tau)
    steps = _count("steps", steps)
    repeats = _count("images_per_prompt", images_per_prompt)
    check_name("linkage", linkage, Linkage)
    check_name("noise", noise, Noise)
    if embeddings is not None and encoder is not None:
        raise ValueError("give embeddings= or encoder=, not both")
    n_given = len(prompts)
    prompts = [prompt for prompt in prompts for _ in range(repeats)]
    seed_array = make_seeds(seeds, len(prompts))

    adapter = conditioning = None
    n_steps = steps
    if model is not None:
        from .models import load

        adapter = load(model)
        n_steps = adapter.sampler(steps).n_steps
        if tau is None and embeddings is None and encoder is None:
            threshold = adapter.default_tau  # it belongs to the scale of the model's own embeddings
    shape = schedule_shape(schedule, n_steps)

    if embeddings is not None:
        vectors = _as_matrix(embeddings, n_given, "embeddings")
        vectors = vectors if repeats == 1 else np.repeat(vectors, repeats, axis=0)
        source = "embeddings"
    elif encoder is not None:
        vectors = _as_matrix(encoder(prompts), len(prompts), "what the encoder returned")
        source = str(getattr(encoder, "name", None) or getattr(encoder, "__name__", type(encoder).__name__))
    elif adapter is not None:
        conditioning = adapter.encode(prompts, seed_array, _encode_progress(progress, len(prompts)))
        vectors = _as_matrix(conditioning.vectors, len(prompts), "the model's embeddings")
        source = adapter.name
    else:
        static = default_encoder()
        vectors, source = static(prompts), static.name

    tree = _replica_tree(vectors, occurrences(prompts), linkage, progress)
    if budget is not None:
        threshold = _tau_for_budget(tree, shape, budget)
    core = _core.Plan.compile(tree, threshold * shape)
    request = {
        "tau": threshold,
        "budget": budget,
        "steps": steps,
        "linkage": linkage,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "images_per_prompt": repeats,
        "noise": noise,
        "encoder": source,
        "hsd_version": _core.__version__,
    }
    plan = Plan(core, prompts, seed_array, request)
    if adapter is not None and conditioning is not None:
        plan.encoded = (adapter, conditioning)
    return plan


def build_tree(
    embeddings: Any, linkage: Linkage = "ward", *, progress: Callable[[float], object] | None = None
) -> Tree:
    """Cluster (N, D) embeddings by cosine distance; ``progress`` gets the finished fraction. See :class:`Tree`.

    Raises
    ------
    ValueError
        For an empty set, a NaN, infinite or all-zero row (named), or an unknown linkage.
    """
    check_name("linkage", linkage, Linkage)
    return Tree.build(_as_matrix(embeddings, None, "embeddings"), linkage, progress=progress)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} has to be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is {value}: it has to be at least 1")
    return int(value)


def _as_matrix(values: Any, n: int | None, what: str) -> NDArray[Any]:
    """``values`` as a C-contiguous (N, D) float32 or float64 array, without a copy where that is possible."""
    if hasattr(values, "detach"):  # a torch tensor, on any device and in any float type
        values = values.detach().cpu()
        values = (values if values.dtype.itemsize >= 4 else values.float()).numpy()
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} has shape {array.shape}: it has to be (N, D), one row a prompt")
    if n is not None and len(array) != n:
        raise ValueError(f"{what} has {len(array)} rows for {n} prompts: give one row a prompt")
    if array.shape[1] == 0:
        raise ValueError(f"{what} has shape {array.shape}: the rows are empty")
    if array.dtype == np.float64:
        return np.ascontiguousarray(array)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{what} holds {array.dtype}: it has to be numbers")
    return np.ascontiguousarray(array, dtype=np.float32)


def _replica_tree(
    vectors: NDArray[Any], replica: NDArray[np.int64], linkage: Linkage, progress: Progress | None
) -> Tree:
    """One tree a replica, joined at infinite height: images of one prompt never share a step."""
    groups = [np.flatnonzero(replica == r) for r in range(int(replica.max()) + 1)]
    trees: list[Tree] = []
    for done, group in enumerate(groups):
        part = None if progress is None else _part_of(progress, done, len(groups))
        trees.append(Tree.build(vectors[group] if len(groups) > 1 else vectors, linkage, progress=part))
    return trees[0] if len(trees) == 1 else Tree.join(trees, groups)


def _encode_progress(progress: Progress | None, n: int) -> Callable[[int], object] | None:
    """Report prompts encoded as a share of all ``n``."""
    return None if progress is None else lambda done: progress("encode", done / n)


def _part_of(progress: Progress, done: int, of: int) -> Callable[[float], object]:
    """Report one of ``of`` equal parts as a share of the whole clustering."""
    return lambda fraction: progress("cluster", (done + fraction) / of)


def _tau_for_budget(tree: Tree, shape: NDArray[np.float64], budget: float) -> float:
    """The smallest tau that saves at least ``budget``; an error that says what can be saved at most."""
    standard = tree.n_leaves * len(shape)
    least = tree.node_steps(np.where(shape > 0, np.finfo(np.float64).max, 0.0))
    target = int(np.floor(standard * (1.0 - budget) + 1e-9 * standard))
    if least > target:
        raise ValueError(
            f"a budget of {budget} cannot be met: sharing all steps but the last saves "
            f"{1 - least / standard:.4f} of {standard:,} evaluations at most"
        )
    return tree.tau_for_node_steps(shape, target)
