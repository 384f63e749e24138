"""Keeps the libraries below HSD quiet: their notes, warnings and bars, for as long as HSD works with them.

Logging, bars and filters of warnings are global. They are changed when the first one enters, and what was there before
comes back when the last one leaves, in whatever thread. What a user has asked a library for explicitly stays: more
messages than by default, or ``HF_HUB_DISABLE_PROGRESS_BARS=0``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial

_LIBRARIES = ("accelerate", "diffusers", "huggingface_hub", "peft", "torch", "torchao", "transformers")

_MODULES = r"(accelerate|diffusers|huggingface_hub|peft|torchao|transformers)(\.|$)|torch(?!\.utils\._contextlib)(\.|$)"
"""Modules whose warnings are not shown. Not torch's wrapper of functions: a warning of HSD may seem to come from it."""

Undo = Callable[[], object]


class _Held:
    """A change of something global, which lasts as long as anyone is inside."""

    def __init__(self, change: Callable[[], list[Undo]]) -> None:
        self._change, self._lock = change, threading.RLock()
        self._inside = 0
        self._undo: list[Undo] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._undo = self._change()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for undo in reversed(self._undo):
                        undo()


def _mute() -> list[Undo]:
    """Log messages and bars of loading, and warnings. It imports torch, diffusers and transformers."""
    undo: list[Undo] = []
    present = list(warnings.filters)
    warnings.filterwarnings("ignore", module=_MODULES)
    added = next((one for one in warnings.filters if one not in present), None)
    if added is not None:
        undo.append(lambda: _remove(added))
    importlib.import_module("torch")  # the three set their own levels when they are imported
    for name in ("diffusers", "transformers"):
        bars = importlib.import_module(f"{name}.utils.logging")
        if bars.is_progress_bar_enabled():
            _without_downloads(bars.disable_progress_bar)
            undo.append(partial(_without_downloads, bars.enable_progress_bar))
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() == logging.WARNING:  # the default; another was asked for
            undo.append(_with_level(logger))
    return undo


def _without_downloads(change: Callable[[], object]) -> None:
    """Change the bars of loading in a library that changes those of downloads with them, and change these back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    change()
    if disabled != are_progress_bars_disabled():
        (disable_progress_bars if disabled else enable_progress_bars)()


def _with_level(logger: logging.Logger) -> Undo:
    before = logger.level
    logger.setLevel(logging.ERROR)

    def undo() -> None:
        if logger.level == logging.ERROR:  # else it was changed meanwhile
            logger.setLevel(before)

    return undo


def _remove(added: object) -> None:
    """Remove one filter alone: a copy of the whole list would undo what others have added meanwhile."""
    with contextlib.suppress(ValueError):
        warnings.filters.remove(added)  # type: ignore[attr-defined, arg-type, unused-ignore]


def _mute_downloads() -> list[Undo]:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        return []
    disable_progress_bars()
    return [enable_progress_bars]


_muted, _muted_downloads = _Held(_mute), _Held(_mute_downloads)


@contextlib.contextmanager
def quiet(*, downloads: bool = False) -> Iterator[None]:
    """Inside, the libraries that HSD uses say nothing but errors. ``downloads`` show their bars if it is true."""
    with _muted(), contextlib.nullcontext() if downloads else _muted_downloads():
        yield
