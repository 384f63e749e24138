"""One plan on many GPUs: :func:`generate` runs it on workers of Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import Error, Notice
from ..generation.claims import refuse
from ..generation.events import CallReport, Watcher
from ..generation.failures import FailureReport, summary
from ..generation.live import watching
from ..generation.options import Options
from ..generation.results import Run
from ..models import Adapter, load
from ..names import BatchSize, ImageFormat, Order, check_count, check_name
from ..planning.plan import Plan, check_is_plan
from ..work.files import make_folder
from ..work.urls import is_url
from .cluster import connected
from .crew import Crew
from .driver import Driver
from .whole import Whole
from .worker import Recipe

_LOG = logging.getLogger(__name__)

_THREADS = 4
"""Cores that a worker with a GPU asks for, where there are enough: images are encoded and written by threads."""


def generate(
    plan: Plan | Recipe,
    model: Any,
    out: str | os.PathLike[str] = "images",
    *,
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    dtype: Any = None,
    batch_size: BatchSize = 16,
    order: Order = "depth",
    max_slots: int | None = None,
    conditioning_memory: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = False,
    image_format: ImageFormat = "png",
    stall: float = 1800.0,
    progress: bool | CallReport | Watcher = False,
    failed: FailureReport | None = None,
    **settings: Any,
) -> Run:
    """Generate the images of ``plan`` into the folder ``out``, on several workers: the images of :func:`hsd.generate`.

    The plan is cut into units where its clusters share least; each worker loads the model once and runs one unit after
    the other. Calling again after anything ended the run generates only the missing images. See docs/many-gpus.md.

    Parameters
    ----------
    plan
        A plan or a part of one. One that was compiled with neither a model nor embeddings is compiled again by the
        first worker. Or a picklable function that the first worker calls with its model and a
        :data:`~hsd.work.progress.StageReport`, and that returns the plan.
    model
        A name or a folder, as for :func:`hsd.load`, or a picklable function that returns a model or a pipeline. Each
        worker loads it for itself; ``device``, ``dtype`` and ``settings`` go to :func:`hsd.load`.
    out
        A folder that all machines see under this name, or the URL of an object store.
    workers
        How many. Default: one for each GPU; without GPUs, one for each machine. On a cluster, those that find no place
        yet start when there is one.
    address
        None: a Ray of its own on this machine. ``"auto"`` or ``"HOST:PORT"``: a cluster of which this machine is a
        part. A program that has called ``ray.init`` keeps its connection.
    stall
        Seconds without any sign of life after which a worker that runs a unit is ended and replaced.
    batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last, image_format
        As for :func:`hsd.generate`, for each worker. ``conditioning_memory`` is that of one worker.
    progress, failed
        As for :func:`hsd.generate`: one view of all workers.

    Raises
    ------
    WorkersFailed
        If no worker comes up, or all units end badly. What is made stays.
    OutputError, PlanMismatch, FailedImages
        As for :func:`hsd.generate`.
    Error
        If Ray is missing, does not start, or cannot be reached.
    """
    if isinstance(plan, Plan) or not callable(plan):
        check_is_plan(plan)
    if workers is not None:
        check_count("workers", workers)
    if not (isinstance(stall, (int, float)) and not math.isnan(stall) and stall > 0):
        raise ValueError(f"stall is {stall!r}: it has to be a number of seconds above 0")
    check_name("image format", image_format, ImageFormat)
    loader = _loader(model, device, dtype, settings)
    options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
    place = os.fspath(out)
    if not is_url(place):
        folder = make_folder(place).absolute()
        place = str(folder)
        if isinstance(plan, Plan):  # as the driver does again, when it knows the model: that takes a while
            refuse(folder, plan.kept)
    with watching(progress) as watcher:
        watcher.stage("load")
        with connected(address, workers) as ray:
            run = _run(
                ray, plan, loader, place, options, image_format, workers, address, device, stall, watcher, failed
            )
        if progress is True:
            watcher.finished(run)
    if run.failed and failed is None:
        warnings.warn(summary(run.failed, run.images + len(run.failed)), Notice, stacklevel=2)
    return run


def _run(
    ray: Any,
    plan: Plan | Recipe,
    loader: Callable[[], Any],
    out: str,
    options: Options,
    image_format: ImageFormat,
    workers: int | None,
    address: str | None,
    device: str | None,
    stall: float,
    watcher: Watcher,
    failed: FailureReport | None,
) -> Run:
    """Hand out units until there are none left, and record the run."""
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    wanted, needs = _workers(ray, workers, address, device, nodes)
    whole = Whole(out, options, image_format, watcher, failed, alone=nodes == 1)
    crew = Crew(ray, wanted, needs)

    def end(error: BaseException | None) -> Run | None:
        about = {"wanted": wanted, "started": crew.started, "lost": crew.lost}
        return whole.end(error, about)

    try:
        driver = Driver(crew, ray.put, loader, plan, whole, stall, ray.cluster_resources)
        driver.run()
    except BaseException as error:
        crew.close()
        with contextlib.suppress(Exception):  # what ended the run matters more
            run = end(error)
            if run is not None:
                watcher.stopped(run)
        raise
    crew.close()
    run = end(None)
    assert run is not None
    return run


def _workers(
    ray: Any, workers: int | None, address: str | None, device: str | None, nodes: int
) -> tuple[int, dict[str, float]]:
    """How many workers, and what each needs."""
    have = ray.cluster_resources()
    gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    on_gpu = gpus > 0 if device is None else not device.startswith("cpu")
    if not on_gpu:
        wanted = workers or nodes
        return wanted, {"num_cpus": max(1, cores // wanted) if address is None else 1}
    if address is None and (workers or 1) > gpus:
        has = f"{gpus} GPU{'' if gpus == 1 else 's'}" if gpus else "no GPU"
        raise Error(
            f"{workers or 1} workers need as many GPUs, and this machine has {has}: ask for fewer, or device cpu"
        )
    wanted = workers or max(gpus, 1)
    return wanted, {"num_gpus": 1, "num_cpus": max(1, min(_THREADS, cores // wanted)) if address is None else 1}


@dataclass(frozen=True)
class _ByName:
    """Loads a model by its name, in a worker."""

    name: str
    device: str | None
    dtype: Any
    settings: dict[str, Any]

    def __call__(self) -> Adapter:
        return load(self.name, device=self.device, dtype=self.dtype, **self.settings)


@dataclass(frozen=True)
class _ByFunction:
    """Loads what a function returns, in a worker."""

    make: Callable[[], Any]
    settings: dict[str, Any]

    def __call__(self) -> Adapter:
        return load(self.make(), **self.settings)


def _loader(model: Any, device: str | None, dtype: Any, settings: dict[str, Any]) -> Callable[[], Adapter]:
    """What a worker calls to load the model."""
    if isinstance(model, (str, os.PathLike)):
        return _ByName(os.fspath(model), device, dtype, settings)
    if callable(model) and not isinstance(model, Adapter) and not hasattr(model, "components"):  # which pipelines have
        return _ByFunction(model, settings)
    raise TypeError(
        f"model is a {type(model).__name__}, and each worker has to load it for itself: give its name, its folder, or "
        "a function that loads it, such as lambda: DiffusionPipeline.from_pretrained(...)"
    )
