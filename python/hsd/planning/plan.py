"""The plan: which cluster of prompts runs at which steps. Independent of hardware; :func:`hsd.compile` returns it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import Plan as CorePlan
from .._core import Program, Tree
from ..errors import PlanMismatch
from ..names import Order, check_count
from ..prompts.files import PromptFile
from ..work.progress import ProgressOption, of_stage, shows_stages
from .encoders import EARLIER_NAME, Encoder, StaticEncoder
from .extend import Additions, Base, additions, extended
from .goal import goal_of
from .layers import Layers, places_within
from .plan_file import read, write
from .prompts import make_seeds, next_seed
from .rows import data_frame, shared_with
from .settings import canonical
from .span import Span
from .summary import Calls, Summary
from .vary import check_depth, fork_step, varied
from .vectors import Vectors, as_vectors

if TYPE_CHECKING:
    import pandas

PLAN_FILE = "plan.safetensors"
"""The plan's file in a folder of images."""

PLAN_COPY = "plan-copy.safetensors"
"""A second copy of a plan that has grown: which prompts came when cannot be computed again."""


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Plan:
    """Segments of clusters over steps, and the prompts and seeds they belong to. Immutable.

    Attributes
    ----------
    prompts
        The N prompts, repeats included (``images_per_prompt=r`` gives each r times in a row).
    seeds
        (N,) int64, the seed of each prompt's generator. Read-only.
    request
        The arguments of :func:`hsd.compile`: tau or budget, steps, linkage, metric, schedule, noise, catch_up, encoder.
    """

    prompts: list[str]
    seeds: NDArray[np.int64]
    request: dict[str, Any]
    _core: CorePlan
    _origin: Plan | None
    _segments: NDArray[np.void] | None
    _vectors: Vectors | None
    _rows: NDArray[np.int64] | None

    def __init__(self, core: CorePlan, prompts: list[str], seeds: NDArray[np.int64], request: dict[str, Any]) -> None:
        if len(prompts) != core.n_prompts or len(seeds) != core.n_prompts:
            raise PlanMismatch(
                f"the plan is for {core.n_prompts} prompts; got {len(prompts)} prompts and {len(seeds)} seeds"
            )
        if seeds.flags.writeable:  # the caller's array may change later
            seeds = seeds.copy()
            seeds.flags.writeable = False
        self._set(_core=core, prompts=prompts, seeds=seeds, request=request)
        self._set(_origin=None, _segments=None, _vectors=None, _rows=None)

    def _set(self, **fields: Any) -> None:
        """Assign fields while the object is built; later assignments raise ``FrozenInstanceError``."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    # -- properties

    @property
    def origin(self) -> Plan:
        """The compiled or loaded plan that this one was pruned from; the plan itself if it was not pruned."""
        return self if self._origin is None else self._origin

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
        """Indices of the prompts whose images this plan generates, ascending: all, unless pruned or sharded."""
        return self._core.kept

    @property
    def tau(self) -> float:
        """The threshold: 0 shares nothing."""
        return float(self.request["tau"])

    @property
    def metric(self) -> str:
        """How the embeddings were compared; ``cosine`` in files from before there was a choice."""
        return str(self.request.get("metric", "cosine"))

    @property
    def metric_correlation(self) -> float | None:
        """How well the distances used predict those of the model's own predictions: the Pearson correlation over
        prompts that its calibration was not fitted to; None if that was not measured.
        """
        value = self.request.get("metric_correlation")
        return value if isinstance(value, float) else None

    @property
    def noise(self) -> str:
        """``independent`` (one first latent for every root cluster) or ``shared`` (one for all)."""
        return str(self.request["noise"])

    @property
    def catch_up(self) -> float | None:
        """Gamma of catch-up conditioning; None: the default of the model. Plans from before there was any have 0."""
        gamma = self.request.get("catch_up", 0.0)
        return None if gamma is None else float(gamma)

    @property
    def is_estimate(self) -> bool:
        """Whether the built-in encoder decided who shares steps, because nothing else was given: a run compiles the
        plan again, by the embeddings of its model.
        """
        encoder = self.request.get("encoder")
        by_default = "asked_metric" in self.request or encoder == EARLIER_NAME  # which did not say what was asked
        return encoder in (StaticEncoder.name, EARLIER_NAME) and by_default and self.n_prompts > 1 and self.phi[0] > 0

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The distinct settings of single prompts; one empty dict where no prompt has any."""
        own = self.request.get("settings")
        return [{}] if own is None else list(own["values"])

    @property
    def setting(self) -> NDArray[np.int64]:
        """(N,) which of ``settings`` each prompt has."""
        own = self.request.get("settings")
        return np.zeros(self.n_prompts, np.int64) if own is None else np.asarray(own["index"], dtype=np.int64)

    @property
    def columns(self) -> dict[str, list[Any]]:
        """What was given with ``columns=``: N values by name, which change nothing."""
        return dict(self.request.get("columns") or {})

    @property
    def extensions(self) -> tuple[int, ...]:
        """How many prompts there were before each time that the plan was extended: see :meth:`extend`."""
        return tuple(self.request.get("extensions") or ())

    @property
    def grown_from(self) -> tuple[str, ...]:
        """Fingerprints of the plans that this one is an extension of."""
        return tuple(self.request.get("grown_from") or ())

    def layers(self) -> Layers:
        """Which prompts of a cluster count in what it is conditioned on: all, unless the plan was extended."""
        return Layers(self.extensions, self.n_prompts, self.tree.leaf_order, self._core.segments)

    def in_clusters(self) -> NDArray[np.int64]:
        """Prompts in the clusters of the plan, ascending, also those that came later and that nothing is conditioned
        on.
        """
        segments = self._core.segments
        roots = segments[segments["parent"] < 0]
        return np.sort(self.tree.leaf_order[places_within(roots["leaf_begin"], roots["leaf_end"], self.n_prompts)])

    def covered(self) -> NDArray[np.int64]:
        """Prompts that the plan's clusters are conditioned on, ascending: the kept ones, and those that share a cluster
        with them.
        """
        return self.layers().any_member()

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
        (a range of ``tree.leaf_order``, the full cluster) and ``representative`` (its lowest prompt), all int32; and
        ``borrowed`` (bool), whether kept prompts are in it that were added later, and do not count in its mean.
        Read-only.
        """
        if self._segments is None:
            core = self._core.segments
            table = np.empty(len(core), dtype=[*core.dtype.descr, ("borrowed", "?")])
            for name in core.dtype.names or ():
                table[name] = core[name]
            table["borrowed"] = self.layers().borrowed(self.kept)
            table.flags.writeable = False
            self._set(_segments=table)
        assert self._segments is not None
        return self._segments

    @property
    def node_steps(self) -> int:
        """Evaluations of the denoiser on one latent: the cost of the plan."""
        return self._core.node_steps

    @property
    def standard_node_steps(self) -> int:
        """The cost of the same images without sharing: one evaluation per image and step."""
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

    def shared_with(self, index: int) -> dict[int, int]:
        """The prompts with which a prompt shares steps, and how many: those that share most first, then by number.

        They are the other prompts of its clusters, whether or not this plan keeps them: its latent is conditioned on
        all of them. Two prompts that share n steps share the steps 0 ... n - 1. Empty for one that shares nothing.

        Raises
        ------
        IndexError, ValueError
            If there is no prompt ``index``, or the plan does not keep it.
        """
        return shared_with(self, index)

    def to_dataframe(self) -> pandas.DataFrame:
        """A ``pandas.DataFrame`` with one row for each prompt that the plan keeps.

        Columns: ``index``, ``prompt``, ``seed``; ``cluster``, the lowest prompt of its cluster at the first step;
        ``alone_from``, the first step at which it is alone; ``node_steps``, what it is charged for: each node-step is
        divided equally among the kept prompts of its cluster, so that the sum is :attr:`node_steps`. Then the settings
        of single prompts, None where one has none, and the other columns, by their names in ``metadata.jsonl``.

        Raises
        ------
        Error
            If pandas is missing: ``pip install pandas``.
        """
        return data_frame(self)

    # -- parts, programs and costs

    def prune(self, keep: Iterable[int] | NDArray[np.integer]) -> Plan:
        """The plan restricted to the prompts ``keep``. Their images do not change: the segments that remain keep the
        conditioning of their full cluster and the noise of its representative.
        """
        values = np.asarray(keep if isinstance(keep, np.ndarray) else list(keep))
        if values.size and not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"keep has to hold prompt indices (integers), not {values.dtype}")
        return self._with(self._core.prune(np.ascontiguousarray(values, dtype=np.int64)))

    def resume(self, given: NDArray[np.bool_]) -> Plan:
        """The plan without what leads to states that are known: of the segments ``given`` (segments,), at their end.

        A segment that forks from one of them has no parent, begins at its own step, and needs that state.
        """
        return self._with(self._core.resume(np.ascontiguousarray(given, dtype=bool)))

    @shows_stages
    def extend(
        self,
        prompts: Sequence[str] | PromptFile,
        *,
        model: Any = None,
        embeddings: Any = None,
        encoder: Encoder | None = None,
        seeds: int | Sequence[int] | NDArray[np.integer] | None = None,
        images_per_prompt: int = 1,
        settings: Sequence[Mapping[str, Any]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        threads: int | None = None,
        conditioning_memory: int | None = None,
        progress: ProgressOption = False,
    ) -> Plan:
        """The plan with more prompts, numbered after its own. No image of its own prompts changes.

        The new prompts are clustered among themselves. Each cluster of them joins the cluster of the plan that it meets
        first by the linkage's own distance, shares its steps as far as the thresholds allow, and forks there. What a
        cluster is conditioned on does not change: new prompts do not count in the mean of one that was there. The
        segments that they borrow are marked in :attr:`segments`. So a plan that grew shares a little less than one that
        was compiled at once, and what leads to where new prompts fork is computed again if no trunks are kept:
        docs/grow.md has the figures.

        Parameters
        ----------
        prompts
            n non-empty strings, or what :func:`hsd.read_prompts` returned. All are added; a text that the plan has
            gives another image. To give a whole new list, use ``hsd.compile(list, extend=folder)``.
        model, embeddings, encoder
            That by which the plan was compiled, one of them; ``embeddings`` (n, D), or (N + n, D) where those of the
            plan's own prompts are not known any more, as after :meth:`load`. With neither, as :func:`hsd.compile`.
        seeds
            One integer (new prompt j gets ``seeds + j``) or one per image. Default: they go on after the largest one.
        images_per_prompt, settings, columns, conditioning_memory, progress
            As for :func:`hsd.compile`, of the new prompts.
        threads
            Default: one per core.

        Returns
        -------
        Plan
            For N + n prompts. If this one was pruned, it keeps the same prompts, and all new ones.

        Raises
        ------
        ValueError, TypeError
            As :func:`hsd.compile`.
        PlanMismatch
            If the model is not that of the plan, or the plan compares prompts by ``metric="direct"``.
        """
        base = self.as_base()
        new = additions(base, prompts, seeds, images_per_prompt, settings, columns)
        if embeddings is not None and images_per_prompt > 1:
            rows = as_vectors(embeddings, None, "embeddings")
            if len(rows.array) * images_per_prompt == len(new.prompts):  # one for each given prompt
                embeddings = rows._replace(array=np.repeat(rows.array, images_per_prompt, axis=0))
        return self.extended(
            base,
            new,
            model=model,
            embeddings=embeddings,
            encoder=encoder,
            threads=threads,
            conditioning_memory=conditioning_memory,
            stages=progress if callable(progress) else None,
        )

    def more(self, n: int, prompts: Sequence[int] | NDArray[np.integer] | None = None, depth: float = 0.7) -> Plan:
        """The plan with ``n`` variations of each of some ``prompts``: images that fork late from the path of the first.

        A variation has the same prompt, settings and columns, the next free seed, and a number after all others. It
        shares the steps up to about ``depth`` of the run, and costs the rest, 30 % of an image by default, and what led
        there if no trunk of it is kept. With a stochastic scheduler its noise differs from there on. With a
        deterministic one, the image that is predicted there gets fresh noise of that step: what image-to-image does,
        with the strength 1 - depth.

        Parameters
        ----------
        n
            Variations that each prompt has in the end: those that it has already count, so the same call adds nothing
            again.
        prompts
            Their numbers. Default: all that the plan keeps and that are no variations themselves.
        depth
            Inside (0, 1). The larger, the cheaper, and the more like the first image.

        Returns
        -------
        Plan
            It keeps the prompts and all of their variations.

        Raises
        ------
        ValueError, TypeError
            For arguments that mean nothing, for a variation of a variation, and for a plan that shares no step.
        """
        depth, n = check_depth(depth), check_count("n", n)
        if self.is_estimate:
            raise ValueError("the plan was clustered without a model: compile it with model=, then ask for variations")
        whole, own, setting = self.whole(), self.variations, self.setting
        chosen = np.setdiff1d(self.kept, list(own)) if prompts is None else np.unique(np.asarray(prompts))
        if prompts is None and not len(chosen):
            first = int(self.kept[0])
            raise ValueError(f"prompt {first} is a variation of prompt {own[first]}: name that one")
        if not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError("prompts has to hold the numbers of prompts of the plan")
        for i in chosen.tolist():
            if not 0 <= i < whole.n_prompts:
                raise ValueError(f"prompt {i} is not in the plan, which has {whole.n_prompts}")
            if i in own:
                raise ValueError(f"prompt {i} is a variation of prompt {own[i]}: name that one")
        there: dict[int, list[int]] = {}
        for variation, original in own.items():
            there.setdefault(original, []).append(variation)
        of = [i for i in chosen.tolist() for _ in range(n - len(there.get(i, ())))]
        kept = [*chosen.tolist(), *(v for i in chosen.tolist() for v in there.get(i, ()))]
        if not of:
            return whole.prune(sorted(kept)) if len(kept) < whole.n_prompts else whole
        first = whole.n_prompts
        step = fork_step(whole.phi, depth)
        request = {
            **whole.request,
            "extensions": [*whole.extensions, first],
            "grown_from": [*whole.grown_from, whole.fingerprint],
            "variations": [*map(list, own.items()), *([first + j, i] for j, i in enumerate(of))],
        }
        if "settings" in request:
            settings = request["settings"]
            request["settings"] = {**settings, "index": [*settings["index"], *(int(setting[i]) for i in of)]}
        if whole.columns:
            request["columns"] = {name: [*values, *(values[i] for i in of)] for name, values in whole.columns.items()}
        seeds = np.concatenate([whole.seeds, make_seeds(next_seed(whole.seeds, len(of)), len(of))])
        core = CorePlan.compile(varied(whole.tree, whole.phi, of, step), whole.phi)
        larger = Plan(core, [*whole.prompts, *(whole.prompts[i] for i in of)], seeds, request)
        if whole.vectors is not None:
            rows = np.concatenate([np.arange(first), of])
            larger.with_vectors(whole.vectors, rows)
        keep = sorted([*kept, *range(first, larger.n_prompts)])
        return larger if len(keep) == larger.n_prompts else larger.prune(keep)

    @property
    def variations(self) -> dict[int, int]:
        """The prompt that each variation is one of: see :meth:`more`."""
        return {int(variation): int(original) for variation, original in self.request.get("variations") or ()}

    def as_base(self) -> Base:
        """What :mod:`.extend` needs of the whole plan."""
        own, which = self.settings, self.setting
        return Base(
            self.tree,
            self.phi,
            self.prompts,
            self.seeds,
            self.request,
            [own[i] for i in which],
            self.columns,
            self.fingerprint,
            self.vectors,
        )

    def extended(self, base: Base, new: Additions, **arguments: Any) -> Plan:
        """:meth:`extend`, of prompts that were checked."""
        found = extended(base, new, **arguments)
        whole = Plan(found.core, found.prompts, found.seeds, found.request)
        whole._set(_vectors=found.vectors)
        if len(self) == self.n_prompts:
            return whole
        return whole.prune(np.concatenate([self.kept, np.arange(self.n_prompts, whole.n_prompts)]))

    @property
    def vectors(self) -> Vectors | None:
        """(N, D) what the prompts were clustered by, where that is known: not in a plan that was loaded from a file."""
        found, rows = self.origin._vectors, self.origin._rows
        return found if found is None or rows is None else found._replace(array=found.array[rows])

    def with_vectors(self, vectors: Vectors | None, rows: NDArray[np.int64] | None = None) -> Plan:
        """The plan itself, which remembers the vectors that it was clustered by: prompt i has row ``rows[i]``."""
        self.origin._set(_vectors=vectors, _rows=rows)
        return self

    def shard(self, n: int, slack: float = 0.02) -> list[Plan]:
        """At most ``n`` plans that together generate the same images, balanced by node-steps: one for each worker.

        Shards are cut where neighbours share least, because the steps that two shards share are computed in both.

        Parameters
        ----------
        n
            Number of shards. There are fewer only if the plan has fewer images.
        slack
            How much larger the largest shard may be than it has to be, as a fraction. Of all cuts that it allows,
            those are taken that compute the fewest node-steps again. More slack takes less of all devices together, and
            keeps the slowest one longer: 2,000 prompts from templates in 8 shards compute 1.07 % again with slack 0,
            0.18 % with 0.02 and 0.04 % with 0.05, and their largest shard is 1.3, 2.8 and 6.2 % over an eighth of the
            plan (``benches/shards.py``).

        Raises
        ------
        ValueError
            For n < 1, or a slack that is negative, infinite or NaN.
        """
        return [self._with(part) for part in self._core.shard(n, slack)]

    def units(self, workers: int, per_worker: int | None = None) -> list[Plan]:
        """The units of :func:`hsd.distributed.units`, which also says when they are too many for this plan."""
        return [self._with(part) for part in self._core.units(workers, per_worker)]

    @shows_stages
    def program(
        self,
        batch_size: int = 16,
        order: Order = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.integer] | Sequence[int] | None = None,
        kinds: NDArray[np.integer] | Sequence[int] | None = None,
        progress: ProgressOption = False,
    ) -> Program:
        """Lower to calls of ``batch_size`` lanes. ``depth`` finishes images early and keeps few latents alive;
        ``breadth`` needs the fewest calls. ``max_slots`` limits the latents alive at once; if it is too low for
        ``breadth``, the program goes depth first. With ``mixed_steps=False`` all lanes of a call are at the same step,
        for denoisers that take one timestep per call. ``progress`` has the stage ``program``: see
        :data:`hsd.ProgressOption`.

        ``rows`` (K,) says how many rows of the network a lane has at each step, where that differs: 2 if it is guided,
        else 1 (:meth:`hsd.models.Adapter.rows_by_step`). Then calls have ``2 batch_size`` rows: ``batch_size`` lanes at
        guided steps, up to twice as many at others, and both may be mixed.

        ``kinds`` (segments,) numbers the segments by what has to be equal in a call, such as the length of their
        prompts: all lanes of a call are then of one kind. A segment may have another kind than its parent.
        """
        return self._core.program(
            batch_size,
            order,
            max_slots,
            mixed_steps=mixed_steps,
            rows=_array(rows),
            kinds=_array(kinds),
            progress=of_stage(progress, "program"),
        )

    def check_program(
        self,
        batch_size: int = 16,
        order: Order = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.integer] | Sequence[int] | None = None,
    ) -> None:
        """Raise what :meth:`program` would raise for these arguments, without lowering the plan."""
        self._core.check_program(batch_size, order, max_slots, mixed_steps=mixed_steps, rows=_array(rows))

    def lower_bound(
        self,
        batch_size: int,
        *,
        mixed_steps: bool = True,
        rows: NDArray[np.integer] | Sequence[int] | None = None,
        kinds: NDArray[np.integer] | Sequence[int] | None = None,
    ) -> int:
        """No :meth:`program` with these arguments has fewer calls."""
        return self._core.lower_bound(batch_size, mixed_steps=mixed_steps, rows=_array(rows), kinds=_array(kinds))

    def cost(
        self,
        programs: Sequence[Program] = (),
        seconds_per_node_step: float | Span | None = None,
        rows: tuple[int, int] | None = None,
        catch_up: float | None = None,
        seconds_per_image: float | Span | None = None,
    ) -> Summary:
        """What the plan costs: node-steps and savings, and the calls, slots and time of a run.

        Parameters
        ----------
        programs
            What will run: one program, or one for each pass, all of one batch size. None: calls and slots are left out.
        seconds_per_node_step
            The measured speed of the model with guidance at every step; a :class:`Span` where it varies. None: time is
            left out.
        rows
            Rows of the network: of the plan, and of the same images without sharing and with guidance at every step.
            None: not known, as without a model.
        catch_up
            The model's default gamma, for a plan that leaves it to the model.
        seconds_per_image
            The measured time of encoding, decoding and writing an image. None: left out.
        """
        calls = None
        if programs:
            n_calls, batch_size = sum(program.n_calls for program in programs), programs[0].batch_size
            places = sum(program.n_calls * program.max_rows for program in programs)
            calls = Calls(
                batch_size=batch_size,
                calls=n_calls,
                rows=max((program.max_rows for program in programs if program.rows is not None), default=None),
                lower_bound=sum(program.lower_bound for program in programs),
                occupancy=sum(program.n_rows for program in programs) / places,
                slots=max(program.n_slots for program in programs),
            )
        summary = Summary(
            prompts=self.n_prompts,
            kept=len(self.kept),
            steps=self.n_steps,
            exact=self.tree.exact,
            linkage=str(self.request["linkage"]),
            metric=self.metric,
            schedule=str(self.request.get("schedule", "linear")),
            correlation=self.metric_correlation,
            encoder=str(self.request["encoder"]),
            tau=self.tau,
            settings=len(self.settings),
            estimate=self.is_estimate,
            node_steps=self.node_steps,
            standard_node_steps=self.standard_node_steps,
            active=tuple(self.counts().tolist()),
            rows=None if rows is None else rows[0],
            standard_rows=None if rows is None else rows[1],
            catch_up=catch_up if self.catch_up is None else self.catch_up,
            run=calls,
            goal=goal_of(self.request),
        )
        if seconds_per_image is not None:
            summary = replace(summary, other_seconds=_span(seconds_per_image) * len(self.kept))
        if seconds_per_node_step is None:
            return summary
        speed = _span(seconds_per_node_step)
        ours, standard = speed * summary.guided_node_steps, speed * self.standard_node_steps
        return replace(summary, seconds=ours, standard_seconds=standard)

    def summary(
        self,
        batch_size: int = 16,
        order: Order = "depth",
        max_slots: int | None = None,
        *,
        mixed_steps: bool = True,
        seconds_per_node_step: float | None = None,
    ) -> str:
        """Readable text: what is saved, how many clusters run at each step, and the calls of :meth:`program`."""
        program = self.program(batch_size, order, max_slots, mixed_steps=mixed_steps)
        return str(self.cost([program], seconds_per_node_step))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The plan as a picture, a ``matplotlib.figure.Figure``: savings over tau with this plan's point, clusters by
        step, and the tree of prompts with the thresholds across it. See docs/plan.md.

        Parameters
        ----------
        path
            Also write it to this file: png, svg or pdf, by its ending.

        Raises
        ------
        Error
            If matplotlib is missing: ``pip install "hsd-diffusion[plot]"``.
        ValueError
            For a file with another ending, or in a folder that does not exist, before anything is drawn.
        """
        from .charts import plot  # here, because few plans are drawn

        return plot(self, path)

    def _repr_html_(self) -> str:
        """The summary as a table, and the picture of :meth:`plot` if matplotlib is there: for notebooks."""
        from .charts.html import shown

        return shown(self)

    def describe(self, max_rows: int = 200) -> str:
        """Segments as aligned text."""
        return self._core.describe(max_rows)

    # -- files

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the images depend on: prompts, seeds, which prompts share which steps, noise, settings,
        catch-up. Equal for all shards of one plan.

        The distances and thresholds do not count, only the clusters that follow from them: a processor with other
        vector instructions rounds the last bit of a distance differently. A catch-up of None, the default of the model,
        does not count either.
        """
        parts: dict[str, Any] = {"noise": self.noise}
        own = self.request.get("settings")
        if own is not None:  # 5.0 in a file of an earlier version is 5 in one of this version
            parts["settings"] = {**own, "values": [canonical(one) for one in own["values"]]}
        if self.catch_up:  # 0 is what plans without it have
            parts["catch_up"] = self.catch_up
        if self.extensions:
            parts["extensions"] = list(self.extensions)
        if self.variations:
            parts["variations"] = sorted(self.variations.items())
        return self._core.fingerprint(self.prompts, self.seeds, json.dumps(parts, sort_keys=True))

    def whole(self) -> Plan:
        """The plan for all N prompts that this one was pruned from."""
        for plan in (self, self.origin):
            if len(plan) == plan.n_prompts:
                return plan
        return self._with(CorePlan.compile(self.tree, self.phi))  # a pruned plan that was loaded from a file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (arrays and JSON metadata), by atomic rename."""
        write(path, self._core, self.prompts, self.seeds, self.request)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a saved plan. Every array, value and invariant is checked: safe on files from anywhere.

        Raises
        ------
        Error
            If the file is not a valid plan.
        OSError
            If it cannot be read, or is a folder, a device or a pipe.
        """
        return cls(*read(path))

    def _with(self, core: CorePlan) -> Plan:
        plan = Plan(core, self.prompts, self.seeds, self.request)
        plan._set(_origin=self.origin)
        return plan

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the origin, so that a worker receives its part only."""
        return Plan, (self._core, self.prompts, self.seeds, self.request)

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


def _span(value: float | Span) -> Span:
    return value if isinstance(value, Span) else Span(value, value)


def check_is_plan(value: Any) -> None:
    """``TypeError`` for what is no plan, such as the prompts themselves."""
    if not isinstance(value, Plan):
        raise TypeError(
            f"plan is a {type(value).__name__}: compile it first, hsd.compile(prompts, tau=1.0, model=model), or load "
            "one with hsd.Plan.load(path)"
        )


def _array(rows: NDArray[np.integer] | Sequence[int] | None) -> NDArray[np.int64] | None:
    """The argument ``rows`` as the core takes it."""
    if rows is None:
        return None
    values = np.asarray(rows)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"rows has to hold integers, 1 or 2 for each step, not {values.dtype}")
    return np.ascontiguousarray(values, dtype=np.int64)
