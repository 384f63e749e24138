"""The x0 that each step predicts, beside what diffusers' own schedulers return, and by what it leads to."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from hsd.sampler import Predictions, compile_sampler, predictions
from sampler_cases import CASES, SD, SIGMA_MIN, Case

BY_NAME = {case.name: case for case in CASES}

RETURNING = [
    "DDIM",
    "DDIM, eta 1",
    "DDIM, v-prediction, zero terminal SNR",
    "DDIM, clip_sample (its default)",
    "DDIM, thresholding",
    "DDIM, zero terminal SNR, epsilon, clip_sample",
    "DDIM, CogView 3 and CogVideoX",
    "DDPM",
    "DDPM, Kandinsky 2.2 (learned range, thresholding)",
    "DDPM, parallel (learned range)",
    "UnCLIP, Kandinsky 2.2 prior",
    "UnCLIP, Karlo decoder (learned range)",
    "Euler",
    "Euler, v-prediction, Karras",
    "Euler ancestral",
    "LMS",
    "Heun",
    "Heun, clip_sample",
    "KDPM2 ancestral",
    "LCM",
    "EDM Euler",
]
"""Schedulers that return their prediction."""

FLOW = [
    "Flow matching Euler, shift 3 (SD3)",
    "Flow matching Euler, dynamic shift (FLUX)",
    "Flow matching Heun",
    "UniPC, flow",
    "DPM-Solver++ 2M, flow (Sana)",
]

NOISE_PREDICTION = Case("DPM-Solver", "DPMSolverMultistepScheduler", {**SD, **SIGMA_MIN, "algorithm_type": "dpmsolver"})

NOT_TOLD = [
    *(BY_NAME[name] for name in ("PNDM, Stable Diffusion 1.5 (PLMS)", "PNDM with Runge-Kutta warm-up")),
    BY_NAME["DEIS, order 3"],
    NOISE_PREDICTION,
    Case("UniPC", "UniPCMultistepScheduler", {**SD, **SIGMA_MIN, "predict_x0": False}),
]
"""Schedulers that neither return nor remember one: what their output means is in their configuration."""

REMEMBERING = [
    BY_NAME[name]
    for name in (
        "DPM-Solver++ 2M",
        "DPM-Solver++ 3M",
        "DPM-Solver++ 2S",
        "UniPC bh2",
        "SA-Solver",
        "EDM DPM-Solver++ 2M",
        "Flow matching Euler, shift 3 (SD3)",
        "Helios, one stage (UniPC)",
        "TCD",
    )
]


def predicted_by(case: Case) -> Predictions:
    return predictions(case.make(), step_kwargs=case.step_kwargs).to("cpu", torch.float64)


def random(case: Case, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, case.channels, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", RETURNING)
def test_it_is_what_the_scheduler_returns(name):
    case = BY_NAME[name]
    ours, scheduler = predicted_by(case), case.make()
    generator = torch.Generator().manual_seed(1)
    takes = inspect.signature(scheduler.step).parameters
    compared = 0
    for k in range(len(ours.defined)):
        latent = random(case, generator) * (1.0 if k % 2 else 20.0)
        output, variance = random(case, generator), random(case, generator).tanh()
        given = torch.cat([output, variance], 1) if case.learned else output
        options = dict(case.step_kwargs)
        if "generator" in takes:
            options["generator"] = torch.Generator()
        if "prev_timestep" in takes and "prev_timestep" not in options:
            options["prev_timestep"] = next(iter(scheduler.timesteps[k + 1 :]), None)
        scheduler.scale_model_input(latent, scheduler.timesteps[k])
        result = scheduler.step(given, scheduler.timesteps[k], latent, **options)
        theirs = result.denoised if hasattr(result, "denoised") else result.pred_original_sample
        if ours.defined[k]:
            found = ours(latent, output, torch.full((2,), k))
            assert (found - theirs).abs().max() <= 2e-5 * max(1.0, float(theirs.abs().max())), k
            compared += 1
    assert compared >= len(ours.defined) - 1


@pytest.mark.parametrize("name", FLOW)
def test_in_flow_matching_it_is_the_end_of_the_line(name):
    case = BY_NAME[name]
    ours, sigmas = predicted_by(case), case.make().sigmas
    generator = torch.Generator().manual_seed(2)
    for k in range(len(ours.defined)):
        image, noise = random(case, generator), random(case, generator)
        latent = (1.0 - sigmas[k]) * image + sigmas[k] * noise
        assert ours.defined[k]
        assert (ours(latent, noise - image, torch.full((2,), k)) - image).abs().max() < 1e-5


@pytest.mark.parametrize("case", NOT_TOLD + REMEMBERING, ids=lambda case: case.name)
def test_a_model_that_always_predicts_one_image_ends_with_it(case):
    """A witness that knows no formula: outputs that mean the same image at each step lead to that image."""
    ours, table = predicted_by(case), compile_sampler(case.make(), step_kwargs=case.step_kwargs)
    assert all(ours.defined)
    generator = torch.Generator().manual_seed(3)
    image = random(case, generator)
    state = torch.zeros(2, table.n_state, *image.shape[1:], dtype=torch.float64)
    state[:, 0] = random(case, generator) * table.init_noise_sigma
    for k in range(table.n_steps):
        step = torch.full((2,), k)
        output = (image - ours.of_latent[k] * state[:, 0]) / ours.of_output[k]
        assert (ours(state[:, 0], output, step) - image).abs().max() < 1e-5
        noise = torch.randn(2, table.n_noise, *image.shape[1:], generator=generator, dtype=torch.float64)
        state = table.update(state, output, noise, step)
    last_noise = 0.05  # schedulers end at their smallest noise, a few of them not at 0
    assert (state[:, 0] - image).abs().max() < last_noise * float(image.abs().max())


def test_lanes_at_different_steps():
    ours = predicted_by(BY_NAME["DDIM, thresholding"])
    generator = torch.Generator().manual_seed(4)
    latent, output = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    steps = torch.tensor([0, 7, 19])
    together = ours(latent, output, steps)
    for lane in range(3):
        alone = ours(latent[lane : lane + 1], output[lane : lane + 1], steps[lane : lane + 1])
        assert torch.equal(together[lane : lane + 1], alone)


def test_where_nothing_tells_there_is_none():
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(5)
    assert predictions(scheduler).defined == (False,) * 5
    churning = BY_NAME["Euler, s_churn 5"]  # it adds noise first: its prediction is not that of the latent
    assert not any(predicted_by(churning).defined)
    infinite = predicted_by(BY_NAME["DDIM, zero terminal SNR, epsilon, clip_sample"])
    assert infinite.defined == (False, *[True] * 19)
    assert infinite.of_output[0] == 0.0
    amplified = predicted_by(BY_NAME["UnCLIP, Karlo decoder (learned range)"])
    assert amplified.defined[0] is False  # a difference, times 20,000
    assert all(amplified.defined[1:])


def test_a_prediction_of_more_than_latent_and_output_is_none():
    class Doubled(DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True):
            result = super().step(model_output, timestep, sample)
            result.pred_original_sample = 2 * result.pred_original_sample
            return result

    class Breaking(DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True):
            if return_dict and timestep < 500:
                raise ValueError("no result")
            return super().step(model_output, timestep, sample, return_dict=return_dict)

    class Remembering(PNDMScheduler):
        def scale_model_input(self, sample, *args):
            return sample + 0.5 * self.ets[-1] if self.ets else sample

    for make, clip, defined in (
        (DDIMScheduler, {"clip_sample": True}, (True,) * 6),
        (Doubled, {"clip_sample": False}, (True,) * 6),
        (Doubled, {"clip_sample": True}, (False,) * 6),  # a clip and then more
        (Breaking, {}, (True, True, *[False] * 4)),
        (PNDMScheduler, {"skip_prk_steps": True}, (True,) * 7),
        (Remembering, {"skip_prk_steps": True}, (True, *[False] * 6)),
    ):
        scheduler = make(**SD, **clip)
        scheduler.set_timesteps(6)
        assert predictions(scheduler).defined == defined


def test_the_algorithms_of_one_scheduler_predict_the_same():
    """DPM-Solver remembers noise, DPM-Solver++ images; UniPC either. What they predict is the same."""
    both = []
    for make, options in (
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver"}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        (UniPCMultistepScheduler, {"predict_x0": False}),
        (UniPCMultistepScheduler, {"predict_x0": True}),
    ):
        scheduler = make(**SD, **SIGMA_MIN, **options)
        scheduler.set_timesteps(12)
        both.append(predictions(scheduler))
    for other in both[1:]:
        assert torch.allclose(other.of_latent, both[0].of_latent, rtol=1e-5)
        assert torch.allclose(other.of_output, both[0].of_output, rtol=1e-5)
