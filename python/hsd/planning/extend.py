"""More prompts for a plan that exists: where each joins its tree, so that the clusters that are there do not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import Tree
from ..errors import PlanMismatch
from ..names import TreeMetric, check_count
from ..prompts.files import PromptFile
from ..work.progress import Progress, StageReport
from .clustering import Limits
from .columns import check_columns, repeated
from .encoders import EARLIER_NAME, Encoder, StaticEncoder, default_encoder, name_of
from .prompts import check_alone, check_prompts, make_seeds, next_seed, warn_of_failed
from .settings import check_settings
from .twins import same_texts, same_vectors
from .vectors import Vectors, as_vectors, joined

if TYPE_CHECKING:
    from ..models.base import Adapter

_OWN = ("embeddings",)
"""What a plan records in place of an encoder whose vectors only the user has."""


@dataclass(frozen=True)
class Base:
    """The whole plan that prompts are added to."""

    tree: Tree
    phi: NDArray[np.float64]
    prompts: list[str]
    seeds: NDArray[np.int64]
    request: dict[str, Any]
    settings: list[dict[str, Any]]
    """(N,) of each prompt."""
    columns: dict[str, list[Any]]
    fingerprint: str
    vectors: Vectors | None
    """What it was clustered by; None if that is not known any more."""

    @property
    def metric(self) -> str:
        """How they were compared; see :attr:`hsd.Plan.metric`."""
        return str(self.request.get("metric", "cosine"))

    @property
    def tree_metric(self) -> TreeMetric:
        """The same, of the vectors."""
        return "cosine" if self.metric == "cosine" else "euclidean"


@dataclass(frozen=True)
class Additions:
    """Prompts that are added."""

    prompts: list[str]
    seeds: NDArray[np.int64]
    settings: list[dict[str, Any]]
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class Extended:
    """What the larger plan is made of."""

    core: _core.Plan
    prompts: list[str]
    seeds: NDArray[np.int64]
    request: dict[str, Any]
    vectors: Vectors | None


def additions(
    base: Base,
    prompts: Sequence[str] | PromptFile,
    seeds: int | Sequence[int] | NDArray[np.integer] | None,
    images_per_prompt: int,
    settings: Sequence[Mapping[str, Any]] | None,
    columns: Mapping[str, Sequence[Any]] | None,
) -> Additions:
    """The new prompts, checked, each ``images_per_prompt`` times.

    Without ``seeds`` they go on after the largest one of the plan, which is ``seeds + i`` where the plan was compiled
    with one integer.
    """
    repeats = check_count("images_per_prompt", images_per_prompt)
    file = prompts if isinstance(prompts, PromptFile) else None
    given = check_prompts(prompts if file is None else file.prompts)
    if seeds is None:
        seeds = next_seed(base.seeds, len(given) * repeats)
    if file is not None:
        check_alone(settings=settings, columns=columns)
        settings, columns = file.settings, file.columns
        seeds = file.seeds_from(seeds, repeats) if isinstance(seeds, int) else seeds
    values, variant = check_settings(settings, len(given))
    return Additions(
        [prompt for prompt in given for _ in range(repeats)],
        make_seeds(seeds, len(given) * repeats),
        [values[i] for i in np.repeat(variant, repeats)],
        repeated(columns, len(given), repeats),
    )


def extended(
    base: Base,
    new: Additions,
    *,
    model: Adapter | object | str | None = None,
    embeddings: Any = None,
    encoder: Encoder | None = None,
    threads: int | None = None,
    conditioning_memory: int | None = None,
    stages: StageReport | None = None,
) -> Extended:
    """See :meth:`hsd.Plan.extend`."""
    n, added = len(base.prompts), len(new.prompts)
    texts = base.prompts + new.prompts
    seeds = np.concatenate([base.seeds, new.seeds])
    columns = _joined_columns(base.columns, n, new.columns, added)
    request = {name: value for name, value in base.request.items() if name not in ("settings", "columns")}
    values, variant = check_settings([*base.settings, *new.settings], n + added)
    if len(values) > 1 or values[0]:
        request["settings"] = {"values": values, "index": variant.tolist()}
    if columns:
        request["columns"] = columns
    request["extensions"] = [*(request.get("extensions") or ()), n]
    request["grown_from"] = [*(request.get("grown_from") or ()), base.fingerprint]

    if base.phi[0] <= 0:  # nothing shares a step
        single = Tree.build(np.ones((1, 1), dtype=np.float32))
        leaves = [np.arange(n), *np.arange(n, n + added)[:, None]]
        tree = Tree.join([base.tree, *[single] * added], leaves)
        return Extended(_core.Plan.compile(tree, base.phi), texts, seeds, request, None)

    source = _Source(base, model, embeddings, encoder, conditioning_memory)
    vectors, failed, rounding = source.vectors(texts, seeds, values, variant, stages)
    kind = base.tree_metric
    limits = Limits(threads=threads).arguments()
    labels = [same_texts(texts), same_vectors(vectors, cosine=kind == "cosine", rounding=rounding)]
    if failed:
        warn_of_failed(failed, texts, stacklevel=4)
    groups = _groups(base.tree, variant, labels, n, sorted(failed))
    tree = base.tree.insert(
        vectors.array,
        groups,
        metric=kind,
        bfloat16=vectors.bfloat16,
        threads=limits["threads"],
        progress=None if stages is None else partial(stages, "cluster"),
    )
    return Extended(_core.Plan.compile(tree, base.phi), texts, seeds, request, vectors)


@dataclass(frozen=True)
class _Source:
    """Where the vectors come from: what the plan was clustered by."""

    base: Base
    model: Adapter | object | str | None
    embeddings: Any
    encoder: Encoder | None
    memory: int | None

    def __post_init__(self) -> None:
        given = [
            name
            for name, value in (("model", self.model), ("embeddings", self.embeddings), ("encoder", self.encoder))
            if value is not None
        ]
        if len(given) > 1:
            raise ValueError(f"give one of model=, embeddings= and encoder=, not {' and '.join(given)}")

    def vectors(
        self,
        texts: list[str],
        seeds: NDArray[np.int64],
        values: list[dict[str, Any]],
        variant: NDArray[np.int64],
        stages: StageReport | None,
    ) -> tuple[Vectors, dict[int, str], float | None]:
        """(N + n, D) of all prompts, which of the new ones cannot be encoded, with the reason, and how near the vectors
        of one text are, where that does not follow from their dtype.
        """
        old, n, total = self.base.vectors, len(self.base.prompts), len(texts)
        name = str(self.base.request["encoder"])
        done = Progress(None if stages is None else partial(stages, "encode"))
        if self.embeddings is not None:
            own = self.embeddings
            given = own if isinstance(own, Vectors) else as_vectors(own, None, "embeddings")
            count = len(given.array)
            if count == total:
                return self._checked(given), {}, None
            if count != total - n:
                raise ValueError(
                    f"embeddings has {count} rows: give one for each of the {total - n} new prompts, or for all {total}"
                )
            if old is None:
                raise ValueError(
                    f"embeddings has rows for the {total - n} new prompts only, and those of the {n} others are not "
                    "known any more: give one row for each prompt, those of the plan first"
                )
            return self._checked(joined(old, given)), {}, None
        first = 0 if old is None else n
        rounding: float | None = None
        if self.model is not None:
            found, failed, rounding = self._by_model(name, texts, seeds, values, variant, first, done)
        else:
            failed, rows = {}, self._encoder(name)(texts[first:])
            found = as_vectors(rows, total - first, "what the encoder returned")
            done(1.0)
        of_new = {i + first: reason for i, reason in failed.items() if i + first >= n}
        return self._checked(found if old is None else joined(old, found)), of_new, rounding

    def _checked(self, vectors: Vectors) -> Vectors:
        _core.check_embeddings(vectors.array, metric=self.base.tree_metric, bfloat16=vectors.bfloat16)
        return vectors

    def _encoder(self, name: str) -> Encoder:
        if self.encoder is not None:
            own = name_of(self.encoder)
            if own != name:
                raise PlanMismatch(f"the plan was clustered by {name}, and encoder= is {own}: give the one of the plan")
            return self.encoder
        if name in (StaticEncoder.name, EARLIER_NAME):
            return default_encoder()
        if name in _OWN:
            raise ValueError(
                "the plan was clustered by embeddings that were given: give embeddings= of the new prompts"
            )
        raise ValueError(f"the plan was clustered by {name}: give model=, or the encoder=, that it was compiled with")

    def _by_model(
        self,
        name: str,
        texts: list[str],
        seeds: NDArray[np.int64],
        values: list[dict[str, Any]],
        variant: NDArray[np.int64],
        first: int,
        done: Progress,
    ) -> tuple[Vectors, dict[int, str], float]:
        """The vectors of the prompts from ``first`` on, as the plan compares them, and which of these have failed."""
        metric = self.base.metric
        if metric == "direct":
            raise PlanMismatch(
                "the plan compares prompts by the model's predictions for all of them (metric 'direct'), which "
                "another prompt changes: compile a new plan, or one with another metric"
            )
        from ..conditioning.twins import rounding_of
        from ..models import load, variants_of  # here, so that planning without a model does not import torch
        from ..models.encode import encode

        adapter = load(self.model)
        if adapter.name != name:
            raise PlanMismatch(
                f"the plan was clustered by {name}, and model= is {adapter.name}: give the model, embeddings= or "
                "encoder= that it was compiled with"
            )
        variants = variants_of(adapter, values)
        calibration = adapter.calibration
        digest = None if calibration is None else calibration.digest
        if metric == "calibrated" and digest != self.base.request.get("calibration"):
            raise PlanMismatch(
                "the plan compares prompts by a calibration that the model does not have any more: extend it on the "
                "machine where it was compiled, or compile a new plan"
            )
        own = variant[first:]
        conditioning = encode(
            variants,
            own,
            texts[first:],
            seeds[first:],
            memory=self.memory,
            progress=done,
            skip_failing=True,
            gives_up=False,
        )
        array: Any = conditioning.vectors
        if len(conditioning.failed) == len(own):  # they share nothing, so any vector will do
            array = np.ones(
                (len(own), 1 if self.base.vectors is None else self.base.vectors.array.shape[1]), np.float32
            )
        elif metric == "calibrated":
            assert calibration is not None
            array = calibration.transform(array)
        return as_vectors(array, len(own), "the model's embeddings"), conditioning.failed, rounding_of(conditioning)


def _groups(
    tree: Tree, variant: NDArray[np.int64], labels: list[NDArray[np.int64]], n: int, failed: Sequence[int]
) -> NDArray[np.int64]:
    """(N + n,) which part of the tree each prompt is in, or may join.

    A new prompt joins the largest part of its settings in which nobody has one of its labels: images that nothing
    tells apart share no step. If there is none it is in a new one, and a prompt that has failed is in one of its own.
    """
    part = tree.cut(np.inf)  # trees that are joined at infinite height
    groups = np.concatenate([part, np.full(len(variant) - n, -1, dtype=np.int64)])
    sizes = np.bincount(part)
    following = len(sizes)
    first = np.zeros(len(sizes), dtype=np.int64)
    first[part[::-1]] = np.arange(n)[::-1]  # the lowest prompt of each part
    of_variant: dict[int, list[int]] = {}
    for which in np.argsort(-sizes, kind="stable").tolist():
        of_variant.setdefault(int(variant[first[which]]), []).append(which)
    taken: dict[tuple[int, int], set[int]] = {}
    new_labels = {(kind, int(label)) for kind, own in enumerate(labels) for label in own[n:]}
    for kind, own in enumerate(labels):
        for i in np.flatnonzero(np.isin(own[:n], [label for which, label in new_labels if which == kind])).tolist():
            taken.setdefault((kind, int(own[i])), set()).add(int(part[i]))
    alone = set(failed)
    for i in range(n, len(variant)):
        own_keys = [(kind, int(own[i])) for kind, own in enumerate(labels)]
        occupied = set().union(*(taken.get(key, set()) for key in own_keys))
        choices = of_variant.setdefault(int(variant[i]), [])
        chosen = None if i in alone else next((which for which in choices if which not in occupied), None)
        if chosen is None:
            chosen, following = following, following + 1
            if i not in alone:
                choices.append(chosen)
        groups[i] = chosen
        if i not in alone:
            for key in own_keys:
                taken.setdefault(key, set()).add(chosen)
    return groups


def _joined_columns(old: dict[str, list[Any]], n: int, new: dict[str, list[Any]], added: int) -> dict[str, list[Any]]:
    names = dict.fromkeys([*old, *new])
    return check_columns(
        {name: [*old.get(name, [None] * n), *new.get(name, [None] * added)] for name in names}, n + added
    )
