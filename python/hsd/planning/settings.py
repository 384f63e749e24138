"""Settings of single prompts: the distinct ones, and which of them each prompt has."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..prompts.setting_values import EXACT


def check_settings(
    settings: Sequence[Mapping[str, Any]] | None, n: int
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The distinct settings of ``n`` prompts, in the order in which they first occur, and which each prompt has.

    Equal settings are one, however they are written: see :func:`canonical`.

    Raises
    ------
    TypeError, ValueError
        Unless there is one mapping per prompt, from strings to values that JSON can hold.
    """
    if settings is None:
        return [{}], np.zeros(n, dtype=np.int64)
    if isinstance(settings, (str, Mapping)) or len(settings) != n:
        count = "one mapping" if isinstance(settings, (str, Mapping)) else f"{len(settings)} settings"
        raise ValueError(
            f"{count} for {n} prompts: settings= takes one mapping per prompt; settings for all prompts go to "
            "hsd.load or hsd.generate"
        )
    first: dict[str, int] = {}
    index = np.zeros(n, dtype=np.int64)
    for i, own in enumerate(settings):
        if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
            raise TypeError(f"settings of prompt {i} are {own!r}: they have to map names to values")
        try:
            text = json.dumps(canonical(own), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            missing = [name for name, value in own.items() if isinstance(value, float) and value != value]
            hint = f"; {missing[0]} is NaN: leave out what is missing" if missing else ""
            raise TypeError(
                f"settings of prompt {i} ({reprlib.repr(own)}) cannot be saved as JSON: {error}{hint}"
            ) from None
        index[i] = first.setdefault(text, len(first))
    return [json.loads(text) for text in first], index


def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the one way in which equal ones are written: 5.0 as 5, pairs and arrays as lists, NumPy's numbers as
    Python's; a setting that is None is not given.
    """
    return {str(name): _plain(value) for name, value in settings.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float) and abs(value) <= EXACT and value == int(value):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return value
