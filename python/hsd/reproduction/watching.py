"""Observing the denoiser: every lane's latent and model output, and the image that each step predicts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..generation.decoding import decoded_at_once
from ..generation.session import Image, Options, Session
from ..models import Adapter
from ..models.base import batches
from ..planning.plan import Plan
from ..replay.executor import Evaluation
from ..sampler.prediction import prediction_of
from ..sampler.stepping import LEARNED_VARIANCE, map_memory


@dataclass(frozen=True)
class Trace:
    """A run of a plan, step by step. All of it is kept on the host, so it is for a few prompts only."""

    plan: Plan
    adapter: Adapter
    latents: Tensor
    """(node-steps, *latent) float32, each lane's latent before the step, before the scheduler scales it."""
    outputs: Tensor
    """(node-steps, *latent) float32, the denoiser's output for it, guidance included; with twice the channels where the
    scheduler uses a learned variance."""
    lane: NDArray[np.int64]
    """(K, N) the row of ``latents`` that each prompt has at each step."""
    images: dict[int, Image]
    """The finished images, by prompt."""

    def shared(self) -> NDArray[np.bool_]:
        """(K, N) whether a prompt shares its lane with others."""
        return (self.lane[:, :, None] == self.lane[:, None, :]).sum(axis=2) > 1

    def predictions(self) -> Iterator[tuple[Tensor, bool]]:
        """The x0 that each step predicts for each prompt, (N, *latent).

        Some schedulers return their prediction; flow matching predicts latent - sigma * output. For others the latent
        itself is returned. The flag is True for a prediction.
        """
        # One scheduler goes through all steps with all prompts as its batch, because some (Heun's) predict from what
        # they remember. The latent that it returns is not used: the next latent is that of the run.
        scheduler = copy.deepcopy(self.adapter.scheduler())
        self.adapter.set_timesteps(scheduler, self.plan.request["steps"])
        map_memory(scheduler, Tensor.cpu)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        takes = inspect.signature(scheduler.step).parameters
        options = self.adapter.step_kwargs(scheduler)
        if "generator" in takes:
            options = {**options, "generator": torch.Generator()}  # the scheduler needs it, but its draws are not used
        for k, lane in enumerate(self.lane):
            latents, outputs = self.latents[lane], self.outputs[lane]
            if "prev_timestep" in takes:
                options = {**options, "prev_timestep": next(iter(scheduler.timesteps[k + 1 :]), None)}
            result = scheduler.step(outputs, scheduler.timesteps[k], latents, **options)
            found = prediction_of(scheduler, k, latents, outputs, result)
            yield (latents, False) if found is None else (found, True)

    def decoded(self, latents: Tensor) -> list[PIL.Image.Image]:
        """Images of latents (N, *latent), one per prompt."""
        return decode(self.adapter, latents, [int(seed) for seed in self.plan.seeds])


def watch(plan: Plan, adapter: Adapter, *, batch_size: int) -> Trace:
    """Run a plan and record every step."""
    latents: list[Tensor] = []
    outputs: list[Tensor] = []
    steps: list[Tensor] = []
    learned = adapter.scheduler().config.get("variance_type") in LEARNED_VARIANCE

    def observe(evaluation: Evaluation) -> None:
        output, variance = evaluation.output, evaluation.variance
        if learned and variance is not None:
            output = torch.cat([output, variance], dim=1)
        for record, tensor in ((latents, evaluation.latents), (outputs, output)):
            record.append(tensor.to("cpu", torch.float32, copy=True))
        steps.append(evaluation.step.cpu())

    session = Session(plan, adapter, Options(batch_size=batch_size), observer=observe)
    images = {image.index: image for image in session.images(plan, None)}
    plan = session.plan  # prompts of equal conditioning were set apart

    # Lanes are evaluated in the order of the program, also if a call is evaluated in several parts.
    assert session.program is not None
    calls = session.program.calls
    lanes = calls[calls["segment"] >= 0]
    assert np.array_equal(torch.cat(steps).numpy(), lanes["step"]), "the recorded lanes are not the program's"
    row = {(int(lane["segment"]), int(lane["step"])): i for i, lane in enumerate(lanes)}
    at = [[row[int(segment), k] for segment in plan.active(k)] for k in range(plan.n_steps)]
    return Trace(plan, adapter, torch.cat(latents), torch.cat(outputs), np.array(at, dtype=np.int64), images)


@torch.no_grad()
def decode(adapter: Adapter, latents: Tensor, seeds: Sequence[int]) -> list[PIL.Image.Image]:
    """Images of latents (n, *latent), which may be of any step.

    A model that draws noise when it decodes gets a new generator for each seed: its images of finished latents differ
    slightly from those of a run, where denoising has drawn before.
    """
    images: list[PIL.Image.Image] = []
    with adapter.decoding():
        for some in batches(len(latents), decoded_at_once(adapter)):
            generators = [adapter.generator(seed) for seed in seeds[some]]
            images += adapter.decode(latents[some].to(adapter.device), generators)
    return images
