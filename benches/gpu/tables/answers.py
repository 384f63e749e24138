"""What a user asks first, answered with figures of the other tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import roofline
from released import MODELS
from results import EAGER, GRAPH
from roofline import DEVICES, Device

from .common import BATCH, Paper, number
from .plans import SETS, ends
from .speed import NEAR, enough, faster_below

COMPARED = ("H100", "RTX 4090")
"""Devices that stand for a large and a small one, by their words."""


def measured(paper: Paper) -> str:
    """Where the measured values of this page come from."""
    if not paper.measured.device:
        return "Nothing is measured here; everything is predicted."
    return f"Measured on: {paper.measured.device}, {paper.measured.date}, with random weights."


def answers(paper: Paper) -> str:
    """One point a question."""
    large, small = (next(one for one in DEVICES if one.words == words) for words in COMPARED)
    told = [_worth(paper), _which(paper, large, small), _batch(paper, large, small), _graphs(paper, large, small)]
    return "\n".join(textwrap.fill(one, 118, initial_indent="* ", subsequent_indent="  ") for one in told)


def _worth(paper: Paper) -> str:
    fills = [one for name in SETS for one in paper.of(name, 1.0, "depth") if one.batch_size == BATCH]
    made = [ends(paper, one) for one in fills]
    least, most = (choose(made, key=lambda one: one.speed_up) for choose in (min, max))
    told = f" (measured: {most.found['speed-up']:.1f})" if most.found else ""
    mine = roofline.device_of(paper.sets.device)
    assert mine is not None
    return (
        "**What speed-up?** HSD leaves out a share of the denoiser's work that depends on the prompts, not on the GPU: "
        f"with Kandinsky 2.2 on an {mine.title}, {least.fill.savings:.0%} left out should make a set "
        f"{least.speed_up:.1f} times as fast from prompts to images, and {most.fill.savings:.0%} left out "
        f"{most.speed_up:.1f} times{told}."
    )


def _which(paper: Paper, large: Device, small: Device) -> str:
    model = paper.models["sdxl"]
    ms = [number(roofline.seconds(model.work, one, model.known, 8) * 1e3) for one in (large, small)]
    over = [MODELS[name].title for name, one in paper.models.items() if not roofline.fits(one.work, small)]
    return (
        f"**Which GPU?** A step of 8 images of SDXL should take {ms[0]} ms on an {large.title} and {ms[1]} ms on an "
        f"{small.title}, whose {small.memory / 1e9:.0f} GB are too few for {', '.join(over[:-1])} and {over[-1]} in "
        "half precision."
    )


def _batch(paper: Paper, large: Device, small: Device) -> str:
    models = [paper.models[name] for name in ("kandinsky", "sdxl", "sd35")]
    told = [f"{enough(one, large)} or {enough(one, small)} ({MODELS[one.name].title})" for one in models]
    return (
        f"**Which batch size?** On an {large.title} or an {small.title}, {', '.join(told[:-1])} and {told[-1]} should "
        f'be enough: more make an image at most {NEAR:.0%} faster. `batch_size="auto"` finds the best one.'
    )


def _graphs(paper: Paper, large: Device, small: Device) -> str:
    model = paper.models["kandinsky"]
    eager, graph = (paper.measured.seconds("kandinsky", mode) for mode in (EAGER, GRAPH))
    told = ""
    if lanes := sorted(set(eager) & set(graph)):
        gains = [f"{eager[n] / graph[n]:.1f} times as fast with {_images(n)}" for n in (lanes[0], lanes[-1])]
        told = f" (measured on the {paper.measured.device}: {', '.join(gains)})"
    sizes = [_images(faster_below(model, one)) for one in (large, small)]
    return (
        f"**CUDA graphs or not?** Leave them on: with Kandinsky 2.2 they should be faster in calls of up to {sizes[0]} "
        f"on an {large.title} and {sizes[1]} on an {small.title}, and as fast in larger ones{told}."
    )


def _images(lanes: int) -> str:
    return "1 image" if lanes == 1 else f"{lanes} images"


TABLES: dict[str, Callable[[Paper], str]] = {"measured": measured, "answers": answers}
