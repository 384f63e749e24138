"""Prompts to a file of JSON lines, which is read back the same."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import PromptError
from ..work.files import write_atomically
from ..work.paths import user_path
from .files import PromptFile
from .headings import is_known
from .known_settings import meant


def write_prompts(file: PromptFile, path: str | Path) -> None:
    """Write the prompts with their seeds, settings and columns, one object per line.

    Raises
    ------
    PromptError
        If the name says that it is no file of JSON lines, or a value is no number that JSON has.
    """
    target = user_path(path)
    if target.suffix.lower() not in (".jsonl", ".ndjson"):
        raise PromptError(f"{path} is written as JSON lines: give it a name that ends in .jsonl")
    lines = []
    for i, prompt in enumerate(file.prompts):
        own = {_free(name): values[i] for name, values in file.columns.items() if values[i] is not None}
        seed = {} if file.seeds[i] is None else {"seed": file.seeds[i]}
        item = {"prompt": prompt, **seed, **file.settings[i], **own}
        try:
            lines.append(json.dumps(item, ensure_ascii=False, allow_nan=False))
        except ValueError as error:
            raise PromptError(f"{file.places[i]} cannot be written as JSON: {error}") from None
    write_atomically(target, "".join(line + "\n" for line in lines).encode())


def _free(name: str) -> str:
    """The name of a column, changed where it would be read as something else."""
    return f"given_{name}" if is_known(name) or meant(name) is not None else name
