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
from ..models.encode import encode
from ..planning.build import plan_of
from ..planning.plan import Plan


def rows_by_step(adapter: Adapter, n_steps: int) -> NDArray[np.int64]:
    """(K,) rows of a lane at each step: 2 where it is guided, else 1."""
    varying = adapter.rows_by_step(n_steps)
    return np.full(n_steps, 2 if adapter.guided else 1) if varying is None else varying


def rows(plan: Plan, adapter: Adapter) -> int:
    """Rows of the denoiser for the images of a plan, which may be pruned. Single prompts may have own guidance."""
    by_setting = np.stack([rows_by_step(one, plan.n_steps) for one in variants_of(adapter, plan.settings)])
    until = np.concatenate([np.zeros((len(by_setting), 1), np.int64), by_setting.cumsum(axis=1)], axis=1)  # [s, K + 1]
    segments = plan.segments
    setting = plan.setting[segments["representative"]]
    return int((until[setting, segments["end_step"]] - until[setting, segments["first_step"]]).sum())


def prior_rows(adapter: Adapter, prompts: Sequence[str], seeds: NDArray[np.int64]) -> float:
    """Rows of the prior for an image, each weighted by the parameters of the prior; 0 if the model has none."""
    prior = adapter.prior()
    if prior is None:
        return 0.0
    n_steps = prior.sampler(prior.steps).n_steps
    share = 1.0
    if prior.tau > 0:
        texts = encode([prior], np.zeros(len(prompts), np.int64), prompts, seeds)
        share -= plan_of(texts.vectors, list(prompts), seeds, prior.tau, n_steps).savings
    return n_steps * prior.rows * share * parameters(prior.modules()) / max(parameters(adapter.modules()), 1)


def parameters(networks: Sequence[nn.Module]) -> int:
    """Number of parameters of all networks together."""
    return sum(weight.numel() for network in networks for weight in network.parameters())
