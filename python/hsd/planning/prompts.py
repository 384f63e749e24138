"""Prompts: lists are checked; files are read line by line, as text or as JSON objects. Seeds and repeats of prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError
from ..work.files import expand

MAX_SEED = 2**63 - 1
"""Seeds are stored as int64; ``torch.Generator.manual_seed`` takes all that are not negative."""


def check_prompts(prompts: Iterable[str]) -> list[str]:
    """A list of non-empty strings, or an error that names the first index that is not one.

    Raises
    ------
    TypeError
        If ``prompts`` is a single string or an item is not a string.
    PromptError
        If the list is empty or an item is blank.
    """
    if isinstance(prompts, (str, bytes)):
        raise TypeError(f"prompts has to be a list of strings, not one {type(prompts).__name__}: wrap it in [...]")
    prompts = list(prompts)
    if not prompts:
        raise PromptError("the list of prompts is empty: there is nothing to generate")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {i} is {prompt!r} ({type(prompt).__name__}), not a string")
        if not prompt.strip():
            raise PromptError(f"prompt {i} is blank ({prompt!r}): remove it, or write what it should show")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"prompt {i} has a lone surrogate at character {error.start}, which is not valid text: decode it again"
            ) from None
    return prompts


@dataclass(frozen=True)
class PromptFile:
    """The contents of a file of prompts."""

    prompts: list[str]
    seeds: list[int | None]
    """One per prompt; None where the file gives none."""
    settings: list[dict[str, Any]]
    """One per prompt: settings of the model for its images only, as ``hsd.compile(settings=...)`` takes them."""

    def seeds_from(self, seed: int, images_per_prompt: int = 1) -> int | list[int]:
        """The seeds for ``hsd.compile``: those of the file, and ``seed + i`` for a prompt i without one.

        Raises
        ------
        ValueError
            If the file gives seeds and ``images_per_prompt`` is not 1: the images of a prompt need different seeds.
        """
        if all(own is None for own in self.seeds):
            return seed
        if images_per_prompt > 1:
            raise ValueError(
                f"images_per_prompt is {images_per_prompt}, but the file gives seeds: repeat lines instead, each with "
                "its own seed"
            )
        return [seed + i if own is None else own for i, own in enumerate(self.seeds)]


def read_prompts(path: str | Path) -> PromptFile:
    """Read a UTF-8 file with one prompt per line; blank lines are skipped, ``-`` is standard input.

    In a ``.jsonl`` file every line is an object: ``prompt``, optionally ``seed``, and optionally settings of the model
    for the images of this prompt (``negative_prompt``, ``guidance_scale``, ``width``...). In other files a line is a
    prompt.

    Raises
    ------
    PromptError
        If the file cannot be read, a line is not UTF-8 or not such an object (names the line), or no line has a prompt.
    """
    as_json = str(path).endswith(".jsonl")
    prompts: list[str] = []
    seeds: list[int | None] = []
    settings: list[dict[str, Any]] = []
    for where, text in _lines(path):
        entry: dict[str, Any] = _entry(text, where) if as_json else {"prompt": text}
        prompts.append(entry.pop("prompt"))
        seeds.append(entry.pop("seed", None))
        settings.append(entry)
    if not prompts:
        raise PromptError(f"{_name(path)} has no prompts: write one per line")
    return PromptFile(prompts, seeds, settings)


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each with its place for error messages."""
    name = _name(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else expand(path).read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read prompts from {name}: {error.strerror or error}") from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{name}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; "
                "save the file as UTF-8 and try again"
            ) from None
        if text:
            yield f"{name}, line {number}", text


def _entry(text: str, where: str) -> dict[str, Any]:
    """One line of a ``.jsonl`` file."""
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise PromptError(f"{where} is not JSON ({error}): write one object per line") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise PromptError(f'{where} has no prompt: write an object such as {{"prompt": "a cat", "seed": 3}}')
    seed = entry.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED):
        raise PromptError(f"{where}: the seed is {seed!r}, which is not an integer in 0..{MAX_SEED}")
    return entry


def make_seeds(seeds: int | Sequence[int] | NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """(n,) int64 seeds: ``seeds + i`` for an integer, the given ones for a sequence.

    Raises
    ------
    TypeError
        If a seed is not an integer.
    ValueError
        If there are not ``n`` seeds, or one is negative or over 2**63 - 1.
    """
    if isinstance(seeds, (bool, np.bool_)) or (np.isscalar(seeds) and not isinstance(seeds, (int, np.integer))):
        raise TypeError(f"seeds has to be an integer or a sequence of integers, not {seeds!r}")
    if isinstance(seeds, (int, np.integer)) and 0 <= int(seeds) <= MAX_SEED - n:
        return int(seeds) + np.arange(n, dtype=np.int64)
    values = [int(seeds) + i for i in range(n)] if isinstance(seeds, (int, np.integer)) else list(seeds)
    if len(values) != n:
        raise ValueError(f"{len(values)} seeds for {n} images: give one per image, or one integer for all")
    for i, seed in enumerate(values):
        if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
            raise TypeError(f"seed {i} is {seed!r} ({type(seed).__name__}), not an integer")
        if not 0 <= int(seed) <= MAX_SEED:
            raise ValueError(f"seed {i} is {seed}, outside 0..{MAX_SEED}")
    return np.array([int(seed) for seed in values], dtype=np.int64)


def occurrences(prompts: Sequence[str]) -> NDArray[np.int64]:
    """(N,) how often each prompt has occurred earlier in the list: 0 for the first, 1 for the second...

    The r-th occurrences are the r-th replica and get a separate tree, because a repeat is a different image.
    """
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        before = seen.get(prompt, 0)
        out.append(before)
        seen[prompt] = before + 1
    return np.array(out, dtype=np.int64)
