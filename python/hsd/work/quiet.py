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
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

_LIBRARIES = ("accelerate", "bitsandbytes", "diffusers", "huggingface_hub", "peft", "torch", "torchao", "transformers")

_MODULES = (
    r"(accelerate|bitsandbytes|diffusers|huggingface_hub|peft|torchao|transformers)(\.|$)"
    r"|torch(?!\.utils\._contextlib)(\.|$)"
)
"""Modules whose warnings are not shown. Not torch's wrapper of functions: a warning of HSD may seem to come from it."""

Change = Callable[[contextlib.ExitStack], None]
"""Changes something global, and pushes what undoes each of its parts."""

T = TypeVar("T")


class _Held:
    """A change of something global, which lasts as long as anyone is inside."""

    def __init__(self, change: Change) -> None:
        self._change, self._lock = change, threading.RLock()
        self._inside = 0
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                with contextlib.ExitStack() as undo:  # of a change that fails half-way
                    self._change(undo)
                    self._undo = undo.pop_all()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._undo.close()


def _mute(undo: contextlib.ExitStack) -> None:
    """Log messages and bars of loading, and warnings. It imports torch, diffusers and transformers."""
    present = list(warnings.filters)
    warnings.filterwarnings("ignore", module=_MODULES)
    added = next((one for one in warnings.filters if one not in present), None)
    if added is not None:
        undo.callback(_remove, added)
    importlib.import_module("torch")  # the three set their own levels when they are imported
    for name in ("diffusers", "transformers"):
        bars = importlib.import_module(f"{name}.utils.logging")
        if bars.is_progress_bar_enabled():
            undo.callback(_without_downloads, bars.enable_progress_bar)
            _without_downloads(bars.disable_progress_bar)
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() == logging.WARNING:  # the default; another was asked for
            undo.callback(_to_level, logger, logger.level)
            logger.setLevel(logging.ERROR)


def _without_downloads(change: Callable[[], object]) -> None:
    """Change the bars of loading in a library that changes those of downloads with them, and change these back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    change()
    if disabled != are_progress_bars_disabled():
        (disable_progress_bars if disabled else enable_progress_bars)()


def _to_level(logger: logging.Logger, level: int) -> None:
    if logger.level == logging.ERROR:  # else it was changed meanwhile
        logger.setLevel(level)


def _remove(added: object) -> None:
    """Remove one filter alone: a copy of the whole list would undo what others have added meanwhile."""
    with contextlib.suppress(ValueError):
        warnings.filters.remove(added)  # type: ignore[attr-defined, arg-type, unused-ignore]


def _mute_downloads(undo: contextlib.ExitStack) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not are_progress_bars_disabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is not False:
        undo.callback(enable_progress_bars)
        disable_progress_bars()


_muted, _muted_downloads = _Held(_mute), _Held(_mute_downloads)


@contextlib.contextmanager
def quiet(*, downloads: bool = False) -> Iterator[None]:
    """Inside, the libraries that HSD uses say nothing but errors. ``downloads`` show their bars if it is true."""
    with _muted(), contextlib.nullcontext() if downloads else _muted_downloads():
        yield


def quietly(items: Generator[T, None, None]) -> Iterator[T]:
    """What a generator yields. It works inside :func:`quiet`; whoever takes its items does not."""
    try:
        while True:
            with quiet():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        with quiet():
            items.close()
