"""A run on workers, before it begins: what is to be made, how, and by how many. It can be sent to another process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Error
from ..generation.claims import refuse
from ..generation.events import Watcher
from ..generation.failures import FailureReport
from ..generation.options import Options
from ..generation.results import Run
from ..names import ImageFormat
from ..planning.plan import Plan
from ..work.files import make_folder
from ..work.objects import Objects
from ..work.urls import check_shared, is_url
from .crew import Crew
from .driver import Driver
from .whole import Whole
from .worker import Recipe

_THREADS = 4
"""Cores that a worker with a GPU asks for, where there are enough: images are encoded and written by threads."""


@dataclass(frozen=True)
class Job:
    """The arguments of :func:`hsd.distributed.generate`, checked."""

    plan: Plan | Recipe
    loader: Callable[[], Any]
    """Loads the model, in a worker."""
    out: str
    """An absolute name, or a URL."""
    options: Options
    image_format: ImageFormat
    workers: int | None
    device: str | None
    stall: float

    def check_folder(self) -> None:
        """Raise what the driver would raise for the folder once it knows the model: that takes a while."""
        if is_url(self.out):
            check_shared(self.out)
            Objects(self.out).check()
            return
        folder = make_folder(self.out)
        if isinstance(self.plan, Plan):
            refuse(folder, self.plan.kept)

    def run(self, ray: Any, watcher: Watcher, failed: FailureReport | None, *, own: bool) -> Run:
        """Hand out units until there are none left, and record the run.

        Parameters
        ----------
        own
            Whether this Ray is for this run alone.
        """
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        wanted, needs = self.needs(ray.cluster_resources(), nodes, own=own)
        images = len(self.plan) if isinstance(self.plan, Plan) else 0
        options = replace(self.options, neighbours=math.ceil(wanted / max(nodes, 1)))
        whole = Whole(self.out, options, self.image_format, watcher, failed, alone=nodes == 1, wanted=images)
        crew = Crew(ray, wanted, needs)

        def end(error: BaseException | None) -> Run | None:
            return whole.end(error, {"wanted": wanted, "started": crew.started, "lost": crew.lost})

        try:
            Driver(crew, ray.put, self.loader, self.plan, whole, self.stall).run()
        except BaseException as error:
            with contextlib.suppress(Exception):  # what ended the run matters more
                if (run := end(error)) is not None:
                    watcher.stopped(run)
            raise
        done = end(None)
        assert done is not None
        return done

    def needs(self, have: dict[str, float], nodes: int, *, own: bool) -> tuple[int, dict[str, float]]:
        """How many workers, and what Ray has to keep for each.

        Raises
        ------
        Error
            If a Ray for this run alone has fewer GPUs: more will not come.
        """
        workers, device = self.workers, self.device
        gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
        on_gpu = gpus > 0 if device is None else not device.startswith("cpu")
        if not on_gpu:
            wanted = workers or nodes
            return wanted, {"num_cpus": max(1, cores // wanted) if own else 1}
        if own and (workers or 1) > gpus:
            has = f"{gpus} GPU{'' if gpus == 1 else 's'}" if gpus else "no GPU"
            raise Error(
                f"{workers or 1} workers need as many GPUs, and this machine has {has}: ask for fewer, or device cpu"
            )
        wanted = workers or max(gpus, 1)
        return wanted, {"num_gpus": 1, "num_cpus": max(1, min(_THREADS, cores // wanted)) if own else 1}
