"""A family compared with its stock pipeline and with a plain Algorithm 1, for the tests and the docs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import hsd
from algorithm1 import algorithm1
from families.base import Family, swap
from helpers import fresh_generators, latents_of, recorded

PROMPTS = ["a cat", "a much longer prompt about a dog", "two birds on a wire"]
SEEDS = [11, 5, 42]

SHARED_PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day, in oil", "a red bicycle"]
SHARED_SEEDS = [7, 3, 9, 1, 4, 8]
_RNG = np.random.default_rng(5)
# Two families of similar prompts and a single prompt: forks early and late.
EMBEDDINGS = _RNG.normal(size=(3, 12))[[0, 0, 0, 1, 1, 2]] + 0.4 * _RNG.normal(size=(6, 12))


def owner(pipe: Any) -> Any:
    """The pipeline that has the denoiser's scheduler: the second one of a pair."""
    return pipe[-1] if isinstance(pipe, tuple) else pipe


def with_scheduler(family: Family, name: str | None) -> Any:
    """A fresh pipeline, its scheduler swapped for the one called ``name``; its own for None."""
    pipe = family.build()
    if name is not None:
        setattr(owner(pipe), family.scheduler, swap(name, owner(pipe)))
    return pipe


@dataclass
class Parity:
    """Latents (N, ...) of the stock pipeline and ours at tau = 0."""

    model: Any
    stock: Tensor
    ours: Tensor
    generators: list[torch.Generator]
    """The stock pipeline's generators, before it decodes."""
    images: list[Any]
    """Ours, by prompt."""
    stock_images: list[Any]
    """The stock pipeline's, if they were asked for."""

    @property
    def error(self) -> float:
        """Largest difference, as a share of the latents' range."""
        return float((self.ours - self.stock).abs().max() / self.stock.abs().max())

    @property
    def root_mean_square(self) -> float:
        """Norm of the difference, as a share of the latents' norm."""
        return float((self.ours - self.stock).norm() / self.stock.norm())


def stock(family, pipe, settings, size, output_type, generators, prompts=PROMPTS, per_prompt=1) -> Any:
    """The result of the pipeline's own call."""
    options = {"num_images_per_prompt": per_prompt} if per_prompt > 1 else {}
    return family.call(pipe, prompts, generators, settings, size, family.steps, output_type, **options)


@contextlib.contextmanager
def remembering(network: nn.Module) -> Iterator[None]:
    """Inside, a network that is called again with the same tensors gives what it gave: nothing in it draws.

    The pipeline's latents and its images come from two of its runs, of which the second denoises in the same way.
    """
    forward, known = network.forward, {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = hashlib.sha256()
        for leaf in tree_leaves((args, kwargs)):
            is_tensor = isinstance(leaf, Tensor)
            key.update(repr((leaf.shape, leaf.dtype) if is_tensor else leaf).encode())
            key.update(leaf.detach().double().numpy().tobytes() if is_tensor else b"")
        if key.digest() not in known:
            known[key.digest()] = forward(*args, **kwargs)
        return tree_map_only(Tensor, Tensor.clone, known[key.digest()])

    with patch.object(network, "forward", functools.wraps(forward)(remembered)):
        yield


def parity(
    family: Family, pipe: Any, settings, size, *, prompts=PROMPTS, seeds=None, per_prompt=1, pil=False
) -> Parity:
    """The latents of each prompt, by the pipeline and by a complete run of ours; the pipeline's images if ``pil``."""
    seeds = family.parity_seeds if seeds is None else seeds
    generators = fresh_generators(seeds)
    with remembering(family.denoiser(pipe)):
        reference = stock(family, pipe, settings, size, "latent", generators, prompts, per_prompt).float()
        again = fresh_generators(seeds)
        pictures = stock(family, pipe, settings, size, "pil", again, prompts, per_prompt) if pil else []
    model = hsd.load(family.loadable(pipe), **family.settings(settings, size))
    plan = hsd.compile(prompts, 0.0, model=model, steps=family.steps, seeds=seeds, images_per_prompt=per_prompt)
    with recorded() as latents:
        images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=2)}
    ours = torch.cat([latents[i] for i in range(len(plan))])
    return Parity(model, reference, ours, generators, [images[i] for i in range(len(plan))], pictures)


@dataclass
class Sharing:
    """Latents by prompt of a plain Algorithm 1 and ours, and how many rows each evaluated."""

    plan: hsd.Plan
    expected: dict[int, Tensor]
    ours: dict[int, Tensor]
    expected_rows: int
    rows: int
    """Counted in lanes: with guidance, which needs two rows per lane, half of the rows."""
    network_rows: int
    """Rows that the network has seen."""

    @property
    def error(self) -> float:
        """Largest difference, as a share of the range of its latent."""
        return max(
            float((self.ours[i] - latent).abs().max() / latent.abs().max()) for i, latent in self.expected.items()
        )


def sharing(
    family: Family,
    scheduler: str | None,
    tau: float,
    interval: tuple[float, float] | None = None,
    *,
    catch_up: float = 0.0,
    settings: dict[str, Any] | None = None,
    batch_size: int = 3,
) -> Sharing:
    """One plan, by Algorithm 1 around the networks themselves, and by us; guided unless there are ``settings``.

    With an ``interval``, it is guided in this part of the run only.
    """
    pipe = with_scheduler(family, scheduler)
    settings, size = family.guided if settings is None else settings, family.size
    own_settings = {} if interval is None else {"guidance_interval": interval}
    model = hsd.load(family.loadable(pipe), **family.settings(settings, size), **own_settings)
    plan = hsd.compile(SHARED_PROMPTS, tau, embeddings=EMBEDDINGS, model=model, steps=family.steps, seeds=SHARED_SEEDS)
    family.seeds = SHARED_SEEDS
    conditioning = family.conditioning(pipe, SHARED_PROMPTS)
    own = getattr(owner(pipe), family.scheduler)
    scale = "true_cfg_scale" if "true_cfg_scale" in settings else "guidance_scale"
    neutral = {**settings, scale: family.unguided[scale]}
    expected, expected_rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: family.set_timesteps(scheduler, family.steps, size),
        own,
        plan.seeds,
        mean=lambda leaves: family.mean([conditioning[i] for i in leaves]),
        evaluate=family.evaluate(pipe, settings, size),
        first_noise=lambda generator: family.first_noise(pipe, size, generator),
        new_generator=lambda seed: family.generator(pipe, seed),
        scale_input=family.scales_input,
        step_kwargs=family.step_kwargs(own),
        catch_up=catch_up,
        guided=None
        if interval is None
        else [interval[0] <= k / plan.n_steps < interval[1] for k in range(plan.n_steps)],
        unguided=family.evaluate(pipe, neutral, size),
        begin=family.begin(family.steps),
        first_latent=None if family.first_latent is None else partial(family.first_latent, pipe, size),
    )
    seen: list[int] = []
    hook = family.denoiser(pipe).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(_rows_in(args, kwargs)), with_kwargs=True
    )
    latents = latents_of(plan, model, {"catch_up": catch_up}, batch_size=batch_size)
    hook.remove()
    return Sharing(plan, expected, latents, expected_rows, sum(seen) // (2 if model.guided else 1), sum(seen))


def _rows_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of rows in a call of a denoiser: of its first argument, or of the one with a name for latents."""
    first = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample", kwargs.get("x")))
    assert first is not None
    return len(first)
