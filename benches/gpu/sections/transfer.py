"""Copies between host and device, of pinned and of pageable memory, beside copies that stay on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench import Bench
from measure import alone
from torch import Tensor

NAME = "transfer"

SIZES = [64 << 10, 1 << 20, 16 << 20, 256 << 20]
"""Bytes of a copy: the rows of a call are some KiB, the images of a batch some MiB."""

ON_HOST = "host to host"
ON_DEVICE = "device to device"


def run(bench: Bench) -> None:
    """A row per size and kind of copy; bytes are those of the copy, read once and written once."""
    report = bench.report
    report.say(f"\n== {NAME}: seconds of a copy, and GiB copied per second")
    report.say(f"{'MiB':>9} {'copy':28}{'us':>12}{'GiB/s':>10}")
    rows: list[dict[str, Any]] = []
    for size in [4 << 10, 64 << 10] if bench.args.small else SIZES:
        if bench.left() < 5:
            report.skip(f"{NAME}, {size} bytes", "no time left")
            continue
        for kind, work in copies(size, bench.device if bench.on_gpu else None).items():
            taken = alone(work, bench.device, min(0.2, bench.args.alone))
            rows.append({"bytes": size, "copy": kind, "seconds": taken, "bytes_per_second": size / taken})
            report.say(f"{size / 2**20:9.3f} {kind:28}{taken * 1e6:12.1f}{size / taken / 2**30:10.2f}")
            report.add(NAME, "rows", rows)
    if not bench.on_gpu:
        report.skip(f"{NAME}: copies to and from a device", "there is none")


def copies(size: int, device: torch.device | None) -> dict[str, Callable[[], Tensor]]:
    """The copies by kind: within the host, and with a device within it, to it and from it."""
    pageable, other = (make(size, dtype=torch.uint8) for make in (torch.ones, torch.zeros))
    found: dict[str, Callable[[], Tensor]] = {ON_HOST: lambda: other.copy_(pageable)}
    if device is None:
        return found
    pinned, landing = pageable.pin_memory(), other.pin_memory()
    there, beside = pageable.to(device), torch.zeros(size, dtype=torch.uint8, device=device)
    return found | {
        ON_DEVICE: lambda: beside.copy_(there),
        "pinned to device": lambda: beside.copy_(pinned, non_blocking=True),
        "pageable to device": lambda: beside.copy_(pageable),
        "device to pinned": lambda: landing.copy_(there, non_blocking=True),
        "device to pageable": lambda: other.copy_(there),
        "device to new memory, .cpu()": lambda: there.cpu(),
    }
