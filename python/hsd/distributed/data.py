"""For pipelines of Ray Data: a row for each unit of a plan goes in, a row for each image comes out.

The folder is the only memory. Ray Data repeats a whole block after a process died, and a program may be run again: what
a unit has in the folder already is not made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceFailed, OutputError, PlanMismatch
from ..generation.folders import Folder, open_folder
from ..generation.lines import Lines, ending
from ..generation.options import Options
from ..generation.unit import UnitRunner
from ..models import load
from ..names import BatchSize, ImageFormat, Order
from ..planning.plan import Plan, check_is_plan
from ..work.urls import check_shared, is_url
from .units import units

PATIENCE = 90.0
"""Seconds that a process which died may hold its claim: longer than the lease of a claim of another host."""

_AGAIN = 1.0
"""Seconds between two attempts."""


def unit_rows(plan: Plan, workers: int, *, per_worker: int | None = None) -> list[dict[str, Any]]:
    """One row a unit, for ``ray.data.from_items``: ``unit``, its number, and ``indices`` of its images.

    Give each unit a block of its own (``override_num_blocks=len(rows)``): Ray Data repeats and loses whole blocks.

    Parameters
    ----------
    plan
        The plan that :class:`UnitRows` gets too.
    workers, per_worker
        As for :func:`hsd.distributed.units`.
    """
    check_is_plan(plan)
    parts = units(plan, workers, per_worker=per_worker)
    return [{"unit": number, "indices": part.kept.tolist()} for number, part in enumerate(parts)]


class UnitRows:
    """Makes the images of units, as a class for ``ray.data.Dataset.map_batches``; see ``examples/ray_data.py``.

    Each process of Ray Data has one, and loads the model once. Use ``batch_size=1``, one unit a call, and
    ``max_task_retries=3``: without it, an image that kills its process is tried for ever.

    Parameters
    ----------
    plan
        The whole plan.
    model
        A name, a folder, or a function without arguments that loads one.
    out
        The folder of the images, or a URL, the same for all processes.
    device, dtype, settings
        As for :func:`hsd.load`, which is called with them unless ``model`` is a function.
    batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last, image_format
        As for :func:`hsd.generate`.

    Raises
    ------
    PlanMismatch
        If the folder holds images of another plan or model. As ``DeviceFailed``, this ends the job: it would be the
        same for every unit. Other errors become rows.
    """

    def __init__(
        self,
        plan: Plan,
        model: str | os.PathLike[str] | Callable[[], Any],
        out: str | os.PathLike[str],
        *,
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
        **settings: Any,
    ) -> None:
        check_is_plan(plan)
        if is_url(out):
            check_shared(str(out))
        options = Options(batch_size, order, max_slots, conditioning_memory, compile, cuda_graphs, channels_last)
        if isinstance(model, (str, os.PathLike)):
            adapter = load(model, device=device, dtype=dtype, **settings)
        elif callable(model) and not hasattr(model, "components"):  # which pipelines have
            adapter = load(model())
        else:
            raise TypeError(
                f"model is a {type(model).__name__}: give its name, its folder, or a function that loads it, since "
                "each process loads it for itself"
            )
        self._plan, self._out, self._format = plan, os.fspath(out), image_format
        self._name = Lines(Path(), plan, ending(image_format)).name
        self._runner = UnitRunner(plan, adapter, options)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """The rows of the images of the units in ``batch``: ``index``, ``path``, ``prompt``, ``seed``, and ``error``,
        which is empty where the image is there.
        """
        rows: dict[str, list[Any]] = {name: [] for name in ("index", "path", "prompt", "seed", "error")}
        for indices in batch["indices"]:
            unit = np.sort(np.asarray(indices, dtype=np.int64))
            paths, errors = self._made(unit)
            for index in unit.tolist():
                rows["index"].append(index)
                rows["path"].append(paths.get(index, ""))
                rows["prompt"].append(self._plan.prompts[index])
                rows["seed"].append(int(self._plan.seeds[index]))
                rows["error"].append("" if index in paths else errors.get(index, errors[-1]))
        return rows

    def _made(self, unit: NDArray[np.int64]) -> tuple[dict[int, str], dict[int, str]]:
        """Paths of the images of a unit that are there, and why others are not; -1 for those that nothing names."""
        errors = {-1: "it was not made, and nothing says why"}
        paths: dict[int, str] = {}
        try:
            with self._opened(self._plan.prune(unit)) as folder:
                done = folder.done()
                self._runner.open(folder)
                missing = np.setdiff1d(unit, np.fromiter(done, np.int64, len(done)))
                try:
                    for told in self._runner.run(missing, proven=bool(done)) if len(missing) else ():
                        errors |= {failure.index: f"{failure.stage}: {failure.reason}" for failure in told.failed}
                finally:
                    paths = {index: f"{folder.path}/{self._name(index)}" for index in folder.done()}
        except (PlanMismatch, DeviceFailed):
            raise
        except Exception as error:
            errors[-1] = f"{type(error).__name__}: {error}"
        return paths, errors

    def _opened(self, part: Plan) -> Folder:
        """The folder, for one unit. A process that died may hold it a while."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return open_folder(self._out, part, self._runner.identity, self._format)
            except OutputError:
                if time.monotonic() > end:
                    raise
                time.sleep(_AGAIN)
