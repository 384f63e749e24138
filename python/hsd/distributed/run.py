"""One plan on many GPUs: :func:`generate` runs it on workers of Ray."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import demo
from ..errors import Notice
from ..generation.events import Watcher
from ..generation.failures import FailureReport, check_report, summary
from ..generation.live import watching
from ..generation.options import Options
from ..generation.results import Run
from ..models import MODELS, Adapter, load
from ..models.shared_image import opened_images
from ..names import BatchSize, ImageFormat, Order, check_count, check_name
from ..planning.plan import Plan, check_is_plan
from ..work.paths import user_path
from ..work.progress import ProgressOption
from ..work.urls import is_url
from .afar import run_from_afar
from .cluster import AFAR, connected, is_client
from .job import Job
from .worker import Recipe


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
    progress: ProgressOption | Watcher = False,
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
        worker loads it for itself; ``device``, ``dtype`` and ``settings`` go to :func:`hsd.load`. Paths of images are
        those of this process, which reads them.
    out
        A folder that all machines see under this name, or the URL of an object store.
    workers
        How many. Default: one for each GPU; without GPUs, one for each machine. On a cluster, those that find no place
        yet start when there is one.
    address
        None: a Ray of its own on this machine. ``"auto"`` or ``"HOST:PORT"``: a cluster of which this machine is a
        part. ``"ray://HOST:10001"``: a cluster elsewhere; what hands out units runs there too, and ``out`` is a name of
        its machines. A program that has called ``ray.init`` keeps its connection.
    stall
        Seconds without any sign of life after which a worker is ended and replaced. While a model is loaded there is
        none, so it has to be longer than that takes, a download included.
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
    check_report(failed)
    options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
    place = os.fspath(out)
    if not is_url(place):
        place = str(user_path(place).absolute())
    job = Job(plan, loader, place, options, image_format, workers, device, stall)
    far = address is not None and address.startswith(AFAR)
    if not far:
        job.check_folder()
    with watching(progress) as watcher:
        watcher.stage("load")
        with connected(address, workers) as (ray, own):
            if far or is_client(ray):
                run = run_from_afar(ray, job, watcher, failed)
            else:
                run = job.run(ray, watcher, failed, own=own)
        if progress is True:
            watcher.finished(run)
    if run.failed and failed is None:
        warnings.warn(summary(run.failed, run.images + len(run.failed)), Notice, stacklevel=2)
    return run


@dataclass(frozen=True)
class _ByName:
    """Loads a model by its name, in a worker."""

    name: str
    device: str | None
    dtype: Any
    settings: dict[str, Any]
    folder: str | None = None
    """Where the model is, absolute, since a worker may be in another folder. None: ``name`` is no folder."""

    def __call__(self) -> Adapter:
        options = {"device": self.device, "dtype": self.dtype, **self.settings}
        if self.folder is None or not os.path.isdir(self.folder):
            return load(self.name, **options)
        adapter = load(self.folder, **options)
        adapter.name = self.name  # that of its plans
        return adapter


@dataclass(frozen=True)
class _ByFunction:
    """Loads what a function returns, in a worker."""

    make: Callable[[], Any]
    settings: dict[str, Any]

    def __call__(self) -> Adapter:
        return load(self.make(), **self.settings)


def _loader(model: Any, device: str | None, dtype: Any, settings: dict[str, Any]) -> Callable[[], Adapter]:
    """What a worker calls to load the model. Images are read here: their paths are those of this process."""
    settings = opened_images(settings)
    if isinstance(model, (str, os.PathLike)):
        name, folder = os.fspath(model), user_path(model)
        if name in (*demo.MODELS, *MODELS) or not folder.is_dir():
            return _ByName(name, device, dtype, settings)
        return _ByName(str(folder), device, dtype, settings, str(folder.absolute()))
    if callable(model) and not isinstance(model, Adapter) and not hasattr(model, "components"):  # which pipelines have
        return _ByFunction(model, settings)
    raise TypeError(
        f"model is a {type(model).__name__}, and each worker has to load it for itself: give its name, its folder, or "
        "a function that loads it, such as lambda: DiffusionPipeline.from_pretrained(...)"
    )
