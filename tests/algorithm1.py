"""Algorithm 1 of the paper in its simplest form: the oracle that sharing is checked against.

Loops over steps and clusters, one row per call, one deep copy of the diffusers scheduler per cluster. It uses no
plans, programs, slots or sampler tables; all it uses of HSD is the tree's merges and heights.
"""

from __future__ import annotations

import copy
import inspect

import numpy as np
import torch


def clusters(merges: np.ndarray, heights: np.ndarray, n: int, threshold: float) -> list[list[int]]:
    """The maximal nodes with height < threshold, as sorted lists of leaves (DESIGN section 2)."""
    members = {i: [i] for i in range(n)}
    top = {i: i for i in range(n)}  # the cluster that holds a node, while it is below the threshold
    for j, (a, b) in enumerate(merges):
        if heights[j] < threshold:
            node = n + j
            members[node] = members.pop(top[int(a)]) + members.pop(top[int(b)])
            top[node] = node
    return sorted(sorted(m) for m in members.values())


def caught_up(mean, given, gamma):
    """m + gamma (m - h) with h the plain mean of all that was ``given``, one entry per step (DESIGN section 2).

    ``mean`` and the entries are tensors, or tensors by name. Token sequences (1, L, ...) may differ in length: h is the
    mean over the entries that have a position, and a position that none of them has is that of ``mean``.
    """
    if not given or not gamma:
        return mean
    if isinstance(mean, dict):
        return {name: caught_up(row, [entry[name] for entry in given], gamma) for name, row in mean.items()}
    if all(entry.shape == mean.shape for entry in given):
        return mean + gamma * (mean - torch.stack([entry.float() for entry in given]).mean(0))
    assert mean.ndim >= 3, mean.shape
    out = []
    for position in range(mean.shape[1]):
        before = [entry[0, position] for entry in given if entry.shape[1] > position]
        out.append(caught_up(mean[0, position], before, gamma))
    return torch.stack(out)[None]


def algorithm1(
    tree,
    phi,
    set_timesteps,
    scheduler,
    seeds,
    mean,
    evaluate,
    first_noise,
    new_generator,
    scale_input=True,
    step_kwargs=None,
    catch_up=0.0,
    guided=None,
    unguided=None,
    begin=0,
    first_latent=None,
):
    """Latents of all leaves after the last step: {leaf: tensor (1, ...)}, and the number of rows evaluated.

    ``set_timesteps(scheduler)`` prepares a copy of the scheduler, ``mean(leaves)`` gives a cluster's conditioning,
    ``evaluate(latent, t, conditioning)`` the guided model output, ``first_noise(generator)`` pure noise and
    ``new_generator(seed)`` a generator. ``catch_up`` is the gamma of :func:`caught_up`. With ``guided``, one flag per
    step, the other steps evaluate ``unguided``. From an image, the first ``begin`` timesteps are left out, and
    ``first_latent(generator, scheduler, timestep)`` is what denoising begins with, at the first that is left, (1,).
    """
    scheduler = copy.deepcopy(scheduler)
    set_timesteps(scheduler)
    timesteps = scheduler.timesteps[begin:]
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    takes = inspect.signature(scheduler.step).parameters
    n = tree.n_leaves
    state = {}  # representative -> (leaves, latent, scheduler, generator, conditioning that was given at each step)
    rows = 0
    for k, t in enumerate(timesteps):
        now = {}
        for leaves in clusters(tree.merges, tree.heights, n, phi[k]):
            first = leaves[0]
            parent = next((p for p in state.values() if set(leaves) <= set(p[0])), None)
            if parent is None:
                assert k == 0
                generator = new_generator(int(seeds[first]))
                if first_latent is None:
                    latent = first_noise(generator) * getattr(scheduler, "init_noise_sigma", 1.0)
                else:
                    latent = first_latent(generator, copy.deepcopy(scheduler), timesteps[:1])
                now[first] = (leaves, latent, copy.deepcopy(scheduler), generator, [])
            elif parent[0] == leaves:
                now[first] = parent
            else:
                keeps = parent[0][0] == first
                generator = parent[3] if keeps else new_generator(int(seeds[first]))
                now[first] = (leaves, parent[1].clone(), copy.deepcopy(parent[2]), generator, parent[4])
        state = {}
        for first, (leaves, latent, own, generator, given) in now.items():
            x = own.scale_model_input(latent, t) if scale_input else latent
            conditioning = caught_up(mean(leaves), given, catch_up)
            output = (evaluate if guided is None or guided[k] else unguided)(x, t, conditioning)
            rows += 1
            kwargs = dict(step_kwargs or {})
            if "generator" in takes:
                kwargs["generator"] = generator
            if "prev_timestep" in takes and "prev_timestep" not in kwargs:
                kwargs["prev_timestep"] = timesteps[k + 1] if k + 1 < len(timesteps) else None
            latent = own.step(output, t, latent, return_dict=False, **kwargs)[0].float()
            state[first] = (leaves, latent, own, generator, [*given, conditioning])
    assert all(len(leaves) == 1 for leaves, *_ in state.values())
    return {first: torch.as_tensor(latent) for first, (_, latent, *_) in state.items()}, rows
