"""Images one by one, as they finish: :func:`stream`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedImages
from ..models import Adapter, load
from ..names import BatchSize, Linkage, Metric, Noise, Order
from ..planning.encoders import Encoder
from ..planning.plan import Plan
from ..planning.schedule import Schedule
from ..work.faults import device_errors
from ..work.progress import ProgressOption
from .clustering import clustered_by_model
from .events import Watcher, telling
from .failures import FailureReport, Failures, check_report, summary
from .given import Prompts, compiled, divided
from .live import RunView, watching
from .options import Options
from .results import Image
from .session import Session, check


@overload
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
    progress: ProgressOption = False,
    failed: FailureReport | None = None,
    **settings: Any,
) -> Iterator[Image]: ...


@overload
def stream(
    plan: Prompts,
    model: Any,
    *,
    tau: float | None = None,
    embeddings: Any = None,
    encoder: Encoder | None = None,
    budget: float | None = None,
    images_per_hour: float | None = None,
    gpu_hours: float | None = None,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    linkage: Linkage = "ward",
    metric: Metric = "auto",
    schedule: Schedule = "linear",
    seeds: int | Sequence[int] | NDArray[np.integer] = 0,
    images_per_prompt: int = 1,
    noise: Noise = "independent",
    catch_up: float | None = None,
    settings: Sequence[Mapping[str, Any]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    exact: bool | None = None,
    threads: int | None = None,
    memory: int | None = None,
    batch_size: BatchSize = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    conditioning_memory: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = False,
    progress: ProgressOption = False,
    failed: FailureReport | None = None,
    **model_settings: Any,
) -> Iterator[Image]: ...


def stream(
    plan: Plan | Prompts,
    model: Any,
    *,
    batch_size: BatchSize = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    conditioning_memory: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = False,
    progress: ProgressOption = False,
    failed: FailureReport | None = None,
    **settings: Any,
) -> Iterator[Image]:
    """Generate the images of a plan, or of prompts, and yield each as soon as it is decoded.

    Parameters
    ----------
    plan
        From :func:`hsd.compile` or :meth:`Plan.load`; a pruned plan or a shard generates its own part only. One that
        was compiled with neither a model nor embeddings is compiled again by this call, with the model. Images of
        prompts that the model cannot tell apart share no step, whatever the plan says: each is another picture.

        Or a list of prompts, or what :func:`hsd.read_prompts` or :func:`hsd.expand_template` returned: they are
        compiled by this call, with the model's own embeddings. Then the arguments of :func:`hsd.compile` are taken too:
        ``tau``, ``budget``, ``steps``, ``seeds``... A single prompt is a list of one.
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
        See :data:`hsd.ProgressOption`. Stages: ``load`` and, for what is not compiled by the model yet, ``encode`` and
        ``cluster``; then ``encode``, ``measure`` (for ``batch_size="auto"``), ``denoise``, after each call with the
        finished share of its work, ``decode`` and, of :func:`generate`, ``write``.
    failed
        Called with a :class:`Failure` for each image that cannot be made: its prompt cannot be encoded or decoded, or
        gave NaN. The others are made. Without it, ``FailedImages`` is raised after the last image.

    Yields
    ------
    Image
        In the order in which they finish. The images depend on ``batch_size``, ``order``, ``max_slots`` and on how the
        plan is sharded by rounding only: 1/255 in a few values.

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model. Errors in arguments are raised by the call itself, before the first image.
    FailedImages
        After the last image, if some could not be made and ``failed`` is None; or, with ``failed`` too, if the first 16
        all fail in the same way.
    OutOfMemory, DeviceFailed
        If the device has no memory left, or has failed. Images that were yielded before are good.
    """
    check_report(failed)
    arguments, settings = divided(plan, settings)
    options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
    with watching(progress) as watcher:
        if not isinstance(model, Adapter):
            watcher.stage("load")

        def loaded() -> Adapter:
            with device_errors(lambda: "loading the model"):
                return load(model, progress=watcher.shows, **settings)

        if isinstance(plan, Plan):
            adapter = loaded()
        else:
            plan, adapter = compiled(plan, loaded, arguments, options, watcher.stage)
        checked = partial(check, adapter, options)
        with device_errors(lambda: "encoding the prompts"):
            plan = clustered_by_model(plan, adapter, memory=conditioning_memory, check=checked, report=watcher.stage)
        session = Session(plan, adapter, options)
    # What was drawn is removed here, since nobody may ever ask for the first image; the first event draws it again.
    return _streamed(session, plan, watcher, failed)


def _streamed(session: Session, plan: Plan, watcher: Watcher, failed: FailureReport | None) -> Iterator[Image]:
    """The images of a session, shown to ``watcher``."""
    with contextlib.closing(watcher):
        watcher.began(plan, 0, None, None)
        watched = isinstance(watcher, RunView)  # which shows failures at once
        failures = Failures(plan, telling(watcher, failed)) if watched or failed is not None else None
        for image in session.images(plan, watcher.event if watcher.watches else None, failures):
            watcher.image(image)
            yield image
        watcher.finished(None)
        if failures and failed is None:
            raise FailedImages(summary(failures.all, len(plan.kept)), failures.all)
