"""The plan: which cluster of prompts runs at which steps. Independent of hardware; made by :func:`hsd.compile`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import Program, Tree
from ..errors import Error, PlanMismatch
from ..names import Noise, Order, check_name
from ..work.files import write_atomically

if TYPE_CHECKING:
    from ..conditioning.rows import Conditioning


class Plan:
    """Segments of clusters over steps, and the prompts and seeds they stand for. Immutable.

    Attributes
    ----------
    prompts
        The N prompts, repeats included (``images_per_prompt=r`` gives each r times in a row).
    seeds
        (N,) int64, the seed of each prompt's generator.
    request
        What was asked of :func:`hsd.compile`: tau or budget, steps, linkage, schedule, noise, encoder.
    """

    def __init__(self, core: _core.Plan, prompts: list[str], seeds: NDArray[np.int64], request: dict[str, Any]) -> None:
        if len(prompts) != core.n_prompts or len(seeds) != core.n_prompts:
            raise PlanMismatch(
                f"the plan is for {core.n_prompts} prompts; got {len(prompts)} prompts and {len(seeds)} seeds"
            )
        self._core = core
        self.prompts = prompts
        self.seeds = seeds
        self.request = request
        # The key of the model a plan was compiled with, and what it encoded: generating with it reuses that. Not saved.
        self.encoded: tuple[Hashable, Conditioning] | None = None

    # -- what it is

    @property
    def n_prompts(self) -> int:
        """N, the prompts of the whole tree, whether or not this plan keeps them all."""
        return self._core.n_prompts

    @property
    def n_steps(self) -> int:
        """K, evaluations of the denoiser from noise to image."""
        return self._core.n_steps

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the prompts this plan makes, ascending: all, unless pruned or sharded."""
        return self._core.kept

    @property
    def tau(self) -> float:
        """The threshold: 0 shares nothing."""
        return float(self.request["tau"])

    @property
    def noise(self) -> str:
        """``independent`` (one first latent for every root cluster) or ``shared`` (one for all)."""
        return str(self.request["noise"])

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Distinct settings that prompts have of their own; one empty dict where none has any."""
        own = self.request.get("settings")
        return [{}] if own is None else list(own["values"])

    @property
    def setting(self) -> NDArray[np.int64]:
        """(N,) which of ``settings`` each prompt has."""
        own = self.request.get("settings")
        return np.zeros(self.n_prompts, np.int64) if own is None else np.asarray(own["index"], dtype=np.int64)

    def covered(self) -> NDArray[np.int64]:
        """Prompts under the plan's segments, ascending: those kept, and those that they share a cluster with."""
        segments = self.segments
        roots = segments[segments["parent"] < 0]
        edges = np.zeros(self.n_prompts + 1, dtype=np.int64)
        np.add.at(edges, roots["leaf_begin"], 1)
        np.add.at(edges, roots["leaf_end"], -1)
        return np.sort(self.tree.leaf_order[np.cumsum(edges[:-1]) > 0])

    @property
    def phi(self) -> NDArray[np.float64]:
        """(K,) the threshold at each step."""
        return self._core.phi

    @property
    def tree(self) -> Tree:
        """The tree of prompts."""
        return self._core.tree

    @property
    def segments(self) -> NDArray[np.void]:
        """Structured array, parents first: ``parent``, ``first_step``, ``end_step``, ``leaf_begin``, ``leaf_end``
        (a range of ``tree.leaf_order``, the full cluster) and ``representative`` (its lowest prompt); all int32.
        """
        return self._core.segments

    @property
    def node_steps(self) -> int:
        """Evaluations of the denoiser on one latent: the cost of the plan."""
        return self._core.node_steps

    @property
    def standard_node_steps(self) -> int:
        """What the same images cost without sharing: one evaluation an image a step."""
        return len(self.kept) * self.n_steps

    @property
    def savings(self) -> float:
        """1 - node_steps / (images * steps)."""
        return 1.0 - self.node_steps / self.standard_node_steps

    def counts(self) -> NDArray[np.int64]:
        """(K,) number of active clusters at each step."""
        return self._core.counts()

    def active(self, k: int) -> NDArray[np.int64]:
        """(N,) segment of each prompt at step ``k``; -1 where a prompt is not kept."""
        return self._core.active(k)

    # -- what to do with it

    def prune(self, keep: Iterable[int] | NDArray[np.integer]) -> Plan:
        """The plan restricted to the prompts ``keep``. Their images stay what they were: the segments that
        remain keep their full cluster's conditioning and its representative's noise.
        """
        values = np.asarray(keep if isinstance(keep, np.ndarray) else list(keep))
        if values.size and not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"keep has to hold prompt indices (integers), not {values.dtype}")
        return self._with(self._core.prune(np.ascontiguousarray(values, dtype=np.int64)))

    def shard(self, n: int) -> list[Plan]:
        """At most ``n`` plans that together make the same images, balanced by node-steps: one a worker."""
        return [self._with(part) for part in self._core.shard(n)]

    def program(
        self,
        batch_size: int = 16,
        order: Order = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        progress: Callable[[float], object] | None = None,
    ) -> Program:
        """Lower to calls of ``batch_size`` lanes. ``depth`` finishes images early and keeps few latents alive;
        ``breadth`` needs the fewest calls. ``max_slots`` bounds the latents alive at once; where they are too few for
        ``breadth``, it goes depth first. With ``mixed_steps=False`` all lanes of a call stand at one step, for
        denoisers that take one timestep a call. ``progress`` gets the finished fraction.
        """
        return self._core.program(batch_size, order, max_slots, mixed_steps=mixed_steps, progress=progress)

    def check_program(
        self, batch_size: int = 16, order: Order = "depth", max_slots: int | None = None, *, mixed_steps: bool = True
    ) -> None:
        """Raise what :meth:`program` would raise for these arguments, without lowering the plan."""
        self._core.check_program(batch_size, order, max_slots, mixed_steps=mixed_steps)

    def summary(self, batch_size: int = 16) -> str:
        """A page for people: what is saved, and how many clusters run at each step."""
        from .summary import plan_summary

        return plan_summary(self, batch_size)

    def describe(self, max_rows: int = 200) -> str:
        """Segments as aligned text."""
        return self._core.describe(max_rows)

    # -- files

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of prompts, seeds, tree, phi and noise: equal for all shards of one plan, and only for those."""
        parts: dict[str, Any] = {"noise": self.noise}
        if "settings" in self.request:
            parts["settings"] = self.request["settings"]
        return self._core.fingerprint(self.prompts, self.seeds, json.dumps(parts, sort_keys=True))

    def whole(self) -> Plan:
        """The plan for all N prompts that this one was pruned from."""
        if len(self) == self.n_prompts:
            return self
        return self._with(_core.Plan.compile(self.tree, self.phi))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (arrays and JSON metadata), by atomic rename."""
        data = self._core.to_bytes(self.prompts, self.seeds, json.dumps(self.request, sort_keys=True))
        write_atomically(Path(path), data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a saved plan. Every array and invariant is checked: safe on files from anywhere.

        Raises
        ------
        Error
            If the file is not a sound plan.
        OSError
            If it cannot be read.
        """
        data = Path(path).read_bytes()
        try:
            core, prompts, seeds, metadata = _core.Plan.from_bytes(data)
            request = json.loads(metadata)
            if not isinstance(request, dict):
                raise ValueError("its metadata is not a JSON object")
            check_name("noise", request.get("noise"), Noise)
            if not isinstance(request.get("tau"), (int, float)) or not isinstance(request.get("steps"), int):
                raise ValueError("its metadata lacks tau or steps")
            plan = cls(core, prompts, seeds, request)
            plan._check_settings()
        except ValueError as error:
            raise Error(f"{path} is not a plan that can be used: {error}. Compile it again.") from None
        return plan

    def _check_settings(self) -> None:
        """``ValueError`` unless each prompt has settings, and no cluster prompts of different ones."""
        own = self.request.get("settings")
        if own is None:
            return
        values, index = (own.get(name) for name in ("values", "index")) if isinstance(own, dict) else (None, None)
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError("its settings are not a list of objects")
        if not isinstance(index, list) or len(index) != self.n_prompts:
            raise ValueError(f"it does not say which settings each of its {self.n_prompts} prompts has")
        for i, which in enumerate(index):
            if not isinstance(which, int) or not 0 <= which < len(values):
                raise ValueError(f"prompt {i} has settings {which!r} of {len(values)}")
        segments, ordered = self.segments, self.setting[self.tree.leaf_order]
        changes = np.concatenate([[0], np.cumsum(np.diff(ordered) != 0)])  # how often they changed up to a leaf
        mixed = np.flatnonzero(changes[segments["leaf_end"] - 1] != changes[segments["leaf_begin"]])
        if len(mixed):
            raise ValueError(f"segment {mixed[0]} holds prompts of different settings")

    def _with(self, core: _core.Plan) -> Plan:
        plan = Plan(core, self.prompts, self.seeds, self.request)
        plan.encoded = self.encoded
        return plan

    def __getstate__(self) -> dict[str, Any]:
        """Without the model and what it encoded: a plan is sent to workers that load their own."""
        return {**self.__dict__, "encoded": None}

    def __len__(self) -> int:
        return len(self.kept)

    def __repr__(self) -> str:
        kept = f"{len(self.kept)} of " if len(self.kept) < self.n_prompts else ""
        return (
            f"<hsd.Plan: {kept}{self.n_prompts} prompts, {self.n_steps} steps, tau {self.tau:.4g}, "
            f"{self.node_steps:,} node-steps, {self.savings:.1%} saved>"
        )

    def __str__(self) -> str:
        return self.summary()
