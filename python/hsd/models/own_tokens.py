"""Which tokens of an encoded text are the prompt's own: not those of the chat template around it.

Language models put a prompt between the same tokens each time. What prompts are clustered by is the mean of the others:
the template's would make all prompts alike, and a short prompt more so than a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def template_ends(ids: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    """How many tokens stand before every prompt, and how many after it.

    ``ids`` gives the token ids of a prompt with all that is added to it.
    """
    one, other = list(ids("a")), list(ids("b"))
    return _common(one, other), _common(one[::-1], other[::-1])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts have in common."""
    return next((n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), 0)


def own_mean(tokens: Tensor, before: int, after: int) -> Tensor:
    """(D,) float32, the mean of tokens (L, D) without the first and last ones; of all if there are no others."""
    own = tokens[before : len(tokens) - after]
    return (own if len(own) else tokens).float().mean(0)
