"""How much each step matters: what a cluster's mean at one step changes in the finished latent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..models.base import Adapter
from ..replay.denoiser import step_rows
from ..replay.feed import draw_noise
from ..replay.lengths import read_by
from ..sampler import SamplerTable
from ..work.device import FittingSize
from ..work.progress import Progress, Report

STEPS = 10

_BATCH = 32


@torch.no_grad()
def step_weights(
    adapter: Adapter,
    conditioning: Conditioning,
    clusters: Sequence[NDArray[np.int64]],
    vectors: NDArray[np.float32],
    seeds: NDArray[np.int64],
    *,
    steps: int = STEPS,
    progress: Report | None = None,
) -> NDArray[np.float64]:
    """(K,) how much further finished latents move for each step that is conditioned on a cluster's mean.

    Sharing always begins with a run, so for each member of each cluster there are K + 1 runs from the same noise: run j
    has the cluster's mean at the first j steps, then the member's own conditioning. With e_j the sum of the squared
    distances of the latents of run j to those of run 0, w_k is e_{k+1} - e_k, over the sum of the squared distances of
    ``vectors`` to their clusters' means. So the weights of shared steps add up to the error of sharing them. Runs that
    are equal up to a step are evaluated once up to there.

    Parameters
    ----------
    adapter, conditioning
        The model, with guidance as it is set, and its conditioning of N prompts.
    clusters
        Indices of prompts, at least two each.
    vectors
        (N, r) transformed vectors.
    seeds
        (N,) the seeds of the prompts.
    """
    sampler = adapter.sampler(steps)
    steps = sampler.n_steps
    prompts = np.concatenate(clusters)
    shared, own = read_by(adapter, conditioning).split(prompts)
    device = adapter.device
    shared = {name: row.to(device) for name, row in shared.items()}
    means, errors = [], []
    for cluster in clusters:
        means += [own.mean(np.sort(cluster))] * len(cluster)
        errors += list(((vectors[cluster] - vectors[cluster].mean(0)) ** 2).sum(1))
    single = [own.mean(np.array([prompt])) for prompt in prompts]
    rows = [
        [{name: value.to(device) for name, value in row.items()} for row in each] for each in (single, means)
    ]  # each prompt's own, then its cluster's mean
    runs = _Runs(adapter, sampler.to(device, torch.float32), rows, shared, [int(seeds[i]) for i in prompts])
    n, report = len(prompts), Progress(progress)
    states = runs.first()  # [n, S, *latent]: run 0, then one more group of n at each step
    whose, is_mean = torch.arange(n), torch.zeros(n, dtype=torch.bool)
    for k in range(steps):
        states = torch.cat([states, states[-n:]])  # the runs that have had the mean so far, and have it once more
        whose = torch.cat([whose, torch.arange(n)])
        is_mean = torch.cat([torch.zeros_like(is_mean), torch.ones(n, dtype=torch.bool)])
        states = runs.step(k, states, whose, is_mean)
        report((k + 1) * (k + 4) / (steps * (steps + 3)))
    adapter.free()
    latents = states[:, 0].view(steps + 1, n, -1).double().cpu()
    moved = ((latents - latents[0]) ** 2).sum((1, 2)).numpy()  # [K + 1]
    return np.diff(moved) / max(float(np.sum(errors)), 1e-30)


class _Runs:
    """Runs of n prompts from their own noise, which is the same in every run of a prompt."""

    def __init__(
        self,
        adapter: Adapter,
        sampler: SamplerTable,
        rows: list[list[dict[str, Tensor]]],
        shared: dict[str, Tensor],
        seeds: list[int],
    ) -> None:
        self.adapter, self.sampler, self.rows, self.shared = adapter, sampler, rows, shared
        self.device = adapter.device
        self.generators = [adapter.generator(seed) for seed in seeds]
        self.fitting = FittingSize(_BATCH, "latents", self.device)

    def first(self) -> Tensor:
        """(n, S, *latent) states before the first step."""
        latents = torch.cat([self.adapter.first_latent(generator, self.sampler) for generator in self.generators])
        state = torch.zeros((len(latents), self.sampler.n_state, *latents.shape[1:]), device=self.device)
        state[:, 0] = latents.to(self.device)
        return state

    def step(self, k: int, states: Tensor, whose: Tensor, is_mean: Tensor) -> Tensor:
        """States (R, S, *latent) after step ``k``; ``whose`` (R,) prompt each is, ``is_mean`` (R,) its conditioning."""
        noise = self._noise(k)
        out = torch.empty_like(states)
        with self.adapter.running():
            for runs in self._calls(whose, is_mean):
                begin = 0
                while begin < len(runs):
                    work = partial(self._part, k, states, whose, is_mean, noise, runs[begin:])
                    new, size = self.fitting.run(work, len(runs) - begin)
                    out[runs[begin : begin + size].to(self.device)] = new
                    begin += size
        return out

    def _calls(self, whose: Tensor, is_mean: Tensor) -> list[Tensor]:
        """Runs that may share a call: those whose rows have one shape, which all have unless lengths may not differ."""
        shapes: dict[Any, list[int]] = {}
        for i, (prompt, mean) in enumerate(zip(whose.tolist(), is_mean.tolist(), strict=True)):
            shape = tuple((name, row.shape) for name, row in self.rows[mean][prompt].items())
            shapes.setdefault(shape, []).append(i)
        return [torch.tensor(runs) for runs in shapes.values()]

    def _noise(self, k: int) -> Tensor | None:
        """(n, Z, *latent) the draws of step ``k``."""
        if not self.sampler.n_noise:
            return None
        shape = self.adapter.latent_shape()
        noise = torch.zeros((len(self.generators), self.sampler.n_noise, *shape))
        for of_prompt, generator in zip(noise, self.generators, strict=True):
            draw_noise(of_prompt, generator, self.sampler.noise_dtypes[k], self.adapter.noise_dtype)
        return noise.to(self.device)

    def _part(
        self, k: int, states: Tensor, whose: Tensor, is_mean: Tensor, noise: Tensor | None, runs: Tensor, size: int
    ) -> Tensor:
        at = runs[:size]
        owner = whose[at].to(self.device)
        given = [self.rows[mean][i] for i, mean in zip(whose[at].tolist(), is_mean[at].tolist(), strict=True)]
        rows = {name: torch.stack([row[name] for row in given]) for name in given[0]}
        state = states[at.to(self.device)]
        rows |= {name: row.expand(len(state), *row.shape[1:]) for name, row in self.shared.items()}
        step = torch.full((len(state),), k, device=self.device)
        latents = self.sampler.model_input(state, step) if self.adapter.scales_input else state[:, 0]
        timestep = self.sampler.timesteps.index_select(0, step)
        if self.adapter.reads_steps:
            rows |= step_rows(self.sampler.timesteps, step)
        output, variance = self.adapter.denoise(latents, timestep, rows)
        draws = None if noise is None else noise.index_select(0, owner)
        return self.sampler.update(state, output, draws, step, variance)


def smooth(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positive weights, smoothed on a logarithmic scale, with mean 1; the smallest count as 2 % of the largest."""
    logs = np.log(np.maximum(weights, max(float(weights.max()), 1e-30) * 0.02))
    padded = np.pad(logs, 1, mode="edge")
    out = np.exp(0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:])
    return out / out.mean()
