"""The cost of an image: rows of the network, on one latent and one conditioning each. A guided lane is two rows.

A row of the prior counts as much as its network has parameters, compared with the denoiser. That is rough, but it is
the same for all settings that are compared, so that it never changes which of them is the cheaper one; and unlike
measured seconds it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..models import Adapter, variants_of
from ..models.encode import prior_savings
from ..planning.plan import Plan
from ..tuning.passes import passes_of, plans_of, rows_of


def rows(plan: Plan, adapter: Adapter) -> int:
    """Rows of the denoiser for the images of a plan, which may be pruned. Single prompts may have own guidance."""
    variants = variants_of(adapter, plan.settings)
    return sum(rows_of(part, variants[v]) for v, part in plans_of(plan, passes_of(variants)))


def prior_rows(adapter: Adapter, prompts: Sequence[str], seeds: NDArray[np.int64]) -> float:
    """Rows of the prior for an image, each weighted by the parameters of the prior; 0 if the model has none."""
    prior = adapter.prior()
    if prior is None:
        return 0.0
    rows = prior.sampler(prior.steps).n_steps * prior.rows * (1.0 - prior_savings(prior, prompts, seeds))
    return rows * parameters(prior.modules()) / max(parameters(adapter.modules()), 1)


def parameters(networks: Sequence[nn.Module]) -> int:
    """Number of parameters of all networks together."""
    return sum(weight.numel() for network in networks for weight in network.parameters())
