"""Ray: started here for one run, or a cluster that exists."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from ..errors import Error

AFAR = "ray://"
"""What an address begins with if this machine is no part of the cluster."""

_STORE = 200 << 20
"""Bytes of the object store of a Ray of our own: plans and short messages go through it."""


def ray_module() -> Any:
    """The package."""
    try:
        import ray
    except ImportError:
        raise Error('several workers need Ray: pip install "hsd-diffusion[distributed]"') from None
    return ray


@contextlib.contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[tuple[Any, bool]]:
    """Inside, Ray is there. What was there before stays; what was started here ends. Gives the package, and whether
    this Ray is for this run alone.

    Parameters
    ----------
    address
        None: a Ray of our own on this machine, unless the program has connected to one already. Else a cluster.
    workers
        How many there will be, if that is known: a machine has room for them, however few cores it has.
    """
    ray = ray_module()
    if ray.is_initialized():
        with _without_raylet():
            yield ray, False
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment())
        stack.enter_context(_without_raylet())
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            # A name of its own and short: sockets in it have long ones, and Ray never removes it.
            folder = tempfile.mkdtemp(prefix="hsd-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            os.environ.setdefault("RAY_worker_niceness", "0")
            # Its own 30 seconds can be too few where other work takes all cores.
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
            cores = max(os.cpu_count() or 1, workers or 1)
            options = {
                "num_cpus": cores,
                "include_dashboard": False,
                "object_store_memory": _STORE,
                "_temp_dir": folder,
            }
            _init(ray, "local", {**quiet, **options})
        else:
            _init(ray, address, quiet)
        stack.callback(ray.shutdown)
        yield ray, address is None


def is_client(ray: Any) -> bool:
    """Whether a program is connected to a cluster elsewhere."""
    return bool(ray.util.client.ray.is_connected())


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        with _handlers():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = "start Ray" if address == "local" else f"connect to Ray at {address}"
        token = (
            ""
            if address == "local"
            else ". If the cluster asks for a token, set RAY_AUTH_MODE=token and copy the token "
            "of its head, ~/.ray/auth_token, to this machine"
        )
        raise Error(f"cannot {what}: {' '.join(str(error).split())[:300]}{token}") from error


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Ray sets variables when it starts, which a later one would read: take them back."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            if name.startswith("RAY_") or name == "PYTHONBREAKPOINT":
                del os.environ[name]


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts: give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


class _Filtered:
    """A stream without what Ray prints of the ends of processes, which are said by HSD."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream, but not for Ray's own lines."""
        if "(raylet" in text:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _without_raylet() -> Iterator[None]:
    """Ray prints on standard output, where results go."""
    out, sys.stdout = sys.stdout, _Filtered(sys.stdout)
    try:
        yield
    finally:
        sys.stdout = out
