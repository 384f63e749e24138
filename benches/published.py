"""The published method in its simplest form, to compare HSD's executor with.

    python benches/published.py [--prompts 24] [--steps 10] [--tau 0.5] [--batch-size 4] [--device cpu]

Algorithm 1 of Decatur et al. (arXiv 2508.21032) for Kandinsky 2.2, written directly: the prior one prompt at a time;
then level by level, all latents of a level in one tensor on the device, in chunks of the batch size through the UNet
and the scheduler's own step; every decoded image in one float32 tensor on the device until the end. It takes the plan's
tree and thresholds, so both methods evaluate the same clusters at the same steps, and differ only in how they are run.

The command checks this file against HSD: with a scheduler that draws nothing, from the same first latents, both must
give the same images. It uses the bundled model, and prints the differences.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import hsd
from hsd.demo import PROMPTS
from hsd.models.encode import encode
from hsd.models.kandinsky22 import Kandinsky22
from hsd.prompts.files import read_prompts
from hsd.replay.executor import Executor


@dataclass
class Generated:
    """The results of a run."""

    latents: Tensor
    """(N, C, h, w), in the order of the prompts."""
    images: Tensor
    """(N, 3, H, W) float32 in [0, 1], on the device."""
    node_steps: int
    """Latents that went through the UNet."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``prior``, ``denoise`` and ``decode``."""

    def pictures(self) -> Iterator[PIL.Image.Image]:
        """One after the other, so that no second copy of all of them is made."""
        for image in self.images:
            yield PIL.Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


@torch.no_grad()
def generate(
    model: Kandinsky22, plan: hsd.Plan, *, batch_size: int = 32, seed: int = 42, first: Tensor | None = None
) -> Generated:
    """Images of all of the plan's prompts.

    Parameters
    ----------
    model
        The model whose pipeline and settings are used.
    plan
        The plan: tree, thresholds, prompts and seeds. The scheduler must remember nothing between steps
        (DDPM, DDIM): one object steps all chunks of a level.
    batch_size
        Largest number of latents per call.
    seed
        Seed of the noise that the scheduler draws, and of the first latent, which all clusters share.
    first
        (N, C, h, w), first latents to use instead: a cluster starts from its lowest prompt's.
    """
    assert len(plan) == plan.n_prompts, "a plan for all of its prompts"
    unet, scheduler, device = model.decoder.unet, copy.deepcopy(model.decoder.scheduler), model.device
    clock = _Clock(device)
    model.prior_pipe.set_progress_bar_config(disable=True)
    embeds = torch.cat([_image_embedding(model, p, int(s)) for p, s in zip(plan.prompts, plan.seeds, strict=True)])
    black = model.prior_pipe.get_zero_embed(1, device).to(embeds.dtype)
    clock.lap("prior")

    scheduler.set_timesteps(plan.request["steps"], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    level = plan.tree.cut(plan.phi[0])  # [N], the cluster of each prompt
    if first is None:
        noise = torch.randn(1, *model.latent_shape(), generator=generator, device=device, dtype=unet.dtype)
        latents = noise.expand(level.max() + 1, -1, -1, -1) * scheduler.init_noise_sigma
    else:
        latents = first.to(device, unet.dtype)[_lowest(level)]
    means = _means(embeds, level)
    node_steps = 0
    for k, t in enumerate(scheduler.timesteps):
        below = plan.tree.cut(plan.phi[k])
        if below.max() > level.max():  # clusters split: each child starts from a copy of its parent's latent
            latents, means = latents[level[_lowest(below)]], _means(embeds, below)
            level = below
        stepped = []
        for start in range(0, len(latents), batch_size):
            part = slice(start, start + batch_size)
            output = _evaluate(model, latents[part], t, means[part], black)
            stepped.append(scheduler.step(output, t, latents[part], generator=generator)[0])
            node_steps += len(latents[part])
        latents = torch.cat(stepped)
    assert len(latents) == plan.n_prompts
    assert node_steps == plan.node_steps, (node_steps, plan.node_steps)
    latents = latents[torch.from_numpy(level).to(device)]  # the last level has one cluster per prompt
    clock.lap("denoise")

    decoded = []
    for start in range(0, len(latents), batch_size):
        chunk = latents[start : start + batch_size].to(model.decoder.movq.dtype)
        image = model.decoder.movq.decode(chunk, force_not_quantize=True)["sample"]
        decoded.append((image.float() * 0.5 + 0.5).clamp(0, 1))
    images = torch.cat(decoded)
    clock.lap("decode")
    return Generated(latents, images, node_steps, clock.seconds)


def save(made: Generated, folder: Path) -> None:
    """PNG files, in threads, so that writing does not decide a comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: pair[1].save(folder / f"{pair[0]:05}.png"), enumerate(made.pictures())))


def _image_embedding(model: Kandinsky22, prompt: str, seed: int) -> Tensor:
    """(1, D), by the prior's own pipeline."""
    return model.prior_pipe(
        prompt,
        num_inference_steps=model.prior_steps,
        guidance_scale=model.prior_guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    ).image_embeds


def _lowest(level: np.ndarray) -> np.ndarray:
    """The lowest prompt of each cluster."""
    return np.unique(level, return_index=True)[1]


def _means(embeds: Tensor, level: np.ndarray) -> Tensor:
    """(clusters, D), the mean embedding of each."""
    index = torch.from_numpy(level).to(embeds.device)
    sums = torch.zeros(level.max() + 1, embeds.shape[1], device=embeds.device).index_add_(0, index, embeds.float())
    return (sums / torch.bincount(index)[:, None]).to(embeds.dtype)


def _evaluate(model: Kandinsky22, latents: Tensor, t: Tensor, embeds: Tensor, black: Tensor) -> Tensor:
    """The guided output, followed by its variance if the scheduler uses one, as in the pipeline."""
    unet, channels = model.decoder.unet, latents.shape[1]
    x, scheduler = latents, model.decoder.scheduler
    if model.guided:
        x, embeds = torch.cat([latents, latents]), torch.cat([black.expand_as(embeds), embeds])
    output = unet(
        sample=x.to(unet.dtype),
        timestep=t,
        encoder_hidden_states=None,
        added_cond_kwargs={"image_embeds": embeds.to(unet.dtype)},
        return_dict=False,
    )[0]
    output, variance = output.split(channels, dim=1)
    if model.guided:
        unconditional, conditional = output.chunk(2)
        output = unconditional + model.guidance_scale * (conditional - unconditional)
        variance = variance.chunk(2)[1]
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    return torch.cat([output, variance], dim=1) if learned else output


class _Clock:
    """Seconds from one lap to the next, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self._last = device, time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


# -- the check


def compare(model: Kandinsky22, plan: hsd.Plan, batch_size: int) -> dict[str, float]:
    """The difference to HSD on one plan, from the same first latents; the scheduler must draw nothing.

    Returns
    -------
    dict
        ``latents``, the norm of the difference over the norm; ``images``, the largest difference in steps of 1/255.
    """
    conditioning = encode([model], np.zeros(len(plan), np.int64), plan.prompts, plan.seeds)
    sampler = model.sampler(plan.request["steps"])
    executor = Executor(plan, plan.program(batch_size), model, conditioning, sampler)
    finished = {image.index: image for _, images in executor.run() for image in images}
    ours = torch.cat([finished[i].latent for i in range(len(plan))])
    generators = [finished[i].generator for i in range(len(plan))]
    first = torch.cat([model.first_noise(model.generator(int(seed))) for seed in plan.seeds])
    made = generate(model, plan, batch_size=batch_size, first=first.float() * sampler.init_noise_sigma)
    pictures = zip(model.decode(ours, generators), made.pictures(), strict=True)
    images = max(int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()) for a, b in pictures)
    return {"latents": float((made.latents.float() - ours).norm() / ours.norm()), "images": images}


def deterministic(model: Kandinsky22) -> Kandinsky22:
    """The model with a scheduler of its own family that draws nothing. The pipeline is changed."""
    config: dict[str, Any] = dict(model.decoder.scheduler.config)
    config.pop("variance_type", None)  # a scheduler that draws nothing has no use for it
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    for pipe in {id(pipe): pipe for pipe in (model.pipe, model.decoder)}.values():
        pipe.scheduler = scheduler
    return model


def main() -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tau", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = deterministic(hsd.load("demo", device=args.device, dtype=torch.float32))
    prompts = list(read_prompts(PROMPTS).prompts)[: args.prompts]
    plan = hsd.compile(prompts, args.tau, model=model, steps=args.steps)
    apart = compare(model, plan, args.batch_size)
    print(repr(plan))
    print(f"latents differ by {apart['latents']:.2e} of their norm, images by {apart['images']}/255 at most")
    return int(apart["latents"] > 1e-4 or apart["images"] > 1)


if __name__ == "__main__":
    sys.exit(main())
