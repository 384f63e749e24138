"""Other ways to make one conditioning of a cluster's prompts than the plain mean, for experiments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning

AverageName = Literal["mean", "norm", "empty", "medoid"]
"""What a cluster is conditioned on:

* ``mean``: the arithmetic mean of its members, as in the paper;
* ``norm``: the direction of the mean, as long as its members are on average;
* ``empty``: the same about the empty prompt's conditioning e: e + r dir(mean(c_i - e)) with r = mean |c_i - e|;
* ``medoid``: the member whose vector is nearest to the mean of their vectors; so it is the conditioning of a prompt.

Norms are those of each token, or of the whole vector where there is one a prompt.
"""

AVERAGES: tuple[AverageName, ...] = get_args(AverageName)


@dataclass(frozen=True)
class Averaged(Conditioning):
    """Conditioning whose :meth:`mean` is another average."""

    average: AverageName = "mean"
    origins: dict[str, Tensor] = field(default_factory=dict)
    """By field, the conditioning of the empty prompt, for ``empty``."""

    def mean(self, prompts: NDArray[np.int64]) -> dict[str, Tensor]:
        """The chosen average of ``prompts`` (n,), in the form of :meth:`Conditioning.mean`."""
        if self.average == "medoid":
            vectors = self.vectors[prompts]
            nearest = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).argmin()
            return super().mean(prompts[nearest : nearest + 1])
        out = super().mean(prompts)
        if self.average == "mean":
            return out
        for name, one in self.fields.items():
            rows = [one.rows[int(i)].float() for i in one.index[prompts]]
            if not one.rows.dtype.is_floating_point or len({row.shape for row in rows}) > 1 or rows[0].ndim == 0:
                continue  # a mean over different lengths has no members to compare its positions with
            if len(np.unique(one.index[prompts])) == 1:
                continue
            origin = self.origins[name].float() if self.average == "empty" else torch.zeros_like(rows[0])
            length = torch.stack([(row - origin).norm(dim=-1, keepdim=True) for row in rows]).mean(0)
            mean = torch.stack(rows).mean(0) - origin
            out[name][: len(mean)] = (origin + length * F.normalize(mean, dim=-1)).to(out[name].dtype)
        return out


def averaged(conditioning: Conditioning, average: AverageName, empty: Conditioning | None) -> Conditioning:
    """``conditioning`` with another average; ``empty`` is the empty prompt's, which only ``empty`` needs."""
    if average == "mean":
        return conditioning
    origins = {}
    if average == "empty":
        assert empty is not None
        origins = {name: one.rows[int(one.index[0])] for name, one in empty.fields.items()}
    values = {name: getattr(conditioning, name) for name in Conditioning.__dataclass_fields__}
    return Averaged(**values, average=average, origins=origins)


def token_vectors(conditioning: Conditioning) -> NDArray[np.float32] | None:
    """(n, D) the mean of each prompt's tokens, padding included as the denoiser reads it; None without tokens.

    Of several fields with tokens it is the largest.
    """
    tokens = [
        one for one in conditioning.fields.values() if one.rows.dtype.is_floating_point and len(one.rows.shape) == 2
    ]
    if not tokens:
        return None
    one = max(tokens, key=lambda found: found.rows.nbytes)
    return np.stack([one.rows[int(i)].float().mean(0).numpy() for i in one.index])
