"""The options in the signatures of schedulers, as configurations, and the outcome of each.

``python tests/sampler_options.py`` prints the counts; ``python tests/sampler_options.py 2`` tries every pair.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import random
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch

import tiny
from hsd.errors import UnsupportedScheduler
from sampler_cases import CASES, Case, Witness, measure, model_outputs

STEPS = 5  # fewer than 15, so that lower_order_final and similar options have an effect
AMPLITUDE = 1.0  # clips have an effect: early predictions are the model's output times a noise level
TOLERANCE = 1e-6  # of the latent's size
PLACES = {"config": "__init__", "timesteps": "set_timesteps", "step_kwargs": "step"}

# Values to try where the annotation does not list them: strings, numbers and objects.
VALUES: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "interpolation_type": ("linear", "log_linear"),
    "algorithm_type": ("data_prediction", "noise_prediction"),  # SA-Solver; the others list theirs
    "variance_type": ("learned", "learned_range"),
    "scheduler_type": ("unipc", "euler"),
    "solver_type": ("bh1", "bh2"),
    **dict.fromkeys(("solver_order", "predictor_order", "corrector_order"), (1, 2, 3)),
    "order": (2,),
    "steps_offset": (1,),
    "num_train_timesteps": (500,),
    "original_inference_steps": (100,),
    "disable_corrector": ([0, 2],),
    "tau_func": (lambda t: 0.5,),
    "eta": (0.0, 0.5, 1.0),
    **dict.fromkeys(("clip_sample_range", "sample_max_value", "sigma_data"), (2.0,)),
    **dict.fromkeys(("shift", "flow_shift"), (3.0,)),
    **dict.fromkeys(("s_churn", "rho", "timestep_scaling"), (5.0,)),
    "scaler": (0.5, 2.0),
    "shift_terminal": (0.02,),
    "dynamic_thresholding_ratio": (0.9,),
    "lambda_min_clipped": (-5.1,),
    "sigma_min": (0.03,),
    "sigma_max": (10.0,),
    "s_noise": (1.1,),
    "s_tmin": (1.0,),
    "s_tmax": (5.0,),
    "snr_shift_scale": (1.0,),
    "stages": (1,),
    "stage_index": (1,),
    "strength": (0.6,),
    "mu": (1.15,),
    "max_timesteps": (1.5,),
    "intermediate_timesteps": (1.1,),
    "sigmas": ("custom",),
    "timesteps": ("custom",),
}

# Other options that an option needs to have an effect, if the scheduler has them.
NEEDS: dict[str, dict[str, Any]] = {
    "algorithm_type": {"final_sigmas_type": "sigma_min"},
    "clip_sample_range": {"clip_sample": True},
    "sample_max_value": {"thresholding": True},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "flow_shift": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "use_flow_sigmas": {"prediction_type": "flow_prediction"},
    "shift_terminal": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "sigmas": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "mu": {"use_dynamic_shifting": True, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "use_dynamic_shifting": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "time_shift_type": {"use_dynamic_shifting": True},
    "s_tmin": {"s_churn": 5.0},
    "s_tmax": {"s_churn": 5.0},
    "s_noise": {"s_churn": 5.0},
}

Option = tuple[str, str, Any]  # where it goes (a key of PLACES), its name, its value


class Outcome(Enum):
    """The outcome of a configuration."""

    AGREES = "the table agrees with the scheduler"
    REFUSED = "HSD refuses what diffusers can do"
    IMPOSSIBLE = "diffusers itself raises, or makes inf or nan"
    WRONG = "wrong"


# Refusals of configurations that diffusers runs; each is in REFUSED of sampler_refused.py.
TRUE_REASONS = ('variance_type="learned" makes the noise a root of the model output',)


@dataclass(frozen=True)
class Tried:
    """A configuration, and its outcome."""

    case: Case
    outcome: Outcome
    detail: str


def scheduler_classes() -> list[type]:
    """Return the diffusers classes that HSD compiles in at least one of its documented configurations."""
    return sorted({type(case.make()) for case in CASES}, key=lambda cls: cls.__name__)


def options(cls: type) -> list[Option]:
    """Return every value other than its default of every option in the signatures of `cls`."""
    found: list[Option] = []
    for place, method in PLACES.items():
        for name, parameter in inspect.signature(getattr(cls, method)).parameters.items():
            if name == "return_dict":
                continue
            values = _listed(parameter.annotation) or VALUES.get(name, ())
            if isinstance(parameter.default, bool):
                values = (True, False)
            found += [(place, name, value) for value in values if value != parameter.default]
    return found


def _listed(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a type annotation lists."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return tuple(value for part in typing.get_args(annotation) for value in _listed(part))


def configured(cls: type, chosen: tuple[Option, ...]) -> Case:
    """Return `cls` with the `chosen` options, what they need, and otherwise the defaults of tests and signatures."""
    offered = {place: inspect.signature(getattr(cls, method)).parameters for place, method in PLACES.items()}
    given: dict[str, dict[str, Any]] = {"config": {}, "timesteps": {}, "step_kwargs": {}}
    if "beta_start" in offered["config"]:
        given["config"].update(tiny.SD_BETAS)
    given["timesteps"]["num_inference_steps"] = 2 if cls is diffusers.SCMScheduler else STEPS
    if "stage_index" in offered["timesteps"]:
        given["timesteps"]["stage_index"] = 0
    for _, name, _ in chosen:
        for needed, value in NEEDS.get(name, {}).items():
            if needed == "prediction_type" and "use_flow_sigmas" not in offered["config"]:
                continue
            for place in ("config", "step_kwargs"):
                if needed in offered[place]:
                    given[place][needed] = value
    for place, name, value in chosen:
        given[place][name] = value
    if given["config"].get("use_dynamic_shifting"):
        given["timesteps"].setdefault("mu", 1.15)
    for name in ("sigmas", "timesteps"):
        if name in given["timesteps"]:
            given["timesteps"] |= _custom(cls, name)
            if offered["timesteps"]["num_inference_steps"].default is None:
                given["timesteps"].pop("num_inference_steps", None)
    config = given["config"]
    return Case(
        name=f"{cls.__name__} {config | given['timesteps'] | given['step_kwargs']}",
        scheduler=lambda **_: copy.deepcopy(_constructed(cls, _Config(config))),
        timesteps=given["timesteps"],
        step_kwargs=given["step_kwargs"],
        channels=3,  # schedulers that drop a variance keep 3
        learned=config.get("variance_type") in ("learned", "learned_range"),
        timestep_a_row=cls is diffusers.DDPMWuerstchenScheduler,
        promotes_noise=cls is diffusers.FlowMatchLCMScheduler,
    )


class _Config(dict[str, Any]):
    """Arguments as a key, because some constructors take half a second."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items(), key=lambda item: item[0])))


@cache
def _constructed(cls: type, config: _Config) -> Any:
    return cls(**config)


def _custom(cls: type, name: str) -> dict[str, Any]:
    """Return arguments of ``set_timesteps`` with custom sigmas or timesteps, of the form that `cls` takes."""
    match cls.__name__, name:
        case "SCMScheduler", _:
            borders = {"timesteps": [1.57, 0.9, 0.0], "max_timesteps": None, "intermediate_timesteps": None}
            return {**borders, "num_inference_steps": 2}
        case "DDPMWuerstchenScheduler", _:
            return {"timesteps": [1.0, 0.7, 0.4, 0.0]}
        case "CMStochasticIterativeScheduler", _:
            return {"timesteps": [22, 15, 8, 0]}
        case "EDMEulerScheduler", _:
            return {"sigmas": torch.linspace(80, 0, STEPS)}  # from the noise level of its first latent
        case "EulerDiscreteScheduler", "sigmas":
            return {"sigmas": [*np.geomspace(14, 0.03, STEPS).tolist(), 0.0]}
        case "MiniMaxH3Scheduler", _:
            return {"sigmas": np.linspace(1, 0, STEPS).tolist()}
        case (("HeliosScheduler" | "UniPCMultistepScheduler"), _):  # no lists
            return {"sigmas": np.linspace(0.999, 0, STEPS + 1)[:-1]}
        case (
            ("FlowMapEulerDiscreteScheduler" | "FlowMatchEulerDiscreteScheduler" | "FlowMatchLCMScheduler"),
            "timesteps",
        ):
            return {"timesteps": np.linspace(1000, 50, STEPS).tolist()}
        case _, "sigmas":
            return {"sigmas": np.linspace(1, 1 / STEPS, STEPS).tolist()}
        case _:
            return {"timesteps": [999, 759, 499, 259]}


def attempt(case: Case) -> Tried:
    """Compile and measure the configuration, and distinguish HSD's failures from those of diffusers."""
    try:
        case.make()
    except Exception as error:
        return Tried(case, Outcome.IMPOSSIBLE, f"construction: {type(error).__name__}: {error}")
    try:
        table = case.compiled
    except (UnsupportedScheduler, ValueError) as error:
        broken = alone(case)
        if broken:
            return Tried(case, Outcome.IMPOSSIBLE, broken)
        true = any(reason in str(error) for reason in TRUE_REASONS)
        return Tried(case, Outcome.REFUSED if true else Outcome.WRONG, str(error))
    error = measure(case, torch.float64, AMPLITUDE)
    outcome = Outcome.AGREES if error < TOLERANCE else Outcome.WRONG
    return Tried(case, outcome, f"{table}: {error:.1e} of the latent's size")


def alone(case: Case) -> str:
    """Run the scheduler itself, and return how it fails; an empty result if it does not."""
    witness = Witness(case, [3, 7])
    outputs = model_outputs(case, torch.float64, AMPLITUDE)
    sample = next(outputs) * float(getattr(witness.scheduler, "init_noise_sigma", 1.0))
    borders = isinstance(witness.scheduler, (diffusers.SCMScheduler, diffusers.DDPMWuerstchenScheduler))
    try:
        for k in range(len(witness.scheduler.timesteps) - borders):
            given = next(outputs)
            witness.model_input(k, sample)
            sample = witness.step(k, given if case.learned else given.chunk(2, 1)[0], sample)
            if not bool(sample.isfinite().all()):
                return f"inf or nan at step {k}"
    except Exception as error:
        return f"step {k}: {type(error).__name__}: {error}"
    return ""


def configurations(cls: type, together: int = 3, samples: int = 8) -> Iterator[Case]:
    """Yield `cls` with its defaults, with each single option, and with `samples` random sets of `together` options."""
    offered = options(cls)
    yield configured(cls, ())
    for option in offered:
        yield configured(cls, (option,))
    chooser = random.Random(0)
    for _ in range(samples if len(offered) >= together else 0):
        chosen = tuple(chooser.sample(offered, together))
        if len({option[:2] for option in chosen}) == together:
            yield configured(cls, chosen)


def pairs(cls: type) -> Iterator[Case]:
    """Yield `cls` with every two options."""
    for first, second in itertools.combinations(options(cls), 2):
        if first[:2] != second[:2]:
            yield configured(cls, (first, second))


def main(every_pair: bool) -> None:
    """Print the outcomes of the configurations of every class, and those that are wrong."""
    total: Counter[Outcome] = Counter()
    for cls in scheduler_classes():
        tried = [attempt(case) for case in (pairs(cls) if every_pair else configurations(cls))]
        counts = Counter(each.outcome for each in tried)
        total += counts
        print(f"{cls.__name__:36s}", *(f"{outcome.name.lower()} {counts[outcome]:4d}" for outcome in Outcome))
        for each in tried:
            if each.outcome is Outcome.WRONG:
                print(f"    {each.case.name}: {each.detail}")
    print(f"{'all':36s}", *(f"{outcome.name.lower()} {total[outcome]:4d}" for outcome in Outcome))


if __name__ == "__main__":
    main(sys.argv[1:] == ["2"])
