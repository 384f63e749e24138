"""Plan to images, for :func:`hsd.stream` and :func:`hsd.generate`."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._core import Program
from ..conditioning.rows import Conditioning
from ..errors import FailedImages, Notice, PlanMismatch
from ..models import Adapter, variants_of
from ..models.base import batches
from ..models.caches import refuse_step_caches
from ..models.encode import Encodings, default_memory, is_remembered, recall
from ..models.identity import image_description
from ..planning.catch_up import catch_up_weights
from ..planning.plan import Plan
from ..replay.catch_up import catch_up_of
from ..replay.executor import Evaluation, Executor, Forks, check_fit
from ..replay.lowering import program_of
from ..sampler import SamplerTable
from ..tuning import speeds
from ..tuning.batching import automatic, curve_of
from ..tuning.curve import Curve
from ..tuning.passes import passes_of, plans_of, rows_of
from ..work.faults import device_errors
from ..work.progress import Report
from ..work.quiet import quietly
from .alive import alive_after
from .clustering import without_twins
from .decoding import Decoded, Decoder, Undecoded
from .events import Event, Part, Sums, Watch
from .failures import Failures, summary
from .forks import ForkFolder
from .image_text import Texts
from .options import Options
from .results import Image
from .resuming import ResumedRun, TrunksOfPass
from .variations import begins_of_variations, fresh_noise

_LOG = logging.getLogger(__name__)

_DOING = {
    "encode": "encoding the prompts",
    "measure": "measuring the denoiser",
    "denoise": "denoising",
    "decode": "decoding images",
}
"""What each part of a run is called in an error, by its name in :attr:`Session.seconds`."""

_GENERATOR = 6000
"""Bytes of the state of a generator, about, and of the entry of a trunk in its file."""

_AHEAD = 128
"""Prompts that a part of a plan encodes between two signs of life."""


def check(adapter: Adapter, options: Options, plan: Plan) -> None:
    """Raise what a session would raise for these options, whichever plan it runs."""
    Session(plan, adapter, replace(options, max_slots=None))


class Session:
    """A model and the options of a run, checked; records the time of each part."""

    def __init__(
        self, plan: Plan, adapter: Adapter, options: Options, observer: Callable[[Evaluation], object] | None = None
    ) -> None:
        self.adapter, self.options, self.observer = adapter, options, observer
        self.variants = variants_of(adapter, plan.settings)
        self.catch_up = catch_up_of(plan, adapter)
        """gamma of catch-up conditioning: the plan's, or the model's default."""
        self.batch_size: int = 1 if options.batch_size == "auto" else options.batch_size
        """For ``"auto"``, the size of the latest pass."""
        self.seconds = dict.fromkeys(_DOING, 0.0)
        self._part = "encode"
        """The part of the run that has begun last."""
        self.node_steps = self.standard_node_steps = 0
        """What has run so far, and what its images need without sharing."""
        self.plan = plan
        """What :meth:`images` runs, once it has encoded the prompts."""
        self.encoding = 0.0
        """Seconds per image of encoding, whether in this session or when the plan was compiled."""
        self._texts: Texts | None = None  # what images say of themselves, and of whom they share with
        self._warned = False  # that a decoder overflows
        self.forks: ForkFolder | None = None
        """Where pictures of forks are kept, if they are."""
        self.trunks: ResumedRun | None = None
        """Where states at forks are kept, and found, if they are."""
        self._encodings: Encodings | None = None  # if they are kept for later parts of the plan
        self._recalled: list[Conditioning | None] = []  # one entry, once it was looked for
        self._curves: dict[int, Curve] = {}  # of each variant that was measured
        self._paces: list[tuple[Adapter, int, speeds.Parts]] = []  # of each pass, with its batch size
        self._watch: Watch | None = None
        self._device: torch.device | None = None
        self.passes = passes_of(self.variants)
        self.samplers: dict[int, SamplerTable] = {}
        if plan.extensions and any(
            (prior := variant.prior()) is not None and prior.tau > 0 for variant in self.variants
        ):
            raise PlanMismatch(
                "a set cannot grow where the prior shares steps (share_prior=True): with other prompts beside it, an "
                "old one would be conditioned on something else"
            )
        self.program: Program | None = None
        """Of the latest pass."""
        for first, *_ in self.passes:
            refuse_step_caches(self.variants[first])
            self.samplers[first] = self.variants[first].sampler(plan.request["steps"])
            check_fit(plan, self.samplers[first])
            fresh_noise(plan, self.variants[first], self.samplers[first])  # refused now, if it cannot be
        # A bad batch size, order, max_slots or gamma is found here, before anything is encoded.
        mixed = all(variant.mixed_timesteps for variant in self.variants)
        for first, *_ in self.passes:
            rows = self.variants[first].rows_by_step(plan.n_steps)
            plan.check_program(self.batch_size, options.order, options.max_slots, mixed_steps=mixed, rows=rows)
        catch_up_weights(plan.n_steps, self.catch_up)

    def images(self, plan: Plan, watch: Watch | None, failures: Failures | None = None) -> Iterator[Image]:
        """Encode, then run the passes. There are several only if sizes or similar settings differ.

        ``watch`` is called with each :class:`Event`. Without ``failures`` an image that cannot be made is an error,
        after the last one.
        """
        self._watch, self._device = watch, None if watch is None else self.adapter.device  # which takes time to find
        with device_errors(lambda: _DOING[self._part]):
            for image in quietly(self._images(plan, failures, False)):
                assert image is not None
                yield image

    def part(self, plan: Plan, failures: Failures) -> Iterator[Image | None]:
        """As :meth:`images`, for a part of the session's plan; yields None while prompts are encoded, and after calls.

        What is encoded is kept, and of the next part only the prompts are encoded that are new. What was measured for
        ``batch_size="auto"`` is kept too.
        """
        if self._encodings is None:
            self._encodings = self._encoder()
        with device_errors(lambda: _DOING[self._part]):
            yield from quietly(self._images(plan, failures, True))

    def _encoder(self) -> Encodings:
        """Encodes the prompts of the session's plan."""
        plan, memory = self.plan, self.options.conditioning_memory
        if memory is None and self.options.neighbours > 1:
            memory = default_memory() // self.options.neighbours
        return Encodings(
            self.variants,
            plan.setting,
            plan.prompts,
            plan.seeds,
            memory=memory,
            cuda_graphs=self.options.cuda_graphs,
            skip_failing=True,
        )

    def _tell(self, part: Part, fraction: float, **call: int) -> None:
        """Report an event, if anyone watches."""
        if self._watch is not None:
            sums = Sums(self.node_steps, self.standard_node_steps, self.batch_size, self.seconds, self._device)
            self._watch(Event(part, fraction, self.plan, sums, **call))

    def _images(self, plan: Plan, failures: Failures | None, calls: bool) -> Generator[Image | None, None, None]:
        """The images; with ``calls``, None after some prompts and after each call of the denoiser too."""
        found = Failures(plan) if failures is None else failures
        gives_up = not found.has_passed("encode")
        if calls:
            yield from self._ahead(plan, gives_up)
        # Who is a twin of whom is known before prompts are encoded, if the model's own embeddings decided who shares.
        by_model = self._clustered_by_model(plan)
        whole = plan
        if by_model:
            plan = self._resumed(plan)
        conditioning = self._clocked("encode", lambda: self.conditioning(plan, gives_up=gives_up))
        if plan is not whole and without_twins(plan, conditioning) is not plan:
            # Clusters are divided, from the first step on. Then their trunks are others, and all members are needed.
            plan = whole
            conditioning = self._clocked("encode", lambda: self.conditioning(whole, gives_up=gives_up))
        _LOG.debug("encoded %d prompts in %.2f s", len(plan.covered()), self.seconds["encode"])
        self.encoding = conditioning.seconds
        left = np.setdiff1d(plan.kept, list(conditioning.failed))
        if len(left):
            found.passed("encode")
            if plan is whole:
                whole = without_twins(plan, conditioning)
                plan = self._resumed(whole)
        self.plan = whole
        self._texts = Texts(whole, image_description(self.adapter, self.catch_up))
        for index in np.intersect1d(plan.kept, list(conditioning.failed)).tolist():
            found.add(index, "encode", conditioning.failed[index])
        try:
            if len(left):
                parts = list(plans_of(plan if len(left) == len(plan.kept) else plan.prune(left), self.passes))
                costs = [self._cost(part, v) for v, part in parts]
                for i, (v, part) in enumerate(parts):
                    self._free_other_graphs(v)
                    share = (sum(costs[:i]) / sum(costs), costs[i] / sum(costs))
                    for image in self._pass(part, v, conditioning, share, found):
                        if calls or image is not None:
                            yield image
        except BaseException:
            with contextlib.suppress(Exception):  # what ended the run matters more: a device that failed fails here too
                self.adapter.free()
            raise
        self.adapter.free()
        if failures is None and found:
            raise FailedImages(summary(found.all, len(plan.kept)), found.all)

    def _clustered_by_model(self, plan: Plan) -> bool:
        """Whether the model's own embeddings decided who shares."""
        return bool(plan.request["encoder"] == self.adapter.name)

    def _resumed(self, plan: Plan) -> Plan:
        """The plan, without what earlier runs have kept."""
        if self.trunks is None:
            return plan
        deterministic = any(not sampler.n_noise for sampler in self.samplers.values())
        renoised = begins_of_variations(plan) if deterministic and plan.variations else None
        return self.trunks.resumed(plan, catches_up=self.catch_up > 0, renoised=renoised)

    def _ahead(self, plan: Plan, gives_up: bool) -> Iterator[None]:
        """Encode what is new in a part of the plan; None after some prompts each."""
        encodings = self._encodings
        if encodings is None or self._clocked("encode", partial(self._recall, plan)) is not None:
            return
        encodings.tell_cuts(self.plan.covered())
        new = encodings.new(plan.covered())
        for piece in batches(len(new), _AHEAD):
            self._clocked("encode", partial(encodings.of, new[piece], gives_up=gives_up))
            yield None

    def _recall(self, plan: Plan) -> Conditioning | None:
        """What the session's plan was compiled with, if this model made it. Its weights are read once to know that."""
        if not self._recalled:
            key = self.adapter.encoding_key() if is_remembered(plan) else None
            self._recalled.append(None if key is None else recall(plan, key))
        return self._recalled[0]

    def _free_other_graphs(self, v: int) -> None:
        """Free what the model and the passes before keep for a later run: it has other sizes than the pass of ``v``."""
        for other in (self.adapter, *self.variants):
            if other is not self.variants[v]:
                other.free_graphs()

    def _cost(self, plan: Plan, v: int) -> int:
        """What a pass takes of the denoiser's time, in units that are the same for all passes."""
        return rows_of(plan, self.variants[v]) * math.prod(self.variants[v].latent_shape())

    def _pass(
        self, plan: Plan, v: int, conditioning: Conditioning, share: tuple[float, float], failures: Failures
    ) -> Iterator[Image | None]:
        """Lower the plan, replay the program and decode what it finishes; None after each call.

        ``share`` of the denoiser's work: that of the passes before, and that of this one.
        """
        variant, sampler, options = self.variants[v], self.samplers[v], self.options
        if options.channels_last:
            for module in variant.modules():
                module.to(memory_format=torch.channels_last)
        if options.batch_size == "auto":
            self._tell("measure", 0.0)
            self.batch_size = self._clocked("measure", lambda: self._measured(plan, v, conditioning, sampler))
        program = program_of(plan, variant, conditioning, self.batch_size, options.order, options.max_slots)
        self.program = program
        _LOG.debug("%d calls of %d, %d slots", program.n_calls, self.batch_size, program.n_slots)
        alive = None if self._watch is None else alive_after(plan, program)
        self._tell("denoise", share[0])
        done, decoder = 0, Decoder(variant)
        executor = self._clocked(
            "denoise",
            lambda: Executor(
                plan,
                program,
                variant,
                conditioning,
                sampler,
                cuda_graphs=options.cuda_graphs,
                compile=options.compile,
                catch_up=self.catch_up,
                observer=self.observer,
                forks=self._forks_of(plan, variant),
                fresh=fresh_noise(plan, variant, sampler),
                trunks=self._trunks_of(plan, variant, conditioning, sampler),
                make_room=decoder.make_room,
            ),
        )
        with contextlib.ExitStack() as stack:
            self._clocked("decode", lambda: stack.enter_context(decoder))
            # Closed in any case: the traceback of an error would keep the run, its thread and its memory.
            calls = stack.enter_context(contextlib.closing(executor.run()))
            parts, before = speeds.Parts(executor.ahead), self.seconds["denoise"]
            rows_of_calls = iter(program.rows_per_call)
            self._paces.append((variant, program.batch_size, parts))
            while (call := self._clocked("denoise", lambda: next(calls, None))) is not None:
                lanes, finished = call
                self.node_steps += lanes
                rows, took = int(next(rows_of_calls)), self.seconds["denoise"] - before
                parts.add(took, rows * program.batch_size / program.max_rows, rows == program.max_rows)
                before = self.seconds["denoise"]
                yield from self._named(
                    plan, self._clocked("decode", partial(decoder.put, finished)), executor, failures
                )
                if alive is not None:
                    done += lanes
                    state = {"alive": next(alive), "slots": program.n_slots}
                    fraction = share[0] + share[1] * done / plan.node_steps
                    images = sum(not one.is_fork for one in finished)
                    self._tell("denoise", fraction, node_steps=lanes, finished=images, **state)
                yield None
            self._clocked("denoise", executor.wait)
            self._tell("decode", 0.0)
            yield from self._named(plan, self._clocked("decode", decoder.rest), executor, failures)
            self._tell("decode", 1.0)

    def _trunks_of(
        self, plan: Plan, variant: Adapter, conditioning: Conditioning, sampler: SamplerTable
    ) -> TrunksOfPass | None:
        if self.trunks is None:
            return None
        rows = conditioning.split(plan.covered())[1].shapes().values() if self.catch_up else ()
        given = sum(math.prod(shape) for shape, dtype in rows if dtype.is_floating_point)
        return self.trunks.of(plan, 4 * (sampler.n_state * math.prod(variant.latent_shape()) + given) + _GENERATOR)

    def _forks_of(self, plan: Plan, variant: Adapter) -> Forks | None:
        """The forks of a pass whose pictures are to be kept; None if there are none."""
        if self.forks is None:
            return None
        predictions = variant.predictions(plan.request["steps"])
        wanted = self.forks.wanted(plan, predictions)
        return Forks(wanted, predictions) if wanted.any() else None

    def _keep_fork(self, plan: Plan, fork: Decoded | Undecoded) -> None:
        assert self.forks is not None
        if isinstance(fork, Undecoded):
            self.forks.leave_out(fork.reason)
        elif fork.nsfw:
            self.forks.leave_out("the model's safety checker made it black")
        else:
            self.forks.keep(plan, fork.index, fork.pil)

    def ways(self) -> dict[str, bool]:
        """The options on which the speed of the denoiser depends, by name."""
        options = self.options
        return {name: getattr(options, name) for name in ("compile", "channels_last", "cuda_graphs")}

    def remember_speed(self, seconds: float, images: int) -> None:
        """Store the speed of a session that took ``seconds`` from :meth:`images` to the last of its ``images`` images.

        Of the passes that were long enough to say something. What an image takes beside the denoiser is known of one
        pass.
        """
        others = seconds - sum(self.seconds[part] for part in ("encode", "measure", "denoise"))
        image = max(0.0, others) / images + self.encoding if images >= speeds.LEAST_IMAGES else None
        for variant, batch_size, parts in self._paces:
            if (span := parts.span()) is not None:
                one = image if len(self._paces) == 1 else None
                speeds.remember(variant, {batch_size: span}, one, **self.ways())

    def _measured(self, plan: Plan, v: int, conditioning: Conditioning, sampler: SamplerTable) -> int:
        """The batch size with which ``plan`` finishes first."""
        options, variant = self.options, self.variants[v]
        if v not in self._curves:
            graphs = options.cuda_graphs
            self._curves[v] = curve_of(plan, variant, conditioning, sampler, cuda_graphs=graphs)
        choice = automatic(
            plan,
            variant,
            conditioning,
            sampler,
            order=options.order,
            max_slots=options.max_slots,
            cuda_graphs=options.cuda_graphs,
            compile=options.compile,
            catch_up=self.catch_up,
            curve=self._curves[v],
        )
        return choice.batch_size

    def _named(
        self, plan: Plan, decoded: list[Decoded | Undecoded], executor: Executor, failures: Failures
    ) -> Iterator[Image]:
        for image in decoded:
            if image.is_fork:
                self._keep_fork(plan, image)
                continue
            self.standard_node_steps += plan.n_steps
            if isinstance(image, Undecoded):
                raised = executor.errors.get(image.index) if image.stage == "denoise" else None
                failures.add(image.index, image.stage, raised or image.reason)
                continue
            failures.passed("decode")
            if image.upcast and not self._warned:
                self._warned = True
                warnings.warn(
                    "the image decoder overflows in half precision: images for which it does are decoded in float32",
                    Notice,
                    stacklevel=2,
                )
            prompt, seed = plan.prompts[image.index], int(plan.seeds[image.index])
            yield Image(image.index, prompt, seed, image.pil, image.nsfw, image.upcast, self._texts)

    def conditioning(self, plan: Plan, *, gives_up: bool = True) -> Conditioning:
        """The conditioning that the plan was compiled with, if this model made it; otherwise encode now.

        Prompts that could not be encoded then are tried again. If one can be now, all are encoded: in a batch of
        another size it may be rounded differently. With ``gives_up``, it is an error if no prompt can be encoded.
        """
        # Where other embeddings than the model's decided who shares, twins among the prompts that came later are still
        # to be found: which images are apart must not depend on which are missing.
        known = self._clustered_by_model(plan) or not plan.extensions
        needed = plan.covered() if known else plan.in_clusters()
        found = self._recall(plan)
        if found is None:
            return self._encoded(plan, needed, gives_up)
        lost = np.intersect1d(needed, list(found.failed))
        if len(lost) and not set(lost.tolist()) <= self._encoded(plan, lost, gives_up=False).failed.keys():
            return self._encoded(plan, needed, gives_up)
        return found

    def _encoded(self, plan: Plan, needed: NDArray[np.int64], gives_up: bool) -> Conditioning:
        encodings = self._encodings or self._encoder()
        return encodings.of(needed, progress=self._encoding(), gives_up=gives_up)

    def _encoding(self) -> Report | None:
        """Reports how far encoding is, if anyone watches."""
        return None if self._watch is None else lambda fraction: self._tell("encode", fraction)

    def _clocked(self, part: str, work: Callable[[], Any]) -> Any:
        self._part = part
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[part] += time.perf_counter() - start
