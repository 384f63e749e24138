"""The machine that replays a program: gather lanes from the slots, evaluate, update, scatter. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ._core import Program
from .conditioning import Conditioning
from .errors import PlanMismatch
from .models.base import Denoiser
from .plan import Plan
from .sampler import SamplerTable


def check_fit(plan: Plan, sampler: SamplerTable) -> None:
    """``PlanMismatch`` unless the plan has as many steps as the scheduler makes evaluations."""
    if sampler.n_steps != plan.n_steps:
        raise PlanMismatch(
            f"the plan has {plan.n_steps} steps, but {sampler.scheduler} makes {sampler.n_steps} evaluations for "
            f"steps={plan.request['steps']}: compile the plan with model=, which counts them"
        )


_CHUNK = 1024
"""Calls whose tables are on the device at once."""


@dataclass(frozen=True)
class Finished:
    """A latent that reached the last step."""

    index: int
    """Of its prompt."""
    latent: Tensor
    """(1, *latent) float32."""
    generator: torch.Generator
    """Its prompt's own, where denoising left it."""


class Executor:
    """Slots on the device, index tables beside them, and one loop over the calls of a program.

    Buffers are allocated once: the state of each slot (n_slots + 1, S, *latent) float32 (the last row takes what
    padding would write), and one row of conditioning a slot. The calls come in chunks, whose index tables are on the
    device before the first call of each; nothing here grows with the number of calls.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        denoiser: Denoiser,
        conditioning: Conditioning,
        sampler: SamplerTable,
    ) -> None:
        check_fit(plan, sampler)
        if conditioning.n_prompts != plan.n_prompts:
            raise PlanMismatch(f"{conditioning.n_prompts} rows of conditioning for {plan.n_prompts} prompts")
        self.program = program
        self.denoiser = denoiser
        leaves = plan.covered()
        self.conditioning = conditioning.of(leaves)
        # Asked once: a pipeline looks through all of its modules to find its device.
        device, shape = denoiser.device, denoiser.latent_shape()
        self._device, self._dtype, self._noise_shape = device, denoiser.noise_dtype, (1, *shape)
        self.sampler = sampler.to(device, torch.float32)

        segments = plan.segments
        self._seeds = plan.seeds
        self._leaf_begin, self._leaf_end = segments["leaf_begin"], segments["leaf_end"]
        self._representative = segments["representative"]
        self._leaf_order = plan.tree.leaf_order
        self._shared_latent = plan.noise == "shared"
        # A generator lives as long as some segment draws from it: it is handed on to the child that keeps the
        # representative, and dropped where no such child follows.
        children = np.flatnonzero(segments["parent"] >= 0)
        parents = segments["parent"][children]
        hands_on = parents[segments["representative"][children] == segments["representative"][parents]]
        self._drops_generator = np.ones(len(segments), dtype=bool)
        self._drops_generator[hands_on] = False
        self._last_step = segments["end_step"] - 1
        self._generators: dict[int, torch.Generator] = {}

        slots = program.n_slots + 1
        self.state = torch.zeros((slots, self.sampler.n_state, *shape), device=device)
        self.noise = torch.zeros((program.batch_size, self.sampler.n_noise, *shape), device=device)
        # What all prompts have in common is one row, read by every lane; the rest is a row a slot.
        shared = self.conditioning.shared(leaves)
        common = self.conditioning.mean(leaves[:1], names=shared)
        self._shared = {name: row[None].to(device) for name, row in common.items()}
        self._own = frozenset(self.conditioning.fields) - shared
        self._rows = {
            name: torch.zeros((slots, *row), dtype=dtype, device=device)
            for name, (row, dtype) in self.conditioning.shapes().items()
            if name not in common
        }

    def run(self) -> Iterator[tuple[int, list[Finished]]]:
        """Replay all calls. After each, yields the number of its lanes and what it finished."""
        for chunk in self.program.chunks(_CHUNK):
            step, source, target = (self._index(chunk[name]) for name in ("step", "source", "target"))  # [calls, B]
            for call, lanes in enumerate((chunk["segment"] >= 0).sum(axis=1).tolist()):
                entries = chunk[call, :lanes]
                self._prepare(entries)
                self._evaluate(step[call, :lanes], source[call, :lanes], target[call, :lanes])
                yield lanes, self._finished(entries)

    def _index(self, column: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(column.astype(np.int64)).to(self._device)

    @torch.no_grad()
    def _evaluate(self, step: Tensor, source: Tensor, target: Tensor) -> None:
        """One call: every lane reads its source before any lane writes its target."""
        lanes = len(step)
        state = self.state[source]  # [B, S, *latent]
        rows = {name: buffer[target] for name, buffer in self._rows.items()}
        rows |= {name: row.expand(lanes, *row.shape[1:]) for name, row in self._shared.items()}
        latents = self.sampler.model_input(state, step) if self.denoiser.scales_input else state[:, 0]
        output, variance = self.denoiser.denoise(latents, self.sampler.timesteps[step], rows)
        self.state[target] = self.sampler.update(state, output, self.noise[:lanes], step, variance)

    def _prepare(self, entries: NDArray[np.void]) -> None:
        """Put in place what the lanes of a call need: conditioning, first latents, fresh noise."""
        for lane, entry in enumerate(entries):
            segment = int(entry["segment"])
            if entry["begins"]:
                begin, end = self._leaf_begin[segment], self._leaf_end[segment]
                for name, row in self.conditioning.mean(self._leaf_order[begin:end], names=self._own).items():
                    self._rows[name][entry["target"]] = row
            if entry["fresh"]:
                self.state[entry["source"]] = 0.0
                self.state[entry["source"], 0] = self._first_latent(segment)
            for draw, dtype in enumerate(self.sampler.noise_dtypes[entry["step"]]):
                self.noise[lane, draw] = self._noise(self._generator(segment), dtype)[0]

    def _finished(self, entries: NDArray[np.void]) -> list[Finished]:
        """Copies of the latents that reached the last step: their slots are free from here on."""
        done = []
        for segment, target, step, final in entries[["segment", "target", "step", "final"]].tolist():
            if final:
                latent = self.state[target, :1].clone()
                done.append(Finished(int(self._representative[segment]), latent, self._generator(segment)))
            if step == self._last_step[segment] and self._drops_generator[segment]:
                self._generators.pop(int(self._representative[segment]), None)
        return done

    def _generator(self, segment: int) -> torch.Generator:
        """The generator of a segment's representative, started when it is first drawn from."""
        representative = int(self._representative[segment])
        if representative not in self._generators:
            self._generators[representative] = self.denoiser.generator(int(self._seeds[representative]))
        return self._generators[representative]

    def _noise(self, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
        """What a scheduler draws in a step, (1, *latent): in the model's dtype unless it fixes another."""
        return randn_tensor(self._noise_shape, generator=generator, device=self._device, dtype=dtype or self._dtype)

    def _first_latent(self, segment: int) -> Tensor:
        """The pure noise that a root segment starts from, at the scheduler's own scale."""
        noise = self.denoiser.first_noise(self._generator(segment))
        if self._shared_latent:  # drawn and set aside above, so that later draws do not depend on this choice
            noise = self.denoiser.first_noise(self.denoiser.generator(int(self._seeds[0])))
        return (noise * self.sampler.init_noise_sigma).float()[0]
