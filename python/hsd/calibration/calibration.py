"""A calibration: the linear map from a prompt's vector to what the model draws first, and the weights of its steps."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..work.files import expand, write_atomically
from .identity import Identity

FORMAT = 1
"""The version of the file format."""

_MOST_BYTES = 256 << 20
_MOST_WIDTH = 1 << 17
_MOST_POINTS = 4096
_CHUNK = 65536
"""Vectors that are transformed at a time: bounds the copy of the centred vectors."""


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """How one model tells prompts apart. Immutable; saved as one small safetensors file.

    The Euclidean distance of two vectors after :meth:`transform` predicts how differently the model begins to draw
    their prompts.

    Attributes
    ----------
    matrix
        (D, r) float32, from the vectors that prompts are clustered by. The root mean square distance of two of the
        sample's prompts is 1 after it.
    mean
        (D,) float32, the sample's mean vector.
    weights
        (W,) float64, positive, their mean 1: how much further the final latent moves if one step more is shared, at the
        fractions (i + 1/2) / W of a run.
    tau
        The default threshold, in the scale of the transformed vectors.
    correlation
        Pearson correlation of the distances of held-out prompts after the map with those of the model's predictions.
    cosine_correlation
        The same for the cosine distances of the vectors themselves.
    scale
        Root mean square distance of the predictions of two prompts of the sample.
    levels
        At which fractions of a run the model was probed.
    ridge
        The penalty of the regression.
    prompts
        How many prompts were probed.
    identity, model
        Which networks it belongs to, and the name under which they were loaded.
    version
        The version of HSD that measured it.
    """

    matrix: NDArray[np.float32]
    mean: NDArray[np.float32]
    weights: NDArray[np.float64]
    tau: float
    correlation: float
    cosine_correlation: float
    scale: float
    levels: tuple[float, ...]
    ridge: float
    prompts: int
    identity: Identity
    model: str
    version: str

    def __post_init__(self) -> None:
        for name, dtype in (("matrix", np.float32), ("mean", np.float32), ("weights", np.float64)):
            array = np.array(getattr(self, name), dtype=dtype)  # a copy: the caller's may change
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check(self)

    @property
    def width(self) -> int:
        """D, the width of the vectors that it takes."""
        return len(self.mean)

    @property
    def rank(self) -> int:
        """r, the width of the vectors that it returns."""
        return int(self.matrix.shape[1])

    @property
    def digest(self) -> str:
        """12 hex digits that differ for calibrations that may make different plans."""
        parts = (self.matrix.tobytes(), self.mean.tobytes(), self.weights.tobytes(), repr(self.tau).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:12]

    def transform(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """(N, r) float32 from the vectors (N, D) of N prompts; compare them by Euclidean distance.

        Raises
        ------
        ValueError
            If the vectors are not (N, D).
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(
                f"the vectors have shape {vectors.shape}, but the calibration of {self.model} takes (N, {self.width}): "
                "calibrate this model again"
            )
        out = np.empty((len(vectors), self.rank), dtype=np.float32)
        for begin in range(0, len(vectors), _CHUNK):
            part = vectors[begin : begin + _CHUNK].astype(np.float32)
            np.matmul(part - self.mean, self.matrix, out=out[begin : begin + _CHUNK])
        return out

    def weights_at(self, steps: int) -> NDArray[np.float64]:
        """(K,) the weights of the steps of a run of K: interpolated, positive."""
        have = (np.arange(len(self.weights)) + 0.5) / len(self.weights)
        return np.exp(np.interp((np.arange(steps) + 0.5) / steps, have, np.log(self.weights)))

    # -- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (the arrays, and JSON metadata), by atomic rename."""
        from safetensors.numpy import save  # here, so that `import hsd` does not load it

        numbers = {
            "format": FORMAT,
            "tau": self.tau,
            "correlation": self.correlation,
            "cosine_correlation": self.cosine_correlation,
            "scale": self.scale,
            "levels": list(self.levels),
            "ridge": self.ridge,
            "prompts": self.prompts,
            "model": self.model,
            "version": self.version,
            "family": self.identity.family,
            "networks": self.identity.networks,
            "some_weights": list(self.identity.weights),
        }
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("matrix", "mean", "weights")}
        write_atomically(Path(path), save(arrays, {"hsd_calibration": json.dumps(numbers, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a saved calibration. Every value is checked: safe on files from anywhere.

        Raises
        ------
        Error
            If the file is not a valid calibration.
        OSError
            If it cannot be read.
        """
        path = expand(path)
        if path.stat().st_size > _MOST_BYTES:
            raise Error(f"{path} has {path.stat().st_size:,} bytes: too large for a calibration")
        data = path.read_bytes()
        try:
            return cls._from_bytes(data)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise Error(f"{path} is not a calibration that can be used: {what}. Run hsd calibrate again.") from None

    @classmethod
    def _from_bytes(cls, data: bytes) -> Calibration:
        from safetensors import SafetensorError, deserialize

        try:
            parts = dict(deserialize(data))  # checks the header: sizes, offsets, names
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("hsd_calibration")
        numbers = json.loads(text) if isinstance(text, str) else None
        if not isinstance(numbers, dict):
            raise ValueError("it has no metadata of a calibration")
        if numbers.get("format") != FORMAT:
            raise ValueError(f"its format is {numbers.get('format')!r}, and this version of HSD reads {FORMAT}")
        arrays = {}
        for name, code, dtype, ndim in (
            ("matrix", "F32", "<f4", 2),
            ("mean", "F32", "<f4", 1),
            ("weights", "F64", "<f8", 1),
        ):
            part = parts[name]
            if part["dtype"] != code or len(part["shape"]) != ndim:
                raise ValueError(f"{name} is {part['dtype']} of shape {part['shape']}")
            arrays[name] = np.frombuffer(part["data"], dtype=dtype).reshape(part["shape"])
        identity = Identity(
            _text(numbers, "family"), _text(numbers, "networks"), tuple(_numbers(numbers, "some_weights"))
        )
        if isinstance(numbers["prompts"], bool) or not isinstance(numbers["prompts"], int):
            raise ValueError(f"prompts is {numbers['prompts']!r}, not an integer")
        values: dict[str, Any] = {**arrays, **{name: _number(numbers[name], name) for name in _FLOATS}}
        return cls(
            **values,
            levels=tuple(_numbers(numbers, "levels")),
            prompts=numbers["prompts"],
            identity=identity,
            model=_text(numbers, "model"),
            version=_text(numbers, "version"),
        )

    def __repr__(self) -> str:
        return (
            f"<hsd.Calibration of {self.model}: {self.width} to {self.rank}, {self.prompts} prompts, correlation "
            f"{self.correlation:.2f} (cosine distance: {self.cosine_correlation:.2f}), tau {self.tau:.3g}>"
        )


_FLOATS = ("tau", "correlation", "cosine_correlation", "scale", "ridge")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}, not a number")
    return float(value)


def _numbers(numbers: dict[str, Any], name: str) -> list[float]:
    values = numbers[name]
    if not isinstance(values, list) or len(values) > _MOST_POINTS:
        raise ValueError(f"{name} is not a list of at most {_MOST_POINTS} numbers")
    return [_number(value, name) for value in values]


def _text(numbers: dict[str, Any], name: str) -> str:
    value = numbers[name]
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"{name} is not a text")
    return value


def _check(c: Calibration) -> None:
    """``ValueError`` unless every value can be used."""
    if c.matrix.ndim != 2 or c.mean.shape != c.matrix.shape[:1] or not 0 < c.width <= _MOST_WIDTH:
        raise ValueError(f"the matrix is {c.matrix.shape} and the mean {c.mean.shape}: expected (D, r) and (D,)")
    if not 0 < c.rank <= c.width:
        raise ValueError(f"the matrix is {c.matrix.shape}: its rank has to be within 1 and {c.width}")
    if c.weights.ndim != 1 or not 0 < len(c.weights) <= _MOST_POINTS:
        raise ValueError(f"the weights have shape {c.weights.shape}")
    if not (np.isfinite(c.matrix).all() and np.isfinite(c.mean).all()):
        raise ValueError("the matrix or the mean holds nan or infinite values")
    if not (np.isfinite(c.weights).all() and (c.weights > 0).all()):
        raise ValueError("the weights of the steps have to be positive")
    for name in ("correlation", "cosine_correlation"):
        if not -1.0 <= getattr(c, name) <= 1.0:
            raise ValueError(f"{name} is {getattr(c, name)}: it has to be within -1 and 1")
    for name in ("tau", "scale", "ridge", *(["levels"] * len(c.levels))):
        values = c.levels if name == "levels" else (getattr(c, name),)
        if not all(math.isfinite(value) and value >= 0.0 for value in values):
            raise ValueError(f"{name} is {values}: it has to be finite and not negative")
    if not all(math.isfinite(value) for value in c.identity.weights):
        raise ValueError("the weights of its identity are not finite")
    if c.prompts < 1:
        raise ValueError(f"prompts is {c.prompts}: it has to be at least 1")
