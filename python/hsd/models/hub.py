"""Models of the hub on a machine that cannot reach it: from the cache, or an error at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ..errors import UnknownModel

_TIMEOUT = 5.0
"""Seconds in which the hub has to answer. The libraries try for most of a minute, once for each file."""

_INDEXES = ("model_index.json", "modular_model_index.json")


@contextlib.contextmanager
def of_hub(source: str | Path) -> Iterator[None]:
    """Inside, a model is loaded. One of the hub comes from the cache alone where the hub cannot be reached.

    Raises
    ------
    UnknownModel
        That of the body, with what to do; says first that the machine is offline.
    """
    why = None if isinstance(source, Path) else _why_offline()
    if why is None:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # which huggingface_hub reads at each request
    try:
        yield
    except UnknownModel as error:
        try:
            found = any(isinstance(try_to_load_from_cache(str(source), name), str) for name in _INDEXES)
        except HFValidationError as invalid:
            raise UnknownModel(f"cannot load {source}: {invalid}") from error
        cached = (
            f"not all of it can be read from the cache ({error.__cause__ or error})"
            if found
            else "it is not in the cache"
        )
        raise UnknownModel(
            f"cannot load {source}: {why}, and {cached}. Connect, or give the folder of the model, or fill "
            f"{constants.HF_HUB_CACHE} on a machine that is online: hf download {source}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_offline() -> str | None:
    """Why the hub is not asked; None if it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)  # through a proxy too, if there is one
    except Exception:  # whatever its HTTP client raises: no name, no route, a timeout
        return f"this machine is offline ({constants.ENDPOINT} does not answer)"
    return None
