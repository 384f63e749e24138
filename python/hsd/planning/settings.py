"""Settings of single prompts: the distinct ones, and which of them each prompt has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_settings(
    settings: Sequence[Mapping[str, Any]] | None, n: int
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The distinct settings of ``n`` prompts, in the order in which they first occur, and which each prompt has.

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
            text = json.dumps(dict(own), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"settings of prompt {i} ({own!r}) cannot be saved as JSON: {error}") from None
        index[i] = first.setdefault(text, len(first))
    return [json.loads(text) for text in first], index
