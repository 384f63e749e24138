"""Where experiments run: prompt sets, a model and a scorer. Images are made once, however many tables they are in."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..errors import Error
from ..evaluation.folder import read_folder
from ..evaluation.measure import Measurer
from ..evaluation.scorers import Scorer
from ..evaluation.stats import WinRate, win_rate
from ..generation.folder import PLAN
from ..generation.session import Progress, generate
from ..models import Adapter
from ..models.encode import encode
from ..names import Linkage, Noise, ScheduleName
from ..planning.build import plan_of
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..work.files import make_folder, write_atomically
from .samplers import sampler_named

STUDY = "study.json"


class Skipped(Error):
    """An experiment that this model or these prompts cannot have. Says why."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts under a name: a row of the tables."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """How the images of a set are made: what experiments change. The defaults are HSD's, at tau = 0."""

    tau: float | None = None
    budget: float | None = None
    steps: int | None = None
    """None: as many as the study has."""
    linkage: Linkage = "ward"
    schedule: ScheduleName | tuple[float, ...] = "linear"
    noise: Noise = "independent"
    shuffled: bool = False
    """Prompts change places in the tree at random: as much is shared, but not by those that are alike."""
    group: int = 0
    """Share in groups of so many neighbours of the tree, as the schedule says; 0: as the tree and tau say."""
    sampler: str | None = None
    """One of :data:`hsd.reproduction.samplers.SAMPLERS`; None: the model's own."""
    prior_tau: float = 0.0
    """How much of the prior's steps is shared, by a tree of texts; 0: none."""

    @property
    def name(self) -> str:
        """Of its folder: what differs from the defaults."""
        parts = ["standard"] if not self.tau and self.budget is None and not self.group else []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and value != 0:
                text = value if isinstance(value, str) else json.dumps(value)
                text = text if len(text) < 20 else hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
                parts.append(field.name if value is True else f"{field.name}-{text}")
        return "_".join(parts)


@dataclass(frozen=True)
class Made:
    """The images of one set, made one way."""

    prompt_set: PromptSet
    way: Way
    plan: Plan
    folder: Path

    @property
    def evaluations(self) -> float:
        """Of the denoiser, an image."""
        return self.plan.node_steps / len(self.prompt_set.prompts)


class Lab:
    """A study: everything that its experiments have in common.

    Parameters
    ----------
    model
        A loaded model.
    sets
        Prompt sets, by different names.
    out
        Folder for images and results; a study that was interrupted goes on there.
    measuring
        The scorer, and how much it takes at once.
    tau
        What is shared at where an experiment does not say otherwise; None: the model's own.
    steps, seed, batch_size
        ``num_inference_steps`` where an experiment does not say otherwise; prompt i of a set has the seed ``seed + i``.
    """

    def __init__(
        self,
        model: Adapter,
        sets: Sequence[PromptSet],
        out: Path,
        measuring: Measurer,
        *,
        tau: float | None = None,
        steps: int,
        seed: int,
        batch_size: int,
    ) -> None:
        self.model, self.sets, self.out, self.measuring = model, tuple(sets), make_folder(out), measuring
        self.tau = model.default_tau if tau is None else tau
        self.steps, self.seed, self.batch_size = steps, seed, batch_size
        self.progress: Progress | None = None
        self._encoded: dict[tuple[str, float], Conditioning] = {}
        self._plans: dict[tuple[str, Way], Plan] = {}
        self._made: dict[tuple[str, Way], Made] = {}
        self._scores: dict[Path, NDArray[np.float64]] = {}
        self._embeddings: dict[Path, NDArray[np.float64]] = {}
        self._same_study()

    @property
    def scorer(self) -> Scorer:
        """What scores the images."""
        return self.measuring.scorer

    def adapter(self, way: Way) -> Adapter:
        """The model as a way of making images wants it."""
        adapter = self.model
        if way.prior_tau:
            if not hasattr(adapter, "share_prior"):
                raise Skipped(f"{adapter.name} has no prior to share")
            adapter = dataclasses.replace(adapter, share_prior=True, prior_tau=way.prior_tau)  # type: ignore[call-arg]
        if way.sampler is not None:
            scheduler = sampler_named(way.sampler, adapter.scheduler())
            adapter = copy.copy(adapter)
            adapter.scheduler = lambda: scheduler  # type: ignore[method-assign]
        return adapter

    def vectors(self, prompt_set: PromptSet, way: Way | None = None) -> NDArray[np.float32]:
        """(n, D) what the set is clustered by, in the order of its prompts."""
        return np.asarray(self._conditioning(prompt_set, way or Way()).vectors, dtype=np.float32)

    def plan(self, prompt_set: PromptSet, way: Way) -> Plan:
        """Who shares what with whom. Encodes the set if it is not yet."""
        key = prompt_set.name, way
        if key not in self._plans:
            self._plans[key] = self._plan(prompt_set, way)
        return self._plans[key]

    def prior_saved(self, prompt_set: PromptSet, way: Way) -> float:
        """Share of the prior's evaluations that are saved. It runs when a set is encoded, and is not in the plan."""
        prior, n = self.adapter(way).prior(), len(prompt_set.prompts)
        if prior is None or not way.prior_tau:
            return 0.0
        prompts, seeds = list(prompt_set.prompts), self.seed + np.arange(n)
        texts = encode([prior], np.zeros(n, np.int64), prompts, seeds)
        return plan_of(texts.vectors, prompts, seeds, prior.tau, prior.sampler(prior.steps).n_steps).savings

    def made(self, prompt_set: PromptSet, way: Way) -> Made:
        """The images, made now where they are not there yet."""
        key = prompt_set.name, way
        if key not in self._made:
            self._made[key] = self._make(prompt_set, way)
        return self._made[key]

    def _folder(self, prompt_set: PromptSet, way: Way) -> Path:
        return self.out / "runs" / prompt_set.name / way.name

    def _make(self, prompt_set: PromptSet, way: Way) -> Made:
        plan, adapter = self.plan(prompt_set, way), self.adapter(way)
        plan.encoded = (adapter.encoding_key(), self._conditioning(prompt_set, way))
        folder = self._folder(prompt_set, way)
        generate(plan, adapter, folder, batch_size=self.batch_size, progress=self.progress or False)
        return Made(prompt_set, way, plan, folder)

    def missing(self, prompt_set: PromptSet, way: Way) -> tuple[int, int]:
        """Images that :meth:`made` would make, and the evaluations that takes; as if none, where some are there."""
        plan = self.plan(prompt_set, way)
        folder = self._folder(prompt_set, way)
        done = (folder / PLAN).is_file() and len(list(folder.glob("*.png"))) >= plan.n_prompts
        return (0, 0) if done else (plan.n_prompts, plan.node_steps)

    def scores(self, made: Made) -> NDArray[np.float64]:
        """(n,) in the order of the prompts; nan where the scorer had none to give."""
        if made.folder not in self._scores:
            self._scores[made.folder] = self.measuring.scores(read_folder(made.folder), made.folder)
        return self._scores[made.folder]

    def embeddings(self, made: Made) -> NDArray[np.float64] | None:
        """(m, D) of the images whose diversity is measured: the same prompts', whichever way they were made.

        None if the scorer does not embed images.
        """
        if not self.measuring.embeds:
            return None
        if made.folder not in self._embeddings:
            wanted = self._sample(made)
            self._embeddings[made.folder] = np.stack(self.measuring.embeddings(read_folder(made.folder), wanted))
        return self._embeddings[made.folder]

    def sampled(self, made: Made) -> int:
        """m, the images whose diversity is measured."""
        return len(self._sample(made))

    def _sample(self, made: Made) -> list[int]:
        return self.measuring.drawn(np.random.default_rng(self.seed), range(len(made.prompt_set.prompts)))

    def pooled(self, made: Iterable[Made]) -> tuple[NDArray[np.float64], list[str]]:
        """Scores of several sets together, and the prompts they belong to."""
        made = list(made)
        prompts = [f"{one.prompt_set.name}: {prompt}" for one in made for prompt in one.prompt_set.prompts]
        return np.concatenate([self.scores(one) for one in made]), prompts

    def compared(self, made: Iterable[Made], against: Iterable[Made]) -> WinRate:
        """Image by image, over all sets together; both sides have the same ones, in the same order."""
        ours, prompts = self.pooled(made)
        theirs, same = self.pooled(against)
        assert prompts == same, "two sides of a comparison have different prompts"
        return self.won(ours, theirs, prompts)

    def won(self, ours: NDArray[np.float64], theirs: NDArray[np.float64], prompts: Sequence[str]) -> WinRate:
        """Scores (n,) of two ways, pair by pair; ties as :func:`hsd.evaluate` takes them."""
        return win_rate(ours, theirs, prompts, tolerance=1e-6, seed=self.seed)

    def _conditioning(self, prompt_set: PromptSet, way: Way) -> Conditioning:
        key = prompt_set.name, way.prior_tau
        if key not in self._encoded:
            adapter = self.adapter(Way(prior_tau=way.prior_tau))
            plan = compile_plan(prompt_set.prompts, 0.0, model=adapter, steps=self.steps, seeds=self.seed)
            assert plan.encoded is not None
            self._encoded[key] = plan.encoded[1]
        return self._encoded[key]

    def _plan(self, prompt_set: PromptSet, way: Way) -> Plan:
        vectors = self.vectors(prompt_set, way)
        if way.shuffled:
            # Rows change places: the tree keeps its shape and its heights (but for ties), so as much is saved.
            vectors = np.random.default_rng(self.seed).permutation(vectors)
        tau: float | None = 0.0 if way.tau is None and way.budget is None else way.tau
        if way.group:
            vectors, tau = self._grouped(prompt_set, way.group), 0.5
        adapter = self.adapter(way)
        try:
            return compile_plan(
                prompt_set.prompts,
                tau,
                model=adapter,
                embeddings=vectors,
                budget=way.budget,
                steps=way.steps or self.steps,
                linkage=way.linkage,
                schedule=way.schedule,
                seeds=self.seed,
                noise=way.noise,
            )
        except ValueError as error:  # a few prompts and steps cannot save as much as is asked for
            raise Skipped(f"{prompt_set.name}: {error}") from None

    def _grouped(self, prompt_set: PromptSet, size: int) -> NDArray[np.float32]:
        """One-hot rows of the groups: distance 0 within one and 1 between two, so any tau inside (0, 1) keeps them."""
        order = self.plan(prompt_set, Way(tau=self.tau)).tree.leaf_order
        group = np.empty(len(order), dtype=np.int64)
        group[order] = np.arange(len(order)) // size
        return np.eye(int(group.max()) + 1, dtype=np.float32)[group]

    def _same_study(self) -> None:
        """A folder holds one study: images of another model or other prompts are never taken for this one's."""
        study = {
            "model": self.model.name,
            "settings": json.loads(json.dumps(self.model.settings, default=repr)),
            "steps": self.steps,
            "seed": self.seed,
            "sets": {
                s.name: hashlib.blake2b("\n".join(s.prompts).encode(), digest_size=8).hexdigest() for s in self.sets
            },
        }
        path = self.out / STUDY
        if path.exists():
            there = json.loads(path.read_text())
            differs = [name for name, value in study.items() if there.get(name) != value]
            if differs:
                raise Error(
                    f"{self.out} holds another study: its {differs[0]} is {there.get(differs[0])!r}, not "
                    f"{study[differs[0]]!r}; choose another folder"
                )
        write_atomically(path, (json.dumps(study, indent=1) + "\n").encode())
