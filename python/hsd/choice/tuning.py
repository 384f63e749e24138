"""``hsd.tune``: sample neighbourhoods, compare settings rung by rung, and choose."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..evaluation.by_name import make_scorer
from ..evaluation.measure import Measurer
from ..evaluation.scorers import Scorer, ScorerError, check_scorer
from ..evaluation.stats import mean_cosine
from ..models import load
from ..names import check_count, steps_of
from ..planning.prompts import check_prompts
from ..planning.span import Span
from ..tuning.speeds import recall
from ..work.counting import counted
from ..work.paths import user_path
from ..work.progress import ProgressOption
from .decision import Comparison, decide, paired
from .grid import Axes, Setting, grid
from .halving import Rung, rungs, survivors
from .neighbourhoods import draw, largest_size, neighbourhoods
from .report import Choice
from .trials import Trials

Say = Callable[[str], object]


@dataclass(frozen=True)
class Estimate:
    """What a choice will take. Images that exist already are not counted."""

    settings: int
    prompts: int
    """In the sample."""
    images: int
    rows: int
    """Of the denoiser."""
    seconds: Span | None
    """Of denoising; None if the speed of the model is not known yet."""

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", {self.seconds} of denoising"
        return (
            f"{self.settings} settings on {self.prompts} prompts: about {self.images:,} images to generate, "
            f"{self.rows:,} rows of the network{time}"
        )


def tune(
    model: Any,
    prompts: Iterable[str],
    *,
    scorer: str | Scorer = "demo",
    scorer_model: str | None = None,
    python: str | None = None,
    out: str | os.PathLike[str] = "tuning",
    steps: int | None = None,
    num_inference_steps: int | None = None,
    axes: Axes | None = None,
    sample: int = 64,
    images_per_prompt: int = 1,
    margin: float = 0.01,
    seeds: int | Sequence[int] = 0,
    seed: int = 0,
    batch_size: int = 16,
    prompt_settings: Sequence[dict[str, Any]] | None = None,
    progress: ProgressOption = False,
    say: Say = lambda text: None,
    **settings: Any,
) -> Choice:
    """Find the cheapest settings that are not worse than the standard ones on a set of prompts.

    Settings are compared on whole neighbourhoods of the set, prompt by prompt and seed by seed with the standard way:
    ``steps`` steps of the model's own scheduler, nothing shared. In each rung the number of images doubles and half of
    the settings go on. Writes ``hsd-settings.json``, ``frontier.json`` and ``frontier.png`` to ``out``, beside all
    images and scores: calling again continues after an interruption.

    Parameters
    ----------
    model
        A loaded model, or anything that :func:`hsd.load` takes; ``settings`` are passed to it.
    prompts
        The whole set that is to be generated.
    scorer, scorer_model, python
        As for :func:`hsd.evaluate`.
    out
        Folder for images, scores and results.
    steps, num_inference_steps
        Two names of one argument: the inference steps of the standard way, 40 by default.
    axes
        The values to combine; see :class:`hsd.choice.grid.Axes`.
    sample
        Largest number of prompts in the sample.
    images_per_prompt
        Number of different seeds for each prompt of the sample, in the last rung.
    margin
        By how much the score may be lower. A setting is chosen if the lower end of the one-sided 95 % interval of its
        difference to standard is above ``-margin``.
    seeds
        Seeds of the images, as for :func:`hsd.compile`.
    seed
        Seed of the sample.
    batch_size
        Largest number of lanes in a call of the denoiser, and images scored at once.
    prompt_settings
        Settings of single prompts, as ``settings`` of :func:`hsd.compile`.
    progress
        See :data:`hsd.ProgressOption`. Stages: ``compare`` in each rung, and ``score`` and ``embed`` of its images.
    say
        Called with a line of text when a new part of the work begins.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, before any expensive work.
    Error
        If ``out`` holds trials of another model, of another calibration or of other prompts.
    ScorerError
        If no image of the standard way has a score.
    """
    tuning = Tuning(
        model,
        prompts,
        scorer=scorer,
        scorer_model=scorer_model,
        python=python,
        out=out,
        steps=steps_of(steps, num_inference_steps),
        axes=axes,
        sample=sample,
        images_per_prompt=images_per_prompt,
        margin=margin,
        seeds=seeds,
        seed=seed,
        batch_size=batch_size,
        prompt_settings=prompt_settings,
        progress=progress,
        say=say,
        **settings,
    )
    return tuning.run()


class Tuning:
    """A choice that is prepared: prompts are encoded and planned, nothing is generated. Parameters of :func:`tune`."""

    def __init__(
        self,
        model: Any,
        prompts: Iterable[str],
        *,
        scorer: str | Scorer,
        scorer_model: str | None,
        python: str | None,
        out: str | os.PathLike[str],
        steps: int,
        axes: Axes | None,
        sample: int,
        images_per_prompt: int,
        margin: float,
        seeds: int | Sequence[int],
        seed: int,
        batch_size: int,
        prompt_settings: Sequence[dict[str, Any]] | None,
        progress: ProgressOption,
        say: Say,
        **settings: Any,
    ) -> None:
        for name, value in {"steps": steps, "sample": sample, "batch_size": batch_size}.items():
            check_count(name, value)
        check_count("images_per_prompt", images_per_prompt)
        if not (isinstance(margin, (int, float)) and math.isfinite(margin) and margin >= 0):
            raise ValueError(f"margin is {margin!r}: a finite number of at least 0, in units of the score")
        texts = check_prompts(prompts)
        if isinstance(scorer, str):
            scorer = make_scorer(scorer, model=scorer_model, python=python)
        measurer = Measurer(check_scorer(scorer), batch_size, max(sample, 2), seed, progress)
        adapter = load(model, **settings)
        self.margin, self.progress, self.say = float(margin), progress, say
        settings_of_grid, notes = grid(axes or Axes(), adapter, steps)
        self.trials = Trials(adapter, texts, seeds, prompt_settings, user_path(out), measurer, batch_size)
        say("encoding and planning")
        self.standard = settings_of_grid[0]
        self.settings: list[Setting] = []
        for setting in settings_of_grid:
            try:
                self.trials.plan(setting)
                self.settings.append(setting)
            except (ValueError, Error) as error:
                if setting == self.standard:
                    raise
                notes.append(f"left out: {setting}: {error}")
        self.notes = tuple(notes)
        sharing = [setting for setting in self.settings if setting.budget]
        tree = self.trials.plan((sharing or self.settings)[0]).tree
        self.drawn = draw(neighbourhoods(tree, largest_size(min(sample, len(texts)))), sample, seed)
        self.rungs = rungs(len(self.drawn), images_per_prompt)

    def members(self, rung: Rung) -> NDArray[np.int64]:
        """The prompts of a rung, ascending."""
        return np.sort(np.concatenate(self.drawn[: rung.neighbourhoods]))

    def estimate(self) -> Estimate:
        """What :meth:`run` will take. Which settings go on is not known, so later rungs count the mean setting."""
        images = rows = 0.0
        left = len(self.settings)
        for number, rung in enumerate(self.rungs):
            before = Rung(0, 0) if number == 0 else self.rungs[number - 1]
            share = left / len(self.settings)
            for replicate in range(rung.seeds):
                members = self._new(rung, before, replicate)
                if not len(members):
                    continue
                found = [self.trials.rows(setting, members, replicate) for setting in self.settings]
                images += share * len(members) * sum(1 for one in found if one)
                rows += share * sum(found)
            left = -(-left // 2)
        adapter = self.trials.model
        known = recall(adapter)
        speed = None if known is None else known.at(self.trials.batch_size)
        seconds = None if speed is None else speed * (rows / (2 if adapter.guided else 1))
        members = self.members(self.rungs[-1])
        return Estimate(len(self.settings), len(members), round(images), round(rows), seconds)

    def _new(self, rung: Rung, before: Rung, replicate: int) -> NDArray[np.int64]:
        """Prompts of a rung that the one before did not have in this replicate."""
        members = self.members(rung)
        return members if replicate >= before.seeds else np.setdiff1d(members, self.members(before))

    def run(self) -> Choice:
        """Generate, score, compare and choose; writes the files."""
        try:
            return self._run()
        finally:
            getattr(self.trials.measurer.scorer, "close", lambda: None)()

    def _run(self) -> Choice:
        for note in self.notes:
            self.say(note)
        self.say(str(self.estimate()))
        left = [setting for setting in self.settings if setting != self.standard]
        reached: dict[Setting, Comparison] = {}
        standard = None
        for number, rung in enumerate(self.rungs):
            prompts = len(self.members(rung))
            self.say(
                f"rung {number + 1} of {len(self.rungs)}: {len(left)} settings and the standard one, {prompts} prompts"
                + (f" with {rung.seeds} seeds each" if rung.seeds > 1 else "")
            )
            with counted(len(left) + 1, "settings", "compare", self.progress) as advance:
                standard = self._compared(self.standard, rung, number)
                if not standard.difference.pairs:
                    raise ScorerError(
                        f"{self.trials.measurer.scorer.name} gave no score to any of the {prompts * rung.seeds} images "
                        "of the standard way: there is nothing to compare with"
                    )
                advance()
                for setting in left:
                    advance(0, setting.name)
                    reached[setting] = self._compared(setting, rung, number)
                    advance()
            if number + 1 < len(self.rungs):
                found = [reached[setting] for setting in left]
                kept = survivors(
                    [one.cost for one in found],
                    [one.difference.mean for one in found],
                    [one.hopeful(self.margin) for one in found],
                )
                left = [left[i] for i in kept]
        assert standard is not None, "there is at least one rung"
        last = len(self.rungs) - 1
        compared = sorted(reached.values(), key=lambda one: one.cost)
        choice = Choice(
            out=self.trials.out,
            model=self.trials.model.name,
            scorer=self.trials.measurer.scorer.name,
            margin=self.margin,
            decision=decide(standard, compared, self.margin, last),
            compared=(standard, *compared),
            sample=len(self.members(self.rungs[-1])),
            of=len(self.trials.prompts),
            neighbourhoods=len(self.drawn),
            last_rung=last,
            notes=self.notes,
        )
        choice.save()
        return choice

    def _compared(self, setting: Setting, rung: Rung, number: int) -> Comparison:
        """One setting against the standard way, on the same prompts and seeds."""
        trials, members = self.trials, self.members(rung)
        ours, theirs = (
            np.concatenate([trials.scores(one, replicate, members) for replicate in range(rung.seeds)])
            for one in (setting, self.standard)
        )
        known = ~(np.isnan(ours) | np.isnan(theirs))
        cosines: list[float | None] = [None, None]
        if trials.measurer.embeds and len(members) > 1:
            cosines = [mean_cosine(trials.embeddings(one, 0, members)) for one in (setting, self.standard)]
        standard_cost = trials.cost(self.standard)
        cost = trials.cost(setting)
        return Comparison(
            setting=setting,
            cost=cost,
            saved=1.0 - cost / standard_cost,
            tau=trials.plan(setting).tau,
            rung=number,
            score=float(ours[known].mean()) if known.any() else math.nan,
            standard_score=float(theirs[known].mean()) if known.any() else math.nan,
            difference=paired(ours, theirs, *self.groupings(setting, rung)),
            cosine=cosines[0],
            standard_cosine=cosines[1],
        )

    def groupings(self, setting: Setting, rung: Rung) -> list[NDArray[np.int64]]:
        """Labels (pairs,): pairs of a rung are independent if they differ in all groupings.

        Images that share a trunk depend on each other. So do those of a neighbourhood, with all seeds, because whole
        neighbourhoods were drawn; but not if the sample is the whole set: then nothing was drawn but seeds.
        """
        members, n = self.members(rung), len(self.trials.prompts)
        roots = [self.trials.roots(setting, r)[members] for r in range(rung.seeds)]
        first = np.cumsum([0, *(int(labels.max()) + 1 for labels in roots)])
        root = np.concatenate([labels + begin for labels, begin in zip(roots, first, strict=False)])
        if len(members) == n:
            return [root]
        neighbourhood = np.zeros(n, dtype=np.int64)
        for number, some in enumerate(self.drawn):
            neighbourhood[some] = number
        return [np.tile(neighbourhood[members], rung.seeds), root]
