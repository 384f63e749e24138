"""Lists of prompts are checked. Seeds and repeats of prompts."""

from __future__ import annotations

import io
import os
import reprlib
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Notice, PromptError
from ..prompts.characters import is_blank, unusable
from ..prompts.entries import MAX_SEED
from ..prompts.files import PromptFile
from ..prompts.setting_values import whole_number
from ..work.text import listed, shortened

__all__ = ["MAX_SEED", "check_alone", "check_prompts", "make_seeds", "next_seed", "occurrences", "warn_of_failed"]


def check_prompts(prompts: Any) -> list[str]:
    """A list of non-empty strings, or an error that names the first index that is not one.

    Raises
    ------
    TypeError
        If ``prompts`` is no list of strings: a single string, a table, a set, a path, or with an item that is not one.
    PromptError
        If the list is empty, or an item is blank or has characters that no text has.
    """
    _check_container(prompts)
    given = list(prompts)
    if not given:
        raise PromptError("the list of prompts is empty: there is nothing to generate")
    for i, prompt in enumerate(given):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompt {i} is {_short(prompt)} ({type(prompt).__name__}), not a string{_item_hint(prompt)}"
            )
        if is_blank(prompt):
            raise PromptError(f"prompt {i} is blank ({prompt!r}): remove it, or write what it should show")
        wrong = unusable(prompt)
        if wrong is not None:
            raise PromptError(f"prompt {i} {wrong}")
    return [str.__str__(prompt) for prompt in given]  # plain ones, also from NumPy


def _check_container(prompts: Any) -> None:
    """``TypeError`` for what can be iterated over but gives something else than the prompts in their order."""
    kind = type(prompts).__name__
    if isinstance(prompts, (str, bytes)):
        raise TypeError(f"prompts has to be a list of strings, not one {kind}: wrap it in [...]{_FILES}")
    if isinstance(prompts, (os.PathLike, io.IOBase)):
        raise TypeError(f"prompts has to be a list of strings, not {kind}{_FILES}")
    if isinstance(prompts, PromptFile):
        raise TypeError("prompts is a PromptFile, which hsd.compile takes; elsewhere pass file.prompts")
    if isinstance(prompts, Mapping):
        raise TypeError(f"prompts is a {kind}, which gives its keys: pass a list of strings, such as list(d.values())")
    if isinstance(prompts, (set, frozenset)):
        raise TypeError(
            f"prompts is a {kind}, which has no order: image 0 would be another one in the next run. Pass sorted(...)"
        )
    if hasattr(prompts, "columns") or hasattr(prompts, "column_names"):
        raise TypeError(f'prompts is a {kind}, a table: pass one column as a list, such as list(table["prompt"])')
    shape = getattr(prompts, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        raise TypeError(f"prompts is an array of shape {shape}: pass one dimension, a list of strings")
    if not isinstance(prompts, Iterable) and not hasattr(prompts, "__getitem__"):
        raise TypeError(f"prompts has to be a list of strings, not {_short(prompts)} ({kind})")


def next_seed(seeds: NDArray[np.int64], n: int) -> int:
    """The first of ``n`` seeds that follow the largest one.

    Raises
    ------
    ValueError
        If there are not so many.
    """
    largest = int(seeds.max())
    if largest + n > MAX_SEED:
        raise ValueError(f"the largest seed of the plan is {largest}, after which there are no {n} more: give seeds=")
    return largest + 1


def warn_of_failed(failed: Mapping[int, str], texts: Sequence[str], *, stacklevel: int) -> None:
    """A warning that names prompts that could not be encoded."""
    named = listed([f"prompt {i} ({shortened(texts[i])!r}): {failed[i]}" for i in sorted(failed)], 3)
    text = f"{len(failed)} of {len(texts)} prompts cannot be encoded, and share no steps: {named}"
    warnings.warn(text, Notice, stacklevel=stacklevel + 1)


def check_alone(**given: Any) -> None:
    """``TypeError`` if an argument is given that a ``PromptFile`` has already."""
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"{name}= is given, but the file of prompts has {name} too: pass file.prompts and the parts you want"
            )


_FILES = "; prompts in a file are hsd.read_prompts(path).prompts"


def _item_hint(item: Any) -> str:
    if isinstance(item, Mapping):
        return ": pass the texts alone, such as [item['prompt'] for item in prompts]; settings go to settings="
    if isinstance(item, bytes):
        return ": decode it"
    if isinstance(item, float) and item != item:
        return ": it is a missing cell of a table; remove it"
    if isinstance(item, os.PathLike):
        return _FILES
    return ""


def _short(value: Any) -> str:
    return reprlib.repr(value)


def make_seeds(seeds: int | Sequence[int] | NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """(n,) int64 seeds: ``seeds + i`` for an integer, the given ones for a sequence.

    A whole float such as 3.0 is an integer too, as tables have them.

    Raises
    ------
    TypeError
        If a seed is not an integer.
    ValueError
        If there are not ``n`` seeds, or one is negative or over 2**63 - 1.
    """
    if hasattr(seeds, "tolist"):  # NumPy, pandas, torch
        seeds = seeds.tolist()
    single = isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable)
    first = whole_number(seeds) if single else None
    if single and first is None:
        raise TypeError(f"seeds has to be an integer or a sequence of integers, not {_short(seeds)}")
    if first is not None and 0 <= first <= MAX_SEED - n:
        return first + np.arange(n, dtype=np.int64)
    values: list[Any] = list(seeds) if first is None else [first + i for i in range(n)]  # type: ignore[arg-type]
    if len(values) != n:
        raise ValueError(f"{len(values)} seeds for {n} images: give one per image, or one integer for all")
    out = np.empty(n, dtype=np.int64)
    for i, value in enumerate(values):
        seed = whole_number(value)
        if seed is None:
            raise TypeError(f"seed {i} is {_short(value)} ({type(value).__name__}), not an integer")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed {i} is {_short(seed)}, outside 0..{MAX_SEED}")
        out[i] = seed
    return out


def occurrences(prompts: Sequence[Hashable]) -> NDArray[np.int64]:
    """(N,) how often each prompt, or its label, has occurred earlier in the list: 0 for the first, 1 for the second...

    The r-th occurrences are the r-th replica and get a separate tree, because a repeat is a different image.
    """
    seen: dict[Hashable, int] = {}
    out = []
    for prompt in prompts:
        before = seen.get(prompt, 0)
        out.append(before)
        seen[prompt] = before + 1
    return np.array(out, dtype=np.int64)
