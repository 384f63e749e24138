"""One prompt of a file, with its seed and what else the file says of it: the same checks, however it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import PromptError
from .characters import is_blank, unusable
from .setting_values import whole_number
from .source import MAX_LINE

MAX_SEED = 2**63 - 1
"""Seeds are stored as int64; ``torch.Generator.manual_seed`` takes all that are not negative."""


@dataclass(frozen=True)
class Entry:
    """One prompt of a file."""

    where: str
    """Its file and line, for messages."""
    prompt: str
    seed: int | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    """Everything else, by name."""


def make_entry(where: str, prompt: str, seed: Any, rest: dict[str, Any]) -> Entry:
    """An entry whose prompt is not blank and can be meant, and whose seed is one.

    Raises
    ------
    PromptError
        If not; names the place.
    """
    if is_blank(prompt):
        raise PromptError(f"{where} has no prompt")
    if len(prompt) > MAX_LINE:
        raise PromptError(f"{where}: the prompt has {len(prompt):,} characters, which no model reads")
    wrong = unusable(prompt)
    if wrong is not None:
        raise PromptError(f"{where}: the prompt {wrong}")
    if seed is None or seed == "":
        return Entry(where, prompt, None, rest)
    number = whole_number(seed, from_file=True)
    if number is None or not 0 <= number <= MAX_SEED:
        raise PromptError(f"{where}: the seed is {seed!r:.50}, which is not an integer in 0..{MAX_SEED}")
    return Entry(where, prompt, number, rest)
