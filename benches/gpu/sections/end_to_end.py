"""A prompt set from text to PNG files: diffusers' pipeline, HSD in several ways, and the published method."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import published
import shapes
import torch
from bench import Bench
from measure import alone, synchronize

import hsd
from hsd.models.base import batches
from hsd.models.kandinsky22 import Kandinsky22

NAME = "end_to_end"

PUBLISHED = "published"

VARIANTS = ["eager", "graphs", "graphs+channels-last", PUBLISHED, "compile+graphs"]
"""Default. Variants that compile always run last."""


def run(bench: Bench) -> None:
    """Each variant writes all images. Its time includes encoding, denoising, decoding and writing, but not planning."""
    args, report, model = bench.args, bench.report, bench.model
    if not isinstance(model, Kandinsky22):
        report.skip(NAME, f"{args.model} has text encoders of two layers here, so that its whole would mean nothing")
        return
    prompts = bench.sets[0]
    plan = prompts.plan(args.tau, args.steps)
    ideal = 1.0 / (1.0 - plan.savings)
    report.say(
        f"\n== {NAME}: {model.name}, {prompts.name}, {len(plan)} prompts x {args.steps} steps, {model.height} px, "
        f"tau {args.tau}, {plan.savings:.1%} saved: 1/(1 - saved) is {ideal:.2f}; batch {args.batch_size}. Ratio: "
        "speed-up to that. Of alone: what prior, denoiser and decoder alone take, of the time"
    )
    parts = _Parts(bench, model)
    size = parts.best_size()
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(bench, plan, Path(folder))
        _diffusers(bench, plan, 2 * size, Path(folder) / "warm", size, steps=2)
        columns = f"{'ratio':>8}{'of alone':>10}{'encode':>9}{'denoise':>9}{'decode':>9}{'peak GiB':>9}"
        report.say(f"{'':26}{'s':>9}{'speed-up':>10}{columns}")
        runs.timed(f"diffusers, batch {size}", lambda out: _diffusers(bench, plan, len(plan), out, size), None)
        compiled = [variant for variant in args.variants if "compile" in variant]
        for variant in args.variants:
            if variant not in compiled:
                _variant(bench, plan, variant, runs, parts)
        _check(bench, plan, runs.folder / runs.first)
        for variant in compiled:  # last: compiling may take more time than is left
            _variant(bench, plan, variant, runs, parts)
    if not bench.on_gpu:
        report.say("on a CPU all variants run the same calls")


class _Runs:
    """Timed runs, their table and their folders."""

    def __init__(self, bench: Bench, plan: hsd.Plan, folder: Path) -> None:
        self.bench, self.plan, self.folder = bench, plan, folder
        self.rows: dict[str, dict[str, Any]] = {}
        self.first = ""
        self.longest = 0.0

    def timed(self, name: str, work: Callable[[Path], dict[str, Any]], ideal: float | None) -> float:
        """Run ``work`` into a new folder, and print its row. ``ideal``: seconds of the networks by themselves."""
        bench, out = self.bench, self.folder / f"{len(self.rows)}"
        synchronize(bench.device)
        bench.empty()
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        start = time.perf_counter()
        row = work(out)
        synchronize(bench.device)
        row["seconds"] = time.perf_counter() - start
        self.longest = max(self.longest, row["seconds"])
        row["peak_bytes"] = torch.cuda.max_memory_allocated(bench.device) if bench.on_gpu else None
        if not self.rows:
            self.first = out.name
        self.rows[name] = row
        base = next(iter(self.rows.values()))["seconds"]
        row["speed_up"] = base / row["seconds"]
        shared = row["node_steps"] < self.plan.standard_node_steps
        row["ratio"] = row["speed_up"] * (1.0 - self.plan.savings) if shared else None
        row["efficiency"] = None if ideal is None else ideal / row["seconds"]
        inside = "".join(f"{format(row[part], '.2f') if part in row else '':>9}" for part in _INSIDE)
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:9.2f}"
        bench.report.say(
            f"{name:26}{row['seconds']:9.2f}{row['speed_up']:9.2f}x"
            f"{'' if row['ratio'] is None else format(row['ratio'], '.2f'):>8}"
            f"{'' if row['efficiency'] is None else format(row['efficiency'], '.1%'):>10}{inside}{peak}"
        )
        bench.report.add(NAME, "savings", self.plan.savings)
        bench.report.add(NAME, "rows", self.rows)
        files = len(list(out.glob("*.png")))
        bench.report.check(f"{NAME}, {name}: images missing", abs(len(self.plan) - files), 0)
        return float(row["seconds"])


_INSIDE = ("encode", "denoise", "decode")


class _Parts:
    """Seconds per item of prior, denoiser and decoder, each at its best batch size: no executor can be faster.

    Text encoder, conversion to pictures and writing are left out.
    """

    def __init__(self, bench: Bench, model: Kandinsky22) -> None:
        self.bench, self.model = bench, model
        self.sizes = (2, 4) if bench.args.small else (8, 16, 32)
        self.seconds = min(0.3, bench.args.alone)
        self._denoise: dict[str, float] = {}
        eager = {n: made[0] / n for n in self.sizes if (made := bench.denoise_alone(n, seconds=self.seconds))}
        self._size = min(eager, key=eager.__getitem__)
        self.prior, self.decode = self._best("prior", self._prior()), self._best("MoVQ", self._decode())
        bench.report.add(NAME, "alone", {"prior": self.prior, "decode": self.decode, "denoise_by_batch": eager})

    def best_size(self) -> int:
        """The batch size with which the eager denoiser takes the fewest seconds per lane."""
        return self._size

    def denoise(self, variant: str = "eager") -> float:
        """Seconds per lane, with the network in the variant's layout."""
        compiled = "compile" in variant
        if variant not in self._denoise:
            lanes = {self.bench.args.batch_size} | (set() if compiled else {self._size})
            self._denoise[variant] = self.bench.best_row(sorted(lanes), compiled=compiled, seconds=self.seconds)
            self.bench.report.add(NAME, "denoise_alone", self._denoise)
        return self._denoise[variant]

    def ideal(self, plan: hsd.Plan, variant: str = "eager") -> float:
        """Seconds of the networks for the whole plan."""
        per_image = self.model.prior_steps * self.prior + self.decode
        return plan.node_steps * self.denoise(variant) + len(plan) * per_image

    def _best(self, name: str, work: Callable[[int], Callable[[], Any]]) -> float:
        """The fewest seconds per item of the function that ``work`` returns for a batch size."""
        taken = []
        for n in self.sizes:
            once = torch.no_grad()(work(n))
            taken.append(alone(once, self.bench.device, self.seconds) / n)
            if self.bench.on_gpu and (made := self.bench.capture(f"{name}, batch {n}", once)):
                taken.append(alone(made[0], self.bench.device, self.seconds) / n)
            self.bench.empty()
        return min(taken)

    def _prior(self) -> Callable[[int], Callable[[], Any]]:
        prior = self.model.prior()
        row = shapes.conditioning(prior, ["a prompt as long as most of them are"], [0])
        one = {name: value.to(prior.device) for name, value in row.mean(np.zeros(1, np.int64)).items()}

        def work(n: int) -> Callable[[], Any]:
            rows = {name: value[None].expand(n, *value.shape) for name, value in one.items()}
            latents = torch.randn(n, *prior.latent_shape(), device=prior.device)
            timesteps = prior.sampler(prior.steps).timesteps[:1].to(prior.device).expand(n)
            return lambda: prior.denoise(latents, timesteps, rows)[0]

        return work

    def _decode(self) -> Callable[[int], Callable[[], Any]]:
        movq = self.model.decoder.movq  # its own decode() copies a number to the device, which no graph can hold

        def work(n: int) -> Callable[[], Any]:
            latents = torch.randn(n, *self.model.latent_shape(), device=self.model.device, dtype=movq.dtype)
            return lambda: movq.decoder(movq.post_quant_conv(latents), latents)

        return work


def _variant(bench: Bench, plan: hsd.Plan, variant: str, runs: _Runs, parts: _Parts) -> None:
    """One variant of HSD, named by its options (compile, graphs, channels-last), or ``published``."""
    report, network = bench.report, bench.model.modules()[0]
    turned_on = set(variant.split("+"))
    compiled = "compile" in turned_on
    if compiled and (why := bench.why_not_compiled()):
        report.skip(f"{NAME}, hsd {variant}", why)
        return
    if bench.left() < runs.longest:
        report.skip(f"{NAME}, {variant}", f"{bench.left():.0f} s left")
        return
    if variant == PUBLISHED:
        runs.timed("published method", lambda out: _published(bench, plan, out), parts.ideal(plan))
        return
    options = {
        "batch_size": bench.args.batch_size,
        "compile": compiled,
        "cuda_graphs": "graphs" in turned_on,
        "channels_last": "channels-last" in turned_on,
        "progress": False,
    }

    def generate(out: Path) -> dict[str, Any]:
        made = hsd.generate(plan, bench.model, out, **options)
        report.check(f"{NAME}, hsd {variant}: node-steps not run", abs(plan.node_steps - made.node_steps), 0)
        report.check(f"{NAME}, hsd {variant}: images not made", abs(len(plan) - made.images), 0)
        return {"node_steps": made.node_steps, **{name: made.seconds[name] for name in _INSIDE}}

    try:
        start = time.perf_counter()
        warm = plan if compiled else plan.prune(plan.tree.leaf_order[:2])  # only full calls are compiled
        hsd.generate(warm, bench.model, runs.folder / f"warm {variant}", **options)
        if compiled:
            report.add(NAME, "seconds_of_the_first_compiled_run", time.perf_counter() - start)
        runs.timed(f"hsd, {variant}", generate, parts.ideal(plan, variant))
    finally:
        network.to(memory_format=torch.contiguous_format)  # channels_last leaves it in the other layout


def _diffusers(bench: Bench, plan: hsd.Plan, n: int, out: Path, size: int, steps: int | None = None) -> dict[str, Any]:
    """The pipeline itself, the first ``n`` prompts in batches of ``size``, each image from its own seed."""
    model, steps = bench.model, steps or bench.args.steps
    assert isinstance(model, Kandinsky22)
    out.mkdir(parents=True)
    prompts = plan.prompts[:n]
    with ThreadPoolExecutor() as pool:
        for part in batches(len(prompts), size):
            images = model.pipe(
                prompts[part],
                num_inference_steps=steps,
                prior_num_inference_steps=model.prior_steps,
                guidance_scale=model.guidance_scale,
                prior_guidance_scale=model.prior_guidance_scale,
                height=model.height,
                width=model.width,
                generator=[torch.Generator().manual_seed(int(seed)) for seed in plan.seeds[part][: len(prompts[part])]],
            ).images
            for i, image in enumerate(images, part.start):
                pool.submit(image.save, out / f"{i:05}.png")
    return {"node_steps": len(prompts) * steps}


def _published(bench: Bench, plan: hsd.Plan, out: Path) -> dict[str, Any]:
    model = bench.model
    assert isinstance(model, Kandinsky22)
    made = published.generate(model, plan, batch_size=bench.args.batch_size)
    bench.report.check(f"{NAME}, published: not finite", float((~made.images.isfinite()).sum()), 0)
    published.save(made, out)
    seconds = {"encode": made.seconds["prior"], "denoise": made.seconds["denoise"], "decode": made.seconds["decode"]}
    return {"node_steps": made.node_steps, **seconds}


def _check(bench: Bench, plan: hsd.Plan, theirs: Path) -> None:
    """Check that at tau 0 HSD's images are diffusers', and that the published method's latents are HSD's."""
    model, args, report = bench.model, bench.args, bench.report
    assert isinstance(model, Kandinsky22)
    half = model.dtype != torch.float32
    n = min(4, len(plan))
    alone_plan = hsd.compile(plan.prompts[:n], 0.0, embeddings=np.eye(n, 8), steps=args.steps, seeds=plan.seeds[:n])
    for image in hsd.stream(alone_plan, model, batch_size=args.batch_size):
        reference = np.asarray(PIL.Image.open(theirs / f"{image.index:05}.png"), np.int16)
        difference = np.abs(np.asarray(image.pil, np.int16) - reference).mean()
        what = f"{NAME}: mean difference to diffusers at tau 0, image {image.index}, of 255"
        report.check(what, float(difference), 3.0 if half else 0.1)
    few = min(8, len(plan))
    shared = hsd.compile(plan.prompts[:few], args.tau, embeddings=np.eye(few, 16) + 0.5, steps=args.steps)
    stock = model.decoder.scheduler
    try:
        found = published.compare(published.deterministic(dataclasses.replace(model)), shared, args.batch_size)
    finally:
        for pipe in (model.pipe, model.decoder):
            pipe.scheduler = stock
    what = f"{NAME}: published method against HSD, latents, share of their norm"
    report.check(what, found["latents"], 0.05 if half else 1e-4)
    report.add(NAME, "published_against_hsd", found)
