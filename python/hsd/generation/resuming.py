"""A run that begins where an earlier one has kept its trunks, and keeps its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OutputError
from ..planning.plan import Plan
from ..replay.trunks import Start, Trunk, most_valuable
from ..work.device import to_host
from .forks import forking
from .trunks import TRUNKS, TrunkFolder

_Begin = tuple[int, int]
"""What a segment is known by, in every part of a plan: its representative and its first step."""


class ResumedRun:
    """What a session needs of the trunks of a folder.

    A trunk is known by all that its state follows from: the model and its settings, the steps, the prompts that its
    path was conditioned on, with their seeds and settings, from which step on, and where it ends.

    Parameters
    ----------
    out
        The folder of images.
    made_by
        What images depend on besides the plan (``models/identity.py``).
    budget
        Bytes of trunks that are kept there; 0: none is written, and those that are there are used.
    submit
        :meth:`Writers.submit`.
    """

    def __init__(self, out: Path, made_by: dict[str, Any], budget: int, submit: Callable[..., object]) -> None:
        # A folder goes on with other versions, and prompts of another size have another table, by their settings.
        known = {name: value for name, value in made_by.items() if name not in ("versions", "tables")}
        self._model = json.dumps(known, sort_keys=True, default=str)
        self._prompts: NDArray[np.uint8] | None = None
        self._folder, self._budget = TrunkFolder(out, submit, budget), budget
        self._submit = submit
        self._paths: dict[_Begin, bytes] = {}
        """Digests of the paths before segments whose parent is not in the plan that runs."""
        self._keys: dict[_Begin, tuple[str, bool]] = {}
        """The trunk that such a segment begins from, and whether it continues its generator."""
        self._fields: set[str] = set()
        self.used = 0
        """Evaluations that are not computed again."""

    @property
    def written(self) -> int:
        """Trunks that were kept."""
        return self._folder.written

    def resumed(self, plan: Plan, *, catches_up: bool, renoised: NDArray[np.bool_] | None = None) -> Plan:
        """``plan`` without the steps that lead to trunks that are there.

        Segments that are ``renoised`` (segments,) begin with fresh noise, for which the trunk has to hold an x0.
        """
        segments = plan.segments
        digests = self._digests(plan)
        parent, origin = segments["parent"], plan.layers().origins(segments["parent"], segments["first_step"])
        candidates = forking(plan)
        if catches_up:  # a segment that goes on with the mean of its parent needs the h of where that began
            going_on = np.flatnonzero((parent >= 0) & (origin < segments["first_step"]))
            candidates[parent[going_on]] = False
        needs_x0 = np.zeros(len(segments), dtype=bool)
        if renoised is not None:
            needs_x0[parent[renoised & (parent >= 0)]] = True
        given = np.zeros(len(segments), dtype=bool)
        self.used = 0
        needed = segments["end_step"] == plan.n_steps
        for segment in range(len(segments) - 1, -1, -1):  # children come after their parents
            if candidates[segment] and needed[segment]:
                key = _key(digests[segment], int(segments["end_step"][segment]))
                trunk = self._folder.read(key) if key in self._folder else None
                if trunk is not None and not (needs_x0[segment] and trunk.predicted is None):
                    given[segment] = True
                    self._fields |= trunk.given.keys()
            if needed[segment] and not given[segment] and parent[segment] >= 0:
                needed[parent[segment]] = True
        if not given.any():
            return plan
        for child in np.flatnonzero(parent >= 0).tolist():
            above = int(parent[child])
            if given[above]:
                begin = _begin_of(segments[child])
                same = segments["representative"][child] == segments["representative"][above]
                self._keys[begin] = _key(digests[above], int(segments["end_step"][above])), bool(same)
                self._paths[begin] = digests[above]
        resumed = plan.resume(given)
        self.used = plan.node_steps - resumed.node_steps
        return resumed

    def of(self, plan: Plan, nbytes: int) -> TrunksOfPass:
        """For an executor that runs ``plan``, whose trunks take about ``nbytes`` each."""
        return TrunksOfPass(self, plan, nbytes)

    def close(self) -> None:
        """Say what was lost. After the writers have ended."""
        self._folder.close()

    def flush(self) -> None:
        """Write what is kept and not yet written."""
        self._folder.flush()

    def _digests(self, plan: Plan) -> list[bytes]:
        """(segments,) what each path is known by, up to and with each segment."""
        segments, layers = plan.segments, plan.layers()
        origin = layers.origins(segments["parent"], segments["first_step"])
        prompts = self._digest_of_each(plan)
        of_run = _hashed(self._model, plan.n_steps, plan.noise)
        out: list[bytes] = []
        for i, segment in enumerate(segments):
            parent, first = int(segment["parent"]), int(segment["first_step"])
            before = out[parent] if parent >= 0 else self._paths.get(_begin_of(segment), of_run)
            if origin[i] < first:
                out.append(before)
                continue
            members = prompts[np.sort(layers.members(i))].tobytes()
            out.append(hashlib.sha256(before + first.to_bytes(8, "little") + members).digest())
        return out

    def _digest_of_each(self, plan: Plan) -> NDArray[np.uint8]:
        """(N, 32) what each prompt is known by. All parts of a run have the same prompts."""
        if self._prompts is None:
            settings, which = plan.settings, plan.setting
            each = zip(plan.prompts, plan.seeds.tolist(), which.tolist(), strict=True)
            data = b"".join(_hashed(text, seed, json.dumps(settings[own], sort_keys=True)) for text, seed, own in each)
            self._prompts = np.frombuffer(data, dtype=np.uint8).reshape(-1, 32)
        return self._prompts


class TrunksOfPass:
    """The trunks of one pass of a run: what an executor asks for."""

    def __init__(self, run: ResumedRun, plan: Plan, nbytes: int) -> None:
        self._run, self._plan, self._digest = run, plan, run._digests(plan)
        self._nbytes = nbytes

    def starts(self, segment: int) -> Start:
        """What a segment that begins late begins from."""
        key, continues = self._run._keys[_begin_of(self._plan.segments[segment])]
        trunk = self._run._folder.read(key)
        if trunk is None:  # it was there when the run began
            raise OutputError(
                f"a file of {TRUNKS} was removed or damaged while the run used it: run the same call again"
            )
        return Start(trunk, continues)

    def fields(self) -> set[str]:
        """The fields of which some trunk has an h."""
        return self._run._fields

    def wanted(self) -> NDArray[np.bool_]:
        """(segments,) whose state at their end is to be kept: those that are expected to save most."""
        plan, folder = self._plan, self._run._folder
        candidates = forking(plan)
        if not self._run._budget:
            return np.zeros_like(candidates)
        ends = plan.segments["end_step"].tolist()
        present = [bool(fork) and _key(self._digest[i], ends[i]) in folder for i, fork in enumerate(candidates)]
        return most_valuable(plan, candidates, self._nbytes, folder.room(), np.array(present, dtype=bool))

    def keep(
        self,
        segment: int,
        state: Tensor,
        generator: Tensor,
        given: dict[str, Tensor],
        predicted: Tensor | None,
    ) -> None:
        """Keep a state (S, *latent)."""
        key = _key(self._digest[segment], int(self._plan.segments["end_step"][segment]))
        host, x0 = to_host(state), None if predicted is None else to_host(predicted)
        if torch.isfinite(host).all():  # else its images fail, and are tried again
            self._run._folder.keep(key, Trunk(host, generator, given, x0))


def _hashed(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _begin_of(segment: np.void) -> _Begin:
    return int(segment["representative"]), int(segment["first_step"])


def _key(path: bytes, end_step: int) -> str:
    return hashlib.sha256(path + end_step.to_bytes(8, "little")).hexdigest()
