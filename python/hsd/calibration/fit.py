"""Ridge regression from prompts' vectors to a model's predictions, chosen by how well it predicts their distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Values = NDArray[np.float32] | NDArray[np.float64]

FEWEST = 16
"""Fewer prompts cannot be split into folds that still have pairs."""

MOST_RANK = 256
_VARIANCE = 0.99
_FOLDS = 5
_RIDGES = 10.0 ** np.arange(-6.0, 2.5, 0.5)
"""Candidates, as multiples of the vectors' mean eigenvalue."""


@dataclass(frozen=True)
class Fit:
    """A fitted map, and how well it predicts the distances of prompts that it was not fitted to."""

    matrix: Array
    """(D, r). The root mean square distance of two of the fitted prompts is 1 after it."""
    mean: Array
    """(D,)."""
    ridge: float
    correlation: float
    cosine_correlation: float
    scale: float
    """Root mean square distance of the targets of two prompts."""


def fit(vectors: Values, targets: Values, seed: int = 0) -> Fit:
    """The linear map from ``vectors`` (n, D) after which Euclidean distances are most like those of ``targets`` (n, M).

    A ridge regression (Hoerl and Kennard 1970), its penalty by cross-validation, its rank the smallest that holds 99 %
    of the variance of the fitted values (reduced-rank regression, Izenman 1975), at most 256.

    Raises
    ------
    ValueError
        For fewer than 16 prompts, for values that are not finite, or if all vectors or all targets are equal.
    """
    n = len(vectors)
    if n < FEWEST:
        raise ValueError(f"{n} prompts are too few to calibrate with: give at least {FEWEST}, better a few hundred")
    given, reached = vectors.astype(np.float64), coordinates(targets)
    for name, values in (("vectors", given), ("predictions", reached)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise ValueError(f"the {name} of prompt {row} hold nan or infinite values")
        if np.ptp(values, axis=0).max(initial=0.0) == 0.0:  # equal predictions may have no coordinates at all
            raise ValueError(f"the {name} of all prompts are equal: there is nothing to learn from them")
    mean = given.mean(0)
    unit = float(((given - mean) ** 2).sum() / given.shape[1])
    folds = list(_folds(n, seed))
    scores = np.zeros(len(_RIDGES))
    for train, test in folds:
        solve = Ridge(given[train], reached[train])
        pairs = distances(reached[test])
        for i, ridge in enumerate(_RIDGES * unit):
            scores[i] += pearson(distances(given[test] @ solve(ridge)), pairs)
    ridge = float(_RIDGES[int(np.argmax(scores))] * unit)
    lengths = np.maximum(np.linalg.norm(given, axis=1, keepdims=True), 1e-30)
    # Half the squared distance of given of length 1 is their cosine distance.
    cosines = [pearson(distances((given / lengths)[t]) ** 2 / 2, distances(reached[t])) for _, t in folds]
    matrix = Ridge(given, reached)(ridge)  # [D, n]
    fitted = (given - mean) @ matrix
    _, singular, axes = np.linalg.svd(fitted, full_matrices=False)
    share = np.cumsum(singular**2) / np.sum(singular**2)
    rank = min(int(np.searchsorted(share, _VARIANCE)) + 1, MOST_RANK, given.shape[1])
    matrix = matrix @ axes[:rank].T / root_mean_square(fitted @ axes[:rank].T)
    correlation, cosine = float(scores.max()) / len(folds), float(np.mean(cosines))
    return Fit(matrix, mean, ridge, correlation, cosine, root_mean_square(reached))


class Ridge:
    """The ridge regressions of targets (n, M) on vectors (n, D), both centred, for any penalty: one decomposition."""

    def __init__(self, vectors: Array, targets: Array) -> None:
        left, self._singular, self._right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        self._projected = left.T @ (targets - targets.mean(0))

    def __call__(self, ridge: float) -> Array:
        """(D, M), the minimum of |X A - Y|^2 + ridge |A|^2."""
        s = self._singular
        gain = np.divide(s, s**2 + ridge, out=np.zeros_like(s), where=s > s.max(initial=0.0) * 1e-12)
        return self._right.T @ (gain[:, None] * self._projected)


def coordinates(values: Values) -> Array:
    """(n, at most n) float64 with the same distances as ``values`` (n, M), centred: for rows that are very long."""
    if values.shape[1] <= len(values):
        centred = values.astype(np.float64)
        return centred - centred.mean(0)
    # Rows are multiplied block by block of columns, so that no copy of them in float64 is needed.
    gram = np.zeros((len(values), len(values)))
    for begin in range(0, values.shape[1], 8192):
        part = values[:, begin : begin + 8192].astype(np.float64)
        part -= part.mean(0)
        gram += part @ part.T
    if not np.isfinite(gram).all():
        return gram  # the caller names the row
    squares, axes = np.linalg.eigh(gram)
    kept = squares > squares.max() * 1e-12
    return axes[:, kept] * np.sqrt(squares[kept])


def distances(values: Array) -> Array:
    """(n (n - 1) / 2,) Euclidean distances of all pairs of rows."""
    squares = (values**2).sum(1)
    first, second = np.triu_indices(len(values), 1)
    return np.sqrt(np.maximum(squares[first] + squares[second] - 2.0 * (values @ values.T)[first, second], 0.0))


def root_mean_square(values: Array) -> float:
    """Root mean square distance of two different rows."""
    return float(np.sqrt(2.0 * ((values - values.mean(0)) ** 2).sum() / (len(values) - 1)))


def pearson(a: Array, b: Array) -> float:
    """Pearson correlation of two arrays; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / size, -1.0, 1.0)) if size > 0.0 else 0.0


def _folds(n: int, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (train, test) of indices."""
    order = np.random.default_rng(seed).permutation(n)
    parts = np.array_split(order, min(_FOLDS, n // 4))
    for i, test in enumerate(parts):
        yield np.concatenate([part for j, part in enumerate(parts) if j != i]), test
