"""Prompts to conditioning: each prompt is encoded once, in batches, and its rows are stored batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning, Field, Rows
from ..conditioning.spool import Spool
from ..errors import Error
from ..planning.build import plan_of
from ..planning.plan import Plan
from ..replay.denoiser import Batch, Denoiser, Encoded, Prior
from ..replay.executor import Executor
from ..work.memory import memory_budget
from ..work.progress import Progress, Report
from .base import batches

_PRIOR_BLOCK = 4096
"""Number of prompts that run through a prior together if it shares nothing."""

_MEMORY_SHARE = 0.5
"""Share of the memory that clustering may take: clustering comes after encoding, and needs the rest."""


def default_memory() -> int:
    """Bytes of rows that are kept in host memory by default."""
    return int(memory_budget() * _MEMORY_SHARE)


_remembered: WeakKeyDictionary[Plan, tuple[Hashable, Conditioning]] = WeakKeyDictionary()
"""Key and conditioning, by the origin of a plan. An entry is removed with its plan."""


def remember(plan: Plan, key: Hashable, conditioning: Conditioning) -> None:
    """Keep the conditioning of the prompts of ``plan`` for it and for all plans that are pruned from it.

    ``key`` is the :meth:`Adapter.encoding_key` of the model that encoded them. The plan itself does not change.
    """
    _remembered[plan.origin] = key, conditioning


def is_remembered(plan: Plan) -> bool:
    """Whether any model's conditioning of ``plan`` is kept. Cheap, while the key of a model reads its weights."""
    return plan.origin in _remembered


def recall(plan: Plan, key: Hashable) -> Conditioning | None:
    """The remembered conditioning of ``plan``; None if there is none, or if a model with another key encoded it."""
    found = _remembered.get(plan.origin)
    return found[1] if found is not None and found[0] == key else None


@torch.no_grad()
def encode(
    variants: Sequence[Denoiser],
    variant: NDArray[np.int64],
    prompts: Sequence[str],
    seeds: NDArray[np.int64],
    *,
    needed: NDArray[np.int64] | None = None,
    memory: int | None = None,
    cuda_graphs: bool = True,
    progress: Report | None = None,
) -> Conditioning:
    """Encode prompts, each with its settings.

    Parameters
    ----------
    variants
        The model, once with each combination of settings that some prompt has.
    variant
        (N,) index of each prompt's variant.
    prompts, seeds
        N each.
    needed
        Prompts that will be needed, ascending; all by default. If a prior shares steps, all prompts are encoded:
        its clusters may contain others.
    memory
        Bytes of rows kept in host memory; the rest goes to a temporary file. Default: :func:`default_memory`.
    cuda_graphs
        Whether priors may be replayed as CUDA graphs.
    progress
        Gets the finished fraction.
    """
    n = len(prompts)
    chosen = np.zeros(n, dtype=bool)
    chosen[slice(None) if needed is None else needed] = True
    priors = [part.prior() for part in variants]
    if any(prior is not None and prior.tau > 0 for prior in priors):
        chosen[:] = True
    options = {"memory": memory, "cuda_graphs": cuda_graphs}  # for encoding the texts of priors
    spool = Spool(default_memory() if memory is None else memory)
    tables = _Tables(n, spool)
    total, done, whole = int(chosen.sum()), 0, Progress(progress)
    for v, (part, prior) in enumerate(zip(variants, priors, strict=True)):
        members = np.flatnonzero(chosen & (variant == v))
        if not len(members):
            continue
        tables.add_shared(part.shared(), members)
        is_unshared = prior is not None and prior.tau == 0  # then prompts can go through it block by block
        for block in batches(len(members), _PRIOR_BLOCK if is_unshared else len(members)):
            part_of = members[block]
            end = done + len(part_of)
            step = whole.part(done / total, end / total)
            _encode_block(part, prior, part_of, prompts, seeds, tables, options, step)
            done = end
    return Conditioning(tables.fields, tables.vectors, spool)


def _encode_block(
    part: Denoiser,
    prior: Prior | None,
    members: NDArray[np.int64],
    prompts: Sequence[str],
    seeds: NDArray[np.int64],
    tables: _Tables,
    options: dict[str, Any],
    progress: Progress,
) -> None:
    """Encode ``members``, which have the same settings. Their prior runs first, if there is one."""
    texts = [prompts[int(i)] for i in members]
    embeds = None
    if prior is not None:
        embeds = _run_prior(prior, texts, seeds[members], options, progress.part(0.0, 0.9))
        progress = progress.part(0.9, 1.0)
    firsts, row = _distinct(part, texts, embeds is not None)
    for piece in batches(len(firsts), part.encode_batch):
        at = firsts[piece]  # into members
        batch = Batch([texts[int(i)] for i in at], seeds[members[at]], None if embeds is None else embeds[at])
        tables.add(part.encode(batch), members[at])
        if piece.start == 0:
            tables.check_space(len(firsts) - len(at), len(at))
        progress(piece.stop / len(firsts))
    tables.repeat(members, members[firsts][row])


def _distinct(part: Denoiser, texts: list[str], has_prior: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the ``texts`` to encode, and for each text the index of its own among them."""
    if part.encodes_seeds or has_prior:
        everything = np.arange(len(texts))
        return everything, everything
    first: dict[str, int] = {}
    row = np.array([first.setdefault(text, len(first)) for text in texts], dtype=np.int64)
    _, places = np.unique(row, return_index=True)
    return places, row


class _Tables:
    """The fields of a conditioning while prompts are encoded."""

    def __init__(self, n: int, spool: Spool) -> None:
        self.fields: dict[str, Field] = {}
        self.vectors: NDArray[np.float32] = np.zeros((n, 0), dtype=np.float32)
        self._n, self._spool = n, spool

    def _field(self, name: str, rows: Tensor | Sequence[Tensor]) -> Field:
        if name not in self.fields:
            ragged = not isinstance(rows, Tensor)
            index = np.full(self._n, -1, dtype=np.int64)
            self.fields[name] = Field(Rows(self._spool, ragged=ragged), index)
        return self.fields[name]

    def add_shared(self, shared: dict[str, Tensor | Sequence[Tensor]], members: NDArray[np.int64]) -> None:
        for name, row in shared.items():
            assert len(row) == 1, (name, len(row))
            field = self._field(name, row)
            field.index[members] = len(field.rows)
            field.rows.append(row)

    def add(self, encoded: Encoded, members: NDArray[np.int64]) -> None:
        for name, rows in encoded.rows.items():
            if len(rows) != len(members):
                raise Error(f"encode gave {len(rows)} rows of {name} for a batch of {len(members)} prompts")
            field = self._field(name, rows)
            field.index[members] = len(field.rows) + np.arange(len(members))
            field.rows.append(rows)
        vectors = encoded.vectors.detach().float().cpu().numpy()
        if vectors.ndim != 2 or len(vectors) != len(members):
            raise Error(f"encode gave vectors of shape {vectors.shape} for a batch of {len(members)} prompts")
        if not self.vectors.shape[1]:
            self.vectors = np.zeros((self._n, vectors.shape[1]), dtype=np.float32)
        self.vectors[members] = vectors

    def repeat(self, members: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
        """Give ``members`` the rows of their ``sources``, which are among them."""
        self.vectors[members] = self.vectors[sources]
        for field in self.fields.values():
            field.index[members] = field.index[sources]

    def check_space(self, left: int, done: int) -> None:
        """After the first batch: raise unless all batches fit, if they are as large as the first."""
        self._spool.check_space(sum(field.rows.nbytes for field in self.fields.values()) // done * left)


def prior_savings(prior: Prior, prompts: Sequence[str], seeds: NDArray[np.int64]) -> float:
    """Share of the prior's evaluations that is saved by sharing its steps. It encodes the texts, if it shares any."""
    if not prior.tau:
        return 0.0
    texts = encode([prior], np.zeros(len(prompts), dtype=np.int64), prompts, seeds)
    return plan_of(texts.vectors, list(prompts), seeds, prior.tau, prior.sampler(prior.steps).n_steps).savings


def _run_prior(
    prior: Prior, prompts: list[str], seeds: NDArray[np.int64], options: dict[str, Any], progress: Progress
) -> Tensor:
    """The prior's output for each prompt, (n, *latent) float32 on the host; steps are shared if its tau is above 0."""
    sampler = prior.sampler(prior.steps)
    variant = np.zeros(len(prompts), dtype=np.int64)
    conditioning = encode([prior], variant, prompts, seeds, progress=progress.part(0.0, 0.3), **options)
    plan = plan_of(conditioning.vectors, prompts, seeds, prior.tau, sampler.n_steps)
    program = plan.program(prior.encode_batch, mixed_steps=prior.mixed_timesteps)
    executor = Executor(plan, program, prior, conditioning, sampler, cuda_graphs=options["cuda_graphs"])
    embeds = torch.zeros((len(prompts), *prior.latent_shape()))
    run, done = progress.part(0.3, 1.0), 0
    for lanes, finished in executor.run():
        if finished:
            embeds[[image.index for image in finished]] = torch.cat([image.latent for image in finished]).cpu()
        done += lanes
        run(done / plan.node_steps)
    return embeds
