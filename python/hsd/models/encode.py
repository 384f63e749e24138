"""Prompts to conditioning: each prompt is encoded once, in batches, and its rows are stored batch by batch."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..conditioning.spool import Spool
from ..conditioning.twins import rounding_of
from ..errors import PromptError
from ..planning.build import plan_of
from ..planning.plan import Plan
from ..replay.denoiser import Batch, Denoiser, Prior
from ..replay.executor import Executor
from ..replay.lowering import program_of
from ..work.faults import device_errors
from ..work.memory import memory_budget
from ..work.progress import Progress, Report
from ..work.quiet import quiet
from .base import batches
from .tables import Tables
from .truncation import report_cuts, without_other_reports

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


def encoded(plan: Plan) -> tuple[Hashable, Conditioning]:
    """Key and conditioning of a plan that was compiled with a model, for callers that need every prompt.

    Raises
    ------
    PromptError
        If some prompts could not be encoded. Names the first.
    """
    key, conditioning = _remembered[plan.origin]
    if conditioning.failed:
        first, n = min(conditioning.failed), len(conditioning.failed)
        more = f", and {n - 1:,} more" if n > 1 else ""
        raise PromptError(
            f"prompt {first} ({plan.prompts[first]!r:.80}){more} cannot be encoded: {conditioning.failed[first]}"
        )
    return key, conditioning


def recall(plan: Plan, key: Hashable) -> Conditioning | None:
    """The remembered conditioning of ``plan``; None if there is none, or if a model with another key encoded it."""
    found = _remembered.get(plan.origin)
    return found[1] if found is not None and found[0] == key else None


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
    gives_up: bool = True,
) -> Conditioning:
    """Encode prompts, each with its settings: :class:`Encodings`, asked once. See there for the other parameters.

    Parameters
    ----------
    needed
        Prompts that will be needed, ascending; all by default. If a prior shares steps, all prompts are encoded:
        its clusters may contain others.
    progress
        Gets the finished fraction.
    gives_up
        With ``skip_failing``, raise if no prompt can be encoded, and after the first few already.
    """
    encodings = Encodings(
        variants, variant, prompts, seeds, memory=memory, cuda_graphs=cuda_graphs, skip_failing=skip_failing
    )
    return encodings.of(needed, progress=progress, gives_up=gives_up)


class Encodings:
    """Prompts that are encoded when they are needed, each once, each with its settings.

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
    memory
        Bytes of rows kept in host memory; the rest goes to a temporary file. Default: :func:`default_memory`.
    cuda_graphs
        Whether priors may be replayed as CUDA graphs.
    skip_failing
        Record prompts that cannot be encoded in :attr:`Conditioning.failed`, and encode the others.
    """

    def __init__(
        self,
        variants: Sequence[Denoiser],
        variant: NDArray[np.int64],
        prompts: Sequence[str],
        seeds: NDArray[np.int64],
        *,
        memory: int | None = None,
        cuda_graphs: bool = True,
        skip_failing: bool = False,
    ) -> None:
        self._variants, self._variant, self._prompts, self._seeds = variants, variant, prompts, seeds
        self._options = {"memory": memory, "cuda_graphs": cuda_graphs}  # for encoding the texts of priors
        self._tables = Tables(prompts, Spool(default_memory() if memory is None else memory), skip_failing)
        self._asked = np.zeros(len(prompts), dtype=bool)
        self._seconds = 0.0

    def new(self, needed: NDArray[np.int64]) -> NDArray[np.int64]:
        """The prompts of ``needed`` that :meth:`of` has not been asked for."""
        return needed[~self._asked[needed]]

    @quiet()
    @without_other_reports()
    def tell_cuts(self, needed: NDArray[np.int64]) -> None:
        """Report now which of the prompts that will be ``needed`` are too long, and at no call of :meth:`of`."""
        if self._tables.tells_cuts:
            self._tables.tells_cuts = False
            chosen = np.isin(np.arange(len(self._prompts)), needed)
            report_cuts(self._variants, self._variant, self._prompts, chosen)

    @quiet()
    @without_other_reports()
    @device_errors(lambda: "encoding the prompts")
    @torch.no_grad()
    def of(
        self, needed: NDArray[np.int64] | None = None, *, progress: Report | None = None, gives_up: bool = True
    ) -> Conditioning:
        """The conditioning of the prompts ``needed`` (ascending; None: all) and of those that were encoded before.

        Raises
        ------
        PromptError
            Names the first prompt that cannot be encoded; with ``skip_failing``, if none can.
        OutOfMemory, DeviceFailed
            If the device has no memory left, or has failed.
        """
        started = time.perf_counter()
        chosen = np.zeros(len(self._prompts), dtype=bool)
        chosen[slice(None) if needed is None else needed] = True
        chosen &= ~self._asked
        tables, of = self._tables, (self._variants, self._variant, self._prompts, self._seeds)
        if chosen.any():
            tables.begin(self._asked, gives_up)
            _encode_into(tables, *of, chosen, self._options, Progress(progress))
            if tables.failed and not tables.any and gives_up:
                n = int(chosen.sum())
                tables.give_up(f"none of the {n} prompts" if n > 1 else "not one prompt")
            self._asked |= chosen  # with a prior that shares steps, that is all of them
            for i in np.flatnonzero(chosen).tolist():
                tables.known.setdefault(int(self._variant[i]), {}).setdefault(self._prompts[i], i)
        self._seconds += time.perf_counter() - started
        return replace(tables.conditioning(), seconds=self._seconds / max(int(self._asked.sum()), 1))


def _encode_into(
    tables: Tables,
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
    if tables.tells_cuts:
        report_cuts(variants, variant, prompts, chosen)
    total, done = int(chosen.sum()), 0
    for v, (part, prior) in enumerate(zip(variants, priors, strict=True)):
        members = np.flatnonzero(chosen & (variant == v))
        if not len(members):
            continue
        tables.share(v, part, members)
        known = tables.known.get(v, {})
        is_unshared = prior is not None and prior.tau == 0  # then prompts can go through it block by block
        for block in batches(len(members), _PRIOR_BLOCK if is_unshared else len(members)):
            part_of = members[block]
            end = done + len(part_of)
            step = whole.part(done / total, end / total)
            _encode_block(part, prior, part_of, prompts, seeds, tables, known, options, step)
            done = end
        tables.fill_failed(members, known.values())
    tables.fill_rest()


def _encode_block(
    part: Denoiser,
    prior: Prior | None,
    members: NDArray[np.int64],
    prompts: Sequence[str],
    seeds: NDArray[np.int64],
    tables: Tables,
    known: dict[str, int],
    options: dict[str, Any],
    progress: Progress,
) -> None:
    """Encode ``members``, which have the same settings. Their prior runs first, if there is one.

    Members whose text is ``known`` have the rows of that prompt.
    """
    texts = [prompts[int(i)] for i in members]
    embeds: Tensor | None = None
    no_text: dict[int, str] = {}
    if prior is not None:
        embeds, read, failed = _run_prior(prior, texts, seeds[members], options, progress.part(0.0, 0.9))
        tables.add_texts(read, members)
        progress = progress.part(0.9, 1.0)
        if failed:
            no_text = {int(members[i]): reason for i, reason in failed.items()}
            left = np.setdiff1d(np.arange(len(members)), list(failed))
            members, texts, embeds = members[left], [texts[i] for i in left], embeds[torch.from_numpy(left)]
    if part.encodes_seeds or embeds is not None:
        firsts, sources = np.arange(len(members)), members
    else:
        firsts, sources = _distinct(members, texts, known)
    before = tables.nbytes
    for piece in batches(len(firsts), 1 if part.encodes_alone else part.encode_batch):
        at = firsts[piece]  # into members
        batch = Batch([texts[int(i)] for i in at], seeds[members[at]], None if embeds is None else embeds[at])
        tables.encode(part, batch, members[at])
        if piece.start == 0:
            tables.check_space(tables.nbytes - before, len(firsts) - len(at), len(at))
        progress(piece.stop / len(firsts))
    tables.repeat(members, sources)
    for i, reason in no_text.items():  # last, when it is known whether the others can be encoded
        tables.fail(i, reason)


def _distinct(
    members: NDArray[np.int64], texts: list[str], known: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the ``texts`` to encode, and (n,) the prompt that has the rows of each of them."""
    first: dict[str, int] = {}
    pairs = zip(texts, members.tolist(), strict=True)
    sources = [known[text] if text in known else first.setdefault(text, i) for text, i in pairs]
    places = np.flatnonzero(np.isin(members, list(first.values())))
    return places, np.array(sources, dtype=np.int64)


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
    tables = Tables(prompts, spool, skips=True)
    tables.gives_up = False
    variant = np.zeros(len(prompts), dtype=np.int64)
    _encode_into(tables, [prior], variant, prompts, seeds, everything, options, progress.part(0.0, 0.3))
    embeds = torch.zeros((len(prompts), *prior.latent_shape()))
    if not tables.any:
        return embeds, tables.vectors, tables.failed
    conditioning = tables.conditioning()
    plan = plan_of(conditioning.vectors, prompts, seeds, prior.tau, sampler.n_steps, rounding_of(conditioning))
    program = program_of(plan, prior, conditioning, prior.encode_batch)
    executor = Executor(plan, program, prior, conditioning, sampler, cuda_graphs=options["cuda_graphs"])
    run, done = progress.part(0.3, 1.0), 0
    for lanes, finished in executor.run():
        if finished:
            embeds[[image.index for image in finished]] = torch.cat([image.latent for image in finished]).cpu()
        done += lanes
        run(done / plan.node_steps)
    return embeds, conditioning.vectors, conditioning.failed
