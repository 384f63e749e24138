"""Prompts to conditioning: each prompt is encoded once, in batches, and its rows are stored batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning, Field, Rows
from ..conditioning.spool import Spool
from ..conditioning.twins import rounding_of
from ..errors import Error, PromptError
from ..planning.build import plan_of
from ..planning.plan import Plan
from ..replay.denoiser import Batch, Denoiser, Encoded, Prior
from ..replay.executor import Executor
from ..work.faults import NOT_FINITE, apart, described
from ..work.memory import memory_budget
from ..work.progress import Progress, Report
from .base import batches
from .truncation import report_cuts, without_other_reports

_PRIOR_BLOCK = 4096
"""Number of prompts that run through a prior together if it shares nothing."""

_HOPELESS = 16
"""If this many prompts fail before the first that is encoded, the reason is the model and not the prompts."""

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


@without_other_reports()
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
    skip_failing: bool = False,
) -> Conditioning:
    """Encode prompts, each with its settings.

    A batch that raises is taken apart, so that the error names a prompt. Rows with NaN or infinity are an error too:
    they would make the mean of every cluster of their prompt NaN.

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
    skip_failing
        Record prompts that cannot be encoded in :attr:`Conditioning.failed`, and encode the others.

    Raises
    ------
    PromptError
        Names the first prompt that cannot be encoded; with ``skip_failing``, if none can.
    """
    chosen = np.zeros(len(prompts), dtype=bool)
    chosen[slice(None) if needed is None else needed] = True
    options = {"memory": memory, "cuda_graphs": cuda_graphs}  # for encoding the texts of priors
    tables = _Tables(prompts, Spool(default_memory() if memory is None else memory), skip_failing)
    _encode_into(tables, variants, variant, prompts, seeds, chosen, options, Progress(progress))
    if tables.failed and not tables.any:
        n = int(chosen.sum())
        tables.give_up(f"none of the {n} prompts" if n > 1 else "not one prompt")
    return tables.conditioning()


def _encode_into(
    tables: _Tables,
    variants: Sequence[Denoiser],
    variant: NDArray[np.int64],
    prompts: Sequence[str],
    seeds: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    options: dict[str, Any],
    whole: Progress,
) -> None:
    """Encode the ``chosen`` prompts (N,), or all of them where a prior may need them."""
    priors = [part.prior() for part in variants]
    if any(prior is not None and prior.tau > 0 for prior in priors):
        chosen[:] = True
    report_cuts(variants, variant, prompts, chosen)
    total, done = int(chosen.sum()), 0
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
        tables.stand_in(members)


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
        embeds, read, failed = _run_prior(prior, texts, seeds[members], options, progress.part(0.0, 0.9))
        tables.add_texts(read, members)
        progress = progress.part(0.9, 1.0)
        if failed:
            for i, reason in failed.items():
                tables.fail(members[i : i + 1], reason)
            left = np.setdiff1d(np.arange(len(members)), list(failed))
            members, texts, embeds = members[left], [texts[i] for i in left], embeds[torch.from_numpy(left)]
    firsts, row = _distinct(part, texts, embeds is not None)
    for piece in batches(len(firsts), part.encode_batch):
        at = firsts[piece]  # into members
        batch = Batch([texts[int(i)] for i in at], seeds[members[at]], None if embeds is None else embeds[at])
        tables.encode(part, batch, members[at])
        if piece.start == 0:
            tables.check_space(len(firsts) - len(at), len(at))
        progress(piece.stop / len(firsts))
    tables.repeat(members, members[firsts][row])


def _of_batch(batch: Batch, at: list[int]) -> Batch:
    """The prompts of a batch at some positions."""
    if at == list(range(len(batch))):
        return batch
    prior = None if batch.prior is None else batch.prior[at]
    return Batch([batch.prompts[i] for i in at], batch.seeds[at], prior)


def _check_lengths(encoded: Encoded, n: int) -> None:
    """``Error`` unless there is one row of each field, and one vector, for each of ``n`` prompts."""
    for name, rows in encoded.rows.items():
        if len(rows) != n:
            raise Error(f"encode gave {len(rows)} rows of {name} for a batch of {n} prompts")
    if encoded.vectors.ndim != 2 or len(encoded.vectors) != n:
        raise Error(f"encode gave vectors of shape {tuple(encoded.vectors.shape)} for a batch of {n} prompts")


def _finite(encoded: Encoded) -> NDArray[np.bool_]:
    """(B,) whether all that was encoded of a prompt is finite."""
    finite = torch.isfinite(encoded.vectors).all(dim=1)  # [B]
    for rows in encoded.rows.values():
        if isinstance(rows, Tensor):
            each = torch.isfinite(rows).flatten(1).all(dim=1)
        else:
            each = torch.stack([torch.isfinite(row).all() for row in rows])
        finite = finite & each.to(finite.device)
    return finite.cpu().numpy()


def _picked(encoded: Encoded, at: NDArray[np.int64]) -> Encoded:
    """What was encoded of the prompts at some positions."""
    rows: dict[str, Tensor | Sequence[Tensor]] = {
        name: tensor[at] if isinstance(tensor, Tensor) else [tensor[i] for i in at]
        for name, tensor in encoded.rows.items()
    }
    return Encoded(rows, encoded.vectors[at])


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

    def __init__(self, prompts: Sequence[str], spool: Spool, skips: bool, nested: bool = False) -> None:
        self.fields: dict[str, Field] = {}
        self.vectors: NDArray[np.float32] = np.zeros((len(prompts), 0), dtype=np.float32)
        self.texts: NDArray[np.float32] | None = None
        self.failed: dict[int, str] = {}
        self.skips = skips
        self._nested = nested  # inside the encoding of other prompts, which decides what a failure means
        self._prompts, self._n, self._spool = prompts, len(prompts), spool
        self._first: Exception | None = None

    def _field(self, name: str, rows: Tensor | Sequence[Tensor]) -> Field:
        if name not in self.fields:
            ragged = not isinstance(rows, Tensor)
            index = np.full(self._n, -1, dtype=np.int64)
            self.fields[name] = Field(Rows(self._spool, ragged=ragged), index)
        return self.fields[name]

    def add_shared(self, shared: dict[str, Tensor | Sequence[Tensor]], members: NDArray[np.int64]) -> None:
        for name, row in shared.items():
            assert len(row) == 1, (name, len(row))
            if not torch.isfinite(row[0]).all():
                raise Error(f"{name}, which all prompts share, has {NOT_FINITE}: try the model in float32")
            field = self._field(name, row)
            field.index[members] = len(field.rows)
            field.rows.append(row)

    def encode(self, part: Denoiser, batch: Batch, members: NDArray[np.int64]) -> None:
        """Encode a batch and add its rows. Prompts that cannot be encoded are recorded."""
        done, errors = apart(range(len(batch)), lambda at: part.encode(_of_batch(batch, at)))
        for i, error in errors.items():
            self.fail(members[i : i + 1], described(error), error)
        for positions, encoded in done:
            at = np.array(positions)
            _check_lengths(encoded, len(at))
            tried = ~np.isin(at, list(errors))  # another prompt was in the place of each that failed
            good = _finite(encoded) & tried
            for i in at[tried & ~good]:
                self.fail(members[i : i + 1], f"the encoder gave {NOT_FINITE}")
            self._add(encoded if good.all() else _picked(encoded, np.flatnonzero(good)), members[at[good]])

    def _add(self, encoded: Encoded, members: NDArray[np.int64]) -> None:
        if not len(members):
            return
        for name, rows in encoded.rows.items():
            field = self._field(name, rows)
            field.index[members] = len(field.rows) + np.arange(len(members))
            field.rows.append(rows)
        vectors = encoded.vectors.detach().float().cpu().numpy()
        if not self.any:
            self.vectors = np.zeros((self._n, vectors.shape[1]), dtype=np.float32)
        self.vectors[members] = vectors

    def add_texts(self, vectors: NDArray[np.float32], members: NDArray[np.int64]) -> None:
        if not vectors.shape[1]:
            return  # none of them was encoded
        if self.texts is None:
            self.texts = np.zeros((self._n, vectors.shape[1]), dtype=np.float32)
        self.texts[members] = vectors

    def conditioning(self) -> Conditioning:
        """What has been encoded."""
        return Conditioning(self.fields, self.vectors, self._spool, self.texts, self.failed)

    @property
    def any(self) -> bool:
        """Whether any prompt has been encoded."""
        return self.vectors.shape[1] > 0

    def fail(self, members: NDArray[np.int64], reason: str, error: Exception | None = None) -> None:
        """Record that a prompt cannot be encoded. Raises unless prompts may fail, and if all of the first ones do."""
        self.failed |= dict.fromkeys(members.tolist(), reason)
        self._first = self._first or error
        if self._nested:
            return
        if not self.skips:
            raise PromptError(f"{self._named(members[0])} cannot be encoded: {reason}") from error
        kinds = {each.partition(":")[0] for each in self.failed.values()}
        if not self.any and len(self.failed) >= _HOPELESS and len(kinds) == 1:
            self.give_up(f"none of the first {len(self.failed)} prompts")

    def give_up(self, which: str) -> NoReturn:
        """Raise for all prompts that have failed; ``which`` says which ones they are."""
        first = min(self.failed)
        raise PromptError(f"{which} can be encoded; {self._named(first)}: {self.failed[first]}") from self._first

    def _named(self, index: int) -> str:
        return f"prompt {index} ({self._prompts[index]!r:.80})"

    def repeat(self, members: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
        """Give ``members`` the rows of their ``sources``, which are among them. Where one failed, all of them do."""
        if self.failed:
            pairs = zip(members.tolist(), sources.tolist(), strict=True)
            self.failed |= {i: self.failed[source] for i, source in pairs if source in self.failed}
        self._copy(members, sources)

    def stand_in(self, members: NDArray[np.int64]) -> None:
        """Give the failed ones of ``members``, which have the same settings, the rows of one that was encoded.

        If all of them failed, nothing reads their rows; their vectors are another prompt's.
        """
        lost = np.isin(members, list(self.failed))
        if lost.any() and not lost.all():
            self._copy(members[lost], members[~lost][0])
        elif lost.any() and self.any:
            self.vectors[members] = 1.0

    def _copy(self, members: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
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
    n_steps = prior.sampler(prior.steps).n_steps
    return plan_of(texts.vectors, list(prompts), seeds, prior.tau, n_steps, rounding_of(texts)).savings


def _run_prior(
    prior: Prior,
    prompts: list[str],
    seeds: NDArray[np.int64],
    options: dict[str, Any],
    progress: Progress,
) -> tuple[Tensor, NDArray[np.float32], dict[int, str]]:
    """The prior's output for each prompt, (n, *latent) float32 on the host; steps are shared if its tau is above 0.

    With it, vectors (n, D) of the texts that it reads, and the prompts that cannot be encoded: what is given for them
    means nothing.
    """
    sampler = prior.sampler(prior.steps)
    everything, memory = np.ones(len(prompts), dtype=bool), options["memory"]
    spool = Spool(default_memory() if memory is None else memory)
    tables = _Tables(prompts, spool, skips=True, nested=True)
    variant = np.zeros(len(prompts), dtype=np.int64)
    _encode_into(tables, [prior], variant, prompts, seeds, everything, options, progress.part(0.0, 0.3))
    embeds = torch.zeros((len(prompts), *prior.latent_shape()))
    if not tables.any:
        return embeds, tables.vectors, tables.failed
    conditioning = tables.conditioning()
    plan = plan_of(conditioning.vectors, prompts, seeds, prior.tau, sampler.n_steps, rounding_of(conditioning))
    program = plan.program(prior.encode_batch, mixed_steps=prior.mixed_timesteps)
    executor = Executor(plan, program, prior, conditioning, sampler, cuda_graphs=options["cuda_graphs"])
    run, done = progress.part(0.3, 1.0), 0
    for lanes, finished in executor.run():
        if finished:
            embeds[[image.index for image in finished]] = torch.cat([image.latent for image in finished]).cpu()
        done += lanes
        run(done / plan.node_steps)
    return embeds, conditioning.vectors, conditioning.failed
