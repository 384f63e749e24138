"""The networks that make pixels: whether what they give is finite.

Images become uint8 inside of ``decode``, where NaN turns into black and infinity into white. So the networks themselves
are watched, from outside: no adapter has to do anything for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..work.device import to_host


class _Seen(threading.local):
    """What the networks have given in this thread."""

    rows: list[Tensor] | None = None
    """(B,) bool for each call: which rows are finite. None: nobody watches."""


_seen = _Seen()
_lock = threading.Lock()
_watched: WeakKeyDictionary[nn.Module, tuple[int, Callable[[], object]]] = WeakKeyDictionary()
"""By network: how many watch it, in any thread, and how to end that."""


@contextlib.contextmanager
def watching(networks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, what ``networks`` give in this thread is noted: for each call, (B,) which rows of it are finite.

    A network's ``decode`` is watched if it has one (autoencoders), else the call of the network. Several threads may
    watch the same network.
    """
    before, _seen.rows = _seen.rows, []
    found = _seen.rows
    for network in networks:
        with _lock:
            users, stop = _watched.get(network, (0, None))
            _watched[network] = (users + 1, stop or _watch(network))
    try:
        yield found
    finally:
        _seen.rows = before
        for network in networks:
            with _lock:
                users, stop = _watched[network]
                if users > 1:
                    _watched[network] = (users - 1, stop)
                else:
                    del _watched[network]
                    stop()


def finite_rows(seen: Sequence[Tensor], n: int) -> list[bool] | None:
    """Which of ``n`` images are finite, from what :func:`watching` noted; None if it cannot be told for each of them.

    The networks are called once for all images (several times, if there are several networks), or one image at a time.
    """
    if not seen:
        return [True] * n
    if all(len(rows) == n for rows in seen):
        return to_host(torch.stack([rows.to(seen[0].device) for rows in seen]).all(dim=0)).tolist()
    rows = to_host(torch.cat([rows.to(seen[0].device) for rows in seen])).tolist()
    if all(rows) or n == 1:
        return [all(rows)] * n
    return rows if len(rows) == n else None


def _watch(network: nn.Module) -> Callable[[], object]:
    """Note what ``network`` gives, from now on; the result ends that."""
    own: Any = getattr(network, "decode", None)
    if not callable(own):
        return network.register_forward_hook(lambda _, __, output: _note(output)).remove
    attributes = vars(network)
    was_set = "decode" in attributes  # by a user, to a compiled function for example

    @wraps(own)
    def decode(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        _note(output)
        return output

    attributes["decode"] = decode

    def stop() -> None:
        if was_set:
            attributes["decode"] = own
        else:
            del attributes["decode"]

    return stop


def _note(output: Any) -> None:
    """Note which rows of a network's output are finite, if this thread watches. They stay on the device."""
    if _seen.rows is None:
        return
    with contextlib.suppress(KeyError, IndexError, TypeError):  # it is something else than images
        images = output if isinstance(output, Tensor) else output[0]
        if isinstance(images, Tensor) and images.ndim > 1 and images.is_floating_point():
            _seen.rows.append(torch.isfinite(images).flatten(1).all(dim=1))
