"""What was measured on a device: the files that ``run.sh`` writes, read by what they hold and not by their names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsd.tuning.curve import Curve

EAGER, GRAPH = "eager", "eager, graph"
"""Modes of the section ``denoiser``: launched kernel by kernel, or replayed as a CUDA graph."""


@dataclass(frozen=True)
class Results:
    """The files of one device; of none, where nothing was measured."""

    files: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Path | None) -> Results:
        """All ``gpu-*.json`` of a folder that ``executor.py`` wrote, without those of tiny shapes.

        Raises
        ------
        FileNotFoundError
            If the folder holds none.
        """
        if folder is None:
            return cls()
        found = [json.loads(file.read_text()) for file in sorted(folder.glob("gpu-*.json"))]
        if not found:
            raise FileNotFoundError(f"no file gpu-*.json in {folder}")
        return cls(tuple(one for one in found if "model" in (asked := one.get("arguments", {})) and not asked["small"]))

    @property
    def device(self) -> str:
        """Name of the device; empty if nothing was measured."""
        return next((str(one["machine"]["device"]) for one in self.files), "")

    @property
    def date(self) -> str:
        """Day of the first run."""
        return min((str(one["date"])[:10] for one in self.files), default="")

    def _sections(self, name: str, model: str) -> list[dict[str, Any]]:
        """That section of each file that has it for this model."""
        mine = [one for one in self.files if one["arguments"]["model"] == model]
        return [one["sections"][name] for one in mine if name in one["sections"]]

    def seconds(self, model: str, mode: str) -> dict[int, float]:
        """Seconds of a call of the denoiser by itself, by lanes."""
        rows = [row for section in self._sections("denoiser", model) for row in section.get("rows", [])]
        return {row["lanes"]: row["seconds"] for row in rows if row["mode"] == mode}

    def curve(self, model: str, mode: str) -> Curve | None:
        """The same as a curve; None if it was not measured."""
        points = sorted(self.seconds(model, mode).items())
        return Curve(*zip(*points, strict=True)) if points else None  # type: ignore[arg-type]

    def efficiency(self, model: str, batch_size: int, tau: float) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows of the section ``efficiency``, by set and mode: ``eager``, ``graphs`` (replayed) or ``compile``."""
        mine = [
            one
            for one in self.files
            if (asked := one["arguments"])["model"] == model
            and (asked["batch_size"], asked["tau"]) == (batch_size, tau)
            and "efficiency" in one["sections"]
        ]
        rows = [row for one in mine for row in one["sections"]["efficiency"].get("rows", [])]
        return {(row["set"], row["mode"]): row for row in rows}

    def alone(self, model: str) -> tuple[int, float]:
        """Batch size and seconds a lane of the denoiser alone, from the section ``efficiency``.

        Raises
        ------
        LookupError
            If it was not run.
        """
        mine = [one for one in self.files if one["arguments"]["model"] == model and "efficiency" in one["sections"]]
        found = [
            (one["arguments"]["batch_size"], row["alone_seconds_per_lane"])
            for one in mine
            for row in one["sections"]["efficiency"].get("rows", [])
            if row["mode"] != "compile"
        ]
        if not found:
            raise LookupError(f"the efficiency of {model} was not measured")
        return min(found, key=lambda one: one[1])

    def launches(self, model: str) -> float | None:
        """Kernels of a call of the executor, by the profiler; None if it was not run."""
        for mode in ("eager", "graphs"):
            if found := self.trace(model, mode):
                return float(found["kernels_a_call"])
        return None

    def trace(self, model: str, mode: str) -> dict[str, Any]:
        """What the profiler counted in a call of the executor; empty if it was not run."""
        return next((found[mode] for found in self._sections("trace", model) if mode in found), {})

    def end_to_end(self) -> dict[str, Any]:
        """The section ``end_to_end`` with most rows; empty if it was not run."""
        found: dict[str, Any] = self._end_to_end()["sections"].get("end_to_end", {})
        return found

    def end_to_end_arguments(self) -> dict[str, Any]:
        """What it was run with."""
        found: dict[str, Any] = self._end_to_end()["arguments"]
        return found

    def _end_to_end(self) -> dict[str, Any]:
        mine = [one for one in self.files if "end_to_end" in one["sections"]]
        nothing: dict[str, Any] = {"sections": {}, "arguments": {}}
        return max(mine, key=lambda one: len(one["sections"]["end_to_end"].get("rows", {})), default=nothing)
