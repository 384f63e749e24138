"""The denoiser by itself: seconds per call by lanes, in every way of running it. The executor is compared with it."""

from __future__ import annotations

import shapes
import torch
from bench import Bench
from measure import apart
from torch import Tensor

NAME = "denoiser"


def run(bench: Bench) -> None:
    """Print and store one row per number of lanes and way of running."""
    model, report = bench.model, bench.report
    network = model.modules()[0]
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    convolutions = any(parameter.ndim == 4 for parameter in network.parameters())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    peak = "peak not known" if bench.peak is None else f"peak {bench.peak / 1e12:.0f} TFLOP/s"
    report.say(
        f"\n== {NAME}: {model.name}, {parameters / 1e9:.3f} B parameters, {model.dtype}, "
        f"latent {model.latent_shape()}, {bench.flops / 1e12:.4g} TFLOP a lane, guidance included; {peak}"
    )
    report.add(NAME, "model", {"name": model.name, "parameters": parameters, "flops_per_lane": bench.flops})
    if bench.args.model == "kandinsky" and not bench.args.small:
        report.check(f"{NAME}: operations off the known", abs(bench.flops / shapes.KANDINSKY_FLOPS - 1), 0.01)
    report.say(f"{'lanes':>6} {'mode':32}{'ms per call':>13}{'ms per lane':>13}{'of peak':>9}")
    reference: dict[int, Tensor] = {}
    rows: list[dict[str, float | int | str | None]] = []

    def measured(lanes: int, layout: str, graph: bool, compiled: bool) -> float | None:
        """One row; None if it did not fit."""
        words = ("compiled" if compiled else "eager", layout, "graph" if graph else "")
        mode = ", ".join(word for word in words if word)
        try:
            made = bench.denoise_alone(lanes, graph=graph, compiled=compiled)
        except torch.OutOfMemoryError:
            bench.empty()
            report.skip(f"{NAME}, {lanes} lanes, {mode}", "out of memory")
            return None
        if made is None:
            return None
        seconds, output = made
        share = bench.share_of_peak(seconds / lanes)
        shown = "" if share is None else f"{share:8.1%}"
        report.say(f"{lanes:6} {mode:32}{seconds * 1e3:13.3f}{seconds / lanes * 1e3:13.3f}{shown:>9}")
        rows.append({"lanes": lanes, "mode": mode, "seconds": seconds, "share_of_peak": share})
        report.add(NAME, "rows", rows)
        report.check(f"{mode}, {lanes} lanes: values that are not finite", float((~output.isfinite()).sum()), 0)
        if lanes in reference:
            report.check(f"{mode}, {lanes} lanes: differs from the first", apart(output, reference[lanes]), tolerance)
        else:
            reference[lanes] = output
        return seconds / lanes

    def every(layout: str) -> dict[int, float]:
        """The best of launched and captured at each number of lanes, as long as they fit and there is time."""
        best: dict[int, float] = {}
        for lanes in bench.args.lanes:
            if bench.left() < 10 * bench.args.alone:
                report.skip(f"{NAME}, eager {layout}, {lanes} lanes and more", "no time left")
                break
            if not (found := both(lanes, layout, compiled=False)):
                break
            best[lanes] = min(found)
            bench.empty()
        return best

    def both(lanes: int, layout: str, compiled: bool) -> list[float]:
        """Seconds per lane, launched kernel by kernel and captured."""
        taken = [measured(lanes, layout, graph, compiled) for graph in ((False, True) if bench.on_gpu else (False,))]
        return [seconds for seconds in taken if seconds is not None]

    try:
        contiguous = every("")
        channels_last: dict[int, float] = {}
        if convolutions:
            network.to(memory_format=torch.channels_last)
            channels_last = every("channels-last")
        if why := bench.why_not_compiled():
            report.skip(f"{NAME}, compiled", why)
        else:  # at the batch size, the only size that is compiled, in the better layout
            lanes = bench.args.batch_size
            last = channels_last.get(lanes, float("inf")) < contiguous.get(lanes, float("inf"))
            network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
            both(lanes, "channels-last" if last else "", compiled=True)
    finally:
        network.to(memory_format=torch.contiguous_format)
    if not bench.on_gpu:
        report.skip(f"{NAME}, as a CUDA graph", "there is none on a CPU")
