"""``hsd.evaluate``: read the folders, score the images that have no score yet, and compute the statistics."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..names import ScorerName, check_count, check_name, is_integer
from ..work.arguments import explains
from ..work.counting import counted
from ..work.progress import ProgressOption, check_progress
from .by_name import make_scorer
from .cache import ScoreCache
from .clusters import Clusters, clusters_of
from .folder import Folder, load_image, pair, read_folder, root_clusters
from .results import Diversity, Evaluation, Fidelity, Measured, Spread, SpreadWithin
from .scorers import Scorer, check_scorer, embed_batch, score_batch
from .stats import mean_cosine, mean_intervals, mean_of_known, vendi_score, win_rate

Path_ = str | os.PathLike[str]


@explains("hsd.evaluate")
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
    progress: ProgressOption = False,
) -> Evaluation:
    """Measure a folder of images: how well they match their prompts, how diverse they are, how often they beat others.

    Intervals draw clusters of images that are not independent: those of one prompt, and those that began from one
    trunk, by the ``plan.safetensors`` of a folder if it has one (of either folder, for a comparison).

    Every batch of scores is appended to ``scores-<scorer>.jsonl``; calling again scores only what is missing.

    Parameters
    ----------
    folder
        Written by :func:`hsd.generate`, or any ``imagefolder`` data set whose ``metadata.jsonl`` has texts.
    against
        Another folder of images for the same prompts; ``folder`` is compared with it image by image.
    scorer
        ``demo``, ``clipscore``, ``pickscore``, ``vqascore``, ``hpsv2``, ``imagereward``, or an object with ``name``,
        ``version``, ``score(images, prompts)`` and optionally ``embed(images)``.
    model, device, python
        Only for a scorer given by name: another model for it, the device, and the Python interpreter of an environment
        that has its package.
    batch_size
        Images scored at once.
    samples
        Diversity is measured on at most ``samples`` images (at least 2) of the folder, and on at most ``samples``
        images of each of at most ``samples`` prompts that have several. They are drawn at random.
    seed
        Seed of the samples and of the bootstraps.
    tolerance
        Two scores that differ by at most ``tolerance`` are a tie. Half precision and other batches change scores a
        little.
    cache
        Folder for the score files. Default: each folder of images holds its own.
    progress
        See :data:`hsd.ProgressOption`. Stages: ``score`` and ``embed``, of each folder.

    Raises
    ------
    FolderError
        If a folder cannot be read, its plan is not that of its images, or the two do not have the same prompts.
        Raised before a scorer is loaded.
    ScorerError
        If the scorer cannot be loaded, or does not return scores.
    OutputError
        If the scores cannot be written.
    ValueError, TypeError
        For bad arguments.
    """
    check_count("batch_size", batch_size)
    if check_count("samples", samples) < 2:
        raise ValueError(f"samples is {samples}: diversity needs at least 2 images")
    if not is_integer(seed) or seed < 0:
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
    our_roots, their_roots = root_clusters(ours), None if theirs is None else root_clusters(theirs)
    with contextlib.ExitStack() as stack:
        if isinstance(scorer, str):
            scorer = make_scorer(scorer, model=model, device=device, python=python)
            stack.callback(getattr(scorer, "close", lambda: None))
        measurer = Measurer(scorer, batch_size, samples, int(seed), progress)
        our_scores = measurer.scores(ours, ours.path if cache is None else Path(cache))
        measured = measurer.measured(ours, our_scores, None, clusters_of(ours.prompts, our_roots))
        if theirs is None or order is None:
            return Evaluation(scorer.name, scorer.version, measured, None, None)
        their_scores = measurer.scores(theirs, theirs.path if cache is None else Path(cache))
        compared = measurer.measured(theirs, their_scores, order, clusters_of(theirs.prompts, their_roots))
    clusters = clusters_of(ours.prompts, our_roots, None if their_roots is None else their_roots[order])
    wins = win_rate(our_scores, their_scores[order], clusters, tolerance=tolerance, seed=measurer.seed)
    return Evaluation(scorer.name, scorer.version, measured, compared, wins)


class Measurer:
    """Scores and embeds folders with one scorer and the same options; parameters as for :func:`evaluate`."""

    def __init__(self, scorer: Scorer, batch_size: int, samples: int, seed: int, progress: ProgressOption) -> None:
        self.scorer, self.batch_size, self.samples, self.seed = scorer, batch_size, samples, seed
        check_progress(progress)
        self.progress = progress

    def scores(self, folder: Folder, cache_folder: Path) -> NDArray[np.float64]:
        """(n,) scores of all images; those that ``cache_folder`` has are not computed again."""
        cache = ScoreCache(cache_folder, self.scorer.name, self.scorer.version)
        missing = cache.missing(folder.entries)
        for batch in self._batches(missing, f"scoring {folder.path.name}", "score"):
            images = [load_image(entry) for entry in batch]
            cache.add(batch, score_batch(self.scorer, images, [entry.text for entry in batch]))
        return cache.scores(folder.entries)

    def measured(
        self, folder: Folder, scores: NDArray[np.float64], order: list[int] | None, clusters: Clusters
    ) -> Measured:
        """Measure one folder.

        ``order`` lists its images in the order of the folder it is compared with, so that both draw the same sample.
        ``clusters`` are those of its own images.
        """
        prompts = [text for text, score in zip(folder.prompts, scores, strict=True) if not math.isnan(score)]
        mean, interval = mean_of_known(scores, clusters, seed=self.seed)
        scored = clusters.take(~np.isnan(scores))
        fidelity = Fidelity(
            images=len(prompts),
            unscored=len(scores) - len(prompts),
            prompts=len(set(prompts)),
            mean=mean,
            interval=interval,
            clusters=scored.count,
            clustered_by=scored.by,
            few_clusters=scored.few,
        )
        order = list(range(len(scores))) if order is None else order
        return Measured(str(folder.path), len(scores), fidelity, self._diversity(folder, order, clusters))

    @property
    def embeds(self) -> bool:
        """Whether the scorer embeds images."""
        return callable(getattr(self.scorer, "embed", None))

    def embeddings(self, folder: Folder, indices: Sequence[int]) -> list[NDArray[np.float64]]:
        """The embedding (D,) of each of these images."""
        rows: list[NDArray[np.float64]] = []
        for batch in self._batches(indices, f"embedding {folder.path.name}", "embed"):
            rows.extend(embed_batch(self.scorer, [load_image(folder.entries[i]) for i in batch]))
        return rows

    def drawn(self, rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
        """At most ``samples`` of the items, drawn at random, in their original order."""
        if len(items) <= self.samples:
            return list(items)
        return [items[i] for i in np.sort(rng.choice(len(items), self.samples, replace=False))]

    def _diversity(self, folder: Folder, order: list[int], clusters: Clusters) -> Diversity | None:
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
        embedding = dict(zip(needed, self.embeddings(folder, needed), strict=True))
        within = [[embedding[i] for i in group] for group in groups]
        # The number that is averaged belongs to a prompt, and so does one of its images here.
        by_group = clusters.take(np.array([group[0] for group in groups], dtype=np.int64))
        return Diversity(_spread([embedding[i] for i in sample]), _within(within, by_group, self.seed))

    def _batches(self, items: Sequence[Any], what: str, stage: str) -> Any:
        with counted(len(items), f"{what}, images", stage, self.progress) as advance:
            for start in range(0, len(items), self.batch_size):
                batch = items[start : start + self.batch_size]
                yield batch
                advance(len(batch))


def _spread(rows: list[NDArray[np.float64]]) -> Spread | None:
    cosine = mean_cosine(rows) if len(rows) > 1 else None
    vendi = vendi_score(rows) if len(rows) > 1 else None
    return None if cosine is None or vendi is None else Spread(len(rows), cosine, vendi)


def _within(groups: list[list[NDArray[np.float64]]], clusters: Clusters, seed: int) -> SpreadWithin | None:
    found = [spread for spread in map(_spread, groups) if spread is not None]
    if not found:
        return None
    cosines = [spread.mean_cosine for spread in found]
    interval = mean_intervals(cosines, clusters, seed=seed)
    return SpreadWithin(
        prompts=len(found),
        images_a_prompt=float(np.mean([spread.images for spread in found])),
        mean_cosine=float(np.mean(cosines)),
        interval=None if interval is None else interval[0],
        vendi=float(np.mean([spread.vendi for spread in found])),
    )
