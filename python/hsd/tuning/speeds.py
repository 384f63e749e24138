"""Measured seconds per node-step, stored between runs, to estimate how long a plan will take."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import platformdirs
import torch

from ..models.base import Adapter
from ..work.device import hardware_name
from ..work.files import make_folder, write_json
from ..work.reading import is_number, read_object


def _path() -> Path:
    return Path(platformdirs.user_cache_dir("hsd")) / "speeds.json"


def key(adapter: Adapter) -> str:
    """What the speed depends on: model, latent size, guidance, device, dtype."""
    device = adapter.device
    name = hardware_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    shape = "x".join(map(str, adapter.latent_shape()))
    return f"{adapter.name}|{shape}|{'guided' if adapter.guided else 'unguided'}|{name}|{adapter.dtype}"


def remember(adapter: Adapter, seconds: float) -> None:
    """Store the latest speed. A failure is ignored: it is only used for estimates."""
    with contextlib.suppress(OSError):
        speeds = _load()
        speeds[key(adapter)] = seconds
        make_folder(_path().parent)
        write_json(_path(), dict(sorted(speeds.items())))


def recall(adapter: Adapter) -> float | None:
    """Seconds per node-step in the latest run like this one, or None."""
    value: Any = _load().get(key(adapter))
    return float(value) if is_number(value) and value > 0 else None


def _load() -> dict[str, Any]:
    try:
        return read_object(_path())
    except (OSError, ValueError):  # it is only used for estimates
        return {}
