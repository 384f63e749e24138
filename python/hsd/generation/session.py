"""Plan to images: :func:`stream` yields them as they finish, :func:`generate` writes them to a folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..conditioning.rows import Conditioning
from ..models import Adapter, load, variants_of
from ..models.caches import refuse_step_caches
from ..models.encode import encode, is_remembered, recall
from ..models.identity import image_identity, versions
from ..names import BatchSize, ImageFormat, Order
from ..planning.catch_up import catch_up_weights
from ..planning.plan import Plan
from ..replay.catch_up import catch_up_of
from ..replay.executor import Evaluation, Executor, check_fit
from ..sampler import SamplerTable
from ..tuning import speeds
from ..tuning.batching import automatic
from ..work.device import describe
from .decoding import Decoded, Decoder
from .folder import ImageFolder
from .passes import cost, passes_of, plans_of
from .writers import Writers

CallReport = Callable[[int, int], object]
"""Called after each call of the denoiser with the node-steps it ran and the images it finished."""


@dataclass(frozen=True)
class Image:
    """One finished image."""

    index: int
    prompt: str
    seed: int
    pil: PIL.Image.Image


@dataclass(frozen=True)
class Run:
    """The results of :func:`generate`."""

    out: Path
    images: int
    """Images written by this call."""
    existing: int
    """Images that existed already."""
    node_steps: int
    """Evaluations of the denoiser by this call."""
    standard_node_steps: int
    """Evaluations that this call's images need without sharing."""
    batch_size: int
    """Latents per call at full guidance; the measured one for ``"auto"``."""
    seconds: dict[str, float]
    """Wall time: ``total``, which includes ``encode``, ``measure`` (for ``batch_size="auto"``), ``denoise`` and
    ``decode``. Images are written at the same time; on a GPU most of the decoding is done at the same time too."""

    @property
    def savings(self) -> float:
        """1 - node_steps / standard_node_steps of this call; 0 if there was nothing left to do."""
        return 1.0 - self.node_steps / self.standard_node_steps if self.standard_node_steps else 0.0


def stream(
    plan: Plan,
    model: Any,
    *,
    batch_size: BatchSize = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    conditioning_memory: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = False,
    progress: CallReport | None = None,
    **settings: Any,
) -> Iterator[Image]:
    """Generate the images of ``plan`` and yield each as soon as it is decoded.

    Parameters
    ----------
    plan
        From :func:`hsd.compile` or :meth:`Plan.load`; a pruned plan or a shard generates its own part only.
    model
        A loaded model, or anything that :func:`hsd.load` takes; ``settings`` go to it.
    batch_size
        Latents that the denoiser evaluates in one call at full guidance, where the network sees twice as many rows.
        With a ``guidance_interval`` a call has as many rows, and so up to twice as many latents. ``"auto"``
        measures the denoiser for some seconds, within the free memory, and uses the size with which this plan
        finishes first. A call that does not fit into the memory is cut in two, and the run continues.
    order
        ``depth`` finishes images early; ``breadth`` needs the fewest calls.
    max_slots
        Largest number of latents alive at once. Default: what the order needs.
    conditioning_memory
        Bytes of encoded prompts that are kept in host memory; the rest goes to a temporary file (in ``TMPDIR``, or
        ``/var/tmp``) and is read when a cluster begins. Default: a quarter of the memory that is free.
    compile
        Run full calls through ``torch.compile``: takes minutes at the start; then the denoiser is faster.
    cuda_graphs
        On a GPU, capture calls as CUDA graphs and replay them; what cannot be captured runs one kernel at a time.
    channels_last
        Convert the denoiser's weights to channels-last layout, permanently: faster for UNets in half precision.
    progress
        Called as ``progress(node_steps, images)`` after each call: what it ran, and what it finished.

    Yields
    ------
    Image
        In the order in which they finish. The images do not depend on ``batch_size``, ``order``, ``max_slots`` or
        on how the plan is sharded.

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model. Errors in arguments are raised by the call itself, before the first image.
    """
    options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
    return Session(plan, load(model, **settings), options).images(plan, progress)


def generate(
    plan: Plan,
    model: Any,
    out: str | os.PathLike[str] = "images",
    *,
    batch_size: BatchSize = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    conditioning_memory: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = False,
    image_format: ImageFormat = "png",
    progress: bool | CallReport = True,
    **settings: Any,
) -> Run:
    """Generate the images of ``plan`` into the folder ``out``, each written as soon as it is decoded.

    The folder opens with ``datasets.load_dataset("imagefolder", data_dir=out)``: images and ``metadata.jsonl``
    (file_name, text, index, seed), together with the plan and a run record. Calling again after an interruption
    generates only the missing images. See :func:`stream` for the other parameters.

    Raises
    ------
    OutputError
        If the folder cannot be written to; before any expensive work.
    PlanMismatch
        If the plan does not fit the model, or the folder holds images of another plan or of another model: with other
        weights, another scheduler, dtype, LoRA or setting. It names what differs.
    """
    started = time.perf_counter()
    adapter = load(model, **settings)
    options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
    session = Session(plan, adapter, options)
    made_by = image_identity(adapter, session.samplers.values(), session.catch_up)
    folder = ImageFolder(out, plan, made_by, image_format)
    done = folder.done()
    todo = np.setdiff1d(plan.kept, np.fromiter(done, np.int64, len(done)), assume_unique=True)
    alone = alone_from(plan)
    distinct, which = plan.settings, plan.setting
    names = sorted({name for own in distinct for name in own})  # every image has all columns
    part = plan.prune(todo) if len(todo) else None
    bar = None
    if progress is True:
        bar = _Bar(part, len(todo))
    report: CallReport | None = bar or (progress if callable(progress) else None)
    images = 0
    try:
        if part is not None:
            with Writers() as writers:
                for image in session.images(part, report):
                    own = {name: distinct[which[image.index]].get(name) for name in names}
                    extra = {**own, "alone_from": int(alone[image.index])}
                    writers.submit(folder.add, image.index, image.pil, extra)
                    images += 1
    finally:
        if bar:
            bar.close()
    seconds = {**session.seconds, "total": time.perf_counter() - started}
    node_steps, standard = (part.node_steps, part.standard_node_steps) if part else (0, 0)
    run = Run(Path(out), images, len(plan.kept) - images, node_steps, standard, session.batch_size, seconds)
    folder.record_run(_record(run, plan, adapter, session))
    if part is not None:
        speeds.remember(adapter, seconds["denoise"] / cost(part, adapter, None).guided_node_steps)
    return run


@dataclass(frozen=True)
class Options:
    """How a plan is run. Nothing here changes the images beyond rounding. See :func:`stream`."""

    batch_size: BatchSize = 16
    order: Order = "depth"
    max_slots: int | None = None
    conditioning_memory: int | None = None
    compile: bool = False
    cuda_graphs: bool = True
    channels_last: bool = False


class Session:
    """A model and the options of a run, checked; records the time of each part."""

    def __init__(
        self, plan: Plan, adapter: Adapter, options: Options, observer: Callable[[Evaluation], object] | None = None
    ) -> None:
        self.adapter, self.options, self.observer = adapter, options, observer
        self.variants = variants_of(adapter, plan.settings)
        self.catch_up = catch_up_of(plan, adapter)
        """gamma of catch-up conditioning: the plan's, or the model's default."""
        if isinstance(options.batch_size, str) and options.batch_size != "auto":
            raise TypeError(f"batch_size is {options.batch_size!r}: it has to be an integer or 'auto'")
        self.batch_size: int = 1 if options.batch_size == "auto" else options.batch_size
        """For ``"auto"``, the size of the latest pass."""
        self.seconds = dict.fromkeys(("encode", "measure", "denoise", "decode"), 0.0)
        self.passes = passes_of(self.variants)
        self.samplers: dict[int, SamplerTable] = {}
        for first, *_ in self.passes:
            refuse_step_caches(self.variants[first])
            self.samplers[first] = self.variants[first].sampler(plan.request["steps"])
            check_fit(plan, self.samplers[first])
        # A bad batch size, order, max_slots or gamma is found here, before anything is encoded.
        mixed = all(variant.mixed_timesteps for variant in self.variants)
        for first, *_ in self.passes:
            rows = self.variants[first].rows_by_step(plan.n_steps)
            plan.check_program(self.batch_size, options.order, options.max_slots, mixed_steps=mixed, rows=rows)
        catch_up_weights(plan.n_steps, self.catch_up)

    def images(self, plan: Plan, progress: CallReport | None) -> Iterator[Image]:
        """Encode, then run the passes. There are several only if sizes or similar settings differ."""
        conditioning = self._clocked("encode", lambda: self.conditioning(plan))
        try:
            for v, part in plans_of(plan, self.passes):
                yield from self._pass(part, v, conditioning, progress)
        finally:
            self.adapter.free()

    def _pass(self, plan: Plan, v: int, conditioning: Conditioning, progress: CallReport | None) -> Iterator[Image]:
        """Lower the plan, replay the program and decode what it finishes."""
        variant, sampler, options = self.variants[v], self.samplers[v], self.options
        if options.channels_last:
            for module in variant.modules():
                module.to(memory_format=torch.channels_last)
        if options.batch_size == "auto":
            self.batch_size = self._clocked("measure", lambda: self._measured(plan, variant, conditioning, sampler))
        program = plan.program(
            self.batch_size,
            options.order,
            options.max_slots,
            mixed_steps=variant.mixed_timesteps,
            rows=variant.rows_by_step(plan.n_steps),
        )
        executor = Executor(
            plan,
            program,
            variant,
            conditioning,
            sampler,
            cuda_graphs=options.cuda_graphs,
            compile=options.compile,
            catch_up=self.catch_up,
            observer=self.observer,
        )
        calls = executor.run()
        with Decoder(variant) as decoder:
            while (call := self._clocked("denoise", lambda: next(calls, None))) is not None:
                lanes, finished = call
                yield from self._named(plan, self._clocked("decode", partial(decoder.put, finished)))
                if progress:
                    progress(lanes, len(finished))
            self._clocked("denoise", executor.wait)
            yield from self._named(plan, self._clocked("decode", decoder.rest))

    def _measured(self, plan: Plan, variant: Adapter, conditioning: Conditioning, sampler: SamplerTable) -> int:
        """The batch size with which ``plan`` finishes first."""
        options = self.options
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
        )
        return choice.batch_size

    def _named(self, plan: Plan, decoded: list[Decoded]) -> Iterator[Image]:
        for image in decoded:
            yield Image(image.index, plan.prompts[image.index], int(plan.seeds[image.index]), image.pil)

    def conditioning(self, plan: Plan) -> Conditioning:
        """The conditioning that the plan was compiled with, if this model made it; otherwise encode now."""
        if is_remembered(plan):
            found = recall(plan, self.adapter.encoding_key())
            if found is not None:
                return found
        return encode(
            self.variants,
            plan.setting,
            plan.prompts,
            plan.seeds,
            needed=plan.covered(),
            memory=self.options.conditioning_memory,
            cuda_graphs=self.options.cuda_graphs,
        )

    def _clocked(self, part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[part] += time.perf_counter() - start


class _Bar:
    """A progress bar that counts node-steps and images, and estimates the time left."""

    def __init__(self, plan: Plan | None, images: int):
        self._images, self._total = 0, images
        self._bar = tqdm(total=plan.node_steps if plan else 0, unit=" node-steps", disable=None, smoothing=0.05)
        self._bar.set_postfix_str(f"0/{images} images")

    def __call__(self, node_steps: int, images: int) -> None:
        self._images += images
        self._bar.set_postfix_str(f"{self._images}/{self._total} images", refresh=False)
        self._bar.update(node_steps)

    def close(self) -> None:
        self._bar.close()


def alone_from(plan: Plan) -> np.ndarray:
    """(N,) the first step at which each prompt is alone in its cluster; before it, its latent was shared."""
    segments = plan.segments
    leaf = segments[segments["end_step"] == plan.n_steps]
    single = leaf["leaf_end"] - leaf["leaf_begin"] == 1
    out = np.full(plan.n_prompts, plan.n_steps, dtype=np.int64)
    out[leaf["representative"][single]] = leaf["first_step"][single]
    return out


def _record(run: Run, plan: Plan, adapter: Adapter, session: Session) -> dict[str, Any]:
    device = adapter.device
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "images": run.images,
        "existing": run.existing,
        "node_steps": run.node_steps,
        "standard_node_steps": run.standard_node_steps,
        "savings": run.savings,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "plan": {
            "node_steps": plan.node_steps,
            "savings": plan.savings,
            "n_steps": plan.n_steps,
            "tau": plan.tau,
        },
        "catch_up": session.catch_up,
        "batch_size": session.batch_size,
        "order": session.options.order,
        "compile": session.options.compile,
        "cuda_graphs": session.options.cuda_graphs and device.type == "cuda",
        "channels_last": session.options.channels_last,
        "scheduler": type(adapter.scheduler()).__name__,
        "device": describe(device),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "versions": {**versions(), "python": platform.python_version()},
    }
