"""Scorers that run in another process, if needed with another Python: most need older libraries than HSD does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from .scorers import ScorerError
from .worker import SCORERS

_WORKER = Path(__file__).with_name("worker.py")

_OWN_ENVIRONMENT = (
    "It needs older libraries than HSD does, so install it in a separate environment (python -m venv ENV; ENV/bin/{}) "
    'and name its interpreter: --python ENV/bin/python on the command line, python="ENV/bin/python" in Python'
)
_INSTALL = {
    "vqascore": _OWN_ENVIRONMENT.format("pip install t2v-metrics, and what its README requires"),
    "hpsv2": 'pip install "hsd-diffusion[hpsv2]"',
    # The last release sets no upper bounds for its dependencies; it can be imported with these versions.
    "imagereward": _OWN_ENVIRONMENT.format(
        'pip install image-reward openai-clip "transformers<4.50" "diffusers<0.33" "datasets<4" "setuptools<81"'
    ),
}


class ExternalScorer:
    """A scorer of ``worker.py``, run by another interpreter. The process starts when the first image is scored.

    Raises
    ------
    ScorerError
        If that interpreter cannot be run, or lacks the scorer's package. Says what to install.
    """

    def __init__(
        self, name: str, *, model: str | None = None, device: str | None = None, python: str | None = None
    ) -> None:
        _, packages, default = SCORERS[name]
        self.name = name
        self._python = python or sys.executable
        self._arguments = (model or default, device or "")
        self._process: subprocess.Popen[str] | None = None
        try:
            found = subprocess.run(
                [self._python, str(_WORKER), "probe", name], capture_output=True, text=True, encoding="utf-8"
            )
            package = json.loads(found.stdout)["version"]
        except OSError as error:
            raise ScorerError(f"cannot run {self._python} for {name}: {error.strerror or error}") from None
        except ValueError:
            raise ScorerError(
                f"{self._python} is not a Python that can run {name}: {_last_line(found.stderr)}"
            ) from None
        if package is None:
            raise ScorerError(
                f"{name} needs the package {packages[0]}, which {self._python} does not have. {_INSTALL[name]}"
            )
        self.version = f"{package}, {self._arguments[0]}"

    def score(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) scores."""
        if self._process is None:
            self._start()
        with tempfile.TemporaryDirectory(prefix="hsd-") as folder:
            paths = [str(Path(folder) / f"{i}.png") for i in range(len(images))]
            for image, path in zip(images, paths, strict=True):
                image.save(path, compress_level=1)
            return np.array(self._request({"images": paths, "prompts": list(prompts)})["scores"], dtype=np.float64)

    def close(self) -> None:
        """End the other process. It also ends by itself when this process does."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):  # it may have ended already
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [self._python, str(_WORKER), "serve", self.name, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # standard error is inherited: it shows the progress of downloads, and tracebacks
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C interrupts only this process, which then closes the other's input
        )
        self._request(None)  # the worker reports when the model is loaded

    def _request(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request, if one is given, and wait for an answer."""
        process = self._process
        assert process is not None
        try:
            if request is not None:
                process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            answer: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, ValueError):
            answer = {"error": "it ended without an answer"}
        if "error" in answer:
            self.close()
            raise ScorerError(f"{self.name} failed in {self._python}: {answer['error']}")
        return answer


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "none"
