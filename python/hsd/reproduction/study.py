"""``hsd.reproduce``: count images, generate what is missing, measure, and write tables and figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._core import __version__
from ..demo import MODELS as DEMO_MODELS
from ..errors import PromptError
from ..evaluation.by_name import make_scorer
from ..evaluation.measure import Measurer
from ..evaluation.scorers import Scorer, check_scorer
from ..generation.events import Event, Watcher
from ..models import load
from ..names import ExperimentName, check_count, check_name, steps_of
from ..planning.schedule import check_tau
from ..planning.summary import duration
from ..prompts.files import kind_of, read_prompts
from ..tuning.speeds import recall
from ..work.counting import counted
from ..work.files import make_folder, write_atomically
from ..work.paths import user_path
from ..work.progress import ProgressOption
from . import plots
from .catalogue import EXPERIMENTS, NAMES
from .experiment import Experiment
from .frontier import check_evaluations
from .lab import SEED_STEP, Lab, PromptSet, Skipped, Variant
from .results import MARKED, Figure, Result, Table

PROMPTS = Path(__file__).parent / "prompts"
"""The folder of the demo model's four prompt sets."""

RESULTS = "results.md"


@dataclass(frozen=True)
class Study:
    """The results of :func:`reproduce`."""

    out: Path
    results: dict[str, list[Result]]
    """Tables and figures by experiment."""
    skipped: dict[str, str]
    """The reason, by experiment that could not be run."""
    seconds: float

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"<hsd.reproduction.Study: {len(self.results)} experiments{skipped}, in {self.out}>"

    @property
    def report(self) -> Path:
        """The Markdown file with all tables and figures."""
        return self.out / RESULTS


def reproduce(
    model: Any = "demo",
    prompts: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "reproduction",
    *,
    only: Iterable[str] | None = None,
    scorer: str | Scorer | None = None,
    scorer_model: str | None = None,
    python: str | None = None,
    limit: int | None = None,
    tau: float | None = None,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    seeds: int = 1,
    evaluations: Iterable[int] | None = None,
    samples: int = 100,
    progress: ProgressOption = False,
    say: Callable[[str], object] = lambda text: None,
    **settings: Any,
) -> Study:
    """Run the paper's experiments, and others on questions it leaves open, on a model and sets of prompts.

    Writes ``results.md``, ``tables/*.csv``, ``tables/*.md`` and ``figures/*.png`` to ``out``, and all images to
    ``out/runs``. Images and scores are stored: calling again continues after an interruption.

    Parameters
    ----------
    model
        A loaded model, or anything that :func:`hsd.load` takes; ``settings`` are passed to it.
    prompts
        A folder of prompt files (``.txt``, one prompt per line, or ``.jsonl``); each is a set, named after its file.
        Default: the demo model's four sets.
    only
        Names of experiments; default: all.
    scorer, scorer_model, python
        As for :func:`hsd.evaluate`. Default: ``demo`` for the demo model, ``clipscore`` for others.
    limit
        Use only this number of prompts of each set, the first ones. Default: all.
    tau
        The threshold for Table 1, diversity and families, by cosine distances. Default: the model's own. Other
        experiments share at equal compute.
    steps, num_inference_steps
        Two names of one argument: the inference steps of standard diffusion, 40 by default.
    seed
        Prompt i of a set gets the seed ``seed + i`` in every variant.
    seeds
        Number of seed ranges. Every set is generated once for each, with a plan of its own; prompt i of range r has
        the seed ``seed + 1000 r + i``. The scores are pooled. A study with more ranges continues one with fewer.
        Experiments that show single images or families use the first range.
    evaluations
        The evaluations an image at which ``frontier`` compares. Default: all that it has settings for.
    batch_size
        Largest number of lanes in a call of the denoiser, and images scored at once.
    samples
        Largest number of images of a set whose diversity is measured.
    progress
        See :data:`hsd.ProgressOption`. Stages: ``encode`` and ``cluster`` of each set, ``denoise``, then
        ``score`` and ``embed`` of each set.
    say
        Called with a line of text when a new part of the work begins.

    Raises
    ------
    Error
        If matplotlib is missing, the folder has no prompts, or ``out`` holds another study. Raised before expensive
        work.
    """
    started = time.perf_counter()
    chosen = _chosen(only)
    plots.figure(1, 1)  # fails here if matplotlib is missing
    check_count("batch_size", batch_size)
    check_count("seeds", seeds)
    evaluations = None if evaluations is None else check_evaluations(evaluations)
    tau = None if tau is None else check_tau(tau)
    sets = read_sets(PROMPTS if prompts is None else prompts, None if limit is None else check_count("limit", limit))
    adapter = load(model, **settings)
    if scorer is None:
        scorer = "demo" if adapter.name in DEMO_MODELS else "clipscore"
    if isinstance(scorer, str):
        scorer = make_scorer(scorer, model=scorer_model, python=python)
    if scorer.name == "demo":
        _say_unread(sets, say)
    measurer = Measurer(check_scorer(scorer), batch_size, samples, seed, progress)
    lab = Lab(
        adapter,
        sets,
        user_path(out),
        measurer,
        tau=tau,
        steps=steps_of(steps, num_inference_steps),
        seed=seed,
        batch_size=batch_size,
        seeds=seeds,
        evaluations=evaluations,
    )
    try:
        skipped = _generate_all(lab, chosen, progress, say)
        results: dict[str, list[Result]] = {}
        sections: list[str] = []
        for experiment in chosen:
            if experiment.name not in skipped:
                say(experiment.title)
                try:
                    results[experiment.name] = experiment.report(lab)
                except Skipped as error:
                    skipped[experiment.name] = str(error)
            found, why = results.get(experiment.name, []), skipped.get(experiment.name)
            sections.append(_section(lab.out, experiment, found, why))
            _write(lab, sections, time.perf_counter() - started)
    finally:
        getattr(scorer, "close", lambda: None)()
    seconds = time.perf_counter() - started
    _write(lab, sections, seconds)
    return Study(lab.out, results, skipped, seconds)


def read_sets(folder: str | os.PathLike[str], limit: int | None = None) -> list[PromptSet]:
    """Read the prompt files of a folder, sorted by name.

    Raises
    ------
    PromptError
        If there is no such folder, it has no file of prompts, or a prompt sets settings or a seed.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise PromptError(f"{folder} is not a folder: name one with .txt or .jsonl files, each a set of prompts")
    files = sorted(path for path in folder.iterdir() if _holds_prompts(path))
    if not files:
        raise PromptError(f"{folder} has no file of prompts (.txt, .jsonl...): each would be a set of prompts")
    sets: dict[str, PromptSet] = {}
    for path in files:
        if path.stem in sets:
            raise PromptError(f"{path}: there is another set named {path.stem!r}; rename one of the files")
        read = read_prompts(path)
        for i, (own, given) in enumerate(zip(read.settings, read.seeds, strict=True)):
            if own or given is not None:
                what = "settings" if own else "a seed"
                raise PromptError(f"{path}: prompt {i} has {what}: in experiments, prompts have no settings or seeds")
        sets[path.stem] = PromptSet(path.stem, tuple(read.prompts[:limit]))
    return list(sets.values())


def _say_unread(sets: Sequence[PromptSet], say: Callable[[str], object]) -> None:
    """Say how many prompts the demo's scorer gives no score, before any image is made."""
    from ..demo.evaluator import named_attributes  # here, because few studies need it

    prompts = [prompt for one in sets for prompt in one.prompts]
    unread = sum(not named_attributes(prompt) for prompt in prompts)
    if unread:
        say(
            f"the scorer demo gives no score for {unread:,} of {len(prompts):,} prompts, which are not in the demo's "
            'language: their scores will be "–"; another one is --scorer clipscore'
        )


def _holds_prompts(path: Path) -> bool:
    """Whether a file is a set of prompts by its name: text, JSON or a table, in any case."""
    try:
        return kind_of(path.name) != "text" or path.suffix.lower() == ".txt"
    except PromptError:
        return False


def _chosen(only: Iterable[str] | None) -> list[Experiment]:
    names = list(NAMES) if only is None else [check_name("experiment", name, ExperimentName) for name in only]
    return [experiment for experiment in EXPERIMENTS if experiment.name in names]


class _Counting(Watcher):
    """Counts the evaluations of the denoiser."""

    watches = True

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def event(self, event: Event) -> None:
        """What a call has evaluated."""
        self._advance(event.node_steps)


def _generate_all(
    lab: Lab, chosen: Sequence[Experiment], progress: ProgressOption, say: Callable[[str], object]
) -> dict[str, str]:
    """Report how many images the experiments need, and generate them; returns why experiments are skipped."""
    skipped: dict[str, str] = {}
    needed: dict[tuple[PromptSet, Variant], None] = {}  # a dict and not a set: it keeps the order
    say("encoding and planning")
    for experiment in chosen:
        try:
            for_experiment = experiment.needs(lab)
            for prompt_set, variant in for_experiment:
                lab.plan(prompt_set, variant)  # so a plan that fails does so before the first image
        except Skipped as error:
            skipped[experiment.name] = str(error)
        else:
            needed.update(dict.fromkeys(for_experiment))
    costs = [lab.missing(prompt_set, variant) for prompt_set, variant in needed]
    images, node_steps = sum(n for n, _ in costs), sum(c for _, c in costs)
    known = recall(lab.model)
    speed = None if known is None else known.at(lab.batch_size)
    estimate = "" if speed is None or not images else f", {speed * node_steps} of denoising"
    say(f"{images:,} images to generate, {node_steps:,} evaluations of the denoiser{estimate}")
    with counted(node_steps, "node-steps", "denoise", progress) as advance:
        lab.watcher = _Counting(advance)
        for prompt_set, variant in needed:
            advance(0, f"{prompt_set.name}, {variant.name}")
            lab.generate(prompt_set, variant)
        lab.watcher = Watcher()
    return skipped


def _section(out: Path, experiment: Experiment, results: Sequence[Result], skipped: str | None) -> str:
    """The Markdown of one experiment. Also writes the files of its tables and figures."""
    why = [] if skipped is None else [f"Skipped: {skipped}."]
    written = [_written(out, result) for result in results]
    return "\n\n".join([f"## {experiment.title}", experiment.question, *why, *written])


def _write(lab: Lab, sections: Sequence[str], seconds: float) -> None:
    """Write the report with the sections so far."""
    text = "\n\n".join(["# Results", _setup(lab, seconds), *sections])
    write_atomically(lab.out / RESULTS, (text + "\n").encode())


def _written(out: Path, result: Result) -> str:
    for folder in ("tables", "figures"):
        make_folder(out / folder)
    if isinstance(result, Figure):
        path = Path("figures") / f"{result.name}.png"
        write_atomically(out / path, result.png)
        return f"![{result.name}]({path.as_posix()})\n\n*{result.caption}*"
    assert isinstance(result, Table)
    write_atomically(out / "tables" / f"{result.name}.csv", result.csv().encode())
    write_atomically(out / "tables" / f"{result.name}.md", (result.markdown() + "\n").encode())
    below = f"\n\n{MARKED}" if result.marked else ""
    return f"**{result.title}**\n\n{result.markdown()}{below}"


def _setup(lab: Lab, seconds: float) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in lab.model.settings.items() if value is not None)
    sets = ", ".join(f"{s.name} ({len(s.prompts)})" for s in lab.first_sets)
    ranges = len(lab.sets) // len(lab.first_sets)
    several = "" if ranges == 1 else f" of the first of {ranges} seed ranges, which are {SEED_STEP:,} apart"
    scheduler = type(lab.model.scheduler()).__name__
    device, dtype = lab.model.device.type, str(lab.model.dtype).removeprefix("torch.")
    return (
        f"Model {lab.model.name} ({settings}), {scheduler}, {lab.steps} steps, on {device} in {dtype}; sets: {sets}; "
        f"prompt i of a set has the seed {lab.seed} + i in every variant{several}. Scores by {lab.scorer.name} "
        f"({lab.scorer.version}). Brackets are 95 % intervals: bootstraps (of mean scores, differences, wins with ties "
        "as half), Wilson's (wins of independent pairs), normal ones of a mean over pairs (mean cosine). What is "
        "resampled are prompts and, where images share steps, root clusters: the prompts that began from one trunk. "
        f"They show how much the numbers would vary with other prompts like these{_not_seeds(ranges)}. "
        f"HSD {__version__}, {duration(seconds)} in all."
    )


def _not_seeds(ranges: int) -> str:
    return ", not with other seeds" if ranges == 1 else " and with other seeds"
