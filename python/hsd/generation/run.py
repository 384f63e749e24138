"""A run into a folder: :func:`generate` makes the images that are missing, and records what became of the run."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import Notice
from ..models import Adapter, load
from ..models.identity import image_identity
from ..names import BatchSize, ImageFormat, Linkage, Metric, Noise, Order, is_integer
from ..planning.encoders import Encoder
from ..planning.plan import Plan
from ..planning.rows import alone_from
from ..planning.schedule import Schedule
from ..planning.span import Span
from ..tuning.passes import estimated
from ..work.faults import device_errors
from ..work.files import make_folder
from ..work.objects import Objects
from ..work.progress import ProgressOption
from ..work.quiet import quiet
from ..work.urls import is_url
from .clustering import clustered_by_model, replaced
from .events import Watcher, telling
from .failures import FailureReport, Failures, check_report, summary
from .folders import Folder, open_folder
from .forks import FORKS, ForkFolder
from .given import Prompts, compiled, divided
from .live import watching
from .made import Made
from .options import Options
from .results import Run
from .resuming import ResumedRun
from .run_record import facts_of, record
from .session import Session, check
from .trunks import TRUNKS
from .writers import Writers

_LOG = logging.getLogger(__name__)


@overload
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
    keep_forks: bool = False,
    keep_trunks: bool | int = False,
    progress: ProgressOption | Watcher = False,
    failed: FailureReport | None = None,
    **settings: Any,
) -> Run: ...


@overload
def generate(
    plan: Prompts,
    model: Any,
    out: str | os.PathLike[str] = "images",
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
    image_format: ImageFormat = "png",
    keep_forks: bool = False,
    keep_trunks: bool | int = False,
    progress: ProgressOption | Watcher = False,
    failed: FailureReport | None = None,
    **model_settings: Any,
) -> Run: ...


def generate(
    plan: Plan | Prompts,
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
    keep_forks: bool = False,
    keep_trunks: bool | int = False,
    progress: ProgressOption | Watcher = False,
    failed: FailureReport | None = None,
    **settings: Any,
) -> Run:
    """Generate the images of a plan, or of prompts, into the folder or URL ``out``, each as soon as it is decoded.

    The folder opens with ``datasets.load_dataset("imagefolder", data_dir=out)``: images and ``metadata.jsonl``
    (file_name, text, index, seed), together with the plan and a run record. Calling again after an interruption
    generates only the missing images, and those that were damaged since. See :func:`stream` for the other parameters.

    With prompts in place of a plan, the arguments of :func:`hsd.compile` are taken too. Another list of prompts with
    the same arguments lets the folder grow, as ``hsd generate`` does: what is new in it joins the plan of the folder,
    whose images stay. With other arguments the folder is refused.

    With ``keep_forks``, the picture that each cluster was heading for when it split is kept in ``out/__forks__``, with
    at most 256 pixels on a side. At most as many more latents are decoded as there are images, less one; the denoiser
    has nothing more to do, and the images stay the same. :func:`hsd.generation.forks.read_forks` reads them.

    With ``keep_trunks``, states of latents at forks are kept in ``out/__trunks__``: prompts that are added later begin
    there, and what led to them is not computed again. True: at most 1 GiB; a number: at most so many bytes. Those are
    kept that are expected to save the most evaluations. Trunks that are there are used in any case. The images do not
    depend on them, beyond rounding. See docs/grow.md.

    An image that cannot be made is in :attr:`Run.failed` and in ``failed.jsonl``, with the reason; ``failed``, if it is
    given, is called with it as soon as that is known (from any thread), else a warning names some at the end. Calling
    again tries it again. ``run.json`` records every run, also one that an error or Ctrl-C ended.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or another run makes some of these images at this moment; before any
        expensive work.
    PlanMismatch
        If the plan does not fit the model, or the folder holds images of another plan or of another model: with other
        weights, another scheduler, dtype, LoRA or setting. It names what differs.
    FailedImages
        If the first 16 images all fail in the same way.
    OutOfMemory, DeviceFailed
        If the device has no memory left, or has failed. What is finished is written and recorded; the same call, after
        ``DeviceFailed`` in a new process, makes the images that are missing.
    """
    check_report(failed)
    arguments, settings = divided(plan, settings)
    options = Options(
        batch_size,
        order,
        max_slots,
        conditioning_memory,
        compile,
        cuda_graphs,
        channels_last,
        keep_forks,
        trunk_bytes(keep_trunks),
    )
    if options.keep_trunks and is_url(out):
        raise ValueError(f"keep_trunks needs a folder on a disk, and out is {os.fspath(out)!r}: leave one of them out")
    if keep_forks and is_url(out):
        raise ValueError(f"keep_forks needs a folder on a disk, and out is {os.fspath(out)!r}: leave one of them out")
    if is_url(out):
        Objects(os.fspath(out)).check()  # before the model is loaded
    with watching(progress) as watcher, quiet(downloads=watcher.shows):
        if not isinstance(model, Adapter):
            watcher.stage("load")
        run = _generate(plan, model, out, options, image_format, watcher, failed, arguments, settings)
        if progress is True:
            watcher.finished(run)
    if run.failed and failed is None:
        warnings.warn(summary(run.failed, run.images + len(run.failed)), Notice, stacklevel=2)
    return run


def _expected(session: Session, part: Plan) -> Span | None:
    """Seconds that the denoiser will take, if its speed is known."""
    size = None if session.options.batch_size == "auto" else session.batch_size
    return estimated(part, session.adapter, size, **session.ways()).get("seconds")


TRUNK_BYTES = 1 << 30
"""What ``keep_trunks=True`` keeps at most."""


def trunk_bytes(keep_trunks: bool | int) -> int:
    """The bytes that ``keep_trunks`` means.

    Raises
    ------
    TypeError, ValueError
        Unless it is True, False or a number of bytes >= 0.
    """
    if isinstance(keep_trunks, (bool, np.bool_)):
        return TRUNK_BYTES if keep_trunks else 0
    if not is_integer(keep_trunks):
        raise TypeError(f"keep_trunks has to be True, False or a number of bytes, not {keep_trunks!r}")
    if keep_trunks < 0:
        raise ValueError(f"keep_trunks is {keep_trunks}: it has to be a number of bytes >= 0")
    return int(keep_trunks)


def _generate(
    given: Plan | Prompts,
    model: Any,
    out: str | os.PathLike[str],
    options: Options,
    image_format: ImageFormat,
    watcher: Watcher,
    failed: FailureReport | None,
    arguments: dict[str, Any],
    settings: dict[str, Any],
) -> Run:
    """Load the model, cluster by it if that was not done yet, and fill the folder."""
    started = time.perf_counter()

    def loaded() -> Adapter:
        with device_errors(lambda: "loading the model"):
            return load(model, progress=watcher.shows, **settings)

    if isinstance(given, Plan):
        plan, adapter = given, loaded()
    else:
        plan, adapter = compiled(given, loaded, arguments, options, watcher.stage, out)
    if plan.is_estimate:
        if not is_url(out):
            out = make_folder(out)  # an unusable one is found before prompts are encoded
        checked = partial(check, adapter, options)
        with device_errors(lambda: "encoding the prompts"):
            memory = options.conditioning_memory
            plan = clustered_by_model(plan, adapter, folder=out, memory=memory, check=checked, report=watcher.stage)
        if isinstance(given, Plan) and plan is not given:
            _LOG.info(replaced(given, plan))
    session = Session(plan, adapter, options)
    with device_errors(lambda: "reading the weights"):
        made_by = image_identity(adapter, session.samplers.values(), session.catch_up)
    with open_folder(out, plan, made_by, image_format) as folder:  # for its time, no other run makes these images
        return _fill(folder, plan, session, made_by, watcher, failed, started)


def _fill(
    folder: Folder,
    plan: Plan,
    session: Session,
    made_by: dict[str, Any],
    watcher: Watcher,
    failed: FailureReport | None,
    started: float,
) -> Run:
    """Generate what is missing in a folder, and record the run, also one that is ended by an error."""
    for text in folder.report():
        _LOG.warning(text)
    done = folder.done()
    todo = np.setdiff1d(plan.kept, np.fromiter(done, np.int64, len(done)), assume_unique=True)
    part, existing = plan.prune(todo) if len(todo) else None, len(plan.kept) - len(todo)
    if session.options.keep_forks and part is None and not (folder.path / FORKS).is_dir():
        _LOG.warning("all images exist, so no pictures of forks are kept: clusters run for that. Use a new folder")
    made = Made(folder, Failures(part or plan, telling(watcher, failed)))
    if done:  # an earlier run has made images, so that what all of these have in common is not at fault
        made.failures.passed("write")

    def end(error: BaseException | None) -> Run:
        """Record the run; ``error`` is what ended it, if anything did."""
        run = Run(
            out=folder.path,
            images=len(made.indices),
            existing=existing,
            node_steps=session.node_steps,
            standard_node_steps=session.standard_node_steps,
            batch_size=session.batch_size,
            seconds={**session.seconds, "total": time.perf_counter() - started},
            plan=plan if part is None else session.plan,
            failed=made.failures.all,
            nsfw=made.nsfw,
            upcast=made.upcast,
            repaired=tuple(folder.repaired),
        )
        document = record(run, plan, session.options, facts_of(session.adapter, session.catch_up), error)
        if session.forks is not None:
            document["forks"] = session.forks.written
        if session.trunks is not None:
            document["trunks"] = {"kept": session.trunks.written, "node_steps_saved": session.trunks.used}
        folder.record_run(document, run.failed)
        return replace(run, record=document)

    def close_forks() -> None:
        """After the record: what it says may be raised as an error, and the run is as it is."""
        if session.forks is not None:
            session.forks.close()
        if session.trunks is not None:
            session.trunks.close()

    began = time.perf_counter()
    try:
        if part is not None:
            watcher.began(part, existing, folder.path, _expected(session, part))
            with Writers() as writers:
                session.forks = ForkFolder(folder.path, plan, writers.submit) if session.options.keep_forks else None
                if not is_url(folder.path) and (session.options.keep_trunks or (folder.path / TRUNKS).is_dir()):
                    session.trunks = ResumedRun(folder.path, made_by, session.options.keep_trunks, writers.submit)
                alone: np.ndarray | None = None
                for image in session.images(part, watcher.event if watcher.watches else None, made.failures):
                    if alone is None:
                        alone = alone_from(session.plan)
                    watcher.image(image)
                    writers.submit(made.write, image, {"alone_from": int(alone[image.index])})
                if session.trunks is not None:
                    session.trunks.flush()
                watcher.writing()
        spent = time.perf_counter() - began
    except BaseException as error:
        with contextlib.suppress(Exception):  # what ended the run matters more: a full disk, a broken device
            watcher.stopped(end(error))
            close_forks()
        raise
    else:
        run = end(None)
        close_forks()
    if run.images and run.node_steps == run.plan.node_steps:  # else some were not encoded
        session.remember_speed(spent, run.images)
    return run
