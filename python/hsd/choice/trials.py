"""Plans, images, scores and embeddings of settings. Images and scores stay in a folder: nothing is made twice."""

from __future__ import annotations

import io
import json
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..errors import Error
from ..evaluation.folder import Folder, read_folder
from ..evaluation.measure import Measurer
from ..generation.differences import claim_model, early_identity
from ..generation.failures import require_all
from ..generation.metadata import complete
from ..generation.run import generate
from ..models import Adapter, load
from ..models.encode import encoded, remember
from ..models.identity import image_identity
from ..planning.chosen import MEASURED
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..planning.prompts import make_seeds
from ..planning.schedule import schedule_shape
from ..work.files import STUDY, claim, digest_of, make_folder, write_atomically
from ..work.reading import read_file
from .cost import prior_rows, rows
from .grid import Setting

_MOST_EMBEDDINGS = 1 << 32
"""Bytes of a file of embeddings that is read: far more than a run writes."""


class Trials:
    """The user's prompts with a model, and all images that are made of them.

    The plan of a setting is always that of *all* prompts; only the sampled ones of its images are generated. So they
    are the images that :func:`hsd.generate` would make of the whole set, trunks that are shared with prompts outside
    the sample included.

    Parameters
    ----------
    model
        A loaded model.
    prompts, seeds, settings
        As for :func:`hsd.compile`. In the r-th replicate all seeds are others.
    out
        Folder for images and scores.
    measurer
        The scorer and its options.

    Raises
    ------
    Error
        If ``out`` holds images of another model, of another calibration or of other prompts.
    """

    def __init__(
        self,
        model: Adapter,
        prompts: Sequence[str],
        seeds: int | Sequence[int],
        settings: Sequence[dict[str, Any]] | None,
        out: Path,
        measurer: Measurer,
        batch_size: int,
    ) -> None:
        self.model, self.prompts, self.settings = model, list(prompts), settings
        self.out, self.measurer, self.batch_size = make_folder(out), measurer, batch_size
        self.seeds = make_seeds(seeds, len(self.prompts))
        self._encoded: dict[tuple[Any, int], Conditioning] = {}
        self._plans: dict[tuple[Setting, int], Plan] = {}
        self._folders: dict[Path, Folder] = {}
        self._check_study()

    def identity(self) -> dict[str, Any]:
        """What all images in the folder depend on, besides the model: see :func:`claim_model`."""
        texts = json.dumps([self.prompts, self.seeds.tolist(), self.settings])
        return {
            **early_identity(self.out, self.model),
            "calibration": None if self.model.calibration is None else self.model.calibration.digest,
            "prompts": digest_of(texts.encode()),
        }

    def adapter(self, setting: Setting) -> Adapter:
        """The model with the scheduler and the guidance of a setting."""
        own: dict[str, Any] = {}
        if setting.guidance_interval is not None:
            own["guidance_interval"] = setting.guidance_interval
        return load(self.model, scheduler=setting.scheduler, **own)

    def plan(self, setting: Setting, replicate: int = 0) -> Plan:
        """The plan of all prompts.

        Raises
        ------
        ValueError
            If the setting is not possible: a budget that is out of reach, a scheduler that cannot be expressed.
        """
        key = setting, replicate
        if key not in self._plans:
            adapter = self.adapter(setting)
            encoding, conditioning = self._conditioning(adapter, replicate, setting.steps)
            arguments = compile_arguments(setting, adapter, conditioning.vectors)
            seeds = self._seeds(replicate)
            plan = compile_plan(self.prompts, model=adapter, seeds=seeds, settings=self.settings, **arguments)
            remember(plan, encoding, conditioning)
            self._plans[key] = plan
        return self._plans[key]

    def rows(self, setting: Setting, members: NDArray[np.int64] | None = None, replicate: int = 0) -> int:
        """Rows of the denoiser for all images, or for those of the ``members`` that are missing."""
        plan = self.plan(setting, replicate)
        if members is not None:
            left = np.setdiff1d(members, list(self._done(setting, replicate)))
            if not len(left):
                return 0
            plan = plan.prune(left)
        return rows(plan, self.adapter(setting))

    @cached_property
    def prior_rows(self) -> float:
        """Rows of the prior for an image."""
        return prior_rows(self.model, self.prompts, self.seeds)

    def cost(self, setting: Setting) -> float:
        """Rows for an image of the whole set, the prior's included."""
        return self.rows(setting) / len(self.prompts) + self.prior_rows

    def roots(self, setting: Setting, replicate: int) -> NDArray[np.int64]:
        """(N,) the root cluster of each prompt: images of different ones have nothing in common."""
        return self.plan(setting, replicate).active(0)

    def folder(self, setting: Setting, replicate: int) -> Path:
        """The folder of its images."""
        return self.out / "runs" / f"seeds-{replicate}" / setting.name

    def scores(self, setting: Setting, replicate: int, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """(m,) scores of the images of ``members``, which are generated if they are missing; nan for no score."""
        folder = self._generated(setting, replicate, members)
        position = {entry.index: i for i, entry in enumerate(folder.entries)}
        return self.measurer.scores(folder, folder.path)[[position[int(i)] for i in members]]

    def embeddings(self, setting: Setting, replicate: int, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """(m, D) embeddings of the images of ``members``; those that were computed before are read from a file."""
        folder = self._generated(setting, replicate, members)
        position = {entry.index: i for i, entry in enumerate(folder.entries)}
        wanted = [position[int(i)] for i in members]
        scorer = self.measurer.scorer
        path = folder.path / f"embeddings-{scorer.name}.npz"
        known = _read_embeddings(path, scorer.version)
        digests = [folder.entries[i].digest for i in wanted]
        missing = [i for i, digest in zip(wanted, digests, strict=True) if digest not in known]
        if missing:
            for i, row in zip(missing, self.measurer.embeddings(folder, missing), strict=True):
                known[folder.entries[i].digest] = row
            _write_embeddings(path, scorer.version, known)
        return np.stack([known[digest] for digest in digests])

    def _generated(self, setting: Setting, replicate: int, members: NDArray[np.int64]) -> Folder:
        """The folder, with at least the images of ``members``."""
        path = self.folder(setting, replicate)
        found = self._folders.get(path)
        if found is None or not {entry.index for entry in found.entries} >= set(members.tolist()):
            if not self._done(setting, replicate) >= set(members.tolist()):
                part, adapter = self.plan(setting, replicate).prune(members), self.adapter(setting)
                run = generate(part, adapter, path, batch_size=self.batch_size, failed=lambda _: None)
                require_all(run)
            found = self._folders[path] = read_folder(path)
        return found

    def _done(self, setting: Setting, replicate: int) -> set[int]:
        """Prompts whose images are complete."""
        return complete(self.folder(setting, replicate), self.plan(setting, replicate))

    def _seeds(self, replicate: int) -> NDArray[np.int64]:
        """(N,) the seeds of a replicate; no two replicates have one in common."""
        span = int(self.seeds.max() - self.seeds.min()) + 1
        return make_seeds((self.seeds + replicate * span).tolist(), len(self.seeds))

    def _conditioning(self, adapter: Adapter, replicate: int, steps: int) -> tuple[Hashable, Conditioning]:
        """All prompts, encoded once for each way in which they are encoded, and its key.

        ``steps`` is a number of steps that the model can make; the encoding does not depend on it.
        """
        key = adapter.encoding_key()
        if (key, replicate) not in self._encoded:
            seeds = self._seeds(replicate)
            plan = compile_plan(self.prompts, 0.0, model=adapter, steps=steps, seeds=seeds, settings=self.settings)
            _, self._encoded[key, replicate] = encoded(plan)
        return key, self._encoded[key, replicate]

    def _check_study(self) -> None:
        study = self.identity()
        if (other := claim(self.out / STUDY, study)) is not None:
            name, stored = other
            raise Error(
                f"{self.out} holds trials of another {name}: {stored!r}, not {study[name]!r}; choose another folder"
            )
        claim_model(self.out, image_identity(self.model))


def compile_arguments(setting: Setting, adapter: Adapter, vectors: NDArray[np.float32]) -> dict[str, Any]:
    """Keywords for :func:`hsd.compile` that give the setting's plan from ``vectors`` (N, D), the model's embeddings.

    The prompts are encoded once and not for every setting. So what ``metric="calibrated"`` and ``schedule="measured"``
    would take from the model is passed as values: the plan is the same.
    """
    calibration = adapter.calibration
    schedule: Any = setting.schedule
    if setting.metric == "calibrated":
        assert calibration is not None, "the grid has this metric for calibrated models only"
        vectors = calibration.transform(vectors)
    if schedule == MEASURED:
        assert calibration is not None, "the grid has this schedule for calibrated models only"
        n_steps = adapter.sampler(setting.steps).n_steps
        schedule = schedule_shape(schedule, n_steps, weights=calibration.weights_at(n_steps))
    return {
        "steps": setting.steps,
        "tau": None if setting.budget else 0.0,
        "budget": setting.budget or None,
        "embeddings": vectors,
        "metric": "euclidean" if setting.metric == "calibrated" else setting.metric,
        "schedule": schedule,
        "catch_up": setting.catch_up,
    }


def _read_embeddings(path: Path, version: str) -> dict[str, NDArray[np.float64]]:
    """The stored embeddings of a scorer's version; none if the file cannot be used: they are computed again."""
    if not path.is_file():
        return {}
    try:
        with np.load(io.BytesIO(read_file(path, _MOST_EMBEDDINGS)), allow_pickle=False) as stored:
            digests, rows = stored["digests"].tolist(), stored["rows"].astype(np.float64)
            if str(stored["version"]) != version or rows.ndim != 2 or not np.isfinite(rows).all():
                return {}
            return dict(zip(map(str, digests), rows, strict=True))
    except Exception:  # a damaged archive fails in many ways
        return {}


def _write_embeddings(path: Path, version: str, known: dict[str, NDArray[np.float64]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, version=np.array(version), digests=np.array(list(known)), rows=np.stack(list(known.values())))
    write_atomically(path, buffer.getvalue())
