"""Latents to images: the decoder network by batch, pixels and precision, the way back to the host, and all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from bench import Bench
from measure import alone, apart
from torch import Tensor, nn

from hsd.generation.decoding import Decoded, Decoder
from hsd.models.kandinsky22 import Kandinsky22
from hsd.replay.executor import Finished

NAME = "decode"

BATCHES = [1, 2, 4, 8, 16]

PIXELS = [512, 1024]

IN_FLOAT32 = 4 << 20
"""Most pixels of a batch that is decoded in float32, too: more takes seconds a call."""


def run(bench: Bench) -> None:
    """A row per size of image and batch: seconds an image of the network, of its pixels' return, and of all."""
    args, report, model = bench.args, bench.report, bench.decoder
    network = network_of(bench)
    report.say(
        f"\n== {NAME}: {model.name}, {type(network).__name__}, {next(network.parameters()).dtype}; ms an image. All: "
        "HSD's decoder, from latents to pictures"
    )
    report.say(
        f"{'px':>6}{'batch':>7}{'network':>10}{'float32':>10}{'pageable':>10}{'pinned':>9}{'all':>9}{'peak MiB':>10}"
    )
    upcast = copy.deepcopy(network).float() if bench.on_gpu else None
    rows: list[dict[str, Any]] = []
    for pixels in [32, 64] if args.small else PIXELS:
        for batch in [1, 2] if args.small else BATCHES:
            if bench.left() < 30 * args.alone:
                report.skip(f"{NAME}, {pixels} px, {batch} and more", "no time left")
                break
            try:
                rows.append(_row(bench, network, upcast, pixels, batch))
            except torch.OutOfMemoryError:
                report.skip(f"{NAME}, {pixels} px, {batch} and more", "out of memory")
                break
            finally:
                bench.empty()
            report.add(NAME, "rows", rows)
            _print(bench, rows[-1])
    if not bench.on_gpu:
        report.skip(f"{NAME}: half precision, pinned memory, peak", "there is no device: the network runs in float32")


def network_of(bench: Bench) -> nn.Module:
    """The one that makes an image of a latent."""
    model = bench.decoder
    network = model.decoder.movq if isinstance(model, Kandinsky22) else model.pipe.vae
    assert isinstance(network, nn.Module)
    return network


def _row(bench: Bench, network: nn.Module, upcast: nn.Module | None, pixels: int, batch: int) -> dict[str, Any]:
    seconds = min(0.3, bench.args.alone)
    latents = latents_of(bench, network, pixels, batch)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
    image = decoded(network, latents)  # (batch, 3, pixels, pixels)
    row: dict[str, Any] = {"pixels": pixels, "batch": batch}
    assert image.shape[-2:] == (pixels, pixels), image.shape
    bench.report.check(f"{NAME}, {pixels} px, {batch}: values that are not finite", int((~image.isfinite()).sum()), 0)
    if bench.on_gpu:
        row["peak_bytes"] = torch.cuda.max_memory_allocated(bench.device) - before
    taken = row["seconds_an_image"] = {}
    taken["network"] = alone(lambda: decoded(network, latents), bench.device, seconds) / batch
    if upcast is not None and batch * pixels**2 <= IN_FLOAT32:
        full = decoded(upcast, latents)
        bench.report.check(f"{NAME}, {pixels} px, {batch}: half precision differs", apart(image, full), 0.1)
        del full
        taken["float32"] = alone(lambda: decoded(upcast, latents), bench.device, seconds) / batch
    if bench.on_gpu:
        taken["pageable"] = alone(lambda: image.cpu(), bench.device, seconds) / batch
        taken["pinned"] = alone(returned(image), bench.device, seconds) / batch
    if pixels == bench.decoder.width:
        bench.report.check(f"{NAME}, {pixels} px, {batch}: latents without an image", batch - whole(bench, batch), 0)
        taken["all"] = alone(lambda: whole(bench, batch), bench.device, seconds) / batch
    return row


def latents_of(bench: Bench, network: nn.Module, pixels: int, batch: int) -> Tensor:
    """(batch, channels, side, side) float32: what gives images of ``pixels``."""
    side = pixels >> (len(network.config.block_out_channels) - 1)  # every block but one doubles it
    generator = torch.Generator(bench.device).manual_seed(batch)
    return torch.randn(batch, network.config.latent_channels, side, side, device=bench.device, generator=generator)


@torch.no_grad()
def decoded(network: nn.Module, latents: Tensor) -> Tensor:
    """(batch, 3, pixels, pixels) in the network's dtype, without scaling: only the time matters here."""
    latents = latents.to(next(network.parameters()).dtype)
    how = {"force_not_quantize": True} if type(network).__name__ == "VQModel" else {}
    image = network.decode(latents, return_dict=False, **how)[0]
    assert isinstance(image, Tensor)
    return image


def returned(image: Tensor) -> Callable[[], Tensor]:
    """A copy into pinned memory that is used again, without waiting; the clock waits at the end of a block."""
    pinned = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
    return lambda: pinned.copy_(image, non_blocking=True)


def whole(bench: Bench, batch: int) -> int:
    """HSD's decoder in this thread: latents of the model's own size and shape, in one batch. The images it gave."""
    model = bench.decoder
    latents = torch.randn(batch, *model.latent_shape(), device=bench.device)
    finished = [Finished(i, latent[None], torch.Generator().manual_seed(i)) for i, latent in enumerate(latents)]
    with Decoder(model, batch, threaded=False) as decoder:
        made = [*decoder.put(finished), *decoder.rest()]
    return sum(isinstance(image, Decoded) for image in made)


def _print(bench: Bench, row: dict[str, Any]) -> None:
    def ms(name: str, width: int) -> str:
        taken = row["seconds_an_image"].get(name)
        return f"{'-':>{width}}" if taken is None else f"{taken * 1e3:{width}.2f}"

    peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "-"
    bench.report.say(
        f"{row['pixels']:6}{row['batch']:7}{ms('network', 10)}{ms('float32', 10)}{ms('pageable', 10)}"
        f"{ms('pinned', 9)}{ms('all', 9)}{peak:>10}"
    )
