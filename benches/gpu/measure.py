"""Clocks, checks and the report that all sections share. Nothing here knows what is measured."""

from __future__ import annotations

import json
import math
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

import hsd

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 80GB HBM3": 989e12,
    "H100 SXM": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense half-precision operations per second, by words that the device's name contains as whole words."""


def peak_of(device_name: str) -> float | None:
    """The device's peak, or None for one that is not in the table: no number is better than a guessed one."""
    words = f" {device_name} ".replace("-", " ").replace("_", " ")
    return next((peak for name, peak in PEAKS.items() if f" {name} " in words), None)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all enqueued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds per call of ``work`` in a loop, as the median of blocks; takes about ``seconds``.

    Calls of a block are enqueued without waiting, as an executor does, so this is the device's time if the host
    is fast enough, else the host's. Blocks last about 0.1 s if there is time, much longer than reading the clock and
    synchronizing; there are at least two.
    """

    def block(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(device)
        return time.perf_counter() - start

    block(1)  # chooses kernels
    count = max(1, round(min(0.1, seconds / 4) / block(1)))
    blocks = [block(count), block(count)]
    while sum(blocks) < seconds:
        blocks.append(block(count))
    return statistics.median(blocks) / count


def captured(work: Callable[[], Any], *, pool: Any = None, warm: int = 2) -> tuple[Callable[[], None], Any]:
    """``work`` as a CUDA graph: its replay, and its output, which every replay overwrites.

    ``pool`` is the memory that graphs share of which one runs at a time; ``warm`` the calls before the capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # one-time work must not be captured
        for _ in range(warm):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = work()
    return graph.replay, output


def host_alone(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Seconds that the host takes to enqueue a call, as the median of ``calls`` of which each waits for the last."""
    taken = []
    for _ in range(calls):
        synchronize(device)
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    synchronize(device)
    return statistics.median(taken)


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``; infinite if anything is not finite."""
    difference = float((a.double() - b.double()).norm() / b.double().norm())
    return difference if difference == difference else float("inf")


class Report:
    """Results, printed at once and stored as JSON, which is written to disk after every row.

    After a failed check the rest is still measured; the exit status reports it at the end.
    """

    def __init__(self, path: Path | None, device: torch.device, command: str, arguments: dict[str, Any]) -> None:
        self._path = path
        self._content: dict[str, Any] = {
            "command": command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(device),
            "arguments": arguments,
            "finished": False,
            "sections": {},
            "checks": [],
            "skipped": [],
        }
        self._started = time.perf_counter()
        print(f"{self._content['command']}\n{json.dumps(self._content['machine'])}", flush=True)

    @property
    def ok(self) -> bool:
        """Whether all checks held."""
        return all(check["ok"] for check in self._content["checks"])

    def say(self, text: str = "") -> None:
        """Print."""
        print(text, flush=True)

    def add(self, section: str, key: str, value: Any) -> None:
        """Store a result."""
        self._content["sections"].setdefault(section, {})[key] = value
        self.write()

    def skip(self, what: str, why: str) -> None:
        """Print and record what was not measured."""
        self.say(f"NOT MEASURED: {what}: {why}")
        self._content["skipped"].append({"what": what, "why": why})
        self.write()

    def check(self, what: str, value: float, limit: float) -> None:
        """``value`` has to be at most ``limit``."""
        ok = bool(value <= limit)
        if not ok:
            self.say(f"CHECK FAILED: {what}: {value:.4g}, at most {limit:.4g} expected")
        number = float(value) if math.isfinite(value) else None  # JSON has no infinity and no nan
        self._content["checks"].append({"what": what, "value": number, "limit": float(limit), "ok": ok})
        self.write()

    def finish(self) -> None:
        """The last write."""
        self._content["finished"] = True
        self._content["seconds"] = round(time.perf_counter() - self._started, 1)
        checks = self._content["checks"]
        bad = sum(not check["ok"] for check in checks)
        held = f"{len(checks) - bad} of {len(checks)} checks held; " if checks else ""
        self.say(f"{held}{self._content['seconds']} s")
        self.write()

    def write(self) -> None:
        """Write the complete file."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._content, indent=1, allow_nan=False) + "\n")
        part.replace(self._path)


def command(script: str, words: Sequence[str]) -> str:
    """A command line, folders left out: they belong to one machine."""
    return shlex.join([script, *(Path(word).name if "/" in word else word for word in words)])


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that the numbers belong to."""
    about: dict[str, Any] = {
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
        "hsd": hsd.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
        about |= _nvidia_smi(device)
    return about


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    """Driver and power limit; nothing if nvidia-smi cannot be run."""
    names = ("driver_version", "power.limit", "clocks.max.sm")
    query = ["nvidia-smi", f"--id={device.index or 0}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(("driver", "power_limit", "highest_clock"), line.split(", "), strict=False))
