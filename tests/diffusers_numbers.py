"""Numbers that diffusers' own tests of its schedulers expect: nobody here chose or computed them.

They stand in ``tests/schedulers/test_scheduler_<name>.py`` of huggingface/diffusers at commit `COMMIT`, where each
loop runs a scheduler on a fixed latent with a model that returns ``sample * t / (t + 1)``, and asserts the sum and the
mean of the absolute values of what comes out. Loops that stand there twice (``test_full_loop_device``,
``test_switch``) are here once. So are the two loops of ``ddpm_parallel`` over 1,000 steps, which are ``ddpm``'s: the
scheduler itself is held to the two shorter numbers of its file.

What cannot be run on a sampler table:

* ``ipndm: full_loop_no_noise`` goes back to the first step half way and keeps the scheduler's memory. No pipeline does
  that, and a table's first step has no memory.
* ``score_sde_ve: full_loop_no_noise`` calls ``step_pred`` and ``step_correct``; the scheduler has no ``step``.
* ``dpm_sde``: the scheduler draws from a Brownian tree of its own, and is refused (docs/samplers.md).
* ``vq_diffusion``, ``block_refinement``, ``discrete_ddim`` and ``entropy_bound`` sample discrete tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

COMMIT = "58eb52c0803ea9af3abec60841c2a093bdf1f951"  # 0.40.0.dev0, August 2026; they hold with 0.42.1 too

LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LONG = LINEAR | {"num_train_timesteps": 1100}
LATENT = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
ALPHA_ONE = {"set_alpha_to_one": True, "beta_start": 0.01}
NOT_ALPHA_ONE = {"set_alpha_to_one": False, "beta_start": 0.01}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}


Scales = Literal["copy", "kept", "nothing"]
COPY: Scales = "copy"
"""A loop that gives the model what ``scale_model_input`` returns, as pipelines do."""
KEPT: Scales = "kept"
"""A loop that does so, and goes on with that in place of the latent, which pipelines do not."""
NOTHING: Scales = "nothing"
"""A loop that gives the model the latent, and does not multiply the first one by ``init_noise_sigma`` either."""


@dataclass(frozen=True)
class Loop:
    """One loop of diffusers' tests, and what it has to come to."""

    name: str
    """``<file>: <test>``, without ``test_scheduler_`` and ``test_``."""
    scheduler: str
    config: dict[str, Any]
    mean: float
    sum: float | None = None
    """None where the test asserts the mean only."""
    timesteps: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": 10})
    """Arguments of ``set_timesteps``."""
    step_kwargs: dict[str, Any] = field(default_factory=dict)
    begin: int = 0
    """The evaluation that the loop begins with."""
    noised: bool = True
    """Whether noise is added to the latent first, where the loop begins later, as image-to-image does."""
    scales: Scales = NOTHING
    latent: tuple[int, ...] = (3, 8, 8)
    sum_tolerance: float = 1e-2
    mean_tolerance: float = 1e-3


DPM = LINEAR | {"solver_order": 2, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
DPM_INVERSE = LINEAR | {"solver_order": 2, "lower_order_final": False}
SINGLE = LINEAR | {"solver_order": 2, "final_sigmas_type": "sigma_min"}
UNIPC = LINEAR | {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "sigma_min"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0}
EDM_DPM = EDM | {
    "sigma_data": 0.5,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "lower_order_final": False,
    "euler_at_final": False,
    "final_sigmas_type": "sigma_min",
}
UNCLIP = {"num_train_timesteps": 1000, "variance_type": "fixed_small_log", "clip_sample_range": 1.0}
CM = {"num_train_timesteps": 201, "sigma_min": 0.002, "sigma_max": 80.0}
ALL = {"num_inference_steps": 1000}
ONE = {"num_inference_steps": 1}
LINE = (3, 8)


def _ddim(file: str, scheduler: str) -> list[Loop]:
    """The loops of DDIM and of its parallel version, which have the same numbers."""
    return [
        Loop(f"{file}: full_loop_no_noise", scheduler, LINEAR, 0.223967, 172.0067),
        Loop(f"{file}: full_loop_with_v_prediction", scheduler, LINEAR | V, 0.0684, 52.5302),
        Loop(f"{file}: full_loop_with_set_alpha_to_one", scheduler, LINEAR | ALPHA_ONE, 0.1951, 149.8295),
        Loop(f"{file}: full_loop_with_no_set_alpha_to_one", scheduler, LINEAR | NOT_ALPHA_ONE, 0.1941, 149.0784),
        Loop(f"{file}: full_loop_with_noise", scheduler, LINEAR, 0.4616, 354.5418, begin=8),
    ]


LOOPS = [
    *_ddim("ddim", "DDIMScheduler"),
    *_ddim("ddim_parallel", "DDIMParallelScheduler"),
    Loop("ddim_inverse: full_loop_no_noise", "DDIMInverseScheduler", LINEAR, 0.8746, 671.6816),
    Loop("ddim_inverse: full_loop_with_v_prediction", "DDIMInverseScheduler", LINEAR | V, 1.8154, 1394.2185),
    Loop(
        "ddim_inverse: full_loop_with_set_alpha_to_one",
        "DDIMInverseScheduler",
        LINEAR | ALPHA_ONE,
        0.7031,
        539.9622,
    ),
    Loop(
        "ddim_inverse: full_loop_with_no_set_alpha_to_one",
        "DDIMInverseScheduler",
        LINEAR | NOT_ALPHA_ONE,
        0.7066,
        542.6722,
    ),
    Loop("ddpm: full_loop_no_noise", "DDPMScheduler", LINEAR, 0.3372, 258.9606, timesteps=ALL),
    Loop("ddpm: full_loop_with_v_prediction", "DDPMScheduler", LINEAR | V, 0.2631, 202.0296, timesteps=ALL),
    Loop("ddpm: full_loop_with_noise", "DDPMScheduler", LINEAR, 0.5051, 387.9466, timesteps=ALL, begin=998),
    Loop(
        "ddpm_parallel: full_loop_with_noise",
        "DDPMParallelScheduler",
        LINEAR,
        0.5051,
        387.9466,
        timesteps=ALL,
        begin=998,
    ),
    Loop("unclip: full_loop", "UnCLIPScheduler", UNCLIP, 0.3284743, 252.2682495, timesteps=ALL),
    Loop(
        "unclip: full_loop_skip_timesteps",
        "UnCLIPScheduler",
        UNCLIP,
        0.3362038,
        258.2044983,
        timesteps={"num_inference_steps": 25},
    ),
    Loop("dpm_multi: full_loop_no_noise", "DPMSolverMultistepScheduler", DPM, 0.3301),
    Loop("dpm_multi: full_loop_no_noise_thres", "DPMSolverMultistepScheduler", DPM | THRESHOLD, 1.1364),
    Loop("dpm_multi: full_loop_with_v_prediction", "DPMSolverMultistepScheduler", DPM | V, 0.2251),
    Loop("dpm_multi: full_loop_with_karras_and_v_prediction", "DPMSolverMultistepScheduler", DPM | V | KARRAS, 0.2096),
    Loop(
        "dpm_multi: full_loop_with_lu_and_v_prediction",
        "DPMSolverMultistepScheduler",
        DPM | V | {"use_lu_lambdas": True},
        0.1554,
    ),
    Loop("dpm_multi: full_loop_with_noise", "DPMSolverMultistepScheduler", DPM, 0.4146, 318.4111, begin=5),
    Loop("dpm_multi_inverse: full_loop_no_noise", "DPMSolverMultistepInverseScheduler", DPM_INVERSE, 0.7047),
    Loop(
        "dpm_multi_inverse: full_loop_no_noise_thres",
        "DPMSolverMultistepInverseScheduler",
        DPM_INVERSE | THRESHOLD,
        19.8933,
    ),
    Loop(
        "dpm_multi_inverse: full_loop_with_v_prediction",
        "DPMSolverMultistepInverseScheduler",
        DPM_INVERSE | V,
        1.5194,
    ),
    Loop(
        "dpm_multi_inverse: full_loop_with_karras_and_v_prediction",
        "DPMSolverMultistepInverseScheduler",
        DPM_INVERSE | V | KARRAS,
        1.7833,
        mean_tolerance=2e-3,
    ),
    Loop("dpm_single: full_loop_no_noise", "DPMSolverSinglestepScheduler", SINGLE, 0.2791),
    Loop("dpm_single: full_loop_with_karras", "DPMSolverSinglestepScheduler", SINGLE | KARRAS, 0.2248),
    Loop("dpm_single: full_loop_with_v_prediction", "DPMSolverSinglestepScheduler", SINGLE | V, 0.1453),
    Loop(
        "dpm_single: full_loop_with_karras_and_v_prediction",
        "DPMSolverSinglestepScheduler",
        SINGLE | V | KARRAS,
        0.0649,
    ),
    Loop("dpm_single: full_loop_with_noise", "DPMSolverSinglestepScheduler", SINGLE, 0.3505, 269.2187, begin=5),
    Loop(
        "dpm_single: full_uneven_loop",
        "DPMSolverSinglestepScheduler",
        SINGLE,
        0.2574,
        timesteps={"num_inference_steps": 50},
        begin=3,
        noised=False,
    ),
    Loop("deis: full_loop_no_noise", "DEISMultistepScheduler", LINEAR | {"solver_order": 2}, 0.23916),
    Loop("deis: full_loop_with_v_prediction", "DEISMultistepScheduler", LINEAR | {"solver_order": 2} | V, 0.091),
    Loop(
        "deis: full_loop_with_noise",
        "DEISMultistepScheduler",
        LINEAR | {"solver_order": 2},
        0.41054,
        315.3016,
        begin=8,
    ),
    Loop("unipc: full_loop_no_noise", "UniPCMultistepScheduler", UNIPC, 0.2464),
    Loop("unipc: full_loop_with_karras", "UniPCMultistepScheduler", UNIPC | KARRAS, 0.2925),
    Loop("unipc: full_loop_with_v_prediction", "UniPCMultistepScheduler", UNIPC | V, 0.1014),
    Loop("unipc: full_loop_with_karras_and_v_prediction", "UniPCMultistepScheduler", UNIPC | V | KARRAS, 0.1966),
    Loop("unipc: full_loop_with_noise", "UniPCMultistepScheduler", UNIPC, 0.4109, 315.5757, begin=8),
    Loop("unipc, 1D: full_loop_no_noise", "UniPCMultistepScheduler", UNIPC, 0.2441, latent=LINE),
    Loop("unipc, 1D: full_loop_with_karras", "UniPCMultistepScheduler", UNIPC | KARRAS, 0.2898, latent=LINE),
    Loop("unipc, 1D: full_loop_with_v_prediction", "UniPCMultistepScheduler", UNIPC | V, 0.1014, latent=LINE),
    Loop(
        "unipc, 1D: full_loop_with_karras_and_v_prediction",
        "UniPCMultistepScheduler",
        UNIPC | V | KARRAS,
        0.1944,
        latent=LINE,
    ),
    Loop("unipc, 1D: full_loop_with_noise", "UniPCMultistepScheduler", UNIPC, 0.4072, 39.0870, begin=8, latent=LINE),
    Loop(
        "sasolver: full_loop_no_noise",
        "SASolverScheduler",
        LONG,
        0.43931546807289124,
        337.394287109375,
        scales=KEPT,
    ),
    Loop(
        "sasolver: full_loop_with_v_prediction",
        "SASolverScheduler",
        LONG | V,
        0.2514931857585907,
        193.1467742919922,
        scales=KEPT,
    ),
    Loop(
        "sasolver: full_loop_device_karras_sigmas",
        "SASolverScheduler",
        LONG | KARRAS,
        1.0901764631271362,
        837.2554931640625,
        scales=KEPT,
        mean_tolerance=1e-2,
    ),
    Loop("pndm: full_loop_no_noise", "PNDMScheduler", LINEAR, 0.2580, 198.1318),
    Loop("pndm: full_loop_with_v_prediction", "PNDMScheduler", LINEAR | V, 0.0878, 67.3986),
    Loop("pndm: full_loop_with_set_alpha_to_one", "PNDMScheduler", LINEAR | ALPHA_ONE, 0.2995, 230.0399),
    Loop("pndm: full_loop_with_no_set_alpha_to_one", "PNDMScheduler", LINEAR | NOT_ALPHA_ONE, 0.2434, 186.9482),
    Loop("euler: full_loop_no_noise", "EulerDiscreteScheduler", LONG, 0.0131, 10.0807, scales=KEPT),
    Loop(
        "euler: full_loop_with_v_prediction",
        "EulerDiscreteScheduler",
        LONG | V,
        2.2676e-06,
        0.0002,
        scales=KEPT,
    ),
    Loop(
        "euler: full_loop_device_karras_sigmas",
        "EulerDiscreteScheduler",
        LONG | KARRAS,
        0.16213932633399963,
        124.52299499511719,
        scales=KEPT,
    ),
    Loop("euler: full_loop_with_noise", "EulerDiscreteScheduler", LONG, 74.3007, 57062.9297, scales=KEPT, begin=8),
    Loop(
        "euler_ancestral: full_loop_no_noise",
        "EulerAncestralDiscreteScheduler",
        LONG,
        0.1983,
        152.3192,
        scales=KEPT,
    ),
    Loop(
        "euler_ancestral: full_loop_with_v_prediction",
        "EulerAncestralDiscreteScheduler",
        LONG | V,
        0.1412,
        108.4439,
        scales=KEPT,
    ),
    Loop(
        "euler_ancestral: full_loop_with_noise",
        "EulerAncestralDiscreteScheduler",
        LONG,
        73.1290,
        56163.0508,
        scales=KEPT,
        begin=8,
    ),
    Loop("heun: full_loop_no_noise", "HeunDiscreteScheduler", LONG, 0.0002, 0.1233, scales=KEPT),
    Loop(
        "heun: full_loop_with_v_prediction",
        "HeunDiscreteScheduler",
        LONG | V,
        6.1112e-10,
        4.6934e-07,
        scales=KEPT,
    ),
    Loop(
        "heun: full_loop_device_karras_sigmas",
        "HeunDiscreteScheduler",
        LONG | KARRAS,
        1.9869554535034695e-07,
        0.00015,
        scales=KEPT,
        mean_tolerance=1e-2,
    ),
    Loop("heun: full_loop_with_noise", "HeunDiscreteScheduler", LONG, 97.7538, 75074.8906, scales=KEPT, begin=16),
    Loop("kdpm2_discrete: full_loop_no_noise", "KDPM2DiscreteScheduler", LONG, 0.0266, 20.4125, scales=KEPT),
    Loop(
        "kdpm2_discrete: full_loop_with_v_prediction",
        "KDPM2DiscreteScheduler",
        LONG | V,
        6.1112e-10,
        4.6934e-07,
        scales=KEPT,
    ),
    Loop(
        "kdpm2_discrete: full_loop_with_noise",
        "KDPM2DiscreteScheduler",
        LONG,
        91.6776,
        70408.4062,
        scales=KEPT,
        begin=16,
    ),
    Loop(
        "kdpm2_ancestral: full_loop_no_noise",
        "KDPM2AncestralDiscreteScheduler",
        LONG,
        18.2030,
        13979.9433,
        scales=KEPT,
        mean_tolerance=5e-3,
    ),
    Loop(
        "kdpm2_ancestral: full_loop_with_v_prediction",
        "KDPM2AncestralDiscreteScheduler",
        LONG | V,
        0.4320,
        331.8133,
        scales=KEPT,
    ),
    Loop(
        "kdpm2_ancestral: full_loop_with_noise",
        "KDPM2AncestralDiscreteScheduler",
        LONG,
        121.2074,
        93087.3437,
        scales=KEPT,
        begin=16,
        mean_tolerance=5e-3,
    ),
    Loop("lms: full_loop_no_noise", "LMSDiscreteScheduler", LONG, 1.31, 1006.388, scales=KEPT),
    Loop("lms: full_loop_with_v_prediction", "LMSDiscreteScheduler", LONG | V, 2.2676e-06, 0.0017, scales=KEPT),
    Loop(
        "lms: full_loop_device_karras_sigmas",
        "LMSDiscreteScheduler",
        LONG | KARRAS,
        4.9648,
        3812.9927,
        scales=KEPT,
        sum_tolerance=2e-2,
    ),
    Loop("lms: full_loop_with_noise", "LMSDiscreteScheduler", LONG, 36.0204, 27663.6895, scales=KEPT, begin=8),
    Loop("lcm: full_loop_onestep", "LCMScheduler", LATENT, 0.0244, 18.7097, timesteps=ONE, sum_tolerance=1e-3),
    Loop("lcm: full_loop_multistep", "LCMScheduler", LATENT, 0.2575, 197.7616, sum_tolerance=1e-3),
    Loop(
        "tcd: full_loop_onestep_deter",
        "TCDScheduler",
        LATENT,
        0.0389,
        29.8715,
        timesteps=ONE,
        step_kwargs={"eta": 0.0},
        sum_tolerance=1e-3,
    ),
    Loop(
        "tcd: full_loop_multistep_deter",
        "TCDScheduler",
        LATENT,
        0.2359,
        181.2040,
        step_kwargs={"eta": 0.0},
        sum_tolerance=1e-3,
    ),
    Loop(
        "edm_euler: full_loop_no_noise",
        "EDMEulerScheduler",
        EDM | {"num_train_timesteps": 256},
        0.044,
        34.1855,
        scales=COPY,
        sum_tolerance=1e-3,
    ),
    Loop("edm_dpmsolver_multistep: full_loop_no_noise", "EDMDPMSolverMultistepScheduler", EDM_DPM, 0.0001),
    Loop(
        "edm_dpmsolver_multistep: full_loop_no_noise_thres",
        "EDMDPMSolverMultistepScheduler",
        EDM_DPM | THRESHOLD,
        0.0080,
    ),
    Loop("edm_dpmsolver_multistep: full_loop_with_v_prediction", "EDMDPMSolverMultistepScheduler", EDM_DPM | V, 0.0092),
    Loop(
        "edm_dpmsolver_multistep: full_loop_with_noise",
        "EDMDPMSolverMultistepScheduler",
        EDM_DPM,
        0.0106,
        8.1661,
        begin=5,
    ),
    Loop(
        "consistency_model: full_loop_no_noise_onestep",
        "CMStochasticIterativeScheduler",
        CM,
        0.2510,
        192.7614,
        timesteps=ONE,
        scales=COPY,
    ),
    Loop(
        "consistency_model: full_loop_no_noise_multistep",
        "CMStochasticIterativeScheduler",
        CM,
        0.4527,
        347.6357,
        timesteps={"timesteps": [106, 0]},
        scales=COPY,
    ),
    Loop(
        "consistency_model: full_loop_with_noise",
        "CMStochasticIterativeScheduler",
        CM,
        0.9947,
        763.9186,
        scales=COPY,
        begin=8,
    ),
]

TIMESTEPS = [
    ("ddim: steps_offset", "DDIMScheduler", LINEAR | {"steps_offset": 1}, 5, [801, 601, 401, 201, 1]),
    ("ddim_parallel: steps_offset", "DDIMParallelScheduler", LINEAR | {"steps_offset": 1}, 5, [801, 601, 401, 201, 1]),
    ("ddim_inverse: steps_offset", "DDIMInverseScheduler", LINEAR | {"steps_offset": 1}, 5, [1, 201, 401, 601, 801]),
    (
        "pndm: steps_offset",
        "PNDMScheduler",
        LINEAR | {"steps_offset": 1},
        10,
        [901, 851, 851, 801, 801, 751, 751, 701, 701, 651, 651, 601, 601, 501, 401, 301, 201, 101, 1],
    ),
    (
        "unipc: flow_and_karras_sigmas_values",
        "UniPCMultistepScheduler",
        {"sigma_min": 0.01, "sigma_max": 200.0, "use_flow_sigmas": True, "use_karras_sigmas": True},
        5,
        [995, 978, 877, 360, 9],
    ),
]
"""Test, scheduler, its configuration, the number of steps, and the timesteps that the test expects."""

BATCH_STEPS = [
    ("ddim_parallel: batch_step_no_noise", "DDIMParallelScheduler", 10, 1147.7904, 0.4982),
    ("ddpm_parallel: batch_step_no_noise", "DDPMParallelScheduler", 1000, 1153.1833, 0.5005),
]
"""Test, scheduler, the number of steps, and the sum and the mean of one step from the timesteps 0, 1 and 2 at once."""
