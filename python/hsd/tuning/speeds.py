"""How long the parts of a run take on this machine, stored between runs, to estimate how long a plan will take."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from ..models.base import Adapter
from ..work.device import hardware_name
from ..work.files import make_folder, write_json
from ..work.reading import is_number, read_object

_ENOUGH = 16
"""A run of fewer images does not replace what one of more has measured: its first calls, which are slow, count most."""


@dataclass(frozen=True)
class Speed:
    """Measured seconds."""

    node_step: float
    """Per evaluation of the denoiser on one latent, with guidance."""
    image: float | None
    """Per image, for all that is not the denoiser: encoding, decoding, writing. None where an earlier version of HSD
    measured, which recorded the denoiser alone."""


def _path() -> Path:
    return Path(platformdirs.user_cache_dir("hsd")) / "speeds.json"


def key(adapter: Adapter) -> str:
    """What the speed depends on: model, latent size, guidance, device, dtype."""
    device = adapter.device
    name = hardware_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    shape = "x".join(map(str, adapter.latent_shape()))
    return f"{adapter.name}|{shape}|{'guided' if adapter.guided else 'unguided'}|{name}|{adapter.dtype}"


def remember(adapter: Adapter, speed: Speed, images: int) -> None:
    """Store what a run of ``images`` images has measured. A failure is ignored: it is only used for estimates."""
    with contextlib.suppress(OSError):
        speeds, name = _load(), key(adapter)
        before = speeds.get(name)
        if _read(before) is not None and isinstance(before, dict) and images < min(_ENOUGH, before.get("images", 0)):
            return
        speeds[name] = {**asdict(speed), "images": images}
        make_folder(_path().parent)
        write_json(_path(), dict(sorted(speeds.items())))


def recall(adapter: Adapter) -> Speed | None:
    """The speed of an earlier run like this one; None if there was none."""
    return _read(_load().get(key(adapter)))


def _read(value: Any) -> Speed | None:
    """An entry of the file: an object, or the seconds per node-step alone; None for anything else."""
    entry: dict[str, Any] = value if isinstance(value, dict) else {"node_step": value}
    node_step: Any = entry.get("node_step")
    image: Any = entry.get("image")
    if not is_number(node_step) or node_step <= 0 or not is_number(entry.get("images", 0)):
        return None
    return Speed(float(node_step), float(image) if is_number(image) and image >= 0 else None)


def _load() -> dict[str, Any]:
    try:
        return read_object(_path())
    except (OSError, ValueError):  # it is only used for estimates
        return {}
