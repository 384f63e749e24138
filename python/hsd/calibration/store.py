"""Where calibrations are kept: in the user's data folder, found again by the networks that they belong to."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs

from ..errors import Error, Notice
from ..work.files import make_folder
from .calibration import Calibration
from .identity import Identity


def folder() -> Path:
    """The folder of the user's calibrations."""
    return Path(platformdirs.user_data_dir("hsd")) / "calibrations"


def keep(calibration: Calibration) -> Path:
    """Save a calibration where :func:`hsd.load` finds it, in place of an earlier one of the same networks."""
    identity = calibration.identity
    path = (
        make_folder(folder()) / f"{identity.key}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}.safetensors"
    )
    calibration.save(path)
    for other, earlier in _of(identity.key):  # after it: whatever happens in between, there is one
        if other != path and earlier.identity.matches(identity):
            other.unlink(missing_ok=True)
    return path


def find(key: str, identity: Callable[[], Identity]) -> Calibration | None:
    """The kept calibration of networks, or None.

    ``key`` is their :attr:`Identity.key`, ``identity`` looks up the rest, which is only needed if there is a file.
    """
    kept = _of(key)
    if not kept:
        return None
    own = identity()
    return next((found for _, found in kept if found.identity.matches(own)), None)


def _of(key: str) -> list[tuple[Path, Calibration]]:
    found = []
    for path in sorted(folder().glob(f"{key}-*.safetensors")):
        try:
            found.append((path, Calibration.load(path)))
        except (Error, OSError) as error:
            warnings.warn(f"a calibration is ignored: {error}", Notice, stacklevel=4)
    return found
