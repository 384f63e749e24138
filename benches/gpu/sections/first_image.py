"""Time to the first image of a set, depth first, compared with a single image."""

from __future__ import annotations

import contextlib
import time

import shapes
from bench import Bench
from measure import synchronize
from plans import PromptSet

import hsd
from hsd.models.encode import remember

NAME = "first_image"


def run(bench: Bench) -> None:
    """Seconds from the call of ``hsd.stream`` to its first image, without encoding; for the first two sets."""
    for prompts in bench.sets[:2]:
        _set(bench, prompts)


def _set(bench: Bench, prompts: PromptSet) -> None:
    args, report, model = bench.args, bench.report, bench.decoder
    lanes = args.batch_size
    one = hsd.compile(prompts.prompts[:1], args.tau, embeddings=_first(prompts.embeddings), steps=args.steps)
    plan = prompts.plan(args.tau, args.steps)
    _first_image(bench, one)  # one-time work
    taken = {
        "one image alone": _first_image(bench, one),
        "first of the set": _first_image(bench, plan),
        "calls of a full batch": args.steps * bench.best_row([lanes]) * lanes,
    }
    report.say(f"\n== {NAME}: {model.name}, {prompts.name} ({len(plan)} prompts), batch {lanes}, order depth")
    report.say(f"{'first image of the set':40}{taken['first of the set']:9.3f} s")
    report.say(f"{'one image alone':40}{taken['one image alone']:9.3f} s")
    label = f"{args.steps} calls of {lanes} lanes, denoiser alone"
    report.say(f"{label:40}{taken['calls of a full batch']:9.3f} s")
    report.add(NAME, prompts.name, {"prompts": len(plan), "batch_size": lanes, "seconds": taken})


def _first(embeddings: object) -> object:
    return None if embeddings is None else embeddings[:1]


def _first_image(bench: Bench, plan: hsd.Plan) -> float:
    model = bench.decoder
    remember(plan, model.encoding_key(), shapes.conditioning(model, plan.prompts, plan.seeds))
    synchronize(bench.device)
    start = time.perf_counter()
    images = hsd.stream(plan, model, batch_size=bench.args.batch_size, order="depth", cuda_graphs=True)
    with contextlib.closing(images):
        image = next(iter(images))
        taken = time.perf_counter() - start
    bench.report.check(f"{NAME}: pixels too many or too few", abs(image.pil.size[1] - model.height), 0)
    return taken
