"""``hsd.calibrate``: measure how a model tells prompts apart, and how much each of its steps matters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import Tree, __version__
from ..calibration import Calibration
from ..calibration.fit import FEWEST, fit
from ..demo import CALIBRATION_PROMPTS, MODELS
from ..errors import PromptError
from ..models.base import Adapter
from ..models.encode import encode
from ..models.identity import identity_of
from ..models.loading import load
from ..planning.prompts import check_prompts, make_seeds
from ..planning.schedule import schedule_shape
from ..prompts.files import read_prompts
from ..work.progress import Progress, ProgressOption, of_stage, shows_stages
from .levels import FRACTIONS, noise_levels
from .predict import predictions, smaller
from .weights import smooth, step_weights

SAVINGS = 0.4
"""The default threshold saves this share on the sample's own prompts."""

_STEPS = 40
_CLUSTERS, _MEMBERS = 8, 2
_LARGEST = 8


@shows_stages
def calibrate(
    model: Adapter | Any,
    prompts: Iterable[str] | None = None,
    *,
    seeds: int = 0,
    progress: ProgressOption = False,
) -> Calibration:
    """Measure a model on a sample of prompts, for ``hsd.compile(metric="calibrated", schedule="measured")``.

    Each prompt is evaluated three times without guidance, at three noise levels of inputs that are the same for all
    prompts: the predictions of the image say how differently the model begins to draw them. A linear map from the
    prompts' vectors to the predictions is fitted, whose distances predict those of the model's for prompts that were
    not in the sample. Then a few small clusters are denoised, with their mean at more and more steps, to see at which
    steps that matters.

    Parameters
    ----------
    model
        A loaded model, or anything that :func:`hsd.load` takes.
    prompts
        A few hundred prompts like those that will be generated; at least 16 different ones. The bundled model has its
        own.
    seeds
        Prompt i has the seed ``seeds + i``.
    progress
        See :data:`hsd.ProgressOption`. The stage is ``calibrate``.

    Returns
    -------
    Calibration
        Save it with ``calibration.save(path)``, use it with ``model.with_calibration(calibration)``.

    Raises
    ------
    PromptError
        Without prompts for a model that has none, or with too few.
    UnsupportedScheduler
        If HSD does not know what the model's output means.
    """
    adapter = load(model)
    given = _sample(adapter, prompts)
    seed_array = make_seeds(seeds, len(given))
    noise_levels(adapter)  # an unknown scheduler is reported before anything is encoded
    whole = Progress(of_stage(progress, "calibrate"))
    everything = np.zeros(len(given), dtype=np.int64)
    conditioning = encode([adapter], everything, given, seed_array, progress=whole.part(0.0, 0.3))
    vectors = conditioning.vectors
    predicted = predictions(adapter, conditioning, progress=whole.part(0.3, 0.6))
    fitted = fit(vectors, predicted)
    values: dict[str, Any] = {
        "matrix": fitted.matrix,
        "mean": fitted.mean,
        "correlation": fitted.correlation,
        "cosine_correlation": fitted.cosine_correlation,
        "scale": fitted.scale,
        "levels": FRACTIONS,
        "ridge": fitted.ridge,
        "prompts": len(given),
        "identity": identity_of(adapter),
        "model": adapter.name,
        "version": __version__,
    }
    mapped = Calibration(**values, weights=np.ones(1), tau=0.0).transform(vectors)
    tree = Tree.build(mapped, "ward", metric="euclidean")
    shape = schedule_shape("linear", _STEPS)
    tau = tree.tau_for_node_steps(shape, int(len(given) * _STEPS * (1.0 - SAVINGS)))
    weights = step_weights(
        smaller(adapter),
        conditioning,
        small_clusters(tree, tau),
        mapped,
        seed_array,
        progress=whole.part(0.6, 1.0),
    )
    return Calibration(**values, weights=smooth(weights), tau=tau)


def _sample(adapter: Adapter, prompts: Iterable[str] | None) -> list[str]:
    """The different prompts to measure with."""
    if prompts is not None:
        given = list(dict.fromkeys(check_prompts(prompts)))
    elif adapter.name in MODELS:
        given = read_prompts(CALIBRATION_PROMPTS).prompts
    else:
        raise PromptError(
            f"{adapter.name} has no prompts of its own to calibrate with: give a few hundred like those that you will "
            "generate (prompts=, or --prompts FILE)"
        )
    if len(given) < FEWEST:
        raise PromptError(
            f"{len(given)} different prompts are too few to calibrate with: give at least {FEWEST}, better a few "
            "hundred"
        )
    return given


def small_clusters(tree: Tree, tau: float) -> list[NDArray[np.int64]]:
    """At most 8 pairs of prompts, each from another cluster of at most 8 prompts, as they share steps at ``tau``.

    The highest merges below ``tau`` come first: clusters of nearly equal prompts say little.
    """
    labels = np.asarray(tree.cut(tau))
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fitting = [cluster for cluster in clusters if 2 <= len(cluster) <= _LARGEST]
    fitting = fitting or [cluster for cluster in clusters if len(cluster) > 1] or [np.arange(tree.n_leaves)]
    random = np.random.default_rng(0)
    picked = random.permutation(len(fitting))[:_CLUSTERS]
    return [np.sort(random.permutation(fitting[i])[:_MEMBERS]) for i in picked]
