"""``hsd.evaluate``: read, score what has no score yet, and sum up."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..names import check_count, check_name
from .cache import ScoreCache
from .folder import Folder, load_image, pair, read_folder
from .results import Diversity, Evaluation, Fidelity, Measured, Spread, SpreadWithin
from .scorers import Scorer, ScorerName, check_scorer, embed_batch, make_scorer, score_batch
from .stats import cluster_bootstrap, mean_cosine, mean_of_known, vendi_score, win_rate

Path_ = str | os.PathLike[str]


def evaluate(
    folder: Path_,
    *,
    against: Path_ | None = None,
    scorer: str | Scorer = "demo",
    model: str | None = None,
    device: str | None = None,
    python: str | None = None,
    batch_size: int = 16,
    samples: int = 100,
    seed: int = 0,
    tolerance: float = 1e-6,
    cache: Path_ | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a folder of images: how well they show their prompts, how diverse they are, how often they beat others.

    Scores are written to ``scores-<scorer>.jsonl`` as they come; calling again scores only what is missing.

    Parameters
    ----------
    folder
        Written by :func:`hsd.generate`, or any ``imagefolder`` data set whose ``metadata.jsonl`` has texts.
    against
        Another folder of images for the same prompts, which ``folder`` is compared with image by image.
    scorer
        ``demo``, ``clipscore``, ``pickscore``, ``vqascore``, ``hpsv2``, ``imagereward``, or an object with ``name``,
        ``version``, ``score(images, prompts)`` and perhaps ``embed(images)``.
    model, device, python
        Of a scorer by name: another model of its kind, where it runs, and the interpreter of an environment that has
        its package.
    batch_size
        Images scored at once.
    samples
        Images (at least 2) whose diversity is measured, drawn at random where there are more; and at most so many
        prompts with several images.
    seed
        Of the samples and of the bootstraps.
    tolerance
        Scores that differ by no more are a tie: half precision and other batches move them a little.
    cache
        Folder for the files of scores. Default: each folder of images has its own.
    progress
        Whether to show a bar on a terminal.

    Raises
    ------
    FolderError
        If a folder cannot be read, or the two do not have the same prompts; before a scorer is loaded.
    ScorerError
        If the scorer cannot be loaded or gives something else than scores.
    OutputError
        If the scores cannot be written.
    ValueError, TypeError
        For bad arguments.
    """
    check_count("batch_size", batch_size)
    if check_count("samples", samples) < 2:
        raise ValueError(f"samples is {samples}: diversity is that of at least 2 images")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed is {seed!r}: an integer of at least 0")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}: a finite number of at least 0")
    if isinstance(scorer, str):
        check_name("scorer", scorer, ScorerName)
    else:
        check_scorer(scorer)
        given = {"model": model, "device": device, "python": python}
        if any(value is not None for value in given.values()):
            raise TypeError(f"{', '.join(n for n, v in given.items() if v is not None)}: only for scorers by name")
    ours = read_folder(folder)
    theirs = None if against is None else read_folder(against)
    order = None if theirs is None else pair(ours, theirs)
    if isinstance(scorer, str):
        judge = make_scorer(scorer, model=model, device=device, python=python)
        close: Callable[[], object] = getattr(judge, "close", lambda: None)
    else:
        judge, close = scorer, lambda: None
    run = Measuring(judge, batch_size, samples, int(seed), progress)
    try:
        scores = run.scores(ours, ours.path if cache is None else Path(cache))
        measured = run.measured(ours, scores, None)
        if theirs is None or order is None:
            return Evaluation(judge.name, judge.version, measured, None, None)
        others = run.scores(theirs, theirs.path if cache is None else Path(cache))
        compared = run.measured(theirs, others, order)
    finally:
        close()
    wins = win_rate(scores, others[order], ours.prompts, tolerance=tolerance, seed=run.seed)
    return Evaluation(judge.name, judge.version, measured, compared, wins)


class Measuring:
    """What all folders that are measured alike have in common; the parameters are those of :func:`evaluate`."""

    def __init__(self, scorer: Scorer, batch_size: int, samples: int, seed: int, progress: bool) -> None:
        self.scorer, self.batch_size, self.samples, self.seed = scorer, batch_size, samples, seed
        self.progress = progress

    def scores(self, folder: Folder, where: Path) -> NDArray[np.float64]:
        """(n,) of all images, those from the file among them."""
        cache = ScoreCache(where, self.scorer.name, self.scorer.version)
        missing = cache.missing(folder.entries)
        for some in self._batches(missing, f"scoring {folder.path.name}"):
            images = [load_image(entry) for entry in some]
            cache.add(some, score_batch(self.scorer, images, [entry.text for entry in some]))
        return cache.scores(folder.entries)

    def measured(self, folder: Folder, scores: NDArray[np.float64], order: list[int] | None) -> Measured:
        """Sum up one folder; ``order`` are its images in the order of another's, so that both take the same sample."""
        prompts = [text for text, score in zip(folder.prompts, scores, strict=True) if not math.isnan(score)]
        mean, interval = mean_of_known(scores, folder.prompts, seed=self.seed)
        fidelity = Fidelity(
            images=len(prompts),
            unscored=len(scores) - len(prompts),
            prompts=len(set(prompts)),
            mean=mean,
            interval=interval,
        )
        order = list(range(len(scores))) if order is None else order
        return Measured(str(folder.path), len(scores), fidelity, self._diversity(folder, order))

    @property
    def embeds(self) -> bool:
        """Whether the scorer can be asked for embeddings."""
        return callable(getattr(self.scorer, "embed", None))

    def embeddings(self, folder: Folder, indices: Sequence[int]) -> list[NDArray[np.float64]]:
        """(D,) of each of these images."""
        rows: list[NDArray[np.float64]] = []
        for some in self._batches(indices, f"embedding {folder.path.name}"):
            rows.extend(embed_batch(self.scorer, [load_image(folder.entries[i]) for i in some]))
        return rows

    def drawn(self, rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
        """At most ``samples`` of them, in their order."""
        if len(items) <= self.samples:
            return list(items)
        return [items[i] for i in np.sort(rng.choice(len(items), self.samples, replace=False))]

    def _diversity(self, folder: Folder, order: list[int]) -> Diversity | None:
        if not self.embeds:
            return None
        rng = np.random.default_rng(self.seed)
        sample = self.drawn(rng, order)
        by_prompt: dict[str, list[int]] = {}
        for i in order:
            by_prompt.setdefault(folder.entries[i].text, []).append(i)
        several = [images for images in by_prompt.values() if len(images) > 1]
        groups = [self.drawn(rng, images) for images in self.drawn(rng, several)]
        needed = sorted({*sample, *(i for group in groups for i in group)})
        at = dict(zip(needed, self.embeddings(folder, needed), strict=True))
        return Diversity(
            _spread([at[i] for i in sample]), _within([[at[i] for i in group] for group in groups], self.seed)
        )

    def _batches(self, items: Sequence[Any], what: str) -> Any:
        with tqdm(
            total=len(items), desc=what, unit=" images", disable=None if self.progress else True, leave=False
        ) as bar:
            for start in range(0, len(items), self.batch_size):
                some = items[start : start + self.batch_size]
                yield some
                bar.update(len(some))


def _spread(rows: list[NDArray[np.float64]]) -> Spread | None:
    cosine = mean_cosine(rows) if len(rows) > 1 else None
    vendi = vendi_score(rows) if len(rows) > 1 else None
    return None if cosine is None or vendi is None else Spread(len(rows), cosine, vendi)


def _within(groups: list[list[NDArray[np.float64]]], seed: int) -> SpreadWithin | None:
    found = [spread for spread in map(_spread, groups) if spread is not None]
    if not found:
        return None
    cosines = [spread.mean_cosine for spread in found]
    interval = cluster_bootstrap(cosines, range(len(found)), seed=seed)
    return SpreadWithin(
        prompts=len(found),
        images_a_prompt=float(np.mean([spread.images for spread in found])),
        mean_cosine=float(np.mean(cosines)),
        interval=None if interval is None else interval[0],
        vendi=float(np.mean([spread.vendi for spread in found])),
    )
