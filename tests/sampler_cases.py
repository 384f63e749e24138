"""The scheduler configurations that the sampler table is tested on, and how they are measured.

``python tests/sampler_cases.py`` measures them all and writes docs/samplers.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import tiny
from hsd.sampler import SamplerTable, compile_sampler
from hsd.sampler.probe import CLAMP, THRESHOLD
from sampler_refused import REFUSED

N = 20  # steps given to set_timesteps

SD = tiny.SD_BETAS
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
COGVIDEOX = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
THRESHOLDING = {"thresholding": True, "sample_max_value": 2.0}
SIGMAS = np.linspace(1.0, 1 / N, N)

# For schedulers that cast the latent to float32 inside step(), so that even their float64 run rounds at each step.
CAST = 2e-6


@dataclass(frozen=True)
class Case:
    """A scheduler configuration."""

    name: str
    scheduler: str | Callable[[], Any]
    config: dict[str, Any] = field(default_factory=dict)
    timesteps: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": N})
    step_kwargs: dict[str, Any] = field(default_factory=dict)
    tolerance32: float = 4e-6
    tolerance64: float = 1e-12
    channels: int = 4
    learned: bool = False  # the model's output has twice the channels
    timestep_a_row: bool = False  # step takes a vector of timesteps
    promotes_noise: bool = False  # draws in float32, or in the model output's dtype where that is wider

    def make(self) -> Any:
        """Return a new scheduler with its timesteps set."""
        make = self.scheduler if callable(self.scheduler) else getattr(diffusers, self.scheduler)
        scheduler = make(**self.config)
        scheduler.set_timesteps(**self.timesteps)
        return scheduler

    @cached_property
    def compiled(self) -> SamplerTable:
        """Compile the scheduler, once."""
        return compile_sampler(self.make(), step_kwargs=self.step_kwargs)

    def table(self, dtype: torch.dtype) -> SamplerTable:
        """Return the compiled table in `dtype`."""
        return self.compiled.to("cpu", dtype)


DPM, UNIPC, UNCLIP = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "UnCLIPScheduler"
SINGLE, FLOW_EULER, HELIOS = "DPMSolverSinglestepScheduler", "FlowMatchEulerDiscreteScheduler", "HeliosScheduler"

CASES = [
    Case("DDIM", tiny.sd_ddim),
    Case("DDIM, eta 1", "DDIMScheduler", {**SD, "clip_sample": False}, step_kwargs={"eta": 1.0}),
    Case(
        "DDIM, v-prediction, zero terminal SNR",
        "DDIMScheduler",
        {
            **SD,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    Case("DDIM, clip_sample (its default)", "DDIMScheduler", SD),
    Case("DDIM, thresholding", "DDIMScheduler", {**SD, **THRESHOLDING}),
    Case("DDIM, Kandinsky 2.2", tiny.k22_ddim),
    Case("DDIM, parallel", "DDIMParallelScheduler", {**SD, "clip_sample": False}, step_kwargs={"eta": 0.5}),
    Case("DDIM, inversion", "DDIMInverseScheduler", SD),
    Case(
        "DDIM, inversion, betas from 0.1 to 2 (its own test's)",
        "DDIMInverseScheduler",
        {"beta_start": 0.1, "beta_end": 2.0},
    ),
    Case("DDIM, zero terminal SNR, epsilon, clip_sample", "DDIMScheduler", {**SD, **ZERO_SNR}),
    Case("DDIM, CogView 3 and CogVideoX", "CogVideoXDDIMScheduler", COGVIDEOX),
    Case("DDPM", "DDPMScheduler", {**SD, "clip_sample": False}),
    Case("DDPM, clip_sample (its default)", "DDPMScheduler", SD),
    Case("DDPM, Kandinsky 2.2 (learned range, thresholding)", tiny.k22_ddpm, learned=True),
    Case("DDPM, zero terminal SNR, epsilon, clip_sample", "DDPMScheduler", {**SD, **ZERO_SNR}),
    Case("DDPM, parallel", "DDPMParallelScheduler", SD),
    Case(
        "DDPM, parallel (learned range)",
        "DDPMParallelScheduler",
        {**SD, "variance_type": "learned_range"},
        learned=True,
    ),
    Case("DDPM, Wuerstchen and Stable Cascade", "DDPMWuerstchenScheduler", timestep_a_row=True),
    Case("UnCLIP, Kandinsky 2.2 prior", tiny.k22_unclip),
    Case("UnCLIP, Karlo super-resolution (epsilon)", UNCLIP),
    Case("UnCLIP, Karlo decoder (learned range)", UNCLIP, {"variance_type": "learned_range"}, learned=True),
    Case("UnCLIP, no prev_timestep", UNCLIP, {"prediction_type": "sample"}, step_kwargs={"prev_timestep": None}),
    Case("Euler", "EulerDiscreteScheduler", SD, tolerance64=CAST),
    Case(
        "Euler, SDXL (leading)",
        "EulerDiscreteScheduler",
        {**SD, "timestep_spacing": "leading", "steps_offset": 1},
        tolerance64=CAST,
    ),
    Case(
        "Euler, v-prediction, Karras",
        "EulerDiscreteScheduler",
        {**SD, "prediction_type": "v_prediction", "use_karras_sigmas": True},
        tolerance64=CAST,
    ),
    Case("Euler, s_churn 5", "EulerDiscreteScheduler", SD, step_kwargs={"s_churn": 5.0}, tolerance64=CAST),
    Case("Euler ancestral", "EulerAncestralDiscreteScheduler", SD, tolerance64=CAST),
    Case("DPM-Solver++ 2M", DPM, SD, tolerance64=CAST),
    Case("DPM-Solver++ 2M, Karras", DPM, {**SD, "use_karras_sigmas": True}, tolerance64=CAST),
    Case("DPM-Solver++ 3M", DPM, {**SD, "solver_order": 3}, tolerance64=CAST),
    Case("DPM-Solver++ 2M SDE", DPM, {**SD, "algorithm_type": "sde-dpmsolver++"}, tolerance64=CAST),
    Case("DPM-Solver++ 2M, thresholding", DPM, {**SD, **THRESHOLDING}, tolerance32=2e-5, tolerance64=2e-5),
    Case(
        "DPM-Solver++ 2M, thresholding to 1 (its default)",
        DPM,
        {**SD, "thresholding": True},
        tolerance32=5e-5,
        tolerance64=5e-5,
    ),
    Case(
        "DPM-Solver++ 2M, learned range dropped (IF)",
        DPM,
        {**SD, "variance_type": "learned_range"},
        learned=True,
        channels=3,
        tolerance64=CAST,
    ),
    Case("DPM-Solver++ 2M, flow (Sana)", DPM, FLOW, tolerance64=CAST),
    Case("DPM-Solver++ 2M, inversion", "DPMSolverMultistepInverseScheduler", SD, tolerance64=CAST),
    Case("DPM-Solver++ 2S", SINGLE, SD),
    Case("DPM-Solver++ 2S SDE", SINGLE, {**SD, "algorithm_type": "sde-dpmsolver++"}),
    Case("UniPC bh2", UNIPC, SD),
    Case("UniPC bh1, order 3", UNIPC, {**SD, "solver_type": "bh1", "solver_order": 3, **SIGMA_MIN}),
    Case("UniPC, flow", UNIPC, FLOW),
    Case("PNDM, Stable Diffusion 1.5 (PLMS)", "PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    Case("PNDM with Runge-Kutta warm-up", "PNDMScheduler", SD),
    Case("DEIS, order 3", "DEISMultistepScheduler", {**SD, "solver_order": 3}),
    Case("LMS", "LMSDiscreteScheduler", SD),
    Case("Heun", "HeunDiscreteScheduler", SD),
    Case("Heun, clip_sample", "HeunDiscreteScheduler", {**SD, "clip_sample": True}, tolerance32=1e-4),
    Case("KDPM2", "KDPM2DiscreteScheduler", SD),
    Case("KDPM2 ancestral", "KDPM2AncestralDiscreteScheduler", SD),
    Case("IPNDM", "IPNDMScheduler"),
    Case("SA-Solver", "SASolverScheduler", SD),
    Case("LCM", "LCMScheduler", SD, timesteps={"num_inference_steps": 8}),
    Case(
        "LCM, zero terminal SNR, epsilon, clip_sample",
        "LCMScheduler",
        {**SD, "rescale_betas_zero_snr": True, "clip_sample": True},
        timesteps={"num_inference_steps": 8},
    ),
    Case("TCD", "TCDScheduler", SD, timesteps={"num_inference_steps": 8}),
    Case("Flow matching Euler, shift 3 (SD3)", FLOW_EULER, {"shift": 3.0}, tolerance64=CAST),
    Case(
        "Flow matching Euler, dynamic shift (FLUX)",
        FLOW_EULER,
        {"shift": 3.0, "use_dynamic_shifting": True},
        timesteps={"sigmas": SIGMAS, "mu": 1.15},
        tolerance64=CAST,
    ),
    Case("Flow matching Euler, stochastic", FLOW_EULER, {"shift": 3.0, "stochastic_sampling": True}, tolerance64=CAST),
    Case("Flow matching Heun", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, tolerance64=CAST),
    Case("Flow matching LCM", "FlowMatchLCMScheduler", {"shift": 3.0}, promotes_noise=True, tolerance64=CAST),
    Case("Flow map Euler (AnyFlow)", "FlowMapEulerDiscreteScheduler", {"shift": 5.0}),
    Case("MiniMax H3", "MiniMaxH3Scheduler"),
    Case("LTX Euler ancestral", "LTXEulerAncestralRFScheduler", tolerance64=CAST),
    Case(
        "LTX Euler ancestral, sigmas down to 0",
        "LTXEulerAncestralRFScheduler",
        {"eta": 0.5},
        timesteps={"sigmas": [*SIGMAS.tolist(), 0.0]},
        tolerance64=CAST,
    ),
    Case("Helios, one stage (UniPC)", HELIOS, {"stages": 1}, timesteps={"num_inference_steps": N, "sigmas": SIGMAS}),
    Case("Helios, the second of three stages", HELIOS, timesteps={"num_inference_steps": N, "stage_index": 1}),
    Case(
        "Helios, dynamic shift, Euler",
        HELIOS,
        {"stages": 1, "use_dynamic_shifting": True, "scheduler_type": "euler"},
        timesteps={"num_inference_steps": N, "mu": 1.15},
        tolerance64=CAST,
    ),
    Case("EDM Euler", "EDMEulerScheduler", tolerance64=CAST),
    Case("EDM DPM-Solver++ 2M", "EDMDPMSolverMultistepScheduler"),
    Case("Consistency model", "CMStochasticIterativeScheduler"),
    Case(
        "SCM (Sana Sprint)",
        "SCMScheduler",
        timesteps={"num_inference_steps": 2, "max_timesteps": 1.57080, "intermediate_timesteps": 1.3},
        tolerance64=CAST,
    ),
]  # fmt: skip


class Witness:
    """A diffusers scheduler run as its pipelines run it, one row per lane, one generator per lane."""

    def __init__(self, case: Case, seeds: list[int]) -> None:
        self.case = case
        self.scheduler = case.make()
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def model_input(self, k: int, sample: Tensor) -> Tensor:
        """Scale the model's input at step k."""
        if not hasattr(self.scheduler, "scale_model_input"):  # flow matching
            return sample
        return self.scheduler.scale_model_input(sample, self.scheduler.timesteps[k])

    def step(self, k: int, model_output: Tensor, sample: Tensor) -> Tensor:
        """Take step k; `model_output` has the variance's channels if the case has."""
        names = inspect.signature(self.scheduler.step).parameters
        timesteps = self.scheduler.timesteps
        timestep = timesteps[k].expand(len(sample)) if self.case.timestep_a_row else timesteps[k]
        kwargs: dict[str, Any] = {"generator": self.generators} if "generator" in names else {}
        if "prev_timestep" in names:
            kwargs["prev_timestep"] = timesteps[k + 1] if k + 1 < len(timesteps) else None
        kwargs |= self.case.step_kwargs
        return self.scheduler.step(model_output, timestep, sample, return_dict=False, **kwargs)[0]


def draw(case: Case, table: SamplerTable, k: int, generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Draw every lane's noises of step k from its own generator, (B, Z, ...)."""
    noise = torch.zeros(len(generators), table.n_noise, *like.shape[1:], dtype=like.dtype)
    for i, generator in enumerate(generators):
        for j, dtype in enumerate(table.noise_dtypes[k]):
            dtype = like.dtype if dtype is None or case.promotes_noise else dtype
            noise[i, j] = torch.randn((1, *like.shape[1:]), generator=generator, dtype=dtype)[0].to(like.dtype)
    return noise


def model_outputs(case: Case, dtype: torch.dtype, amplitude: float, rows: int = 2, seed: int = 0) -> Iterator[Tensor]:
    """Yield a random latent, then pairs' worth of random model outputs: (rows, 2 channels, 8, 8), variance last."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, case.channels, 8, 8)

    def random() -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    yield random() * amplitude
    while True:
        yield torch.cat([random() * amplitude, random().tanh()], 1)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of a row, relative to the row's largest value."""
    size = theirs.abs().flatten(1).amax(1).clamp(min=1e-12)  # IPNDM of one step gives 0
    return float(((ours - theirs).abs().flatten(1).amax(1) / size).max())


def measure(case: Case, dtype: torch.dtype, amplitude: float) -> float:
    """Run scheduler and table side by side, and return the largest relative error of input or latent."""
    table, seeds = case.table(dtype), [3, 7]
    witness = Witness(case, seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    outputs = model_outputs(case, dtype, amplitude)
    sample = next(outputs) * table.init_noise_sigma
    state = torch.zeros(2, table.n_state, *sample.shape[1:], dtype=dtype)
    state[:, 0] = sample
    errors = []
    for k in range(table.n_steps):
        step = torch.full((2,), k)
        given = next(outputs)
        output, variance = given.chunk(2, 1)
        errors.append(relative_error(table.model_input(state, step), witness.model_input(k, sample)))
        sample = witness.step(k, given if case.learned else output, sample)
        state = table.update(state, output, draw(case, table, k, generators, output), step, variance)
        errors.append(relative_error(state[:, 0], sample))
    for ours, theirs in zip(generators, witness.generators, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state()), "the generators do not stand at the same place"
    return float(torch.tensor(errors).max())  # nan if any is; max() of Python is not


def describe(case: Case) -> list[str]:
    """Return the case's row of the documentation, without its errors."""
    table = case.table(torch.float64)
    kinds = frozenset().union(*table.node_kinds)
    nodes = [name for kind, name in ((CLAMP, "clip"), (THRESHOLD, "threshold")) if kind in kinds]
    nodes += ["learned variance"] if table.needs_variance else []
    low, high = min(table.noise_draws), max(table.noise_draws)
    noises = str(low) if low == high else f"{low}..{high}"
    return [case.name, table.scheduler, str(table.n_steps), str(table.n_state), noises, ", ".join(nodes) or "-"]


HEADER = f"""# Schedulers

<!-- Written by `python tests/sampler_cases.py`; do not edit. -->

HSD compiles the pipeline's scheduler into a table of coefficients. These configurations of diffusers {{version}}
are compiled and compared with the scheduler itself, {N} steps unless the configuration sets another number, with
random model outputs. An error is the largest difference in a latent (or in the denoiser's input) over the run,
relative to the latent's largest value. "x100" has latents and model outputs a hundred times as large, so that
clipping has an effect. Schedulers whose float64 errors are near 1e-7 cast the latent to float32 themselves.

Other schedulers and configurations work if they can be expressed: any scheduler is compiled, whatever its name, and the
table is compared with it before it is used. If they differ, the scheduler is refused, with the step and the reason.

| configuration | scheduler | evaluations | tensors a lane | noises a step | nodes | float64 | float64 x100 | float32 | float32 x100 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""  # noqa: E501

REFUSED_HEADER = """
## Refused

Schedulers with a nonlinearity other than clamping and dynamic thresholding, or with memory outside their attributes,
are found when the table is compared with them. Of the schedulers that diffusers exports, these are refused, for the
reason that the error gives ("text-to-image generation" is a prompt, a seed and the scheduler's own settings):

| what | why |
| --- | --- |
"""


def document() -> str:
    """Return the text of docs/samplers.md."""
    rows = []
    for case in CASES:
        errors = [measure(case, dtype, gain) for dtype in (torch.float64, torch.float32) for gain in (1.0, 100.0)]
        rows.append("| " + " | ".join([*describe(case), *(f"{error:.0e}" for error in errors)]) + " |\n")
    refused = [refusal.row() + "\n" for refusal in REFUSED]
    return HEADER.format(version=diffusers.__version__) + "".join(rows) + REFUSED_HEADER + "".join(refused)


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "docs" / "samplers.md"
    path.write_text(document())
    print(f"wrote {path}")
