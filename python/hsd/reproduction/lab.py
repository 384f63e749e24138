"""Where experiments run: prompt sets, a model and a scorer. Images that several tables use are generated once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..errors import Error
from ..evaluation.clusters import Clusters, clusters_of
from ..evaluation.folder import read_folder
from ..evaluation.measure import Measurer
from ..evaluation.scorers import Scorer
from ..evaluation.stats import Interval, WinRate, mean_of_known, win_rate
from ..generation.differences import claim_model, early_identity
from ..generation.events import Watcher
from ..generation.failures import require_all
from ..generation.run import generate
from ..models import Adapter
from ..models.encode import encode, encoded, prior_savings, remember
from ..models.identity import image_identity
from ..names import Linkage, Metric, Noise, ScheduleName
from ..planning.compile import compile as compile_plan
from ..planning.plan import PLAN_FILE, Plan
from ..probing.direct import check_number, direct_vectors
from ..work.files import STUDY, claim, make_folder
from .averages import AverageName, averaged, token_vectors
from .samplers import sampler_named
from .trees import nearly_equal

SEED_STEP = 1000
"""Distance of the seed ranges of a study with several seeds a prompt."""


class Skipped(Error):
    """An experiment that is not possible with this model or these prompts. Says why."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts with a name, which is that of their row in the tables."""

    name: str
    prompts: tuple[str, ...]
    repeat: int = 0
    """Which of the study's seed ranges its images have: prompt i has the seed ``seed + 1000 repeat + i``."""

    @property
    def folder(self) -> str:
        """The name of its folder below ``runs``. The first range has none of its own, as studies with one seed."""
        return f"{self.name}_seeds-{SEED_STEP * self.repeat}" if self.repeat else self.name


@dataclass(frozen=True)
class Variant:
    """How the images of a set are generated: the settings that experiments vary. By default the paper's, at tau = 0.

    The field names are part of folder names, see :attr:`name`: after renaming one, existing studies would start again.
    """

    tau: float | None = None
    budget: float | None = None
    steps: int | None = None
    """``num_inference_steps``; None: the study's."""
    linkage: Linkage = "ward"
    schedule: ScheduleName | tuple[float, ...] = "linear"
    noise: Noise = "independent"
    shuffled: bool = False
    """Exchange the prompts in the tree at random: equally many steps are shared, but not by similar prompts."""
    group: int = 0
    """Share in groups of this number of neighbours in the tree, by ``schedule`` only; 0: in the tree's clusters."""
    sampler: str | None = None
    """One of :data:`hsd.reproduction.samplers.SAMPLERS`; None: the model's own."""
    prior_tau: float = 0.0
    """The tau of the prior, whose steps are shared by a tree of text embeddings; 0: nothing is shared."""
    catch_up: float = 0.0
    """gamma of catch-up conditioning; 0: the paper, where a prompt is conditioned on its cluster's mean alone."""
    metric: Metric = "cosine"
    """``cosine`` (the paper), ``calibrated`` or ``direct``: how the dissimilarity of prompts is measured."""
    average: AverageName = "mean"
    """What a cluster is conditioned on; the paper's is the mean."""
    vectors: Literal["own", "tokens"] = "own"
    """What prompts are clustered by: the vector of the model's adapter, or the mean of the prompt's tokens."""

    @property
    def name(self) -> str:
        """The name of its folder below ``runs``: the fields that differ from the defaults."""
        parts = ["standard"] if not self.tau and self.budget is None and not self.group else []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and value != 0:
                text = value if isinstance(value, str) else json.dumps(value)
                text = text if len(text) < 20 else hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
                parts.append(field.name if value is True else f"{field.name}-{text}")
        return "_".join(parts)


@dataclass(frozen=True)
class GeneratedSet:
    """The images of one set, generated with one variant."""

    prompt_set: PromptSet
    variant: Variant
    plan: Plan
    folder: Path

    @property
    def evaluations(self) -> float:
        """Evaluations of the denoiser per image."""
        return self.plan.node_steps / len(self.prompt_set.prompts)


class Lab:
    """A study: what all of its experiments use.

    Parameters
    ----------
    model
        A loaded model.
    sets
        Prompt sets; their names have to differ.
    seeds
        Number of seed ranges: every set is generated once for each, and the scores are pooled.
    out
        Folder for images and results; an interrupted study continues there.
    measurer
        The scorer and its options.
    tau
        The threshold at the first step, unless an experiment sets another; None: the model's default.
    steps
        ``num_inference_steps``, unless an experiment sets another number.
    seed
        Prompt i of a set has the seed ``seed + i``; in the next seed range ``seed + 1000 + i``, and so on.
    batch_size
        Largest number of lanes in a call of the denoiser.
    evaluations
        The evaluations an image at which ``frontier`` compares; None: all that its table has.

    Attributes
    ----------
    sets
        Every set with every seed range; ``first_sets`` are those of the first range, for what shows single images.
    """

    def __init__(
        self,
        model: Adapter,
        sets: Sequence[PromptSet],
        out: Path,
        measurer: Measurer,
        *,
        tau: float | None = None,
        steps: int,
        seed: int,
        batch_size: int,
        seeds: int = 1,
        evaluations: Sequence[int] | None = None,
    ) -> None:
        self.model, self.out, self.measurer = model, make_folder(out), measurer
        self.first_sets = tuple(sets)
        self.sets = tuple(dataclasses.replace(s, repeat=r) for r in range(seeds) for s in sets)
        self.evaluations = evaluations
        self.tau = model.default_tau if tau is None else tau
        self.steps, self.seed, self.batch_size = steps, seed, batch_size
        self.watcher = Watcher()
        """Is told of the runs."""
        self._encoded: dict[tuple[PromptSet, float], Conditioning] = {}
        self._predicted: dict[tuple[PromptSet, float, str | None], NDArray[np.float32]] = {}
        self._plans: dict[tuple[PromptSet, Variant], Plan] = {}
        self._generated: dict[tuple[PromptSet, Variant], GeneratedSet] = {}
        self._scores: dict[Path, NDArray[np.float64]] = {}
        self._embeddings: dict[Path, NDArray[np.float64]] = {}
        self._check_study()

    @property
    def scorer(self) -> Scorer:
        """The scorer of the images."""
        return self.measurer.scorer

    def adapter(self, variant: Variant) -> Adapter:
        """The model with the variant's sampler and prior."""
        adapter = self.model
        if variant.prior_tau:
            if not hasattr(adapter, "share_prior"):
                raise Skipped(f"{adapter.name} has no prior to share")
            adapter = dataclasses.replace(adapter, share_prior=True, prior_tau=variant.prior_tau)  # type: ignore[call-arg]
        if variant.sampler is not None:
            adapter = adapter.with_scheduler(sampler_named(variant.sampler, adapter.scheduler()))
        return adapter

    def measures(self, metric: Metric) -> bool:
        """Whether the model allows this metric: ``calibrated`` needs a calibration, ``direct`` small sets."""
        try:
            for prompt_set in self.sets:
                self._clustered(prompt_set, Variant(metric=metric))
        except Skipped:
            return False
        return True

    def seed_of(self, prompt_set: PromptSet) -> int:
        """The seed of the first prompt of a set."""
        return self.seed + SEED_STEP * prompt_set.repeat

    def vectors(self, prompt_set: PromptSet, variant: Variant | None = None) -> NDArray[np.float32]:
        """The (n, D) embeddings that the set is clustered by, in the order of its prompts."""
        return np.asarray(self._conditioning(prompt_set, variant or Variant()).vectors, dtype=np.float32)

    def plan(self, prompt_set: PromptSet, variant: Variant) -> Plan:
        """The plan of a set. The set is encoded at the first call."""
        key = prompt_set, variant
        if key not in self._plans:
            self._plans[key] = self._plan(prompt_set, variant)
        return self._plans[key]

    def prior_saved(self, prompt_set: PromptSet, variant: Variant) -> float:
        """Share of the prior's evaluations that is saved. The prior runs during encoding and is not in the plan."""
        prior = self.adapter(variant).prior()
        if prior is None or not variant.prior_tau:
            return 0.0
        seeds = self.seed_of(prompt_set) + np.arange(len(prompt_set.prompts))
        return prior_savings(prior, prompt_set.prompts, seeds)

    def generate(self, prompt_set: PromptSet, variant: Variant) -> GeneratedSet:
        """Generate the images of a set that are missing, and return all of them."""
        key = prompt_set, variant
        if key not in self._generated:
            self._generated[key] = self._generate(prompt_set, variant)
        return self._generated[key]

    def has_tokens(self) -> bool:
        """Whether prompts are conditioned on sequences of tokens, all of one length."""
        return token_vectors(self._conditioning(self.sets[0], Variant())) is not None

    def _averaged(self, prompt_set: PromptSet, variant: Variant) -> Conditioning:
        """The set's conditioning, with the variant's average."""
        conditioning = self._conditioning(prompt_set, variant)
        if variant.average != "empty":
            return averaged(conditioning, variant.average, None)
        nobody, seeds = np.zeros(1, dtype=np.int64), np.array([self.seed])
        return averaged(conditioning, variant.average, encode([self.adapter(variant)], nobody, [""], seeds))

    def _folder(self, prompt_set: PromptSet, variant: Variant) -> Path:
        return self.out / "runs" / prompt_set.folder / variant.name

    def _generate(self, prompt_set: PromptSet, variant: Variant) -> GeneratedSet:
        plan, adapter = self.plan(prompt_set, variant), self.adapter(variant)
        remember(plan, adapter.encoding_key(), self._averaged(prompt_set, variant))
        folder = self._folder(prompt_set, variant)
        require_all(
            generate(plan, adapter, folder, batch_size=self.batch_size, progress=self.watcher, failed=lambda _: None)
        )
        return GeneratedSet(prompt_set, variant, plan, folder)

    def missing(self, prompt_set: PromptSet, variant: Variant) -> tuple[int, int]:
        """Images that :meth:`generate` has to generate, and their evaluations; an incomplete folder counts as empty."""
        plan = self.plan(prompt_set, variant)
        folder = self._folder(prompt_set, variant)
        done = (folder / PLAN_FILE).is_file() and len(list(folder.glob("*.png"))) >= plan.n_prompts
        return (0, 0) if done else (plan.n_prompts, plan.node_steps)

    def scores(self, generated: GeneratedSet) -> NDArray[np.float64]:
        """(n,) scores in the order of the prompts; nan for images that the scorer gave no score."""
        if generated.folder not in self._scores:
            self._scores[generated.folder] = self.measurer.scores(read_folder(generated.folder), generated.folder)
        return self._scores[generated.folder]

    def embeddings(self, generated: GeneratedSet) -> NDArray[np.float64] | None:
        """(m, D) embeddings of the images whose diversity is measured. They are of the same prompts for every variant.

        None if the scorer does not embed images.
        """
        if not self.measurer.embeds:
            return None
        if generated.folder not in self._embeddings:
            folder, sample = read_folder(generated.folder), self.sample(generated)
            self._embeddings[generated.folder] = np.stack(self.measurer.embeddings(folder, sample))
        return self._embeddings[generated.folder]

    def sample(self, generated: GeneratedSet) -> list[int]:
        """Positions of the m images whose diversity is measured."""
        return self.measurer.drawn(np.random.default_rng(self.seed), range(len(generated.prompt_set.prompts)))

    def pooled(self, generated: Iterable[GeneratedSet]) -> tuple[NDArray[np.float64], list[str]]:
        """The scores of several sets in one array, and the prompts that they belong to."""
        generated = list(generated)
        return np.concatenate([self.scores(one) for one in generated]), _prompts(generated)

    def clusters(self, generated: Sequence[GeneratedSet], against: Sequence[GeneratedSet] | None = None) -> Clusters:
        """Which of the images are not independent: those of one prompt, in all seed ranges, and those of one trunk.

        For differences, trunks of ``against`` too, whose sets are the same.
        """
        return clusters_of(_prompts(generated), _roots(generated), None if against is None else _roots(against))

    def mean(
        self,
        generated: Sequence[GeneratedSet],
        against: Sequence[GeneratedSet] | None = None,
        *,
        within_sets: bool = False,
    ) -> tuple[float | None, Interval | None, Clusters]:
        """The mean score of several sets together, its interval, and what was resampled for it.

        With ``against``, whose sets are the same, of the differences image by image. ``within_sets``: the interval
        shows how the mean varies with other prompts in these same sets, and not with other sets. Then scores are taken
        relative to the mean of their set, as in stratified samples; without it, sets that differ widen the interval.
        A set of one cluster does not show how much it varies, so with one there is no such interval.
        """
        scores, _ = self.pooled(generated)
        if against is not None:
            scores = scores - self.pooled(against)[0]
        clusters = self.clusters(generated, against)
        known = ~np.isnan(scores)
        varies = True
        if within_sets and known.any():
            mean = scores[known].mean()
            names = np.array([one.prompt_set.name for one in generated for _ in one.prompt_set.prompts])
            for name in set(names[known].tolist()):
                members = known & (names == name)
                scores[names == name] += mean - scores[members].mean()
                varies = varies and clusters.take(members).count > 1
        pooled, interval = mean_of_known(scores, clusters, seed=self.seed)
        return pooled, interval if varies else None, clusters.take(known)

    def win_rate(self, generated: Iterable[GeneratedSet], against: Iterable[GeneratedSet]) -> WinRate:
        """Compare image by image, over all sets together; both sides have the same sets in the same order."""
        generated, against = list(generated), list(against)
        ours, prompts = self.pooled(generated)
        theirs, same = self.pooled(against)
        assert prompts == same, "two sides of a comparison have different prompts"
        return self.win_rate_of_scores(ours, theirs, self.clusters(generated, against))

    def win_rate_of_scores(self, ours: NDArray[np.float64], theirs: NDArray[np.float64], clusters: Clusters) -> WinRate:
        """Compare the scores (n,) of two variants pair by pair; ties are defined as in :func:`hsd.evaluate`."""
        return win_rate(ours, theirs, clusters, tolerance=1e-6, seed=self.seed)

    def _conditioning(self, prompt_set: PromptSet, variant: Variant) -> Conditioning:
        key = prompt_set, variant.prior_tau
        if key not in self._encoded:
            adapter = self.adapter(Variant(prior_tau=variant.prior_tau))
            plan = compile_plan(
                prompt_set.prompts,
                0.0,
                model=adapter,
                steps=self.steps,
                seeds=self.seed_of(prompt_set),
                progress=self.measurer.progress,
            )
            _, self._encoded[key] = encoded(plan)
        return self._encoded[key]

    def _plan(self, prompt_set: PromptSet, variant: Variant) -> Plan:
        vectors, metric = self._clustered(prompt_set, variant)
        if variant.shuffled:
            # Permuted rows: the tree keeps its shape and its heights (except for ties), so the savings are equal.
            vectors = np.random.default_rng(self.seed).permutation(vectors)
        tau: float | None = 0.0 if variant.tau is None and variant.budget is None else variant.tau
        if variant.group:
            vectors, metric, tau = self._grouped(prompt_set, variant.group), "cosine", 0.5
        adapter = self.adapter(variant)
        try:
            plan = compile_plan(
                prompt_set.prompts,
                tau,
                model=adapter,
                embeddings=vectors,
                budget=variant.budget,
                steps=variant.steps or self.steps,
                linkage=variant.linkage,
                schedule=variant.schedule,
                seeds=self.seed_of(prompt_set),
                noise=variant.noise,
                metric=metric,
                catch_up=variant.catch_up,
            )
        except ValueError as error:  # with few prompts or steps, the budget may be out of reach
            raise Skipped(f"{prompt_set.name}: {error}") from None
        if not variant.catch_up:
            # In a plan 0 is the same as none at all. Without it, folders of studies from before there was catch-up
            # are continued: their plans have the same fingerprint.
            del plan.request["catch_up"]
        return plan

    def _clustered(self, prompt_set: PromptSet, variant: Variant) -> tuple[NDArray[np.float32], Metric]:
        """The (n, D) vectors that a variant is clustered by, and their metric.

        ``hsd.compile`` makes the same tree of the model alone, but encodes and probes the prompts for every plan.
        """
        vectors = self.vectors(prompt_set, variant)
        if variant.vectors == "tokens":
            found = token_vectors(self._conditioning(prompt_set, variant))
            if found is None:
                raise Skipped(f"{self.model.name} is not conditioned on tokens")
            return found, variant.metric
        if variant.metric == "calibrated":
            if self.model.calibration is None:
                raise Skipped(f"{self.model.name} is not calibrated: run `hsd calibrate`")
            return self.model.calibration.transform(vectors), "euclidean"
        if variant.metric == "direct":
            return self._probed(prompt_set, variant), "euclidean"
        return vectors, variant.metric

    def _probed(self, prompt_set: PromptSet, variant: Variant) -> NDArray[np.float32]:
        """The (n, n) vectors of ``direct``: the model's own predictions for each prompt."""
        key = prompt_set, variant.prior_tau, variant.sampler
        if key not in self._predicted:
            try:
                check_number(len(prompt_set.prompts))
            except ValueError as error:
                raise Skipped(f"{prompt_set.name}: {error}") from None
            variant = Variant(prior_tau=variant.prior_tau, sampler=variant.sampler)
            members = np.zeros(len(prompt_set.prompts), dtype=np.int64)
            conditioning = self._conditioning(prompt_set, variant)
            self._predicted[key] = direct_vectors([self.adapter(variant)], members, conditioning)
        return self._predicted[key]

    def _grouped(self, prompt_set: PromptSet, size: int) -> NDArray[np.float32]:
        """Rows of groups of ``size``: distance nearly 0 within a group, 1 between groups. So tau 0.5 gives them."""
        order = self.plan(prompt_set, Variant(tau=self.tau)).tree.leaf_order
        group = np.empty(len(order), dtype=np.int64)
        group[order] = np.arange(len(order)) // size
        return nearly_equal(group)

    def _check_study(self) -> None:
        """Raise if the folder holds another study: images of another model or of other prompts must not be used."""
        study = {
            **early_identity(self.out, self.model),
            "steps": self.steps,
            "seed": self.seed,
            # Not the number of seed ranges: a study with more of them continues one with fewer.
            "sets": {
                s.name: hashlib.blake2b("\n".join(s.prompts).encode(), digest_size=8).hexdigest()
                for s in self.first_sets
            },
        }
        if (other := claim(self.out / STUDY, study)) is not None:
            name, stored = other
            raise Error(
                f"{self.out} holds another study: its {name} is {stored!r}, not {study[name]!r}; choose another folder"
            )
        claim_model(self.out, image_identity(self.model))


def _prompts(generated: Sequence[GeneratedSet]) -> list[str]:
    """The prompt of each image, with the name of its set."""
    return [f"{one.prompt_set.name}: {prompt}" for one in generated for prompt in one.prompt_set.prompts]


def _roots(generated: Sequence[GeneratedSet]) -> list[str]:
    """The root cluster of each image: its set with its seed range, and the segment that is active at step 0."""
    return [f"{one.prompt_set.folder}: {segment}" for one in generated for segment in one.plan.active(0).tolist()]
